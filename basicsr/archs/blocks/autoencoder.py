"""Blocks of VQGAN's autoencoder (Esser et al., arXiv:2012.09841) as ITER has them, by their published names."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.conv import conv3
from basicsr.archs.blocks.unet import convolved, fast_order


def group_norm(dim: int) -> nn.GroupNorm:
    """32 groups, or one for every four channels of narrow features. Raises ValueError for a width without such."""
    groups = 32 if dim >= 32 else dim // 4
    if not groups or dim % groups:
        raise ValueError(f'features of an autoencoder have 4, 8, ... 28 or a multiple of 32 channels, got {dim}')
    return nn.GroupNorm(groups, dim, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut: (b, inputs, h, w) -> (b, out, h, w)."""

    def __init__(self, inputs: int, out: int):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv3(inputs, out)
        self.norm2 = group_norm(out)
        self.conv2 = conv3(out, out)
        if inputs != out:
            self.conv_out = nn.Conv2d(inputs, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = convolved(convolved(x, self.conv1, self.norm1), self.conv2, self.norm2)
        return h.add_(self.conv_out(x) if hasattr(self, 'conv_out') else x)  # no backward pass reads h


class HalvingConv(nn.Module):
    """A convolution that halves even sides, with zeros at the right and the bottom only."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return fast_order(self.conv(F.pad(x, (0, 1, 0, 1))))


class HeadsAttention(nn.Module):
    """What is published as spatial attention: at each pixel its 8 heads attend to one another, beside a shortcut."""

    heads, head_dim = 8, 64

    def __init__(self, dim: int):
        super().__init__()
        if dim % 4:
            raise ValueError(f'attention over heads needs a multiple of 4 channels, got {dim}')
        inner = self.heads * self.head_dim
        self.norm = nn.GroupNorm(4, dim, eps=1e-6)
        self.qkv = nn.Conv2d(dim, 3 * inner, 1)
        self.proj_out = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        qkv = rearrange(self.qkv(self.norm(x)), 'b (qkv n d) h w -> qkv (b h w) n d', qkv=3, n=self.heads)
        out = F.scaled_dot_product_attention(*qkv.contiguous())
        return self.proj_out(rearrange(out, '(b h w) n d -> b (n d) h w', h=h, w=w)) + x
