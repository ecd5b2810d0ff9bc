"""Any image-to-image function, run on overlapping tiles and blended without seams."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    fn: Callable[[Tensor], Tensor],
    image: Tensor,
    scale: int,
    tile: int,
    overlap: int,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """fn of the whole image, computed in tiles; a plain call if tile is 0 or the image is no larger than one tile.

    Tiles have one shape and overlap by at least `overlap` pixels. In an overlap the outer quarter of each tile is
    dropped and the rest blended along a cosine: where fn looks no further than overlap // 4 pixels, the result is that
    of the whole image.

    Args:
        fn: (k * b, c, tile, tile) -> (k * b, c2, tile * scale, tile * scale), for k <= batch tiles, tile by tile.
        image: (b, c, h, w); it may stay in host memory, fn moves what it is given.
        tile, overlap: pixels of `image`; 0 <= overlap < tile.
        progress: called with (tiles done, tiles in all).
    Shape: (b, c2, h * scale, w * scale), float32 in host memory, unless it was a plain call.
    """
    height, width = image.shape[-2:]
    if tile == 0 or max(height, width) <= tile:
        result = _checked(fn(image), image.shape[-2:], scale)
        if progress:
            progress(1, 1)
        return result
    if not 0 <= overlap < tile:
        raise ValueError(f'tiles of {tile} pixels need an overlap from 0 to {tile - 1}, got {overlap}')
    (rows, tile_h), (columns, tile_w) = (_starts(side, tile, overlap) for side in (height, width))
    row_weights, column_weights = (
        _weights(starts, length, scale) for starts, length in ((rows, tile_h), (columns, tile_w))
    )
    places = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    canvas = None
    for done in range(0, len(places), batch):
        group = places[done : done + batch]
        crops = [image[..., rows[i] : rows[i] + tile_h, columns[j] : columns[j] + tile_w] for i, j in group]
        results = _checked(fn(torch.cat(crops)), (tile_h, tile_w), scale).float().cpu()
        if canvas is None:
            canvas = torch.zeros(len(image), results.shape[1], height * scale, width * scale)
        for (i, j), result in zip(group, results.split(len(image)), strict=True):
            top, left = rows[i] * scale, columns[j] * scale
            target = canvas[..., top : top + tile_h * scale, left : left + tile_w * scale]
            target.add_(result * row_weights[i][:, None] * column_weights[j])
        if progress:
            progress(done + len(group), len(places))
    return canvas


def tile_count(height: int, width: int, tile: int, overlap: int) -> int:
    """How many tiles `tiled` makes of an image."""
    if tile == 0 or max(height, width) <= tile:
        return 1
    return math.prod(len(_starts(side, tile, overlap)[0]) for side in (height, width))


def _checked(result: Tensor, size: tuple[int, int], scale: int) -> Tensor:
    wanted = tuple(side * scale for side in size)
    if tuple(result.shape[-2:]) != wanted:
        raise ValueError(f'x{scale} of {tuple(size)} pixels is {wanted}, but the network gave {tuple(result.shape)}')
    return result


def _starts(side: int, tile: int, overlap: int) -> tuple[list[int], int]:
    """First pixels of evenly spread tiles along one side, and their length."""
    if side <= tile:
        return [0], side
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(index * (side - tile) / (count - 1)) for index in range(count)], tile


def _weights(starts: list[int], length: int, scale: int) -> Tensor:
    """(tiles, length * scale) blending weights along one side; those of all tiles that cover a pixel sum to 1."""
    starts, length = [start * scale for start in starts], length * scale
    weights = torch.ones(len(starts), length, dtype=torch.float64)
    for index, (start, following) in enumerate(itertools.pairwise(starts)):
        shared = start + length - following
        dropped = shared // (4 * scale) * scale
        ramp = torch.zeros(shared, dtype=torch.float64)
        ramp[shared - dropped :] = 1
        rising = shared - 2 * dropped
        ramp[dropped : shared - dropped] = 0.5 - 0.5 * torch.cos((torch.arange(rising) + 0.5) * math.pi / rising)
        weights[index + 1, :shared] *= ramp
        weights[index, length - shared :] *= 1 - ramp
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + length] += weight
    return torch.stack([w / total[start : start + length] for start, w in zip(starts, weights, strict=True)]).float()
