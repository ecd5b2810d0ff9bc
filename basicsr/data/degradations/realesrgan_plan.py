"""The random decisions of the second-order degradation (Real-ESRGAN, arXiv:2107.10833): drawn here, applied elsewhere.

A plan is pure data. What the samples of a group share is drawn from (seed, step, group), what is a sample's own from
(seed, number): so neither depends on how a batch is dealt out to processes and workers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from basicsr.data.degradations.noise import PoissonRates
from basicsr.utils.registry import OptionError
from basicsr.utils.seeding import derived_seed

RESIZES = ('up', 'down', 'keep')
MODES = ('area', 'bilinear', 'bicubic')
SHARED, OWN = 1, 2  # what a seed is for


@dataclass(frozen=True)
class StageOptions:
    """Ranges and probabilities of one stage in the published names; `suffix` is '' or '2', as the options end.

    Args:
        blur_prob: of blurring at all.
        resize_prob: of enlarging, shrinking and keeping the size.
        resize_range: the smallest and the largest factor, with 1 between them.
        noise_range: sigma of Gaussian noise on the scale 0..255.
        poisson_scale_range: factor of Poisson noise.
        jpeg_range: qualities.

    Raises OptionError, with the option's name, for reversed ranges and impossible probabilities.
    """

    suffix: str
    blur_prob: float
    resize_prob: tuple[float, float, float]
    resize_range: tuple[float, float]
    gaussian_noise_prob: float
    noise_range: tuple[float, float]
    poisson_scale_range: tuple[float, float]
    gray_noise_prob: float
    jpeg_range: tuple[float, float]

    def __post_init__(self):
        check_probability('second_blur_prob', self.blur_prob)
        for name in ('gaussian_noise_prob', 'gray_noise_prob'):
            check_probability(name + self.suffix, getattr(self, name))
        if not (min(self.resize_prob) >= 0 and math.isclose(sum(self.resize_prob), 1, abs_tol=1e-6)):
            name = f'resize_prob{self.suffix}'
            raise OptionError(
                f'{name} needs probabilities of up, down and keep whose sum is 1, got {[*self.resize_prob]}', (name,)
            )
        for name, least, most in (
            ('resize_range', 0, math.inf),
            ('noise_range', 0, math.inf),
            ('poisson_scale_range', 0, math.inf),
            ('jpeg_range', 1, 100),
        ):
            check_range(name + self.suffix, getattr(self, name), least, most)
        low, high = self.resize_range
        if not 0 < low <= 1 <= high:
            name = f'resize_range{self.suffix}'
            raise OptionError(f'{name} shrinks by at least its first number and enlarges by at most its second: '
                              f'it needs 0 < first <= 1 <= second, got {[low, high]}', (name,))  # fmt: skip


def check_probability(name: str, value: float) -> None:
    """Raise OptionError unless the value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise OptionError(f'{name} is a probability, between 0 and 1, got {value}', (name,))


def check_range(name: str, values: tuple[float, float], least: float, most: float) -> None:
    """Raise OptionError unless least <= first <= second <= most and both are finite."""
    low, high = values
    if not (least <= low <= high <= most and math.isfinite(high)):
        bounds = f'at least {least}' if most == math.inf else f'between {least} and {most}'
        raise OptionError(f'{name} needs [smallest, largest], {bounds}, got {[low, high]}', (name,))


@dataclass(frozen=True)
class StageDecisions:
    """What a group shares in one stage; `scale` is the factor of the resize, from the gt or of the lq's final size."""

    blur: bool
    resize: str
    scale: float
    mode: str
    noise: str


@dataclass(frozen=True)
class Decisions:
    """What the samples of a group share; they are computed together.

    final_mode: of the resize to the lq's size; jpeg_first: JPEG before that resize and the sinc filter, not after.
    untouched: the network is given the gt (S3Diff). gray_seeds: of the one gray noise map in either stage.
    """

    first: StageDecisions
    second: StageDecisions
    final_mode: str
    jpeg_first: bool
    untouched: bool
    gray_seeds: tuple[int, int]


@dataclass(frozen=True)
class Strengths:
    """A sample's own numbers in one stage: sigma (0..255) or Poisson factor, whether the noise is gray, JPEG quality.

    noise_seed: of the sample's own noise.
    """

    noise: float
    gray: bool
    quality: float
    noise_seed: int


@dataclass(frozen=True)
class SamplePlan:
    """All that is decided for one sample; top and left of the crop as shares of the room there is, in [0, 1)."""

    decisions: Decisions
    first: Strengths
    second: Strengths
    top: float = 0.0
    left: float = 0.0

    def offset(self, room_height: int, room_width: int) -> tuple[int, int]:
        """Top and left of the crop, integers between 0 and the room, inclusive."""
        return int(self.top * (room_height + 1)), int(self.left * (room_width + 1))


