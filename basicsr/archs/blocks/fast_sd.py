"""Diffusers' networks as a CPU computes them fastest where no gradient is recorded: what they compute stays the same.

Layers get another `forward` once, when the network has been built. With gradients, on other devices and under
torch.compile they take the usual path.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type, without_autocast
from basicsr.archs.blocks.linear import library_type
from basicsr.archs.blocks.lora import LoRALayer
from basicsr.archs.blocks.unet import FOLDED_FROM, fast_order, folded, norm_silu
from basicsr.archs.blocks.winograd import repays, winograd
from basicsr.utils.optional import optional

# An addition goes into the weight in the call itself where that has less products than adding it to what the layer
# gives: for more than 1 / (1 / outputs + 1 / inputs of one output) pixels or tokens. Measured: times this.
MERGED_FROM = 1.5
LONG, CHUNK = 512, 256  # keys from which on attention is split; rows of it at a time


class Kernel(NamedTuple):
    """What a layer multiplies by and adds."""

    weight: Tensor
    bias: Tensor | None

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]


def speed_up(net: nn.Module) -> None:
    """Give the layers of a network of diffusers, with LoRA layers or without, their faster `forward`."""
    adapted = [module for module in net.modules() if isinstance(module, LoRALayer)]
    inner = {part for layer in adapted for part in layer.modules()} - set(adapted)
    for module in net.modules():
        base = module.base_layer if isinstance(module, LoRALayer) else module
        if module in inner:
            continue
        if type(base) is nn.Conv2d and base.padding_mode == 'zeros' and not isinstance(base.padding, str):
            module.forward = FastConv(module)
        elif type(base) is nn.Linear:
            module.forward = FastLinear(module)
        elif type(base) is nn.GroupNorm:
            module.forward = FastGroupNorm(module)
    for module in net.modules():
        for kind, is_plain, fast in (
            (optional('diffusers.models.resnet', 's3diff').ResnetBlock2D, is_plain_resnet, FastResnet),
            (optional('diffusers.models.upsampling', 's3diff').Upsample2D, is_plain_upsample, FastUpsample),
            (optional('diffusers.models.attention_processor', 's3diff').Attention, is_plain_attention, FastAttention),
        ):
            if type(module) is kind and is_plain(module):
                module.forward = fast(module)


@contextmanager
def merged(layers: Sequence[LoRALayer]) -> Iterator[None]:
    """Inside, the weights of layers hold what is added to them: for many calls with the matrices of one image.

    To be used inside `modulated`, and inside autocast if that is wanted. The weights are added up in float32 at least,
    and then made what autocast wants; their own are kept beside them.
    """
    try:
        for layer in layers:
            up, *others = layer.projections.current[layer.index]
            if others:
                raise ValueError(f'weights are merged with the matrices of one image, got those of {1 + len(others)}')
            kind, dtype = layer.weight.device.type, layer.weight.dtype
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
            layer.forward.merged = layer.forward.ordered(merged_kernel(layer, up, dtype))
        yield
    finally:
        for layer in layers:
            layer.forward.merged = None


def merged_kernel(layer: LoRALayer, up: Tensor, dtype: torch.dtype) -> Kernel:
    """The weight W + U A of a layer for U (out, r), and its bias."""
    weight, exact = layer.weight.detach(), exact_type(layer.weight.dtype)
    down = layer.lora_A[layer.adapter].weight.detach().flatten(1).to(exact)
    with without_autocast(weight.device):
        total = torch.addmm(weight.flatten(1).to(exact), up.detach().to(exact), down)
    return Kernel(total.view_as(weight).to(dtype), None if layer.bias is None else layer.bias.detach().to(dtype))


class FastLayer:
    """What FastConv and FastLinear share: the `forward` of a layer, or of a LoRALayer around one."""

    def __init__(self, layer: nn.Module):
        self.layer, self.usual = layer, layer.forward
        self.adapted = isinstance(layer, LoRALayer)
        self.base = layer.base_layer if self.adapted else layer
        self.merged: Kernel | None = None  # for many calls, see there
        self.packs = True  # whether `kernel` may be in an order that only oneDNN knows
        self.packed: Kernel | None = None
        self.packed_of: tuple = ()

    def __getstate__(self) -> dict:
        """Without packed weights, which cannot be copied: copies of the network make their own."""
        return vars(self) | {'packed': None, 'packed_of': ()}

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """Of the layer itself; in bfloat16 packed, as long as the weight stays what it is."""
        weight, bias = self.base.weight, self.base.bias
        if dtype == weight.dtype == torch.float32:
            return Kernel(weight, bias)
        now = weight.data_ptr(), 0 if weight.is_inference() else weight._version, dtype
        if self.packed is None or self.packed_of != now:
            own = Kernel(weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype))
            self.packed, self.packed_of = self.ordered(own), now
        return self.packed

    def chosen(self, count: int, dtype: torch.dtype) -> Kernel | None:
        """What computes all of the layer for `count` pixels or tokens; None where what LoRA adds is added after it."""
        if self.merged is not None or not self.adapted:
            return self.merged or self.kernel(dtype)
        current = self.layer.projections.current[self.layer.index]
        out, inputs = self.base.weight.flatten(1).shape
        if len(current) > 1 or count <= MERGED_FROM / (1 / out + 1 / inputs):
            return None
        return merged_kernel(self.layer, current[0], dtype)

    def ordered(self, kernel: Kernel) -> Kernel:
        """In bfloat16 on a CPU, with its weight as oneDNN wants it, so that it need not turn it round in every call."""
        if not self.packs or kernel.weight.dtype != torch.bfloat16 or kernel.weight.device.type != 'cpu':
            return kernel
        return kernel._replace(weight=self.reordered(kernel.weight.contiguous()))

    def type_for(self, x: Tensor) -> torch.dtype | None:
        """The type to compute in; None: as usual, also to say what is wrong."""
        lacks = self.adapted and self.merged is None and self.layer.projections.current is None
        return None if lacks else library_type(x)

    def low(self, x: Tensor) -> Tensor:
        return self.layer.lora_A[self.layer.adapter](x)


class FastLinear(FastLayer):
    """The layer by oneDNN."""

    def reordered(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        dtype = self.type_for(x)
        if dtype is None:
            return self.usual(x) if self.merged is None else F.linear(x, *self.merged)
        x = x.to(dtype)
        kernel = self.chosen(x[..., 0].numel(), dtype)
        if kernel is not None:
            return linear(x, kernel)
        return self.layer.add(linear(x, self.kernel(dtype)), self.low(x))


class FastConv(FastLayer):
    """The convolution by Winograd's method where that repays, else by oneDNN."""

    def __init__(self, layer: nn.Module):
        super().__init__(layer)
        base = self.base
        self.how = base.stride, base.padding, base.dilation, base.groups
        usual = base.kernel_size == (3, 3) and self.how == ((1, 1), (1, 1), (1, 1), 1)
        self.is_plain = usual and base.bias is not None

    def reordered(self, weight: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.how
        shape = 1, weight.shape[1] * groups, 64, 64  # of an image; in bfloat16 the order is the same for all
        return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.of(x)

    def of(self, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        """conv(x), or conv(silu(norm(x)))."""
        dtype = self.type_for(x)
        if dtype is None:
            x = x if norm is None else F.silu(norm(x))
            return self.usual(x) if self.merged is None else F.conv2d(x, *self.merged, *self.how)
        x = in_order(x.to(dtype))
        kernel = self.chosen(len(x) * x.shape[2] * x.shape[3], dtype)
        if kernel is not None:
            return self.convolved(x, kernel, norm)
        x = x if norm is None else norm_silu(x, norm)
        return self.layer.add(self.convolved(x, self.kernel(dtype)), self.low(x))

    def convolved(self, x: Tensor, kernel: Kernel, norm: nn.GroupNorm | None = None) -> Tensor:
        if self.is_plain and repays(x, kernel):
            return winograd(x, kernel, norm=norm)
        x = fast_order(x if norm is None else norm_silu(x, norm))
        if not kernel.weight.is_mkldnn:
            return F.conv2d(x, *kernel, *self.how)
        stride, padding, dilation, groups = self.how
        return torch.ops.mkldnn._convolution_pointwise(x, *kernel, padding, stride, dilation, groups, 'none', [], '')


def linear(x: Tensor, kernel: Kernel) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, *kernel, 'none', [], '')


class FastGroupNorm:
    """A norm that stays in bfloat16, where autocast would store float32; the sums are of float32."""

    def __init__(self, norm: nn.GroupNorm):
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        if library_type(x) != torch.bfloat16:
            return nn.GroupNorm.forward(norm, x)
        x = in_order(x.to(torch.bfloat16))
        shape = len(x), x.shape[1], x[0, 0].numel(), norm.num_groups
        return torch.native_group_norm(x, norm.weight, norm.bias, *shape, norm.eps)[0]


def in_order(x: Tensor) -> Tensor:
    """x without gaps, in channels-last order if it is in that; where axes have one place, with the usual strides.

    Kernels tell the order by the strides, which say nothing where there is one image.
    """
    if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous()
    _, c, h, w = x.shape
    return x.as_strided(x.shape, (h * w * c, 1, w * c, c))


class FastResnet:
    """A residual block whose norms and activations are part of its convolutions."""

    def __init__(self, block: nn.Module):
        self.block, self.usual = block, block.forward

    def __call__(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        block = self.block
        if library_type(input_tensor) is None:
            return self.usual(input_tensor, temb)
        h = block.conv1.forward.of(input_tensor, block.norm1)
        if temb is not None and block.time_emb_proj is not None:
            h += block.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = block.conv2.forward.of(h, block.norm2)
        h += input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
        return h


def is_plain_resnet(block: nn.Module) -> bool:
    """Whether it is as FastResnet computes it."""
    return (
        block.upsample is None
        and block.downsample is None
        and (block.time_embedding_norm == 'default' or block.time_emb_proj is None)
        and block.time_embedding_norm != 'scale_shift'
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0
        and block.output_scale_factor == 1
        and all(isinstance(vars(conv).get('forward'), FastConv) for conv in (block.conv1, block.conv2))
    )


class FastUpsample:
    """Nearest enlargement and a convolution, in one: see EnlargingConv."""

    def __init__(self, block: nn.Module):
        self.conv, self.usual = block.conv.forward, block.forward
        self.conv.packs = False

    def __call__(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        dtype = self.conv.type_for(hidden_states)
        if output_size is not None or dtype is None:
            return self.usual(hidden_states, output_size)
        x = in_order(hidden_states.to(dtype))
        count = len(x) * x.shape[2] * x.shape[3]
        kernel = self.conv.chosen(4 * count, dtype)
        if kernel is not None and repays(x, kernel, enlarges=True):
            return winograd(x, kernel, enlarges=True)
        if kernel is not None and count >= FOLDED_FROM['cpu']:
            weight = folded(kernel.weight.to(exact_type(dtype))).to(dtype)
            return F.conv_transpose2d(fast_order(x, 2), weight, kernel.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


def is_plain_upsample(block: nn.Module) -> bool:
    """Whether it is as FastUpsample computes it."""
    usual = block.norm is None and block.use_conv and not block.use_conv_transpose and block.interpolate
    conv = vars(block.conv).get('forward') if usual and block.name == 'conv' else None
    return isinstance(conv, FastConv) and conv.is_plain


class FastAttention:
    """Attention in bfloat16 by matrix products, which there are faster than the fused kernel."""

    def __init__(self, block: nn.Module):
        self.block, self.usual = block, block.forward

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        block, x = self.block, hidden_states
        if library_type(x) != torch.bfloat16 or attention_mask is not None:
            return self.usual(x, encoder_hidden_states, attention_mask, temb=temb)
        tokens = rearrange(x, 'b c h w -> b (h w) c') if x.ndim == 4 else x
        if block.group_norm is not None:
            tokens = rearrange(block.group_norm(rearrange(tokens, 'b n c -> b c n')), 'b c n -> b n c')
        seen = tokens if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(part, 'b n (heads d) -> b heads n d', heads=block.heads)
            for part in (block.to_q(tokens), block.to_k(seen), block.to_v(seen))
        )
        out = block.to_out[0](rearrange(attention(q, k, v), 'b heads n d -> b n (heads d)'))
        out = out if x.ndim == 3 else rearrange(out, 'b (h w) c -> b c h w', h=x.shape[2])
        return out.add_(x) if block.residual_connection else out


def is_plain_attention(block: nn.Module) -> bool:
    """Whether it is as FastAttention computes it."""
    norms = block.spatial_norm, block.norm_q, block.norm_k, block.norm_cross
    return not any(norms) and block.rescale_output_factor == 1 and block.to_out[1].p == 0


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (b, heads, n, d), of a few rows at a time."""
    if k.shape[2] < LONG:
        return F.scaled_dot_product_attention(q, k, v)
    out, columns = torch.empty_like(q), k.mul(q.shape[-1] ** -0.5).mT
    for index in range(len(q)):
        for head in range(q.shape[1]):
            for rows, found in zip(q[index, head].split(CHUNK), out[index, head].split(CHUNK), strict=True):
                torch.mm((rows @ columns[index, head]).softmax(-1), v[index, head], out=found)
    return out
