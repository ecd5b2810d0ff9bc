"""Cases of `iter` about training: losses, learning rates, augmented pairs, the steps of the three stages."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from basicsr.losses.token_loss import balanced_cross_entropy
from basicsr.models.base_model import BaseModel
from basicsr.models.iter_training import Draws
from basicsr.models.optimizers import LearningRates
from basicsr.utils.image import write_image
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY
from reference.case import Case
from reference.checking import checks, tensors
from reference.iter_network_cases import load_weights, within
from reference.training import learn, options, prepared

ADAM = {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]}


# ---- losses, rates, data


@checks('iter', 'class_balanced_xentropy')
def balance(case: Case) -> Iterator[tuple]:
    logits, labels = tensors(case, 'logits', 'labels')
    loss = balanced_cross_entropy(logits.requires_grad_(), labels, case.args['beta'])
    loss.backward()
    yield within(case, 'loss', loss)
    yield within(case, 'grad', logits.grad)
    one_class = balanced_cross_entropy(logits, torch.ones_like(labels), case.args['beta'])
    yield within(case, 'loss_single_class', one_class)


@checks('iter', 'GANLoss')
def gan_losses(case: Case) -> Iterator[tuple]:
    labels = {name: case.args[name] for name in ('real_label_val', 'fake_label_val', 'loss_weight')}
    sides = {'g': (True, False), 'g_fake': (False, False), 'd_real': (True, True), 'd_fake': (False, True)}
    (pred,) = tensors(case, 'pred')
    for kind in case.args['types']:
        loss = LOSS_REGISTRY.build({'type': 'GANLoss', 'gan_type': kind, **labels})
        for side, arguments in sides.items():
            yield within(case, f'{kind}:{side}', loss(pred, *arguments))


@checks('iter', 'ssimc')
def structure(case: Case) -> Iterator[tuple]:
    x, y = tensors(case, 'x', 'y')
    loss = LOSS_REGISTRY.build({'type': 'SSIMLoss'})(x.requires_grad_(), y)
    loss.backward()
    yield within(case, 'one_minus_ssimc', loss)
    yield within(case, 'grad_x', every_second(x.grad))


@checks('iter', 'LPIPS')
def learned_distance(case: Case) -> Iterator[tuple]:
    """With filled weights in the place of ImageNet's."""
    loss = LOSS_REGISTRY.build({'type': 'LPIPSLoss', 'pretrained': False})
    net = load_weights(case, loss.distance.distance)
    x, y = tensors(case, 'x', 'y')
    value = loss(x.requires_grad_(), y)
    value.backward()
    with torch.no_grad():
        layers = net(2 * x - 1, 2 * y - 1, retPerLayer=True)[1]
        distances = loss.distance(x, y)
    yield within(case, 'lpips', distances[:, None])
    yield within(case, 'per_layer', torch.cat([layer.flatten(1) for layer in layers], 1))
    yield within(case, 'grad_x', every_second(x.grad))
    yield 'the loss is the mean', (value - distances.mean()).abs().item() < 1e-6, True


@checks('iter', 'lr schedulers')
def rates(case: Case) -> Iterator[tuple]:
    for name, section in case.args['schedules'].items():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=case.args['lr'])
        schedule = LearningRates(section, {'g': optimizer}, case.args['warmup'].get(name, -1))
        found = []
        for iteration in range(1, case.args['iters'] + 1):
            schedule.set(iteration)
            found += schedule.current()
            optimizer.step()
        yield within(case, name, found)


