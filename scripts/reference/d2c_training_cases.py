"""Cases of `d2c` about training and scoring: divergence, steps, schedules, metrics, evaluation, patches."""

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from basicsr.losses.diversity_loss import normalised
from basicsr.metrics.d2c import psnr_d2c, ssim_d2c
from basicsr.models.d2c_model import DivergenceSchedule
from basicsr.models.optimizers import LearningRates
from basicsr.utils.registry import LOSS_REGISTRY
from reference.case import Case
from reference.checking import checks, tensors

BRANCHES = ('out11', 'out12', 'out21', 'out22')


@checks('d2c', 'divergence loss')
def divergence(case: Case) -> Iterator[tuple]:
    """Gradients are compared relative to their largest magnitude, as the notes say."""
    gt = next(tensors(case, 'hr'))
    for k, settings in enumerate(case.args['settings']):
        images = [image.clone().requires_grad_() for image in tensors(case, *BRANCHES)]
        loss = divergence_loss(settings, case.args['decay_rate'])
        value = loss(torch.stack(images, 1), gt)
        value.backward()
        hinges = loss.hinges(torch.stack(images, 1), gt)
        yield f'loss_{k}', value
        yield f'terms_{k}', torch.stack([hinges[pair] for pair in permutations(range(4), 2)])
        for name, image in zip(BRANCHES, images, strict=True):
            yield from relative(case, f'grad_{name}_{k}', image.grad, 2e-4)
    yield 'norm_out11', normalised(images[0])[:, None]
    yield 'norm_hr', normalised(gt)[:, None]


def divergence_loss(settings: dict, same_parent_factor: float = 0.8) -> torch.nn.Module:
    margins = {name: settings[name] for name in ('margin_same', 'margin_diff')}
    options = {'loss_weight': settings['diver_w'], 'same_parent_factor': same_parent_factor, **margins}
    return LOSS_REGISTRY.build({'type': 'TripletDivergenceLoss', **options})


def relative(case: Case, name: str, ours: Tensor, share: float) -> Iterator[tuple]:
    """A gradient, judged by `share` of its largest magnitude in place of the case's tolerance."""
    published = torch.as_tensor(case.arrays[name])
    unit = share * published.abs().max() / case.spec['tolerance']['atol']
    yield name, (ours - published) / unit.clamp(min=1e-30), torch.zeros_like(published)


@checks('d2c', 'learning rate and divergence weight')
def schedules(case: Case) -> Iterator[tuple]:
    """The framework counts iterations from 1; steps between which no rate changes are skipped."""
    args, recorded = case.args, case.arrays['step'].tolist()
    decay = args['decay_epoch'] * args['steps_per_epoch']
    milestones = list(range(decay, max(recorded) + 1, decay))
    names = ('start_epoch', 'every', 'epochs', 'decay_epoch', 'decay_rate')
    schedule = DivergenceSchedule(args['steps_per_epoch'], **{name: args[f'diver_{name}'] for name in names})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args['lr'])
    section = {'type': 'MultiStepLR', 'milestones': milestones, 'gamma': args['gamma']}
    rates, found = LearningRates(section, {'g': optimizer}, -1), {}
    for step in sorted({*recorded, *milestones}):
        rates.schedulers[0].last_epoch = max(rates.schedulers[0].last_epoch, step - 1)
        rates.set(step + 1)
        found[step] = rates.current()[0]
        optimizer.step()
    yield 'lr', [found[step] for step in recorded]
    yield 'diver_w', [args['diver_w'] * schedule.factor(step + 1) for step in recorded]


@checks('d2c', 'published PSNR and SSIM')
def metrics(case: Case) -> Iterator[tuple]:
    """The published arrays are BGR; on our RGB `published` repeats their values, `rgb` those of reversed channels."""
    sr, gt = (image.flip(1) for image in tensors(case, 'sr', 'hr'))
    for ending, order in (('', 'published'), ('_flipped', 'rgb')):
        for shave in case.args['shaves']:
            yield f'psnr{ending}_shave{shave}', psnr_d2c(sr, gt, shave, order)
        yield f'ssim{ending}', ssim_d2c(sr, gt, order)
