"""The steps that BSRGAN degrades an image by: each is pure data, and what it does depends on that data alone."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from basicsr.data.degradations.bsrgan_kernels import (
    anisotropic_gaussian,
    convolve,
    convolve_separable,
    gaussian_taps,
    shifted_taps,
)
from basicsr.data.degradations.filters import usm_sharp
from basicsr.data.degradations.resize import imresize
from basicsr.data.transforms import crop
from basicsr.utils.image import jpeg_round_trip, scaled_to_float

INTERPOLATIONS = {'linear': cv2.INTER_LINEAR, 'cubic': cv2.INTER_CUBIC, 'area': cv2.INTER_AREA}
SHIFTED_SIZE = 25  # taps a side of the kernel that ShiftDown filters with
LUMA = (0.299, 0.587, 0.114)

Interpolation = Literal['linear', 'cubic', 'area']


@dataclass(frozen=True)
class Cut:
    """gt without the last rows and columns, that the scale does not divide."""

    height: int
    width: int

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return image[: self.height, : self.width]


@dataclass(frozen=True)
class Sharpen:
    """Unsharp masking, of gt too."""

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return usm_sharp(image)


@dataclass(frozen=True)
class Halve:
    """To half the size, by MATLAB's or OpenCV's interpolation."""

    interpolation: Literal['matlab', 'linear', 'cubic', 'area']

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        if self.interpolation == 'matlab':
            return np.clip(imresize(image, 0.5), 0, 1)
        return resized(image, image.shape[1] // 2, image.shape[0] // 2, self.interpolation)


@dataclass(frozen=True)
class Resize:
    width: int
    height: int
    interpolation: Interpolation

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return resized(image, self.width, self.height, self.interpolation)


@dataclass(frozen=True)
class ResizeToLq(Resize):
    """The resize that ends at the size of lq, whatever was done before."""


@dataclass(frozen=True)
class ShiftDown:
    """A Gaussian, moved so that pixels stay in place, then every factor-th pixel."""

    factor: int
    sigma: float

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        taps = shifted_taps(gaussian_taps(SHIFTED_SIZE, self.sigma), self.factor)
        small = convolve_separable(image, taps / taps.sum())[:: self.factor, :: self.factor]
        return np.clip(small, 0, 1)


@dataclass(frozen=True)
class IsotropicBlur:
    size: int
    sigma: float

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return convolve_separable(image, gaussian_taps(self.size, self.sigma))


@dataclass(frozen=True)
class AnisotropicBlur:
    size: int
    theta: float
    variance1: float
    variance2: float

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return convolve(image, anisotropic_gaussian(self.size, self.theta, self.variance1, self.variance2))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise: of its own for each channel, the same for all, or correlated between them.

    level: standard deviation on the scale 0..255; covariance: 3x3, of channels in [0, 1], if it is correlated.
    """

    kind: Literal['color', 'gray', 'correlated']
    level: float
    seed: int
    covariance: tuple[tuple[float, ...], ...] = ()

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return with_noise(image, self.draw(*image.shape[:2]))

    def draw(self, height: int, width: int) -> np.ndarray:
        """The noise (height, width, 3), or (height, width, 1) if it is gray, float32."""
        rng = np.random.default_rng(self.seed)
        noise = rng.standard_normal((height, width, 1 if self.kind == 'gray' else 3), dtype=np.float32)
        if self.kind != 'correlated':
            noise *= np.float32(self.level / 255)
            return noise
        # NumPy's multivariate_normal, which the published code calls, does the same: the covariance made by BSRGAN
        # can have negative eigenvalues, which count by their size.
        _, spread, axes = np.linalg.svd(self.covariance)
        return cv2.transform(noise, (np.sqrt(spread)[:, None] * axes).T)


@dataclass(frozen=True)
class Speckle(Noise):
    """The same noise times the image."""

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return with_speckle(image, self.draw(*image.shape[:2]))


@dataclass(frozen=True)
class Poisson:
    """Shot noise of `values` counts at 1, of each channel or of the luma."""

    values: float
    kind: Literal['color', 'gray']
    seed: int

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        image = eight_bits(image)
        exact = image if self.kind == 'color' else eight_bits(image @ np.float32(LUMA))
        counts = np.random.default_rng(self.seed).poisson(exact * self.values)
        return with_poisson(image, counts, self.values)


@dataclass(frozen=True)
class Jpeg:
    quality: int

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return scaled_to_float(jpeg_round_trip(to_bytes(image), self.quality))


@dataclass(frozen=True)
class FinalJpeg(Jpeg):
    """The JPEG that every image ends with."""


@dataclass(frozen=True)
class Patch:
    """A square of lq and of gt; offsets and side in pixels of lq."""

    top: int
    left: int
    size: int
    scale: int

    def applied_to(self, image: np.ndarray) -> np.ndarray:
        return crop(image, self.top, self.left, self.size)

    def applied_to_gt(self, image: np.ndarray) -> np.ndarray:
        return crop(image, self.top * self.scale, self.left * self.scale, self.size * self.scale)


Step = (
    Cut | Sharpen | Halve | Resize | ShiftDown | IsotropicBlur | AnisotropicBlur | Noise | Poisson | Jpeg | Patch
)  # ResizeToLq, Speckle and FinalJpeg are kinds of these


def resized(image: np.ndarray, width: int, height: int, interpolation: Interpolation) -> np.ndarray:
    """OpenCV's resize, clipped to [0, 1]."""
    image = cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])
    return np.clip(image, 0, 1, out=image)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8, clipped and rounded half to even."""
    scaled = image * np.float32(255)
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


def eight_bits(image: np.ndarray) -> np.ndarray:
    """The image, float32, as a file with 8 bits would hold it."""
    return scaled_to_float(to_bytes(image))


def with_noise(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """image + noise, clipped to [0, 1]."""
    noisy = image + noise
    return np.clip(noisy, 0, 1, out=noisy)


def with_speckle(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """image + image * noise, clipped to [0, 1]."""
    return with_noise(image, image * noise)


def with_poisson(image: np.ndarray, counts: np.ndarray, values: float) -> np.ndarray:
    """The image made of counts (h, w, 3), or the luma's noise, of counts (h, w), added to it; clipped to [0, 1].

    The image has 8 bits.
    """
    shot = (counts / values).astype(np.float32)
    if counts.ndim == 3:
        return np.clip(shot, 0, 1, out=shot)
    gray = eight_bits(image @ np.float32(LUMA))
    return with_noise(image, (shot - gray)[..., None])