@checks('iter', 'PairedImageDataset')
def pairs(case: Case) -> Iterator[tuple]:
    """Files in PNG, and our data set with the recorded draws in place of random numbers."""
    args = case.args
    with tempfile.TemporaryDirectory() as folder:
        for kind in ('gt', 'lq'):
            write_image(Path(folder, kind, '0.png'), case.inputs[kind][..., ::-1])
        section = {'type': 'PairedImageDataset', 'dataroot_gt': f'{folder}/gt', 'dataroot_lq': f'{folder}/lq'}
        section |= {'gt_size': args['gt_size'], 'use_hflip': True, 'use_rot': True}
        for k, draw in enumerate(args['draws']):
            resized = {'use_resize_crop': draw['size'] is not None}
            dataset = DATASET_REGISTRY.build({**section, **resized}, scale=args['scale'], phase='train')
            with mock.patch('basicsr.data.paired_image_dataset.random', RecordedDraws(draw)):
                item = dataset[0]
            yield within(case, f'gt{k}', item['gt'])
            yield within(case, f'lq{k}', item['lq'])


class RecordedDraws:
    """Recorded draws in the place of the module `random`, in the published order."""

    def __init__(self, draw: dict):
        self.whole = iter([draw[name] for name in ('size', 'top', 'left') if draw[name] is not None])
        self.states = iter([draw['hflip'], draw['vflip'], draw['rot90']])

    def randint(self, low: int, high: int) -> int:
        number = next(self.whole)
        if not low <= number <= high:
            raise ValueError(f'the recorded draw {number} is not between {low} and {high}')
        return number

    def random(self) -> float:
        return 0.25 if next(self.states) else 0.75


# ---- training steps


@checks('iter', 'VQModel + UNetDiscriminatorSN')
def first_stage(case: Case) -> Iterator[tuple]:
    """An iteration of our SwinVQGANModel, without LPIPS."""
    networks = {
        'network_g': {'type': 'SwinVQGAN', **case.args['init_g']},
        'network_d': {'type': 'UNetDiscriminatorSN', **case.args['init_d']},
    }
    train = {
        'optim_g': ADAM,
        'optim_d': ADAM,
        'pixel_opt': {'type': 'L1Loss'},
        'struct_opt': {'type': 'SSIMLoss'},
        'codebook_opt': {'type': 'CodebookLoss'},
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'hinge', 'loss_weight': 0.1},
    }
    model = prepared(options(networks, train, 1, 'SwinVQGANModel'))
    for label in networks:
        label = label.removeprefix('network_')
        fill = {**case.spec['fill'], **case.spec['fill'][label]}
        part = dataclasses.replace(case, spec={**case.spec, 'layout': case.spec['layout'][label], 'fill': fill})
        load_weights(part, model.bare(label))
    seen = {'g': [], 'd': []}
    for label, outputs in seen.items():
        model.bare(label).register_forward_hook(lambda _, inputs, output, found=outputs: found.append(output))
    gradients = watched(model)
    (gt,) = tensors(case, 'gt')
    losses = learn(model, 1, gt, gt)
    yield within(case, 'rec', every_second(seen['g'][0][0]))
    yield within(case, 'fake_g_pred', every_second(seen['d'][0]))
    names = {'codebook': 'codebook', 'pix': 'pix', 'struct': 'struct', 'gan': 'g_gan'}
    for ours, published in names.items():
        yield within(case, f'l_{published}', losses[f'l_g_{ours}'])
    yield within(case, 'l_g_total', sum(losses[f'l_g_{name}'] for name in names))
    for name in ('l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'):
        yield within(case, name, losses[name])
    for label in seen:
        yield from compared_gradients(case, gradients[label], f'grad_{label}:', f'gradnorm_{label}')


