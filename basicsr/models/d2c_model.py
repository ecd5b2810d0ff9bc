"""D2C-SR: several divergent predictions of one image, then their convergence to one."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from basicsr.models.base_model import BaseModel
from basicsr.utils.nested_options import OptionsOf, nested
from basicsr.utils.options import Options
from basicsr.utils.registry import MODEL_REGISTRY, OptionError

TRAINED = {'joint': ('g', 'f'), 'branches': ('g',), 'fusion': ('f',)}


@dataclass(frozen=True)
class DivergenceSchedule:
    """When the divergence loss counts, and how much; all options but the first are counted in epochs.

    After epoch `start_epoch`, in the first `epochs` of each `every` epochs, by decay_rate^floor(epoch / decay_epoch).
    Windows begin at multiples of `every`, wherever start_epoch lies (d2c.md 4.5).

    Args:
        steps_per_epoch: iterations that count as an epoch: floor(training pairs / batch size).
        start_epoch: the loss counts after this epoch only.
        every: epochs from one window, in which the loss counts, to the next.
        epochs: length of a window.
        decay_epoch: epochs after which the loss is multiplied by decay_rate, again and again.
        decay_rate: see decay_epoch.
    """

    steps_per_epoch: PositiveInt
    start_epoch: NonNegativeInt
    every: PositiveInt
    epochs: PositiveInt
    decay_epoch: PositiveInt
    decay_rate: float

    def factor(self, iteration: int) -> float:
        """What the loss is multiplied by in `iteration`, counted from 1: the published step 0 is the first."""
        epoch = (iteration - 1) // self.steps_per_epoch
        if epoch <= self.start_epoch or epoch % self.every >= self.epochs:
            return 0.0
        return self.decay_rate ** (epoch // self.decay_epoch)


checked_schedule = OptionsOf(DivergenceSchedule, 'divergence_schedule')


@MODEL_REGISTRY.register()
class D2CModel(BaseModel):
    """D2C-SR (Li et al., ECCV 2022, arXiv:2103.14373): network_g makes four images of lq, network_f blends them.

    In each step g learns from the sum of its branches' pixel losses and from their divergence; then f learns to blend
    what the new g makes, which f's loss does not change. With accumulated gradients, f blends for all batches of a step
    but the last what g made before the step.

    Args:
        stages: 'joint'; or the two one after the other: 'branches' has no network_f (the mean of the branches is
            restored), 'fusion' trains network_f on a loaded network_g.
        divergence_grad: false logs the divergence loss and does not learn from it, as the published code does.
        reuse_d_outputs: f blends what g made before its update, which saves the second forward pass; not as published.
        divergence_schedule: see DivergenceSchedule; without it the divergence loss always counts.
    """

    loss_names = ('pixel', 'divergence')
    averaged = ('g', 'f')
    always_trained = ()
    maps = ('uncertainty', 'weights')

    def __init__(
        self,
        opt: Options,
        stages: Literal['joint', 'branches', 'fusion'] = 'joint',
        divergence_grad: bool = True,
        reuse_d_outputs: bool = False,
        divergence_schedule: nested(checked_schedule) | None = None,
    ):
        if opt.is_train:
            _check_training(opt, stages, reuse_d_outputs, divergence_schedule)
        super().__init__(opt)
        self.stages, self.divergence_grad, self.reuse_d_outputs = stages, divergence_grad, reuse_d_outputs
        self.schedule = None if divergence_schedule is None else DivergenceSchedule(**divergence_schedule)
        self.iteration = 0

    def before_step(self, iteration: int) -> None:
        super().before_step(iteration)
        self.iteration = iteration

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        lq, gt, losses = batch['lq'], batch['gt'], {}
        if self.stages != 'fusion':
            branches = self.nets['g'](lq)
            losses['l_g_pix'] = sum(self.losses['pixel'](image, gt) for image in branches.unbind(1))
            losses |= self._divergence(branches, gt)
            self.update('g', sum(losses.values()) if self.divergence_grad else losses['l_g_pix'])
        if self.stages != 'branches':
            if not self.reuse_d_outputs:
                with torch.no_grad(), self.accelerator.autocast():
                    branches = (self.bare('g') if self.stages == 'joint' else self.eval_net('g'))(lq)
            sr, _ = self.nets['f'](branches.detach())
            losses['l_f_pix'] = self.losses['pixel'](sr, gt)
            self.update('f', losses['l_f_pix'])
        return losses

    def restore(self, lq: Tensor) -> Tensor:
        return self._blended(lq)[1]

    def restore_with_maps(self, lq: Tensor) -> Tensor:
        """What `restore` gives, and as channels 3 and up: the spread of the branches, then f's weight of each.

        The spread is the standard deviation over the branches, in units of the image, mean over the colours.
        Shape: (b, 3, h, w) -> (b, 3 + 1 + 4, h * scale, w * scale).
        """
        branches, sr, weights = self._blended(lq)
        spread = branches.float().std(1, correction=0).mean(1, keepdim=True)
        return torch.cat([sr.float(), spread, weights.float()], 1)

    def _blended(self, lq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The branches (b, 4, 3, h, w), sr (b, 3, h, w) and the weights (b, 4, h, w)."""
        branches = self.eval_net('g')(lq)
        if 'f' not in self.nets:
            count = branches.shape[1]
            return branches, branches.mean(1), branches.new_full((1,), 1 / count).expand(branches[:, :, 0].shape)
        return branches, *self.eval_net('f')(branches)

    def _divergence(self, branches: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The weighted divergence loss by its name in the log; 0 when its time is not, nothing if there is none."""
        if 'divergence' not in self.losses:
            return {}
        factor = 1.0 if self.schedule is None else self.schedule.factor(self.iteration)
        if factor == 0:
            return {'l_g_div': gt.new_zeros(())}
        with torch.set_grad_enabled(self.divergence_grad):
            return {'l_g_div': factor * self.losses['divergence'](branches, gt)}


def _check_training(opt: Options, stages: str, reuse_d_outputs: bool, schedule: dict | None) -> None:
    """Raise OptionError for parts that `stages` lacks, or that it would not use."""
    trained, wanted = opt.train.optims, TRAINED[stages]
    networks = ('g',) if stages == 'branches' else ('g', 'f')
    for label in networks:
        if label not in opt.networks:
            raise OptionError(f"D2CModel needs a 'network_{label}' for 'stages: {stages}'", (f'network_{label}',))
    if 'f' in opt.networks and 'f' not in networks:
        raise OptionError("'stages: branches' has no network_f: leave it and optim_f out", ('network_f',))
    for label in ('g', 'f'):
        if (label in trained) != (label in wanted):
            needs = 'needs' if label in wanted else 'trains without'
            raise OptionError(f"'stages: {stages}' {needs} optim_{label}", ('train', f'optim_{label}'))
    if stages == 'fusion' and 'g' not in opt.path.pretrained:
        raise OptionError(
            "'stages: fusion' needs trained branches: name them with pretrain_network_g", ('path', 'pretrain_network_g')
        )
    if 'pixel' not in opt.train.losses:
        raise OptionError("option 'pixel_opt' is missing", ('train',))
    if stages == 'fusion' and 'divergence' in opt.train.losses:
        raise OptionError("'stages: fusion' leaves the branches as they are: no divergence_opt", ('train',))
    if schedule is not None and 'divergence' not in opt.train.losses:
        raise OptionError('without divergence_opt there is nothing to schedule', ('model', 'divergence_schedule'))
    if reuse_d_outputs and stages != 'joint':
        raise OptionError("belongs to 'stages: joint'", ('model', 'reuse_d_outputs'))
