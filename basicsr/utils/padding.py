"""Images extended to sizes that a network takes."""

import torch
from torch import Tensor


def extend_symmetric(image: Tensor, unit: int) -> Tensor:
    """An image extended at the bottom and the right by its mirror images, which repeat the edge, however small it is.

    Also sides that are multiples of `unit` grow by a whole one, as ITER is published.
    Shape: (b, c, h, w) -> (b, c, (h // unit + 1) * unit, (w // unit + 1) * unit).
    """
    for dim in (2, 3):
        size = image.shape[dim]
        place = torch.arange((size // unit + 1) * unit, device=image.device) % (2 * size)
        image = image.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    return image


def extend_reflect(image: Tensor, unit: int) -> Tensor:
    """An image extended at the bottom and the right, to multiples of `unit`, by its mirror images, without the edge.

    What one mirror image is too small for repeats its last line.
    Shape: (b, c, h, w) -> (b, c, ceil(h / unit) * unit, ceil(w / unit) * unit).
    """
    for dim in (2, 3):
        size = image.shape[dim]
        if size % unit:
            place = torch.arange(-(-size // unit) * unit, device=image.device)
            image = image.index_select(dim, torch.minimum(place, 2 * (size - 1) - place).clamp(min=0))
    return image
