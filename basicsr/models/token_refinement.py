"""Tokens evaluated and refined step by step, by any critic and refiner (ITER, arXiv:2312.05616; iter.md 3.4)."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from basicsr.utils.registry import OptionError

GOOD = 1  # the critic's class of good tokens
LEAST_WEIGHT = 1e-8  # of a position that may be kept, however bad its token is


@dataclass(frozen=True)
class Refinement:
    """How tokens are refined.

    Args:
        T: steps, if no token of the first map is kept; each costs a call of the refiner and one of the critic.
        temp_token, temp_mask: temperatures of the draws of tokens and of positions to keep; below 1 the likeliest are
            drawn more often.
        threshold: how likely good, by the critic, the tokens of the first map must be that are kept. Published: 0.7
            for the released networks, 0.5 in the paper.
        schedule: 'linear', 'cosine', 'powX' (as in pow2) or 'expX' (as in exp10), see `masked_share`.
        adaptive: begin at the step that the number of good tokens is worth; otherwise with a fully masked map.
        sampling: 'multinomial' draws, from noise that follows from a seed; 'greedy' takes the likeliest.
    """

    T: PositiveInt = 8
    temp_token: Annotated[float, Field(gt=0)] = 1.0
    temp_mask: Annotated[float, Field(gt=0)] = 1.0
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    schedule: str = 'linear'
    adaptive: bool = True
    sampling: Literal['multinomial', 'greedy'] = 'multinomial'

    def __post_init__(self):
        masked_share(self.schedule, torch.zeros(1))


def masked_share(schedule: str, progress: Tensor) -> Tensor:
    """gamma: the share of tokens that are masked after a share of the steps, both in [0, 1].

    linear 1 - r; cosine cos(pi r / 2); powX 1 - r^X; expX (X - 1) / X * (1 - X^(r - 1)), which begins below 1.
    Raises OptionError for another schedule, or an X that makes none.
    """
    if schedule == 'linear':
        return 1 - progress
    if schedule == 'cosine':
        return torch.cos(progress * math.pi / 2)
    kind = re.fullmatch(r'(pow|exp)(\d+\.?\d*)', schedule)
    if kind is None:
        raise OptionError(
            f"{schedule!r} is not a known schedule; known: linear, cosine, 'pow' and 'exp' with a number (pow2, exp10)",
            ('schedule',),
        )
    base = float(kind[2])
    if kind[1] == 'pow' and base > 0:
        return 1 - progress**base
    if kind[1] == 'exp' and base >= 0.5 and base != 1:
        return (base - 1) / base * (1 - base ** (progress - 1))
    need = 'a number above 0' if kind[1] == 'pow' else 'a number of 0.5 or more that is not 1'
    raise OptionError(f'{kind[1]!r} takes {need}, got {kind[2]}', ('schedule',))


def kept_counts(schedule: str, steps: int, height: int, width: int) -> list[int]:
    """How many of the tokens are kept when each step begins; in float32, whose rounding counts where k is whole."""
    progress = torch.tensor([step / steps for step in range(steps)], dtype=torch.float32)
    return ((1 - masked_share(schedule, progress)) * width * height).int().tolist()


class Draws(Protocol):
    """Where the choices of each step come from. `rows` are the numbers of the images in the batch that begun with."""

    def tokens(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        """A token for every position: (b, n, h, w), divided by the temperature -> (b, h, w)."""

    def ranks(self, weights: Tensor, step: int, rows: Tensor) -> Tensor:
        """What to sort positions by, the first to keep highest: positive weights (b, h, w) -> (b, h, w)."""


class Greedy:
    """The likeliest tokens, the positions that the critic likes best; the first of equals."""

    def tokens(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        return logits.argmax(1)

    def ranks(self, weights: Tensor, step: int, rows: Tensor) -> Tensor:
        return weights


class GivenNoise:
    """Draws by Gumbel noise that is given.

    Args:
        tokens: (T, b, n, h, w); of the step, the image, and each token.
        masks: (T, b, h, w).
    """

    def __init__(self, tokens: Tensor, masks: Tensor):
        self.token_noise, self.mask_noise = tokens, masks

    def tokens(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        return (logits + self.token_noise[step, rows]).argmax(1)

    def ranks(self, weights: Tensor, step: int, rows: Tensor) -> Tensor:
        return weights.log() + self.mask_noise[step, rows]


class SeededDraws:
    """Draws from a generator of its own for each image, on the CPU, all made at once.

    So what an image gets depends on its seed alone, not on its batch, its place there or the device. A token is found
    by one uniform number in the sums of the probabilities; k positions are those of the k highest log weights after
    Gumbel noise, which draws without replacement.

    Args:
        shape: steps, height and width.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = 'cpu'):
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        uniform = torch.stack([torch.rand(2, *shape, generator=generator) for generator in generators])
        self.uniform = uniform.to(device)

    def tokens(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        sums = logits.softmax(1).cumsum_(1)
        height = self.uniform[rows, 0, step].unsqueeze(1) * sums[:, -1:]
        return (sums <= height).sum(1).clamp_(max=logits.shape[1] - 1)

    def ranks(self, weights: Tensor, step: int, rows: Tensor) -> Tensor:
        return weights.log() - (-self.uniform[rows, 1, step].log()).log()


class TokenNets(Protocol):
    """A critic and a refiner of maps of tokens (b, h, w); good and kept are 0 or 1.

    The conditions are what they need to know of lq's tokens, the same in all steps.
    """

    def critic_condition(self, lq_tokens: Tensor) -> Tensor: ...

    def evaluate(self, candidate: Tensor, condition: Tensor) -> Tensor:
        """Two logits for each token, that it is bad and that it is good: (b, 2, h, w)."""

    def refine_condition(self, lq_tokens: Tensor, good: Tensor) -> Tensor: ...

    def refine(self, condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """The logits of all tokens (b, n, h, w), from those that are kept."""


class Refined(NamedTuple):
    """What `refine_tokens` gives.

    tokens: (b, h, w). sound: (b,), whether all logits were finite. starts: the first step that each image took, T if it
    took none. history, masks: (T, b, h, w), if asked for: the map after each step, and what was kept for it.
    """

    tokens: Tensor
    sound: Tensor
    starts: list[int]
    history: Tensor | None
    masks: Tensor | None


@torch.no_grad()
def refine_tokens(
    nets: TokenNets,
    lq_tokens: Tensor,
    how: Refinement,
    draws: Draws,
    keep_history: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Refined:
    """Replace the tokens of lq that the critic finds bad: masked at first, then fewer and fewer are.

    Every step draws all tokens anew, also those that are kept for it: what is kept are positions, whose number grows.
    Each image takes the steps, and keeps the numbers, that it would alone. The host waits once for the device, for the
    numbers of good tokens: they decide how many steps each image takes.

    Args:
        lq_tokens: (b, h, w), int64.
        progress: called with (steps done, T).
    """
    images, *size = lq_tokens.shape
    counts = kept_counts(how.schedule, how.T, *size)
    good, starts, sound = torch.zeros_like(lq_tokens, dtype=torch.bool), [0] * images, None
    condition = nets.critic_condition(lq_tokens)
    if how.adaptive:
        logits = nets.evaluate(lq_tokens, condition).float()
        good, sound = logits.softmax(1)[:, GOOD] >= how.threshold, _finite(logits)
        numbers = [0] * images if good.is_meta else good.sum((1, 2)).tolist()
        starts = [first_step(counts, number) for number in numbers]
    # Those that begin first come first: in every step, the images at work are then the first ones.
    order = sorted(range(images), key=starts.__getitem__)
    rows = torch.arange(images, device=lq_tokens.device)
    tokens = lq_tokens
    if order != sorted(order):
        rows = rows[order]
        tokens, good, condition = (part[rows] for part in (tokens, good, condition))
    sound = torch.ones_like(rows, dtype=torch.bool) if sound is None else sound[rows]
    working = sum(start < how.T for start in starts)
    known = nets.refine_condition(tokens[:working], good[:working].float()) if working else None
    tokens, kept, history = tokens.clone(), good.clone(), []
    logits, begun = None, 0
    for step, count in enumerate(counts):
        if begun:
            kept[:begun] = draw_kept(kept[:begun], logits / how.temp_mask, count, draws, step, rows[:begun])
        begun = sum(start <= step for start in starts)
        if begun:
            drawn = nets.refine(known[:begun], tokens[:begun], kept[:begun].float()).float()
            sound[:begun] &= _finite(drawn)
            tokens[:begun] = draws.tokens(drawn / how.temp_token, step, rows[:begun])
        if begun and step + 1 < how.T:
            logits = nets.evaluate(tokens[:begun], condition[:begun]).float()
            sound[:begun] &= _finite(logits)
        if keep_history:
            history.append((tokens.clone(), kept.clone()))
        if progress:
            progress(step + 1, how.T)
    back = rows.argsort()
    maps = [torch.stack(part)[:, back] for part in zip(*history, strict=True)] or [None, None]
    return Refined(tokens[back], sound[back], starts, *maps)


def first_step(counts: Sequence[int], good: int) -> int:
    """The step that so many good tokens are worth: the first that keeps as many; len(counts) if none does."""
    return next((step for step, count in enumerate(counts) if count >= good), len(counts))


def draw_kept(kept: Tensor, logits: Tensor, count: int, draws: Draws, step: int, rows: Tensor) -> Tensor:
    """`kept` and so many more positions that they are `count`, at least one: those of good tokens rather than others.

    logits: the critic's (b, 2, h, w), divided by the temperature. No position is drawn twice, as could happen in the
    published code where all probabilities underflow.
    """
    weights = logits.softmax(1)[:, GOOD] * ~kept + LEAST_WEIGHT
    return keep_more(kept, draws.ranks(weights, step, rows), count)


def keep_more(kept: Tensor, ranks: Tensor, count: int) -> Tensor:
    """`kept` and the others of highest rank, so many that they are `count` in all, at least one; first of equals."""
    more = (count - kept.sum((1, 2))).clamp(min=1)
    order = ranks.masked_fill(kept, -math.inf).flatten(1).sort(descending=True, stable=True).indices
    chosen = torch.arange(order.shape[1], device=order.device) < more[:, None]
    return kept | torch.zeros_like(chosen).scatter(1, order, chosen).view_as(kept)


def _finite(logits: Tensor) -> Tensor:
    return torch.isfinite(logits).flatten(1).all(1)
