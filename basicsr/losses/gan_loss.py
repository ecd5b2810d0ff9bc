"""Adversarial losses of both sides, and the penalties on a discriminator's gradient."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import LOSS_REGISTRY, OptionError

GanType = Literal['vanilla', 'lsgan', 'wgan', 'wgan_softplus', 'hinge']


@LOSS_REGISTRY.register()
class GANLoss(nn.Module):
    """How far a discriminator's judgement is from what a side of the game wants.

    Args:
        gan_type: vanilla (cross-entropy of logits), lsgan (squared error), wgan (mean), wgan_softplus (non-saturating
            logistic), hinge.
        real_label_val, fake_label_val: the targets of vanilla and lsgan.
        loss_weight: multiplies the generator's losses only.
    """

    def __init__(
        self, gan_type: GanType, real_label_val: float = 1.0, fake_label_val: float = 0.0, loss_weight: float = 1.0
    ):
        super().__init__()
        if gan_type not in GAN_LOSSES:
            raise OptionError(f'gan_type {gan_type!r} is not known; choose from {", ".join(GAN_LOSSES)}', ('gan_type',))
        self.gan_type, self.loss_weight = gan_type, loss_weight
        self.labels = {True: real_label_val, False: fake_label_val}

    def forward(self, pred: Tensor, target_is_real: bool, is_disc: bool = False) -> Tensor:
        """The mean loss of judgements of any shape; `is_disc` for the discriminator's own step."""
        if self.gan_type == 'hinge':
            loss = _hinge(pred, target_is_real, is_disc)
        else:
            loss = GAN_LOSSES[self.gan_type](pred, target_is_real, self.labels[target_is_real])
        return loss if is_disc else self.loss_weight * loss


@LOSS_REGISTRY.register()
class MultiScaleGANLoss(GANLoss):
    """The mean of GANLoss over a list of judgements; of a list of features with the judgement last, that last one."""

    def forward(self, pred: Tensor | list, target_is_real: bool, is_disc: bool = False) -> Tensor:
        if not isinstance(pred, list):
            return super().forward(pred, target_is_real, is_disc)
        scales = [scale[-1] if isinstance(scale, list) else scale for scale in pred]
        return sum(
            super(MultiScaleGANLoss, self).forward(scale, target_is_real, is_disc).mean() for scale in scales
        ) / len(scales)


def r1_penalty(real_pred: Tensor, real: Tensor) -> Tensor:
    """Mean over images of the squared gradient norm of the judgement at real images (Mescheder et al., 1801.04406).

    `real` (b, c, h, w) must have required gradients when `real_pred` was computed from it.
    """
    (gradient,) = torch.autograd.grad(real_pred.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def gradient_penalty_loss(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    weight: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """Mean of (|gradient| - 1)^2 between real and fake images (WGAN-GP, Gulrajani et al., 1704.00028).

    As published in BasicSR the norm is over channels, pixel by pixel.
    Args:
        weight: multiplies the gradient, (b, 1, h, w) or (b, c, h, w); the penalty is divided by its mean.
        mix: the part of `real` in each mixed image, (b, 1, 1, 1); drawn uniformly by default.
    """
    if mix is None:
        mix = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    if weight is None:
        return (gradient.norm(2, dim=1) - 1).square().mean()
    return ((gradient * weight).norm(2, dim=1) - 1).square().mean() / weight.mean()


def _vanilla(pred: Tensor, target_is_real: bool, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(pred, torch.full_like(pred, label))


def _least_squares(pred: Tensor, target_is_real: bool, label: float) -> Tensor:
    return (pred - label).square().mean()


def _wasserstein(pred: Tensor, target_is_real: bool, label: float) -> Tensor:
    return -pred.mean() if target_is_real else pred.mean()


def _softplus(pred: Tensor, target_is_real: bool, label: float) -> Tensor:
    return F.softplus(-pred if target_is_real else pred).mean()


def _hinge(pred: Tensor, target_is_real: bool, is_disc: bool) -> Tensor:
    """The generator raises the judgement whatever the target."""
    if not is_disc:
        return -pred.mean()
    return F.relu(1 - pred if target_is_real else 1 + pred).mean()


GAN_LOSSES = {
    'vanilla': _vanilla,
    'lsgan': _least_squares,
    'wgan': _wasserstein,
    'wgan_softplus': _softplus,
    'hinge': _hinge,
}
