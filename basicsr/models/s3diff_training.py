"""How S3Diff learns: what a micro-batch teaches network_g and its discriminator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from basicsr.models.adversary import Adversary, check_adversary
from basicsr.models.base_model import NonFiniteLoss
from basicsr.utils.options import Options
from basicsr.utils.registry import OptionError

if TYPE_CHECKING:
    from basicsr.models.base_model import BaseModel

GeneratorSteps = Literal['two', 'one']


class Given(NamedTuple):
    """A micro-batch as network_g sees it: x, gt (b, 3, h, w) in [-1, 1] and the scores of x, (b, 2)."""

    x: Tensor
    gt: Tensor
    score: Tensor


class S3DiffTraining:
    """The training of a model's network_g, and of network_d if there is one (s3diff.md 4).

    network_g first learns to reconstruct: of some samples, drawn anew each time, the enlarged lq under the negative
    prompt, of the others gt under the positive one. Then it learns to pass for real under the positive prompt, and d to
    find that out. `pixel_opt` compares images in [-1, 1], as published.

    Whatever the number of batches of an iteration, each optimizer step has the gradients of its own loss in all of
    them: published code mixes the two losses of network_g, and leaves gradients of its second step in d.

    Args:
        neg_prob: how likely a sample is one with the negative prompt.
        generator_steps: of an iteration: 'two', one a loss, as published, or 'one' on their sum.
        gradient_checkpointing: compute the inside of network_g's blocks twice instead of keeping it.
    """

    def __init__(
        self, model: BaseModel, neg_prob: float, generator_steps: GeneratorSteps, gradient_checkpointing: bool
    ):
        self.model, self.neg_prob, self.generator_steps = model, neg_prob, generator_steps
        self.adversary = Adversary(model) if 'd' in model.nets else None
        self.waiting: list[Given] = []  # micro-batches that the second step of network_g will learn from
        model.nets['g'].gradient_checkpointing(gradient_checkpointing)

    def step(self, batch: dict) -> dict[str, Tensor]:
        """Learn from lq, gt and, where the degradation gives one, lq_up; returns losses by their names in the log.

        Of a second step the last micro-batch logs what all of them have lost: optimizer_step averages over them.
        """
        try:
            return self._step(self._given(batch))
        except NonFiniteLoss:
            self.waiting.clear()
            raise

    def _step(self, given: Given) -> dict[str, Tensor]:
        model = self.model
        accelerator, net = model.accelerator, model.nets['g']
        if self.adversary is not None and self.generator_steps == 'one':
            with accelerator.no_sync(net):
                losses = self._reconstruction(given)
                accelerator.backward(sum(losses.values()))
            return losses | self._game(given)
        losses = self._reconstruction(given)
        model.update('g', sum(losses.values()))
        if self.adversary is None:
            return losses
        self.waiting.append(given)
        if not accelerator.sync_gradients:
            return losses
        *earlier, last = self.waiting
        self.waiting.clear()
        games = []
        with accelerator.no_sync(net), accelerator.no_sync(model.nets['d']):
            games += [self._game(each, accelerator.backward) for each in earlier]
        games.append(self._game(last))
        return losses | {name: sum(game[name] for game in games) for name in games[-1]}

    def _reconstruction(self, given: Given) -> dict[str, Tensor]:
        """The losses of images made under mixed prompts."""
        negative = negative_samples(torch.rand(len(given.x), device=given.x.device), self.neg_prob)
        positive_prompt, negative_prompt = self.model.prompts
        prompt = torch.where(rearrange(negative, 'b -> b 1 1'), negative_prompt, positive_prompt)
        sr, target, losses = self._restored(given, prompt), mixed_target(negative, given.x, given.gt), {}
        if 'pixel' in self.model.losses:
            losses['l_g_pix'] = self.model.losses['pixel'](sr, target)
        if 'perceptual' in self.model.losses:
            losses['l_g_percep'] = self.model.losses['perceptual']((sr + 1) / 2, (target + 1) / 2)
        return losses

    def _game(self, given: Given, backward: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """The adversarial losses of both sides, and their gradients.

        Args:
            backward: where the gradients of other micro-batches are still to come; None: both networks step.
        """
        model = self.model
        sr = self._restored(given, model.prompts[0])
        fooled = self.adversary.fool(sr, given.gt)
        model.update('g', fooled) if backward is None else backward(fooled)
        return {'l_g_gan': fooled, **self.adversary.learn(given.gt, sr, backward)}

    def _restored(self, given: Given, prompt: Tensor) -> Tensor:
        """Images of network_g in [-1, 1], each from a latent drawn anew."""
        net, noise = self.model.bare('g'), None
        if self.model.sample_posterior:
            height, width = (side // net.downscale for side in given.x.shape[-2:])
            channels = net.vae.config.latent_channels
            noise = torch.randn(len(given.x), channels, height, width, device=given.x.device)
        return self.model.nets['g'](given.x, given.score, prompt, noise)

    @torch.no_grad()
    def _given(self, batch: dict) -> Given:
        """Enlarged as the model does when it restores; an image that was left undegraded is scored as that."""
        lq, gt, unit = batch['lq'], batch['gt'], self.model.bare('g').size_multiple
        if any(side % unit for side in gt.shape[-2:]):
            height, width = gt.shape[-2:]
            raise OptionError(f'gt of {height} x {width} pixels: network_g learns from multiples of {unit}')
        up = self.model.enlarged(lq)
        if 'lq_up' in batch:  # of S3DiffDegradation, where it is gt in a few samples whose lq is degraded all the same
            untouched = (batch['lq_up'] == gt).flatten(1).all(1)[:, None, None, None]
            up = torch.where(untouched, gt, up)
            lq = torch.where(untouched, F.interpolate(gt, lq.shape[-2:], mode='area'), lq)
        x, gt = ((2 * image - 1).clamp(-1, 1) for image in (up, gt))
        return Given(x, gt, self.model.scores(lq))


def negative_samples(draws: Tensor, probability: float) -> Tensor:
    """Which samples get the negative prompt, by uniform draws (b,)."""
    return draws < probability


def mixed_target(negative: Tensor, lq_up: Tensor, gt: Tensor) -> Tensor:
    """The enlarged lq for negative samples (b,), gt for the others: (b, 3, h, w) twice -> (b, 3, h, w)."""
    return torch.where(rearrange(negative, 'b -> b 1 1 1'), lq_up, gt)


def check_training(opt: Options, neg_prob: float) -> None:
    """Raise OptionError for losses that S3Diff cannot do without, or cannot use, and for half an adversary."""
    train = opt.train
    if train.losses.keys().isdisjoint(('pixel', 'perceptual')):
        raise OptionError("network_g needs something to learn from: 'pixel_opt' or 'perceptual_opt'", ('train',))
    if train.losses.get('perceptual', {'type': 'LPIPSLoss'})['type'] != 'LPIPSLoss':
        raise OptionError('should be LPIPSLoss', ('train', 'perceptual_opt', 'type'))
    check_adversary(opt)
    if train.ema_decay:
        raise OptionError('S3Diff keeps no average of its weights: should be 0', ('train', 'ema_decay'))
    if not 0 <= neg_prob <= 1:
        raise OptionError(f'is a probability, got {neg_prob}', ('model', 'neg_prob'))
