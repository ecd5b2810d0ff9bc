"""Blocks of diffusion UNets, computed with fewer passes over memory than their formulas have."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type
from basicsr.archs.blocks.winograd import repays, winograd

# Pixels of the small image (of all images of a batch) above which folding a kernel costs less than it saves: measured
# on a CPU for 64 to 1024 channels. On CUDA nothing was measured, so there the formula is followed.
FOLDED_FROM = {'cpu': 256}


# A CPU's convolutions are faster in channels-last order from this many pixels on; below it they would spend more on
# turning the weights round.
CHANNELS_LAST_FROM = 1025


def fast_order(x: Tensor, enlarged: int = 1) -> Tensor:
    """x in the memory format that its device computes with fastest when it has become `enlarged` times as large."""
    if x.device.type != 'cpu':
        return x
    last = len(x) * x.shape[2] * x.shape[3] * enlarged**2 >= CHANNELS_LAST_FROM
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """silu(norm(x)) in the dtype of x; for the backward pass x is kept and the rest is computed again."""
    if torch.compiler.is_compiling():
        return F.silu(norm(x))
    if not torch.is_grad_enabled():
        if x.device.type == 'cpu' and x.dtype == torch.bfloat16:  # autocast would compute, and store, in float32
            shape = len(x), x.shape[1], x[0, 0].numel(), norm.num_groups
            x = torch.native_group_norm(_dense(x), norm.weight, norm.bias, *shape, norm.eps)[0]
            return F.silu(x, inplace=True)
        return F.silu(norm(x), inplace=True).to(x.dtype)
    return NormSilu.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


def convolved(x: Tensor, conv: nn.Conv2d, norm: nn.GroupNorm | None = None) -> Tensor:
    """conv(x), or conv(silu(norm(x))), of a 3x3 convolution that keeps the size."""
    if repays(x, conv):
        return winograd(x, conv, norm=norm)
    return conv(x if norm is None else norm_silu(x, norm))


class NormSilu(torch.autograd.Function):
    """Group normalisation and SiLU, of which neither the middle nor the result is stored."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        dtype = torch.promote_types(x.dtype, weight.dtype)  # under autocast float32, as group_norm has it there
        with torch.autocast(x.device.type, enabled=False):
            inner = _dense(x.to(dtype))
            shape = (len(x), x.shape[1], x[0, 0].numel(), groups)
            out, mean, rstd = torch.native_group_norm(inner, weight, bias, *shape, eps)
            ctx.save_for_backward(x, weight, bias, mean, rstd)
            ctx.shape = shape
            return F.silu(out, inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        b, c, _, groups = ctx.shape
        with torch.autocast(x.device.type, enabled=False):
            exact = exact_type(weight.dtype)
            scale = (rstd.to(exact)[:, :, None] * weight.to(exact).view(groups, -1)).view(b, c)
            shift = bias.to(exact) - mean.to(exact).repeat_interleave(c // groups, 1) * scale
            inner = _dense(x.to(torch.promote_types(x.dtype, weight.dtype)))
            scale, shift = (part.to(inner.dtype)[:, :, None, None] for part in (scale, shift))
            grad = torch.ops.aten.silu_backward(grad.to(inner.dtype), torch.addcmul(shift, inner, scale))
            wanted = [*ctx.needs_input_grad[:3]]
            grads = torch.ops.aten.native_group_norm_backward(
                _like(grad, inner), inner, mean, rstd, weight, *ctx.shape, wanted
            )
        grad_x = grads[0].to(x.dtype) if wanted[0] else None
        return grad_x, *(part if want else None for part, want in zip(grads[1:], wanted[1:])), None, None


def _dense(x: Tensor) -> Tensor:
    """x without gaps, in channels-last order if it is in that."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _like(grad: Tensor, x: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


class EnlargingConv(nn.Module):
    """Nearest enlargement by 2, and a 3x3 convolution: (b, c, h, w) -> (b, c, 2 h, 2 w).

    The four pixels that come from one are four different sums of its 2x2 neighbours: one transposed convolution with
    16 products a pixel does what takes 36 on the enlarged image, which then need not be made.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if repays(x, self.conv, enlarges=True):
            return winograd(x, self.conv, enlarges=True)
        x = fast_order(x, 2)
        if not self.folds(x):
            return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))
        return F.conv_transpose2d(x, folded(self.conv.weight), self.conv.bias, stride=2, padding=1)

    @staticmethod
    def folds(x: Tensor) -> bool:
        """Whether the other kernel repays its computation."""
        return len(x) * x.shape[2] * x.shape[3] >= FOLDED_FROM.get(x.device.type, float('inf'))


def folded(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution, stride 2 and padding 1, that enlarges and convolves.

    Shape: (o, c, 3, 3) -> (c, o, 4, 4). Row r of it meets the enlarged rows that rows 2 - r and 3 - r of `weight` do.
    """
    pairs = weight.new_zeros(3, 4)
    pairs[[2, 2, 1, 1, 0, 0], [0, 1, 1, 2, 2, 3]] = 1
    both = torch.einsum('yr,xs->yxrs', pairs, pairs).reshape(9, 16)
    with torch.autocast(weight.device.type, enabled=False):
        return (weight.transpose(0, 1).flatten(2) @ both).unflatten(2, (4, 4))


class SpatialAttention(nn.Module):
    """Self-attention of all pixels with one head as wide as the features, beside a shortcut; keeps the shape."""

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]
        rows = rows.contiguous()  # or the kernels that never store all logits would refuse it
        rows = F.scaled_dot_product_attention(*rows.chunk(3, -1))
        return self.out(rows[:, 0].transpose(1, 2).unflatten(2, (h, w))) + x
