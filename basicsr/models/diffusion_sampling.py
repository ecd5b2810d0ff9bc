"""Images from noise by any network that names the noise in an image: ancestral, DDIM and DPM-Solver++ sampling.

Every sampler is a table of numbers: the next state is a weighted sum of the state, of the image that the network sees
in it, of the image that it saw one step before, and of fresh noise. The weights follow from the signal's part alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from basicsr.models.diffusion import GaussianDiffusion
from basicsr.utils.registry import OptionError

STATE, SEEN, SEEN_BEFORE, NOISE = range(4)  # columns of a sampler's table


@dataclass(frozen=True)
class Steps:
    """Where a sampler calls the network, noisiest first.

    alphas: abar at each step, float64, increasing. times: their numbers in the chain; None if they lie between.
    """

    alphas: np.ndarray
    times: np.ndarray | None

    def conditions(self, continuous: bool) -> Tensor:
        """What the network is told at each step: sqrt(abar) as float32, or the number of the step as int64."""
        return torch.from_numpy(np.sqrt(self.alphas).astype(np.float32) if continuous else self.times.astype(np.int64))


@dataclass(frozen=True)
class Sampler:
    """How images are sampled from noise: by which of three methods, and in how many steps of the trained chain.

    Args:
        type: 'ancestral' (DDPM, arXiv:2006.11239; on fewer steps that of the shorter chain), 'ddim' (arXiv:2010.02502)
            or 'dpmpp_2m' (DPM-Solver++, second order, arXiv:2211.01095).
        steps: calls of the network; all steps of the chain if not given.
        eta: of 'ddim': the share of the ancestral sampler's noise; 0 adds none.
        spacing: which steps of the chain. 'trailing' (equal distances from the noisy end), 'linspace' (both ends),
            'logsnr' (equal steps of the logarithmic signal-to-noise ratio; networks that are told a level take values
            between the steps) or 'leading' (never the noisy end: not for a start from pure noise).
    """

    type: Literal['ancestral', 'ddim', 'dpmpp_2m'] = 'ancestral'
    steps: PositiveInt | None = None
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    spacing: Literal['trailing', 'linspace', 'logsnr', 'leading'] = 'trailing'

    def __post_init__(self):
        if self.eta and self.type != 'ddim':
            raise OptionError(f"eta belongs to the sampler 'ddim', not to {self.type!r}", ('eta',))

    def steps_of(self, diffusion: GaussianDiffusion, continuous: bool) -> Steps:
        """The steps of a chain that this sampler takes. Raises OptionError if there are not so many."""
        return spaced_steps(diffusion.alphas_cumprod, self.steps or len(diffusion), self.spacing, continuous)

    def table(self, alphas: np.ndarray) -> np.ndarray:
        """The weights of each step, float64 (steps, 4)."""
        match self.type:
            case 'ancestral':
                return ancestral_table(alphas)
            case 'ddim':
                return ddim_table(alphas, self.eta)
        return dpmpp_2m_table(alphas)


def spaced_steps(alphas_cumprod: np.ndarray, count: int, spacing: str, continuous: bool) -> Steps:
    """`count` steps of the chain abar_0 to abar_(T-1), see Sampler.

    Args:
        continuous: whether the network takes levels between the steps. Otherwise 'logsnr' takes the nearest steps, each
            once: there may be fewer than `count`.
    Raises OptionError for more steps than the chain has, and for chains that cannot be sampled in float32.
    """
    total = len(alphas_cumprod)
    if not 1 <= count <= total:
        raise OptionError(f'a sampler of this schedule takes 1 to {total} steps, got {count}', ('steps',))
    if not (alphas_cumprod > 1e-75).all():
        raise OptionError(
            f'this schedule leaves nothing of the image (abar {alphas_cumprod[-1]:g}): its last steps cannot be undone'
        )
    index, last = np.arange(count), total - 1
    if count == 1 and spacing != 'leading':
        times = np.array([last])
    elif spacing == 'trailing':
        times = np.rint(total - index * total / count).astype(np.int64) - 1
    elif spacing == 'linspace':
        times = np.rint(np.linspace(0, last, count)).astype(np.int64)[::-1]
    elif spacing == 'leading':
        times = (count - 1 - index) * (total // count)
    else:
        ratio = _half_log_snr(alphas_cumprod)
        wanted = ratio[last] + (ratio[0] - ratio[last]) * index / (count - 1)
        if continuous:
            alphas = 1 / (1 + np.exp(-2 * wanted))
            alphas[[0, -1]] = alphas_cumprod[[last, 0]]
            return Steps(alphas, None)
        nearest = np.abs(ratio[:, None] - wanted).argmin(0)
        times = nearest[np.append(True, np.diff(nearest) != 0)]
    return Steps(alphas_cumprod[times], times)


def ancestral_table(alphas: np.ndarray) -> np.ndarray:
    """DDPM's posterior of the chain whose abar are these: for all steps of the trained chain, the published sampler."""
    table, after = _table(alphas)
    ratio = alphas / after
    table[:, STATE] = (1 - after) * np.sqrt(ratio) / (1 - alphas)
    table[:, SEEN] = (1 - ratio) * np.sqrt(after) / (1 - alphas)
    table[:, NOISE] = np.sqrt((1 - ratio) * (1 - after) / (1 - alphas))
    return table


