"""gt squares with kernels: published options, several folders, the same item for the same draws, faults with files."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_lmdb, pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.data.degradations.realesrgan import RealESRGANDegradation
from basicsr.data.kernel_image_dataset import KernelImageDataset
from basicsr.data.loaders import EndlessBatches, SeededDataset
from basicsr.utils.image import read_image, write_image
from basicsr.utils.registry import DATASET_REGISTRY, OptionError

KINDS = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
SHARES = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
KERNEL_OPTIONS = {
    'kernel_list': KINDS, 'kernel_prob': SHARES, 'sinc_prob': 0.1, 'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4], 'betap_range': [1, 2],
    'kernel_list2': KINDS, 'kernel_prob2': SHARES, 'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4], 'betap_range2': [1, 2], 'final_sinc_prob': 0.8,
}  # fmt: skip


def build(root, phase: str = 'train', scale: int = 4, **options) -> KernelImageDataset:
    """Small crops unless others are asked for."""
    section = {'type': 'KernelImageDataset', 'dataroot_gt': root, **KERNEL_OPTIONS, 'crop_size': 32, **options}
    return DATASET_REGISTRY.build(section, scale=scale, phase=phase)


def folder(path: Path, *names: str, height: int = 40, width: int = 36) -> str:
    for seed, name in enumerate(names):
        write_image(path / name, pixels(seed, height, width))
    return str(path)


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[k], other[k]) if isinstance(one[k], torch.Tensor) else one[k] == other[k] for k in one)


def test_basicsrs_options_and_name_load(tmp_path):
    """The section of the published Real-ESRNet file, without the loader's keys."""
    root = folder(tmp_path, 'sub/a.png', 'b.png', height=410, width=450)
    (tmp_path / 'meta.txt').write_text('sub/a.png\n')
    options = {
        'dataroot_gt': root, 'meta_info': str(tmp_path / 'meta.txt'), 'io_backend': {'type': 'disk'},
        'blur_kernel_size': 21, 'blur_kernel_size2': 21, **KERNEL_OPTIONS, 'gt_size': 256, 'use_hflip': True,
        'use_rot': False,
    }  # fmt: skip
    dataset = DATASET_REGISTRY.build({'type': 'RealESRGANDataset', **options}, scale=4, phase='train')
    assert type(dataset) is KernelImageDataset and len(dataset) == 1 and dataset.faults(True) == []
    item = dataset[0]
    assert item.keys() == {'gt', 'kernel1', 'kernel2', 'sinc_kernel', 'gt_path'}
    assert item['gt'].shape == (3, 400, 400) and item['gt_path'] == f'{root}/sub/a.png'
    for name in ('kernel1', 'kernel2', 'sinc_kernel'):
        assert item[name].shape == (21, 21) and item[name].dtype == torch.float32
        assert abs(float(item[name].sum()) - 1) < 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), phase=st.sampled_from(['train', 'val']))
def test_a_square_is_a_part_of_the_image_in_one_of_its_states(seed, phase, tmp_path_factory):
    root = folder(tmp_path_factory.mktemp('gt'), 'a.png', height=18, width=20)
    item = SeededDataset(build(root, phase, crop_size=16, use_hflip=True, use_rot=True), seed, 1)[0, 0, 0]
    gt, whole = item['gt'].permute(1, 2, 0).numpy(), read_image(f'{root}/a.png')
    squares = [whole[top : top + 16, left : left + 16] for top in range(3) for left in range(5)]
    turned = [np.rot90(square, turns) for square in squares for turns in range(4)]
    assert any(np.array_equal(gt, state) or np.array_equal(gt, state[:, ::-1]) for state in turned)


def test_the_seed_decides_everything(tmp_path):
    dataset = build(folder(tmp_path, 'a.png', 'b.png'), use_hflip=True)
    items = [SeededDataset(dataset, seed, 2)[epoch, draw, 0] for seed in (0, 1) for epoch in (0, 1) for draw in (0, 1)]
    again = SeededDataset(dataset, 0, 2)[0, 0, 0]
    assert same(items[0], again) and not any(same(items[0], item) for item in items[1:])
    assert len({float(item['kernel1'].abs().max()) for item in items}) == len(items)


