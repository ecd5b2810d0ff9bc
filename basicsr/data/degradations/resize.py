"""The resizing that degrades: MATLAB's bicubic (in utils, as NIQE needs it too) and Pillow's, by Pillow itself."""

import numpy as np
from PIL import Image

from basicsr.utils.resize import imresize

__all__ = ['PILLOW_FILTERS', 'imresize', 'pillow_resize', 'resize_and_center_crop']

PILLOW_FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


def pillow_resize(pixels: np.ndarray, width: int, height: int, resample: str = 'bicubic') -> np.ndarray:
    """(h, w, 3) or (h, w) uint8 -> (height, width, ...) uint8 by Pillow's antialiased filter: 'bicubic' or 'bilinear'.

    It is what torchvision's `resize` of a PIL image gives. Bicubic is a = -0.5 as MATLAB's, but with weights of 8-bit
    precision, the rounding between rows and columns, and a border where the taps outside are left out.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f'pillow_resize takes uint8, got {pixels.dtype}')
    if resample not in PILLOW_FILTERS:
        raise ValueError(f'{resample!r} is not a known filter; known: {", ".join(PILLOW_FILTERS)}')
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), PILLOW_FILTERS[resample]))


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
