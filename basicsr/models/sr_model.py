"""Feed-forward networks, ATD and any other: pixel and perceptual losses, adversarial where there is a network_d."""

from torch import Tensor

from basicsr.models.adversary import Adversary, check_adversary
from basicsr.models.base_model import BaseModel
from basicsr.utils.options import Options
from basicsr.utils.registry import MODEL_REGISTRY, OptionError


@MODEL_REGISTRY.register()
class SRModel(BaseModel):
    """sr = g(lq), by the difference of sr and gt (BasicSR's SRModel, SRGANModel and ESRGANModel; ATD's ATDModel).

    Args:
        relativistic: the relativistic average GAN of ESRGAN (arXiv:1809.00219).
        net_d_iters, net_d_init_iters: g learns in every net_d_iters-th iteration after the first net_d_init_iters.
        l1_gt_usm, percep_gt_usm, gan_gt_usm: whether the pixel, the feature (perceptual, LPIPS) and the adversarial
            losses compare with the sharpened gt of a degradation with `gt_usm: both` (Real-ESRGAN, arXiv:2107.10833).
    """

    loss_names = ('pixel', 'perceptual', 'lpips', 'gan')

    def __init__(
        self,
        opt: Options,
        relativistic: bool = False,
        net_d_iters: int = 1,
        net_d_init_iters: int = 0,
        l1_gt_usm: bool = False,
        percep_gt_usm: bool = False,
        gan_gt_usm: bool = False,
    ):
        super().__init__(opt)
        self.sharpened = {'pixel': l1_gt_usm, 'perceptual': percep_gt_usm, 'lpips': percep_gt_usm, 'gan': gan_gt_usm}
        if opt.is_train and any(self.sharpened.values()) and (opt.degradation or {}).get('gt_usm') != 'both':
            raise OptionError('l1_gt_usm, percep_gt_usm and gan_gt_usm need a degradation with `gt_usm: both`')
        self.net_d_iters, self.net_d_init_iters, self.iteration = net_d_iters, net_d_init_iters, 0
        self.adversary = Adversary(self, relativistic) if 'd' in self.nets else None
        if opt.is_train and not opt.train.losses.keys() - {'gan'}:
            raise OptionError("section 'train' needs a loss: pixel_opt or perceptual_opt", ('train',))
        if opt.is_train:
            check_adversary(opt)

    def before_step(self, iteration: int) -> None:
        super().before_step(iteration)
        self.iteration = iteration

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        gts = {name: batch['gt_usm' if sharpened else 'gt'] for name, sharpened in self.sharpened.items()}
        sr = self.nets['g'](batch['lq'])
        if self.adversary is None:
            losses = {f'l_{name}': loss for name, loss in self._distances(sr, gts)}
            self.update('g', sum(losses.values()))
            return losses
        losses = {}
        if self.iteration % self.net_d_iters == 0 and self.iteration > self.net_d_init_iters:
            losses = {f'l_g_{name}': loss for name, loss in self._distances(sr, gts)}
            losses['l_g_gan'] = self.adversary.fool(sr, gts['gan'])
            self.update('g', sum(losses.values()))
        return losses | self.adversary.learn(gts['gan'], sr)

    def _distances(self, sr: Tensor, gts: dict[str, Tensor]):
        """The named losses between sr and their gt, by BasicSR's names in the log."""
        if 'pixel' in self.losses:
            yield 'pix', self.losses['pixel'](sr, gts['pixel'])
        if 'perceptual' in self.losses:
            perceptual, style = self.losses['perceptual'](sr, gts['perceptual'])
            if perceptual is not None:
                yield 'percep', perceptual
            if style is not None:
                yield 'style', style
        if 'lpips' in self.losses:
            yield 'lpips', self.losses['lpips'](sr, gts['lpips'])
