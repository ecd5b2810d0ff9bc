"""Endless streams of a sharded data set: which worker of which process takes which samples, and in which order."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from basicsr.data.shards import Sample, Shard, read_samples
from basicsr.utils.options import DatasetOptions
from basicsr.utils.registry import OptionError
from basicsr.utils.seeding import derived_seed, seeded

logger = logging.getLogger('basicsr')


class Stream(Protocol):
    """Where an endless loader stands: what CountedBatches and the training script know of it.

    batch_size: samples per process; world: processes; total: samples in an epoch, of all processes.
    """

    batch_size: int
    world: int
    total: int

    def go_on_from(self, samples: int) -> None:
        """Begin behind so many samples of all processes, before the loader is iterated."""


def stream_of(loader: DataLoader) -> Stream:
    """The stream of a training loader: it lies in the sampler of an indexed data set and in a data set of shards."""
    return loader.dataset if loader.batch_sampler is None else loader.batch_sampler


def shard_source(dataset: Dataset, options: DatasetOptions, seed: int, rank: int, world: int) -> dict:
    """The arguments of a DataLoader that say where its batches come from, for a data set of shards."""
    if options.dataset_enlarge_ratio != 1:
        raise OptionError('an epoch of shards is each sample once', ('datasets', 'train', 'dataset_enlarge_ratio'))
    settings = {'batch_size': options.batch_size_per_gpu, 'workers': options.num_worker_per_gpu}
    stream = ShardStream(
        dataset.shards, dataset.item, dataset.shuffle_buffer, seed=seed, rank=rank, world=world, **settings
    )
    return {'dataset': stream, 'batch_size': None, 'collate_fn': default_collate}


class Lane:
    """The places in the global stream that one worker of one process fills: numbers, in rising order.

    A global batch is the next batch_size * world numbers, of which each process takes every world-th; the batches of
    a process go to its workers in turn.

    Args:
        phase: the number at which the first batch began.
    """

    def __init__(self, rank: int, world: int, worker: int, workers: int, batch_size: int, phase: int = 0):
        self.rank, self.world, self.worker, self.workers = rank, world, worker, workers
        self.batch_size, self.phase = batch_size, phase

    def number(self, turn: int) -> int:
        """The number of the lane's sample `turn`."""
        batch, place = divmod(turn, self.batch_size)
        batch = batch * self.workers + self.worker
        return self.phase + (batch * self.batch_size + place) * self.world + self.rank

    def before(self, number: int) -> int:
        """How many samples of the lane come before a number of the stream."""
        together = self.batch_size * self.world
        rounds, rest = divmod(max(0, number - self.phase), self.workers * together)
        rest = min(max(0, rest - self.worker * together), together)
        return rounds * self.batch_size + max(0, -(-(rest - self.rank) // self.world))

    def within(self, epoch: int, total: int) -> int:
        """How many samples of the lane belong to an epoch."""
        return self.before((epoch + 1) * total) - self.before(epoch * total)


def shuffled_order(count: int, buffer: int, seed: int) -> np.ndarray:
    """In which order `count` samples leave a buffer of that size which they enter one after another, at random.

    It begins nearly empty, so that the first samples need not wait until it is full: two enter for each that leaves.
    """
    draws = np.random.default_rng(seed).random(count)
    order, held, entered = np.empty(count, np.int64), [], 0
    for place in range(count):
        while entered < count and len(held) < min(buffer, place + 1):
            held.append(entered)
            entered += 1
        pick = int(draws[place] * len(held))
        order[place] = held[pick]
        held[pick] = held[-1]
        held.pop()
    return order


class ShardStream(IterableDataset):
    """Batches (lists of items) of shards for ever: epoch after epoch, each sample once per epoch.

    The shards of an epoch, in an order of its own, are one sequence of samples. It is cut into as many pieces as there
    are workers in all processes, as long as their shares of the epoch's batches: so pieces differ in length by a batch
    at most, whatever the sizes of the shards, and a shard may be read by two workers. Each worker passes its piece
    through a buffer.

    What an item holds depends on (seed, epoch, shard, key). In which order they come depends on (seed, epoch) and on
    how many processes and workers there are, with which batch size: an interrupted epoch goes on exactly only with the
    same numbers of these. So does what a degradation draws for a batch, from (seed, number).

    Args:
        item: what a sample becomes; draws from the global generators, which are seeded around it.
        buffer: samples that a worker holds to draw from.
        batch_size: samples per process.
        workers: of each process, for the log only.
    """

    def __init__(
        self,
        shards: list[Shard],
        item: Callable[[Sample], dict],
        buffer: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ):
        self.shards, self.item, self.buffer, self.seed = shards, item, buffer, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.workers, self.start = workers, 0
        self.total = sum(shard.samples for shard in shards)

    def __iter__(self) -> Iterator[list[dict]]:
        info = get_worker_info()
        return self.batches(*((info.id, info.num_workers) if info else (0, 1)))

    def batches(self, worker: int, workers: int) -> Iterator[list[dict]]:
        """The batches that a worker makes."""
        if not self.total:
            raise ValueError('the shards hold no samples')
        done, phase = divmod(self.start, self.batch_size * self.world)
        lanes = [
            Lane(rank, self.world, number, workers, self.batch_size, phase)
            for rank in range(self.world)
            for number in range(workers)
        ]
        own = self.rank * workers + (done + worker) % workers  # a fresh loader begins with its first worker
        items = self._items(lanes, own)
        while True:
            yield list(itertools.islice(items, self.batch_size))

    def go_on_from(self, samples: int) -> None:
        """Begin behind so many samples; within an epoch, log on what it depends that no sample comes twice."""
        self.start = samples
        if self.rank or not samples % self.total:
            return
        if samples % (self.batch_size * self.world):
            logger.warning(
                'shards: %d samples are no whole number of batches of %d on %d processes: these have changed, so '
                'some samples of epoch %d come twice and others not at all; the next epoch is whole again',
                samples,
                self.batch_size,
                self.world,
                samples // self.total,
            )
        else:
            logger.info(
                'shards: going on within epoch %d, exactly if it was left with %d processes of %d workers and batches '
                'of %d; otherwise some of its samples come twice and others not at all',
                samples // self.total,
                self.world,
                self.workers,
                self.batch_size,
            )

    def _items(self, lanes: list[Lane], own: int) -> Iterator[dict]:
        lane = lanes[own]
        turn = lane.before(self.start)
        while True:
            epoch = lane.number(turn) // self.total
            count, done = lane.within(epoch, self.total), turn - lane.before(epoch * self.total)
            begin = sum(other.within(epoch, self.total) for other in lanes[:own])
            with closing(self._samples(epoch, begin, count, done)) as samples:
                for shard, sample in samples:
                    with seeded(self.seed, epoch, _identity(shard, sample)):
                        item = {**self.item(sample), 'number': lane.number(turn)}
                    turn += 1
                    yield item

    def _samples(self, epoch: int, begin: int, count: int, done: int) -> Iterator[tuple[Shard, Sample]]:
        """A piece of an epoch, in the order in which it leaves the buffer, without the first `done` samples."""
        order = shuffled_order(count, self.buffer, derived_seed(self.seed, epoch, begin))
        places = np.empty(count, np.int64)
        places[order] = np.arange(count)
        held: dict[int, tuple[Shard, Sample]] = {}
        with closing(self._read(epoch, begin, count, lambda number: places[number] >= done)) as arriving:
            for number in order[done:].tolist():
                while number not in held:
                    entered, *sample = next(arriving)
                    held[entered] = tuple(sample)
                yield held.pop(number)

    def _read(
        self, epoch: int, begin: int, count: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Shard, Sample]]:
        """(number within the piece, shard, sample) of the wanted ones; shards without any are not opened."""
        position = -begin  # of a shard's first sample within the piece
        for index in np.random.default_rng(derived_seed(self.seed, epoch)).permutation(len(self.shards)):
            shard = self.shards[index]
            first, end = max(0, -position), min(shard.samples, count - position)
            if any(wanted(position + number) for number in range(first, end)):
                chosen = partial(lambda position, number: wanted(position + number), position)
                for number, sample in read_samples(shard.url, first, end, chosen):
                    yield position + number, shard, sample
            position += shard.samples


def _identity(shard: Shard, sample: Sample) -> int:
    """A number for a sample that stays when shards are moved."""
    return int.from_bytes(hashlib.blake2b(f'{shard.name}/{sample.key}'.encode(), digest_size=8).digest())
