"""gt on disk and lq made of it: what an item is, that nothing else decides it, and every fault with its file."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_lmdb, pixels
from PIL import Image
from torch import nn

from basicsr.data.degraded_image_dataset import BSRGANTrainDataset, DegradedImageDataset
from basicsr.data.loaders import CountedBatches, DataError, build_eval_loaders, build_train_loader, check_datasets
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.options import parse_options
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY, OptionError
from basicsr.utils.resize import imresize
from basicsr.utils.seeding import derived_seed

BSRGAN, BICUBIC = {'type': 'BSRGANDegradation'}, {'type': 'BicubicDegradation', 'round_to_8_bit': False}

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


@DEGRADATION_REGISTRY.register()
class DegradationOfBatches(nn.Module):
    """What belongs in the section `degradation:` beside `datasets:`."""

    def __init__(self, scale: int, strength: float = 1.0):
        super().__init__()


def make_gt(root: Path, names: list[str], height: int = 20, width: int = 26) -> str:
    for seed, name in enumerate(names):
        write_image(root / name, pixels(seed, height, width))
    return str(root)


def options(tmp_path: Path, workers: int = 0, batch: int = 4, seed: int = 0, **train):
    """Options with a training and a validation set of the same eleven images."""
    if not (tmp_path / 'gt').exists():
        make_gt(tmp_path / 'gt', [f'{n:02}.png' for n in range(11)])
    images = {'type': 'DegradedImageDataset', 'dataroot_gt': str(tmp_path / 'gt'), 'num_worker_per_gpu': workers}
    cropped = {'gt_size': 16, 'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': batch}
    return parse_options(
        {
            'name': 'x',
            'model_type': 'SRModel',
            'scale': 2,
            'manual_seed': seed,
            'datasets': {
                'train': {'name': 'T', **images, **cropped, 'degradation': BSRGAN, **train},
                'val': {'name': 'V', **images, 'degradation': {'type': 'BSRGANPlusDegradation'}},
            },
            'network_g': {'type': 'ATD'},
            'train': {'total_iter': 1, 'optim_g': {'type': 'Adam'}, 'pixel_opt': {'type': 'L1Loss'}},
        },
        True,
    )


def collected(opt, count: int, rank: int = 0, world: int = 1, samples: int = 0) -> list[dict]:
    stream = CountedBatches(build_train_loader(opt, rank, world)[0], torch.device('cpu'), samples)
    return [next(stream) for _ in range(count)]


def equal(one: dict, other: dict) -> bool:
    return one['gt_path'] == other['gt_path'] and all(torch.equal(one[key], other[key]) for key in ('lq', 'gt'))


# ---- items


def test_a_validation_item_is_the_whole_image_cut_to_multiples_of_the_scale(tmp_path):
    root = make_gt(tmp_path / 'gt', ['b.png', 'sub/a.png'])
    dataset = DegradedImageDataset(root, 4, BICUBIC)
    assert [dataset[n]['gt_path'] for n in range(len(dataset))] == [f'{root}/b.png', f'{root}/sub/a.png']
    item, whole = dataset[1], read_image(f'{root}/sub/a.png')[:20, :24]
    assert torch.equal(item['gt'], to_tensor(whole)) and item['gt'].dtype == item['lq'].dtype == torch.float32
    np.testing.assert_allclose(item['lq'], imresize(whole, 0.25).clip(0, 1).transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize('kind', ['BSRGANDegradation', 'BSRGANLightDegradation', 'BSRGANPlusDegradation'])
def test_a_validation_item_is_a_function_of_its_number(kind, tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png', 'b.png'])
    dataset = DegradedImageDataset(root, 2, {'type': kind})
    first = dataset[1]
    random.seed(5)
    torch.manual_seed(5)
    assert equal(first, DegradedImageDataset(root, 2, {'type': kind})[1])
    degradation = DEGRADATION_REGISTRY.build({'type': kind}, scale=2)
    plan = degradation.draw(20, 26, np.random.default_rng(derived_seed(0, 1)))
    gt, lq = degradation.apply(read_image(f'{root}/b.png'), plan)
    assert torch.equal(first['gt'], to_tensor(gt)) and torch.equal(first['lq'], to_tensor(lq))


def test_a_training_item_is_a_square_and_what_the_degradation_makes_of_it(tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png'])
    dataset = DegradedImageDataset(root, 2, BICUBIC, 'train', gt_size=12, use_hflip=True, use_rot=True)
    whole, seen = read_image(f'{root}/a.png'), set()
    states = [whole[::v, ::h] for v in (1, -1) for h in (1, -1)]
    states += [state.swapaxes(0, 1) for state in states]
    windows = {
        np.ascontiguousarray(state[top : top + 12, left : left + 12]).tobytes()
        for state in states
        for top in range(state.shape[0] - 11)
        for left in range(state.shape[1] - 11)
    }
    for seed in range(30):
        random.seed(seed)
        item = dataset[0]
        gt = item['gt'].permute(1, 2, 0).contiguous().numpy()
        assert gt.tobytes() in windows
        np.testing.assert_allclose(item['lq'], imresize(gt, 0.5).clip(0, 1).transpose(2, 0, 1), atol=1e-6)
        random.seed(seed)
        assert equal(item, dataset[0])
        seen.add(gt.tobytes())
    assert len(seen) > 20


class MovedRight:
    """lq is gt moved by a pixel, as by a kernel of even size."""

    def draw(self, height, width, rng):
        return ()

    def apply(self, gt, plan):
        return gt, np.roll(gt, 1, axis=1)


def test_flips_come_after_the_degradation_and_turn_what_it_moved(tmp_path):
    dataset = DegradedImageDataset(
        make_gt(tmp_path / 'gt', ['a.png']), 1, BICUBIC, 'train', gt_size=12, use_hflip=True, use_rot=True
    )
    dataset.degradation, moves = MovedRight(), set()
    for seed in range(40):
        random.seed(seed)
        item = dataset[0]
        gt, lq = (item[name].numpy() for name in ('gt', 'lq'))
        moves |= {(step, axis) for step in (1, -1) for axis in (1, 2) if np.array_equal(np.roll(gt, step, axis), lq)}
    assert moves == {(1, 1), (-1, 1), (1, 2), (-1, 2)}


def test_several_folders_follow_one_another_and_lists_choose(tmp_path):
    one, two = make_gt(tmp_path / 'one', ['a.png', 'b.png']), make_gt(tmp_path / 'two', ['a.png', 'c.png'])
    dataset = DegradedImageDataset([two, one], 2, BICUBIC)
    expected = [f'{two}/a.png', f'{two}/c.png', f'{one}/a.png', f'{one}/b.png']
    assert [dataset[n]['gt_path'] for n in range(len(dataset))] == expected
    assert len(DegradedImageDataset([two, one], 2, BICUBIC, max_num=3)) == 3
    meta = tmp_path / 'meta.txt'
    meta.write_text('b.png (20,26,3)\nz.png\n')
    dataset = DegradedImageDataset(one, 2, BICUBIC, meta_info_file=str(meta))
    assert [dataset[0]['gt_path'], len(dataset)] == [f'{one}/b.png', 1]
    assert dataset.faults(False) == [f'{one}/z.png: listed, but not there']
    with pytest.raises(OptionError, match='one dataroot_gt, here are 2') as caught:
        DegradedImageDataset([two, one], 2, BICUBIC, meta_info_file=str(meta))
    assert caught.value.key == ('meta_info_file',)


def test_an_lmdb_is_read_and_every_depth_and_mode_is_handled(tmp_path):
    archive = make_lmdb(tmp_path / 'x.lmdb', {'k': pixels(0, 9, 8)})
    item = DegradedImageDataset(str(archive), 2, BICUBIC, io_backend={'type': 'lmdb'})[0]
    assert item['gt'].shape == (3, 8, 8) and item['lq'].shape == (3, 4, 4)
    folder = tmp_path / 'gt'
    deep, gray = pixels(1, 8, 8, dtype=np.uint16), pixels(2, 8, 8, channels=1)
    write_image(folder / 'a.png', deep)
    write_image(folder / 'b.png', gray)
    write_image(folder / 'c.png', pixels(3, 8, 8, channels=4))
    Image.fromarray(pixels(4, 8, 8, channels=4), 'CMYK').save(folder / 'd.jpg')
    for phase in ('val', 'train'):
        dataset = DegradedImageDataset(str(folder), 2, BSRGAN, phase, gt_size=8)
        assert dataset.faults(True) == dataset.faults(False) == []
        expected = [deep / 65535, gray[..., None].repeat(3, 2) / 255, pixels(3, 8, 8, channels=4)[..., :3] / 255]
        for item, image in zip([dataset[n] for n in range(4)], [*expected, None], strict=True):
            assert item['lq'].shape == (3, 4, 4)
            if image is not None:
                np.testing.assert_allclose(item['gt'], image.transpose(2, 0, 1), atol=1e-6)


def test_iters_data_set_is_light_bsrgan_with_its_names(tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png'])
    section = {'type': 'BSRGANTrainDataset', 'dataroot_gt': root, 'gt_size': 16, 'io_backend': {'type': 'disk'}}
    dataset = DATASET_REGISTRY.build({**section, 'use_flip': True, 'use_rot': True}, scale=2, phase='train')
    assert isinstance(dataset, BSRGANTrainDataset) and dataset.use_hflip and dataset.use_rot
    assert type(dataset.degradation).__name__ == 'BSRGANLightDegradation'
    assert dataset[0]['lq'].shape == (3, 8, 8) and dataset[0]['gt'].shape == (3, 16, 16)
    assert not DATASET_REGISTRY.build(section, scale=2, phase='train').use_hflip
    for how in ('use_resize', 'use_resize_crop'):
        resizing = DATASET_REGISTRY.build({**section, how: True, 'gt_size': 12}, scale=2, phase='train')
        assert resizing[0]['gt'].shape == (3, 12, 12) and getattr(resizing.crop, how)
    other = DATASET_REGISTRY.build({**section, 'degradation': BICUBIC}, scale=2, phase='train')
    assert type(other.degradation).__name__ == 'BicubicDegradation'


# ---- the same whatever the workers


def test_batches_are_bit_equal_for_any_number_of_workers(tmp_path):
    plain = collected(options(tmp_path), 6)
    for workers in (1, 3):
        assert all(equal(a, b) for a, b in zip(plain, collected(options(tmp_path, workers), 6), strict=True))
    assert not any(equal(a, b) for a, b in zip(plain, collected(options(tmp_path, seed=1), 6), strict=True))


def test_processes_share_the_batches_of_one_and_going_on_changes_nothing(tmp_path):
    one = collected(options(tmp_path), 5)
    two = [collected(options(tmp_path, batch=2), 5, rank, 2) for rank in range(2)]
    for whole, *shares in zip(one, *two, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share['lq'], whole['lq'][rank::2]) and torch.equal(share['gt'], whole['gt'][rank::2])
    assert all(equal(a, b) for a, b in zip(one[2:], collected(options(tmp_path), 3, samples=8), strict=True))


def test_degradations_differ_between_epochs(tmp_path):
    seen = {}
    for batch in collected(options(tmp_path, batch=11, gt_size=20, use_hflip=False, use_rot=False), 5):
        for path, image in zip(batch['gt_path'], batch['lq'], strict=True):
            seen.setdefault(path, set()).add(image.numpy().tobytes())
    assert len(seen) == 11 and all(len(images) == 5 for images in seen.values())


def test_validation_is_the_same_on_any_number_of_processes(tmp_path):
    one = {batch['gt_path'][0]: batch for batch in build_eval_loaders(options(tmp_path), 0, 1)['V']}
    for rank in range(2):
        for batch in build_eval_loaders(options(tmp_path, 1), rank, 2)['V']:
            assert equal(batch, one[batch['gt_path'][0]])


# ---- faults


def test_all_faults_are_listed_with_their_files(tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png', 'b.png', 'c.png', 'd.png', 'e.png'])
    Path(f'{root}/a.png').write_bytes(b'')
    Path(f'{root}/b.png').write_bytes(b'no image')
    write_image(f'{root}/c.png', pixels(0, 15, 40))
    whole = Path(f'{root}/d.png').read_bytes()
    Path(f'{root}/d.png').write_bytes(whole[: len(whole) // 2])
    dataset = DegradedImageDataset(root, 2, BSRGAN, 'train', gt_size=16)
    faults = dataset.faults(False)
    assert [next(n for n in 'abcde' if f'{root}/{n}.png' in fault) for fault in faults] == ['a', 'b', 'c']
    assert faults[2] == f'{root}/c.png: 40x15 is smaller than the crop of gt_size 16'
    assert len(dataset.faults(True)) == 4 and f'{root}/d.png' in dataset.faults(True)[3]
    with pytest.raises(DataError, match=r'^3 items of the data sets cannot be used:'):
        check_datasets([dataset])
    with pytest.raises(ValueError, match=rf'^{root}/c.png: 40x15 is smaller than the crop of gt_size 16$'):
        dataset[2]
    for number, name in ((0, 'a'), (1, 'b'), (3, 'd')):
        with pytest.raises(ValueError, match=rf'{root}/{name}.png'):
            dataset[number]
    assert DegradedImageDataset(root, 2, BSRGAN, 'train', gt_size=16, use_resize=True).faults(False) == faults[:2]


def test_an_image_that_the_scale_does_not_fit_in_is_a_fault_outside_training_too(tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png'], 3, 9)
    dataset = DegradedImageDataset(root, 4, BSRGAN)
    message = f'{root}/a.png: 9x3 is smaller than 4x4, which 1 lq pixels a side need'
    assert dataset.faults(False) == [message]
    with pytest.raises(ValueError, match='9x3 is smaller than 4x4') as caught:
        dataset[0]
    assert str(caught.value) == message


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_stops_the_training_in_one_line(workers, tmp_path):
    opt = options(tmp_path, workers)
    path = tmp_path / 'gt/05.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        collected(opt, 3)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


# ---- options


@pytest.mark.parametrize(
    ('given', 'key', 'message'),
    [
        ({'gt_size': None}, ('gt_size',), 'training needs a gt_size'),
        ({'gt_size': 7}, ('gt_size',), 'training needs a gt_size'),
        ({'dataroot_gt': []}, ('dataroot_gt',), 'names no folder'),
        ({'dataroot_gt': 3}, ('dataroot_gt',), 'should be text or a list'),
        ({'use_resize': True, 'use_resize_crop': True}, ('use_resize',), 'exclude each other'),
        ({'degradation': {}}, ('degradation', 'type'), "option 'type' is missing"),
        ({'degradation': {'type': 'BSRGAN'}}, ('degradation', 'type'), "'BSRGAN' is not a known degradation"),
        ({'degradation': {**BSRGAN, 'noise': 3}}, ('degradation', 'noise'), "'noise' is not a known option"),
        ({'degradation': {**BSRGAN, 'scale': 3}}, ('degradation', 'scale'), "'scale' is not a known option"),
        ({'degradation': {**BSRGAN, 'jpeg_range': [90, 30]}}, ('degradation', 'jpeg_range'), 'from low to high'),
        ({'degradation': {**BSRGAN, 'lq_patchsize': 16}}, ('gt_size',), 'which 16 lq pixels a side need'),
        ({'degradation': {'type': 'DegradationOfBatches'}}, ('degradation', 'type'), 'beside `datasets:`'),
    ],
)
def test_options_are_checked_with_their_place(given, key, message, tmp_path):
    root = make_gt(tmp_path / 'gt', ['a.png'])
    section = {'type': 'DegradedImageDataset', 'dataroot_gt': root, 'degradation': BSRGAN, 'gt_size': 16, **given}
    with pytest.raises(OptionError, match=message) as caught:
        DATASET_REGISTRY.build(section, scale=2, phase='train')
    assert caught.value.key == key


@pytest.mark.parametrize(
    ('degradation', 'where', 'message'),
    [
        ({'type': 'DegradationOfBatches'}, 'degradation:type', 'degrades whole batches on the device'),
        ({**BSRGAN, 'jpeg_rang': [30, 95]}, 'degradation:jpeg_rang', "did you mean 'jpeg_range'"),
        ({**BSRGAN, 'jpeg_range': [0, 95]}, 'degradation:jpeg_range', 'greater than or equal to 1'),
        (3, 'degradation', 'should be a section'),
    ],
)
def test_a_wrong_degradation_is_found_when_the_file_is_read(degradation, where, message, tmp_path):
    with pytest.raises(OptionError, match=message) as caught:
        options(tmp_path, degradation=degradation)
    assert f'datasets:train:{where}: ' in str(caught.value)


@pytest.mark.parametrize('name', ['DegradedImageDataset', 'BSRGANTrainDataset'])
def test_empty_and_missing_folders_are_named(name, tmp_path):
    (tmp_path / 'empty').mkdir()
    section = {'type': name, 'degradation': BICUBIC}
    with pytest.raises(OptionError, match='empty: holds no images'):
        DATASET_REGISTRY.build({**section, 'dataroot_gt': str(tmp_path / 'empty')}, scale=2, phase='val')
    with pytest.raises(OptionError, match='nowhere: no such folder'):
        DATASET_REGISTRY.build({**section, 'dataroot_gt': [str(tmp_path / 'nowhere')]}, scale=2, phase='val')
