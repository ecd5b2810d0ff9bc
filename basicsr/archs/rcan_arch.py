"""RCAN: Image Super-Resolution Using Very Deep Residual Channel Attention Networks (Zhang et al., ECCV 2018,
arXiv:1807.02758). Attribute names are those of the authors' code; BasicSR's are read too.
"""

import re

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.conv import ResidualGroup
from basicsr.archs.blocks.linear_tail import LinearTail
from basicsr.utils.registry import ARCH_REGISTRY

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


@ARCH_REGISTRY.register()
class RCAN(nn.Module):
    """Groups of residual channel-attention blocks between two convolutions, then a linear upsampler.

    Args:
        upscale: 3 or a power of 2.
        num_feat: feature channels.
        num_group, num_block: groups; channel-attention blocks in each.
        squeeze_factor: by how much channel attention narrows the channels.
        img_range: the network works on values times this number; 255 in the published networks.
    Shape: (b, 3, h, w) in [0, 1] -> (b, 3, h * upscale, w * upscale), not clamped; any h and w.
    """

    optional_entries = ('sub_mean.weight', 'sub_mean.bias', 'add_mean.weight', 'add_mean.bias')  # constants, see `mean`

    def __init__(
        self,
        upscale: int = 4,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 20,
        squeeze_factor: int = 16,
        img_range: float = 255.0,
    ):
        super().__init__()
        if upscale != 3 and (upscale < 1 or upscale & (upscale - 1)):
            raise ValueError(f'upscale must be 3 or a power of 2, got {upscale}')
        if min(num_group, num_block, squeeze_factor) < 1 or num_feat < squeeze_factor:
            raise ValueError(
                'num_group, num_block and squeeze_factor are 1 or more and num_feat is at least squeeze_factor, got '
                f'{num_group}, {num_block}, {squeeze_factor} and {num_feat}'
            )
        self.img_range = img_range
        self.register_buffer('mean', torch.tensor(RGB_MEAN).view(1, -1, 1, 1), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(3, num_feat, 3, padding=1))
        groups = (ResidualGroup(num_feat, 3, squeeze_factor, num_block) for _ in range(num_group))
        self.body = nn.Sequential(*groups, nn.Conv2d(num_feat, num_feat, 3, padding=1))
        self.tail = LinearTail(num_feat, 3, upscale)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names as they are, BasicSR's as the authors'."""
        if 'conv_first.weight' not in state:
            return state
        groups, blocks = (
            1 + max((int(found[1]) for found in (re.match(pattern, name) for name in state) if found), default=-1)
            for pattern in (r'body\.(\d+)\.', r'body\.\d+\.residual_group\.(\d+)\.')
        )
        rules = (
            (r'^conv_first\.', 'head.0.'),
            (r'^conv_after_body\.', f'body.{groups}.'),
            (r'^upsample\.', 'tail.0.'),
            (r'^conv_last\.', 'tail.1.'),
            (r'^body\.(\d+)\.conv\.', rf'body.\1.body.{blocks}.'),
            (r'\.residual_group\.(\d+)\.rcab\.', r'.body.\1.body.'),
            (r'\.attention\.1\.', '.conv_du.0.'),
            (r'\.attention\.3\.', '.conv_du.2.'),
        )
        renamed = {}
        for name, value in state.items():
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        return renamed

    def forward(self, lq: Tensor) -> Tensor:
        if lq.device.type == 'cpu':  # where convolutions in this order are faster
            lq = lq.contiguous(memory_format=torch.channels_last)
        head = self.head((lq - self.mean) * self.img_range)
        return self.tail(self.body(head) + head) / self.img_range + self.mean