@dataclass(frozen=True)
class PlanSource:
    """Draws the plans of samples by their numbers in the run's stream.

    Args:
        global_batch: samples that all processes together take in a step.
        groups: 1: all samples of a step share their decisions, as published. N: a step's samples are dealt into N
            groups, by number % N. 0: every sample decides for itself, by its number alone.
        no_degradation_prob: of `untouched`.
    """

    first: StageOptions
    second: StageOptions
    seed: int
    global_batch: int
    groups: int = 1
    no_degradation_prob: float = 0.0

    def __post_init__(self):
        check_probability('no_degradation_prob', self.no_degradation_prob)
        if self.groups < 0:
            raise OptionError(f'groups is 0 (each sample for itself), 1 or more, got {self.groups}', ('groups',))

    def draw(self, numbers: Sequence[int]) -> tuple[SamplePlan, ...]:
        """The plan of each sample; those of one group have equal `decisions`."""
        shared: dict[tuple[int, ...], Decisions] = {}
        return tuple(self._sample(number, shared) for number in numbers)

    def smallest(self, side: int) -> int:
        """How few pixels of a line of `side` may be left for the second blur."""
        shrinks = self.second.blur_prob > 0 and self.first.resize_prob[1] > 0
        return int(side * self.first.resize_range[0]) if shrinks else side

    def _sample(self, number: int, shared: dict[tuple[int, ...], Decisions]) -> SamplePlan:
        group = (number // self.global_batch, number % self.groups) if self.groups else (number,)
        if group not in shared:
            shared[group] = self._decisions(np.random.default_rng(derived_seed(self.seed, *group, SHARED, 0)))
        decisions, rng = shared[group], np.random.default_rng(derived_seed(self.seed, number, OWN, 0))
        first, second = (
            draw_strengths(options, decided, rng)
            for options, decided in ((self.first, decisions.first), (self.second, decisions.second))
        )
        return SamplePlan(decisions, first, second, rng.random(), rng.random())

    def _decisions(self, rng: np.random.Generator) -> Decisions:
        return Decisions(
            first=draw_stage(self.first, rng),
            second=draw_stage(self.second, rng),
            final_mode=MODES[rng.integers(len(MODES))],
            jpeg_first=rng.random() < 0.5,
            untouched=rng.random() < self.no_degradation_prob,
            gray_seeds=(_seed(rng), _seed(rng)),
        )


def draw_stage(options: StageOptions, rng: np.random.Generator) -> StageDecisions:
    low, high = options.resize_range
    resize = str(rng.choice(RESIZES, p=np.array(options.resize_prob) / sum(options.resize_prob)))
    scale = {'up': rng.uniform(1, high), 'down': rng.uniform(low, 1), 'keep': 1.0}[resize]
    return StageDecisions(
        blur=rng.random() < options.blur_prob,
        resize=resize,
        scale=float(scale),
        mode=MODES[rng.integers(len(MODES))],
        noise='gaussian' if rng.random() < options.gaussian_noise_prob else 'poisson',
    )


def draw_strengths(options: StageOptions, decided: StageDecisions, rng: np.random.Generator) -> Strengths:
    noise = rng.uniform(*(options.noise_range if decided.noise == 'gaussian' else options.poisson_scale_range))
    gray = rng.random() < options.gray_noise_prob
    return Strengths(float(noise), bool(gray), float(rng.uniform(*options.jpeg_range)), _seed(rng))


def parameters(plan: SamplePlan) -> dict[str, float | str]:
    """What was decided for one sample under flat names, those of the second stage ending in 2; for histograms."""
    flat: dict[str, float | str] = {}
    for end, decided, own in (('', plan.decisions.first, plan.first), ('2', plan.decisions.second, plan.second)):
        if end:
            flat[f'blur{end}'] = 'yes' if decided.blur else 'no'
        flat |= {f'resize{end}': decided.resize, f'resize_scale{end}': decided.scale, f'resize_mode{end}': decided.mode}
        flat[f'noise{end}'] = f'{decided.noise}, {"gray" if own.gray else "color"}'
        flat[f'{"noise_sigma" if decided.noise == "gaussian" else "poisson_scale"}{end}'] = own.noise
        flat[f'jpeg_quality{end}'] = own.quality
    flat['final_mode'] = plan.decisions.final_mode
    flat['final_order'] = 'jpeg, resize, sinc' if plan.decisions.jpeg_first else 'resize, sinc, jpeg'
    return flat


class SeededNoise:
    """The noise that a plan's seeds stand for, made on the image's device; a sample's does not depend on the others.

    Only what is used is drawn: a gray sample has no color noise, and the other way round.
    """

    def normal(self, image: Tensor, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor | None]:
        """Standard normal color noise like the image (b, 3, h, w) and the group's gray map (h, w); None if unused."""
        color, gray = torch.zeros_like(image, memory_format=torch.contiguous_format), None
        for row, own in zip(color, _strengths(plans, stage)):
            if not own.gray:
                row.normal_(generator=_generator(image, own.noise_seed))
            elif gray is None:
                seed = plans[0].decisions.gray_seeds[stage]
                gray = torch.empty_like(image[0, 0], memory_format=torch.contiguous_format)
                gray.normal_(generator=_generator(image, seed))
        return color, gray

    def counts(self, rates: PoissonRates, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor]:
        """Poisson draws for the rates: color (b, 3, h, w) and gray (b, 1, h, w), 0 where unused."""
        color, gray = torch.zeros_like(rates.color), torch.zeros_like(rates.gray)
        for n, own in enumerate(_strengths(plans, stage)):
            source, target = (rates.gray, gray) if own.gray else (rates.color, color)
            target[n] = torch.poisson(source[n], generator=_generator(source, own.noise_seed))
        return color, gray


def _strengths(plans: Sequence[SamplePlan], stage: int) -> list[Strengths]:
    return [(plan.first, plan.second)[stage] for plan in plans]


def _generator(image: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(image.device).manual_seed(seed)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
