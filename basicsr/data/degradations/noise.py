"""Gaussian and Poisson noise for batches, from given draws (Real-ESRGAN, arXiv:2107.10833).

Nothing waits for the device. An image is (b, 3, h, w) in [0, 1]; noise is what `add_noise` adds to it. A sample's
`gray` flag, 0 or 1, of any dtype, says that its three channels get the same noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def gaussian_noise(
    image: Tensor, sigma: Tensor, gray: Tensor, color_draw: Tensor, gray_draw: Tensor | None = None
) -> Tensor:
    """Normal noise (b, 3, h, w).

    Args:
        sigma: of each sample, (b,), on the scale 0..255.
        gray: of each sample, (b,).
        color_draw: standard normal draws like the image.
        gray_draw: those of gray samples: (h, w), one map that all share as published, or (b, 1, h, w). None: no
            sample is gray.
    """
    sigma, gray = _column(sigma, image) / 255, _column(gray, image)
    if gray_draw is None:
        return color_draw * sigma
    return (color_draw * (sigma * (1 - gray))).addcmul_(gray_draw.expand(len(image), 1, -1, -1), sigma * gray)


class PoissonRates(NamedTuple):
    """What Poisson counts are drawn with: `values` (b, 1, 1, 1) times the intensities of the image in 8 bits.

    color (b, 3, h, w) with values, gray (b, 1, h, w) with gray_values: 2^ceil(log2(n)) for n distinct intensities.
    """

    color: Tensor
    gray: Tensor
    values: Tensor
    gray_values: Tensor


def poisson_rates(image: Tensor) -> PoissonRates:
    """The rates of an image and of its gray version."""
    red, green, blue = image.split(1, 1)
    color, gray = _levels(image), _levels(0.2989 * red + 0.587 * green + 0.114 * blue)
    values, gray_values = _values(color), _values(gray)
    return PoissonRates((color / 255).mul_(values), (gray / 255).mul_(gray_values), values, gray_values)


def poisson_noise(
    image: Tensor, rates: PoissonRates, scale: Tensor, gray: Tensor, color_counts: Tensor, gray_counts: Tensor
) -> Tensor:
    """Poisson noise (b, 3, h, w): (counts - rates) / values, times the scale (b,).

    Args:
        gray: of each sample, (b,).
        color_counts, gray_counts: drawn with rates.color and rates.gray.
    """
    scale, gray = _column(scale, image), _column(gray, image)
    noise = (color_counts - rates.color).mul_(scale * (1 - gray) / rates.values)
    return noise.addcmul_(gray_counts - rates.gray, scale * gray / rates.gray_values)


def add_noise(image: Tensor, noise: Tensor, clip: bool = True, rounds: bool = False) -> Tensor:
    """The sum, clipped to [0, 1] and rounded to multiples of 1/255 if asked for."""
    out = image + noise
    if rounds:
        out = out.mul_(255).round_()
        return (out.clamp_(0, 255) if clip else out).div_(255)
    return out.clamp_(0, 1) if clip else out


def _column(numbers: Tensor, image: Tensor) -> Tensor:
    return numbers.to(image.dtype).view(-1, 1, 1, 1)


def _levels(image: Tensor) -> Tensor:
    """The image in 8 bits: whole numbers 0..255."""
    return (image * 255).round_().clamp_(0, 255)


def _values(levels: Tensor) -> Tensor:
    """2^ceil(log2(n)) of the n distinct levels of each sample, (b, 1, 1, 1)."""
    b = len(levels)
    first = 256 * torch.arange(b, device=levels.device).view(b, 1, 1, 1)  # entry of a sample's level 0
    seen = levels.new_zeros(b * 256).index_fill_(0, (levels + first).long().flatten(), 1)
    powers = (1 << torch.arange(9, device=levels.device)).to(levels.dtype)
    # The smallest power that is not below n: a logarithm may be off by a rounding.
    return powers[torch.searchsorted(powers, seen.view(b, 256).sum(1))].view(b, 1, 1, 1)
