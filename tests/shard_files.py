"""Shards for tests: tar files of small noise images, written without the project's script, and what is read of them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import torch
from data_files import pixels

from basicsr.data.loaders import CountedBatches, build_train_loader
from basicsr.data.streams import stream_of
from basicsr.utils.image_codec import encode
from basicsr.utils.options import parse_options

CPU = torch.device('cpu')
COUNTS = (3, 1, 7, 0, 5)  # samples of the shards: 16
BICUBIC = {'type': 'BicubicDegradation'}


def png(seed: int, height: int = 10, width: int = 12) -> bytes:
    return encode(pixels(seed, height, width), '.png')


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = 'w') -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def make_shards(folder: Path, counts: Iterable[int]) -> str:
    """train-0.tar, train-1.tar, ... with so many samples each, whose keys are numbers; returns their pattern."""
    key = 0
    for number, count in enumerate(counts):
        write_tar(folder / f'train-{number}.tar', [(f'{n:03}.png', png(n)) for n in range(key, key + count)])
        key += count
    return str(folder / f'train-{{0..{number}}}.tar')


def options(shards: str | list[str], workers: int = 0, batch: int = 2, seed: int = 0, **changes):
    train = {
        'name': 'T', 'type': 'ShardedImageDataset', 'shards': shards, 'gt_size': 8, 'use_hflip': True, 'use_rot': True,
        'degradation': BICUBIC, 'shuffle_buffer': 4, 'num_worker_per_gpu': workers, 'batch_size_per_gpu': batch,
        **changes,
    }  # fmt: skip
    return parse_options(
        {
            'name': 'x',
            'model_type': 'SRModel',
            'scale': 2,
            'manual_seed': seed,
            'datasets': {'train': {key: value for key, value in train.items() if value is not None}},
            'network_g': {'type': 'ATD'},
            'train': {'total_iter': 1, 'optim_g': {'type': 'Adam'}, 'pixel_opt': {'type': 'L1Loss'}},
        },
        True,
    )


def items(opt, iterations: int, world: int = 1, samples: int = 0) -> dict[int, tuple[str, bytes]]:
    """(file, bytes of lq and gt) of the next samples of all processes, by number."""
    found = {}
    for rank in range(world):
        loader = build_train_loader(opt, rank, world)[0]
        batches, size = CountedBatches(loader, CPU, samples), stream_of(loader).batch_size
        for iteration in range(iterations):
            batch = next(batches)
            first = samples + iteration * size * world + rank
            assert batch['number'].tolist() == list(range(first, first + size * world, world))
            for number, path, lq, gt in zip(batch['number'], batch['gt_path'], batch['lq'], batch['gt'], strict=True):
                found[int(number)] = (path, lq.numpy().tobytes() + gt.numpy().tobytes())
    return found
