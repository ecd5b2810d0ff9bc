"""Stable Diffusion's autoencoder in tiles that share the statistics of their norms, so that they agree in colour.

The "tiled VAE" of multi-diffusion user interfaces, as S3Diff (arXiv:2409.17058) publishes it: all tiles go through the
network in lockstep, convolutions see one tile, attention looks around in one tile, and each GroupNorm has one mean and
one variance for all of them. What tiles are, `tiles_of` says.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type

Statistics = Literal['published', 'pooled']
REDUCTION = 8  # pixels along a side of a latent
ENCODER_PADDING, DECODER_PADDING = 32, 11  # of tiles: pixels, latents
ROUNDING = (32, 16, 8, 4, 2)  # tiles are multiples of the first of these that leaves them within the wanted size


@dataclass(frozen=True)
class Span:
    """A tile along one axis: what it sees of the input, and what of the output it gives, both from start to end."""

    seen: tuple[int, int]
    given: tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """The part of an image that one tile sees and the part that it gives, in pixels or latents."""

    rows: Span
    columns: Span


def is_tiled(height: int, width: int, tile: int, padding: int) -> bool:
    """Whether an input of this size needs tiles; tile 0 never does."""
    return tile > 0 and max(height, width) > tile + 2 * padding


def tiles_of(height: int, width: int, tile: int, padding: int) -> list[Tile]:
    """The published tiles of an input, row by row: inner boxes of about equal size, no larger than `tile`.

    A tile sees `padding` more on each side; what is left at the borders belongs to the tiles there.
    """
    rows, columns = (_spans(side, tile, padding) for side in (height, width))
    return [Tile(row, column) for row in rows for column in columns]


def _spans(side: int, tile: int, padding: int) -> list[Span]:
    inner = side - 2 * padding
    count = max(1, math.ceil(inner / tile))
    length = math.ceil(inner / count)
    rounded = (-(-length // unit) * unit for unit in ROUNDING)
    length = next((one for one in rounded if one <= tile), length)
    spans = []
    for number in range(count):
        start = padding + number * length
        end = min(start + length, side)
        given = 0 if start <= padding else start, side if end >= side - padding else end
        spans.append(Span((max(start - padding, 0), min(end + padding, side)), given))
    return spans


def encode_tiled(encoder: nn.Module, x: Tensor, tile: int, statistics: Statistics) -> Tensor:
    """diffusers' encoder of images (n, 3, h, w) whose sides are multiples of 8: (n, c, h / 8, w / 8).

    Args:
        tile: of pixels; images that are not larger, and all if it is 0, are encoded whole.
        statistics: 'published': a norm takes the mean of the tiles' own variances, and counts twice what two tiles see;
            'pooled': the variance of all pixels, each in the tile that gives it.
    """
    if not is_tiled(*x.shape[-2:], tile, ENCODER_PADDING):
        return encoder(x)
    lockstep = Lockstep(x, tiles_of(*x.shape[-2:], tile, ENCODER_PADDING), statistics)
    tiles = lockstep.apply(encoder.conv_in, lockstep.tiles)
    for block in encoder.down_blocks:
        tiles = _level(lockstep, tiles, block.resnets, block.downsamplers)
    tiles = _middle(lockstep, tiles, encoder.mid_block)
    return lockstep.joined(_end(lockstep, tiles, encoder), *(side // REDUCTION for side in x.shape[-2:]))


def decode_tiled(decoder: nn.Module, z: Tensor, tile: int, statistics: Statistics) -> Tensor:
    """diffusers' decoder of latents (n, c, h, w), as encode_tiled: (n, 3, h * 8, w * 8)."""
    if not is_tiled(*z.shape[-2:], tile, DECODER_PADDING):
        return decoder(z)
    lockstep = Lockstep(z, tiles_of(*z.shape[-2:], tile, DECODER_PADDING), statistics)
    tiles = _middle(lockstep, lockstep.apply(decoder.conv_in, lockstep.tiles), decoder.mid_block)
    for block in decoder.up_blocks:
        tiles = _level(lockstep, tiles, block.resnets, block.upsamplers)
    return lockstep.joined(_end(lockstep, tiles, decoder), *(side * REDUCTION for side in z.shape[-2:]))


