"""Cases of `core` about losses and discriminators."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.losses.gan_loss import GAN_LOSSES, gradient_penalty_loss, r1_penalty
from basicsr.losses.ldl_loss import artifact_map, local_variance
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from reference.case import Case
from reference.checking import checks, closest, tensors

LDL_WINDOW = 7  # what the published function was called with


@checks('core', 'get_refined_artifact_map')
def artifacts(case: Case) -> Iterator[tuple]:
    gt, sr, ema = tensors(case, 'gt', 'output', 'ema')
    yield 'map', artifact_map(gt, sr, ema, LDL_WINDOW)
    yield 'local_weights', local_variance((gt - sr).abs().sum(1, keepdim=True), LDL_WINDOW)


@checks('core', 'L1Loss')
def pixel_losses(case: Case) -> Iterator[tuple]:
    """Names are LOSS_REDUCTION[_w1|_wc], grad_LOSS and PSNRLoss."""
    sr, gt = tensors(case, 'pred', 'target')
    for name in case.outputs:
        if name.startswith('grad_'):
            leaf = sr.clone().requires_grad_(True)
            _pixel_loss(case, name.removeprefix('grad_'), 'mean')(leaf, gt).backward()
            yield name, leaf.grad
        elif name.startswith('PSNRLoss'):
            loss = LOSS_REGISTRY.build(
                {
                    'type': 'PSNRLoss',
                    'loss_weight': case.args['loss_weight'],
                    'toY': 'y' in name.removeprefix('PSNRLoss').lower(),
                }
            )
            yield name, loss(sr.sigmoid(), gt.sigmoid())
        else:
            kind, reduction, *weighted = name.split('_')
            weight = next(tensors(case, *weighted)) if weighted else None
            images = (sr,) if kind == 'WeightedTVLoss' else (sr, gt)
            yield name, _pixel_loss(case, kind, reduction)(*images, weight)


def _pixel_loss(case: Case, kind: str, reduction: str) -> nn.Module:
    section = {'type': kind, 'loss_weight': case.args['loss_weight'], 'reduction': reduction}
    if kind == 'CharbonnierLoss':
        section['eps'] = case.args['charbonnier_eps']
    return LOSS_REGISTRY.build(section)


@checks('core', 'GANLoss')
def gan_losses(case: Case) -> Iterator[tuple]:
    (pred,) = tensors(case, 'pred')
    labels = {key: case.args[key] for key in ('loss_weight', 'real_label_val', 'fake_label_val')}
    for kind in GAN_LOSSES:
        loss = LOSS_REGISTRY.build({'type': 'GANLoss', 'gan_type': kind, **labels})
        yield kind, [loss(pred, real, is_disc).item() for is_disc in (True, False) for real in (True, False)]
        # Recorded: (real, discriminator) and (fake, generator) of two scales, the second with a feature before it.
        multi = LOSS_REGISTRY.build({'type': 'MultiScaleGANLoss', 'gan_type': kind, **labels})
        scales = [pred, [pred, 0.5 * pred]]
        yield f'ms_{kind}', [multi(scales, True, is_disc=True).item(), multi(scales, False, is_disc=False).item()]
    x, y = tensors(case, 'x', 'y')
    leaf = x.clone().requires_grad_(True)
    yield 'r1', r1_penalty(_judge(leaf), leaf)
    (mix,) = tensors(case, 'gp_alpha')
    yield 'gp', gradient_penalty_loss(_judge, x, y, mix=mix)
    yield 'gp_weight_half', gradient_penalty_loss(_judge, x, y, weight=torch.full_like(x, 0.5), mix=mix)


def _judge(x: Tensor) -> Tensor:
    """The discriminator that the gradient penalties were recorded with."""
    return torch.tanh(3 * x).sum((1, 2, 3))[:, None]


@checks('core', 'PerceptualLoss')
def perceptual(case: Case) -> Iterator[tuple]:
    x, gt = tensors(case, 'x', 'gt')
    for criterion in ('l1', 'l2', 'fro'):
        if f'out_{criterion}' in case.arrays:
            loss = LOSS_REGISTRY.build(
                {'type': 'PerceptualLoss', **case.args, 'criterion': criterion, 'pretrained': False}
            )
            _fill_extractor(loss.vgg, case)
            parts = loss(x, gt)
            yield closest(
                case,
                f'out_{criterion}',
                (  # a part of weight 0 is None, for which a number was recorded
                    [left_out if part is None else part.item() for part in parts] for left_out in (0.0, math.nan)
                ),
            )
            first = next(iter(case.args['layer_weights']))
            yield 'feat_first', loss.vgg(x)[first][:, :4]


def _fill_extractor(net: nn.Module, case: Case) -> None:
    """The normalisation's constants stay; the layout must be the published one."""
    constants = {name: value for name, value in net.named_buffers() if name in ('mean', 'std')}
    net.load_state_dict(case.weights | constants, strict=True)


@checks('core', 'UNetDiscriminatorSN')
def unet_discriminator(case: Case) -> Iterator[tuple]:
    net = ARCH_REGISTRY.build({'type': 'UNetDiscriminatorSN', **case.args})
    state = case.weights
    for name in [name.removesuffix('.weight_u') for name in state if name.endswith('.weight_u')]:
        u = F.normalize(state[f'{name}.weight_u'], dim=0)
        state[f'{name}.weight_u'] = u
        state[f'{name}.weight_v'] = F.normalize(state[f'{name}.weight_orig'].flatten(1).mT @ u, dim=0)
    net.load_state_dict(state, strict=True)
    yield from _judgements(case, net)
    for name, value in net.named_buffers():
        yield name.replace('.weight_', '_'), value  # conv3.weight_u is recorded as conv3_u


@checks('core', 'VGGStyleDiscriminator')
def vgg_discriminator(case: Case) -> Iterator[tuple]:
    net = ARCH_REGISTRY.build({'type': 'VGGStyleDiscriminator', **case.args})
    yield from _judgements(case, case.fill(net))


def _judgements(case: Case, net: nn.Module) -> Iterator[tuple]:
    """In evaluation mode, then one after another in training mode; and the parameter count."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    yield 'parameters', parameters, case.spec.get('parameters', parameters)
    with torch.no_grad():
        for x in tensors(case, *case.inputs):
            judged = net.eval()(x)
            yield 'out', judged
            yield 'out_eval', judged
            for name in sorted(name for name in case.outputs if name.startswith('out_train')):
                yield name, net.train()(x)
