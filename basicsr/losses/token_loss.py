"""Losses on the tokens of a discrete autoencoder (ITER)."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class CodebookLoss(nn.Module):
    """loss_weight * what the quantizer says of the distance between features and codes (ITER's stage I)."""

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, distance: Tensor) -> Tensor:
        return self.loss_weight * distance


class TokenLogits(Protocol):
    """What TokenLoss reads of a network's answer; all but the first two are None where only the LQ encoder learns."""

    lq_logits: Tensor  # (b, n, h, w): of the codes, by the LQ encoder
    lq_tokens: Tensor  # (b, h, w): the codes that it finds likeliest
    critic_lq: Tensor | None  # (b, 2, h, w): whether those are bad (0) or good (1)
    mask: Tensor | None  # (b, h, w): 1 where the refinement net had no token to look at
    refined_logits: Tensor | None  # (b, n, h, w): of the codes, by the refinement net
    refined_tokens: Tensor | None  # (b, h, w): the codes that it finds likeliest
    critic_refined: Tensor | None  # (b, 2, h, w): whether those are bad or good


@LOSS_REGISTRY.register()
class TokenLoss(nn.Module):
    """How well ITER's networks name the tokens of gt, and judge their own (arXiv:2312.05616, iter.md 4.3).

    The sum of four cross-entropies: of the LQ encoder's logits; of the critic's judgement of its tokens, balanced
    between good and bad ones; of the critic's judgement of the refined tokens, not balanced; and of the refinement
    net's logits, where each image counts by the share of its tokens that were masked, its kept tokens included.

    Args:
        loss_weight: of all four.
        beta: of the balance, see `balanced_cross_entropy`.
    """

    def __init__(self, loss_weight: float = 1.0, beta: float = 0.9999):
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(f'beta should be above 0 and below 1, got {beta}')
        self.loss_weight, self.beta = loss_weight, beta

    def forward(self, found: TokenLogits, gt_tokens: Tensor) -> dict[str, Tensor]:
        """The weighted losses by their names in the log; gt_tokens (b, h, w) int64."""
        losses = {'l_token': F.cross_entropy(found.lq_logits.float(), gt_tokens)}
        if found.refined_logits is not None:
            good = (found.lq_tokens == gt_tokens).long()
            losses['l_critic_lq'] = balanced_cross_entropy(found.critic_lq, good, self.beta)
            good = (found.refined_tokens == gt_tokens).long()
            losses['l_critic_refined'] = F.cross_entropy(found.critic_refined.float(), good)
            masked = found.mask.float().mean((1, 2))
            named = F.cross_entropy(found.refined_logits.float(), gt_tokens, reduction='none').mean((1, 2))
            losses['l_refine'] = (masked * named).mean()
        return {name: self.loss_weight * loss for name, loss in losses.items()}


def balanced_cross_entropy(logits: Tensor, labels: Tensor, beta: float = 0.9999) -> Tensor:
    """Weighted mean cross-entropy, in which a class of n labels weighs as (1 - beta) / (1 - beta^n).

    That is the inverse of its effective number of samples (Cui et al., arXiv:1901.05555).
    Shape: logits (b, c, ...), labels (b, ...) int64 -> a scalar. The labels are counted in the tensor that is passed.
    """
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])])
    weights = (1 - beta) / (1e-8 - torch.expm1(counts * math.log(beta)))  # 1 - beta^n, where n is small too
    weights = weights * len(counts) / (weights.sum() + 1e-8)
    return F.cross_entropy(logits.float(), labels, weight=weights)
