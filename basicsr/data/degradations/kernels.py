"""Blur kernels of the second-order degradation (Real-ESRGAN, arXiv:2107.10833): formulas, options and drawing."""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np
from scipy.special import j1

from basicsr.utils.registry import OptionError, suggestion

KINDS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')
SIDE = 21  # of the arrays that kernels are handed out in
SIZES = tuple(range(7, SIDE + 1, 2))  # that are drawn from, as published


class Uniform(Protocol):
    """What `random.Random` and NumPy's generators, new and old, have in common."""

    def random(self) -> float: ...

    def uniform(self, low: float, high: float) -> float: ...


@lru_cache(maxsize=32)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x of the columns (1, size), y of the rows (size, 1) and the distance from the centre (size, size)."""
    x = np.arange(size) - (size - 1) / 2
    grid = x[None], x[:, None], np.hypot(x[None], x[:, None])
    for part in grid:
        part.flags.writeable = False  # the cache hands the same arrays to everybody
    return grid


def quadratic_form(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0) -> np.ndarray:
    """p^T Sigma^-1 p for the taps p = (x, y): float64 (size, size), rows are y.

    Sigma = R diag(sigma_x^2, sigma_y^2) R^T, where R rotates by theta radians; both sigmas are above 0.
    """
    x, y, _ = _grid(size)
    cos, sin = math.cos(theta), math.sin(theta)
    along, across = (cos / sigma_x * x + sin / sigma_x * y), (cos / sigma_y * y - sin / sigma_y * x)
    return along * along + across * across


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0) -> np.ndarray:
    """exp(-q / 2) of the quadratic form q, divided by its sum: float64 (size, size)."""
    return _normalized(np.exp(-0.5 * quadratic_form(size, sigma_x, sigma_y, theta)))


def generalized_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """exp(-q^beta / 2), divided by its sum: peaked for beta < 1, flat-topped above."""
    return _normalized(np.exp(-0.5 * quadratic_form(size, sigma_x, sigma_y, theta) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> np.ndarray:
    """1 / (q^beta + 1), divided by its sum."""
    return _normalized(1 / (quadratic_form(size, sigma_x, sigma_y, theta) ** beta + 1))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """The circular low-pass filter w J1(w r) / (2 pi r) of cutoff w, divided by its sum; odd sizes; pi keeps all."""
    distance = _grid(size)[2].copy()
    centre = size // 2, size // 2
    distance[centre] = 1
    kernel = cutoff * j1(cutoff * distance) / (2 * math.pi * distance)
    kernel[centre] = cutoff**2 / (4 * math.pi)
    return _normalized(kernel)


def padded(kernel: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The kernel in the middle of zeros: float32 (side, side)."""
    before = (side - len(kernel)) // 2
    out = np.zeros((side, side), np.float32)
    out[before : before + len(kernel), before : before + len(kernel)] = kernel
    return out


