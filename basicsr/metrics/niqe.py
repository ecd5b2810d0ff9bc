"""NIQE: how natural an image looks, without a reference (Mittal, Soundararajan and Bovik, 2013; lower is better).

`niqe_pristine.npz` holds the statistics of natural photographs that the authors published, in BasicSR's form.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from scipy.special import gamma
from torch import Tensor

from basicsr.utils.color import rgb_to_ycbcr
from basicsr.utils.registry import METRIC_REGISTRY
from basicsr.utils.resize import imresize

BLOCK = 96
SHAPES = np.arange(0.2, 10.001, 0.001)
SHAPE_RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))  # increases with the shape


@METRIC_REGISTRY.register()
@METRIC_REGISTRY.register('calculate_niqe')
def niqe(sr: Tensor, crop_border: int = 0, convert_to: Literal['y', 'gray'] = 'y') -> Tensor:
    """Natural image quality evaluator: distance of an image's local statistics from those of natural photographs.

    Args:
        crop_border: pixels left out at each side; at least 96x96 must remain, and parts of 96 are cut off.
        convert_to: BT.601 luma, or OpenCV's gray, both rounded to 8 bits.
    Shape: (b, 3, h, w) RGB in [0, 1] -> (b,) float64.
    """
    if sr.ndim != 4 or sr.shape[1] != 3 or not sr.is_floating_point():
        raise ValueError(f'niqe needs a floating-point RGB tensor (b, 3, h, w), got {sr.dtype} {tuple(sr.shape)}')
    if crop_border < 0 or min(sr.shape[-2:]) - 2 * crop_border < BLOCK:
        size = tuple(sr.shape[-2:])
        raise ValueError(f'niqe needs {BLOCK}x{BLOCK} pixels inside a border of {crop_border}, got {size}')
    distances = [_distance(block_features(gray_levels(image, convert_to, crop_border))) for image in sr]
    return torch.tensor(distances, dtype=torch.float64, device=sr.device)


def gray_levels(image: Tensor, convert_to: str, crop_border: int) -> np.ndarray:
    """What NIQE looks at: (3, h, w) RGB in [0, 1] -> the gray inside the border, 0..255, not yet rounded."""
    rgb = image.float().permute(1, 2, 0).cpu().numpy()
    if convert_to == 'y':
        gray = rgb_to_ycbcr(rgb, y_only=True) * 255
    else:
        # Summed from blue to red like the published code: grays of exactly x.5 are common, the last bit rounds them.
        gray = cv2.cvtColor(np.ascontiguousarray(rgb[..., ::-1]), cv2.COLOR_BGR2GRAY) * 255
    inside = slice(crop_border, -crop_border or None)
    return gray[inside, inside]


def block_features(gray: np.ndarray) -> np.ndarray:
    """The 36 features of each block of 96x96: (h, w) in 0..255 -> (blocks, 36), 18 per scale; NaN where it is flat.

    Filtering is in float32, like the published code: in flat regions what is left after normalisation is rounding.
    """
    gray = gray.round().astype(np.float32)
    gray = gray[: len(gray) // BLOCK * BLOCK, : gray.shape[1] // BLOCK * BLOCK]
    half = imresize(gray / 255, 0.5) * 255
    scales = ((gray, BLOCK), (half, BLOCK // 2))
    return np.concatenate([_scale_features(image, side) for image, side in scales], axis=1, dtype=np.float64)


@lru_cache
def pristine() -> dict[str, np.ndarray]:
    """Mean (1, 36) and covariance (36, 36) of natural photographs' features, and the 7x7 window."""
    return dict(np.load(Path(__file__).with_name('niqe_pristine.npz')))


def _distance(features: np.ndarray) -> float:
    """Between the Gaussian fitted to the blocks' features and that of natural photographs."""
    natural = pristine()
    whole = features[~np.isnan(features).any(1)]
    if len(whole) < 2:
        return float('nan')
    difference = natural['mu_pris_param'][0] - np.nanmean(features, axis=0)
    covariance = (natural['cov_pris_param'] + np.cov(whole, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def _scale_features(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w) with sides that are multiples of `side` -> (blocks, 18)."""
    mean, square = _windowed_mean(image), _windowed_mean(image * image)
    normalised = (image - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
    rows, columns = (length // side for length in image.shape)
    blocks = normalised.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right = _asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.stack(features, axis=1)


def _windowed_mean(image: np.ndarray) -> np.ndarray:
    """Accumulated in float64 and stored in float32, edge pixels repeated."""
    window = pristine()['gaussian_window']
    return cv2.filter2D(image.astype(np.float64), -1, window, borderType=cv2.BORDER_REPLICATE).astype(np.float32)


def _asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moment fit of an asymmetric generalised Gaussian to each block: shape, left and right scale, (blocks,) each.

    A block without negative or without positive values has scales NaN and the smallest shape.
    """
    values = blocks.reshape(len(blocks), -1)
    squares = values * values
    with np.errstate(divide='ignore', invalid='ignore'):
        spreads = [np.sqrt(np.sum(squares * side, 1) / np.sum(side, 1)) for side in (values < 0, values > 0)]
        ratio = spreads[0] / spreads[1]
        flatness = np.mean(np.abs(values), 1) ** 2 / np.mean(squares, 1)
        target = flatness * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    above = np.searchsorted(SHAPE_RATIOS, target).clip(1, len(SHAPES) - 1)
    nearer_below = target - SHAPE_RATIOS[above - 1] <= SHAPE_RATIOS[above] - target
    index = np.where(np.isnan(target), 0, above - nearer_below)
    shape = SHAPES[index]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, spreads[0] * scale, spreads[1] * scale
