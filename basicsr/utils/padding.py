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
