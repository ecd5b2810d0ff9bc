"""The networks by which ITER judges and refines maps of tokens (Chen et al., AAAI 2024, arXiv:2312.05616, figure 3).

Attribute names are those of the published checkpoints.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type, without_autocast
from basicsr.archs.blocks.autoencoder import HalvingConv, HeadsAttention, ResidualBlock, group_norm
from basicsr.archs.blocks.conv import conv3
from basicsr.archs.blocks.swin import SwinLayers
from basicsr.archs.blocks.unet import EnlargingConv, norm_silu


class TokenNet(nn.Module):
    """One or two maps of tokens -> logits of each place: `net(net.embed(a, 0) + net.embed(b, 1))`.

    As published, both maps become one-hot images, to which `code_emb` and then, side by side, `combine` are applied.
    Of all that only sums of columns of the weights are left, which are looked up here.

    Args:
        ch: features; in_channels: kinds of tokens, the last of which may be the mark; out_ch: logits of a place.
    Shape: (b, ch, h, w) from `embed` -> (b, out_ch, h, w) in float32 at least; h, w multiples of `size_multiple`.
    """

    size_multiple = 1

    def __init__(self, ch: int, in_channels: int):
        super().__init__()
        self.code_emb = nn.Conv2d(in_channels, ch, 1, bias=False)
        self.combine = nn.Conv2d(2 * ch, ch, 1, bias=False)

    def embed(
        self, tokens: Tensor, slot: int | None = None, kept: Tensor | None = None, marked: Tensor | None = None
    ) -> Tensor:
        """What one map of tokens contributes to the features that the network is given.

        Args:
            tokens: (b, h, w) int64.
            slot: 0 for the first of two maps, 1 for the second, None for a map that is alone.
            kept: (b, h, w), tokens are multiplied by it; marked: (b, h, w), of the last kind of token.
        Shape: (b, ch, h, w) in float32 at least; gradients reach the weights.
        """
        table = self._table(slot)
        features = F.embedding(tokens, table)
        if kept is not None:
            features = features * kept[..., None].to(table.dtype)
        if marked is not None:
            features = torch.addcmul(features, marked[..., None].to(table.dtype), table[-1])
        return rearrange(features, 'b h w c -> b c h w')

    def _table(self, slot: int | None) -> Tensor:
        """(in_channels, ch): what a token of each kind contributes."""
        weight = self.code_emb.weight[:, :, 0, 0]
        exact = exact_type(weight.dtype)
        if slot is None:
            return weight.t().to(exact)
        half = self.combine.weight[:, :, 0, 0].chunk(2, 1)[slot]
        with without_autocast(weight.device):
            return weight.t().to(exact) @ half.t().to(exact)

    def check_size(self, h: int, w: int) -> None:
        """Raise ValueError for a map that the network does not take."""
        if h % self.size_multiple or w % self.size_multiple:
            raise ValueError(f'maps of tokens need sides that are multiples of {self.size_multiple}, got {h}x{w}')


class LogitsHead(nn.Sequential):
    """Norm, SiLU and a convolution, the last in float32 at least: logits in bfloat16 would tie."""

    def __init__(self, dim: int, out_ch: int):
        super().__init__(group_norm(dim), nn.SiLU(), nn.Conv2d(dim, out_ch, 1))

    def forward(self, x: Tensor) -> Tensor:
        return exact_conv(self[2], norm_silu(x, self[0]))


def exact_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution computed in float32 at least, whatever autocast says."""
    exact = exact_type(x.dtype)
    with without_autocast(x.device):
        return F.conv2d(x.to(exact), conv.weight.to(exact), conv.bias.to(exact))


class SwinTokenNet(TokenNet):
    """The published token net: Swin blocks as wide as the features, which have 8 heads and windows of 8.

    Args:
        ch: features.
        swin_blk_num: groups of Swin blocks; swin_blk_depth: blocks in each group.
    """

    def __init__(self, in_channels: int, out_ch: int, ch: int = 256, swin_blk_num: int = 4, swin_blk_depth: int = 6):
        super().__init__(ch, in_channels)
        self.swin_layers = SwinLayers(ch, ch, swin_blk_num, swin_blk_depth)
        self.conv_out = LogitsHead(ch, out_ch)
        self.size_multiple = self.swin_layers.window_size

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(*x.shape[-2:])
        return self.conv_out(self.swin_layers(x))


