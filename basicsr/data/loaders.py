"""Data sets and loaders from options. What a training sample is depends on (seed, epoch, index) and nothing else."""

import math
import re
import time
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from basicsr.data.streams import shard_source, stream_of
from basicsr.utils.options import DatasetOptions, Options
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY, OptionError, UserError
from basicsr.utils.seeding import derived_seed, seeded
from basicsr.utils.signals import leave_stopping_to_the_parent


class DataError(UserError):
    """An image of a data set cannot be used."""


def build_dataset(options: DatasetOptions, label: str, scale: int) -> Dataset:
    """The data set of one entry of `datasets:`; its phase is the label up to the first underscore."""
    given = {'scale': scale, 'phase': label.split('_')[0]}
    try:
        return DATASET_REGISTRY.build(options.options, **given)
    except OptionError as error:
        raise OptionError(f'datasets:{label}: {error}', ('datasets', label, *error.key)) from None


def epoch_order(total: int, size: int, seed: int) -> torch.Tensor:
    """A shuffled epoch of `total` draws from `size` items, each as often as any other (within one)."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)) % size


class EndlessBatches:
    """Batches of (epoch, draw, index) for ever: epoch after epoch, each item once per epoch (times `ratio`).

    The stream of samples is cut into global batches, of which each process takes every world-th sample. So no sample
    is dropped or repeated whatever the sizes, and where the stream continues is one number: the samples consumed.

    Args:
        ratio: how many times an epoch visits each item (BasicSR's dataset_enlarge_ratio).
        batch_size: samples per process.
        start: samples consumed before, by all processes together.
    """

    def __init__(
        self, size: int, ratio: float, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ):
        self.size, self.total = size, max(1, math.ceil(size * ratio))
        self.batch_size, self.seed, self.rank, self.world, self.start = batch_size, seed, rank, world, start

    def go_on_from(self, samples: int) -> None:
        """Begin behind so many samples of all processes."""
        self.start = samples

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch, order, position = -1, None, self.start
        while True:
            batch = []
            for offset in range(self.rank, self.batch_size * self.world, self.world):
                number = position + offset
                if number // self.total != epoch:
                    epoch = number // self.total
                    order = epoch_order(self.total, self.size, derived_seed(self.seed, epoch))
                draw = number % self.total
                batch.append((epoch, draw, int(order[draw])))
            position += self.batch_size * self.world
            yield batch


class SeededDataset(Dataset):
    """A data set whose random draws, from whatever generator, depend on (seed, epoch, draw) alone.

    An item's `number` counts the samples of the run: what is drawn later, on the device, depends on (seed, number).

    Args:
        per_epoch: draws in an epoch.
    """

    def __init__(self, dataset: Dataset, seed: int, per_epoch: int):
        self.dataset, self.seed, self.per_epoch = dataset, seed, per_epoch

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        epoch, draw, index = key
        with seeded(self.seed, epoch, draw):
            return {**self.dataset[index], 'number': epoch * self.per_epoch + draw}


def build_train_loader(opt: Options, rank: int, world: int) -> tuple[DataLoader, Dataset]:
    """An endless loader over the entry `train` of the option file, and its data set."""
    labels = [label for label in opt.datasets if label.split('_')[0] == 'train']
    if len(labels) != 1:
        raise OptionError(f'one training set is needed, got {", ".join(labels) or "none"}', ('datasets',))
    options = opt.datasets[labels[0]]
    dataset = build_dataset(options, labels[0], opt.scale)
    workers = options.num_worker_per_gpu
    if isinstance(dataset, IterableDataset):
        source = shard_source(dataset, options, opt.manual_seed, rank, world)
    else:
        batches = EndlessBatches(
            len(dataset), options.dataset_enlarge_ratio, options.batch_size_per_gpu, opt.manual_seed, rank, world
        )
        source = {'dataset': SeededDataset(dataset, opt.manual_seed, batches.total), 'batch_sampler': batches}
    loader = DataLoader(
        **source,
        num_workers=workers,
        pin_memory=options.pin_memory and torch.cuda.is_available(),
        timeout=options.timeout if workers else 0,
        worker_init_fn=_start_worker,
    )
    return loader, dataset


def build_degradation(opt: Options, device: torch.device, world: int) -> nn.Module | None:
    """The per-batch degradation of the section `degradation:` on a device; None where data sets give lq themselves."""
    if opt.degradation is None:
        return None
    batch = next(options.batch_size_per_gpu for label, options in opt.datasets.items() if label.startswith('train'))
    given = {'scale': opt.scale, 'seed': opt.manual_seed, 'global_batch': batch * world}
    try:
        return DEGRADATION_REGISTRY.build(opt.degradation, **given).to(device)
    except OptionError as error:
        raise OptionError(f'degradation: {error}', ('degradation', *error.key)) from None


def build_eval_loaders(opt: Options, rank: int, world: int) -> dict[str, DataLoader]:
    """A loader for every other entry of `datasets:`, by its name: single images, every world-th of them."""
    loaders = {}
    for label, options in sorted(opt.datasets.items()):
        if label.split('_')[0] == 'train':
            continue
        if options.name in loaders:
            raise OptionError(f'two data sets are called {options.name!r}', ('datasets', label, 'name'))
        dataset = build_dataset(options, label, opt.scale)
        share = Subset(dataset, range(rank, len(dataset), world))
        loaders[options.name] = DataLoader(
            share, batch_size=1, num_workers=options.num_worker_per_gpu, worker_init_fn=_start_worker
        )
    return loaders


def own_words(error: Exception) -> str:
    """What a data set said of a file, without the traceback that a worker puts before it."""
    return re.sub(r'^[\w.]*Error: ', '', str(error).strip().splitlines()[-1])


class CountedBatches:
    """The batches of an endless loader on a device, degraded there if a degradation is given.

    Raises DataError, in one line, for what a data set says of a file.

    samples: how many all processes took since the run began; epoch: how often that is the whole set; waited: seconds
    spent on waiting for batches; files: of the latest batch.

    Args:
        samples: to begin with; the loader goes on behind them.
        degrade: makes the lq of a batch that has gt only.
    """

    def __init__(self, loader: DataLoader, device: torch.device, samples: int = 0, degrade: nn.Module | None = None):
        self.degrade = degrade
        self.stream, self.device, self.samples, self.waited = stream_of(loader), device, samples, 0.0
        self.stream.go_on_from(samples)
        self.files = []
        self._batches = iter(loader)

    def __iter__(self) -> 'CountedBatches':
        return self

    def __next__(self) -> dict:
        started = time.perf_counter()
        batch = {
            k: v.to(self.device, non_blocking=True) if isinstance(v, torch.Tensor) and k != 'number' else v
            for k, v in self._fetched().items()
        }
        self.waited += time.perf_counter() - started
        self.samples += self.stream.batch_size * self.stream.world
        self.files = list(batch.get('gt_path', batch.get('lq_path', ())))
        if (self.degrade is None) != ('lq' in batch):
            raise DataError(
                'the training set gives gt only: the option file needs a section `degradation:`'
                if self.degrade is None
                else 'the training set gives lq already: the section `degradation:` is for sets that give gt only'
            )
        return batch if self.degrade is None else self._degraded(batch)

    def _degraded(self, batch: dict) -> dict:
        try:
            return self.degrade(batch)
        except UserError:
            raise
        except ValueError as error:
            raise DataError(f'degrading {", ".join(self.files)}: {error}') from None

    @property
    def epoch(self) -> int:
        return self.samples // self.stream.total

    def training_state(self) -> dict:
        """What this process alone has of the samples so far, such as a pair pool; empty if nothing."""
        return self.degrade.training_state() if hasattr(self.degrade, 'training_state') else {}

    def _fetched(self) -> dict:
        try:
            return next(self._batches)
        except ValueError as error:  # from a worker, it is a traceback that ends with the message
            raise DataError(own_words(error)) from None
        except RuntimeError as error:
            if str(error).startswith('DataLoader'):  # a worker died or hung; what it raised itself begins otherwise
                message = str(error).splitlines()[0]
                raise DataError(f'a data worker ended early: {message}; try fewer num_worker_per_gpu') from None
            raise


def check_datasets(datasets: Iterable[Dataset], thorough: bool = False) -> None:
    """Raise DataError that lists every file of the data sets that could not be used.

    Args:
        thorough: decode every image instead of reading its header.
    """
    faults = [fault for dataset in datasets if hasattr(dataset, 'faults') for fault in dataset.faults(thorough)]
    if faults:
        shown = '\n  '.join(faults[:50])
        more = f'\n  ... and {len(faults) - 50} more' if len(faults) > 50 else ''
        raise DataError(f'{len(faults)} items of the data sets cannot be used:\n  {shown}{more}')


def _start_worker(_: int) -> None:
    """A worker has one core: neither torch nor OpenCV may start threads of their own in it."""
    import cv2

    leave_stopping_to_the_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
