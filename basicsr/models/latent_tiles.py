"""The one step of S3Diff's UNet: both prompts in one batch, large latents in tiles whose predictions are blended."""

from collections.abc import Callable

import torch
from torch import Tensor

from basicsr.utils.tiling import tile_count, tiled

LAYOUT = 'gaussian'  # of the tiles, as published


def guided(
    denoise: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    prompts: tuple[Tensor, Tensor],
    guidance: float,
    tile: int,
    overlap: int,
    batch: int = 1,
) -> Tensor:
    """The noise in z as the positive prompt sees it, led away from the negative one by `guidance`; 1 needs no negative.

    Args:
        denoise: (z, prompt) -> the noise, for z of k times the n images, image by image in turn.
        prompts: positive and negative, each (1, tokens, channels).
        tile, overlap: of latents, see `tiled`; tile 0 takes the whole latent.
        batch: tiles at once.
    Shape: (n, 4, h, w) -> the same, float32.
    """

    def eps(part: Tensor) -> Tensor:
        if guidance == 1:
            return denoise(part, prompts[0].expand(len(part), -1, -1)).float()
        both = torch.cat([prompt.expand(len(part), -1, -1) for prompt in prompts[::-1]])
        negative, positive = denoise(torch.cat([part, part]), both).float().chunk(2)
        return negative + guidance * (positive - negative)

    return tiled(eps, z, 1, tile, overlap, batch, layout=LAYOUT).to(z.device)


def passes(z: Tensor, guidance: float, tile: int, overlap: int) -> int:
    """How often the UNet sees a tile or a latent of one image, with one prompt or the other."""
    return tile_count(*z.shape[-2:], tile, overlap, LAYOUT) * (1 if guidance == 1 else 2)
