"""Convolution blocks that several networks share."""

import torch
from torch import Tensor, nn


def conv3(in_chans: int, out_chans: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(in_chans, out_chans, 3, padding=1)


def residual_conv(dim: int, kind: str) -> nn.Module:
    """The convolution before a shortcut: '1conv', or '3conv' with a narrow middle (SwinIR, arXiv:2108.10257).

    Raises ValueError for another kind.
    """
    if kind == '1conv':
        return conv3(dim, dim)
    if kind == '3conv':
        narrow = dim // 4
        return nn.Sequential(
            conv3(dim, narrow), nn.LeakyReLU(0.2), nn.Conv2d(narrow, narrow, 1), nn.LeakyReLU(0.2), conv3(narrow, dim)
        )
    raise ValueError(f"resi_connection must be '1conv' or '3conv', got {kind!r}")


def pixel_shuffles(dim: int, scale: int) -> nn.Sequential:
    """Convolutions and pixel shuffles that enlarge by 3 at once or by 2 several times, `dim` channels wide.

    Raises ValueError for a scale that is neither 3 nor a power of 2.
    """
    if scale != 3 and (scale < 1 or scale & (scale - 1)):
        raise ValueError(f"upsampler 'pixelshuffle' enlarges by 3 or a power of 2, got upscale {scale}")
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return nn.Sequential(*[m for f in factors for m in (conv3(dim, f * f * dim), nn.PixelShuffle(f))])


class ChannelAttention(nn.Module):
    """A factor in (0, 1) for each channel, from the means of all channels over the whole image (RCAN, eq. 8 to 10).

    Shape: (b, channels, h, w) -> (b, channels, 1, 1); the caller multiplies. Names are those of RCAN's code.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        if channels < reduction:
            raise ValueError(f'channel attention needs at least {reduction} channels (its reduction), got {channels}')
        narrow = channels // reduction
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, narrow, 1), nn.ReLU(inplace=True), nn.Conv2d(narrow, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_du(x.mean((2, 3), keepdim=True))


class RCAB(nn.Module):
    """Residual channel-attention block of RCAN (Zhang et al., ECCV 2018, arXiv:1807.02758); keeps the shape."""

    def __init__(self, channels: int, kernel_size: int, reduction: int):
        super().__init__()
        size = {'kernel_size': kernel_size, 'padding': kernel_size // 2}
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, **size),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, **size),
            ChannelAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, activation, second, attention = self.body
        features = second(activation(first(x)))
        return torch.addcmul(x, features, attention(features))


class ResidualGroup(nn.Module):
    """RCABs, a convolution, and a shortcut over all of them (RCAN); keeps the shape."""

    def __init__(self, channels: int, kernel_size: int, reduction: int, blocks: int):
        super().__init__()
        last = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.body = nn.Sequential(*[RCAB(channels, kernel_size, reduction) for _ in range(blocks)], last)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


def initialise_unit_gain(module: nn.Module) -> None:
    """MegEngine's start of a convolution, for `apply`: weights of N(0, 1 / fan_in), no bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity='linear')
        if module.bias is not None:
            nn.init.zeros_(module.bias)
