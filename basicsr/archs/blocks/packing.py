"""Layers whose weights stay as they are for many calls, as those of a sampler's network do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.linear import FusedLinear, library_type
from basicsr.archs.blocks.unet import EnlargingConv, fast_order, folded


@contextmanager
def packed_weights(net: nn.Module) -> Iterator[None]:
    """Inside, what the layers of a network on a CPU derive from their weights is derived once.

    oneDNN turns weights round in every call, which for small images takes as long as the convolution itself. Here they
    are kept in its order, and so take their memory twice. They must not change inside. Calls that record gradients
    take the usual path, as all do where the library is missing, on other devices and under torch.compile.
    """
    stand_ins = {nn.Conv2d: PackedConv, EnlargingConv: PackedEnlargingConv, FusedLinear: PackedLinear}
    modules = [module for module in net.modules() if type(module) in stand_ins and 'forward' not in vars(module)]
    for module in modules:
        module.forward = stand_ins[type(module)](module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


class PackedConv:
    """Stands in for the `forward` of a convolution; its weight is packed at the first call, for images of that size."""

    def __init__(self, conv: nn.Conv2d):
        self.conv, self.packed = conv, None

    def __call__(self, x: Tensor) -> Tensor:
        conv = self.conv
        dtype = library_type(x)
        if dtype is None or conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
            return type(conv).forward(conv, x)
        x, how = x.to(dtype), (conv.stride, conv.dilation, conv.groups)
        if self.packed is None or self.packed[0].dtype != dtype:
            weight = conv.weight.detach().to(dtype).contiguous()
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, conv.padding, *how, x.shape)
            self.packed = weight, None if conv.bias is None else conv.bias.detach().to(dtype)
        return torch.ops.mkldnn._convolution_pointwise(x, *self.packed, conv.padding, *how, 'none', [], '')


class PackedEnlargingConv:
    """Stands in for the `forward` of an EnlargingConv, whose other kernel is computed once."""

    def __init__(self, module: EnlargingConv):
        self.module, self.packed = module, None

    def __call__(self, x: Tensor) -> Tensor:
        dtype = library_type(x)
        if dtype is None or not self.module.folds(x):
            return type(self.module).forward(self.module, x)
        x, how = fast_order(x.to(dtype), 2), ((1, 1), (0, 0), (2, 2), (1, 1), 1)
        if self.packed is None or self.packed[0].dtype != dtype:
            kernel = folded(self.module.conv.weight.detach()).to(dtype).contiguous()
            kernel = torch.ops.mkldnn._reorder_convolution_transpose_weight(kernel, *how, x.shape)
            self.packed = kernel, self.module.conv.bias.detach().to(dtype)
        return torch.ops.mkldnn._convolution_transpose_pointwise(x, *self.packed, *how, 'none', [], '')


class PackedLinear:
    """Stands in for the `forward` of a FusedLinear: in bfloat16 its weight is packed at the first call.

    In float32 packing would save a twentieth of the time, and take the memory of the weights again.
    """

    def __init__(self, layer: FusedLinear):
        self.layer, self.packed = layer, None

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if library_type(x) != torch.bfloat16:
            return type(layer).forward(layer, x)
        if self.packed is None:
            weight, bias = (p.detach().to(torch.bfloat16) for p in (layer.weight, layer.bias))
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, x[..., 0].numel()), bias
        return layer.fused(x.to(torch.bfloat16), *self.packed)
