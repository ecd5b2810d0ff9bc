"""BSRGAN's degradation in the published manner, plain and slow: sections 6 and 7 of the data specification.

Densities are asked of SciPy tap by tap, convolutions are dense, MATLAB's resize loops over rows. It is the independent
second path of the tests and what `scripts/benchmark.py data` compares with; it imports nothing of the package.
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.stats

CODES = {'linear': 1, 'cubic': 2, 'area': 3}


# ---- kernels


def anisotropic_gaussian(size: int, theta: float, l1: float, l2: float) -> np.ndarray:
    """The density of a normal distribution, asked at each tap."""
    l1, l2 = max(l1, 1e-6), max(l2, 1e-6)
    v = np.array([[math.cos(theta), math.sin(theta)], [math.sin(theta), -math.cos(theta)]])
    covariance = v @ np.diag([l1, l2]) @ np.linalg.inv(v)
    covariance = (covariance + covariance.T) / 2
    centre = (size - 1) / 2
    kernel = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            kernel[y, x] = scipy.stats.multivariate_normal.pdf([x - centre, y - centre], mean=[0, 0], cov=covariance)
    return kernel / kernel.sum()


def isotropic_gaussian(size: int, sigma: float) -> np.ndarray:
    """MATLAB's fspecial('gaussian', size, sigma)."""
    sigma = max(sigma, 1e-6)
    centre = (size - 1) / 2
    x, y = np.meshgrid(np.arange(-centre, centre + 1), np.arange(-centre, centre + 1))
    kernel = np.exp(-(x * x + y * y) / (2 * sigma * sigma))
    kernel[kernel < np.finfo(float).eps * kernel.max()] = 0
    return kernel / kernel.sum() if kernel.sum() else kernel


def shifted(kernel: np.ndarray, scale: int) -> np.ndarray:
    """Sampled (scale - 1) / 2 further right and down, bilinearly, coordinates clamped."""
    height, width = kernel.shape
    out = np.zeros_like(kernel)
    for y in range(height):
        for x in range(width):
            fy, fx = (min(place + (scale - 1) / 2, side - 1) for place, side in ((y, height), (x, width)))
            top, left = min(int(fy), height - 2), min(int(fx), width - 2)
            dy, dx = fy - top, fx - left
            out[y, x] = (
                kernel[top, left] * (1 - dy) * (1 - dx)
                + kernel[top, left + 1] * (1 - dy) * dx
                + kernel[top + 1, left] * dy * (1 - dx)
                + kernel[top + 1, left + 1] * dy * dx
            )
    return out


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return scipy.ndimage.convolve(image, kernel[:, :, None], mode='mirror')


# ---- steps


