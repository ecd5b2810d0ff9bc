"""Losses between corresponding pixels."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from basicsr.utils.color import luma
from basicsr.utils.registry import LOSS_REGISTRY

Reduction = Literal['mean', 'sum', 'none']


class PixelLoss(nn.Module):
    """A function of the difference of sr and gt, pixel by pixel, weighted and reduced.

    Args:
        loss_weight: what the result is multiplied by.
        reduction: 'mean' over all elements, 'sum', or 'none' for the map itself.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = 'mean'):
        super().__init__()
        self.loss_weight, self.reduction = loss_weight, check_reduction(reduction, ('mean', 'sum', 'none'))

    def elementwise(self, difference: Tensor) -> Tensor:
        """The loss of each element."""
        raise NotImplementedError(f'{type(self).__name__} has no elementwise loss')

    def forward(self, sr: Tensor, gt: Tensor, weight: Tensor | None = None) -> Tensor:
        """sr, gt (b, c, h, w); weight per element, (b, c, h, w) or (b, 1, h, w): 'mean' is then the weighted mean."""
        if sr.shape != gt.shape:
            raise ValueError(f'a pixel loss needs one size, got sr {tuple(sr.shape)} and gt {tuple(gt.shape)}')
        return self.loss_weight * reduced(self.elementwise(sr - gt), weight, self.reduction)


@LOSS_REGISTRY.register()
class L1Loss(PixelLoss):
    """loss_weight * mean(|sr - gt|)."""

    def elementwise(self, difference: Tensor) -> Tensor:
        return difference.abs()


@LOSS_REGISTRY.register()
class MSELoss(PixelLoss):
    """loss_weight * mean((sr - gt)^2)."""

    def elementwise(self, difference: Tensor) -> Tensor:
        return difference.square()


@LOSS_REGISTRY.register()
class CharbonnierLoss(PixelLoss):
    """loss_weight * mean(sqrt((sr - gt)^2 + eps)): an L1 that is smooth at 0 (Lai et al., arXiv:1710.01992)."""

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = 'mean', eps: float = 1e-12):
        super().__init__(loss_weight, reduction)
        self.eps = eps

    def elementwise(self, difference: Tensor) -> Tensor:
        return (difference.square() + self.eps).sqrt()


@LOSS_REGISTRY.register()
class WeightedTVLoss(nn.Module):
    """Total variation of sr alone: L1 between vertical neighbours plus L1 between horizontal neighbours."""

    def __init__(self, loss_weight: float = 1.0, reduction: Literal['mean', 'sum'] = 'mean'):
        super().__init__()
        self.loss_weight, self.reduction = loss_weight, check_reduction(reduction, ('mean', 'sum'))

    def forward(self, sr: Tensor, weight: Tensor | None = None) -> Tensor:
        """sr (b, c, h, w); weight of the upper or left one of each pair, (b, c, h, w) or (b, 1, h, w)."""
        vertical = reduced(sr.diff(dim=2).abs(), None if weight is None else weight[:, :, :-1], self.reduction)
        horizontal = reduced(sr.diff(dim=3).abs(), None if weight is None else weight[..., :-1], self.reduction)
        return self.loss_weight * (vertical + horizontal)


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """loss_weight * -PSNR, in dB for values in [0, 1], with 1e-8 added to each image's squared error.

    Args:
        toY: compare BT.601 luma; sr and gt are then RGB.
    """

    def __init__(self, loss_weight: float = 1.0, toY: bool = False):
        super().__init__()
        self.loss_weight, self.to_y = loss_weight, toY

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        if self.to_y:
            sr, gt = luma(sr), luma(gt)
        error = (sr - gt).square().mean((1, 2, 3))
        return self.loss_weight * 10 / math.log(10) * (error + 1e-8).log().mean()


def check_reduction(reduction: str, known: tuple[str, ...]) -> str:
    """`reduction` itself, if it is one of those known."""
    if reduction not in known:
        raise ValueError(f'reduction {reduction!r} is not known here; choose from {", ".join(known)}')
    return reduction


def reduced(loss: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """The weighted elementwise loss as it is, summed, or averaged; an average is divided by the sum of the weights."""
    if weight is None:
        return {'mean': torch.mean, 'sum': torch.sum, 'none': torch.Tensor.contiguous}[reduction](loss)
    if weight.ndim != loss.ndim or weight.shape[1] not in (1, loss.shape[1]):
        raise ValueError(f'a weight is (b, 1, h, w) or (b, {loss.shape[1]}, h, w), got {tuple(weight.shape)}')
    weighted = loss * weight
    if reduction == 'none':
        return weighted
    if reduction == 'sum':
        return weighted.sum()
    return weighted.sum() / weight.expand_as(loss).sum()