@checks('iter', 'ITER', ('train_',))
def later_stages(case: Case) -> Iterator[tuple]:
    """An iteration of our ITERModel; the recorded one had L1 of the refined image in the place of LPIPS."""
    model, seen = iter_model(case), {}
    given = {name: torch.as_tensor(value) for name, value in case.inputs.items()}
    if refines := 'gumbel_refined' in given:
        model.losses['perceptual'] = TwiceL1()
    model.bare('g').register_forward_hook(lambda _, inputs, output: seen.update(output._asdict()))
    gradients = watched(model)['g']
    drawn = Draws(given['rate_noise'], given['mask_noise'][:, 0], given['gumbel_refined']) if refines else None
    image_of = model.training._lq_image
    with (
        mock.patch.object(model.training, '_draws', lambda *_: drawn),
        mock.patch.object(model.training, '_gumbel', lambda *_: given['gumbel_lq']),
        mock.patch.object(model.training, '_lq_image', lambda logits: seen.setdefault('out_img', image_of(logits))),
    ):
        losses = learn(model, 1, given['lq'], given['gt'])
    gt_indices = model.bare('g').vqgan.indices(given['gt'])
    yield within(case, 'gt_indices', gt_indices[:, None])
    yield within(case, 'lq_tokens', seen['lq_tokens'][:, None])
    yield within(case, 'out_img', every_second(seen['out_img']))
    yield within(case, 'l_pix', losses['l_lq_pix'])
    names = {'l_token': 'token_cls_loss'}
    if refines:
        names |= {'l_critic_lq': 'crit_init_loss', 'l_critic_refined': 'crit_refined_loss', 'l_refine': 'refine_loss'}
        judged = ((seen['critic_lq'], seen['lq_tokens']), (seen['critic_refined'], seen['refined_tokens']))
        masks = [mask for logits, tokens in judged for mask in (logits.argmax(1), (tokens == gt_indices).long())]
        yield within(case, 'masks', torch.stack(masks))
        yield within(case, 'num_masked', seen['mask'].sum((1, 2)).long())
        yield within(case, 'refined_img', every_second(seen['refined_image']))
        yield within(case, 'l1_refined', losses['l_refined_percep'])
    for ours, published in names.items():
        yield within(case, published, losses[ours])
    yield within(case, 'l_codebook', sum(losses[name] for name in names))
    yield from compared_gradients(case, gradients, 'grad:', 'gradnorm')


def iter_model(case: Case) -> BaseModel:
    """The case's network with its weights, from a file of them, ready to train as its phase says."""
    init = case.args['init']
    joint = init['LQ_train_phase'] == 'refine'
    network = {'type': 'ITER', 'refine': joint, **{name: init[name] for name in ('vqgan_opt', 'scale_factor')}}
    train = {'optim_g': ADAM, 'pixel_opt': {'type': 'L1Loss'}, 'codebook_opt': {'type': 'TokenLoss'}}
    with tempfile.TemporaryDirectory() as folder:
        net = load_weights(case, ARCH_REGISTRY.build(network))
        torch.save({'params': net.state_dict()}, f'{folder}/first.pth')
        sections = {
            'model': {'stages': 'joint' if joint else 'tokens'},
            'path': {'pretrain_network_g': f'{folder}/first.pth'},
            'logger': {'print_freq': 1},
        }
        return prepared(options({'network_g': network}, train, init['scale_factor'], 'ITERModel', **sections))


class TwiceL1(nn.Module):
    """Of which a step uses half."""

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return 2 * (sr - gt).abs().mean()


def watched(model: BaseModel) -> dict[str, dict[str, Tensor]]:
    """By network, where the gradients of its next optimizer step will be found; zeros for what has none."""
    found = {label: {} for label in model.optimizers}
    for label, gradients in found.items():

        def note(*_, label=label, gradients=gradients) -> None:
            for name, parameter in model.bare(label).named_parameters():
                gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()

        model.optimizers[label].optimizer.register_step_pre_hook(note)
    return found


def compared_gradients(case: Case, gradients: dict[str, Tensor], prefix: str, norms: str) -> Iterator[tuple]:
    """Outputs 'PREFIXname' are gradients of a parameter, 'NORMS' and 'NORMS:part' norms of all below a name."""
    for output in case.outputs:
        if output.startswith(prefix):
            yield within(case, output, gradients[output.removeprefix(prefix)])
        elif output == norms or output.startswith(f'{norms}:'):
            part = output.removeprefix(norms).removeprefix(':')
            parts = [value.flatten() for name, value in gradients.items() if not part or name.startswith(f'{part}.')]
            yield within(case, output, torch.cat([torch.zeros(1), *parts]).norm())  # of what is not there, 0


def every_second(image: Tensor) -> Tensor:
    """Every second row and column, which is what the cases hold."""
    return image[..., ::2, ::2]
