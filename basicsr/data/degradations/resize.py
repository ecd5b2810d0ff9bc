"""The resizing that degrades: MATLAB's and Pillow's bicubic (in utils, as metrics and models need them too)."""

import numpy as np

from basicsr.utils.resize import PILLOW_FILTERS, imresize, pillow_resize

__all__ = ['PILLOW_FILTERS', 'imresize', 'pillow_resize', 'resize_and_center_crop']


def resize_and_center_crop(
    pixels: np.ndarray, size: int, resample: str = 'bicubic', published_width_test: bool = False
) -> np.ndarray:
    """SR3's preparation: the shorter side becomes `size`, the longer one is cut around its middle (Saharia et al.).

    Args:
        pixels: (h, w, 3) or (h, w) uint8 -> (size, size, ...).
        published_width_test: return an image of width `size` as it is, whatever its height, as the published script
            does; such an image keeps its height.
    """
    height, width = pixels.shape[:2]
    if published_width_test and width == size:
        return pixels
    short = min(height, width)
    pixels = pillow_resize(pixels, size * width // short, size * height // short, resample)
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])  # .5 to the even side, as torchvision cuts
    return pixels[top : top + size, left : left + size]
