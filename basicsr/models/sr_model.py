"""Feed-forward networks, ATD and any other: pixel and perceptual losses, adversarial where there is a network_d."""

from torch import Tensor

from basicsr.models.adversary import Adversary
from basicsr.models.base_model import BaseModel
from basicsr.utils.options import Options
from basicsr.utils.registry import MODEL_REGISTRY, OptionError


@MODEL_REGISTRY.register()
class SRModel(BaseModel):
    """sr = g(lq), by the difference of sr and gt (BasicSR's SRModel, SRGANModel and ESRGANModel; ATD's ATDModel).

    Args:
        relativistic: the relativistic average GAN of ESRGAN (arXiv:1809.00219).
        net_d_iters, net_d_init_iters: g learns in every net_d_iters-th iteration after the first net_d_init_iters.
    """

    loss_names = ('pixel', 'perceptual', 'lpips', 'gan')

    def __init__(self, opt: Options, relativistic: bool = False, net_d_iters: int = 1, net_d_init_iters: int = 0):
        super().__init__(opt)
        self.net_d_iters, self.net_d_init_iters, self.iteration = net_d_iters, net_d_init_iters, 0
        self.adversary = Adversary(self, relativistic) if 'd' in self.nets else None
        if opt.is_train and not opt.train.losses.keys() - {'gan'}:
            raise OptionError("section 'train' needs a loss: pixel_opt or perceptual_opt", ('train',))
        if opt.is_train and (self.adversary is None) != ('gan' not in opt.train.losses):
            raise OptionError('adversarial training needs network_d, optim_d and gan_opt, all or none', ('train',))

    def before_step(self, iteration: int) -> None:
        super().before_step(iteration)
        self.iteration = iteration

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        lq, gt = batch['lq'], batch['gt']
        sr = self.nets['g'](lq)
        if self.adversary is None:
            losses = {f'l_{name}': loss for name, loss in self._distances(sr, gt)}
            self.update('g', sum(losses.values()))
            return losses
        losses = {}
        if self.iteration % self.net_d_iters == 0 and self.iteration > self.net_d_init_iters:
            losses = {f'l_g_{name}': loss for name, loss in self._distances(sr, gt)}
            losses['l_g_gan'] = self.adversary.fool(sr, gt)
            self.update('g', sum(losses.values()))
        return losses | self.adversary.learn(gt, sr)

    def _distances(self, sr: Tensor, gt: Tensor):
        """The named losses between sr and gt, by BasicSR's names in the log."""
        if 'pixel' in self.losses:
            yield 'pix', self.losses['pixel'](sr, gt)
        if 'perceptual' in self.losses:
            perceptual, style = self.losses['perceptual'](sr, gt)
            if perceptual is not None:
                yield 'percep', perceptual
            if style is not None:
                yield 'style', style
        if 'lpips' in self.losses:
            yield 'lpips', self.losses['lpips'](sr, gt)
