"""Cases of `atd`: whole networks, their parts, gradients, training steps, schedules, masks, metrics."""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.archs.atd_arch import category_order
from basicsr.archs.blocks.windows import relative_position_index, shift_mask, window_partition
from basicsr.metrics.psnr_ssim import psnr, ssim
from basicsr.models.optimizers import LearningRates
from basicsr.utils.image import to_uint8
from basicsr.utils.registry import ARCH_REGISTRY
from reference.case import Case, filled, image
from reference.checking import checks, tensors
from reference.training import learn, options, prepared

FIRST_LAYER = 'layers.0.residual_group.layers.0'


@checks('atd', 'ATD')
def network(case: Case) -> Iterator[tuple]:
    """Chooses by what the case records: parts of a layer, training steps, gradients, or values of a forward pass."""
    if 'train' in case.spec:
        yield from training_steps(case)
    elif case.spec.get('submodule', '').endswith('attn_aca'):
        yield from category_attention(case)
    elif 'submodule' in case.spec:
        yield from one_layer(case)
    else:
        net = case.fill(build(case))
        parameters = sum(parameter.numel() for parameter in net.parameters())
        yield 'parameters', parameters, case.spec.get('parameters', parameters)
        yield from gradients(case, net) if 'loss' in case.arrays else forward(case, net)


def build(case: Case) -> nn.Module:
    return ARCH_REGISTRY.build({'type': 'ATD', **case.args}).eval()


@torch.no_grad()
def forward(case: Case, net: nn.Module) -> Iterator[tuple]:
    """The output, and whatever inner values are recorded, seen by hooks on the submodules that compute them."""
    (x,) = tensors(case, 'x')
    layer = _layer_of(case)
    names = {
        'conv_first': 'conv_first',
        'patch_embed.norm': 'tokens',
        f'{layer}.attn_atd': 'atd',
        f'{layer}.attn_aca': 'x_aca',
        f'{layer}.attn_win': 'win_out',
        f'{layer}.convffn': 'ffn_out',
        layer: 'layer',
        'norm': 'final_norm',
        **{f'layers.{n}': f'block{n}' for n in range(len(net.layers))},
    }
    seen = {}
    modules = dict(net.named_modules())
    hooks = [
        modules[path].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for path, name in names.items()
        if path in modules
    ]
    yield 'y', net(x)
    for hook in hooks:
        hook.remove()
    if 'sim' not in case.arrays:
        return
    size = seen['conv_first'].shape[-2:]
    seen['x_atd'], seen['sim'] = seen.pop('atd')
    seen['layer_x'], seen['layer_td'] = seen.pop('layer')
    seen['tk_id'], seen['order'] = seen['sim'].argmax(-1), category_order(seen['sim'])
    shifted = int(layer.rpartition('.')[2]) % 2 == 1
    seen['win_out'] = _as_windows(seen['win_out'], size, case.args['window_size'], shifted)
    yield from seen.items()


def _layer_of(case: Case) -> str:
    """The layer whose inner values the JSON describes."""
    described = ' '.join(case.spec['outputs'].values())
    found = re.search(r'layers\.\d+\.residual_group\.layers\.\d+', described)
    return found[0] if found else FIRST_LAYER


