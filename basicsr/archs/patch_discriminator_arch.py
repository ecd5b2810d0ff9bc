"""Discriminators that judge patches of an image (pix2pix, Isola et al., arXiv:1611.07004), as ITER's code has them.

Its VQGANDiscriminatorSN is the same network as VQGANDiscriminator, without any spectral normalisation.
"""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.registry import ARCH_REGISTRY


class PatchDiscriminator(nn.Module):
    """Halving convolutions with batch normalisation, and two that keep the size but for a pixel."""

    def __init__(self, inputs: int, width: int, halvings: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        before = width
        for layer in range(1, halvings + 1):
            after = width * min(2**layer, 8)
            conv = nn.Conv2d(before, after, 4, stride=2 if layer < halvings else 1, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)]
            before = after
        self.main = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, padding=1))
        self.smallest = 3 * 2**halvings  # less leaves nothing of the last convolutions

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(f'this discriminator judges {self.smallest} pixels and more, got {tuple(x.shape[-2:])}')
        return self.main(x)


@ARCH_REGISTRY.register()
class VQGANDiscriminator(PatchDiscriminator):
    """A PatchGAN discriminator.

    Args:
        nc: channels of the image; ndf: of the first features, which double at each layer, up to eight times.
        n_layers: halvings.
    Shape: (b, nc, h, w) -> (b, 1, h / 2^n_layers - 2, w / 2^n_layers - 2) logits, rounded down.
    """

    def __init__(self, nc: PositiveInt = 3, ndf: PositiveInt = 64, n_layers: PositiveInt = 4):
        super().__init__(nc, ndf, n_layers)


@ARCH_REGISTRY.register()
class NLayerDiscriminator(PatchDiscriminator):
    """VQGANDiscriminator under another name and with fewer layers; nc is called input_nc."""

    def __init__(self, input_nc: PositiveInt = 3, ndf: PositiveInt = 64, n_layers: PositiveInt = 3):
        super().__init__(input_nc, ndf, n_layers)


@ARCH_REGISTRY.register()
class MultiScaleNLayerDiscriminator(nn.Module):
    """An NLayerDiscriminator for each of several sizes of the image.

    Args:
        scales: of the image, in any order; the other arguments are NLayerDiscriminator's.
    Shape: (b, input_nc, h, w) -> (b, scales, h', w') logits, of small scales first, as large as those of the largest.
    """

    def __init__(
        self,
        scales: tuple[PositiveFloat, ...],
        input_nc: PositiveInt = 3,
        ndf: PositiveInt = 64,
        n_layers: PositiveInt = 3,
    ):
        super().__init__()
        if not scales:
            raise ValueError('scales is empty: give at least one')
        self.scales = sorted(scales)
        self.D_pool = nn.ModuleList(NLayerDiscriminator(input_nc, ndf, n_layers) for _ in scales)

    def forward(self, x: Tensor) -> Tensor:
        logits = [
            judge(F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False))
            for scale, judge in zip(self.scales, self.D_pool, strict=True)
        ]
        size = logits[-1].shape[-2:]
        return torch.cat([F.interpolate(part, size=size, mode='nearest') for part in logits], 1)
