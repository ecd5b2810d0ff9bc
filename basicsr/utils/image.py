"""Images on disk <-> float32 RGB arrays and tensors in [0, 1]; with image_codec.py the only code that knows BGR."""

import os
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from basicsr.utils.image_codec import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_SIDE,
    Pixels,
    decode,
    encode,
    expected_format,
    header_size,
    jpeg_round_trip,
)

__all__ = [
    'IMAGE_SUFFIXES',
    'MAX_PIXELS',
    'MAX_SIDE',
    'crop_border',
    'decode_image',
    'decode_pixels',
    'decoded_size',
    'header_size',
    'img2tensor',
    'jpeg_round_trip',
    'make_grid',
    'min_max_scale',
    'read_image',
    'scaled_to_float',
    'tensor2img',
    'tensor2img_fast',
    'to_float',
    'to_tensor',
    'to_uint8',
    'write_atomic',
    'write_image',
]


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> np.ndarray:
    """An image file as (h, w, 3) float32 RGB in [0, 1]: alpha dropped, gray repeated, 16 bits kept, upright by EXIF.

    Raises ValueError with the path for a file that is missing, no image, truncated, damaged, of another format than
    its suffix says, or larger than the limits (which are checked before decoding).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f'cannot read image {path}: {error.strerror or error}') from None
    return decode_image(data, str(path), max_pixels, max_side)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> np.ndarray:
    """The bytes of an image file as read_image gives them; `name` is for messages, its suffix (if any) is checked."""
    return np.ascontiguousarray(scaled_to_float(decode_pixels(data, name, max_pixels, max_side)))


def decode_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> np.ndarray:
    """The bytes of an image file as (h, w, 3) RGB in its own integer type (float images: float32 in [0, 1]).

    A data set crops before it converts to float: so much less is converted. Errors as of read_image.
    """
    pixels = decode(data, name, max_pixels, max_side)
    promised = expected_format(name)
    if promised not in (None, pixels.format):
        raise ValueError(f'{name} is mislabelled: its content is {pixels.format}; rename it')
    array = pixels.array if pixels.array.dtype != np.float32 else to_float(pixels, name)
    color = array[..., : 1 if array.shape[2] < 3 else 3]
    return np.broadcast_to(color, (*color.shape[:2], 3))


def scaled_to_float(pixels: np.ndarray) -> np.ndarray:
    """Integer pixels as float32, their type's maximum at 1; float32 as it is."""
    if pixels.dtype == np.float32:
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def to_float(pixels: Pixels, name: str) -> np.ndarray:
    """All channels as float32 in [0, 1]: integers divided by their maximum, float values taken as they are.

    Float values slightly outside [0, 1] (ringing, to 0.5 beyond) are clipped; others raise ValueError.
    """
    array = pixels.array
    if array.dtype != np.float32:
        return scaled_to_float(array)
    low, high = float(array.min()), float(array.max())
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(f'{name} has float values from {low:g} to {high:g}; scale them to [0, 1] first')
    return array.clip(0, 1)


def write_image(path: str | Path, image: np.ndarray, icc: bytes | None = None, quality: int = 95) -> None:
    """Write (h, w, 3) RGB, (h, w) gray, or these with alpha, uint8 or uint16: at once or not at all.

    The suffix gives the format. Makes missing folders. Raises OSError naming the path if it cannot be written,
    ValueError for what the format cannot hold (16 bits: PNG and TIFF only).
    """
    path = Path(path)
    try:
        data = encode(image, path.suffix, icc, quality)
    except ValueError as error:
        raise ValueError(f'cannot write {path}: {error}') from None
    write_atomic(path, data)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file under a temporary name beside its place and rename it. Raises OSError naming the path."""
    path = Path(path)
    part = path.with_name(f'.{uuid.uuid4().hex}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open('xb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, f'cannot write {path}: {error.strerror or error}') from None


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, c) or (h, w) array -> (c, h, w) tensor of the same type and values."""
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_uint8(image: Tensor) -> np.ndarray:
    """(c, h, w), or a batch of one, in [0, 1] -> (h, w, c) uint8: clamped, rounded half to even."""
    image = image.squeeze(0) if image.ndim == 4 else image
    return (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def img2tensor(image: np.ndarray, bgr2rgb: bool = True, float32: bool = True) -> Tensor:
    """BasicSR's conversion of an (h, w, c) or (h, w) array; channels are swapped only if there are three."""
    image = image[..., None] if image.ndim == 2 else image
    if bgr2rgb and image.shape[2] == 3:
        image = image[..., ::-1]
    tensor = to_tensor(image)
    return tensor.float() if float32 else tensor


def min_max_scale(image: Tensor, min_max: tuple[float, float]) -> Tensor:
    """Clamped to `min_max`, then that range mapped to [0, 1]."""
    low, high = min_max
    return (image.clamp(low, high) - low) / (high - low)


def make_grid(images: Tensor, padding: int = 2) -> Tensor:
    """(b, c, h, w) -> (c, H, W): int(sqrt(b)) images a row, `padding` zeros around each."""
    count, channels, height, width = images.shape
    columns = max(1, int(count**0.5))
    rows = -(-count // columns)
    grid = images.new_zeros(channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    for index, image in enumerate(images):
        top = index // columns * (height + padding) + padding
        left = index % columns * (width + padding) + padding
        grid[:, top : top + height, left : left + width] = image
    return grid


def tensor2img(
    tensor: Tensor, rgb2bgr: bool = True, out_type: type = np.uint8, min_max: tuple[float, float] = (0, 1)
) -> np.ndarray:
    """BasicSR's conversion: (h, w), (c, h, w) or (b, c, h, w) -> (H, W, c) or (H, W); b > 1 makes one grid."""
    image = min_max_scale(tensor.detach().float().cpu(), min_max)
    if image.ndim == 4:
        image = image[0] if len(image) == 1 else make_grid(image)
    if image.ndim not in (2, 3):
        raise ValueError(f'tensor2img takes 2, 3 or 4 dimensions, got {tuple(tensor.shape)}')
    if image.ndim == 3:
        image = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    array = image.numpy()
    if array.ndim == 3 and rgb2bgr:
        array = array[..., ::-1]
    if out_type is np.uint8:
        array = (array * 255.0).round()
    return np.ascontiguousarray(array).astype(out_type)


def tensor2img_fast(tensor: Tensor, rgb2bgr: bool = True, min_max: tuple[float, float] = (0, 1)) -> np.ndarray:
    """BasicSR's quick conversion of (1, c, h, w) to uint8: it truncates where tensor2img rounds."""
    image = tensor.detach().squeeze(0).clamp(*min_max).permute(1, 2, 0)
    low, high = min_max
    array = ((image - low) / (high - low) * 255).byte().cpu().numpy()
    return np.ascontiguousarray(array[..., ::-1]) if rgb2bgr else array


def crop_border(image: np.ndarray, border: int) -> np.ndarray:
    """(h, w, ...) without `border` pixels at each side; raises ValueError if nothing would be left."""
    if border == 0:
        return image
    if min(image.shape[:2]) <= 2 * border:
        raise ValueError(f'a border of {border} leaves nothing of an image of {image.shape[1]}x{image.shape[0]}')
    return image[border:-border, border:-border]


def decoded_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) after decoding the whole image; errors as of read_image."""
    height, width = decode_pixels(data, name).shape[:2]
    return width, height