def test_validation_always_shows_the_same(tmp_path):
    dataset = build(folder(tmp_path, 'a.png', 'b.png'), 'val')
    random.seed(1)
    one = dataset[1]
    random.seed(2)
    assert same(one, dataset[1]) and not torch.equal(one['kernel1'], dataset[0]['kernel1'])


def test_small_images_are_continued_by_their_mirror_image(tmp_path):
    root = folder(tmp_path, 'a.png', height=20, width=24)
    dataset, whole = build(root, 'val'), read_image(f'{root}/a.png')
    assert dataset.faults(False) == []
    expected = np.pad(whole, ((0, 12), (0, 8), (0, 0)), mode='reflect')
    assert np.array_equal(dataset[0]['gt'].permute(1, 2, 0), expected)


def test_folders_lists_and_numbers_are_joined(tmp_path):
    """S3Diff's LSDIR and the first images of FFHQ."""
    one = folder(tmp_path / 'lsdir', 'x/b.png', 'a.png')
    two = folder(tmp_path / 'ffhq', '00002.png', '00000.png', '00001.png')
    listed = tmp_path / 'two.txt'
    listed.write_text('00002.png (40,36,3)\n00000.png\n')

    def names(**options) -> list[str]:
        dataset = build([one, two], **options)
        return [Path(dataset[n]['gt_path']).name for n in range(len(dataset))]

    assert names(max_num=[None, 2]) == ['a.png', 'b.png', '00000.png', '00001.png']
    assert names(max_num=1) == ['a.png', '00000.png']
    assert names(meta_info=[None, str(listed)]) == ['a.png', 'b.png', '00002.png', '00000.png']
    assert names(meta_info=[None, str(listed)], max_num=[1, 1]) == ['a.png', '00002.png']


def test_databases_are_read(tmp_path):
    root = make_lmdb(tmp_path / 'gt.lmdb', {'sub/a': pixels(0, 40, 36), 'b': pixels(1, 40, 36)})
    dataset = build(str(root), 'val', io_backend={'type': 'lmdb'})
    assert [dataset[n]['gt'].shape for n in range(2)] == [(3, 32, 32)] * 2 and dataset.faults(True) == []
    assert dataset[0]['gt_path'] == f'{root}/sub/a'


def test_no_image_is_replaced_and_every_fault_names_its_file(tmp_path):
    root = folder(tmp_path / 'gt', 'a.png', 'b.png', 'c.png', 'd.png')
    Path(f'{root}/b.png').write_bytes(b'')
    whole = Path(f'{root}/c.png').read_bytes()
    Path(f'{root}/c.png').write_bytes(whole[: len(whole) // 2])
    listed = tmp_path / 'meta.txt'
    listed.write_text('a.png\nb.png\nc.png\nnowhere.png\n')
    dataset = build(root, meta_info=str(listed))
    assert [next(n for n in ('nowhere', 'b', 'c') if f'/{n}.png' in fault) for fault in dataset.faults(True)] == [
        'nowhere', 'b', 'c',
    ]  # fmt: skip
    assert len(dataset.faults(False)) == 2
    for index, name in ((1, 'b.png'), (2, 'c.png')):
        with pytest.raises(ValueError, match=name):
            dataset[index]


def test_gray_and_deep_images_are_read(tmp_path):
    write_image(tmp_path / 'gray.png', pixels(0, 40, 40, channels=1))
    write_image(tmp_path / 'deep.png', pixels(1, 40, 40, dtype=np.uint16))
    dataset = build(str(tmp_path), 'val', crop_size=40)
    deep, gray = dataset[0]['gt'], dataset[1]['gt']
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2])
    assert np.array_equal(deep.permute(1, 2, 0), read_image(tmp_path / 'deep.png'))


