"""DiffAugment (Zhao et al., arXiv:2006.10738): colour, translation and cut-out of what a discriminator sees.

All of it is a function of the images and of given draws, with gradients to the images.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

SHIFT, HOLE = 0.125, 0.5  # of each side: the longest translation, the side of what is cut out


class AugmentDraws(NamedTuple):
    """The randomness of one batch: uniform in [0, 1) or whole numbers, one of each for every image, (b,)."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift_y: Tensor
    shift_x: Tensor
    hole_y: Tensor
    hole_x: Tensor


def random_draws(x: Tensor) -> AugmentDraws:
    """Draws for the images x (b, 3, h, w) from the generator of their device."""
    b, _, *sides = x.shape

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (b,), device=x.device)

    colour = [torch.rand(b, device=x.device) for _ in range(3)]
    shifts = [whole(-longest, longest + 1) for longest in (_part(side, SHIFT) for side in sides)]
    holes = [whole(0, side + 1 - _part(side, HOLE) % 2) for side in sides]
    return AugmentDraws(*colour, *shifts, *holes)


def diff_augment(x: Tensor, draws: AugmentDraws) -> Tensor:
    """(b, 3, h, w) in [-1, 1] -> the same, where 0 fills what comes from outside and what is cut out."""
    brightness, saturation, contrast = (rearrange(u, 'b -> b 1 1 1') for u in draws[:3])
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean
    return _cut_out(_translated(x, draws.shift_y, draws.shift_x), draws.hole_y, draws.hole_x)


def _translated(x: Tensor, shift_y: Tensor, shift_x: Tensor) -> Tensor:
    """out[row, column] = x[row + shift_y, column + shift_x], and 0 where that is outside."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) + rearrange(shift_y, 'b -> b 1')
    columns = torch.arange(width, device=x.device) + rearrange(shift_x, 'b -> b 1')
    inside = _box((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    images = rearrange(torch.arange(len(x), device=x.device), 'b -> b 1 1')
    picked = rearrange(x, 'b c h w -> b h w c')[
        images, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    return rearrange(picked, 'b h w c -> b c h w').where(inside, 0)


def _cut_out(x: Tensor, hole_y: Tensor, hole_x: Tensor) -> Tensor:
    """Zeros in a rectangle of half of each side that begins half of its own side before the drawn place."""

    def within(side: int, place: Tensor) -> Tensor:
        length = _part(side, HOLE)
        first = rearrange(place, 'b -> b 1') - length // 2
        pixel = torch.arange(side, device=x.device)
        return (pixel >= first) & (pixel < first + length)

    return x.masked_fill(_box(within(x.shape[-2], hole_y), within(x.shape[-1], hole_x)), 0)


def _box(rows: Tensor, columns: Tensor) -> Tensor:
    """Where both hold: (b, h) and (b, w) -> (b, 1, h, w)."""
    return rearrange(rows, 'b h -> b 1 h 1') & rearrange(columns, 'b w -> b 1 1 w')


def _part(side: int, share: float) -> int:
    return int(side * share + 0.5)
