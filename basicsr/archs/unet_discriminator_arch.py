"""The U-Net discriminator of Real-ESRGAN (Wang et al., arXiv:2107.10833), which judges pixel by pixel."""

import re

import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.blocks.spectral import SpectralConv2d
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class UNetDiscriminatorSN(nn.Module):
    """A U-Net with spectral normalisation.

    Args:
        num_in_ch: channels of the image.
        num_feat: channels at full size; doubled at each of the three halvings.
        skip_connection: add the features of the way down on the way up; sides must then be multiples of 8.
    Shape: (b, num_in_ch, h, w) -> (b, 1, h, w) logits.
    """

    def __init__(self, num_in_ch: int, num_feat: int = 64, skip_connection: bool = True):
        super().__init__()
        f = num_feat
        self.skip_connection = skip_connection
        self.conv0 = nn.Conv2d(num_in_ch, f, 3, padding=1)
        self.conv1 = SpectralConv2d(f, 2 * f, 4, stride=2, padding=1, bias=False)
        self.conv2 = SpectralConv2d(2 * f, 4 * f, 4, stride=2, padding=1, bias=False)
        self.conv3 = SpectralConv2d(4 * f, 8 * f, 4, stride=2, padding=1, bias=False)
        self.conv4 = SpectralConv2d(8 * f, 4 * f, 3, padding=1, bias=False)
        self.conv5 = SpectralConv2d(4 * f, 2 * f, 3, padding=1, bias=False)
        self.conv6 = SpectralConv2d(2 * f, f, 3, padding=1, bias=False)
        self.conv7 = SpectralConv2d(f, f, 3, padding=1, bias=False)
        self.conv8 = SpectralConv2d(f, f, 3, padding=1, bias=False)
        self.conv9 = nn.Conv2d(f, 1, 3, padding=1)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Entries in torch's newer layout of spectral normalisation under the classic names used here."""
        names = {'original': 'weight_orig', '0._u': 'weight_u', '0._v': 'weight_v'}
        pattern = re.compile(r'parametrizations\.weight\.(original|0\._u|0\._v)$')
        return {pattern.sub(lambda match: names[match[1]], name): value for name, value in state.items()}

    def forward(self, x: Tensor) -> Tensor:
        if self.skip_connection and (x.shape[-2] % 8 or x.shape[-1] % 8):
            raise ValueError(f'UNetDiscriminatorSN needs sides that are multiples of 8, got {tuple(x.shape[-2:])}')
        down0 = leaky(self.conv0(x))
        down1 = leaky(self.conv1(down0))
        down2 = leaky(self.conv2(down1))
        down3 = leaky(self.conv3(down2))
        up = leaky(self.conv4(doubled(down3)))
        up = up + down2 if self.skip_connection else up
        up = leaky(self.conv5(doubled(up)))
        up = up + down1 if self.skip_connection else up
        up = leaky(self.conv6(doubled(up)))
        up = up + down0 if self.skip_connection else up
        return self.conv9(leaky(self.conv8(leaky(self.conv7(up)))))


def leaky(x: Tensor) -> Tensor:
    """The activation between all layers."""
    return F.leaky_relu(x, 0.2)


def doubled(x: Tensor) -> Tensor:
    """Twice the size."""
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
