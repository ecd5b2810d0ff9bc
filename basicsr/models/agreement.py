"""Consistency with lq: an image whose bicubic reduction lq is, or could be."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def lacking(image: Tensor, lq: Tensor) -> Tensor:
    """What images (b, 3, h * scale, w * scale) lack for their bicubic reductions to be lq (b, 3, h, w), or nearly so.

    For lq that was made by such a reduction; of other lq an image would keep the noise and the blur.
    """
    return _resized(lq.float() - _resized(image.float(), lq.shape[-2:]), image.shape[-2:])


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(image, list(size), mode='bicubic', antialias=True)
