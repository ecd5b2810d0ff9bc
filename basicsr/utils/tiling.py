"""Any image-to-image function, run on overlapping tiles and blended without seams."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Layout = Literal['cosine', 'gaussian']


def tiled(
    fn: Callable[[Tensor], Tensor],
    image: Tensor,
    scale: int,
    tile: int,
    overlap: int,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
    layout: Layout = 'cosine',
) -> Tensor:
    """fn of the whole image, computed in tiles; a plain call if tile is 0 or the image is no larger than one tile.

    Tiles have one shape and overlap by at least `overlap` pixels. In an overlap the outer quarter of each tile is
    dropped and the rest blended along a cosine: where fn looks no further than overlap // 4 pixels, the result is that
    of the whole image.

    The layout 'gaussian' is that of StableSR's and S3Diff's latents: square tiles, of the shorter side where that is
    smaller, one each tile - overlap pixels and a last one at the end, column by column; the mean of all that cover a
    pixel, weighted by a Gaussian around the middle of each. An image of no more pixels than a tile is taken whole.

    Args:
        fn: (k * b, c, tile, tile) -> (k * b, c2, tile * scale, tile * scale), for k <= batch tiles, tile by tile.
        image: (b, c, h, w); it may stay in host memory, fn moves what it is given.
        tile, overlap: pixels of `image`; 0 <= overlap < tile. Gaussian tiles that are cut to the shorter side overlap
            by no more than half of it.
        progress: called with (tiles done, tiles in all).
    Shape: (b, c2, h * scale, w * scale), float32 in host memory, unless it was a plain call.
    """
    height, width = image.shape[-2:]
    if _is_whole(height, width, tile, layout):
        result = _checked(fn(image), image.shape[-2:], scale)
        if progress:
            progress(1, 1)
        return result
    if not 0 <= overlap < tile:
        raise ValueError(f'tiles of {tile} pixels need an overlap from 0 to {tile - 1}, got {overlap}')
    (rows, tile_h), (columns, tile_w) = tile_starts(height, width, tile, overlap, layout)
    row_weights = _weights(rows, tile_h, scale, layout, tile_h * scale / 2)
    column_weights = _weights(columns, tile_w, scale, layout, (tile_w * scale - 1) / 2)
    places = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    if layout == 'gaussian':
        places.sort(key=lambda place: place[1])
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


def tile_count(height: int, width: int, tile: int, overlap: int, layout: Layout = 'cosine') -> int:
    """How many tiles `tiled` makes of an image."""
    if _is_whole(height, width, tile, layout):
        return 1
    return math.prod(len(starts) for starts, _ in tile_starts(height, width, tile, overlap, layout))


def tile_starts(
    height: int, width: int, tile: int, overlap: int, layout: Layout
) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
    """Where tiles begin, and how long they are, from top to bottom and from left to right."""
    if layout == 'cosine':
        return _even_starts(height, tile, overlap), _even_starts(width, tile, overlap)
    length = min(tile, height, width)
    # As published, a side no longer than the overlap would make tiles without end.
    step = length - (overlap if overlap < length else length // 2)
    return tuple(([*range(0, side - length, step), side - length], length) for side in (height, width))


def gaussian(length: int, middle: float) -> Tensor:
    """The published weights along one side of a tile, float64; their middle is half a pixel off from top to bottom."""
    place = (torch.arange(length, dtype=torch.float64) - middle) / length
    return torch.exp(-(place**2) / 0.02) / math.sqrt(2 * math.pi * 0.01)


def _is_whole(height: int, width: int, tile: int, layout: Layout) -> bool:
    return tile == 0 or (height * width <= tile**2 if layout == 'gaussian' else max(height, width) <= tile)


def _checked(result: Tensor, size: tuple[int, int], scale: int) -> Tensor:
    wanted = tuple(side * scale for side in size)
    if tuple(result.shape[-2:]) != wanted:
        raise ValueError(f'x{scale} of {tuple(size)} pixels is {wanted}, but the network gave {tuple(result.shape)}')
    return result


def _even_starts(side: int, tile: int, overlap: int) -> tuple[list[int], int]:
    """First pixels of evenly spread tiles along one side, and their length."""
    if side <= tile:
        return [0], side
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(index * (side - tile) / (count - 1)) for index in range(count)], tile


def _weights(starts: list[int], length: int, scale: int, layout: Layout, middle: float) -> Tensor:
    """(tiles, length * scale) blending weights along one side; those of all tiles that cover a pixel sum to 1."""
    starts, length = [start * scale for start in starts], length * scale
    if layout == 'gaussian':
        weights = gaussian(length, middle).expand(len(starts), -1)
    else:
        weights = _cosine(starts, length, scale)
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + length] += weight
    return torch.stack([w / total[start : start + length] for start, w in zip(starts, weights, strict=True)]).float()


def _cosine(starts: list[int], length: int, scale: int) -> Tensor:
    """(tiles, length) weights that rise and fall where neighbours share pixels, in float64."""
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
    return weights
