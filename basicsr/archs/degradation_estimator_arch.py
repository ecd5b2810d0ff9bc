"""How blurred and how noisy an image is: the estimator of MM-RealSR (Mou et al., arXiv:2203.05248), as S3Diff uses it.

Attribute names are those of the published de_net.pth.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from basicsr.archs.blocks.conv import conv3
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class DEResNet(nn.Module):
    """One residual network for each degradation, with nothing in common; published: 0 is blur, 1 is noise.

    Args:
        degradation_degree_actv: what limits a score: 'sigmoid' to (0, 1), 'tanh' to (-1, 1).
        num_feats, num_blocks, downscales: features, residual blocks and reduction (1 or 2) of each stage.
    Shape: (b, num_in_ch, h, w) in [0, 1], of any size -> scores (b, num_degradation).
    """

    def __init__(
        self,
        num_in_ch: PositiveInt = 3,
        num_degradation: PositiveInt = 2,
        degradation_degree_actv: Literal['sigmoid', 'tanh'] = 'sigmoid',
        num_feats: tuple[PositiveInt, ...] = (64, 64, 64, 128),
        num_blocks: tuple[PositiveInt, ...] = (2, 2, 2, 2),
        downscales: tuple[Literal[1, 2], ...] = (1, 1, 2, 1),
    ):
        super().__init__()
        if not len(num_feats) == len(num_blocks) == len(downscales) > 0:
            raise ValueError(
                f'num_feats, num_blocks and downscales have one value for each stage, '
                f'got {len(num_feats)}, {len(num_blocks)} and {len(downscales)}'
            )
        if not set(downscales) <= {1, 2}:
            raise ValueError(f'downscales are 1 or 2, got {list(downscales)}')
        branches = range(num_degradation)
        self.conv_first = nn.ModuleList(conv3(num_in_ch, num_feats[0]) for _ in branches)
        self.body = nn.ModuleList(nn.Sequential(*_stages(num_feats, num_blocks, downscales)) for _ in branches)
        limit = {'sigmoid': nn.Sigmoid, 'tanh': nn.Tanh}[degradation_degree_actv]
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(num_feats[-1], 512), nn.ReLU(), nn.Linear(512, 1), limit()) for _ in branches
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
                with torch.no_grad():
                    module.weight.mul_(0.1)

    def forward(self, lq: Tensor) -> Tensor:
        pooled = self.features(lq).unbind(1)
        return torch.cat([head(x) for head, x in zip(self.fc_degree, pooled, strict=True)], 1)

    def features(self, lq: Tensor) -> Tensor:
        """What the heads see: the averages of the last features over the image, (b, num_degradation, channels)."""
        branches = zip(self.conv_first, self.body, strict=True)
        return torch.stack([body(first(lq)).mean((2, 3)) for first, body in branches], 1)


def _stages(num_feats: tuple[int, ...], num_blocks: tuple[int, ...], downscales: tuple[int, ...]) -> list[nn.Module]:
    layers, last = [], len(num_feats) - 1
    for stage, (dim, count, downscale) in enumerate(zip(num_feats, num_blocks, downscales, strict=True)):
        layers += [ResidualBlock(dim) for _ in range(count)]
        following = num_feats[min(stage + 1, last)]
        if downscale == 2 or following != dim:
            layers.append(nn.Conv2d(dim, following, 3, stride=downscale, padding=1))
    return layers


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; keeps the shape."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1, self.conv2 = conv3(dim, dim), conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())
