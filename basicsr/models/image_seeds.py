"""Seeds of the randomness in restoring: an image's own follows from its pixels, the same in every batch and process."""

import zlib

import numpy as np
import torch
from torch import Tensor


def image_seeds(lq: Tensor, first: int) -> Tensor:
    """A seed for each image of a batch, `first` or more: (b, 3, h, w) in [0, 1] -> (b,) int64 on the CPU."""
    if lq.is_meta:
        return torch.zeros(len(lq), dtype=torch.int64)
    return torch.tensor([first + zlib.crc32(image.tobytes()) for image in eight_bit(lq)])


def eight_bit(image: Tensor) -> np.ndarray:
    """(b, 3, h, w) in [0, 1] -> (b, h, w, 3) uint8."""
    levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())
