"""The pieces of the Real-ESRGAN degradation as data.md 4, 5 and 10 describe the published form: plain and slow.

Dense 51x51 sharpening, a DCT by contraction of four axes with modules built in every call, loops over samples on the
host. Nothing of basicsr is imported: it is the second path of tests, and what scripts/benchmark.py compares with.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special
from torch import Tensor, nn

# ---- Kernels (data.md 4) --------------------------------------------------------------------------------------------


def sigma_matrix(sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """R diag(sx^2, sy^2) R^T."""
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    return rotation @ np.array([[sigma_x**2, 0], [0, sigma_y**2]]) @ rotation.T


def taps(size: int) -> np.ndarray:
    """(size, size, 2): x and y of each tap."""
    axis = np.arange(size) - (size - 1) / 2
    return np.stack(np.meshgrid(axis, axis), -1)


def quadratic_form(size: int, covariance: np.ndarray) -> np.ndarray:
    """p^T Sigma^-1 p for each tap p = (x, y)."""
    points = taps(size)
    return np.sum(np.dot(points, np.linalg.inv(covariance)) * points, 2)


def bell(family: str, form: np.ndarray, beta: float) -> np.ndarray:
    """The kernel of a family ('gaussian', 'generalized', 'plateau') from its quadratic form; its sum is 1."""
    if family == 'gaussian':
        kernel = np.exp(-form / 2)
    elif family == 'generalized':
        kernel = np.exp(-(form**beta) / 2)
    else:
        kernel = 1 / (form**beta + 1)
    return kernel / kernel.sum()


def bivariate_kernel(
    family: str, size: int, sigma_x: float, sigma_y: float, theta: float, beta: float = 1, isotropic: bool = True
) -> np.ndarray:
    """Isotropic kernels ignore sigma_y and theta."""
    covariance = sigma_x**2 * np.eye(2) if isotropic else sigma_matrix(sigma_x, sigma_y, theta)
    return bell(family, quadratic_form(size, covariance), beta)


def sinc_kernel(cutoff: float, size: int, pad_to: int = 0) -> np.ndarray:
    """w J1(w r) / (2 pi r), w^2 / (4 pi) in the centre; its sum is 1; zero-padded to `pad_to`."""
    x, y = taps(size).transpose(2, 0, 1)
    r = np.sqrt(x**2 + y**2)
    with np.errstate(invalid='ignore'):  # 0 / 0 in the centre
        kernel = cutoff * special.j1(cutoff * r) / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    kernel /= kernel.sum()
    return padded(kernel, pad_to) if pad_to > size else kernel


def padded(kernel: np.ndarray, side: int = 21) -> np.ndarray:
    return np.pad(kernel, (side - len(kernel)) // 2)


def mixed_kernel(
    kinds, probabilities, size, sigma_range, betag_range, betap_range, random, rng, rotation_range=(-math.pi, math.pi)
) -> np.ndarray:
    """data.md 4.2: the kind from `random`, numbers from `rng`, in the published order."""
    kind = random.choices(kinds, probabilities)[0]
    sigma_x = sigma_y = rng.uniform(*sigma_range)
    theta, beta = 0.0, 1.0
    if kind.endswith('aniso'):
        sigma_y = rng.uniform(*sigma_range)
        theta = rng.uniform(*rotation_range)
    family = {'iso': 'gaussian', 'aniso': 'gaussian'}.get(kind, kind.rpartition('_')[0])
    if family != 'gaussian':
        low, high = betag_range if family == 'generalized' else betap_range
        beta = rng.uniform(low, 1) if rng.uniform() < 0.5 else rng.uniform(1, high)
    return bivariate_kernel(family, size, sigma_x, sigma_y, theta, beta, isotropic=not kind.endswith('aniso'))


# ---- Filters (data.md 5) --------------------------------------------------------------------------------------------


def filter2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlation with one kernel (k, k) or (1, k, k), or a kernel for each sample (b, k, k); reflected border."""
    kernel = kernel if kernel.ndim == 3 else kernel[None]
    b, c, h, w = image.shape
    k = kernel.shape[-1]
    image = F.pad(image, (k // 2,) * 4, mode='reflect').contiguous()
    height, width = image.shape[-2:]
    if len(kernel) == 1:
        return F.conv2d(image.view(b * c, 1, height, width), kernel.view(1, 1, k, k)).view(b, c, h, w)
    kernel = kernel.view(b, 1, k, k).repeat(1, c, 1, 1).view(b * c, 1, k, k)
    return F.conv2d(image.view(1, b * c, height, width), kernel, groups=b * c).view(b, c, h, w)


def usm_kernel() -> Tensor:
    """The outer product of a Gaussian of 51 taps, sigma 8, with itself."""
    sigma = 0.3 * ((51 - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-((np.arange(51) - 25) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    return torch.tensor(np.outer(taps, taps), dtype=torch.float32)


def usm_sharpened(image: Tensor, weight: float = 0.5, threshold: float = 10) -> Tensor:
    """Two dense convolutions with 51x51 taps."""
    kernel = usm_kernel()
    residual = image - filter2d(image, kernel)
    mask = filter2d((residual.abs() * 255 > threshold).float(), kernel)
    return mask * torch.clip(image + weight * residual, 0, 1) + (1 - mask) * image


# ---- Noise (data.md 5) ----------------------------------------------------------------------------------------------


def gaussian_noise(image: Tensor, sigma: Tensor, gray: Tensor, color_draw: Tensor, gray_draw: Tensor | None) -> Tensor:
    """Noise of (b, 3, h, w) to be added; sigma (b,) on the scale 0..255, gray (b,) flags, draws standard normal."""
    b, _, h, w = image.shape
    sigma, gray = sigma.view(b, 1, 1, 1), gray.view(b, 1, 1, 1).float()
    noise = color_draw * sigma / 255
    if gray.sum() > 0:
        gray_noise = gray_draw.view(-1, 1, h, w).expand(b, 1, h, w) * sigma / 255
        noise = noise * (1 - gray) + gray_noise.expand(b, 3, h, w) * gray
    return noise


def eight_bit(image: Tensor) -> Tensor:
    return torch.clamp((image * 255).round(), 0, 255) / 255


def gray_of(image: Tensor) -> Tensor:
    r, g, b = image.unbind(1)
    return (0.2989 * r + 0.587 * g + 0.114 * b)[:, None]


def distinct_values(image: Tensor) -> Tensor:
    """2^ceil(log2(n)) for each sample of n distinct values, found on the host: (b, 1, 1, 1)."""
    counts = [len(torch.unique(sample)) for sample in image]
    return image.new_tensor([2 ** math.ceil(math.log2(count)) for count in counts]).view(-1, 1, 1, 1)


def poisson_rates(image: Tensor, gray: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rates of color counts (b, 3, h, w) and their values v (b, 1, 1, 1), then those of gray counts (b, 1, h, w).

    What is gray is None if flags (b,) are given and none is set.
    """
    color = eight_bit(image)
    values = distinct_values(color)
    if gray is not None and not gray.sum() > 0:
        return color * values, values, None, None
    luma = eight_bit(gray_of(image))
    gray_values = distinct_values(luma)
    return color * values, values, luma * gray_values, gray_values


def poisson_noise(
    rates: tuple, scale: Tensor, gray: Tensor, color_counts: Tensor, gray_counts: Tensor | None
) -> Tensor:
    """Noise of (b, 3, h, w) to be added; scale (b,), gray (b,) flags, counts drawn with `poisson_rates`."""
    color, values, luma, gray_values = rates
    b = len(color)
    gray = gray.view(b, 1, 1, 1).float()
    noise = color_counts / values - color / values  # the image: v is a power of 2
    if gray.sum() > 0:
        gray_noise = (gray_counts / gray_values - luma / gray_values).expand(noise.shape)
        noise = noise * (1 - gray) + gray_noise * gray
    return noise * scale.view(b, 1, 1, 1)


def add_noise(image: Tensor, noise: Tensor, clip: bool = True, rounds: bool = False) -> Tensor:
    out = image + noise
    if clip and rounds:
        return eight_bit(out)
    if clip:
        return torch.clamp(out, 0, 1)
    return (out * 255).round() / 255 if rounds else out


# ---- JPEG on tensors (data.md 5) ------------------------------------------------------------------------------------

LUMINANCE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
).T
CHROMA = torch.full((8, 8), 99.0)
CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])


def quality_factor(quality: float) -> float:
    return (5000 / quality if quality < 50 else 200 - 2 * quality) / 100


class RGBToYCbCr(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(
            torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).T
        )
        self.shift = nn.Parameter(torch.tensor([0.0, 128.0, 128.0]))

    def forward(self, image):
        return torch.tensordot(image.permute(0, 2, 3, 1), self.matrix, dims=1) + self.shift


class YCbCrToRGB(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]]).T)
        self.shift = nn.Parameter(torch.tensor([0.0, -128.0, -128.0]))

    def forward(self, image):
        return torch.tensordot(image + self.shift, self.matrix, dims=1).permute(0, 3, 1, 2)


def cosines() -> Tensor:
    """[x, y, u, v] -> cos((2x + 1) u pi / 16) cos((2y + 1) v pi / 16), one entry at a time."""
    table = np.zeros((8, 8, 8, 8), np.float32)
    for x, y, u, v in np.ndindex(8, 8, 8, 8):
        table[x, y, u, v] = math.cos((2 * x + 1) * u * math.pi / 16) * math.cos((2 * y + 1) * v * math.pi / 16)
    return torch.from_numpy(table)


COSINES = cosines()
ALPHA = torch.tensor([1 / math.sqrt(2)] + [1.0] * 7)


class DCT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tensor = nn.Parameter(COSINES.clone())
        self.scale = nn.Parameter(torch.outer(ALPHA, ALPHA) * 0.25)

    def forward(self, blocks):
        return self.scale * torch.tensordot(blocks - 128, self.tensor, dims=2)


class InverseDCT(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.outer(ALPHA, ALPHA))
        self.tensor = nn.Parameter(COSINES.permute(2, 3, 0, 1).clone())

    def forward(self, coefficients):
        return 0.25 * torch.tensordot(coefficients * self.alpha, self.tensor, dims=2) + 128


def split(plane: Tensor) -> Tensor:
    """(b, h, w) -> (b, blocks, 8, 8)."""
    b, h, w = plane.shape
    return plane.view(b, h // 8, 8, w // 8, 8).permute(0, 1, 3, 2, 4).contiguous().view(b, -1, 8, 8)


def merge(blocks: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `split`."""
    return blocks.view(len(blocks), h // 8, w // 8, 8, 8).permute(0, 1, 3, 2, 4).contiguous().view(-1, h, w)


def soft_round(x: Tensor) -> Tensor:
    return x.round() + (x - x.round()) ** 3


class Codec(nn.Module):
    """Everything of one call: (b, 3, h, w) in [0, 1] and a factor for each sample."""

    def __init__(self, differentiable: bool):
        super().__init__()
        self.rounding = soft_round if differentiable else torch.round
        self.to_ycbcr, self.to_rgb, self.dct, self.inverse = RGBToYCbCr(), YCbCrToRGB(), DCT(), InverseDCT()
        self.luminance, self.chroma = nn.Parameter(LUMINANCE.clone()), nn.Parameter(CHROMA.clone())

    def forward(self, image: Tensor, factors: Tensor) -> Tensor:
        b, _, h, w = image.shape
        height, width = math.ceil(h / 16) * 16, math.ceil(w / 16) * 16
        image = F.pad(image, (0, width - w, 0, height - h))
        y, cb, cr = self.to_ycbcr(image * 255).unbind(-1)
        cb, cr = (F.avg_pool2d(plane[:, None], 2)[:, 0] for plane in (cb, cr))
        planes = []
        for plane, table in ((y, self.luminance), (cb, self.chroma), (cr, self.chroma)):
            table = table.expand(b, 1, 8, 8) * factors.view(b, 1, 1, 1)
            coefficients = self.rounding(self.dct(split(plane)).float() / table) * table
            planes.append(merge(self.inverse(coefficients), *plane.shape[1:]))
        y, cb, cr = planes
        cb, cr = (plane.repeat_interleave(2, 1).repeat_interleave(2, 2) for plane in (cb, cr))
        image = self.to_rgb(torch.stack([y, cb, cr], -1))
        return image.clamp(0, 255)[..., :h, :w] / 255


def diff_jpeg(image: Tensor, quality: Tensor | float, differentiable: bool = False) -> Tensor:
    """JPEG of each sample at its quality; the modules are made anew, and each quality is read by the host."""
    codec = Codec(differentiable).requires_grad_(False)
    qualities = [quality] * len(image) if isinstance(quality, float | int) else [float(q) for q in quality]
    return codec(image, image.new_tensor([quality_factor(q) for q in qualities]))