class UNetTokenNet(TokenNet):
    """Residual blocks at falling and rising resolutions.

    Args:
        ch: features.
        ch_mult: what they are multiplied by on each level.
        num_res_blocks: residual blocks on each level, each way.
    """

    def __init__(
        self,
        in_channels: int,
        out_ch: int,
        ch: int = 128,
        ch_mult: tuple[int, ...] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
    ):
        super().__init__(ch, in_channels)
        self.size_multiple = 2 ** (len(ch_mult) - 1)
        self.conv_in = conv3(in_channels, ch).requires_grad_(False)  # published files have it; it is never used
        inputs = [ch, *(ch * mult for mult in ch_mult)]
        self.enc_blocks = nn.ModuleList()
        for level in range(len(ch_mult)):
            narrow, wide = inputs[level : level + 2]
            end = [HalvingConv(wide)] if level < len(ch_mult) - 1 else []
            self.enc_blocks.append(nn.Sequential(*residual_blocks(narrow, wide, num_res_blocks), *end))
        self.mid_block = nn.Sequential(ResidualBlock(wide, wide), HeadsAttention(wide))
        self.dec_blocks = nn.ModuleList()
        for level in reversed(range(len(ch_mult))):
            narrow, wide = inputs[level : level + 2]
            end = [EnlargingConv(narrow)] if level else []
            self.dec_blocks.append(nn.Sequential(*residual_blocks(wide + narrow, narrow, num_res_blocks), *end))
        self.conv_out = LogitsHead(ch, out_ch)

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(*x.shape[-2:])
        skips = []
        for level in self.enc_blocks:
            skips.append(x)
            x = level(x)
        for _ in range(2):  # as published, the same blocks twice
            x = self.mid_block(x)
        for level in self.dec_blocks:
            x = level(torch.cat([x, skips.pop()], 1))
        return self.conv_out(x)


def residual_blocks(inputs: int, out: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(inputs if i == 0 else out, out) for i in range(count)]


class TransformerTokenNet(TokenNet):
    """A transformer in LLaMA's way (arXiv:2302.13971) over all tokens in raster order: any size.

    Args:
        ch: features, a multiple of 16.
    """

    def __init__(self, in_channels: int, out_ch: int, ch: int = 512):
        super().__init__(ch, in_channels)
        self.model = Transformer(ch)
        self.conv_out = LogitsHead(ch, out_ch)

    def forward(self, x: Tensor) -> Tensor:
        h = x.shape[-2]
        tokens = self.model(rearrange(x, 'b c h w -> b (h w) c'))
        return self.conv_out(rearrange(tokens, 'b (h w) c -> b c h w', h=h))


class Transformer(nn.Module):
    """Eight layers of eight heads: (b, n, dim) keeps its shape."""

    heads, depth = 8, 8

    def __init__(self, dim: int):
        super().__init__()
        if dim % (2 * self.heads):
            raise ValueError(
                f'a transformer of {self.heads} heads has a multiple of {2 * self.heads} channels, got {dim}'
            )
        self.layers = nn.ModuleList(TransformerLayer(dim, self.heads) for _ in range(self.depth))
        self.norm = nn.RMSNorm(dim, eps=1e-5).requires_grad_(False)  # published files have it; it is never used

    def forward(self, x: Tensor) -> Tensor:
        turns = rotations(x.shape[1], x.shape[2] // self.heads, x.device)
        for layer in self.layers:
            x = layer(x, turns)
        return x


class TransformerLayer(nn.Module):
    """Attention of all tokens and a gated feed-forward part, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = RotaryAttention(dim, heads)
        self.feed_forward = FeedForward(dim)
        self.attention_norm = nn.RMSNorm(dim, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feed_forward(self.ffn_norm(x))


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are turned by angles that grow with their place (RoFormer, arXiv:2104.09864)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            rearrange(part(x), 'b n (heads d) -> b heads n d', heads=self.heads) for part in (self.wq, self.wk, self.wv)
        )
        out = F.scaled_dot_product_attention(rotated(q, turns), rotated(k, turns), v)
        return self.wo(rearrange(out, 'b heads n d -> b n (heads d)'))


def rotations(count: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (count, width / 2) of the angle by which each pair of channels at each place is turned."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(count, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotated(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """(b, heads, n, d) with its pairs of neighbouring channels turned, in the dtype of x."""
    (cos, sin), (a, b) = turns, x.unflatten(-1, (-1, 2)).to(turns[0].dtype).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x), whose hidden width is two thirds of 4 * dim, rounded up to a multiple of 256."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = -(-(8 * dim // 3) // 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


TOKEN_NETS = {'swin': SwinTokenNet, 'unet': UNetTokenNet, 'transformer': TransformerTokenNet}
