"""Swin blocks of ITER (Chen et al., arXiv:2312.05616): SwinIR's (arXiv:2108.10257) with a gate over the whole image.

Attribute names are those of the published checkpoints.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from basicsr.archs.blocks.attention import fused_attention, grouped_attention, without_autocast
from basicsr.archs.blocks.conv import conv3
from basicsr.archs.blocks.linear import FusedLinear
from basicsr.archs.blocks.unet import convolved, fast_order
from basicsr.archs.blocks.windows import (
    relative_position_bias,
    relative_position_index,
    shift_mask,
    take_rows,
    window_plan,
)

# Up to so many windows it is faster to attend in all of them at once, with the masks of each, than by kinds of mask.
FEW_WINDOWS = 16


class SwinLayers(nn.Module):
    """Groups of Swin blocks between two convolutions, beside a shortcut; keeps the shape.

    Args:
        embed_dim: channels of input and output; swin_dim: channels of the tokens, divisible by num_heads.
        blk_num, blk_depth: groups, and blocks in each; every odd block shifts its windows.
        input_resolution: (h, w) that decides the windows: where its shorter side is no longer than window_size,
            windows have that side and are never shifted. Inputs may have any other size.
    Shape: (b, embed_dim, h, w), h and w multiples of `window_size`, which is that of the windows as they became.
    """

    def __init__(
        self,
        embed_dim: int,
        swin_dim: int = 256,
        blk_num: int = 1,
        blk_depth: int = 6,
        window_size: int = 8,
        num_heads: int = 8,
        input_resolution: tuple[int, int] = (32, 32),
    ):
        super().__init__()
        if swin_dim % num_heads:
            raise ValueError(f'{num_heads} heads do not divide the {swin_dim} channels of the Swin blocks')
        shifts = min(input_resolution) > window_size
        if min(input_resolution) < 1 or (shifts and any(side % window_size for side in input_resolution)):
            raise ValueError(
                f'Swin blocks with windows of {window_size} are made for multiples of it, got {tuple(input_resolution)}'
            )
        self.input_resolution = tuple(input_resolution)
        self.window_size = window_size if shifts else min(input_resolution)
        self.conv_in = conv3(embed_dim, swin_dim)
        self.conv_out = conv3(swin_dim, embed_dim)
        self.swin_blks = nn.ModuleList(
            SwinGroup(swin_dim, blk_depth, num_heads, self.window_size, shifts) for _ in range(blk_num)
        )

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if h % self.window_size or w % self.window_size:
            raise ValueError(f'sides of Swin blocks are multiples of their window {self.window_size}, got {h}x{w}')
        features = convolved(fast_order(x), self.conv_in)
        for group in self.swin_blks:
            features = group(features)
        return convolved(features, self.conv_out) + x


class SwinGroup(nn.Module):
    """Swin blocks and a convolution, beside a shortcut over both; keeps the shape (b, dim, h, w)."""

    def __init__(self, dim: int, depth: int, heads: int, window_size: int, shifts: bool):
        super().__init__()
        blocks = [SwinBlock(dim, heads, window_size, window_size // 2 if shifts and i % 2 else 0) for i in range(depth)]
        self.residual_group = nn.ModuleDict({'blocks': nn.ModuleList(blocks)})
        self.conv = conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        tokens = rearrange(x, 'b c h w -> b (h w) c').contiguous()
        for block in self.residual_group['blocks']:
            tokens = block(tokens, size)
        return convolved(fast_order(rearrange(tokens, 'b (h w) c -> b c h w', h=size[0])), self.conv) + x


class SwinBlock(nn.Module):
    """Attention inside windows and a feed-forward part, each behind a norm and beside a shortcut: (b, h * w, dim)."""

    def __init__(self, dim: int, heads: int, window_size: int, shift: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window_size, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GatedMlp(dim, 4 * dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(layer_norm(x, self.norm1), size)
        return x + self.mlp(layer_norm(x, self.norm2))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x); in the dtype of x where nothing is learned on a CPU, of whose kernels that is the faster."""
    if x.device.type != 'cpu' or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return norm(x)
    with without_autocast(x.device):
        return norm(x)


class WindowAttention(nn.Module):
    """Attention inside (shifted) windows with a learned bias per head and offset: (b, h * w, dim) keeps its shape."""

    def __init__(self, dim: int, heads: int, window_size: int, shift: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.window_size, self.shift = window_size, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = FusedLinear(dim, 3 * dim)
        self.proj = FusedLinear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        plan = window_plan(len(x), *size, self.window_size, self.shift, x.device)
        rows = self.qkv(take_rows(x.flatten(0, 1), plan.order, plan.inverse))
        windows = rearrange(rows, '(g n) c -> g n c', n=self.window_size**2)
        bias = relative_position_bias(self.relative_position_bias_table, self.window_size)
        groups = plan.groups
        if len(groups) > 1 and len(windows) <= FEW_WINDOWS and not torch.is_grad_enabled():
            masks = [bias.new_zeros(bias.shape[1:]) if mask is None else mask for _, mask in groups]
            masks = [mask.expand(count, 1, -1, -1) for (count, _), mask in zip(groups, masks)]
            out = fused_attention(windows, self.heads, self.scale, (bias + torch.cat(masks)).to(windows.dtype))
        else:
            parts = windows.split([count for count, _ in groups])
            biases = [bias if mask is None else bias + mask for _, mask in groups]
            parts = [grouped_attention(part, self.heads, self.scale, own) for part, own in zip(parts, biases)]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return take_rows(self.proj(out.flatten(0, 1)), plan.inverse, plan.order).view(x.shape)


class GatedMlp(nn.Module):
    """Feed-forward part whose hidden channels are multiplied by gates in (0, 1) made of their means over all tokens.

    Thereby every pixel depends on all others, padding included: tiles never equal the whole image.
    Shape: (b, n, dim) -> (b, n, dim).
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = FusedLinear(dim, hidden, gelu=True)
        self.fc2 = FusedLinear(hidden, dim)
        self.attn = nn.Sequential(nn.Linear(hidden, hidden // 16), nn.SiLU(), nn.Linear(hidden // 16, hidden))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        means = x.mean(1)
        with without_autocast(x.device):  # it would turn more weights into bfloat16 than it multiplies numbers
            gates = self.attn(means.to(self.fc1.weight.dtype)).sigmoid().to(x.dtype)[:, None]
        return self.fc2(x * gates if torch.is_grad_enabled() else x.mul_(gates))


# ---- entries of published files that are computed here


def without_computed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state without the masks and indices that follow from the configuration."""
    return {k: v for k, v in state.items() if k.rpartition('.')[2] not in ('attn_mask', 'relative_position_index')}


def with_computed(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network with Swin blocks, with the masks and indices that published files have, in their order."""
    masks, indices = {}, {}
    for path, layers in net.named_modules():
        for name, block in layers.named_modules(prefix=path) if isinstance(layers, SwinLayers) else ():
            if isinstance(block, SwinBlock):
                indices[f'{name}.attn.qkv.weight'] = f'{name}.attn.relative_position_index', block.attn, layers
                if block.attn.shift:
                    masks[f'{name}.norm1.weight'] = f'{name}.attn_mask', block.attn, layers
    whole = {}
    for name, value in state.items():  # an entry comes before that whose name leads to it
        if name in masks:
            entry, attn, layers = masks[name]
            whole[entry] = shift_mask(*layers.input_resolution, attn.window_size, value.device)
        if name in indices:
            entry, attn, _ = indices[name]
            whole[entry] = relative_position_index(attn.window_size, value.device)
        whole[name] = value
    return whole
