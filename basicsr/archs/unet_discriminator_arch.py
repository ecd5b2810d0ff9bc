"""The U-Net discriminator of Real-ESRGAN (Wang et al., arXiv:2107.10833), which judges pixel by pixel."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.conv1 = SpectralConv2d(f, 2 * f, 4, stride=2)
        self.conv2 = SpectralConv2d(2 * f, 4 * f, 4, stride=2)
        self.conv3 = SpectralConv2d(4 * f, 8 * f, 4, stride=2)
        self.conv4 = SpectralConv2d(8 * f, 4 * f, 3)
        self.conv5 = SpectralConv2d(4 * f, 2 * f, 3)
        self.conv6 = SpectralConv2d(2 * f, f, 3)
        self.conv7 = SpectralConv2d(f, f, 3)
        self.conv8 = SpectralConv2d(f, f, 3)
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


class SpectralConv2d(nn.Module):
    """A convolution without bias whose weight is divided by its largest singular value (Miyato et al., 1802.05957).

    `weight_u` and `weight_v` approach the singular vectors by one power iteration per training forward. The entries
    have the names of torch's classic hook, which published checkpoints contain.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        weight = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False).weight
        self.weight_orig = nn.Parameter(weight.detach())
        self.register_buffer('weight_u', F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer('weight_v', F.normalize(torch.randn(weight[0].numel()), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.mT @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=1e-12))
        # Copies, because the next forward changes the buffers before this one's backward pass has read them.
        largest = self.weight_u.clone() @ (matrix @ self.weight_v.clone())
        return F.conv2d(x, self.weight_orig / largest, stride=self.stride, padding=1)


def leaky(x: Tensor) -> Tensor:
    """The activation between all layers."""
    return F.leaky_relu(x, 0.2)


def doubled(x: Tensor) -> Tensor:
    """Twice the size."""
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
