"""Adversarial training as an object that a model holds: its network d judges what network g makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from basicsr.utils.options import Options
from basicsr.utils.registry import OptionError

if TYPE_CHECKING:
    from basicsr.models.base_model import BaseModel


class Adversary:
    """The two sides of GAN training on a model's `nets['d']` and `losses['gan']`.

    Args:
        relativistic: compare with the mean judgement of the other side (RaGAN, Jolicoeur-Martineau, arXiv:1807.00734),
            as ESRGAN does.
    """

    def __init__(self, model: BaseModel, relativistic: bool = False):
        self.model, self.relativistic = model, relativistic

    def fool(self, sr: Tensor, gt: Tensor) -> Tensor:
        """The generator's loss, with gradients to `sr` only: low where d takes sr (b, 3, h, w) for real."""
        judge, gan = self.model.bare('d'), self.model.losses['gan']
        judge.requires_grad_(False)  # not through the wrapper of several processes: d has no gradients to share here
        fake = judge(sr)
        if self.relativistic:
            real = judge(gt).detach()
            loss = (gan(real - fake.mean(), False, is_disc=False) + gan(fake - real.mean(), True, is_disc=False)) / 2
        else:
            loss = gan(fake, True, is_disc=False)
        judge.requires_grad_(True)
        return loss

    def learn(self, gt: Tensor, sr: Tensor, backward: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """Train d to tell gt from sr; returns its losses and mean judgements by their names in the log.

        Args:
            backward: what to do with the loss where d does not step yet; None: d steps.
        """
        judge, gan, sr = self.model.nets['d'], self.model.losses['gan'], sr.detach()
        if self.relativistic:
            fake, real = judge(sr), judge(gt)
            on_real = gan(real - fake.detach().mean(), True, is_disc=True) * 0.5
            on_fake = gan(fake - real.detach().mean(), False, is_disc=True) * 0.5
        else:
            real, fake = judge(gt), judge(sr)
            on_real, on_fake = gan(real, True, is_disc=True), gan(fake, False, is_disc=True)
        loss = on_real + on_fake
        self.model.update('d', loss) if backward is None else backward(loss)
        return {'l_d_real': on_real, 'l_d_fake': on_fake, 'out_d_real': judgement(real), 'out_d_fake': judgement(fake)}


def judgement(levels: Tensor | Sequence[Tensor]) -> Tensor:
    """The mean of a discriminator's logits; of several levels, each counts the same."""
    levels = [levels] if isinstance(levels, Tensor) else levels
    return sum(level.mean() for level in levels) / len(levels)


def check_adversary(opt: Options) -> None:
    """Raise OptionError for a half of what adversarial training needs."""
    if len({'d' in opt.networks, 'd' in opt.train.optims, 'gan' in opt.train.losses}) != 1:
        raise OptionError('adversarial training needs network_d, optim_d and gan_opt, all or none', ('train',))
