"""Cases of `d2c` about training and scoring: divergence, steps, schedules, metrics, evaluation, patches."""

import tempfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from basicsr.losses.diversity_loss import normalised
from basicsr.metrics.d2c import psnr_d2c, ssim_d2c
from basicsr.models.base_model import BaseModel
from basicsr.models.d2c_model import DivergenceSchedule
from basicsr.models.optimizers import LearningRates
from basicsr.utils.image import write_image
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY
from reference.case import Case, filled
from reference.checking import checks, mostly, tensors
from reference.training import learn, options, prepared

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


@checks('d2c', 'D_Net and C_Net, training')
def training_steps(case: Case) -> Iterator[tuple]:
    """Steps of our D2CModel on RGB; weights, gradients and images are turned back into the published order."""
    args, gradients, seen = case.args, {}, []
    model = d2c_model(case, args['net'])
    lq, gt = (image.flip(1) for image in tensors(case, 'image', 'label'))
    for label in ('g', 'f'):
        optimizer = model.optimizers[label].optimizer
        optimizer.register_step_pre_hook(lambda *_, k=label: gradients.update(_gradients(model, k)))
    hook = model.bare('f').register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output[0])))
    losses, published = [], {}
    for step in range(1, args['steps'] + 1):
        with torch.no_grad():
            errors = (model.bare('g')(lq) - gt[:, None]).square().mean((0, 2, 3, 4)).tolist()
        logged = learn(model, step, lq, gt)
        divergence = logged.get('l_g_div', torch.zeros(())).item()
        losses.append([*errors, logged['l_g_pix'].item(), divergence, logged['l_f_pix'].item()])
        if step == 1:
            published = {f'grad_{name}': value for name, value in gradients.items()}
            published |= _published(model, '1:')
    hook.remove()
    yield 'losses', losses
    branches, blend = seen[0]
    yield 'out11_after_step1', branches[:, 0].flip(1)
    yield signs_aside(case, 'fusion_step1', blend.flip(1), steps=1)
    for name, value in {**published, **_published(model, 'n:')}.items():
        if name not in case.arrays:
            continue
        if name.startswith('grad_'):
            yield from relative(case, name, value, 1e-4)
        else:
            yield signs_aside(case, name, value, steps=1 if name[1] == '1' else args['steps'])


def d2c_model(case: Case, net: dict) -> BaseModel:
    """The two networks of a case with its weights, ready to train as its arguments say."""
    args = case.args
    adam = {'type': 'Adam', **{name: args[name] for name in ('lr', 'betas', 'eps', 'weight_decay') if name in args}}
    train = {'optim_g': adam, 'optim_f': dict(adam), 'pixel_opt': {'type': 'MSELoss'}}
    if args.get('diver_w'):
        margins = {name: args[name] for name in ('margin_same', 'margin_diff')}
        train['divergence_opt'] = {'type': 'TripletDivergenceLoss', 'loss_weight': args['diver_w'], **margins}
    networks = {'network_g': {'type': 'D2CBranches', **net}, 'network_f': {'type': 'D2CFusion'}}
    settings = {'divergence_grad': args.get('divergence_grad', True)}
    model = prepared(options(networks, train, net['scale'], 'D2CModel', model=settings))
    for label, layout in (('g', 'layout'), ('f', 'layout_C')):
        state = {name: filled(name, shape) for name, shape in case.spec[layout].items()}
        net = model.bare(label)
        net.load_state_dict(net.from_published(state), strict=True)
    return model


def _published(model: BaseModel, infix: str) -> dict[str, Tensor]:
    """The weights of both networks as published, `D1:head.0.weight` and so on for the infix '1:'."""
    return {
        f'{letter}{infix}{name}': value.clone()
        for label, letter in (('g', 'D'), ('f', 'C'))
        for name, value in model.bare(label).to_published(model.bare(label).state_dict()).items()
    }


def _gradients(model: BaseModel, label: str) -> dict[str, Tensor]:
    net, letter = model.bare(label), {'g': 'D', 'f': 'C'}[label]
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    return {f'{letter}:{name}': value for name, value in net.to_published(found).items()}


def signs_aside(case: Case, name: str, ours: Tensor, steps: int) -> tuple[str, Tensor]:
    """`ours`, with 0.2 percent of the values taken from the stored ones if they are within Adam's steps of them.

    A step of Adam is about lr times the sign of the gradient, which may differ where that is almost 0.
    """
    published = torch.as_tensor(case.arrays[name])
    far = (ours - published).abs() > 2.1 * case.args['lr'] * steps
    return mostly(case, name, torch.where(far, torch.inf, ours), 0.002)


@checks('d2c', 'published evaluation of one image pair')
@torch.no_grad()
def evaluation(case: Case) -> Iterator[tuple]:
    """8-bit BGR images; ground truth is cut at the bottom and the right to the size of the result."""
    lq, gt = (
        torch.as_tensor(image).flip(2).permute(2, 0, 1)[None].float() / 255 for image in tensors(case, 'lr', 'gt')
    )
    scale = case.args['scale']
    sr = d2c_model(case, case.args).restore(lq)
    yield 'fusion', sr.flip(1)
    gt = gt[..., : sr.shape[2], : sr.shape[3]]
    yield 'psnr', psnr_d2c(sr, gt, scale)
    yield 'ssim', ssim_d2c(sr, gt)


@checks('d2c', 'training patch and validation item')
def patches(case: Case) -> Iterator[tuple]:
    """Files in PNG, a list of pairs, and our data set with the recorded draws in place of random numbers."""
    args, seen = case.args, []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ('lr', 'gt'):
            write_image(Path(folder, f'{kind}.png'), case.arrays[f'src_{kind}_0'][..., ::-1].astype(np.uint8))
        Path(folder, 'list.txt').write_text('lr.png gt.png\n')
        roots = {'dataroot_gt': folder, 'dataroot_lq': folder, 'pair_list': f'{folder}/list.txt'}
        flips = {'use_hflip': True, 'use_rot': True}
        section = {'type': 'PairedImageDataset', 'gt_size': args['patch_size'] * args['scale'], **roots, **flips}
        given = {'scale': args['scale']}
        training = DATASET_REGISTRY.build({**section, 'published_crop': True}, phase='train', **given)
        for k, draw in enumerate(case.inputs['draws']):
            with mock.patch('basicsr.data.paired_image_dataset.random', Draws(draw, seen)):
                item = training[0]
            yield f'lr_{k}', item['lq'].flip(0)
            yield f'gt_{k}', item['gt'].flip(0)
        item = DATASET_REGISTRY.build(section, phase='val', **given)[0]
        yield 'val_lr_0', item['lq'].flip(0)
        yield 'val_gt_0', item['gt'].flip(0)
    yield 'ranges', [[k // 2, *bounds] for k, bounds in enumerate(seen)], case.spec['randint_ranges']


class Draws:
    """Recorded draws in their order: x, y, three uniforms. `seen` gets the bounds of the first two."""

    def __init__(self, draw: dict, seen: list[list[int]]):
        self.places = iter([draw['x'], draw['y']])
        self.uniforms, self.seen = iter([draw['r_hflip'], draw['r_vflip'], draw['r_transpose']]), seen

    def randint(self, low: int, high: int) -> int:
        self.seen.append([low, high])
        return next(self.places)

    def random(self) -> float:
        return next(self.uniforms)
