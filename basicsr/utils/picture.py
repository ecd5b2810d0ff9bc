"""A picture to restore: what the network sees of a file, and what the result must get back from it."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.image import to_float, to_tensor, write_image
from basicsr.utils.image_codec import (
    FORMATS,
    HOLDS_16_BITS,
    HOLDS_ALPHA,
    MAX_PIXELS,
    MAX_SIDE,
    decode,
    expected_format,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """An image file for restoring.

    lq: (1, 3, h, w) RGB in [0, 1]; gray repeated; fully transparent pixels have the colour of the nearest other one,
        because what hides below them would bleed into the edges.
    alpha: (1, 1, h, w) in [0, 1], or None.
    gray, deep: whether the file was gray; whether it had more than 8 bits a channel.
    icc: the colour profile, or None (CMYK is converted to sRGB and has none).
    """

    lq: Tensor
    alpha: Tensor | None
    gray: bool
    deep: bool
    icc: bytes | None
    path: Path

    @classmethod
    def read(cls, path: str | Path, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> 'Picture':
        """Read PNG, JPEG, WebP, TIFF or BMP of any kind that `image_codec.decode` names. Raises ValueError."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f'cannot read image {path}: {error.strerror or error}') from None
        pixels = decode(data, str(path), max_pixels, max_side)
        if expected_format(path.name) not in (None, pixels.format):
            logger.warning('%s is a %s file in spite of its name', path, pixels.format)
        channels = pixels.array.shape[2]
        values = to_float(pixels, str(path))
        color = values[..., : 1 if channels < 3 else 3]
        alpha = values[..., -1:] if channels in (2, 4) else None
        if alpha is not None:
            color = _fill_transparent(color, alpha[..., 0])
        return cls(
            lq=to_tensor(color)[None].expand(-1, 3, -1, -1).contiguous(),
            alpha=None if alpha is None else to_tensor(alpha)[None],
            gray=channels < 3,
            deep=pixels.array.dtype != np.uint8,
            icc=pixels.icc,
            path=path,
        )

    def save(self, path: str | Path, sr: Tensor, alpha: Tensor | None = None, quality: int = 95) -> None:
        """Write sr, (1, 3, height, width) in [0, 1], with this picture's alpha, depth, grayness and profile.

        alpha: (1, 1 or 3, height, width), the restored alpha plane; without it it is enlarged bicubically.
        Either is kept within the range of the 3x3 source pixels around, so that what was clear or solid stays so.
        A format without alpha gets the picture on white, one without 16 bits gets 8; both are logged. Raises OSError or
        ValueError, with the path, if the file cannot be written.
        """
        kind = FORMATS.get(Path(path).suffix.lower())
        planes = sr.detach().float().cpu()[0].clamp(0, 1)
        planes = planes.mean(0, keepdim=True) if self.gray else planes
        if self.alpha is not None:
            opacity = self._enlarged_alpha(planes.shape[-2:], alpha)
            if kind in HOLDS_ALPHA:
                planes = torch.cat([planes, opacity])
            else:
                logger.warning('%s: %s has no alpha channel, so the picture is laid on white', path, kind)
                planes = planes * opacity + (1 - opacity)
        deep = self.deep and kind in HOLDS_16_BITS
        if self.deep and not deep:
            logger.warning('%s: %s has 8 bits a channel, the source had more', path, kind)
        white, dtype = (65535, np.uint16) if deep else (255, np.uint8)
        array = (planes * white).round().permute(1, 2, 0).numpy().astype(dtype)
        gray_file = self.gray and kind != 'WEBP'  # WebP stores gray as RGB, where a gray profile would be wrong
        fits = self.icc is not None and self.icc[16:20] == (b'GRAY' if gray_file else b'RGB ')
        write_image(path, array, self.icc if fits else None, quality)

    def _enlarged_alpha(self, size: tuple[int, int], restored: Tensor | None) -> Tensor:
        """(1, height, width) in [0, 1], for a size (height, width)."""
        if restored is None:
            restored = F.interpolate(self.alpha, size, mode='bicubic', antialias=True)
        high, low = F.max_pool2d(self.alpha, 3, 1, 1), -F.max_pool2d(-self.alpha, 3, 1, 1)
        low, high = (F.interpolate(bound, size, mode='nearest') for bound in (low, high))
        return restored.detach().float().cpu().mean(1, keepdim=True).clamp(low, high)[0]


def _fill_transparent(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """color (h, w, c) where alpha (h, w) is 0: that of the nearest pixel with alpha > 0, if there is one."""
    clear = alpha == 0
    if not clear.any() or clear.all():
        return color
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(clear, return_distances=False, return_indices=True)
    return color[rows, columns]
