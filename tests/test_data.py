"""Data sets: pairs by name, the published crops and flips, and every fault with its file."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_lmdb, make_pairs, pixels
from golden_case import load_case
from PIL import Image

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.paths import read_meta_info
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.data.transforms import augment, draw_flips, mod_crop, paired_random_crop
from basicsr.utils.color import rgb_to_ycbcr
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.registry import DATASET_REGISTRY, OptionError

# ---- crops and flips


class Fixed:
    """A generator whose integers are given."""

    def __init__(self, *values: int):
        self.values = list(values)

    def randint(self, low: int, high: int) -> int:
        value = self.values.pop(0)
        assert low <= value <= high
        return value


def test_crops_and_the_eight_states_equal_basicsr():
    case = load_case('data', 'crop_augment')
    lq, gt, args = case.arrays['lq'], case.arrays['gt'], case.args
    cut_lq, cut_gt = paired_random_crop(lq, gt, args['gt_patch'], args['scale'], Fixed(args['top'], args['left']))
    assert np.array_equal(cut_lq, case.arrays['crop_lq']) and np.array_equal(cut_gt, case.arrays['crop_gt'])
    states = [name for name in case.arrays if name.startswith('aug_')]
    assert len(states) == 8
    source = next(a for a in (lq, gt, cut_lq, cut_gt) if np.array_equal(a, case.arrays['aug_000']))
    for name in states:
        assert np.array_equal(augment(source, *(letter == '1' for letter in name[4:])), case.arrays[name]), name


def test_the_draws_are_basicsrs_in_number_and_order():
    lq, gt, rng = np.zeros((9, 12, 3)), np.zeros((18, 24, 3)), random.Random(5)
    reference = random.Random(5)
    for _ in range(20):
        cut = paired_random_crop(lq, gt, 8, 2, rng)[0]
        reference.randint(0, 9 - 4), reference.randint(0, 12 - 4)
        assert cut.shape == (4, 4, 3)
        assert draw_flips(True, True, rng) == tuple(reference.random() < 0.5 for _ in range(3))
        assert draw_flips(True, False, rng) == (reference.random() < 0.5, False, False)
        assert draw_flips(False, True, rng) == (False, reference.random() < 0.5, reference.random() < 0.5)
    assert rng.getstate() == reference.getstate()


def test_every_offset_is_drawn_and_both_crops_show_the_same_place():
    lq = np.arange(5 * 6).reshape(5, 6, 1)
    gt = lq.repeat(3, 0).repeat(3, 1)
    seen = set()
    for seed in range(200):
        cut_lq, cut_gt = paired_random_crop(lq, gt, 9, 3, random.Random(seed))
        assert np.array_equal(cut_gt, cut_lq.repeat(3, 0).repeat(3, 1))
        seen.add(int(cut_lq[0, 0, 0]))
    assert seen == {6 * top + left for top in range(3) for left in range(4)}


def test_mod_crop_leaves_multiples():
    assert mod_crop(np.zeros((7, 9, 3)), 4).shape == (4, 8, 3) and mod_crop(np.zeros((8, 8)), 4).shape == (8, 8)


# ---- items


def test_a_validation_item_is_whole_and_in_rgb_between_0_and_1(tmp_path):
    gt, lq = make_pairs(tmp_path, ['b.png', 'a.png'])
    dataset = PairedImageDataset(gt, lq, 2)
    item = dataset[0]
    assert len(dataset) == 2 and item['lq_path'] == f'{lq}/a.png' and item['gt_path'] == f'{gt}/a.png'
    for key in ('lq', 'gt'):
        assert item[key].dtype == torch.float32
        assert torch.equal(item[key], to_tensor(read_image(item[f'{key}_path'])))


def test_a_larger_gt_is_cut_to_the_size_of_lq_times_scale(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    write_image(f'{gt}/a.png', pixels(3, 19, 23))
    item = PairedImageDataset(gt, lq, 2)[0]
    assert torch.equal(item['gt'], to_tensor(read_image(f'{gt}/a.png')[:16, :20]))
    write_image(f'{gt}/a.png', pixels(3, 15, 23))
    dataset = PairedImageDataset(gt, lq, 2)
    assert dataset.faults(False) == [f'{gt}/a.png is 23x15; 2 times {lq}/a.png (10x8) would be 20x16']
    with pytest.raises(ValueError, match=r'a.png is 23x15; 2 times .* would be 20x16'):
        dataset[0]


def test_a_training_item_is_a_square_of_both(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'], scale=3)
    dataset = PairedImageDataset(gt, lq, 3, 'train', gt_size=12, use_hflip=True, use_rot=True)
    whole = read_image(f'{lq}/a.png')
    for seed in range(30):
        random.seed(seed)
        item = dataset[0]
        assert item['lq'].shape == (3, 4, 4) and item['gt'].shape == (3, 12, 12)
        random.seed(seed)
        top, left = random.randint(0, 4), random.randint(0, 6)
        states = [random.random() < 0.5 for _ in range(3)]
        assert torch.equal(item['lq'], to_tensor(augment(whole[top : top + 4, left : left + 4], *states)))


def test_luma_equals_the_formula_and_normalisation_is_undone_by_its_inverse(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    plain = PairedImageDataset(gt, lq, 2)[0]
    luma = PairedImageDataset(gt, lq, 2, color='y')[0]
    assert luma['lq'].shape == (1, 8, 10)
    rgb = read_image(f'{lq}/a.png')
    expected = (rgb @ np.array([65.481, 128.553, 24.966]) + 16) / 255
    np.testing.assert_allclose(luma['lq'][0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(luma['lq'][0].numpy(), rgb_to_ycbcr(rgb, y_only=True), atol=1e-6)
    mean, std = [0.1, 0.2, 0.3], [0.5, 2, 4]
    shifted = PairedImageDataset(gt, lq, 2, mean=mean, std=std)[0]
    back = shifted['gt'] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(back, plain['gt'])
    assert torch.equal(PairedImageDataset(gt, lq, 2, std=[2, 2, 2])[0]['gt'], plain['gt'] / 2)
    assert torch.equal(
        PairedImageDataset(gt, lq, 2, color='y', mean=[0.5])[0]['gt'],
        PairedImageDataset(gt, lq, 2, color='y')[0]['gt'] - 0.5,
    )


@pytest.mark.parametrize(
    'settings', [{'mean': [0.5]}, {'std': [1, 1]}, {'std': [1, 0, 1]}, {'color': 'y', 'mean': [0, 0, 0]}]
)
def test_mean_and_std_must_fit_the_channels(settings, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    for build in (lambda: PairedImageDataset(gt, lq, 2, **settings), lambda: SingleImageDataset(lq, **settings)):
        with pytest.raises(OptionError, match=r'mean needs|std needs|std divides'):
            build()


def test_16_bit_and_gray_images_keep_their_depth_and_get_three_channels(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    deep, gray = pixels(1, 16, 20, dtype=np.uint16), pixels(2, 8, 10, channels=1)
    write_image(f'{gt}/a.png', deep)
    write_image(f'{lq}/a.png', gray)
    for dataset in (PairedImageDataset(gt, lq, 2), PairedImageDataset(gt, lq, 2, 'train', gt_size=16)):
        assert dataset.faults(True) == dataset.faults(False) == []
    item = PairedImageDataset(gt, lq, 2)[0]
    assert torch.equal(item['gt'], to_tensor(deep.astype(np.float32) / np.float32(65535)))
    assert torch.equal(item['lq'], to_tensor(gray.astype(np.float32) / np.float32(255)).expand(3, 8, 10))


def test_images_alone(tmp_path):
    _, lq = make_pairs(tmp_path, ['b.png', 'sub/a.png'])
    dataset = SingleImageDataset(lq)
    assert [dataset[n]['lq_path'] for n in range(len(dataset))] == [f'{lq}/b.png', f'{lq}/sub/a.png']
    assert dataset[0].keys() == {'lq', 'lq_path'} and dataset[0]['lq'].shape == (3, 8, 10)
    assert dataset.faults(True) == [] and len(SingleImageDataset(lq, max_num=1)) == 1
    Path(f'{lq}/b.png').write_bytes(b'no image')
    assert len(dataset.faults(False)) == 1 and f'{lq}/b.png' in dataset.faults(False)[0]
    archive = make_lmdb(tmp_path / 'x.lmdb', {'k': pixels(0, 3, 4)})
    assert SingleImageDataset(str(archive), io_backend={'type': 'lmdb'})[0]['lq'].shape == (3, 3, 4)


# ---- pairs


def test_pairs_are_made_by_relative_stem_and_template(tmp_path):
    for folder, found in (
        ('gt', ['a.png', 'sub/a.png', 'sub/b.v2.png']),
        ('lq', ['ax2.jpg', 'sub/ax2.png', 'sub/b.v2x2.png']),
    ):
        for name in found:
            write_image(tmp_path / folder / name, pixels(0, 4, 4))
    dataset = PairedImageDataset(str(tmp_path / 'gt'), str(tmp_path / 'lq'), 1, filename_tmpl='{}x2')
    assert dataset.pairs == [('a.png', 'ax2.jpg'), ('sub/a.png', 'sub/ax2.png'), ('sub/b.v2.png', 'sub/b.v2x2.png')]
    assert dataset.faults(False) == []
    pre = PairedImageDataset(str(tmp_path / 'gt'), str(tmp_path / 'gt'), 1, max_num=2)
    assert pre.pairs == [('a.png', 'a.png'), ('sub/a.png', 'sub/a.png')]


@pytest.mark.parametrize('template', ['', 'x2', '{', '{x}', '{0.real}', '{1}'])
def test_a_template_must_hold_the_name(template, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    with pytest.raises(OptionError, match='a template holds'):
        PairedImageDataset(gt, lq, 2, filename_tmpl=template)


def test_all_missing_partners_are_listed_on_both_sides(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'b.png', 'c.png', 'd.png'])
    for name in (f'{gt}/a.png', f'{lq}/c.png', f'{lq}/d.png'):
        Path(name).unlink()
    assert PairedImageDataset(gt, lq, 2).faults(False) == [
        f'{gt}/c.png: without a partner, there is no c.* in {lq}',
        f'{gt}/d.png: without a partner, there is no d.* in {lq}',
        f'{lq}/a.png: without a partner in {gt}',
    ]


def test_two_images_of_one_name_are_ambiguous(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'b.png'])
    write_image(f'{lq}/a.bmp', pixels(0, 8, 10))
    write_image(f'{gt}/b.jpg', pixels(0, 16, 20))
    assert PairedImageDataset(gt, lq, 2).faults(False) == [
        f'{gt}/b.png: {gt}/b.jpg has the same name but for the suffix',
        f'{lq}/a.png: {lq}/a.bmp has the same name but for the suffix',
    ]


def test_lists_choose_and_order_the_images(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'b c.png', 'd (1).png', 'sub/e.png'])
    (tmp_path / 'lq/sub/e.png').rename(tmp_path / 'lq/e.png')
    meta = tmp_path / 'meta.txt'
    meta.write_text('sub/e.png (16,20,3)\nd (1).png (16,20,3) 1\n\nb c.png (16, 20, 3)\r\na.png\n', encoding='utf-8')
    assert read_meta_info(str(meta)) == ['sub/e.png', 'd (1).png', 'b c.png', 'a.png']
    dataset = PairedImageDataset(gt, lq, 2, meta_info_file=str(meta))
    assert dataset.pairs == [
        ('sub/e.png', 'e.png'),
        ('d (1).png', 'd (1).png'),
        ('b c.png', 'b c.png'),
        ('a.png', 'a.png'),
    ]
    assert dataset.faults(True) == []
    single = SingleImageDataset(lq, meta_info_file=str(meta))
    assert single.names == ['d (1).png', 'b c.png', 'a.png']
    assert single.faults(False) == [f'{lq}/sub/e.png: listed, but not there']


def test_a_list_names_the_images_of_an_lmdb_with_or_without_suffix(tmp_path):
    keys = ['a.b', 'c', 'd']
    gt = make_lmdb(tmp_path / 'gt.lmdb', {k: pixels(n, 4, 4) for n, k in enumerate(keys)})
    lq = make_lmdb(tmp_path / 'lq.lmdb', {f'{k}x2': pixels(n, 2, 2) for n, k in enumerate(keys)})
    meta = tmp_path / 'meta.txt'
    meta.write_text('d.png (4,4,3)\na.b\nmissing.png (4,4,3)\n')
    dataset = PairedImageDataset(str(gt), str(lq), 2, 'train', {'type': 'lmdb'}, '{}x2', str(meta), gt_size=4)
    assert dataset.pairs == [('d', 'dx2'), ('a.b', 'a.bx2')]
    assert dataset.faults(True) == [f'{gt}/missing.png: listed, but not there']
    assert dataset[0]['gt'].shape == (3, 4, 4)


def test_lists_that_cannot_be_read_are_named(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    meta = tmp_path / 'meta.txt'
    for data, message in ((None, 'cannot be read'), (b'\xff\xfe', 'cannot be read'), (b'\n \n', 'lists no images')):
        if data is not None:
            meta.write_bytes(data)
        with pytest.raises(OptionError, match=rf'meta.txt: {message}'):
            PairedImageDataset(gt, lq, 2, meta_info_file=str(meta))


def test_empty_and_missing_folders_are_named(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/notes.txt').touch()
    for build in (lambda e: PairedImageDataset(e, lq, 2), lambda e: PairedImageDataset(gt, e, 2), SingleImageDataset):
        with pytest.raises(OptionError, match=r'empty: holds no images'):
            build(str(tmp_path / 'empty'))
        with pytest.raises(OptionError, match=r'nowhere: no such folder'):
            build(str(tmp_path / 'nowhere'))


# ---- faults of files


def test_all_faults_are_listed_with_their_files(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'b.png', 'c.png', 'd.png', 'e.png', 'f.png'], height=16, width=16)
    write_image(f'{gt}/a.png', pixels(0, 31, 32))
    Path(f'{lq}/b.png').write_bytes(b'')
    Path(f'{gt}/c.png').write_bytes(Path(f'{gt}/c.png').read_bytes()[:20])
    write_image(f'{gt}/d.png', pixels(0, 16, 16))
    write_image(f'{lq}/d.png', pixels(0, 8, 8))
    whole = Path(f'{gt}/e.png').read_bytes()
    Path(f'{gt}/e.png').write_bytes(whole[: len(whole) // 2])  # found by decoding only
    dataset = PairedImageDataset(gt, lq, 2, 'train', gt_size=24)
    faults = dataset.faults(False)
    assert faults[0] == f'{gt}/a.png is 32x31; 2 times {lq}/a.png (16x16) would be 32x32'
    assert faults[3] == f'{gt}/d.png is 16x16, smaller than the crop of gt_size 24'
    assert [next(name for name in 'abcdef' if f'/{name}.png' in fault) for fault in faults] == ['a', 'b', 'c', 'd']
    thorough = dataset.faults(True)
    assert len(thorough) == 5 and f'{gt}/e.png' in thorough[4]
    assert all('\n' not in fault for fault in thorough)


@pytest.mark.parametrize(('size', 'message'), [((31, 32), 'would be 32x32|32x32'), ((16, 16), 'smaller than the crop')])
def test_an_item_that_does_not_fit_names_its_files(size, message, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'], height=size[1] // 2, width=size[1] // 2)
    write_image(f'{gt}/a.png', pixels(0, *size))
    with pytest.raises(ValueError, match=message) as caught:
        PairedImageDataset(gt, lq, 2, 'train', gt_size=24)[0]
    assert str(caught.value).startswith(f'{gt}/a.png is ')


def test_sizes_behind_long_headers_are_found(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.jpg'])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(0, 20, 16)).save(f'{gt}/a.jpg', exif=exif, icc_profile=bytes(200_000), comment=bytes(30_000))
    dataset = PairedImageDataset(gt, lq, 2)
    assert dataset.faults(False) == dataset.faults(True) == []
    assert dataset[0]['gt'].shape == (3, 16, 20)


@pytest.mark.parametrize(
    ('options', 'key', 'message'),
    [
        ({'gt_size': None}, 'gt_size', 'training needs a gt_size'),
        ({'gt_size': 7}, 'gt_size', 'training needs a gt_size'),
        ({'gt_size': -8}, 'gt_size', 'should be greater than 0'),
        ({'max_num': 0}, 'max_num', 'should be greater than 0'),
        ({'color': 'Y'}, 'color', "should be 'rgb' or 'y'"),
        ({'io_backend': {'type': 'lmbd'}}, 'io_backend', "did you mean 'lmdb'"),
        ({'filename_tmpl': 3}, 'filename_tmpl', 'should be text'),
    ],
)
def test_options_of_the_constructor_are_checked(options, key, message, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    section = {'type': 'PairedImageDataset', 'dataroot_gt': gt, 'dataroot_lq': lq, 'gt_size': 8, **options}
    with pytest.raises(OptionError, match=message) as caught:
        DATASET_REGISTRY.build(section, scale=2, phase='train')
    assert caught.value.key[0] == key
