"""Structural similarity as core.md 11.4 describes the array form: OpenCV's dense 11x11 filter, channel by channel.

Nothing of basicsr is imported: it is what scripts/benchmark.py compares with.
"""

import cv2
import numpy as np


def ssim_plane(sr: np.ndarray, gt: np.ndarray) -> float:
    """Of two (h, w) in [0, 255]."""
    sr, gt = sr.astype(np.float64), gt.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    line = cv2.getGaussianKernel(11, 1.5)
    window = np.outer(line, line)

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.filter2D(image, -1, window)[5:-5, 5:-5]

    m1, m2 = mean(sr), mean(gt)
    s1, s2, s12 = mean(sr**2) - m1**2, mean(gt**2) - m2**2, mean(sr * gt) - m1 * m2
    return (((2 * m1 * m2 + c1) * (2 * s12 + c2)) / ((m1**2 + m2**2 + c1) * (s1 + s2 + c2))).mean()


def ssim(sr: np.ndarray, gt: np.ndarray) -> float:
    """Of two (h, w, c) in [0, 255]: the mean of the channels."""
    return float(np.mean([ssim_plane(sr[..., channel], gt[..., channel]) for channel in range(sr.shape[2])]))
