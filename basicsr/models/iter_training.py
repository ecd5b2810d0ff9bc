"""How ITER learns from tokens and images: the step of its second and third stage, and what the first shares with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from basicsr.models.adversary import Adversary, check_adversary
from basicsr.utils.options import Options
from basicsr.utils.registry import OptionError

if TYPE_CHECKING:
    from basicsr.models.base_model import BaseModel

Stages = Literal['joint', 'tokens', 'refinement']
IMAGE_LOSSES = {'pixel': 'pix', 'struct': 'struct', 'perceptual': 'percep'}  # -> their names in the log
TOKEN_NETS = 'token_refine_net.'  # how the names of their entries begin in a file of network_g


class Draws(NamedTuple):
    """The randomness of a step, as network_g wants it."""

    rate_noise: Tensor
    mask_noise: Tensor
    gumbel: Tensor | None


class TokenTraining:
    """The second and third stage of ITER on a model's network_g (iter.md 4.3), whose VQGAN is frozen.

    The losses on the tokens of gt are those of `codebook_opt`. The image of the refined tokens is compared with gt by
    `perceptual_opt` only, with half its weight: as published, where the mean is over as many images of lq's tokens,
    through which no gradient passes. Those are made, and their image losses shown, in iterations that are logged.

    Args:
        stages: 'joint' trains LQ encoder and token nets together, as published; 'tokens' the LQ encoder of a network
            without token nets, 'refinement' then the token nets on that encoder, which stays as it is.
        lq_pixel_grad: the LQ encoder learns from the image of its tokens too, by all image losses and, if there is one,
            network_d: the gradient passes the drawing of tokens straight.
        net_d_init_iters: d takes part after so many iterations.
    """

    def __init__(self, model: BaseModel, stages: Stages, lq_pixel_grad: bool, net_d_init_iters: int):
        self.model, self.lq_pixel_grad, self.net_d_init_iters = model, lq_pixel_grad, net_d_init_iters
        self.adversary = Adversary(model) if 'd' in model.nets else None
        self.encoder_learns = stages != 'refinement'
        model.nets['g'].lq_encoder.requires_grad_(self.encoder_learns)

    def step(self, lq: Tensor, gt: Tensor, iteration: int) -> dict[str, Tensor]:
        """Learn from one batch in this iteration, counted from 1; returns the losses by their names in the log."""
        model, net = self.model, self.model.bare('g')
        with torch.no_grad(), model.accelerator.autocast():
            gt_tokens = net.vqgan.indices(gt)
        refines = net.token_refine_net is not None
        found = model.nets['g'](lq, gt_tokens, self._draws(gt_tokens, refines and 'perceptual' in model.losses))
        losses = model.losses['codebook'](found, gt_tokens)
        shown = {} if self.encoder_learns else {'l_token': losses.pop('l_token')}
        shown['token_accuracy'] = (found.lq_tokens == gt_tokens).float().mean()
        if refines:
            shown['refined_accuracy'] = (found.refined_tokens == gt_tokens).float().mean()
            if found.refined_image is not None:
                losses['l_refined_percep'] = 0.5 * model.losses['perceptual'](found.refined_image, gt)
        if not self.lq_pixel_grad:
            model.update('g', sum(losses.values()))
            if self._is_logged(iteration) and not model.losses.keys().isdisjoint(IMAGE_LOSSES):
                with torch.no_grad():
                    shown |= self._of_lq_image(self._lq_image(found.lq_logits), gt, refines)
            return losses | shown
        image = self._lq_image(found.lq_logits)
        losses |= self._of_lq_image(image, gt, refines)
        judged = self.adversary is not None and iteration > self.net_d_init_iters
        if judged:
            losses['l_lq_gan'] = self.adversary.fool(image, gt)
        model.update('g', sum(losses.values()))
        if judged:
            shown |= self.adversary.learn(gt, image)
        return losses | shown

    def _draws(self, tokens: Tensor, with_image: bool) -> Draws:
        b, h, w = tokens.shape
        rate, mask = (torch.rand(size, device=tokens.device) for size in ((b,), (b, h, w)))
        return Draws(rate, mask, self._gumbel(tokens) if with_image else None)

    def _gumbel(self, tokens: Tensor) -> Tensor:
        """Gumbel noise for each code at the places of tokens: (b, h, w) -> (b, n_embed, h, w)."""
        b, h, w = tokens.shape
        size = (b, self.model.bare('g').vqgan.n_embed, h, w)
        return -torch.empty(size, device=tokens.device).exponential_().log()

    def _lq_image(self, logits: Tensor) -> Tensor:
        """The image of tokens drawn by the LQ encoder's logits."""
        with self.model.accelerator.autocast():
            return self.model.bare('g').decode_drawn(logits, self._gumbel(logits[:, 0])).float()

    def _of_lq_image(self, image: Tensor, gt: Tensor, refines: bool) -> dict[str, Tensor]:
        """The image losses by their names in the log; the perceptual one is half of a mean over two kinds of images."""
        losses = image_losses(self.model.losses, image, gt)
        if refines and 'percep' in losses:
            losses['percep'] = 0.5 * losses['percep']
        return {f'l_lq_{name}': loss for name, loss in losses.items()}

    def _is_logged(self, iteration: int) -> bool:
        opt = self.model.opt
        frequency = opt.logger.print_freq
        return frequency > 0 and (iteration % frequency == 0 or iteration == opt.train.total_iter)


