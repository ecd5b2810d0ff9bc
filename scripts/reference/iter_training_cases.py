"""Cases of `iter` about training: losses, learning rates, augmented pairs."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import torch

from basicsr.losses.token_loss import balanced_cross_entropy
from basicsr.models.optimizers import LearningRates
from basicsr.utils.image import write_image
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY
from reference.case import Case, filled
from reference.checking import Within, checks, tensors


def within(case: Case, outputs: Iterable[tuple]) -> Iterator[tuple]:
    """Outputs with the tolerance that the JSON gives to each; what it calls exact must be equal."""
    own, exact = case.spec['tolerance_by_output'], case.spec['exact']
    for name, ours in outputs:
        yield name, Within(ours) if name in exact else Within(ours, **own.get(name, case.spec['tolerance']))


@checks('iter', 'class_balanced_xentropy')
def balance(case: Case) -> Iterator[tuple]:
    logits, labels = tensors(case, 'logits', 'labels')
    return within(case, _balance(logits.requires_grad_(), labels, case.args['beta']))


def _balance(logits: torch.Tensor, labels: torch.Tensor, beta: float) -> Iterator[tuple]:
    loss = balanced_cross_entropy(logits, labels, beta)
    loss.backward()
    yield 'loss', loss
    yield 'grad', logits.grad
    yield 'loss_single_class', balanced_cross_entropy(logits, torch.ones_like(labels), beta)


@checks('iter', 'GANLoss')
def gan_losses(case: Case) -> Iterator[tuple]:
    labels = {name: case.args[name] for name in ('real_label_val', 'fake_label_val', 'loss_weight')}
    (pred,) = tensors(case, 'pred')
    for kind in case.args['types']:
        loss = LOSS_REGISTRY.build({'type': 'GANLoss', 'gan_type': kind, **labels})
        sides = {'g': (True, False), 'g_fake': (False, False), 'd_real': (True, True), 'd_fake': (False, True)}
        yield from within(case, ((f'{kind}:{side}', loss(pred, *arguments)) for side, arguments in sides.items()))


@checks('iter', 'ssimc')
def structure(case: Case) -> Iterator[tuple]:
    x, y = tensors(case, 'x', 'y')
    loss = LOSS_REGISTRY.build({'type': 'SSIMLoss'})(x.requires_grad_(), y)
    loss.backward()
    yield from within(case, [('one_minus_ssimc', loss), ('grad_x', x.grad[..., ::2, ::2])])


@checks('iter', 'LPIPS')
def learned_distance(case: Case) -> Iterator[tuple]:
    """With filled weights in the place of ImageNet's."""
    loss = LOSS_REGISTRY.build({'type': 'LPIPSLoss', 'pretrained': False})
    net = loss.distance.distance
    net.load_state_dict(filled_like_published(case, net.state_dict()), strict=True)
    x, y = tensors(case, 'x', 'y')
    value = loss(x.requires_grad_(), y)
    value.backward()
    with torch.no_grad():
        distances, layers = net(2 * x - 1, 2 * y - 1, retPerLayer=True)
        outputs = {'lpips': loss.distance(x, y)[:, None], 'per_layer': torch.cat([d.flatten(1) for d in layers], 1)}
    yield 'the loss is the mean', value.detach() - distances.mean(), torch.zeros(())
    yield from within(case, [*outputs.items(), ('grad_x', x.grad[..., ::2, ::2])])


def filled_like_published(case: Case, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict: filled, but for entries that keep what construction gives them, or are stored."""
    rules, layout = case.spec['fill'], case.spec['layout']

    def entry(name: str, shape: list[int]) -> torch.Tensor:
        if name.rpartition('.')[2] in rules.get('keep', ()):
            return own[name]
        if name in rules.get('stored', ()):
            return torch.from_numpy(case.arrays[f'state:{name}'])
        for old, new in rules.get('alias', ()):
            name = name.replace(old, new)
        return filled(name, shape)

    return {name: entry(name, shape) for name, shape in layout.items()}


@checks('iter', 'lr schedulers')
def rates(case: Case) -> Iterator[tuple]:
    for name, section in case.args['schedules'].items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=case.args['lr'])
        schedule = LearningRates(section, {'g': optimizer}, case.args['warmup'].get(name, -1))
        found = []
        for iteration in range(1, case.args['iters'] + 1):
            schedule.set(iteration)
            found += schedule.current()
            optimizer.step()
        yield from within(case, [(name, found)])


@checks('iter', 'PairedImageDataset')
def pairs(case: Case) -> Iterator[tuple]:
    """Files in PNG, and our data set with the recorded draws in place of random numbers."""
    args, outputs = case.args, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ('gt', 'lq'):
            write_image(Path(folder, kind, '0.png'), case.inputs[kind][..., ::-1])
        section = {'type': 'PairedImageDataset', 'dataroot_gt': f'{folder}/gt', 'dataroot_lq': f'{folder}/lq'}
        section |= {'gt_size': args['gt_size'], 'use_hflip': True, 'use_rot': True}
        for k, draw in enumerate(args['draws']):
            resized = {'use_resize_crop': draw['size'] is not None}
            dataset = DATASET_REGISTRY.build({**section, **resized}, scale=args['scale'], phase='train')
            with mock.patch('basicsr.data.paired_image_dataset.random', Draws(draw)):
                item = dataset[0]
            outputs |= {f'gt{k}': item['gt'], f'lq{k}': item['lq']}
    yield from within(case, outputs.items())


class Draws:
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