def imresized(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's bicubic with antialiasing: rows, then columns, one product for each row and channel."""

    def cubic(t: np.ndarray) -> np.ndarray:
        t = np.abs(t)
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        return np.where(t <= 1, near, np.where(t <= 2, far, 0))

    def along_rows(source: np.ndarray) -> np.ndarray:
        side, stretch = source.shape[0], min(scale, 1)
        count = math.ceil(4 / stretch) + 2
        out = np.zeros((math.ceil(side * scale), *source.shape[1:]))
        padded = np.pad(source, ((count, count), (0, 0), (0, 0)), mode='symmetric')
        for x in range(len(out)):
            u = (x + 1) / scale + 0.5 * (1 - 1 / scale)
            first = math.floor(u - 2 / stretch)
            weights = cubic((u - first - np.arange(count)) * stretch)
            weights /= weights.sum()
            for channel in range(source.shape[2]):
                window = padded[count + first - 1 : 2 * count + first - 1, :, channel]
                out[x, :, channel] = window.T @ weights
        return out

    return along_rows(along_rows(image).transpose(1, 0, 2)).transpose(1, 0, 2)


def resized(image: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    return np.clip(cv2.resize(image, (width, height), interpolation=CODES[interpolation]), 0, 1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through OpenCV, in its order of channels."""
    pixels = np.uint8((image.clip(0, 1) * 255).round())
    _, data = cv2.imencode('.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [int(cv2.IMWRITE_JPEG_QUALITY), quality])
    return cv2.cvtColor(cv2.imdecode(data, 1), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def sharpened(image: np.ndarray, weight: float = 0.5, radius: int = 50, threshold: float = 10) -> np.ndarray:
    """Unsharp masking where the image differs enough from its blurred form."""
    radius += 1 - radius % 2
    blurred = cv2.GaussianBlur(image, (radius, radius), 0)
    residual = image - blurred
    mask = (np.abs(residual) * 255 > threshold).astype('float32')
    soft = cv2.GaussianBlur(mask, (radius, radius), 0)
    return soft * np.clip(image + weight * residual, 0, 1) + (1 - soft) * image


def poisson(image: np.ndarray, values: float, kind: str, draw: np.ndarray | None = None) -> np.ndarray:
    image = np.clip((image * 255).round(), 0, 255) / 255
    if kind == 'color':
        counts = np.random.poisson(image * values) if draw is None else draw  # noqa: NPY002 (as published)
        return np.clip(counts / values, 0, 1)
    gray = np.clip((image @ np.array([0.299, 0.587, 0.114]) * 255).round(), 0, 255) / 255
    counts = np.random.poisson(gray * values) if draw is None else draw  # noqa: NPY002
    return np.clip(image + (counts / values - gray)[:, :, None], 0, 1)


def applied(image: np.ndarray, steps: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """gt and lq after steps of {'op': class name of the step, its fields}, noise as 'draw'."""
    lq = image
    for step in steps:
        op = step['op']
        if op == 'Cut':
            image = lq = image[: step['height'], : step['width']]
        elif op == 'Sharpen':
            image = lq = sharpened(image)
        elif op == 'Halve' and step['interpolation'] == 'matlab':
            lq = np.clip(imresized(lq, 0.5), 0, 1)
        elif op == 'Halve':
            lq = resized(lq, lq.shape[1] // 2, lq.shape[0] // 2, step['interpolation'])
        elif op in ('Resize', 'ResizeToLq'):
            lq = resized(lq, step['width'], step['height'], step['interpolation'])
        elif op == 'ShiftDown':
            kernel = shifted(isotropic_gaussian(25, step['sigma']), step['factor'])
            lq = convolved(lq, kernel / kernel.sum())[:: step['factor'], :: step['factor']]
            lq = np.clip(lq, 0, 1)
        elif op == 'IsotropicBlur':
            lq = convolved(lq, isotropic_gaussian(step['size'], step['sigma']))
        elif op == 'AnisotropicBlur':
            lq = convolved(lq, anisotropic_gaussian(step['size'], step['theta'], step['variance1'], step['variance2']))
        elif op == 'Noise':
            lq = np.clip(lq + step['draw'], 0, 1)
        elif op == 'Speckle':
            lq = np.clip(lq + lq * step['draw'], 0, 1)
        elif op == 'Poisson':
            lq = poisson(lq, step['values'], step['kind'], step['draw'])
        elif op in ('Jpeg', 'FinalJpeg'):
            lq = jpeg(lq, step['quality'])
        elif op == 'Patch':
            top, left, size, scale = (step[key] for key in ('top', 'left', 'size', 'scale'))
            lq = lq[top : top + size, left : left + size]
            image = image[top * scale : (top + size) * scale, left * scale : (left + size) * scale]
        else:
            raise ValueError(f'unknown step {op}')
    return image, lq


# ---- drawing and applying, as the published functions do, from the global generators


@dataclass(frozen=True)
class Strength:
    """What the full and the light form differ in; `sizes` are those of an anisotropic and an isotropic kernel."""

    divisor: int = 1
    light_sizes: bool = False
    noise: tuple[int, int] = (2, 25)
    jpeg: tuple[int, int] = (30, 95)

    def sizes(self) -> tuple[int, int]:
        if self.light_sizes:
            return random.randint(2, 11) + 3, random.randint(2, 4) + 3
        size = 2 * random.randint(2, 11) + 3
        return size, size


FULL, LIGHT = Strength(), Strength(4, True, (2, 8), (80, 95))


def blurred(image: np.ndarray, scale: int, strength: Strength = FULL) -> np.ndarray:
    anisotropic, isotropic = strength.sizes()
    if random.random() < 0.5:
        l1, l2 = ((4 + scale) / strength.divisor * random.random() for _ in range(2))
        kernel = anisotropic_gaussian(anisotropic, math.pi * random.random(), l1, l2)
    else:
        kernel = isotropic_gaussian(isotropic, (2 + 0.2 * scale) / strength.divisor * random.random())
    return convolved(image, kernel)


def gaussian_noise(shape: tuple[int, int, int], levels: tuple[int, int]) -> np.ndarray:
    level, choice = random.randint(*levels), np.random.rand()  # noqa: NPY002
    if choice > 0.6:
        return np.random.normal(0, level / 255, shape).astype(np.float32)  # noqa: NPY002
    if choice < 0.4:
        return np.random.normal(0, level / 255, (*shape[:2], 1)).astype(np.float32)  # noqa: NPY002
    strongest = levels[1] / 255
    spread, axes = np.diag(np.random.rand(3)), scipy.linalg.orth(np.random.rand(3, 3))  # noqa: NPY002
    covariance = np.abs(strongest**2 * axes.T @ spread @ axes)
    return np.random.multivariate_normal([0, 0, 0], covariance, shape[:2]).astype(np.float32)  # noqa: NPY002


def any_code() -> str:
    return random.choice(['linear', 'cubic', 'area'])


def degraded(image: np.ndarray, scale: int = 4, strength: Strength = FULL) -> np.ndarray:
    """The lq of the full or the light form; draws from `random` and NumPy's global generator."""
    height, width = image.shape[:2]
    image = image[: height - height % scale, : width - width % scale]
    if scale == 4 and random.random() < 0.25:
        if np.random.rand() < 0.5:  # noqa: NPY002
            image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=CODES[any_code()])
        else:
            image = imresized(image, 0.5)
        image, scale = np.clip(image, 0, 1), 2
    order = random.sample(range(7), 7)
    down, last = order.index(2), order.index(3)
    if down > last:
        order[down], order[last] = order[last], order[down]
    for operation in order:
        if operation in (0, 1):
            image = blurred(image, scale, strength)
        elif operation == 2:
            final = image.shape[1] // scale, image.shape[0] // scale
            if random.random() < 0.75:
                factor = random.uniform(1, 2 * scale)
                image = resized(image, int(image.shape[1] / factor), int(image.shape[0] / factor), any_code())
            else:
                kernel = shifted(isotropic_gaussian(25, random.uniform(0.1, 0.6 * scale)), scale)
                image = np.clip(convolved(image, kernel / kernel.sum())[::scale, ::scale], 0, 1)
        elif operation == 3:
            image = resized(image, *final, any_code())
        elif operation == 4:
            image = np.clip(image + gaussian_noise(image.shape, strength.noise), 0, 1)
        elif operation == 5 and random.random() < 0.9:
            image = jpeg(image, random.randint(*strength.jpeg))
    return jpeg(image, random.randint(*strength.jpeg))


def degraded_light(image: np.ndarray, scale: int = 4) -> np.ndarray:
    """The lq of the light form."""
    return degraded(image, scale, LIGHT)


def degraded_plus(image: np.ndarray, scale: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The sharpened gt and the lq of the plus form."""
    height, width = image.shape[:2]
    gt = image = sharpened(image[: height - height % scale, : width - width % scale])
    if random.random() < 0.5:
        order = random.sample(range(13), 13)
    else:
        order = list(range(13))
        order[2:6], order[9:13] = random.sample(order[2:6], 4), random.sample(order[9:13], 4)
    for operation in order:
        if operation in (0, 7):
            image = blurred(image, scale)
        elif operation in (1, 8):
            choice = np.random.rand()  # noqa: NPY002
            factor = 1.0
            if choice > 0.8:
                factor = random.uniform(1, 2)
            elif choice < 0.7:
                factor = random.uniform(0.5 / scale, 1)
            image = resized(image, int(factor * image.shape[1]), int(factor * image.shape[0]), any_code())
        elif operation in (2, 9):
            image = np.clip(image + gaussian_noise(image.shape, FULL.noise), 0, 1)
        elif operation in (3, 10) and random.random() < 0.1:
            values = 10 ** (2 * random.random() + 2)
            image = poisson(image, values, 'color' if random.random() < 0.5 else 'gray')
        elif operation in (4, 11) and random.random() < 0.1:
            image = np.clip(image + image * gaussian_noise(image.shape, FULL.noise), 0, 1)
        elif operation == 6:
            image = jpeg(image, random.randint(*FULL.jpeg))
    image = resized(image, gt.shape[1] // scale, gt.shape[0] // scale, any_code())
    return gt, jpeg(image, random.randint(*FULL.jpeg))
