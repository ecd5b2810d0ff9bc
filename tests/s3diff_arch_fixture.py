"""An S3Diff small enough for tests, with additions that are not zero, and what it is given."""

import torch
from torch import Tensor, nn

from basicsr.archs.s3diff_arch import S3Diff

EXACT = torch.float64
UNET = {
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'block_out_channels': [8, 16],
    'layers_per_block': 1,
    'cross_attention_dim': 6,
    'attention_head_dim': [2, 4],
    'use_linear_projection': True,
    'norm_num_groups': 4,
}
VAE = {
    'down_block_types': ['DownEncoderBlock2D'] * 2,
    'up_block_types': ['UpDecoderBlock2D'] * 2,
    'block_out_channels': [4, 8],
    'layers_per_block': 1,
    'norm_num_groups': 4,
    'scaling_factor': 0.18215,
}


def randomised(net: nn.Module, seed: int = 1) -> nn.Module:
    """The network with other additions and matrices than those that it begins with, which are nothing or nearly so."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        if '.lora_' in name or '_mlp' in name:
            value = torch.randn(parameter.shape, generator=draw, dtype=EXACT) * parameter[0].numel() ** -0.5
            parameter.data.copy_(2 * value if '_fuse_mlp' in name else value)
    return net


def small(seed: int = 0, **changes) -> S3Diff:
    torch.manual_seed(seed)
    return randomised(S3Diff(**{'unet': UNET, 'vae': VAE, 'rank_unet': 3, 'rank_vae': 2} | changes)).to(EXACT)


def batch(n: int = 2, seed: int = 0, size: tuple[int, int] = (16, 24)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, score, prompt and noise of a network that reduces sides to a half."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=EXACT)

    x = normal(n, 3, *size).tanh()
    score = torch.rand(n, 2, generator=draw, dtype=EXACT)
    return x, score, normal(n, 5, 6), normal(n, 4, size[0] // 2, size[1] // 2)
