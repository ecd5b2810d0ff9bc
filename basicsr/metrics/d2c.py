"""PSNR and SSIM with the conventions of the published D2C-SR code, which are not those of other papers (d2c.md 3.4)."""

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.metrics.psnr_ssim import SSIM_C1, SSIM_C2, SSIM_WINDOW
from basicsr.utils.registry import METRIC_REGISTRY

Order = Literal['published', 'rgb']

WEIGHTS = 65.738 / 256, 129.057 / 256, 25.064 / 256  # of BT.601's luma; meant for red, green and blue


@METRIC_REGISTRY.register()
def psnr_d2c(sr: Tensor, gt: Tensor, crop_border: int, order: Order = 'published') -> Tensor:
    """Peak signal-to-noise ratio of D2C-SR's tables in dB, one per image; equal images give inf.

    Args:
        crop_border: pixels left out at each side; published: the scale.
        order: 'published' gives blue the weight of red and red that of blue, as the published code does, whose channels
            are in the order B, G, R; 'rgb' puts the weights where they belong.
    Shape: two (b, 3, h, w), RGB in [0, 1] (clamped) -> (b,) float64. Published code measures images that are not
    rounded to 8 bits; here that is the caller's choice, and test.py measures rounded ones.
    """
    sr, gt = _weighed('psnr_d2c', sr.clamp(0, 1), gt.clamp(0, 1), order)
    if crop_border < 0 or min(sr.shape[-2:]) <= 2 * crop_border:
        raise ValueError(f'psnr_d2c cannot leave out a border of {crop_border} of images of {tuple(sr.shape[-2:])}')
    inside = slice(crop_border, -crop_border or None)
    return -10 * (sr - gt)[:, inside, inside].square().mean((1, 2)).log10()


@METRIC_REGISTRY.register()
def ssim_d2c(sr: Tensor, gt: Tensor, order: Order = 'published') -> Tensor:
    """Structural similarity of D2C-SR's tables, one per image: of the whole image with zeros around it, not clamped.

    `order`, shapes and rounding as for `psnr_d2c`. Computed on the host.
    """
    pairs = zip(*(image.cpu().numpy() for image in _weighed('ssim_d2c', sr, gt, order)), strict=True)
    return torch.tensor([_similarity(x, y) for x, y in pairs], dtype=torch.float64, device=sr.device)


def _weighed(name: str, sr: Tensor, gt: Tensor, order: Order) -> list[Tensor]:
    """Both images as (b, h, w) float64: the sum of their weighted channels, without the usual offset of 16."""
    if sr.shape != gt.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise ValueError(
            f'{name} needs two (b, 3, h, w) of one size, got sr {tuple(sr.shape)} and gt {tuple(gt.shape)}'
        )
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, device=sr.device)
    if order == 'published':
        weights = weights.flip(0)
    return [torch.einsum('bchw,c->bhw', image.double(), weights) for image in (sr, gt)]


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y, squares, product = (_windowed(z) for z in (x, y, x * x + y * y, x * y))
    power, cross = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    structure = (2 * (product - cross) + SSIM_C2) / (squares - power + SSIM_C2)
    return float(np.mean(structure * (2 * cross + SSIM_C1) / (power + SSIM_C1)))


def _windowed(plane: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(plane, cv2.CV_64F, SSIM_WINDOW, SSIM_WINDOW, borderType=cv2.BORDER_CONSTANT)
