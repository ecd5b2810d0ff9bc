"""Structural similarity as data.md describes the tensor form: dense 11x11 windows in float64.

Nothing of basicsr is imported: it is the second path of tests, and what scripts/benchmark.py compares with.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def ssim(sr: Tensor, gt: Tensor) -> Tensor:
    """Two (b, c, h, w) in [0, 255] -> (b,): the mean over whole windows and channels."""
    line = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    line = torch.tensor([value / sum(line) for value in line], dtype=torch.float64)
    channels = sr.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 11, 11)

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window, groups=channels)

    sr, gt = sr.to(torch.float64), gt.to(torch.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    m1, m2 = mean(sr), mean(gt)
    s1, s2, s12 = mean(sr * sr) - m1 * m1, mean(gt * gt) - m2 * m2, mean(sr * gt) - m1 * m2
    score = ((2 * m1 * m2 + c1) * (2 * s12 + c2)) / ((m1 * m1 + m2 * m2 + c1) * (s1 + s2 + c2))
    return score.mean((1, 2, 3))
