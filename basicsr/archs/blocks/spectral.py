"""Layers whose weight is divided by its largest singular value (Miyato et al., arXiv:1802.05957)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralWeight(nn.Module):
    """The weight of `layer`, normalised, and its bias as it is.

    `weight_u` and `weight_v` approach the singular vectors by one power iteration per training forward. The entries
    have the names of torch's classic hook, which published checkpoints contain.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        weight = layer.weight.detach()
        self.register_parameter('bias', layer.bias)
        self.weight_orig = nn.Parameter(weight)
        self.register_buffer('weight_u', F.normalize(torch.randn(len(weight)), dim=0))
        self.register_buffer('weight_v', F.normalize(torch.randn(weight[0].numel()), dim=0))

    def normalized(self) -> Tensor:
        """The weight to use in this forward."""
        matrix = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.mT @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=1e-12))
        # Copies, because the next forward changes the buffers before this one's backward pass has read them.
        largest = self.weight_u.clone() @ (matrix @ self.weight_v.clone())
        return self.weight_orig / largest


class SpectralConv2d(SpectralWeight):
    """A convolution with a normalised weight."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__(nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalized(), self.bias, self.stride, self.padding)


class SpectralLinear(SpectralWeight):
    """A linear layer with a normalised weight."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized(), self.bias)