def _as_windows(tokens: Tensor, size: tuple[int, int], window_size: int, shifted: bool) -> Tensor:
    """Tokens (b, n, c) of a window attention as the windows that they came from."""
    image_ = tokens.view(len(tokens), *size, -1)
    if shifted:
        image_ = image_.roll((-(window_size // 2),) * 2, (1, 2))
    return window_partition(image_, window_size)


def gradients(case: Case, net: nn.Module) -> Iterator[tuple]:
    """Of the mean of the output; the norms are in the order of the published layout."""
    x = next(tensors(case, 'x')).clone().requires_grad_(True)
    loss = net(x).mean()
    loss.backward()
    yield 'loss', loss
    yield 'grad_x', x.grad
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        yield f'grad:{name}', torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    ordered = [parameters[name] for name in case.spec['layout'] if name in parameters]
    yield 'grad_norms', torch.stack([p.grad.norm() for p in ordered if p.grad is not None])


def training_steps(case: Case) -> Iterator[tuple]:
    """Through SRModel: L1, AdamW, warm-up, milestones and the moving average, as train.py drives them."""
    train, scale = case.spec['train'], case.args['upscale']
    optim = {'type': train['optimizer'], **{key: train[key] for key in ('lr', 'betas', 'eps', 'weight_decay')}}
    schedule = {'type': 'MultiStepLR', 'milestones': train['milestones'], 'gamma': train['gamma']}
    model = prepared(
        options(
            {'network_g': {'type': 'ATD', **case.args}},
            {
                'optim_g': optim,
                'scheduler': schedule,
                'pixel_opt': {'type': 'L1Loss'},
                'warmup_iter': train['warmup_iter'],
                'ema_decay': train['ema_decay'],
            },
            scale,
        )
    )
    case.fill(model.bare('g'))
    model.averages['g'].update(model.bare('g'), decay=0)
    seed, shape = _training_images(case)
    losses, rates = [], []
    for step in range(1, train['steps'] + 1):
        gt = image(seed + step, *shape)
        losses.append(learn(model, step, F.avg_pool2d(gt, scale), gt)['l_pix'].item())
        rates += model.rates.current()
    yield 'loss', losses
    yield 'lr', rates
    average = model.averages['g'].net
    with torch.no_grad():
        yield 'ema_y', average(F.avg_pool2d(image(seed + train['steps'] + 1, *shape), scale))
    for prefix, net in (('param', model.bare('g')), ('ema', average)):
        for name, value in net.state_dict().items():
            yield f'{prefix}:{name}', value


def _training_images(case: Case) -> tuple[int, list[int]]:
    """From `step k (from 1): image(seed=100+k, 2, 3, 16, 16)`."""
    found = re.search(r'image\(seed=(\d+)\+k,\s*([\d, ]+)\)', case.spec['inputs']['gt'])
    return int(found[1]), [int(side) for side in found[2].split(',')]


@torch.no_grad()
def category_attention(case: Case) -> Iterator[tuple]:
    qkv, similarity = tensors(case, 'qkv', 'sim')
    part = _filled_part(case)
    yield 'y', part(qkv, similarity)
    yield 'tk_id', similarity.argmax(-1)
    yield 'order', category_order(similarity)


@torch.no_grad()
def one_layer(case: Case) -> Iterator[tuple]:
    """The dictionary's parts on stored tokens, then the whole layer."""
    x, dictionary = tensors(case, 'x', 'td')
    layer = _filled_part(case)
    from_dictionary, similarity = layer.attn_atd(x, dictionary)
    yield 'x_atd', from_dictionary
    yield 'sim', similarity
    if 'td_new' in case.arrays:
        yield 'td_new', layer.refine(dictionary, similarity, x)
    layer_x, layer_dictionary = layer(x, dictionary, tuple(case.inputs['x_size']))
    yield 'layer_x', layer_x
    yield 'layer_td', layer_dictionary


def _filled_part(case: Case) -> nn.Module:
    """The submodule of the case with its entries filled by their full names."""
    path = case.spec['submodule']
    part = build(case).get_submodule(path)
    state = {
        name.removeprefix(f'{path}.'): filled(name, shape)
        for name, shape in case.spec['layout'].items()
        if name.startswith(f'{path}.')
    }
    part.load_state_dict(state, strict=True)
    return part


@checks('atd', 'attention mask')
def masks(case: Case) -> Iterator[tuple]:
    for window_size, height, width in case.args['sizes']:
        yield f'mask_ws{window_size}_{height}x{width}', shift_mask(height, width, window_size)
        yield f'rpi_ws{window_size}', relative_position_index(window_size)


@checks('atd', 'learning-rate schedule')
def schedules(case: Case) -> Iterator[tuple]:
    """Iterations between which nothing happens are skipped: the published runs are half a million long."""
    for name, settings in case.args.items():
        recorded = case.arrays[f'{name}.iter'].tolist()
        warmup, milestones = settings['warmup_iter'], settings['milestones']
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings['lr'])
        section = {'type': 'MultiStepLR', 'milestones': milestones, 'gamma': settings['gamma']}
        rates = LearningRates(section, {'g': optimizer}, warmup)
        visited, found = {*recorded, warmup - 1, warmup, *(m + 1 for m in milestones)}, {}
        for iteration in sorted(i for i in visited if 1 <= i <= max(recorded)):
            rates.schedulers[0].last_epoch = max(rates.schedulers[0].last_epoch, iteration - 2)
            rates.set(iteration)
            found[iteration] = rates.current()[0]
            optimizer.step()
        yield f'{name}.iter', recorded
        yield f'{name}.lr', [found[iteration] for iteration in recorded]


@checks('atd', 'calculate_psnr')
def metrics(case: Case) -> Iterator[tuple]:
    """Rows of [seed1, seed2, h, w, amount, crop_border, test_y_channel]."""
    scores = []
    for seed1, seed2, h, w, amount, crop_border, test_y_channel in case.args['rows']:
        gt, other = image(seed1, 1, 3, h, w), image(seed2, 1, 3, h, w)
        sr, gt = (_eight_bit(x) for x in ((1 - amount) * gt + amount * other, gt))
        scores.append([metric(sr, gt, crop_border, test_y_channel).item() for metric in (psnr, ssim)])
    for column, name in enumerate(('psnr', 'ssim')):
        yield name, [row[column] for row in scores]


def _eight_bit(x: Tensor) -> Tensor:
    return torch.from_numpy(to_uint8(x)).permute(2, 0, 1)[None].float() / 255
