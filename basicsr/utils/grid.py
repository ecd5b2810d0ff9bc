"""Several images as one picture."""

import math

from torch import Tensor


def image_grid(images: Tensor, columns: int | None = None, padding: int = 2) -> Tensor:
    """Images row by row, with black lines between and around them; one image alone is returned as it is.

    Args:
        columns: images in a row; None: the whole part of the root of their number, as SR3's process pictures have it.
        padding: width of the lines.
    Shape: (n, c, h, w) in [0, 1] -> (c, height, width).
    """
    count, channels, height, width = images.shape
    if count == 1:
        return images[0]
    columns = min(columns or math.isqrt(count), count)
    rows = math.ceil(count / columns)
    grid = images.new_zeros(channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    for number, image in enumerate(images):
        top, left = (padding + part * (side + padding) for part, side in zip(divmod(number, columns), (height, width)))
        grid[:, top : top + height, left : left + width] = image
    return grid
