"""Bicubic resizing: with MATLAB's numbers, the degradation that defines classical super-resolution, and Pillow's."""

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONG_LINE = 3000  # numbers in a line of the image from which on blocks of fewer lines are faster, as measured
PILLOW_FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


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
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    kind = antialiasing, image.dtype.str
    lines = image.reshape(height, -1)
    pixels = _blocks(height, scale, 1, *kind, 8 if lines.shape[1] < LONG_LINE else 2)
    rows = np.empty((pixels[-1][0].stop, width * channels), image.dtype)
    for made, used, weights in pixels:
        np.matmul(weights, lines[used], out=rows[made])
    pixels = _blocks(width, scale, channels, *kind, 8 if lines.shape[1] < LONG_LINE else 4)
    resized = np.empty((len(rows), pixels[-1][0].stop), image.dtype)
    for made, used, weights in pixels:
        np.matmul(rows[:, used], weights.T, out=resized[:, made])
    return resized.reshape(len(rows), -1, *image.shape[2:])


def pillow_resize(pixels: np.ndarray, width: int, height: int, resample: str = 'bicubic') -> np.ndarray:
    """(h, w, 3) or (h, w) uint8 -> (height, width, ...) uint8 by Pillow's antialiased filter: 'bicubic' or 'bilinear'.

    It is what torchvision's `resize` of a PIL image gives. Bicubic is a = -0.5 as MATLAB's, but with weights of 8-bit
    precision, the rounding between rows and columns, and a border where the taps outside are left out.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f'pillow_resize takes uint8, got {pixels.dtype}')
    if resample not in PILLOW_FILTERS:
        raise ValueError(f'{resample!r} is not a known filter; known: {", ".join(PILLOW_FILTERS)}')
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), PILLOW_FILTERS[resample]))


def _resize_tensor(image: Tensor, scale: float, antialiasing: bool) -> Tensor:
    if image.ndim < 2 or not image.is_floating_point() or 0 in image.shape:
        raise ValueError(f'imresize needs a floating-point tensor (..., h, w), got {image.dtype} {tuple(image.shape)}')
    rows, columns = (torch.tensor(_matrix(side, scale, antialiasing)).to(image) for side in image.shape[-2:])
    return rows @ image @ columns.T


@lru_cache(maxsize=8)
def _matrix(side: int, scale: float, antialiasing: bool) -> np.ndarray:
    """What each of the `side` pixels of a line adds to each resized pixel: float64 (ceil(side * scale), side)."""
    matrix = _dense(*_taps(side, scale, antialiasing), side)
    matrix.flags.writeable = False  # the cache hands the same array to everybody
    return matrix


@lru_cache(maxsize=32)
def _blocks(side: int, scale: float, channels: int, antialiasing: bool, dtype: str, least: int) -> list[tuple]:
    """The matrix in parts that hold all its entries but few zeros: (places made, places used, weights).

    With several channels, places are those of a line of interleaved pixels: products need no transposed copies then.
    """
    places, weights = _taps(side, scale, antialiasing)
    count, blocks = max(least, round(8 * scale)), []  # measured: smaller ones cost calls, larger ones hold more zeros
    for start in range(0, len(places), count):
        part = places[start : start + count]
        first, end = int(part.min()), int(part.max()) + 1
        block = _dense(part - first, weights[start : start + count], end - first)
        made = slice(start * channels, (start + len(part)) * channels)
        used = slice(first * channels, end * channels)
        blocks.append((made, used, np.kron(block, np.eye(channels)).astype(dtype)))
    return blocks


def _taps(side: int, scale: float, antialiasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a line that each resized pixel is made of, (ceil(side * scale), taps), and their weights."""
    stretch = min(scale, 1) if antialiasing else 1
    width = 4 / stretch
    # Pixel centres of the resized line, in the 1-based coordinates of the line.
    centre = np.arange(1, math.ceil(side * scale) + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centre - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic((centre[:, None] - taps) * stretch)
    weights /= weights.sum(1, keepdims=True)
    # The line continues as its mirror image, edge pixel repeated, as often as the taps need.
    places = (taps.astype(np.int64) - 1) % (2 * side)
    return np.where(places < side, places, 2 * side - 1 - places), weights


def _dense(places: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    matrix = np.zeros((len(places), side))
    np.add.at(matrix, (np.arange(len(places))[:, None], places), weights)
    return matrix


def _cubic(t: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -0.5 (Keys, 1981)."""
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0))
