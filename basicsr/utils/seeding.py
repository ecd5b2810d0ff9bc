"""Random numbers as a function of what they are for: (seed, epoch, sample) or (seed, iteration, process)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers below 2^64; nearby arguments, and more or fewer, give unrelated seeds."""
    # SeedSequence pads with zeros: without their count, (s,) and (s, 0) would be one seed.
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    high, low = np.random.SeedSequence([len(numbers), *words]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def sample_generator() -> np.random.Generator:
    """A generator for one item of a data set, seeded by Python's `random`, which a loader seeds for every item."""
    return np.random.default_rng(random.getrandbits(64))


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (other people's data sets draw from it)
    torch.manual_seed(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, the generators of Python, NumPy and torch's CPU are seeded by the numbers; after, they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = derived_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
