"""What `scripts/benchmark.py s3diff` measures: S3Diff's step at the size of SD-Turbo, and its parts."""

import sys
from functools import cache
from pathlib import Path

import torch
from benchmarking import Row
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.s3diff_arch import S3Diff

ORACLES = Path(__file__).resolve().parents[1] / 'tests/oracles'
GUIDANCE, SCALE, TOKENS = 1.07, 4, 77
SHRUNKEN = {
    'unet': {'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'], 'block_out_channels': [32, 64],
             'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'], 'layers_per_block': 1, 'cross_attention_dim': 32,
             'attention_head_dim': [2, 4], 'use_linear_projection': True},
    'vae': {'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
            'block_out_channels': [32, 32, 64, 64], 'layers_per_block': 2, 'scaling_factor': 0.18215},
    'rank_unet': 8,
    'rank_vae': 4,
}  # fmt: skip


def s3diff_rows(shrink: bool) -> list[Row]:
    """Whole steps with guidance, 128x128 pixels to 512x512, and their parts; frozen weights are random."""
    sources = f'{__file__}:S3DiffWork', f'{__file__}:S3DiffTranscription'
    network = {'type': 'S3Diff', **(SHRUNKEN if shrink else {})}
    side, rows = (16 if shrink else 128), []
    for part, title in (('step', ''), ('encode', ', encode'), ('denoise', ', both prompts'), ('decode', ', decode')):
        for dtype, most_time in (('fp32', 0.85), ('bf16', 0.45)):
            limit = most_time if part == 'step' else None
            rows.append(
                Row(f'S3Diff_x4{title}', {**network, 'part': part}, sources, SCALE, side, 'forward', dtype, limit)
            )
    return rows


class S3DiffWork(nn.Module):
    """The step, or a part of it, for an lq image; scores, prompts, noise and weights are random and always the same.

    Args:
        part: 'step', or 'encode', 'denoise' (both prompts) or 'decode'.
    """

    def __init__(
        self,
        part: str,
        unet: dict | None = None,
        vae: dict | None = None,
        rank_unet: int = 32,
        rank_vae: int = 16,
    ):
        super().__init__()
        self.part = part
        with torch.device('meta'):  # random numbers for 950 million weights would only be thrown away
            self.g = self.network()(unet, vae, rank_unet, rank_vae)
        random = torch.Generator().manual_seed(1)
        shape = 2, TOKENS, self.g.unet.config.cross_attention_dim
        self.register_buffer('prompts', torch.randn(shape, generator=random))
        self.register_buffer('score', torch.rand(1, 2, generator=random))

    def network(self) -> type[nn.Module]:
        return S3Diff

    def fill(self) -> None:
        """Give the network the weights that all networks of its layout share in this process."""
        shapes = sorted((name, tuple(entry.shape)) for name, entry in self.g.state_dict().items())
        self.g.load_state_dict(random_state(tuple(shapes)), assign=True)

    def forward(self, lq: Tensor) -> Tensor:
        x = F.interpolate(lq.float(), scale_factor=SCALE, mode='bilinear').mul(2).sub(1).clamp(-1, 1)
        shape = len(x), 4, x.shape[2] // 8, x.shape[3] // 8
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(x)
        return getattr(self, self.part)(x, noise)

    def step(self, x: Tensor, noise: Tensor) -> Tensor:
        g = self.g
        with g.modulated(g.modulation(self.score.float())):
            z = g.latent(g.encode(x), noise)
            return g.decode(g.clean(z, self.guided(z))).clamp(-1, 1)

    def encode(self, x: Tensor, noise: Tensor) -> Tensor:
        with self.g.modulated(self.g.modulation(self.score.float())):
            return self.g.encode(x)

    def denoise(self, x: Tensor, noise: Tensor) -> Tensor:
        with self.g.modulated(self.g.modulation(self.score.float())):
            return self.guided(noise)

    def decode(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.g.decode(noise * self.g.vae.config.scaling_factor)

    def guided(self, z: Tensor) -> Tensor:
        prompts = self.prompts.repeat_interleave(len(z), 0)
        positive, negative = self.g.denoise(torch.cat([z, z]), prompts).chunk(2)
        return negative + GUIDANCE * (positive - negative)


class S3DiffTranscription(S3DiffWork):
    """The same by the plain transcription."""

    def network(self) -> type[nn.Module]:
        sys.path.insert(0, str(ORACLES))
        from s3diff_reference import S3DiffReference

        return S3DiffReference

    def step(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.g.step(x, self.score, self.prompts[:1], self.prompts[1:], noise, GUIDANCE).y

    def encode(self, x: Tensor, noise: Tensor) -> Tensor:
        self.g.modulate(self.score)
        return self.g.moments(x)

    def denoise(self, x: Tensor, noise: Tensor) -> Tensor:
        self.g.modulate(self.score)
        return self.g.guided(noise, self.prompts[:1], self.prompts[1:], GUIDANCE)

    def decode(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.g.decoded(noise * self.g.vae.config.scaling_factor)


@cache
def random_state(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Tensor]:
    """Weights of a layout, of usual size; both variants take them, for two such networks would fill a small machine."""
    random, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes:
        weight = torch.empty(shape)
        if len(shape) > 1:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=random)
        else:
            weight.normal_(1 if name.endswith('weight') else 0, 0.1, generator=random)
        state[name] = weight
    return state
