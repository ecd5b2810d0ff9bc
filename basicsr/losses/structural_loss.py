"""How far apart two images are in structure: a loss made of SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@LOSS_REGISTRY.register()
class SSIMLoss(nn.Module):
    """loss_weight * (1 - mean SSIM) with the conventions of ITER's stage I (pyiqa's `ssimc`).

    Values are rounded to 0..255 with the gradient of the identity; the colours are compared one by one over the windows
    that lie inside; a negative contrast counts as 0. Computed in float64, under autocast too.
    Shape: two (b, c, h, w) in [0, 1], at least 11 pixels a side -> a scalar.
    """

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight
        taps = torch.exp(-(torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2).square() / (2 * SIGMA**2))
        self.register_buffer('window', taps / taps.sum(), persistent=False)

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        if sr.shape != gt.shape or min(sr.shape[-2:]) < WINDOW:
            raise ValueError(
                f'the structural loss needs two images of one size, at least {WINDOW} pixels a side, '
                f'got {tuple(sr.shape)} and {tuple(gt.shape)}'
            )
        with torch.autocast(sr.device.type, enabled=False):
            x, y = (rounded(255 * image.double()) for image in (sr, gt))
            mean_x, mean_y, square_x, square_y, product = self._averaged(x, y, x * x, y * y, x * y)
            power, cross = mean_x.square() + mean_y.square(), mean_x * mean_y
            contrast = (2 * (product - cross) + C2) / (square_x + square_y - power + C2)
            ssim = (2 * cross + C1) / (power + C1) * contrast.relu()
            return self.loss_weight * (1 - ssim.mean()).float()

    def _averaged(self, *images: Tensor) -> tuple[Tensor, ...]:
        """The windowed means of each of the images, where the window lies inside."""
        planes = torch.stack(images).flatten(0, 2)[:, None]
        column = self.window.view(1, 1, -1, 1)
        means = F.conv2d(F.conv2d(planes, column), column.mT)
        return means.unflatten(0, (len(images), *images[0].shape[:2]))[:, :, :, 0].unbind(0)


def rounded(values: Tensor) -> Tensor:
    """The nearest whole numbers, with the gradient of `values` themselves."""
    return values + (values.round() - values).detach()
