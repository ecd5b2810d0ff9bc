"""What data sets that read gt only do with an image before it is degraded: resize, crop, pad, flip."""

import cv2
import numpy as np

from basicsr.data.transforms import augment, draw_flips
from basicsr.utils.image import scaled_to_float
from basicsr.utils.registry import OptionError


class GtCrop:
    """A random square of an image, flipped and transposed, whose randomness comes from the generator passed in.

    Pixels keep their integer type until the square is cut out, so that little is converted; only a resize needs all of
    them as float. ITER's resizing is OpenCV's cubic, whose values are clipped to [0, 1].

    Args:
        size: side of the square in pixels.
        use_hflip, use_rot: flips as of basicsr/data/transforms.py.
        pad: continue a smaller image to `size`, after the flips, at the bottom and the right by its mirror image, edge
            pixel not repeated; otherwise a smaller image is an error.
        use_resize_crop: shrink first, to a random height that is a multiple of `scale`; the square still fits.
        use_resize: bring the shorter side to `size` first, whatever it was.
    """

    def __init__(
        self,
        size: int,
        use_hflip: bool = False,
        use_rot: bool = False,
        pad: bool = False,
        use_resize_crop: bool = False,
        use_resize: bool = False,
        scale: int = 1,
    ):
        if use_resize and use_resize_crop:
            raise OptionError('use_resize and use_resize_crop exclude each other', ('use_resize',))
        if size < 1 or (use_resize_crop and size % scale):
            raise OptionError(
                f'the crop needs a side that is a multiple of the scale {scale}, got {size}', ('gt_size',)
            )
        self.size, self.use_hflip, self.use_rot, self.scale = size, use_hflip, use_rot, scale
        self.pad, self.use_resize_crop, self.use_resize = pad, use_resize_crop, use_resize

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(h, w, 3) uint8, uint16 or float32 pixels -> (size, size, 3) float32 in [0, 1], in memory of its own.

        Raises ValueError, without the path, for an image that is too small.
        """
        self.check_size(*pixels.shape[1::-1])
        height, width = self._resized_size(*pixels.shape[:2], rng)
        if (height, width) != pixels.shape[:2]:
            image = scaled_to_float(np.ascontiguousarray(pixels))
            pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        top, left = (int(rng.integers(0, max(0, side - self.size), endpoint=True)) for side in (height, width))
        square = pixels[top : top + self.size, left : left + self.size]
        square = augment(square, *draw_flips(self.use_hflip, self.use_rot, rng))
        if square.shape[:2] != (self.size, self.size):
            square = mirrored_to(square, self.size)
        return scaled_to_float(np.array(square, order='C'))

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError for an image of which no square can be made."""
        if min(width, height) < self.size and not (self.pad or self.use_resize):
            raise ValueError(f'{width}x{height} is smaller than the crop of gt_size {self.size}')

    def _resized_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """(height, width) before the crop."""
        short = min(height, width)
        if self.use_resize:
            return tuple(max(self.size, round(side * self.size / short)) for side in (height, width))
        if not self.use_resize_crop or short < self.size:
            return height, width
        # The published draw begins at `size`, with which an upright image can become too narrow for the square.
        lowest = -(-self.size * height // short)
        new = int(rng.integers(lowest, height, endpoint=True))
        new = max(new - new % self.scale, self.size)
        return new, max(self.size, round(width * new / height))


def mirrored_to(image: np.ndarray, size: int) -> np.ndarray:
    """(h, w, c) continued to sides of at least `size` at the bottom and the right, mirrored without the edge pixel."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    return cv2.copyMakeBorder(np.ascontiguousarray(image), 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
