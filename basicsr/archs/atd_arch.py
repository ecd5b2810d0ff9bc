"""ATD: Transcending the Limit of Local Window: Advanced Super-Resolution Transformer with Adaptive Token Dictionary
(Zhang et al., CVPR 2024, arXiv:2401.08209). Attribute names are those of the published checkpoints.
"""

import math
from collections import OrderedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from basicsr.archs.blocks.attention import exact_type, grouped_attention
from basicsr.archs.blocks.conv import conv3, pixel_shuffles, residual_conv
from basicsr.archs.blocks.windows import (
    mirror_pad,
    relative_position_bias,
    relative_position_index,
    take_rows,
    window_plan,
)
from basicsr.utils.registry import ARCH_REGISTRY

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
PUBLISHED_CHECKPOINTED_BLOCKS = 4


@ARCH_REGISTRY.register()
class ATD(nn.Module):
    """Tokens attend to their window, to a dictionary that adapts to the image, and to tokens of their category.

    Args:
        img_size, patch_size: only with `ape`, which needs (img_size // patch_size)^2 padded pixels.
        in_chans: channels of input and output; only 3 have a mean subtracted.
        embed_dim: feature channels, divisible by every entry of num_heads.
        depths, num_heads: layers and heads of each block.
        window_size: side of a window; inputs are mirrored up to a multiple of it.
        category_size: tokens that attend to one another after sorting by category.
        num_tokens, reducted_dim: entries of a dictionary; width of the queries to it.
        convffn_kernel_size, mlp_ratio: odd kernel and hidden width of the feed-forward part.
        qkv_bias, ape, patch_norm: as published.
        use_checkpoint: recompute activations in training: true = the first four blocks, a number = that many.
        upscale: the scale of the upsamplers; without one the output has the size of the input.
        img_range: the network works on values times this number.
        upsampler: 'pixelshuffle', 'pixelshuffledirect', 'nearest+conv' (x4 only), or '' for restoration.
        resi_connection: '1conv' or '3conv' after each block.
    Shape: (b, in_chans, h, w) in [0, 1] -> (b, in_chans, h * scale, w * scale), not clamped; any h and w.
    """

    def __init__(
        self,
        img_size: int = 64,
        patch_size: int = 1,
        in_chans: int = 3,
        embed_dim: int = 90,
        depths: tuple[int, ...] = (6, 6, 6, 6),
        num_heads: tuple[int, ...] = (6, 6, 6, 6),
        window_size: int = 8,
        category_size: int = 128,
        num_tokens: int = 64,
        reducted_dim: int = 4,
        convffn_kernel_size: int = 5,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool | int = False,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str = '',
        resi_connection: str = '1conv',
    ):
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f'depths has {len(depths)} blocks but num_heads has {len(num_heads)}')
        if any(embed_dim % heads for heads in num_heads):
            raise ValueError(f'embed_dim {embed_dim} must be divisible by every entry of num_heads {tuple(num_heads)}')
        if min(window_size, category_size, num_tokens, reducted_dim, embed_dim) < 1:
            raise ValueError('window_size, category_size, num_tokens, reducted_dim and embed_dim are 1 or more')
        if convffn_kernel_size % 2 == 0:
            raise ValueError(f'convffn_kernel_size must be odd, got {convffn_kernel_size}')
        self.window_size, self.img_range = window_size, img_range
        self.checkpointed = PUBLISHED_CHECKPOINTED_BLOCKS if use_checkpoint is True else int(use_checkpoint)
        mean = torch.tensor(RGB_MEAN) if in_chans == 3 else torch.zeros(1)
        self.register_buffer('mean', mean.view(1, -1, 1, 1), persistent=False)
        # Other programs recognise the network by this buffer; the layers compute with the plan's index.
        self.register_buffer('relative_position_index_SA', relative_position_index(window_size))
        side = img_size // patch_size
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, side**2, embed_dim)) if ape else None
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict({'norm': nn.LayerNorm(embed_dim)} if patch_norm else {}))
        options = {
            'dim': embed_dim,
            'window_size': window_size,
            'category_size': category_size,
            'num_tokens': num_tokens,
            'reduced_dim': reducted_dim,
            'kernel_size': convffn_kernel_size,
            'hidden': int(embed_dim * mlp_ratio),
            'qkv_bias': qkv_bias,
        }
        self.layers = nn.ModuleList(
            Block(depth, heads, resi_connection, options) for depth, heads in zip(depths, num_heads)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self.scale = self._build_head(upsampler, upscale, embed_dim, in_chans)
        self.upsampler = upsampler
        self.apply(initialise)
        if ape:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def _build_head(self, upsampler: str, upscale: int, dim: int, out_chans: int) -> int:
        """Add the reconstruction modules; returns the true scale."""
        if upsampler == 'pixelshuffledirect':
            self.upsample = nn.Sequential(conv3(dim, upscale**2 * out_chans), nn.PixelShuffle(upscale))
            return upscale
        if upsampler not in ('pixelshuffle', 'nearest+conv', ''):
            raise ValueError(
                "upsampler must be 'pixelshuffle', 'pixelshuffledirect', 'nearest+conv' or '' (none), "
                f'got {upsampler!r}'
            )
        if not upsampler:
            self.conv_last = conv3(dim, out_chans)
            return 1
        self.conv_before_upsample = nn.Sequential(conv3(dim, 64), nn.LeakyReLU(0.01))
        if upsampler == 'pixelshuffle':
            self.upsample = pixel_shuffles(64, upscale)
        elif upscale != 4:
            raise ValueError(f"upsampler 'nearest+conv' enlarges by 4 only, got upscale {upscale}")
        else:
            self.conv_up1, self.conv_up2, self.conv_hr = conv3(64, 64), conv3(64, 64), conv3(64, 64)
        self.conv_last = conv3(64, out_chans)
        return upscale

    optional_entries = ('no_norm',)  # of files that neosr trained, see _load_from_state_dict

    @staticmethod
    def from_published(state: dict) -> dict:
        """A published state dict, unchanged, or ValueError if it belongs to the incompatible ATD v2."""
        is_v1 = any(name.endswith(('.sigma', 'attn_aca.logit_scale')) for name in state)
        if not is_v1 and any(name.endswith('.fc_td.weight') for name in state):
            raise ValueError(
                'these are weights of ATD v2 (CVL-UESTC, 2026), another network; this project implements '
                'ATD v1 (CVPR 2024, LabShuHangGU)'
            )
        return state

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Files trained by neosr mark with this entry that they work without mean and range.
        if state_dict.pop(prefix + 'no_norm', None) is not None:
            self.mean.zero_()
            self.img_range = 1.0
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, lq: Tensor) -> Tensor:
        h, w = lq.shape[-2:]
        x = (mirror_pad(lq, self.window_size) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        features = self.conv_after_body(self._body(shallow)) + shallow
        out = self._enlarge(features) if self.upsampler else x + self.conv_last(features)
        out = out / self.img_range + self.mean
        return out[..., : h * self.scale, : w * self.scale]

    def _body(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        x = rearrange(features, 'b c h w -> b (h w) c').contiguous()
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self._position_embedding(size)
        for i, block in enumerate(self.layers):
            if i < self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, size, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, size)
        return rearrange(self.norm(x), 'b (h w) c -> b c h w', h=size[0])

    def _position_embedding(self, size: tuple[int, int]) -> Tensor:
        wanted = self.absolute_pos_embed.shape[1]
        if size[0] * size[1] != wanted:
            side = math.isqrt(wanted)
            raise ValueError(
                f'this network has absolute position embeddings (ape) for a padded input of {side}x{side} '
                f'pixels only, got {size[0]}x{size[1]}'
            )
        return self.absolute_pos_embed

    def _enlarge(self, features: Tensor) -> Tensor:
        if self.upsampler == 'pixelshuffledirect':
            return self.upsample(features)
        x = self.conv_before_upsample(features)
        if self.upsampler == 'pixelshuffle':
            return self.conv_last(self.upsample(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode='nearest')), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


class Block(nn.Module):
    """Layers that share and refine one dictionary, a convolution, and a shortcut over both."""

    def __init__(self, depth: int, heads: int, resi_connection: str, options: dict):
        super().__init__()
        self.residual_group = LayerGroup(depth, heads, options)
        self.conv = residual_conv(options['dim'], resi_connection)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        features = rearrange(self.residual_group(x, size), 'b (h w) c -> b c h w', h=size[0])
        return rearrange(self.conv(features), 'b c h w -> b (h w) c') + x


class LayerGroup(nn.Module):
    """The learned dictionary `td` and the layers; every odd layer shifts its windows."""

    def __init__(self, depth: int, heads: int, options: dict):
        super().__init__()
        self.td = nn.Parameter(torch.randn(options['num_tokens'], options['dim']))
        self.layers = nn.ModuleList(
            Layer(heads, shifted=i % 2 == 1, refines=i < depth - 1, **options) for i in range(depth)
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        dictionary = self.td.repeat(x.shape[0], 1, 1)
        for layer in self.layers:
            x, dictionary = layer(x, dictionary, size)
        return x


class Layer(nn.Module):
    """Three attentions over one LayerNorm, a feed-forward part, and the refinement of the dictionary.

    Shape: tokens (b, h * w, dim) and dictionary (b, num_tokens, dim) -> the same two; the last layer of a block
    hands the dictionary on as it is.
    """

    def __init__(
        self,
        heads: int,
        shifted: bool,
        refines: bool,
        dim: int,
        window_size: int,
        category_size: int,
        num_tokens: int,
        reduced_dim: int,
        kernel_size: int,
        hidden: int,
        qkv_bias: bool,
    ):
        super().__init__()
        self.refines = refines
        if refines:
            self.sigma = nn.Parameter(torch.zeros(num_tokens, 1))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        if refines:
            self.norm3 = nn.InstanceNorm1d(num_tokens, affine=True)
        self.wqkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_win = WindowAttention(dim, heads, window_size, shifted)
        self.attn_atd = DictionaryAttention(dim, num_tokens, reduced_dim, qkv_bias)
        self.attn_aca = CategoryAttention(dim, heads, category_size, qkv_bias)
        self.convffn = ConvFFN(dim, hidden, kernel_size)

    def forward(self, x: Tensor, dictionary: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        y = self.norm1(x)
        qkv = self.wqkv(y)
        from_dictionary, similarity = self.attn_atd(y, dictionary)
        x = x + self.attn_win(qkv, size) + from_dictionary + self.attn_aca(qkv, similarity)
        x = x + self.convffn(self.norm2(x), size)
        return x, self.refine(dictionary, similarity, x) if self.refines else dictionary

    def refine(self, dictionary: Tensor, similarity: Tensor, x: Tensor) -> Tensor:
        """Move every entry towards the tokens that resemble it most: (b, M, c), (b, n, M), (b, n, c) -> (b, M, c)."""
        # An instance norm over tokens is a batch norm of columns (sample, entry): no transposed copy for one sample.
        columns = rearrange(similarity, 'b n m -> n (b m)')
        weight, bias = (p.to(columns.dtype).repeat(x.shape[0]) for p in (self.norm3.weight, self.norm3.bias))
        normed = F.batch_norm(columns, None, None, weight, bias, training=True, eps=self.norm3.eps)
        attention = rearrange(normed.softmax(0), 'n (b m) -> b m n', b=x.shape[0])
        gate = self.sigma.to(columns.dtype).sigmoid()
        return gate * dictionary + (1 - gate) * (attention.to(x.dtype) @ x)


class WindowAttention(nn.Module):
    """Attention inside (shifted) windows with a learned bias per head and offset: (b, n, 3 * dim) -> (b, n, dim)."""

    def __init__(self, dim: int, heads: int, window_size: int, shifted: bool):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.window_size, self.shift = window_size, window_size // 2 if shifted else 0
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv: Tensor, size: tuple[int, int]) -> Tensor:
        plan = window_plan(qkv.shape[0], *size, self.window_size, self.shift, qkv.device)
        rows = take_rows(qkv.flatten(0, 1), plan.order, plan.inverse)
        windows = rearrange(rows, '(g n) c -> g n c', n=self.window_size**2)
        bias = relative_position_bias(self.relative_position_bias_table, self.window_size)
        parts = windows.split([count for count, _ in plan.groups])
        out = torch.cat(
            [
                grouped_attention(part, self.heads, self.scale, bias if mask is None else bias + mask)
                for part, (_, mask) in zip(parts, plan.groups)
            ]
        )
        return self.proj(take_rows(out.flatten(0, 1), plan.inverse, plan.order).view(*qkv.shape[:2], -1))


class DictionaryAttention(nn.Module):
    """Cross-attention to the dictionary: (b, n, dim), (b, M, dim) -> (b, n, dim) and the similarities (b, n, M)."""

    def __init__(self, dim: int, num_tokens: int, reduced_dim: int, bias: bool):
        super().__init__()
        self.sharpness = math.log(num_tokens)
        self.scale = nn.Parameter(torch.full((num_tokens,), 0.5))
        self.wq = nn.Linear(dim, reduced_dim, bias=bias)
        self.wk = nn.Linear(dim, reduced_dim, bias=bias)
        self.wv = nn.Linear(dim, dim, bias=bias)

    def forward(self, y: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        similarity = self.similarity(y, dictionary)
        v = self.wv(dictionary.to(y.dtype))
        return similarity.to(v.dtype) @ v, similarity

    def similarity(self, y: Tensor, dictionary: Tensor) -> Tensor:
        """Softmax over the entries, in float32 whatever the mode: rounded to bfloat16, whole categories would tie."""
        kind = y.device.type
        with torch.autocast(kind if torch.amp.is_autocast_available(kind) else 'cpu', enabled=False):
            q, k = (F.normalize(exact_linear(w, x), dim=-1) for w, x in ((self.wq, y), (self.wk, dictionary)))
            temperature = 1 + self.scale.to(q.dtype).clamp(0, 1) * self.sharpness
            return (q @ k.transpose(1, 2) * temperature).softmax(-1)


class CategoryAttention(nn.Module):
    """Attention inside groups of tokens sorted by category: (b, n, 3 * dim), (b, n, M) -> (b, n, dim)."""

    def __init__(self, dim: int, heads: int, category_size: int, bias: bool):
        super().__init__()
        self.heads, self.category_size = heads, category_size
        self.logit_scale = nn.Parameter(torch.full((1, 1), math.log(10)))
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, qkv: Tensor, similarity: Tensor) -> Tensor:
        b, n, _ = qkv.shape
        exporting = torch.compiler.is_exporting()  # then n is any number, and so are the tokens that a group lacks
        group = self.category_size if exporting else min(n, self.category_size)
        order = (category_order(similarity) + n * torch.arange(b, device=qkv.device)[:, None]).flatten()
        place = torch.empty_like(order).scatter_(0, order, torch.arange(b * n, device=order.device))
        rows = take_rows(qkv.flatten(0, 1), order, place).view(b, n, -1)
        full, unused = (n + group - 1) // group * group, None
        if exporting:
            slot = torch.arange(full, device=order.device)
            rows = rows.index_select(1, torch.minimum(slot, 2 * n - 1 - slot).clamp(min=0))
            unused = torch.where(slot[None, None, :group] < n, 0.0, -torch.inf)
        elif full > n:  # the last group is filled with its own tokens, mirrored
            rows = torch.cat([rows, rows[:, 2 * n - full :].flip(1)], 1)
        scale = self.logit_scale.squeeze().to(exact_type(qkv.dtype)).clamp(max=math.log(100)).exp()
        out = grouped_attention(rows.reshape(-1, group, rows.shape[-1]), self.heads, scale, unused)
        out = out.reshape(b, full, -1)[:, :n].flatten(0, 1)
        return self.proj(take_rows(out, place, order).view(b, n, -1))


def category_order(similarity: Tensor) -> Tensor:
    """(b, n, M) -> (b, n): tokens sorted by their most similar entry; ties keep raster order on every device."""
    categories = similarity.argmax(-1)
    if torch.compiler.is_exporting():  # ONNX has no stable sort: no two numbers are equal then
        n = categories.shape[1]
        return (categories * n + torch.arange(n, device=categories.device)).argsort(dim=-1)
    return categories.argsort(dim=-1, stable=True)


class ConvFFN(nn.Module):
    """fc2(u + gelu(depthwise(u))) with u = gelu(fc1(x)): (b, h * w, dim) -> the same."""

    def __init__(self, dim: int, hidden: int, kernel_size: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        conv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(depthwise_conv=nn.Sequential(conv, nn.GELU())))
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u = F.gelu(self.fc1(x))
        image = rearrange(u, 'b (h w) c -> b c h w', h=size[0])  # a view: tokens are channels-last memory
        return self.fc2(u + rearrange(self.dwconv(image), 'b c h w -> b (h w) c'))


def exact_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """linear(x) computed in float32 at least, whatever the types of both."""
    exact = exact_type(x.dtype)
    return F.linear(x.to(exact), linear.weight.to(exact), None if linear.bias is None else linear.bias.to(exact))


def initialise(module: nn.Module) -> None:
    """Linear layers as published (SwinIR's way); convolutions, norms and the rest keep what their constructors do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
