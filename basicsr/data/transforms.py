"""Crops and flips of image pairs: pure functions, whose randomness is drawn from a generator that is passed in."""

import random

import cv2
import numpy as np

from basicsr.utils.image import scaled_to_float


def paired_random_resize(
    lq: np.ndarray, gt: np.ndarray, gt_size: int, scale: int, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Both images shrunken alike, to a random height that leaves room for a square of gt_size in gt (ITER).

    Draws gt's height and rounds it down to a multiple of scale. By OpenCV's cubic without antialiasing, as float32 with
    integers' maximum at 1, and not clipped: values may leave [0, 1].
    """
    height, width = gt.shape[:2]
    # The published draw begins at gt_size, with which an upright image can become too narrow for the square.
    new = rng.randint(-(-gt_size * height // min(height, width)), height)
    lq_height = max(new, gt_size) // scale
    lq_width = max(gt_size // scale, round(lq.shape[1] * lq_height * scale / height))
    return tuple(
        cv2.resize(
            scaled_to_float(np.ascontiguousarray(image)),
            (lq_width * factor, lq_height * factor),
            interpolation=cv2.INTER_CUBIC,
        )
        for image, factor in ((lq, 1), (gt, scale))
    )


def paired_random_crop(
    lq: np.ndarray, gt: np.ndarray, gt_size: int, scale: int, rng: random.Random, published_d2c: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The same random square of both images, (h, w, c) and (h * scale, w * scale, c); gt_size is a side in gt pixels.

    Draws top, then left, in lq pixels (BasicSR's order); D2C-SR draws left, then top, and never the last place of each.
    Raises ValueError if a pair does not match or is too small.
    """
    height, width, size = *lq.shape[:2], gt_size // scale
    if gt.shape[:2] != (height * scale, width * scale):
        raise ValueError(
            f'gt is {gt.shape[1]}x{gt.shape[0]}, {scale} times the lq of {width}x{height} would be '
            f'{width * scale}x{height * scale}'
        )
    if min(height, width) < size + published_d2c:
        raise ValueError(
            f'the lq image of {width}x{height} is {"no larger" if published_d2c else "smaller"} than the crop of '
            f'{size}x{size} (gt_size {gt_size})'
        )
    if published_d2c:
        left, top = rng.randint(0, width - size - 1), rng.randint(0, height - size - 1)
    else:
        top, left = rng.randint(0, height - size), rng.randint(0, width - size)
    return crop(lq, top, left, size), crop(gt, top * scale, left * scale, size * scale)


def crop(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return image[top : top + size, left : left + size]


def draw_flips(use_hflip: bool, use_rot: bool, rng: random.Random) -> tuple[bool, bool, bool]:
    """Whether to flip horizontally, vertically and to transpose, each with probability 1/2 where it is allowed."""
    return (use_hflip and rng.random() < 0.5, use_rot and rng.random() < 0.5, use_rot and rng.random() < 0.5)


def augment(image: np.ndarray, hflip: bool, vflip: bool, transpose: bool) -> np.ndarray:
    """One of the eight states of an image (h, w, ...): horizontal flip, vertical flip, transpose, in this order."""
    if hflip:
        image = image[:, ::-1]
    if vflip:
        image = image[::-1]
    return image.swapaxes(0, 1) if transpose else image


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """The image without the last rows and columns that `scale` does not divide."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]
