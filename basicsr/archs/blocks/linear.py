"""Linear layers as the libraries of each device compute them fastest."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedLinear(nn.Linear):
    """A linear layer, and GELU after it if `gelu`, in one pass where no gradient is recorded on a CPU."""

    def __init__(self, inputs: int, out: int, gelu: bool = False):
        super().__init__(inputs, out)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        dtype = library_type(x)
        if dtype is not None:
            return self.fused(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        x = super().forward(x)
        return F.gelu(x) if self.gelu else x

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer with a weight that may be packed, see packing.py."""
        after = ('gelu', [], 'none') if self.gelu else ('none', [], '')
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)


def library_type(x: Tensor) -> torch.dtype | None:
    """The type in which oneDNN's own operators take x; None where they are missing or not wanted.

    They record no gradients, and are for float32, and bfloat16 where the CPU computes with it.
    """
    if x.device.type != 'cpu' or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return None
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    has_kernels = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if has_kernels else None
