"""RGB and YCbCr (ITU-R BT.601, studio swing) as MATLAB and the super-resolution literature define them."""

import numpy as np
import torch
from torch import Tensor

# Rows R, G, B; columns Y, Cb, Cr: what RGB in [0, 1] adds to YCBCR_OFFSET, on the scale 0..255.
RGB_TO_YCBCR = np.array([[65.481, -37.797, 112.0], [128.553, -74.203, -93.786], [24.966, 112.0, -18.214]])
YCBCR_OFFSET = np.array([16.0, 128.0, 128.0])
# Rows Y, Cb, Cr; columns R, G, B; both sides on the scale 0..255. The rounded digits are MATLAB's.
YCBCR_TO_RGB = 255 * np.array(
    [[0.00456621, 0.00456621, 0.00456621], [0, -0.00153632, 0.00791071], [0.00625893, -0.00318811, 0]]
)
RGB_OFFSET = np.array([-222.921, 135.576, -276.836])


def rgb_to_ycbcr(image: np.ndarray | Tensor, y_only: bool = False) -> np.ndarray | Tensor:
    """BT.601 YCbCr of an RGB image; Y reaches from 16 to 235, Cb and Cr from 16 to 240, of 255.

    An array (h, w, 3), uint8 or float32 in [0, 1], gives an array of its type: (h, w, 3), or (h, w) with `y_only`.
    A floating-point tensor (..., 3, h, w) in [0, 1] gives a tensor of its type: (..., 3, h, w) or (..., 1, h, w).
    """
    matrix, offset = (RGB_TO_YCBCR[:, :1], YCBCR_OFFSET[:1]) if y_only else (RGB_TO_YCBCR, YCBCR_OFFSET)
    if isinstance(image, Tensor):
        return _tensor_product(image, matrix, offset)
    converted = _scaled(image) @ matrix + offset
    return _typed(converted[..., 0] if y_only else converted, image.dtype)


def ycbcr_to_rgb(image: np.ndarray) -> np.ndarray:
    """RGB of a BT.601 YCbCr image (h, w, 3), uint8 or float32 with 1.0 for 255; the type stays.

    Bytes are clipped to 0..255, floats are not: a YCbCr colour can lie outside RGB.
    """
    return _typed(255 * _scaled(image).astype(np.float64) @ YCBCR_TO_RGB + RGB_OFFSET, image.dtype)


def luma(image: Tensor) -> Tensor:
    """The Y channel on which super-resolution is measured: RGB (..., 3, h, w) in [0, 1] -> (..., 1, h, w) in [0, 1]."""
    return rgb_to_ycbcr(image, y_only=True)


def _scaled(image: np.ndarray) -> np.ndarray:
    """Float32 with 1.0 for 255, which is how the published conversions begin whatever their input."""
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f'a colour conversion needs an array (h, w, 3), got {image.shape}')
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if image.dtype == np.float32:
        return image
    raise ValueError(f'a colour conversion needs uint8 or float32, got {image.dtype}')


def _typed(converted: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.uint8:
        return converted.round().clip(0, 255).astype(np.uint8)
    return (converted / 255).astype(np.float32)


def _tensor_product(image: Tensor, matrix: np.ndarray, offset: np.ndarray) -> Tensor:
    if image.ndim < 3 or image.shape[-3] != 3 or not image.is_floating_point():
        raise ValueError(
            f'a colour conversion needs a floating-point tensor (..., 3, h, w), got {image.dtype} {tuple(image.shape)}'
        )
    weights = torch.as_tensor(matrix / 255, dtype=image.dtype, device=image.device)
    shift = torch.as_tensor(offset / 255, dtype=image.dtype, device=image.device)
    return torch.einsum('...chw,cd->...dhw', image, weights) + shift[:, None, None]
