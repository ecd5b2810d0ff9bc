"""Loaders: which sample comes when, and what it is, depends on (seed, epoch, index) and nothing else."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_pairs
from torch.utils.data import Dataset

from basicsr.data.loaders import (
    CountedBatches,
    DataError,
    EndlessBatches,
    SeededDataset,
    build_dataset,
    build_eval_loaders,
    build_train_loader,
    check_datasets,
)
from basicsr.utils.options import DatasetOptions, parse_options
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed, seed_all, seeded

CPU = torch.device('cpu')

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


def draws() -> tuple[float, float, float]:
    """One number of each generator that a data set may use."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 (other people's data sets draw from it)


@DATASET_REGISTRY.register()
class BehavingDataset(Dataset):
    """Items that behave as `what` says."""

    def __init__(self, what: str, scale: int = 1, phase: str = 'train'):
        self.what = what

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        if self.what == 'dies':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == 'hangs':
            time.sleep(60)
        if self.what == 'option':
            raise OptionError('gt/x.png: a fault')
        if self.what == 'bug':
            raise RuntimeError('a bug in a data set')
        return {
            'lq': torch.rand(3),
            'n': draws(),
            'lq_path': f'{index}',
        }


def options(tmp_path: Path, workers: int = 0, seed: int = 0, **train):
    """Options with a training set and a validation set of the same eleven pairs."""
    if not (tmp_path / 'gt').exists():
        make_pairs(tmp_path, [f'{n:02}.png' for n in range(11)])
    roots = {'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')}
    pairs = {'type': 'PairedImageDataset', **roots, 'gt_size': 8, 'use_hflip': True, 'use_rot': True}
    train = {
        'name': 'T',
        'num_worker_per_gpu': workers,
        'batch_size_per_gpu': 4,
        **({} if 'type' in train else pairs),
        **train,
    }
    val = {'name': 'V', 'type': 'PairedImageDataset', **roots, 'num_worker_per_gpu': workers}
    return parse_options(
        {
            'name': 'x',
            'model_type': 'SRModel',
            'scale': 2,
            'manual_seed': seed,
            'datasets': {'train': train, 'val': val},
            'network_g': {'type': 'ATD'},
            'train': {'total_iter': 1, 'optim_g': {'type': 'Adam'}, 'pixel_opt': {'type': 'L1Loss'}},
        },
        True,
    )


def batches(opt, rank: int = 0, world: int = 1, samples: int = 0) -> CountedBatches:
    return CountedBatches(build_train_loader(opt, rank, world)[0], CPU, samples)


def drawn(count: int, *arguments, **settings) -> list[tuple[int, int, int]]:
    """The first `count` samples of one process."""
    stream = itertools.chain.from_iterable(EndlessBatches(*arguments, **settings))
    return list(itertools.islice(stream, count))


def merged(count: int, size: int, ratio: float, batch: int, world: int, start: int = 0) -> list[tuple[int, int, int]]:
    """The first `count` samples of all processes, in the order of the global stream."""
    ranks = [iter(EndlessBatches(size, ratio, batch, 7, rank, world, start)) for rank in range(world)]
    out = []
    while len(out) < count:
        for group in zip(*(next(rank) for rank in ranks)):
            out += group
    return out[:count]


# ---- order


@pytest.mark.parametrize('size', [1, 2, 5, 10, 13])
@pytest.mark.parametrize('batch', [1, 3, 4, 16])
@pytest.mark.parametrize('world', [1, 2, 3])
def test_every_item_comes_once_per_epoch_on_any_number_of_processes(size, batch, world):
    stream = merged(4 * size, size, 1, batch, world)
    for epoch in range(4):
        part = stream[epoch * size : (epoch + 1) * size]
        assert [(e, draw) for e, draw, _ in part] == [(epoch, draw) for draw in range(size)]
        assert sorted(index for _, _, index in part) == list(range(size))


def test_the_order_is_the_same_for_every_division_into_processes_and_batches():
    one = merged(60, 10, 1, 4, 1)
    assert all(merged(60, 10, 1, batch, world) == one for batch in (1, 2, 3, 7, 12) for world in (1, 2, 3))


@pytest.mark.parametrize('start', [1, 4, 9, 10, 11, 25])
@pytest.mark.parametrize('world', [1, 2])
def test_going_on_from_a_sample_equals_skipping(start, world):
    assert merged(40, 10, 1, 3, world, start) == merged(40 + start, 10, 1, 1, 1)[start:]