def _normalized(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


@dataclass(frozen=True)
class KernelPlan:
    """What was drawn for one kernel: what its kind does not use is None.

    Args:
        kind: one of KINDS, 'sinc', or 'pulse', which changes nothing.
        size: in taps.
        sigma_x, sigma_y: widths in pixels along axes that are rotated by theta radians.
        beta: of generalised Gaussians and plateaus.
        cutoff: of the sinc, in radians per pixel.
    """

    kind: str
    size: int
    sigma_x: float | None = None
    sigma_y: float | None = None
    theta: float | None = None
    beta: float | None = None
    cutoff: float | None = None

    def kernel(self) -> np.ndarray:
        """The kernel, float64 (size, size), of sum 1."""
        if self.kind == 'pulse':
            return padded(np.ones((1, 1)), self.size).astype(np.float64)
        if self.kind == 'sinc':
            return sinc_kernel(self.size, self.cutoff)
        shape = self.size, self.sigma_x, self.sigma_x if self.sigma_y is None else self.sigma_y, self.theta or 0.0
        if self.beta is None:
            return gaussian_kernel(*shape)
        family = generalized_kernel if self.kind.startswith('generalized') else plateau_kernel
        return family(*shape, self.beta)

    def parameters(self, name: str) -> dict[str, float | str]:
        """What is not None under flat names that begin with `name`, for histograms."""
        numbers = {key: getattr(self, key) for key in ('size', 'sigma_x', 'sigma_y', 'theta', 'beta', 'cutoff')}
        return {name: self.kind} | {f'{name}_{key}': value for key, value in numbers.items() if value is not None}


def draw_mixed_kernel(
    kernel_list: Sequence[str],
    kernel_prob: Sequence[float],
    size: int,
    blur_sigma: tuple[float, float],
    betag_range: tuple[float, float],
    betap_range: tuple[float, float],
    random: Uniform,
    rng: Uniform,
    sigma_y_range: tuple[float, float] | None = None,
    rotation_range: tuple[float, float] = (-math.pi, math.pi),
) -> KernelPlan:
    """A kernel of one of the kinds in `kernel_list`: the kind is drawn from `random`, then its numbers from `rng`.

    The second width is drawn from `blur_sigma` too, unless it has a range of its own. With `random.Random(seed)` and
    `np.random.RandomState(seed)` it is what the published code draws after seeding both.
    """
    cumulative = list(accumulate(kernel_prob))  # one draw and a search: what random.choices does
    kind = kernel_list[bisect(cumulative, random.random() * cumulative[-1], 0, len(kernel_list) - 1)]
    sigma_x, sigma_y, theta, beta = rng.uniform(*blur_sigma), None, None, None
    if kind.endswith('aniso'):
        sigma_y, theta = rng.uniform(*(sigma_y_range or blur_sigma)), rng.uniform(*rotation_range)
    if kind not in ('iso', 'aniso'):
        low, high = betag_range if kind.startswith('generalized') else betap_range
        beta = rng.uniform(low, 1) if rng.uniform(0, 1) < 0.5 else rng.uniform(1, high)
    return KernelPlan(kind, size, sigma_x, sigma_y, theta, beta)


@dataclass(frozen=True)
class KernelOptions:
    """Which kernels a data set draws for the two blurs and the final sinc filter; options ending in 2: second blur.

    Sizes are 7, 9, ..., 21, equally likely, and arrays are 21x21.

    Args:
        kernel_list: kinds of kernels: iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso.
        kernel_prob: the probability of each.
        sinc_prob: of a sinc kernel instead of one from the list.
        blur_sigma: range of the widths in pixels.
        betag_range, betap_range: [lowest, highest] beta of generalised and plateau kernels; half of the draws are
            between the lowest and 1, half between 1 and the highest.
        final_sinc_prob: of a final sinc filter; otherwise the final kernel changes nothing.
        blur_kernel_size: the largest size, if limit_kernel_size is true. The published code reads it from its option
            files and then draws sizes up to 21 whatever it says; so does this by default.
        limit_kernel_size: whether blur_kernel_size and blur_kernel_size2 count.

    Raises OptionError, with the option's name, for impossible probabilities, reversed ranges and unknown kinds.
    """

    kernel_list: tuple[str, ...]
    kernel_prob: tuple[float, ...]
    sinc_prob: float
    blur_sigma: tuple[float, float]
    betag_range: tuple[float, float]
    betap_range: tuple[float, float]
    kernel_list2: tuple[str, ...]
    kernel_prob2: tuple[float, ...]
    sinc_prob2: float
    blur_sigma2: tuple[float, float]
    betag_range2: tuple[float, float]
    betap_range2: tuple[float, float]
    final_sinc_prob: float
    blur_kernel_size: int = SIDE
    blur_kernel_size2: int = SIDE
    limit_kernel_size: bool = False

    def __post_init__(self):
        for end in ('', '2'):
            self._check_mixture(f'kernel_list{end}', f'kernel_prob{end}')
            self._check_range(f'blur_sigma{end}', '[smallest, largest], above 0')
            for name in (f'betag_range{end}', f'betap_range{end}'):
                self._check_range(name, '[lowest, highest], above 0, with 1 between them', within=1)
            name, size = f'blur_kernel_size{end}', getattr(self, f'blur_kernel_size{end}')
            if size not in SIZES:
                raise OptionError(f'{name} should be one of {", ".join(map(str, SIZES))}, got {size}', (name,))
        for name in ('sinc_prob', 'sinc_prob2', 'final_sinc_prob'):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f'{name} is a probability, between 0 and 1, got {getattr(self, name)}', (name,))

    def _check_mixture(self, kinds_name: str, probabilities_name: str) -> None:
        kinds, probabilities = getattr(self, kinds_name), getattr(self, probabilities_name)
        for kind in kinds:
            if kind not in KINDS:
                message = f'{kind!r} in {kinds_name} is not a known kernel; {suggestion(kind, KINDS)}'
                raise OptionError(message, (kinds_name,))
        if len(kinds) != len(probabilities):
            message = f'{kinds_name} has {len(kinds)} kernels and {probabilities_name} {len(probabilities)} numbers'
            raise OptionError(message, (probabilities_name,))
        if not (kinds and min(probabilities) >= 0 and math.isclose(sum(probabilities), 1, abs_tol=1e-3)):
            message = f'{probabilities_name} needs probabilities whose sum is 1, got {list(probabilities)}'
            raise OptionError(message, (probabilities_name,))

    def _check_range(self, name: str, rule: str, within: float | None = None) -> None:
        low, high = getattr(self, name)
        if not (0 < low <= (low if within is None else within) <= high < math.inf):
            raise OptionError(f'{name} needs {rule}; got {[low, high]}', (name,))

    def plan(self, rng: np.random.Generator) -> tuple[KernelPlan, KernelPlan, KernelPlan]:
        """What the kernels of the two blurs and of the final filter are to be, drawn from `rng`."""
        return self._blur('', rng), self._blur('2', rng), self._final(rng)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """kernel1, kernel2 and sinc_kernel, each float32 (21, 21) of sum 1, drawn from `rng`."""
        return kernels_of(self.plan(rng))

    def _blur(self, end: str, rng: np.random.Generator) -> KernelPlan:
        size = _size(getattr(self, f'blur_kernel_size{end}') if self.limit_kernel_size else SIDE, rng)
        if rng.random() < getattr(self, f'sinc_prob{end}'):
            return KernelPlan('sinc', size, cutoff=rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
        kinds, probabilities = getattr(self, f'kernel_list{end}'), getattr(self, f'kernel_prob{end}')
        ranges = [getattr(self, name + end) for name in ('blur_sigma', 'betag_range', 'betap_range')]
        return draw_mixed_kernel(kinds, probabilities, size, *ranges, random=rng, rng=rng)

    def _final(self, rng: np.random.Generator) -> KernelPlan:
        if rng.random() < self.final_sinc_prob:
            return KernelPlan('sinc', _size(SIDE, rng), cutoff=rng.uniform(math.pi / 3, math.pi))
        return KernelPlan('pulse', SIDE)


def kernels_of(plan: Sequence[KernelPlan]) -> tuple[np.ndarray, ...]:
    """The kernels of a plan, each float32 (21, 21) of sum 1."""
    return tuple(padded(part.kernel()) for part in plan)


def parameters(plan: Sequence[KernelPlan]) -> dict[str, float | str]:
    """What KernelOptions.plan drew, under flat names that begin with the kernel's."""
    first, second, final = plan
    return first.parameters('kernel1') | second.parameters('kernel2') | final.parameters('sinc_kernel')


def _size(largest: int, rng: np.random.Generator) -> int:
    return SIZES[rng.integers(SIZES.index(largest) + 1)]
