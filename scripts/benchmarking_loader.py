"""How fast training samples come from files, LMDBs and packed stores; for `scripts/benchmark.py data`."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmarking_data import OPTIONS, photograph
from make_lmdb import make_lmdb
from make_lq import make_folder
from pack_dataset import pack
from pipelines import Pipeline
from timing import header, rate, table_line
from torch.utils.data import DataLoader, Dataset

from basicsr.data.loaders import build_train_loader
from basicsr.data.storage import open_storage
from basicsr.utils.image import write_image
from basicsr.utils.options import parse_options
from basicsr.utils.yaml_loader import load_yaml

SCALE, BATCH = 4, 8  # the option file's scale
BACKENDS = {'disk': '', 'lmdb': '.lmdb', 'packed': '.packed'}
HEADER = (
    'training set',
    'published reading',
    'PNG',
    'LMDB',
    'packed',
    'packed / PNG',
    'a crop from PNG',
    'from packed',
)


class PublishedReading(Dataset):
    """Pairs as published code reads them: whole images become float, then they are cropped and flipped."""

    def __init__(self, folder: Path, gt_size: int):
        self.gt, self.lq = (sorted((folder / kind).iterdir()) for kind in ('gt', 'lq'))
        self.size = gt_size // SCALE

    def __len__(self) -> int:
        return len(self.gt)

    def __getitem__(self, index: int) -> dict:
        gt, lq = (cv2.imread(str(paths[index])).astype(np.float32) / 255 for paths in (self.gt, self.lq))
        size = self.size
        top, left = (random.randint(0, side - size) for side in lq.shape[:2])
        lq = lq[top : top + size, left : left + size]
        gt = gt[top * SCALE : (top + size) * SCALE, left * SCALE : (left + size) * SCALE]
        images = [cv2.flip(image, 1) if random.random() < 0.5 else image for image in (gt, lq)]
        images = [torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)) for image in images]
        return dict(zip(('gt', 'lq'), images))


def make_files(folder: Path, height: int, width: int, count: int) -> None:
    """Pairs as PNG files, and the LMDBs and packed stores of them."""
    for number in range(count):
        write_image(folder / f'gt/{number:04}.png', photograph(height, width, number))
    make_folder(folder / 'gt', folder / 'lq', SCALE)
    for kind in ('gt', 'lq'):
        make_lmdb(folder / kind, folder / f'{kind}.lmdb')
        pack(folder / kind, folder / f'{kind}.packed')


def batches_of(folder: Path, backend: str, data: dict) -> Iterator[dict]:
    """Of the training loader, in this process."""
    end = BACKENDS[backend]
    roots = {'dataroot_gt': f'{folder}/gt{end}', 'dataroot_lq': f'{folder}/lq{end}'}
    if data['type'] != 'PairedImageDataset':
        del roots['dataroot_lq']
    section = {'name': 'T', **data, **roots, 'io_backend': {'type': backend}, 'batch_size_per_gpu': BATCH}
    tree, _ = load_yaml(OPTIONS / 'bicubic_x4.yml')
    tree['datasets'] = {'train': section}
    return iter(build_train_loader(parse_options(tree, True), 0, 1)[0])


def seconds_of(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Each call in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(title: str, folder: Path, data: dict, repeats: int) -> dict:
    """Items per second of each storage, and microseconds of one crop of gt_size without the loader."""
    streams = {backend: batches_of(folder, backend, data) for backend in BACKENDS}
    first = [next(stream)['gt'] for stream in streams.values()]
    if not all(torch.equal(first[0], other) for other in first[1:]):
        raise ValueError('the storages give different samples')
    size = data.get('crop_size', data['gt_size'])
    if data['type'] == 'PairedImageDataset':
        plain = PublishedReading(folder, size)
        streams['published'] = iter(DataLoader(plain, BATCH, sampler=_endless(len(plain))))
        next(streams['published'])
    seconds = seconds_of({name: lambda stream=stream: next(stream) for name, stream in streams.items()}, repeats)
    report = {'title': title, 'items_per_second': {name: BATCH / statistics.median(seconds[name]) for name in seconds}}
    crops = {name: _cropping(folder, name, size) for name in BACKENDS}
    for crop in crops.values():
        crop()
    report['crop_seconds'] = {name: statistics.median(s) for name, s in seconds_of(crops, 3 * repeats).items()}
    return report


def _cropping(folder: Path, backend: str, size: int) -> Callable[[], np.ndarray]:
    """Copies a random square of a random gt image."""
    storage = open_storage(f'{folder}/gt{BACKENDS[backend]}', {'type': backend})
    names, rng = storage.names(), np.random.default_rng(0)

    def crop() -> np.ndarray:
        pixels = storage.pixels(names[rng.integers(len(names))])
        top, left = (int(rng.integers(side - size, endpoint=True)) for side in pixels.shape[:2])
        return pixels[top : top + size, left : left + size].copy()

    return crop


def _endless(count: int) -> Iterator[int]:
    while True:
        yield random.randrange(count)


def line_of(report: dict) -> str:
    items, crop = report['items_per_second'], report['crop_seconds']
    cells = [
        report['title'],
        *(f'{rate(items[name])}/s' if name in items else '-' for name in ('published', *BACKENDS)),
        f'{items["packed"] / items["disk"]:.1f}',
        f'{crop["disk"] * 1e6:.0f} us',
        f'{crop["packed"] * 1e6:.0f} us',
    ]
    return table_line(cells)


def loader_reports(quick: bool, repeats: int) -> list[dict]:
    """Measure all training sets, and print them as a Markdown table."""
    print(header(HEADER), flush=True)
    kernels = Pipeline.load(str(OPTIONS / 'realesrnet_x4.yml')).sections['kernels']
    whole = (120, 160, 2) if quick else (1356, 2040, 8)
    part, crop, large = ((96, 96, 4), 64, 80) if quick else ((480, 480, 64), 256, 400)
    paired = {'type': 'PairedImageDataset', 'gt_size': crop, 'use_hflip': True, 'use_rot': True}
    unpaired = {'type': 'KernelImageDataset', 'crop_size': large, 'gt_size': crop, 'use_hflip': True, **kernels}
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (('part', part), ('whole', whole)):
            make_files(Path(folder) / name, *shape)
            size = f'{shape[1]}x{shape[0]}'
            sets = [(f'pairs of {size}, crops of {crop}', paired)]
            if name == 'part':
                sets.append((f'gt of {size}, crops of {large}, kernels', unpaired))
            for title, data in sets:
                reports.append(measure(title, Path(folder) / name, data, repeats if name == 'part' else repeats // 2))
                print(line_of(reports[-1]), flush=True)
    return reports
