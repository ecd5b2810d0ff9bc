"""The networks of ITER on overlapping tiles of an image's map of tokens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.tiling import tiled


class TokenTiles:
    """What refining needs of a network, computed in tiles whose logits and pixels are blended.

    So all tiles work on one map of tokens: what is drawn in it is the same on both sides of a seam.

    Args:
        tile, overlap: in lq pixels; tile 0 takes whole maps, as does one that a map fits into.
        batch: tiles at once.
    """

    def __init__(self, net: nn.Module, tile: int, overlap: int, batch: int):
        self.net, self.batch, self.reduction = net, batch, net.vqgan.reduction
        self.pixels = self.reduction // net.scale  # of lq, along a side of a token
        unit = net.size_multiple
        self.tile = -(-tile // unit) * unit // self.pixels
        self.overlap = min(overlap // self.pixels, self.tile // 2)
        refines = net.token_refine_net is not None
        self.critic_condition = net.critic_condition if refines else None
        self.refine_condition = net.refine_condition if refines else None

    def lq_logits(self, lq: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, n, h, w) / pixels."""
        if self._fits(lq.shape[-1] // self.pixels, lq.shape[-2] // self.pixels):
            return self.net.lq_logits(lq)
        cells = F.pixel_unshuffle(lq, self.pixels)
        return self._tiled(lambda part: self.net.lq_logits(F.pixel_shuffle(part, self.pixels)), cells)

    def evaluate(self, candidate: Tensor, condition: Tensor) -> Tensor:
        if self._fits(*candidate.shape[-2:]):
            return self.net.evaluate(candidate, condition)

        def evaluated(part: Tensor) -> Tensor:
            return self.net.evaluate(part[:, 0].long(), part[:, 1:])

        return self._tiled(evaluated, torch.cat([candidate[:, None].float(), condition], 1))

    def refine(self, condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        if self._fits(*tokens.shape[-2:]):
            return self.net.refine(condition, tokens, kept)

        def refined(part: Tensor) -> Tensor:
            return self.net.refine(part[:, 2:], part[:, 0].long(), part[:, 1])

        return self._tiled(refined, torch.cat([torch.stack([tokens.float(), kept], 1), condition], 1))

    def decode(self, tokens: Tensor) -> Tensor:
        """(b, h, w) -> (b, 3, h * reduction, w * reduction)."""
        if self._fits(*tokens.shape[-2:]):
            return self.net.vqgan.decode_indices(tokens)

        def decoded(part: Tensor) -> Tensor:
            return self.net.vqgan.decode_indices(part[:, 0].long())

        return self._tiled(decoded, tokens[:, None].float(), self.reduction)

    def _fits(self, height: int, width: int) -> bool:
        return self.tile == 0 or max(height, width) <= self.tile

    def _tiled(self, fn: Callable[[Tensor], Tensor], maps: Tensor, scale: int = 1) -> Tensor:
        return tiled(fn, maps, scale, self.tile, self.overlap, self.batch).to(maps.device)
