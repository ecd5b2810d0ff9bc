"""SR3PairDataset: published folders and LMDBs, pairing by name, one flip for all images of an item."""

import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_sr3_data import Sizes, make_data

from basicsr.data.loaders import DataError, build_dataset, check_datasets
from basicsr.data.sr3_pair_dataset import SR3PairDataset
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.option_sections import DatasetOptions
from basicsr.utils.registry import OptionError
from basicsr.utils.seeding import seeded

NAMES = ('7', '00012', 'b')  # not contiguous: the published code would draw random images in their place


@pytest.fixture(params=['img', 'lmdb'])
def datatype(request) -> str:
    return request.param


@pytest.fixture
def roots(tmp_path) -> dict[str, Path]:
    """The same images in both layouts."""
    for number, name in enumerate(NAMES):
        write_image(tmp_path / 'source' / f'{name}.png', pixels(number, 20 + number, 30))
    return {
        kind: make_data(tmp_path / 'source', tmp_path / kind, Sizes(4, 16), lmdb=kind == 'lmdb')[0]
        for kind in ('img', 'lmdb')
    }


def opened(root: Path, datatype: str, **options) -> SR3PairDataset:
    return SR3PairDataset(str(root), 4, 16, scale=4, datatype=datatype, **options)


def test_items_are_the_stored_images_by_sorted_names(roots, datatype):
    dataset = opened(roots[datatype], datatype)
    assert len(dataset) == 3 and dataset.faults(thorough=True) == []
    for item, name in zip(dataset, ('00007', '0000b', '00012')):
        for key, folder in (('lq', 'lr_4'), ('lq_up', 'sr_4_16'), ('gt', 'hr_16')):
            assert torch.equal(item[key], to_tensor(read_image(roots['img'] / folder / f'{name}.png')))
        assert Path(item['lq_path']).stem == Path(item['gt_path']).stem == name
    assert item['gt'].dtype == torch.float32 and item['gt'].min() >= 0 and item['gt'].max() <= 1


def test_one_flip_for_all_images_of_an_item_and_none_outside_training(roots, datatype):
    plain, seen = opened(roots[datatype], datatype, use_hflip=True), set()
    training = opened(roots[datatype], datatype, phase='train', use_hflip=True)
    for draw in range(12):
        with seeded(draw):
            item, kept = training[0], plain[0]
        flipped = {bool(torch.equal(item[key], kept[key].flip(-1))) for key in ('lq', 'lq_up', 'gt')}
        assert len(flipped) == 1
        unchanged = {bool(torch.equal(item[key], kept[key])) for key in ('lq', 'lq_up', 'gt')}
        assert unchanged == {not flipped.copy().pop()}
        seen |= flipped
    assert seen == {True, False}


def test_without_lr_the_small_image_is_made_of_gt(roots, datatype, tmp_path):
    if datatype == 'img':
        for file in (roots['img'] / 'lr_4').iterdir():
            file.unlink()
    item = opened(roots[datatype], datatype, need_lr=False)[1]
    assert item['lq'].shape == (3, 4, 4) and item['lq_up'].shape == item['gt'].shape == (3, 16, 16)
    assert Path(item['lq_path']).stem == '0000b'
    whole = opened(roots['lmdb'], 'lmdb')[1]
    assert (item['lq'] - whole['lq']).abs().mean() < 0.1


def test_data_len_takes_the_first(roots, datatype):
    assert [len(opened(roots[datatype], datatype, data_len=n)) for n in (-1, 0, 2, 50)] == [3, 3, 2, 3]


def test_missing_partners_are_listed_by_name_in_folders(roots):
    (roots['img'] / 'sr_4_16' / '00012.png').unlink()
    (roots['img'] / 'lr_4' / '00007.png').unlink()
    (roots['img'] / 'hr_16' / '0000b.png').rename(roots['img'] / 'hr_16' / 'other.png')
    dataset = opened(roots['img'], 'img')
    faults = '\n'.join(dataset.faults(thorough=False))
    assert len(dataset) == 0
    for part in ('hr_16/00012.png: without a partner', 'hr_16/00007.png: without a partner', 'other.png', '0000b.png'):
        assert part in faults
    with pytest.raises(DataError, match='cannot be used'):
        check_datasets([dataset])


def test_missing_partners_are_listed_by_name_in_databases(roots):
    with lmdb.open(str(roots['lmdb'])) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b'sr_4_16_00012')
        transaction.delete(b'lr_4_0000b')
    dataset = opened(roots['lmdb'], 'lmdb')
    missing = [fault.split(': ')[0] for fault in dataset.faults(thorough=False)]
    assert missing == [f'{roots["lmdb"]}/{name}' for name in ('lr_4/0000b', 'sr_4_16/00012')]
    with pytest.raises(ValueError, match='sr_4_16/00012'):
        dataset[2]


def test_images_of_other_sizes_are_faults_with_both_sizes(roots):
    write_image(roots['img'] / 'hr_16' / '00007.png', np.zeros((20, 16, 3), np.uint8))
    dataset = opened(roots['img'], 'img')
    assert dataset.faults(thorough=True) == [f'{roots["img"]}/hr_16/00007.png is 16x20 instead of 16x16']
    with pytest.raises(ValueError, match='16x20 instead of 16x16'):
        dataset[0]


def test_files_of_another_format_belong_together_by_their_stems(roots):
    old = roots['img'] / 'hr_16' / '00007.png'
    write_image(old.with_suffix('.bmp'), (read_image(old) * 255).round().astype(np.uint8))
    old.unlink()
    dataset = opened(roots['img'], 'img')
    assert dataset.faults(thorough=True) == [] and dataset[0]['gt_path'].endswith('.bmp')


def test_options_that_do_not_fit_the_scale_are_refused(roots):
    options = {'type': 'SR3PairDataset', 'dataroot': str(roots['img']), 'l_resolution': 4, 'r_resolution': 16}
    section = DatasetOptions(name='set', options=options)
    assert len(build_dataset(section, 'val', 4)) == 3
    with pytest.raises(OptionError, match='4 \\* 8, got 16'):
        build_dataset(section, 'val', 8)
