"""ITER's de-masking nets and LQ encoder written down plainly from shared/spec/iter.md 2.7 and 2.9.

Maps of tokens are one-hot images. State-dict names are the published ones, without the second names of shared modules
(`mid_block.2`, `mid_block.3`).
"""

import math

import torch
from iter_vqgan_reference import AttnBlock, Downsample, ResBlock, SwinLayers, Upsample, group_norm
from torch import Tensor, nn
from torch.nn import functional as F


class TokenNet(nn.Module):
    """What the three de-masking nets have in common."""

    def __init__(self, ch: int, in_channels: int, out_ch: int):
        super().__init__()
        self.code_emb = nn.Conv2d(in_channels, ch, 1, bias=False)
        self.combine = nn.Conv2d(2 * ch, ch, 1, bias=False)
        self.conv_out = nn.Sequential(group_norm(ch), nn.SiLU(), nn.Conv2d(ch, out_ch, 1))

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, list):
            x = self.combine(torch.cat([self.code_emb(one) for one in x], 1))
        else:
            x = self.code_emb(x)
        return self.conv_out(self.body(x))


class SwinModel(TokenNet):
    def __init__(self, ch: int, in_channels: int, out_ch: int, swin_blk_num: int = 4, swin_blk_depth: int = 6):
        super().__init__(ch, in_channels, out_ch)
        self.swin_layers = SwinLayers(ch, ch, swin_blk_num, swin_blk_depth)

    def body(self, x: Tensor) -> Tensor:
        return self.swin_layers(x)


class UNetModel(TokenNet):
    def __init__(self, ch: int, in_channels: int, out_ch: int, ch_mult=(1, 2, 4, 8), num_res_blocks: int = 2):
        super().__init__(ch, in_channels, out_ch)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)  # published, and never used
        widths = [ch * mult for mult in (1, *ch_mult)]
        levels, ups = len(ch_mult), []
        self.enc_blocks = nn.ModuleList()
        for i in range(levels):
            blocks = [ResBlock(widths[i] if j == 0 else widths[i + 1], widths[i + 1]) for j in range(num_res_blocks)]
            self.enc_blocks.append(nn.Sequential(*blocks, *([Downsample(widths[i + 1])] if i < levels - 1 else [])))
        self.mid_block = nn.Sequential(ResBlock(widths[-1], widths[-1]), AttnBlock(widths[-1]))
        for i in reversed(range(levels)):
            first = ResBlock(widths[i + 1] + widths[i], widths[i])
            blocks = [first, *(ResBlock(widths[i], widths[i]) for _ in range(num_res_blocks - 1))]
            ups.append(nn.Sequential(*blocks, *([Upsample(widths[i])] if i > 0 else [])))
        self.dec_blocks = nn.ModuleList(ups)

    def body(self, x: Tensor) -> Tensor:
        saved = []
        for block in self.enc_blocks:
            saved.append(x)
            x = block(x)
        x = self.mid_block(self.mid_block(x))
        for block in self.dec_blocks:
            x = block(torch.cat([x, saved.pop()], 1))
        return x


class RMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * torch.rsqrt((x.float() ** 2).mean(-1, keepdim=True) + 1e-5)).to(x) * self.weight


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of (b, n, heads, d): adjacent pairs are complex numbers, turned by the place in raster order."""
    n, d = x.shape[1], x.shape[-1]
    angles = torch.outer(torch.arange(n).float(), 10000 ** (-torch.arange(0, d, 2).float() / d)).to(x.device)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(3).to(x)


class RotaryAttention(nn.Module):
    def __init__(self, dim: int, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.wq, self.wk, self.wv))
        q, k, v = (part.transpose(1, 2) for part in (rotated(q), rotated(k), v))
        attention = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)
        return self.wo((attention @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        hidden = math.ceil(int(2 * 4 * dim / 3) / 256) * 256
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerLayer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.attention, self.feed_forward = RotaryAttention(dim), FeedForward(dim)
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class TransformerModel(TokenNet):
    def __init__(self, ch: int, in_channels: int, out_ch: int):
        super().__init__(ch, in_channels, out_ch)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(TransformerLayer(ch) for _ in range(8))
        self.model.norm = RMSNorm(ch)  # published, and never applied

    def body(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        for layer in self.model.layers:
            rows = layer(rows)
        return rows.transpose(1, 2).reshape(x.shape)


class LQNorm(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class LQResBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        halves = ((LQNorm(c), nn.LeakyReLU(0.2), nn.Conv2d(c, c, 3, padding=1)) for _ in range(2))
        self.conv = nn.Sequential(*(layer for half in halves for layer in half))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class LQEncoder(nn.Module):
    def __init__(self, in_ch: int, feat_dim: int, out_dim: int, depth: int, chn: int = 64):
        super().__init__()
        layers, c = [nn.Conv2d(in_ch, chn, 3, padding=1)], chn
        for _ in range(depth):
            down = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
            layers.append(nn.Sequential(down, LQResBlock(2 * c), LQResBlock(2 * c)))
            c = 2 * c
        layers += [nn.Conv2d(c, feat_dim, 1), SwinLayers(feat_dim, feat_dim, 2, 6), nn.Conv2d(feat_dim, out_dim, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
