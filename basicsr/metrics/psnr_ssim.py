"""PSNR and SSIM with the conventions of super-resolution tables: cropped border, BT.601 luma, float64."""

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.utils.color import luma
from basicsr.utils.registry import METRIC_REGISTRY

# SSIM (Wang et al., 2004): an 11-tap Gaussian of sigma 1.5 and the two constants for values in [0, 1].
SSIM_WINDOW = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
SSIM_WINDOW /= SSIM_WINDOW.sum()
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


@METRIC_REGISTRY.register()
@METRIC_REGISTRY.register('calculate_psnr')
def psnr(sr: Tensor, gt: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Peak signal-to-noise ratio in dB, one per image; equal images give inf.

    Args:
        crop_border: pixels left out at each side.
        test_y_channel: compare BT.601 luma, not rounded.
    Shape: two (b, c, h, w) in [0, 1] -> (b,) float64. The images are taken as they are: 8-bit rounding is the caller's.
    """
    return -10 * _squared_error('psnr', sr, gt, crop_border, test_y_channel).log10()


@METRIC_REGISTRY.register('calculate_psnr_pt')
def psnr_bounded(sr: Tensor, gt: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """As `psnr`, with the 1e-8 that BasicSR's tensor version adds to the squared error: at most 80 dB."""
    return -10 * (_squared_error('psnr', sr, gt, crop_border, test_y_channel) + 1e-8).log10()


@METRIC_REGISTRY.register()
@METRIC_REGISTRY.register('calculate_ssim')
@METRIC_REGISTRY.register('calculate_ssim_pt')
def ssim(sr: Tensor, gt: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Structural similarity (Wang et al., 2004) over whole windows, mean of the channels, one value per image.

    Arguments and shapes as for `psnr`; at least 11 pixels a side must remain. Computed on the host.
    """
    sr, gt = _compared_pixels('ssim', sr, gt, crop_border, test_y_channel)
    if min(sr.shape[-2:]) < len(SSIM_WINDOW):
        raise ValueError(
            f'ssim needs at least {len(SSIM_WINDOW)}x{len(SSIM_WINDOW)} pixels inside the border, '
            f'got {tuple(sr.shape[-2:])}'
        )
    planes = zip(sr.flatten(0, 1).cpu().numpy(), gt.flatten(0, 1).cpu().numpy(), strict=True)
    scores = torch.tensor([_plane_ssim(x, y) for x, y in planes], dtype=torch.float64, device=sr.device)
    return scores.view(sr.shape[:2]).mean(1)


def _plane_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of one channel, (h, w); a plane at a time stays in the processor's cache."""
    mean_x, mean_y, squares, product = (_filtered(z) for z in (x, y, x * x + y * y, x * y))
    power, cross = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    structure = (2 * (product - cross) + SSIM_C2) / (squares - power + SSIM_C2)
    return float(np.mean(structure * (2 * cross + SSIM_C1) / (power + SSIM_C1)))


def _filtered(plane: np.ndarray) -> np.ndarray:
    """The windowed mean at the pixels whose window lies inside."""
    half = len(SSIM_WINDOW) // 2
    return cv2.sepFilter2D(plane, cv2.CV_64F, SSIM_WINDOW, SSIM_WINDOW)[half:-half, half:-half]


def _squared_error(name: str, sr: Tensor, gt: Tensor, crop_border: int, test_y_channel: bool) -> Tensor:
    sr, gt = _compared_pixels(name, sr, gt, crop_border, test_y_channel)
    return (sr - gt).square().mean((1, 2, 3))


def _compared_pixels(name: str, sr: Tensor, gt: Tensor, crop_border: int, test_y_channel: bool) -> list[Tensor]:
    """Both images inside the border, in float64, as luma if asked for."""
    if sr.shape != gt.shape:
        raise ValueError(f'{name} needs images of one size, got sr {tuple(sr.shape)} and gt {tuple(gt.shape)}')
    if sr.ndim != 4 or not (sr.is_floating_point() and gt.is_floating_point()):
        raise ValueError(f'{name} needs floating-point tensors (b, c, h, w), got {sr.dtype} {tuple(sr.shape)}')
    if crop_border < 0 or min(sr.shape[-2:]) <= 2 * crop_border:
        raise ValueError(f'{name} cannot leave out a border of {crop_border} of images of {tuple(sr.shape[-2:])}')
    inside = slice(crop_border, -crop_border or None)
    images = [image[..., inside, inside].to(torch.float64) for image in (sr, gt)]
    return [luma(image) for image in images] if test_y_channel else images
