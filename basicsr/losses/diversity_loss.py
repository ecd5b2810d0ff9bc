"""A loss that keeps the branches of a multi-branch network apart."""

import torch
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY

# A constant image has no deviation to divide by; published code gives NaN there (d2c.md 4.2).
SMALLEST_DEVIATION = 1e-8
PARENTS = torch.tensor([0, 0, 1, 1])  # of the leaves 11, 12, 21, 22 of D2C-SR's tree
PAIRS = len(PARENTS) * (len(PARENTS) - 1)


@LOSS_REGISTRY.register()
class TripletDivergenceLoss(nn.Module):
    """Errors of different branches should differ (the triplet loss of D2C-SR, ECCV 2022, arXiv:2103.14373).

    The four branches are the leaves of a binary tree, in the order 11, 12, 21, 22: the first two share a parent, and
    so do the last two. With a_i = |n(branch i) - n(gt)|, where n takes the mean of the colours and normalises the whole
    batch to mean 0 and deviation 1, each ordered pair of branches has the hinge
    max(mean a_i^2 - mean (a_i - a_j)^2 + margin, 0); the loss is the mean of the twelve.

    Args:
        margin_same, margin_diff: margins of pairs that share a parent, and of the others.
        same_parent_factor: what the hinges of pairs that share a parent are multiplied by.
    Statistics are those of the tensors that are passed: of each process's share, and of each accumulated batch.
    Computed in float32 under autocast too.
    """

    def __init__(
        self,
        loss_weight: float,
        margin_same: float,
        margin_diff: float,
        same_parent_factor: float = 0.8,
    ):
        super().__init__()
        same = PARENTS[:, None] == PARENTS
        self.loss_weight = loss_weight
        self.register_buffer('margin', torch.where(same, margin_same, margin_diff), persistent=False)
        factor = torch.where(same, same_parent_factor, 1.0)
        self.register_buffer('factor', factor.fill_diagonal_(0), persistent=False)

    def forward(self, branches: Tensor, gt: Tensor) -> Tensor:
        """branches (b, 4, c, h, w), gt (b, c, h, w) -> a scalar."""
        return self.loss_weight * self.hinges(branches, gt).sum() / PAIRS

    def hinges(self, branches: Tensor, gt: Tensor) -> Tensor:
        """(4, 4): the hinge of the ordered pair (i, j), not weighted by loss_weight; 0 on the diagonal."""
        if branches.ndim != 5 or branches.shape[1] != len(PARENTS) or branches[:, 0].shape != gt.shape:
            raise ValueError(
                f'the divergence of four branches needs (b, 4, c, h, w) and gt (b, c, h, w), got '
                f'{tuple(branches.shape)} and {tuple(gt.shape)}'
            )
        with torch.autocast(branches.device.type, enabled=False):
            reference = normalised(gt)
            errors = torch.stack([(normalised(image) - reference).abs().flatten() for image in branches.unbind(1)])
            # mean a_i^2 - mean (a_i - a_j)^2 = 2 mean a_i a_j - mean a_j^2: all pairs from one small product (8.2)
            products = errors @ errors.T / errors.shape[1]
            return (2 * products - products.diagonal() + self.margin).relu() * self.factor


def normalised(image: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h, w): the colours' mean, shifted and scaled to mean 0 and biased deviation 1 as a whole."""
    gray = image.float().mean(1)
    return (gray - gray.mean()) / gray.std(correction=0).clamp(min=SMALLEST_DEVIATION)
