"""MATLAB's bicubic resizing as core.md 11.3 describes the published form: a loop over lines and channels.

Nothing of basicsr is imported: it is the second path of tests, and what scripts/benchmark.py compares with.
"""

import math

import numpy as np


def imresize(image: np.ndarray, scale: float, antialiasing: bool = True) -> np.ndarray:
    """(h, w, c) or (h, w), floating point -> (ceil(h * scale), ceil(w * scale), ...), not clipped, not rounded."""
    planes = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))
    channels, height, width = planes.shape
    first, weights = taps_and_weights(height, scale, antialiasing)
    padded, first = mirrored(planes, first, weights.shape[1], axis=1)
    weights = weights.astype(image.dtype)
    rows = np.empty((channels, len(first), width), image.dtype)
    for row, start in enumerate(first):
        for channel in range(channels):
            rows[channel, row] = padded[channel, start : start + weights.shape[1]].T @ weights[row]
    first, weights = taps_and_weights(width, scale, antialiasing)
    padded, first = mirrored(rows, first, weights.shape[1], axis=2)
    weights = weights.astype(image.dtype)
    out = np.empty((channels, rows.shape[1], len(first)), image.dtype)
    for column, start in enumerate(first):
        for channel in range(channels):
            out[channel, :, column] = padded[channel, :, start : start + weights.shape[1]] @ weights[column]
    return out[0] if image.ndim == 2 else out.transpose(1, 2, 0)


def mirrored(planes: np.ndarray, first: np.ndarray, count: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The planes continued by their mirror image as far as the taps reach, and where the taps begin in that."""
    before, after = max(0, -int(first.min())), max(0, int(first.max()) + count - planes.shape[axis])
    pads = [(0, 0)] * 3
    pads[axis] = (before, after)
    return np.pad(planes, pads, mode='symmetric'), first + before


def taps_and_weights(length: int, scale: float, antialiasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """The first tap (0-based, may lie outside) of every resized pixel, and the weights (out, taps), rows of sum 1."""
    shrinks = scale < 1 and antialiasing
    width = 4 / scale if shrinks else 4
    u = np.arange(1, math.ceil(length * scale) + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(u - width / 2)
    distance = u[:, None] - (left[:, None] + np.arange(math.ceil(width) + 2))
    weights = scale * cubic(distance * scale) if shrinks else cubic(distance)
    return left.astype(np.int64) - 1, weights / weights.sum(1, keepdims=True)


def cubic(t: np.ndarray) -> np.ndarray:
    t = np.abs(t)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return near * (t <= 1) + far * ((t > 1) & (t <= 2))
