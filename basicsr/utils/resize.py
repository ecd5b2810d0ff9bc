"""Bicubic resizing with MATLAB's numbers: the degradation that defines classical super-resolution."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def imresize(image: np.ndarray | Tensor, scale: float, antialiasing: bool = True) -> np.ndarray | Tensor:
    """MATLAB's bicubic `imresize`: a = -0.5, widened kernel when shrinking, mirrored border; not clipped, not rounded.

    An array (h, w, c) or (h, w), or a tensor (..., h, w), floating point, of any size, gives the same kind with sides
    `ceil(side * scale)`. `antialiasing=False` keeps the narrow kernel when shrinking.
    """
    if not scale > 0 or not math.isfinite(scale):
        raise ValueError(f'imresize needs a finite scale > 0, got {scale}')
    if isinstance(image, Tensor):
        return _resize_tensor(image, scale, antialiasing)
    if image.ndim not in (2, 3) or not np.issubdtype(image.dtype, np.floating) or 0 in image.shape:
        raise ValueError(f'imresize needs a floating-point array (h, w) or (h, w, c), got {image.dtype} {image.shape}')
    rows, columns = (_matrix(side, scale, antialiasing).astype(image.dtype, copy=False) for side in image.shape[:2])
    resized = (rows @ image.reshape(len(image), -1)).reshape(-1, *image.shape[1:])
    return resized @ columns.T if image.ndim == 2 else columns @ resized


def _resize_tensor(image: Tensor, scale: float, antialiasing: bool) -> Tensor:
    if image.ndim < 2 or not image.is_floating_point() or 0 in image.shape:
        raise ValueError(f'imresize needs a floating-point tensor (..., h, w), got {image.dtype} {tuple(image.shape)}')
    rows, columns = (torch.tensor(_matrix(side, scale, antialiasing)).to(image) for side in image.shape[-2:])
    return rows @ image @ columns.T


@lru_cache(maxsize=32)
def _matrix(side: int, scale: float, antialiasing: bool) -> np.ndarray:
    """What each of the `side` pixels of a line adds to each resized pixel: float64 (ceil(side * scale), side)."""
    stretch = min(scale, 1) if antialiasing else 1
    width = 4 / stretch
    out = math.ceil(side * scale)
    # Pixel centres of the resized line, in the 1-based coordinates of the line.
    centre = np.arange(1, out + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centre - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic((centre[:, None] - taps) * stretch)
    weights /= weights.sum(1, keepdims=True)
    # The line continues as its mirror image, edge pixel repeated, as often as the taps need.
    mirrored = (taps.astype(np.int64) - 1) % (2 * side)
    mirrored = np.where(mirrored < side, mirrored, 2 * side - 1 - mirrored)
    matrix = np.zeros((out, side))
    np.add.at(matrix, (np.arange(out)[:, None], mirrored), weights)
    matrix.flags.writeable = False  # the cache hands the same array to everybody
    return matrix


def _cubic(t: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -0.5 (Keys, 1981)."""
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0))