class Lockstep:
    """The tiles of an input on their way through a network, which they take one layer at a time.

    Methods take a list of tiles and give a new one, or change the list where they say so: it frees memory.
    """

    def __init__(self, x: Tensor, boxes: Sequence[Tile], statistics: Statistics):
        self.boxes, self.statistics = boxes, statistics
        self.tiles = [x[..., slice(*box.rows.seen), slice(*box.columns.seen)] for box in boxes]

    def apply(self, fn: Callable[[Tensor], Tensor], tiles: list[Tensor]) -> list[Tensor]:
        """fn of each tile, in the list itself."""
        for index, tile in enumerate(tiles):
            tiles[index] = fn(tile)
        return tiles

    def norm(self, norm: nn.GroupNorm, tiles: Sequence[Tensor], then: Callable[[Tensor], Tensor] | None = None) -> list:
        """A GroupNorm with the statistics of all tiles, and a function after it."""
        scale, shift = self._normalisation(norm, tiles)
        normed = []
        for tile in tiles:
            y = torch.addcmul(shift, tile.to(scale.dtype), scale).to(tile.dtype)
            normed.append(then(y) if then else y)
        return normed

    def resnet(self, block: nn.Module, tiles: list[Tensor]) -> list[Tensor]:
        """A residual block, in the list itself."""
        h = self.apply(block.conv1, self.norm(block.norm1, tiles, block.nonlinearity))
        h = self.apply(block.conv2, self.norm(block.norm2, h, block.nonlinearity))
        for index, (tile, change) in enumerate(zip(tiles, h, strict=True)):
            shortcut = tile if block.conv_shortcut is None else block.conv_shortcut(tile)
            tiles[index], h[index] = (shortcut + change) / block.output_scale_factor, None
        return tiles

    def attention(self, block: nn.Module, tiles: list[Tensor]) -> list[Tensor]:
        """Attention inside each tile, in the list itself."""
        for index, seen in enumerate(self.norm(block.group_norm, tiles)):
            height = seen.shape[-2]
            tokens = rearrange(seen, 'b c h w -> b (h w) c')
            q, k, v = (
                rearrange(layer(tokens), 'b n (heads d) -> b heads n d', heads=block.heads)
                for layer in (block.to_q, block.to_k, block.to_v)
            )
            found = rearrange(F.scaled_dot_product_attention(q, k, v), 'b heads n d -> b n (heads d)')
            change = rearrange(block.to_out[0](found), 'b (h w) c -> b c h w', h=height)
            tiles[index] = (tiles[index] + change) / block.rescale_output_factor
        return tiles

    def joined(self, tiles: list[Tensor], height: int, width: int) -> Tensor:
        """The parts that the tiles give, side by side, as an output of this size; the list is emptied."""
        output = tiles[0].new_empty(*tiles[0].shape[:2], height, width)
        while tiles:
            box, tile = self.boxes[len(tiles) - 1], tiles.pop()
            rows, columns = _kept(box, tile)
            seen = box.rows.seen[1] - box.rows.seen[0], box.columns.seen[1] - box.columns.seen[0]
            top, left = box.rows.given[0] * tile.shape[-2] // seen[0], box.columns.given[0] * tile.shape[-1] // seen[1]
            part = tile[..., rows, columns]
            output[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
        return output

    def _normalisation(self, norm: nn.GroupNorm, tiles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What to multiply each channel by, and then to add: two (b, c, 1, 1)."""
        counted = [
            tile[..., *_kept(box, tile)] if self.statistics == 'pooled' else tile
            for box, tile in zip(self.boxes, tiles, strict=True)
        ]
        shares = [part.shape[-2] * part.shape[-1] for part in counted]
        shares = torch.tensor(shares, dtype=torch.float64, device=tiles[0].device)
        shares = (shares / shares.sum()).to(exact_type(tiles[0].dtype))[:, None, None]
        variances, means = zip(*(_moments(part, norm.num_groups) for part in counted), strict=True)
        variances, means = torch.stack(variances), torch.stack(means)
        mean = (shares * means).sum(0)
        if self.statistics == 'pooled':
            variances = variances + (means - mean).square()
        variance = (shares * variances).sum(0)
        repeated = norm.num_channels // norm.num_groups
        mean, variance = (one.repeat_interleave(repeated, 1) for one in (mean, variance))
        scale = norm.weight.to(mean.dtype) * (variance + norm.eps).rsqrt()
        shift = norm.bias.to(mean.dtype) - mean * scale
        return scale[..., None, None], shift[..., None, None]


def _level(
    lockstep: Lockstep, tiles: list[Tensor], resnets: Iterable[nn.Module], resizing: Iterable[nn.Module] | None
) -> list[Tensor]:
    for resnet in resnets:
        tiles = lockstep.resnet(resnet, tiles)
    for layer in resizing or ():
        tiles = lockstep.apply(layer, tiles)
    return tiles


def _middle(lockstep: Lockstep, tiles: list[Tensor], block: nn.Module) -> list[Tensor]:
    tiles = lockstep.resnet(block.resnets[0], tiles)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            tiles = lockstep.attention(attention, tiles)
        tiles = lockstep.resnet(resnet, tiles)
    return tiles


def _end(lockstep: Lockstep, tiles: list[Tensor], half: nn.Module) -> list[Tensor]:
    return lockstep.apply(half.conv_out, lockstep.norm(half.conv_norm_out, tiles, half.conv_act))


def _kept(box: Tile, tile: Tensor) -> tuple[slice, slice]:
    """The part of a tile, as large as it is at the moment, that its box gives."""
    parts = []
    for span, side in ((box.rows, tile.shape[-2]), (box.columns, tile.shape[-1])):
        first, length = span.seen[0], span.seen[1] - span.seen[0]
        parts.append(slice(*((place - first) * side // length for place in span.given)))
    return tuple(parts)


def _moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Variance, of all and not of all but one, and mean of each group of channels: two (b, groups)."""
    rows = rearrange(x.to(exact_type(x.dtype)), 'b (g c) h w -> b g (c h w)', g=groups)
    return torch.var_mean(rows, 2, correction=0)
