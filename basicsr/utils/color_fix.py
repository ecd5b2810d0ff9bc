"""The colours of one image given to another: what diffusion models shift is put back, with a strength."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.registry import UserError, suggestion

ColorFix = Literal['none', 'wavelet', 'adain']
LEVELS = 5


def fix_color(image: Tensor, source: Tensor, method: ColorFix, strength: float = 1) -> Tensor:
    """An image with the colours of `source`, such as the enlarged lq: two (b, 3, h, w) -> (b, 3, h, w), not clamped.

    Args:
        method: 'wavelet' takes what is larger than about 32 pixels from source; 'adain' gives each channel the mean and
            the standard deviation that source has; 'none' changes nothing.
        strength: from 0, the image as it is, to 1.
    """
    if method not in FIXES:
        raise UserError(f'{method!r} is not a known colour fix; {suggestion(method, FIXES)}')
    if image.shape != source.shape:
        raise ValueError(
            f'colours are taken from an image of one size, not {tuple(source.shape)}: {tuple(image.shape)}'
        )
    if method == 'none' or strength == 0:
        return image
    fixed = FIXES[method](image.float(), source.float())
    return fixed if strength == 1 else torch.lerp(image.float(), fixed, strength)


def wavelet_fix(image: Tensor, source: Tensor, levels: int = LEVELS) -> Tensor:
    """The high bands of image on the lowest band of source, as S3Diff (arXiv:2409.17058) and StableSR publish it."""
    # lowest_band is linear: image - lowest_band(image) + lowest_band(source), with one pass in place of two.
    return image + lowest_band(source - image, levels)


def adain_fix(image: Tensor, source: Tensor) -> Tensor:
    """Adaptive instance normalisation (Huang and Belongie, ICCV 2017): image with source's statistics per channel."""
    (deviation, mean), (target_deviation, target_mean) = (_statistics(one) for one in (image, source))
    return (image - mean) / deviation * target_deviation + target_mean


def lowest_band(image: Tensor, levels: int = LEVELS) -> Tensor:
    """What `levels` blurs by [1 2 1] / 4 leave, both ways and each of twice the step; beyond the border is the edge.

    Shape: (b, c, h, w) -> (b, c, h, w).
    """
    for level in range(levels):
        step = 2**level
        for dim, padding in ((-1, (step, step, 0, 0)), (-2, (0, 0, step, step))):
            side, padded = image.shape[dim], F.pad(image, padding, mode='replicate')
            before, here, after = (padded.narrow(dim, place * step, side) for place in range(3))
            image = (before + 2 * here + after) / 4
    return image


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel of each image."""
    variance, mean = torch.var_mean(image, (2, 3), correction=min(1, image[0, 0].numel() - 1), keepdim=True)
    return (variance + 1e-5).sqrt(), mean


FIXES = {'none': lambda image, source: image, 'wavelet': wavelet_fix, 'adain': adain_fix}