def test_a_batch_of_it_is_what_the_degradation_takes(tmp_path):
    dataset = SeededDataset(build(folder(tmp_path, 'a.png', 'b.png', height=80, width=80), crop_size=64), 0, 2)
    batch = torch.utils.data.default_collate([dataset[0, draw, draw] for draw in range(2)])
    degrade = RealESRGANDegradation(2, 0, 2, gt_size=32, queue_size=2, resize_range=(0.3, 1.5))
    result = degrade(batch)
    assert result['lq'].shape == (2, 3, 16, 16) and result['gt'].shape == (2, 3, 32, 32)
    assert [Path(path).name for path in result['gt_path']] == ['a.png', 'b.png']


@pytest.mark.parametrize('groups', [0, 1, 2])
def test_two_processes_make_the_pairs_that_one_makes(tmp_path, groups):
    """From the sampler to lq: three steps of four samples, over the end of an epoch of five draws."""
    dataset = build(folder(tmp_path, 'a.png', 'b.png', height=80, width=80), crop_size=64)

    def pairs(rank: int, world: int) -> list[dict]:
        batches = EndlessBatches(len(dataset), 2.5, 4 // world, 7, rank, world)
        items = SeededDataset(dataset, 7, batches.total)
        degrade = RealESRGANDegradation(2, 7, 4, gt_size=32, queue_size=0, resize_range=(0.3, 1.5), groups=groups)
        steps = [next_ for next_, _ in zip(batches, range(3))]
        return [degrade(torch.utils.data.default_collate([items[key] for key in step])) for step in steps]

    for step, *shares in zip(pairs(0, 1), pairs(0, 2), pairs(1, 2)):
        for rank, share in enumerate(shares):
            assert share['gt_path'] == step['gt_path'][rank::2]
            assert torch.equal(share['lq'], step['lq'][rank::2]) and torch.equal(share['gt'], step['gt'][rank::2])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'gt_size': 36}, 'gt_size should be a multiple of the scale 4, at most crop_size 32, got 36'),
        ({'gt_size': 10}, 'gt_size should be a multiple of the scale 4'),
        ({'crop_size': 0}, 'greater than 0'),
        ({'max_num': [1, 2]}, 'max_num needs one value for each dataroot_gt, 1, got 2'),
        ({'meta_info': ['a', 'b']}, 'meta_info needs one value'),
        ({'meta_info': 'nowhere.txt'}, 'nowhere.txt: cannot be read'),
        ({'kernel_list': ['iso', 'anso']}, "'anso' in kernel_list is not a known kernel; did you mean 'aniso'"),
        ({'kernel_prob2': [0.5, 0.5]}, 'kernel_list2 has 6 kernels and kernel_prob2 2 numbers'),
        ({'blur_sigma': [3, 0.2]}, 'blur_sigma needs'),
        ({'final_sinc_prob': 1.2}, 'final_sinc_prob is a probability'),
        ({'blur_kernel_size': 20}, 'blur_kernel_size should be one of'),
        ({'dataroot_gt': []}, 'dataroot_gt names no folder'),
        ({'mul_num': 2}, 'is not a known option of KernelImageDataset'),
    ],
)
def test_mistakes_in_options_are_named(options, message, tmp_path):
    root = folder(tmp_path, 'a.png')
    with pytest.raises(OptionError, match=message) as caught:
        build(root, **options)
    assert caught.value.key[:1] == (*options,)


def test_kernel_options_have_no_hidden_defaults(tmp_path):
    root = folder(tmp_path, 'a.png')
    for name in KERNEL_OPTIONS:
        section = {'type': 'KernelImageDataset', 'dataroot_gt': root, **KERNEL_OPTIONS}
        section.pop(name)
        with pytest.raises(OptionError, match=f"option '{name}' is missing"):
            DATASET_REGISTRY.build(section, scale=4, phase='train')
