"""What ITER asks of paired images: random shrinking, names to pass over, crops of validation images."""

import random

import cv2
import numpy as np
import pytest
import torch
from data_files import make_pairs, pixels

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_resize
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.seeding import seeded


def test_pairs_shrink_alike_and_leave_room_for_the_crop():
    lq, gt = pixels(0, 9, 12).astype(np.float32) / 255, pixels(1, 36, 48)
    sizes = set()
    for seed in range(200):
        small, large = paired_random_resize(lq, gt, 16, 4, random.Random(seed))
        height, width = small.shape[:2]
        assert large.shape[:2] == (4 * height, 4 * width) and large.dtype == small.dtype == np.float32
        assert width == round(12 * height / 9)
        sizes.add(height)
    assert sizes == set(range(4, 10))
    expected = cv2.resize(np.float32(gt) / np.float32(255), (4 * width, 4 * height), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(large, expected)


def test_an_upright_image_stays_wide_enough():
    lq, gt = pixels(0, 20, 5), pixels(1, 40, 10)
    for seed in range(100):
        small, large = paired_random_resize(lq, gt, 8, 2, random.Random(seed))
        assert min(large.shape[:2]) >= 8 and large.shape[0] == 2 * small.shape[0]


def test_the_draws_come_in_the_published_order(tmp_path):
    """The height, the place, the three states (iter.md 4.1)."""
    gt, lq = make_pairs(tmp_path, ['a.png'], scale=4, height=9, width=9)
    dataset = PairedImageDataset(gt, lq, 4, 'train', gt_size=16, use_resize_crop=True, use_hflip=True, use_rot=True)
    whole = read_image(f'{lq}/a.png')
    for seed in range(10):
        random.seed(seed)
        item = dataset[0]
        random.seed(seed)
        side = random.randint(16, 36) // 4
        small = cv2.resize(whole, (side, side), interpolation=cv2.INTER_CUBIC)
        top, left = random.randint(0, side - 4), random.randint(0, side - 4)
        states = [random.random() < 0.5 for _ in range(3)]
        assert torch.equal(item['lq'], to_tensor(augment(small[top : top + 4, left : left + 4], *states)))
        assert item['gt'].shape == (3, 16, 16)


def test_a_sample_depends_on_its_seed_alone(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'], scale=4, height=9, width=9)
    dataset = PairedImageDataset(gt, lq, 4, 'train', gt_size=16, use_resize_crop=True)
    items = []
    for _ in range(2):
        with seeded(1, 2, 3):
            items.append(dataset[0]['gt'])
    assert torch.equal(*items)


def test_names_that_hold_the_key_are_passed_over_in_training_only(tmp_path):
    names = ['a.png', 'b_full.png', 'full/c.png', 'd.png']
    gt, lq = make_pairs(tmp_path / 'full', names)
    write_image(f'{gt}/e_full.png', pixels(5, 16, 20))  # without a partner
    settings = {'scale': 2, 'gt_size': 8, 'filter_key': 'full'}
    training = PairedImageDataset(gt, lq, phase='train', **settings)
    assert [name for name, _ in training.pairs] == ['a.png', 'd.png'] and training.faults(False) == []
    validation = PairedImageDataset(gt, lq, phase='val', **settings)
    assert len(validation) == 4 and 'e_full.png: without a partner' in validation.faults(False)[0]
    listed = tmp_path / 'list.txt'
    listed.write_text(''.join(f'{name} {name}\n' for name in names))
    paired = PairedImageDataset(gt, lq, phase='train', pair_list=str(listed), **settings)
    assert paired.pairs == training.pairs
    with pytest.raises(OptionError, match=r"every image of .* has 'png' in its name"):
        PairedImageDataset(gt, lq, 2, 'train', gt_size=8, filter_key='png')


def test_validation_crops_are_the_same_each_time_and_differ_between_images(tmp_path):
    gt, lq = make_pairs(tmp_path, [f'{n}.png' for n in range(6)])
    dataset = PairedImageDataset(gt, lq, 2, crop_eval_size=8)
    places = set()
    for index in range(6):
        item = dataset[index]
        assert item['lq'].shape == (3, 4, 4) and item['gt'].shape == (3, 8, 8)
        assert torch.equal(item['gt'], dataset[index]['gt'])
        whole = to_tensor(read_image(item['lq_path'])).unfold(1, 4, 1).unfold(2, 4, 1)
        found = (whole == item['lq'][:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert len(found) == 1
        places.add(tuple(found[0].tolist()))
    assert len(places) > 1


def test_a_crop_that_does_not_fit_is_a_fault(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png'])
    (fault,) = PairedImageDataset(gt, lq, 2, crop_eval_size=18).faults(False)
    assert fault == f'{gt}/a.png is 20x16, smaller than the crop of crop_eval_size 18'
    with pytest.raises(OptionError, match='should be a multiple of the scale 2, got 7'):
        DATASET_REGISTRY.build(
            {'type': 'PairedImageDataset', 'dataroot_gt': gt, 'dataroot_lq': lq, 'crop_eval_size': 7},
            scale=2,
            phase='val',
        )
    with pytest.raises(OptionError, match='exclude each other'):
        PairedImageDataset(gt, lq, 2, 'train', gt_size=8, use_resize_crop=True, published_crop=True)


def test_one_folder_for_both_is_read_once(tmp_path, monkeypatch):
    """ITER's first stage has scale 1 and learns from gt alone."""
    gt, _ = make_pairs(tmp_path, ['a.png'])
    dataset = PairedImageDataset(gt, gt, 1, 'train', gt_size=8, use_hflip=True)
    read, reads = dataset.gt.pixels, []
    monkeypatch.setattr(dataset.gt, 'pixels', lambda name: reads.append(name) or read(name))
    monkeypatch.setattr(dataset.lq, 'pixels', dataset.gt.pixels)
    item = dataset[0]
    assert reads == ['a.png'] and torch.equal(item['lq'], item['gt'])
