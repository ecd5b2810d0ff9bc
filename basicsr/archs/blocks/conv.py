"""Convolution blocks that several networks share."""

from torch import nn


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