def ddim_table(alphas: np.ndarray, eta: float) -> np.ndarray:
    """DDIM; the noise in the state is that which remains beside the clamped image (with eta 1: ancestral sampling)."""
    table, after = _table(alphas)
    table[:, NOISE] = eta * np.sqrt((1 - after) / (1 - alphas)) * np.sqrt(1 - alphas / after)
    direction = np.sqrt(np.maximum(1 - after - table[:, NOISE] ** 2, 0))
    table[:, STATE] = direction / np.sqrt(1 - alphas)
    table[:, SEEN] = np.sqrt(after) - table[:, STATE] * np.sqrt(alphas)
    return table


def dpmpp_2m_table(alphas: np.ndarray) -> np.ndarray:
    """DPM-Solver++(2M); its first and its last step are of first order, as DDIM's are."""
    table, _ = _table(alphas)
    step = np.diff(_half_log_snr(alphas))
    after, rows = alphas[1:], slice(len(step))
    table[rows, STATE] = np.sqrt((1 - after) / (1 - alphas[:-1]))
    weight = -np.sqrt(after) * np.expm1(-step)
    extrapolated = np.zeros_like(step)
    extrapolated[1:] = step[1:] / (2 * step[:-1])
    table[rows, SEEN] = weight * (1 + extrapolated)
    table[rows, SEEN_BEFORE] = -weight * extrapolated
    table[-1, SEEN] = 1
    return table


class ImageNoise:
    """Normal draws for a batch of images, each from a generator of its own on the CPU.

    So what an image gets depends on its seed alone, not on its batch, its place there or the device.

    Shape: each call gives (len(seeds), *shape), float32.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = 'cpu'):
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    sampler: Sampler,
    steps: Steps,
    start: Tensor,
    draw: Callable[[], Tensor],
    continuous: bool,
    clip: bool = True,
    watch: Callable[[int, Tensor], None] | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Images in [-1, 1] from noise.

    Args:
        denoise: (x (b, c, h, w), condition (b,)) -> the noise in x; of any network. It is told the level of x, or the
            number of its step where `continuous` is false.
        steps: as `sampler.steps_of` gives them.
        start: normal noise (b, c, h, w).
        draw: more of it; called once for each step that adds any.
        clip: clamp the image that is seen in each state; without, the large factors of the first steps diverge.
        watch: called with the number of each step done and the state after it, which must not be changed.
        correct: what is known of the image, put into that which is seen in each state.
    """
    alphas, table = steps.alphas.tolist(), sampler.table(steps.alphas).tolist()
    state, seen_before = start, None
    conditions = steps.conditions(continuous).to(state.device)
    for number, (alpha, weights) in enumerate(zip(alphas, table, strict=True)):
        noise = denoise(state, conditions[number].expand(len(state))).to(state.dtype)
        seen = torch.sub(state * (1 / alpha) ** 0.5, noise, alpha=(1 / alpha - 1) ** 0.5)
        if clip:
            seen.clamp_(-1, 1)
        if correct:
            seen = correct(seen).clamp_(-1, 1) if clip else correct(seen)
        state = state * weights[STATE] + seen * weights[SEEN]
        if weights[SEEN_BEFORE]:
            state.add_(seen_before, alpha=weights[SEEN_BEFORE])
        if weights[NOISE]:
            state.add_(draw(), alpha=weights[NOISE])
        seen_before = seen
        if watch:
            watch(number, state)
    return state


def snapshot_steps(count: int) -> list[int]:
    """Which of `count` steps the published process picture shows: about ten, the last one always."""
    every = 1 | count // 10
    return [number for number in range(count) if (count - 1 - number) % every == 0]


def _table(alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An empty table, and abar after each step: 1 after the last. Raises OptionError unless abar rises."""
    after = np.append(alphas[1:], 1.0)
    if not (alphas < after).all():
        raise OptionError('the steps of a sampler must become less noisy one after the other')
    return np.zeros((len(alphas), 4)), after


def _half_log_snr(alphas: np.ndarray) -> np.ndarray:
    return 0.5 * (np.log(alphas) - np.log1p(-alphas))
