"""The locally discriminative loss holds a generator back where its artifacts are (Liang et al., arXiv:2203.09195)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class LDLLoss(nn.Module):
    """loss_weight * mean(artifacts * |sr - gt|), where `artifacts` is `artifact_map` of the three images.

    Args:
        ksize: side of the neighbourhood whose variance tells an artifact, odd.
    """

    def __init__(self, loss_weight: float = 1.0, ksize: int = 7):
        super().__init__()
        if ksize < 3 or ksize % 2 == 0:
            raise ValueError(f'ksize must be odd and at least 3, got {ksize}')
        self.loss_weight, self.ksize = loss_weight, ksize

    def forward(self, sr: Tensor, gt: Tensor, sr_ema: Tensor) -> Tensor:
        """sr of the trained network and of its average, and gt: (b, c, h, w) each."""
        return self.loss_weight * (artifact_map(gt, sr, sr_ema, self.ksize) * (sr - gt)).abs().mean()


def artifact_map(gt: Tensor, sr: Tensor, sr_ema: Tensor, ksize: int = 7) -> Tensor:
    """How likely each pixel of sr is an artifact: three (b, c, h, w) -> (b, 1, h, w).

    The variance of the residual in its neighbourhood times the fifth root of that of the whole image; 0 where the
    averaged network is farther from gt than sr is.
    """
    if not sr.shape == gt.shape == sr_ema.shape:
        raise ValueError(f'the artifact map needs one size, got {[tuple(x.shape) for x in (gt, sr, sr_ema)]}')
    residual, averaged = ((gt - x).abs().sum(1, keepdim=True) for x in (sr, sr_ema))
    whole = residual.var((1, 2, 3), keepdim=True) ** 0.2
    return torch.where(residual < averaged, 0, whole * local_variance(residual, ksize))


def local_variance(x: Tensor, ksize: int) -> Tensor:
    """Unbiased variance around each pixel of (b, 1, h, w), over ksize * ksize pixels, the border mirrored."""
    padded = F.pad(x, [ksize // 2] * 4, mode='reflect')
    return F.unfold(padded, ksize).var(1).view_as(x)