def test_epochs_and_seeds_differ_in_order():
    orders = [
        tuple(index for _, _, index in drawn(200, 50, 1, 4, seed)[50 * epoch :][:50])
        for seed in (0, 1)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 8


@pytest.mark.parametrize(('ratio', 'per_epoch'), [(3, 30), (2.5, 25), (0.5, 5), (0.01, 1)])
def test_an_enlarged_epoch_visits_items_as_often_as_its_ratio_says(ratio, per_epoch):
    sampler = EndlessBatches(10, ratio, 4, 0)
    assert sampler.total == per_epoch
    for epoch in range(2):
        seen = Counter(index for e, _, index in drawn(2 * per_epoch, 10, ratio, 4, 0) if e == epoch)
        assert seen.total() == per_epoch and set(seen) <= set(range(10))
        assert max(seen.values()) - min([*seen.values(), *(10 - len(seen)) * [0]]) <= 1


# ---- seeds


def test_seeds_of_different_arguments_never_coincide():
    arguments = [a for length in (1, 2, 3, 4) for a in itertools.product((0, 1, 2, 1 << 32), repeat=length)]
    seeds = {derived_seed(*a) for a in arguments}
    assert len(seeds) == len(arguments) and all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_seeded_block_leaves_every_generator_as_it_was():
    seed_all(5)
    expected = draws()
    seed_all(5)
    with seeded(1, 2, 3):
        inside = draws()
    assert draws() == expected
    with pytest.raises(KeyError), seeded(1, 2, 3):
        assert draws() == inside
        raise KeyError
    seed_all(5)
    with seeded(9):
        pass
    assert draws() == expected


def test_a_sample_is_the_same_whatever_was_drawn_before():
    dataset = SeededDataset(BehavingDataset('draws'), 3, 8)
    first = dataset[0, 4, 2]
    seed_all(99)
    again = dataset[0, 4, 2]
    assert torch.equal(first['lq'], again['lq']) and first['n'] == again['n']
    others = [dataset[1, 4, 2], dataset[0, 5, 2], SeededDataset(BehavingDataset('draws'), 4, 8)[0, 4, 2]]
    assert all(other['n'] != first['n'] and not torch.equal(other['lq'], first['lq']) for other in others)
    assert [item['number'] for item in (first, *others)] == [4, 12, 5, 4]


# ---- training


def collected(opt, count: int, rank: int = 0, world: int = 1, samples: int = 0) -> list[dict]:
    stream = batches(opt, rank, world, samples)
    return [next(stream) for _ in range(count)]


def equal(one: dict, other: dict) -> bool:
    return (
        one['gt_path'] == other['gt_path']
        and torch.equal(one['gt'], other['gt'])
        and torch.equal(one['lq'], other['lq'])
    )


def test_batches_are_bit_equal_for_any_number_of_workers(tmp_path):
    plain = collected(options(tmp_path), 6)
    for workers in (1, 3):
        assert all(equal(a, b) for a, b in zip(plain, collected(options(tmp_path, workers), 6), strict=True))
    assert not all(equal(a, b) for a, b in zip(plain, collected(options(tmp_path, seed=1), 6), strict=True))


def test_loading_changes_no_generator_of_the_training(tmp_path):
    seed_all(3)
    expected = draws()
    seed_all(3)
    stream = batches(options(tmp_path))
    before = torch.get_rng_state()
    for _ in range(3):
        next(stream)
    assert torch.equal(torch.get_rng_state(), before)
    assert draws()[:2] == expected[:2]


def test_going_on_gives_the_batches_that_would_have_come(tmp_path):
    whole = collected(options(tmp_path), 7)
    stream = batches(options(tmp_path))
    for _ in range(3):
        next(stream)
    assert stream.samples == 12 and stream.epoch == 1 and stream.files == list(whole[2]['gt_path'])
    assert all(equal(a, b) for a, b in zip(whole[3:], collected(options(tmp_path, 1), 4, samples=12), strict=True))


def test_two_processes_share_the_batches_of_one(tmp_path):
    one = collected(options(tmp_path, batch_size_per_gpu=4), 5)
    two = [collected(options(tmp_path, batch_size_per_gpu=2), 5, rank, 2) for rank in range(2)]
    for whole, *shares in zip(one, *two, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share['gt'], whole['gt'][rank::2]) and share['gt_path'] == whole['gt_path'][rank::2]
    stream = batches(options(tmp_path, batch_size_per_gpu=2), 1, 2)
    next(stream)
    assert stream.samples == 4


def test_crops_and_flips_differ_between_epochs(tmp_path):
    seen = {}
    for batch in collected(options(tmp_path, batch_size_per_gpu=11), 5):
        for path, image in zip(batch['gt_path'], batch['gt'], strict=True):
            seen.setdefault(path, set()).add(image.numpy().tobytes())
    assert len(seen) == 11 and all(len(images) >= 4 for images in seen.values())


# ---- faults


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_gives_one_line_with_its_path(workers, tmp_path):
    opt = options(tmp_path, workers)
    path = tmp_path / 'lq/05.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        collected(opt, 3)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value) and 'Error' not in str(caught.value)


def test_an_image_that_vanishes_gives_one_line_with_its_path(tmp_path):
    opt = options(tmp_path, 1)
    stream = batches(opt)
    (tmp_path / 'gt/03.png').unlink()
    with pytest.raises(DataError, match=r'^\S*gt/03.png: No such file or directory$'):
        for _ in range(9):
            next(stream)


@pytest.mark.parametrize('workers', [0, 1])
def test_faults_of_any_data_set_are_one_line(workers, tmp_path):
    with pytest.raises(DataError, match=r'^gt/x.png: a fault$'):
        collected(options(tmp_path, workers, type='BehavingDataset', what='option'), 1)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_bug_in_a_data_set_is_not_taken_for_a_fault_of_the_data(workers, tmp_path):
    with pytest.raises(RuntimeError, match='a bug in a data set') as caught:
        collected(options(tmp_path, workers, type='BehavingDataset', what='bug'), 1)
    assert not isinstance(caught.value, DataError)


def test_a_worker_that_dies_or_hangs_is_said_in_one_line(tmp_path):
    for what in ('dies', 'hangs'):
        with pytest.raises(
            DataError, match=r'^a data worker ended early: DataLoader .*; try fewer num_worker_per_gpu$'
        ):
            collected(options(tmp_path, 1, type='BehavingDataset', what=what, timeout=1), 1)


def test_all_files_that_cannot_be_used_are_listed_at_once(tmp_path):
    opt = options(tmp_path)
    for n in (1, 4):
        (tmp_path / f'lq/{n:02}.png').write_bytes(b'x')
    (tmp_path / 'gt/07.png').unlink()
    datasets = [
        build_train_loader(opt, 0, 1)[1],
        build_eval_loaders(opt, 0, 1)['V'].dataset.dataset,
        BehavingDataset(''),
    ]
    with pytest.raises(DataError) as caught:
        check_datasets(datasets)
    head, *lines = str(caught.value).splitlines()
    assert head == '6 items of the data sets cannot be used:'
    assert [next(n for n in ('01', '04', '07') if f'{n}.png' in line) for line in lines] == ['07', '01', '04'] * 2
    for n in range(11):
        (tmp_path / f'lq/x{n}.png').write_bytes(b'x')
        (tmp_path / f'lq/y{n}.png').write_bytes(b'x')
    with pytest.raises(DataError) as caught:
        check_datasets([build_train_loader(opt, 0, 1)[1], build_train_loader(opt, 0, 1)[1]])
    assert len(str(caught.value).splitlines()) <= 52 and str(caught.value).startswith('50 items')


def test_a_data_set_that_cannot_be_made_is_named_by_its_label():
    section = DatasetOptions(name='V', options={'type': 'SingleImageDataset', 'dataroot_lq': '/nowhere'})
    with pytest.raises(OptionError, match=r'^datasets:val_2: /nowhere: no such folder$'):
        build_dataset(section, 'val_2', 2)


# ---- validation


@pytest.mark.parametrize('world', [1, 2, 3, 16])
@pytest.mark.parametrize('workers', [0, 1])
def test_processes_share_out_the_validation(world, workers, tmp_path):
    shares = [
        [batch['lq_path'][0] for batch in build_eval_loaders(options(tmp_path, workers), rank, world)['V']]
        for rank in range(world if workers == 0 else 1)
    ]
    if workers == 0:
        assert sorted(path for share in shares for path in share) == [
            str(tmp_path / f'lq/{n:02}.png') for n in range(11)
        ]
    assert shares[0] == [str(tmp_path / f'lq/{n:02}.png') for n in range(0, 11, world)]
