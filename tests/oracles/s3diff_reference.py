"""S3Diff's one step written down plainly from shared/spec/s3diff.md (2.2, 2.3, 3.1), on diffusers' classes.

Every layer that has LoRA computes its base, A, the product with its matrix and B, one after the other; the matrices are
made of the scores and handed to all layers in every call; the prompts are evaluated one after the other.
"""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

SD_TURBO_UNET = {
    'sample_size': 64,
    'in_channels': 4,
    'out_channels': 4,
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    'block_out_channels': [320, 640, 1280, 1280],
    'layers_per_block': 2,
    'cross_attention_dim': 1024,
    'attention_head_dim': [5, 10, 20, 20],
    'use_linear_projection': True,
}
SD_TURBO_VAE = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [128, 256, 512, 512],
    'layers_per_block': 2,
    'latent_channels': 4,
    'sample_size': 768,
    'scaling_factor': 0.18215,
}
UNET_TARGETS = ('to_k', 'to_q', 'to_v', 'to_out.0', 'conv', 'conv1', 'conv2', 'conv_shortcut', 'conv_out', 'proj_in',
                'proj_out', 'ff.net.2', 'ff.net.0.proj')  # fmt: skip
VAE_TARGETS = r'encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)'
TIMESTEP = 999
ABAR = 0.00466009508818388
GUIDANCE = 1.07