def image_losses(losses: Mapping[str, nn.Module], image: Tensor, gt: Tensor) -> dict[str, Tensor]:
    """Those of the pixel, structural and perceptual loss that there are, by short names."""
    return {short: losses[name](image, gt) for name, short in IMAGE_LOSSES.items() if name in losses}


def with_fresh_token_nets(opt: Options, state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The entries of a file; if the third stage begins with one of the second, those of `net` for its token nets."""
    begins = opt.is_train and opt.model.get('stages') == 'refinement'
    if not begins or any(name.startswith(TOKEN_NETS) for name in state):
        return state
    return state | {name: value for name, value in net.state_dict().items() if name.startswith(TOKEN_NETS)}


def check_losses(opt: Options) -> None:
    """Raise OptionError for losses that ITER's stages cannot do without, or cannot use, and for half an adversary."""
    train = opt.train
    if 'codebook' not in train.losses:
        raise OptionError("option 'codebook_opt' is missing", ('train',))
    if train.losses.get('perceptual', {'type': 'LPIPSLoss'})['type'] != 'LPIPSLoss':
        raise OptionError('should be LPIPSLoss', ('train', 'perceptual_opt', 'type'))
    check_adversary(opt)


def check_training(opt: Options, stages: Stages, lq_pixel_grad: bool, net_d_init_iters: int) -> None:
    """Raise OptionError for parts that a TokenTraining of these arguments lacks, or that would have no effect."""
    check_losses(opt)
    refines = opt.networks['g'].get('refine', True)
    if refines != (stages != 'tokens'):
        needs = 'refine: false' if refines else 'refine: true'
        raise OptionError(f"'stages: {stages}' needs network_g with '{needs}'", ('network_g', 'refine'))
    if opt.path.pretrained.keys().isdisjoint(('hq', 'g')):
        raise OptionError(
            "ITER learns the tokens of a trained VQGAN: name its file with 'pretrain_network_hq'",
            ('path', 'pretrain_network_hq'),
        )
    if stages == 'refinement' and 'g' not in opt.path.pretrained:
        raise OptionError(
            "'stages: refinement' needs a trained LQ encoder: name its file with 'pretrain_network_g'",
            ('path', 'pretrain_network_g'),
        )
    if lq_pixel_grad and stages == 'refinement':
        raise OptionError("'stages: refinement' leaves the LQ encoder as it is", ('model', 'lq_pixel_grad'))
    if lq_pixel_grad and opt.train.losses.keys() == {'codebook'}:
        raise OptionError('needs a loss of images, such as pixel_opt', ('model', 'lq_pixel_grad'))
    if 'd' in opt.networks and not lq_pixel_grad and net_d_init_iters < opt.train.total_iter:
        raise OptionError(
            "network_d judges the image of lq's tokens, from which nothing is learned without 'lq_pixel_grad: true'; "
            'leave it out, with optim_d and gan_opt, or give a net_d_init_iters that total_iter does not reach',
            ('network_d',),
        )
