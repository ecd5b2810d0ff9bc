"""D2C-SR written down plainly from shared/spec/d2c.md 2, in whatever order of colours its weights are."""

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class CALayer(nn.Module):
    def __init__(self, channel: int, reduction: int):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            conv(channel, channel // reduction, 1), nn.ReLU(), conv(channel // reduction, channel, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(self.avg_pool(x))


class RCAB(nn.Module):
    def __init__(self, n: int, size: int, reduction: int):
        super().__init__()
        self.body = nn.Sequential(conv(n, n, size), nn.ReLU(), conv(n, n, size), CALayer(n, reduction))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class ResidualGroup(nn.Module):
    def __init__(self, n: int, size: int, reduction: int, n_resblocks: int):
        super().__init__()
        self.body = nn.Sequential(*[RCAB(n, size, reduction) for _ in range(n_resblocks)], conv(n, n, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


def upsampler(scale: int, n: int) -> nn.Sequential:
    if scale == 3:
        return nn.Sequential(conv(n, 9 * n, 3), nn.PixelShuffle(3))
    modules = []
    while scale > 1:
        modules += [conv(n, 4 * n, 3), nn.PixelShuffle(2)]
        scale //= 2
    return nn.Sequential(*modules)


class DNet(nn.Module):
    """(b, 3, h, w) -> the four images, stacked: (b, 4, 3, h * scale, w * scale)."""

    def __init__(
        self,
        scale: int,
        n_resblocks: int = 4,
        n_feats: int = 64,
        kernel_size: int = 3,
        n_colors: int = 3,
        reduction: int = 16,
    ):
        super().__init__()
        n, size = n_feats, kernel_size

        def body() -> nn.Sequential:
            return nn.Sequential(
                ResidualGroup(n, size, reduction, n_resblocks),
                ResidualGroup(n, size, reduction, n_resblocks),
                conv(n, n, size),
            )

        def tail() -> nn.Sequential:
            return nn.Sequential(upsampler(scale, n), conv(n, n_colors, size))

        self.sub_mean = conv(3, 3, 1)
        self.head = nn.Sequential(conv(n_colors, n, size))
        self.body1, self.body11, self.body12 = body(), body(), body()
        self.body2, self.body21, self.body22 = body(), body(), body()
        self.res_conv1, self.res_conv2 = conv(n, n, size), conv(n, n, size)
        self.res_conv3, self.res_conv4 = conv(n, n, size), conv(n, n, size)
        self.res_conv5, self.res_conv6 = conv(n, n, size), conv(n, n, size)
        self.res_conv7, self.res_conv8 = conv(n, n, size), conv(n, n, size)
        self.tail11, self.tail12, self.tail21, self.tail22 = tail(), tail(), tail(), tail()
        self.add_mean = conv(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head(self.sub_mean(x))
        parent1 = self.body1(head)
        parent2 = self.body2(head)
        out11 = self.res_conv2(self.res_conv1(self.body11(parent1)) + parent1) + head
        out11 = self.add_mean(self.tail11(out11))
        out12 = self.res_conv4(self.res_conv3(self.body12(parent1)) + parent1) + head
        out12 = self.add_mean(self.tail12(out12))
        out21 = self.res_conv6(self.res_conv5(self.body21(parent2)) + parent2) + head
        out21 = self.add_mean(self.tail21(out21))
        out22 = self.res_conv8(self.res_conv7(self.body22(parent2)) + parent2) + head
        out22 = self.add_mean(self.tail22(out22))
        return torch.stack([out11, out12, out21, out22], 1)


class FusionBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


class CNet(nn.Module):
    """(b, 4, 3, h, w) -> the blended image (b, 3, h, w) and the weights (b, 4, h, w)."""

    def __init__(self):
        super().__init__()
        self.fusion_final = nn.Sequential(FusionBlock(12, 64), FusionBlock(64, 64), FusionBlock(64, 4))

    def forward(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        out11, out12, out21, out22 = branches.unbind(1)
        mask = torch.softmax(self.fusion_final(torch.cat([out11, out12, out21, out22], 1)), 1)
        fusion = out11 * mask[:, 0:1] + out12 * mask[:, 1:2] + out21 * mask[:, 2:3] + out22 * mask[:, 3:4]
        return fusion, mask