class LoRALayer(nn.Module):
    """base(x) + 8 / r * B(M^T A x), with the matrices M (n or 1, r, r) that were last put into `modulation`."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, adapter: str):
        super().__init__()
        if isinstance(base, nn.Conv2d):
            down = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)
            up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(down.weight, std=1 / rank)
        nn.init.zeros_(up.weight)
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = nn.ModuleDict({adapter: down}), nn.ModuleDict({adapter: up})
        self.adapter, self.scaling = adapter, 8 / rank
        self.modulation: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        t, m = self.lora_A[self.adapter](x), self.modulation.expand(len(x), -1, -1)
        t = torch.einsum('nk...,nkc->nc...', t, m) if x.ndim == 4 else torch.einsum('n...k,nkc->n...c', t, m)
        return self.base_layer(x) + self.lora_B[self.adapter](t) * self.scaling


class Step(NamedTuple):
    """What is computed on the way: y (n, 3, h, w) in [-1, 1] is `decoded`, clamped."""

    moments: Tensor
    latent: Tensor
    model_pred: Tensor
    x0: Tensor
    decoded: Tensor
    y: Tensor


class S3DiffReference(nn.Module):
    """The arguments are those of `S3Diff`, the entries of the state those of the published classes."""

    def __init__(
        self,
        unet: dict | None = None,
        vae: dict | None = None,
        rank_unet: int = 32,
        rank_vae: int = 16,
        block_embedding_dim: int = 64,
    ):
        super().__init__()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.unet = UNet2DConditionModel(**(unet or SD_TURBO_UNET))
        self.vae = AutoencoderKL(**(vae or SD_TURBO_VAE))
        self.requires_grad_(False)
        self.unet.conv_in.requires_grad_(True)
        is_target = {
            'unet': lambda name: any(name == end or name.endswith(f'.{end}') for end in UNET_TARGETS),
            'vae': lambda name: re.fullmatch(VAE_TARGETS, name) is not None,
        }
        self.ranks = {'vae': rank_vae, 'unet': rank_unet}
        self.layers = {'vae': injected(self.vae, is_target['vae'], rank_vae, 'vae_skip')}
        self.layers['unet'] = injected(self.unet, is_target['unet'], rank_unet, 'default')
        self.W = nn.Parameter(torch.randn(64), requires_grad=False)
        for part, rows in (('vae', 6), ('unet', 10)):
            rank = self.ranks[part]
            self.add_module(f'{part}_de_mlp', nn.Sequential(nn.Linear(256, 256), nn.ReLU()))
            self.add_module(
                f'{part}_block_mlp', nn.Sequential(nn.Linear(block_embedding_dim, block_embedding_dim), nn.ReLU())
            )
            self.add_module(f'{part}_fuse_mlp', nn.Linear(256 + block_embedding_dim, rank**2))
            self.add_module(f'{part}_block_embeddings', nn.Embedding(rows, block_embedding_dim))

    def matrices(self, score: Tensor) -> dict[str, Tensor]:
        """Scores (n, 2) -> (n, rows, r, r) for each part."""
        angles = [score[:, j : j + 1] * self.W * 2 * math.pi for j in range(2)]
        fourier = torch.cat([torch.sin(angles[0]), torch.cos(angles[0]), torch.sin(angles[1]), torch.cos(angles[1])], 1)
        found = {}
        for part, rank in self.ranks.items():
            e = self.get_submodule(f'{part}_de_mlp')(fourier)
            b = self.get_submodule(f'{part}_block_mlp')(self.get_submodule(f'{part}_block_embeddings').weight)
            both = torch.cat([e[:, None].expand(-1, len(b), -1), b[None].expand(len(e), -1, -1)], 2)
            found[part] = self.get_submodule(f'{part}_fuse_mlp')(both).reshape(len(e), len(b), rank, rank)
        return found

    def modulate(self, score: Tensor) -> None:
        for part, table in self.matrices(score).items():
            for name, layer in self.layers[part].items():
                layer.modulation = table[:, row(part, name)]

    def step(
        self, x: Tensor, score: Tensor, positive: Tensor, negative: Tensor | None, noise: Tensor, guidance: float
    ) -> Step:
        """x (n, 3, h, w) in [-1, 1], prompts (1 or n, tokens, channels), noise like the latent; None: no guidance."""
        self.modulate(score)
        moments = self.moments(x)
        mean, logvar = moments.chunk(2, 1)
        z = (mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise) * self.vae.config.scaling_factor
        eps = self.guided(z, positive, negative, guidance)
        x0 = (z - math.sqrt(1 - ABAR) * eps) / math.sqrt(ABAR)
        decoded = self.decoded(x0)
        return Step(moments, z, eps, x0, decoded, decoded.clamp(-1, 1))

    def moments(self, x: Tensor) -> Tensor:
        return self.vae.quant_conv(self.vae.encoder(x))

    def guided(self, z: Tensor, positive: Tensor, negative: Tensor | None, guidance: float) -> Tensor:
        eps = self.unet(z, TIMESTEP, positive.expand(len(z), -1, -1)).sample
        if negative is not None:
            of_negative = self.unet(z, TIMESTEP, negative.expand(len(z), -1, -1)).sample
            eps = of_negative + guidance * (eps - of_negative)
        return eps

    def decoded(self, x0: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(x0 / self.vae.config.scaling_factor))

    def forward(self, x: Tensor, score: Tensor, positive: Tensor, negative: Tensor, noise: Tensor) -> Tensor:
        return self.step(x, score, positive, negative, noise, GUIDANCE).y


def injected(net: nn.Module, is_target, rank: int, adapter: str) -> dict[str, LoRALayer]:
    """Put LoRA around the layers of a network whose names are meant."""
    layers = {}
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and is_target(name):
            parent, _, leaf = name.rpartition('.')
            layers[name] = LoRALayer(module, rank, adapter)
            setattr(net.get_submodule(parent), leaf, layers[name])
    return layers


def row(part: str, name: str) -> int:
    """Of a layer's matrix in the table."""
    name = name if part == 'unet' else name.removeprefix('encoder.')
    kind, _, rest = name.partition('.')
    if kind == 'down_blocks':
        return int(rest.split('.')[0])
    if kind == 'mid_block':
        return 4
    if kind == 'up_blocks':
        return 5 + int(rest.split('.')[0])
    return 9 if part == 'unet' else 5
