"""The adversarial loss of a discriminator that judges an image at several levels (S3Diff)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class MultiLevelGANLoss(nn.Module):
    """loss_weight * the mean over images of each level's mean cross-entropy, summed over the levels.

    Args:
        loss_weight: of both sides, as published.
        real_label_val: what an image that should pass for real is compared with: less than 1 smooths the label.
        fake_label_val: the same for the images that the discriminator should find out.
    """

    def __init__(self, loss_weight: float = 1.0, real_label_val: float = 0.8, fake_label_val: float = 0.0):
        super().__init__()
        self.loss_weight, self.labels = loss_weight, {True: real_label_val, False: fake_label_val}

    def forward(self, pred: Tensor | Sequence[Tensor], target_is_real: bool, is_disc: bool = False) -> Tensor:
        """The loss of logits (b, ...) or of one such tensor a level; both sides of the game have the same."""
        levels = [pred] if isinstance(pred, Tensor) else pred
        return self.loss_weight * levels_cross_entropy(levels, self.labels[target_is_real]).mean()


def levels_cross_entropy(levels: Sequence[Tensor], label: float) -> Tensor:
    """For each image, the sum over levels of the mean cross-entropy of its logits: tensors (b, ...) -> (b,)."""

    def of_level(logits: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction='none')
        return losses.flatten(1).mean(1)

    return sum(of_level(logits.float()) for logits in levels)
