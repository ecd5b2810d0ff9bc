"""JPEG on a batch of tensors: what the second-order degradation (Real-ESRGAN, arXiv:2107.10833) compresses with.

Not equal to libjpeg: steps are not rounded to integers, and color is subsampled by means.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BEST_QUALITY = 99.99  # 100 would divide by steps of 0; S3Diff draws up to there
TO_LUMA = (0.299, 0.587, 0.114)
TO_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # Cb, Cr
FROM_CHROMA = ((0.0, 1.402), (-0.344136, -0.714136), (1.772, 0.0))  # R, G, B; luma is added to each

# The luminance steps of the standard's annex K as published: rows are columns there.
LUMA_STEPS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).T
CHROMA_STEPS = np.full((8, 8), 99)
CHROMA_STEPS[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


class DiffJPEG(nn.Module):
    """Compressed and restored images: (b, 3, h, w) in [0, 1] -> the same, any h and w.

    An image is handled in squares of 16 pixels: one matrix from the left and one from the right take a square's luma
    to the DCT of its four blocks, and its color, averaged over 2x2 pixels, to that of one block.

    Args:
        differentiable: round by `round(x) + (x - round(x))**3`, which has a gradient.
    """

    def __init__(self, differentiable: bool = False):
        super().__init__()
        self.differentiable = differentiable
        dct = dct_matrix()
        pairs = np.kron(np.eye(8), [1, 1])  # (8, 16): sums of two neighbours
        for name, table in {
            'to_luma': 255 * np.array([TO_LUMA]),
            'to_chroma': 255 * np.array(TO_CHROMA),
            'from_chroma': np.array(FROM_CHROMA) / 255,
            'luma_dct': np.kron(np.eye(2), dct),
            'chroma_dct': dct @ pairs / 2,
            'chroma_inverse': dct @ pairs,
            'luma_steps': LUMA_STEPS,
            'chroma_steps': CHROMA_STEPS,
        }.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor, quality: Tensor | float) -> Tensor:
        """Compress each sample at its quality, (b,), or all at one; qualities count as within 1..99.99 (BEST_QUALITY).

        Neither argument is written to, and nothing waits for the device.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f'DiffJPEG needs images (b, 3, h, w), got {tuple(image.shape)}')
        h, w = image.shape[-2:]
        padded = F.pad(image, (0, -w % 16, 0, -h % 16)) if h % 16 or w % 16 else image
        quality = quality if isinstance(quality, Tensor) else image.new_full((), quality)
        factor = quality_factor(quality).expand(len(image))
        luma = product(self.to_luma, padded).sub_(128)
        luma = self._quantized(transformed(luma, self.luma_dct), self.luma_steps, factor)
        luma = transformed(luma, self.luma_dct.T).mul_(1 / 255).add_(128 / 255)
        chroma = product(self.to_chroma, transformed(padded, self.chroma_dct))
        chroma = self._quantized(chroma, self.chroma_steps, factor)
        chroma = transformed(product(self.from_chroma, chroma), self.chroma_inverse.T)
        return chroma.add_(luma).clamp_(0, 1)[..., :h, :w].contiguous()

    def _quantized(self, coefficients: Tensor, steps: Tensor, factor: Tensor) -> Tensor:
        """Coefficients (b, c, h, w) rounded to multiples of the steps (8, 8) of their block times the factor (b,)."""
        b, _, _, w = coefficients.shape
        steps = (steps * factor.view(b, 1, 1)).repeat(1, 1, w // 8)[:, None]
        levels = coefficients.view(b, -1, 8, w) / steps
        rounded = levels.round()
        if self.differentiable:
            rounded = rounded + (levels - rounded) ** 3
        return (rounded * steps).view(coefficients.shape)


def quality_factor(quality: Tensor) -> Tensor:
    """What the standard's steps are multiplied by at a quality, which counts as at least 1 and at most BEST_QUALITY."""
    quality = quality.clamp(1, BEST_QUALITY)
    return torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100


def dct_matrix() -> np.ndarray:
    """The orthonormal DCT-II of 8 values, (8, 8): row k is its k-th cosine."""
    k, n = np.mgrid[:8, :8]
    matrix = np.cos((2 * n + 1) * k * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def product(matrix: Tensor, image: Tensor) -> Tensor:
    """The matrix (out, c) applied to the channels of (b, c, h, w)."""
    return (matrix @ image.reshape(*image.shape[:2], -1)).view(len(image), -1, *image.shape[2:])


def transformed(image: Tensor, matrix: Tensor) -> Tensor:
    """`matrix @ square @ matrix.T` for each square of (b, c, h, w) that has as many columns as the matrix (m, n)."""
    m, n = matrix.shape
    b, c, h, w = image.shape
    if m > n:  # what enlarges comes second, so that it has less to work on
        image = (image.reshape(-1, n) @ matrix.T).view(b, c, h, w // n * m)
    image = (matrix @ image.reshape(b, c, h // n, n, -1)).view(b, c, h // n * m, -1)
    return image if m > n else (image.view(-1, n) @ matrix.T).view(b, c, h // n * m, w // n * m)
