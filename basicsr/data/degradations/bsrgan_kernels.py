"""Blur kernels of BSRGAN (Zhang et al., ICCV 2021, arXiv:2103.14006) and convolution with a mirrored border.

The published density call per tap, dense convolution and 2-D interpolation become closed forms, separable passes and
direct filtering of the taps that count.
"""

import cv2
import numpy as np

LEAST_VARIANCE = 1e-6  # below it, a covariance cannot be inverted
DROPPED = 1e-7  # how much of a kernel's sum may be left out: less than float32 pixels of [0, 1] can show
DIRECT_TAPS = 129  # OpenCV filters by Fourier transform, ten times slower, from 130 taps on


def anisotropic_gaussian(size: int, theta: float, variance1: float, variance2: float) -> np.ndarray:
    """A normalised Gaussian (size, size), float64, with `variance1` along the direction theta, `variance2` across it.

    Even sizes are centred between pixels. Variances are bounded below by 1e-6.
    """
    x, y = np.meshgrid(_grid(size), _grid(size))
    along, across = np.cos(theta) * x + np.sin(theta) * y, np.sin(theta) * x - np.cos(theta) * y
    distance = along**2 / max(variance1, LEAST_VARIANCE) + across**2 / max(variance2, LEAST_VARIANCE)
    return _normalised_exponential(distance)


def gaussian_taps(size: int, sigma: float) -> np.ndarray:
    """One row (size,), float64, of a normalised isotropic Gaussian, which is the product of two such rows.

    sigma is bounded below by 1e-6; an even size then gives its two middle taps.
    """
    return _normalised_exponential((_grid(size) / max(sigma, LEAST_VARIANCE)) ** 2)


def shifted_taps(taps: np.ndarray, scale: int) -> np.ndarray:
    """A row of taps moved by (scale - 1) / 2 to the left, by linear interpolation, its end continued; not normalised.

    So every scale-th pixel of the filtered image lies at the middle of the scale pixels that it stands for.
    """
    place = np.arange(len(taps))
    return np.interp(place + (scale - 1) / 2, place, taps)


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """True convolution of (h, w, c) float32 with (k, k); the border is mirrored without the edge pixel.

    The centre of an even kernel is at index k // 2.
    """
    size = len(kernel)
    weights = _without_negligible(kernel[::-1, ::-1])  # filters correlate
    rows, columns = (np.flatnonzero(weights.any(axis)) for axis in (1, 0))
    if not rows.size:
        return np.zeros_like(image)
    left, right, before = columns[0], columns[-1] + 1, (size - 1) // 2
    border = (before, size - 1 - before)
    padded = cv2.copyMakeBorder(image, *border, *border, cv2.BORDER_REFLECT_101)
    height, width = image.shape[:2]
    total, strip = None, max(1, DIRECT_TAPS // (right - left))
    for top in range(rows[0], rows[-1] + 1, strip):
        part = weights[top : min(top + strip, rows[-1] + 1), left:right]
        window = padded[top : top + height + len(part) - 1, left : left + width + right - left - 1]
        # Pixels below and right of the image's own size see OpenCV's border; they are cut off.
        filtered = cv2.filter2D(window, -1, part, anchor=(0, 0))[:height, :width]
        total = filtered.copy() if total is None else np.add(total, filtered, out=total)
    return total


def convolve_separable(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """As convolve, with the kernel that is the product of one row of taps (k,) with itself."""
    before = (len(taps) - 1) // 2
    return cv2.sepFilter2D(
        image, -1, taps[::-1], taps[::-1], anchor=(before, before), borderType=cv2.BORDER_REFLECT_101
    )


def _grid(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2


def _normalised_exponential(distance: np.ndarray) -> np.ndarray:
    """exp(-distance / 2) over its sum; the nearest tap is 1 first, or a narrow kernel of even size would be all 0."""
    weights = np.exp((distance.min() - distance) / 2)
    return weights / weights.sum()


def _without_negligible(kernel: np.ndarray) -> np.ndarray:
    """The kernel with its smallest taps at 0, which OpenCV then passes over."""
    ordered = np.sort(np.abs(kernel), axis=None)
    negligible = np.searchsorted(ordered.cumsum(), DROPPED * ordered.sum())
    least = ordered[min(negligible, ordered.size - 1)]
    return np.where(np.abs(kernel) < least, 0, kernel)
