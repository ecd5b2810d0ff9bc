"""Lists of pairs: two paths in each line, read as they are meant and refused with the number of the line."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_lmdb, make_pairs, pixels
from hypothesis import given
from hypothesis import strategies as st

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.paths import read_pair_list
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.registry import OptionError


def make_list(path: Path, text: str) -> str:
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_a_list_of_pairs_is_split_at_tabs_or_the_first_blanks(tmp_path):
    text = '\ufefflq/a.png gt/b.png\r\n\n  lq/c.png \t gt/d e.png  \nlq/c d.png\tgt/d e.png\nlq/ü.png    gt/x y.png'
    assert read_pair_list(make_list(tmp_path / 'l.txt', text)) == [
        ('gt/b.png', 'lq/a.png', 1),
        ('gt/d e.png', 'lq/c.png', 3),
        ('gt/d e.png', 'lq/c d.png', 4),
        ('gt/x y.png', 'lq/ü.png', 5),
    ]
    assert read_pair_list(make_list(tmp_path / 'l.txt', 'hr.png lr.png\n'), 'gt lq') == [('hr.png', 'lr.png', 1)]
    comma = make_list(tmp_path / 'l.txt', 'a b.png, c,d.png\n')
    assert read_pair_list(comma, 'gt, lq') == [('a b.png', 'c,d.png', 1)]


LETTERS = st.characters(exclude_categories=('Cs', 'Cc', 'Zl', 'Zp', 'Zs'), exclude_characters='\ufeff')
WORDS = st.text(LETTERS, min_size=1)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1), st.sampled_from([' ', '   ', '\t', ' \t']), st.integers(0, 3))
def test_what_was_listed_is_read_back(tmp_path_factory, pairs, between, empty):
    path = tmp_path_factory.mktemp('list') / 'l.txt'
    make_list(path, ('\n' * (empty + 1)).join(f'{lq}{between}{gt}' for gt, lq in pairs))
    assert [(pair.gt, pair.lq) for pair in read_pair_list(str(path))] == pairs


def test_every_line_that_names_no_pair_is_said_with_its_number(tmp_path):
    path = make_list(tmp_path / 'l.txt', 'a b\nalone.png\n\nc d\n\tx\n')
    with pytest.raises(OptionError) as caught:
        read_pair_list(path)
    assert str(caught.value) == (
        f"{path}:2: 'alone.png' should be two paths: lq gt\n  {path}:5: 'x' should be two paths: lq gt"
    )
    with pytest.raises(OptionError, match=r"l.txt:1: 'a b' should be two paths: gt, lq"):
        read_pair_list(path, 'gt, lq')
    with pytest.raises(OptionError, match=r'l.txt: lists no pairs'):
        read_pair_list(make_list(tmp_path / 'l.txt', '\n  \n'))
    with pytest.raises(OptionError, match=r'nowhere: cannot be read as a list of pairs'):
        read_pair_list(str(tmp_path / 'nowhere'))


def test_listed_pairs_are_used_in_their_order_wherever_they_lie(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'sub/b.png', 'c d.png'])
    make_pairs(tmp_path / 'far', ['x_LR.png', 'x_HR.png'])
    text = (
        f'sub/b.png sub/b.png\n{tmp_path}/far/lq/x_LR.png {tmp_path}/far/gt/x_HR.png\nc d.png\tc d.png\na.png a.png\n'
    )
    dataset = PairedImageDataset(gt, lq, 2, pair_list=make_list(tmp_path / 'l.txt', text))
    assert dataset.faults(True) == []
    names = ['sub/b.png', f'{tmp_path}/far/gt/x_HR.png', 'c d.png', 'a.png']
    for item, name in zip((dataset[n] for n in range(len(dataset))), names, strict=True):
        assert item['gt_path'] == str(Path(gt) / name)
        assert torch.equal(item['gt'], to_tensor(read_image(item['gt_path'])))
    assert dataset[1]['lq_path'] == f'{tmp_path}/far/lq/x_LR.png'
    assert len(PairedImageDataset(gt, lq, 2, pair_list=str(tmp_path / 'l.txt'), max_num=2)) == 2


def test_a_listed_file_that_is_not_there_is_named_with_its_line(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'b.png'])
    path = make_list(tmp_path / 'l.txt', 'a.png a.png\n\nx.png b.png\nb.png y.png\n')
    dataset = PairedImageDataset(gt, lq, 2, pair_list=path)
    assert dataset.faults(False) == [f'{path}:3: {lq}/x.png is not there', f'{path}:4: {gt}/y.png is not there']
    assert dataset.pairs == [('a.png', 'a.png')]
    keys = make_lmdb(tmp_path / 'k.lmdb', {'a': pixels(0, 4, 4), 'v1.5': pixels(1, 4, 4)})
    names = make_list(tmp_path / 'l.txt', 'a.png v1.5.png\nv1.5 z\n')
    listed = PairedImageDataset(str(keys), str(keys), 1, io_backend={'type': 'lmdb'}, pair_list=names)
    assert listed.pairs == [('v1.5', 'a')] and listed.faults(True) == [f'{names}:2: {keys}/z is not there']


@pytest.mark.parametrize(('option', 'listed'), [({}, True), ({'trim_gt': True}, False)])
def test_training_may_cut_a_gt_that_is_a_little_larger(option, listed, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'], scale=3)
    write_image(f'{gt}/a.png', pixels(3, 24 + 7, 30 + 9))
    refused = PairedImageDataset(gt, lq, 3, 'train', gt_size=24)
    assert refused.faults(False) == [f'{gt}/a.png is 39x31; 3 times {lq}/a.png (10x8) would be 30x24']
    if listed:
        option = {'pair_list': make_list(tmp_path / 'l.txt', 'a.png a.png')}
    dataset = PairedImageDataset(gt, lq, 3, 'train', gt_size=24, **option)
    assert dataset.faults(True) == []
    random.seed(1)
    item = dataset[0]
    random.seed(1)
    top, left = random.randint(0, 0), random.randint(0, 2)
    whole = to_tensor(read_image(f'{gt}/a.png'))
    assert torch.equal(item['gt'], whole[:, 3 * top : 3 * top + 24, 3 * left : 3 * left + 24])
    write_image(f'{gt}/a.png', pixels(3, 24 + 8, 30 + 9))  # a whole lq pixel for each: the scale would be 4
    for phase in ('train', 'val'):
        wrong = PairedImageDataset(gt, lq, 3, phase, gt_size=24, **option)
        place = f'{option["pair_list"]}:1: ' if listed else ''
        assert wrong.faults(False) == [f'{place}{gt}/a.png is 39x32; 3 times {lq}/a.png (10x8) would be 30x24']


@pytest.mark.parametrize('other', [{'meta_info_file': 'x.txt'}, {'filename_tmpl': '{}x4'}])
def test_a_list_of_pairs_stands_alone(other, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    with pytest.raises(OptionError, match='pair_list takes the place of meta_info_file and filename_tmpl'):
        PairedImageDataset(gt, lq, 2, pair_list=make_list(tmp_path / 'l.txt', 'a.png a.png'), **other)


def test_d2c_sr_never_draws_the_last_place_of_a_crop(tmp_path):
    """Of the four places along each side of 8 for a crop of 5; the image's values are the numbers of its pixels."""
    gt, lq = make_pairs(tmp_path, ['a.png'])
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    write_image(f'{lq}/a.png', numbers)
    write_image(f'{gt}/a.png', numbers.repeat(2, 0).repeat(2, 1))
    options = {'pair_list': make_list(tmp_path / 'l.txt', 'a.png a.png'), 'gt_size': 10}
    for published, count in ((False, 4), (True, 3)):
        dataset = PairedImageDataset(gt, lq, 2, 'train', published_crop=published, **options)
        random.seed(0)
        first = {round(dataset[0]['lq'][0, 0, 0].item() * 255) for _ in range(300)}
        assert first == {8 * top + left for top in range(count) for left in range(count)}
    options['gt_size'] = 16
    exact = PairedImageDataset(gt, lq, 2, 'train', published_crop=True, **options)
    place = f'{options["pair_list"]}:1: '
    assert exact.faults(False) == [f'{place}{gt}/a.png is 16x16, no larger than the crop of gt_size 16']
