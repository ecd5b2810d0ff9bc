"""Cases of `core` about training: schedules, averages, sample order, adversarial iterations, files, log, options."""

import contextlib
import math
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.data.loaders import epoch_order
from basicsr.models.ema import WeightAverage
from basicsr.models.optimizers import LearningRates
from basicsr.utils.experiment import Experiment
from basicsr.utils.messages import LOGGER, option_tree, remaining_time, training_line, validation_block
from basicsr.utils.yaml_loader import apply_override, parse_value, parse_yaml
from reference.case import Case, filled, image
from reference.checking import Note, Unsupported, checks
from reference.training import learn, options, prepared, tiny_networks


@checks('core', 'MultiStepRestartLR')
def schedules(case: Case) -> Iterator[tuple]:
    for k, schedule in enumerate(case.args['schedules']):
        section = {key: value for key, value in schedule.items() if key != 'warmup_iter'}
        groups = [{'params': [nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in case.args['lrs']]
        optimizer = torch.optim.SGD(groups)
        rates = LearningRates(section, {'g': optimizer}, schedule.get('warmup_iter', -1))
        rows = []
        for iteration in range(1, case.args['iterations'] + 1):
            rates.set(iteration)
            rows.append(rates.current())
            optimizer.step()
        yield f'out_{k}', rows


@checks('core', 'model_ema')
def averages(case: Case) -> Iterator[tuple]:
    """The published average leaves buffers alone; ours does so on request."""
    online = _module(case.spec['layout'])
    average = WeightAverage(online, case.args['decay'], buffers=False)
    for prefix, net in (('online.', online), ('ema.', average.net)):
        state = net.state_dict()
        net.load_state_dict(
            {
                name: filled(prefix + name, value.shape) if value.is_floating_point() else value
                for name, value in state.items()
            }
        )
    average.update(online, decay=0)
    for step in range(1, case.args['steps'] + 1):
        with torch.no_grad():
            for parameter in online.parameters():
                parameter += 0.01 * step
        average.update(online)
    for name, value in average.net.state_dict().items():
        yield f'ema_{name}', value


def _module(layout: dict[str, list[int]]) -> nn.Module:
    """Parameters, and the buffers of batch normalisation, with the names and shapes of a layout."""
    net = nn.Module()
    for name, shape in layout.items():
        *parents, leaf = name.split('.')
        owner = net
        for parent in parents:
            if parent not in dict(owner.named_children()):
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if leaf == 'num_batches_tracked':
            owner.register_buffer(leaf, torch.tensor(0))
        elif leaf.startswith('running_'):
            owner.register_buffer(leaf, torch.zeros(shape))
        else:
            owner.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return net


@checks('core', 'EnlargedSampler')
def sample_order(case: Case) -> Iterator[tuple]:
    """The published stream out of our shuffle: seeded by the epoch alone, padded to equal shares."""
    for k, stream in enumerate(case.args['streams']):
        share = math.ceil(stream['n'] * stream['ratio'] / stream['replicas'])
        order = epoch_order(share * stream['replicas'], stream['n'], stream['epoch'])
        yield f'stream_{k}', order[stream['rank'] :: stream['replicas']]


@checks('core', 'GAN-style optimize_parameters')
def adversarial_iterations(case: Case) -> Iterator[tuple]:
    """SRGAN-style and ESRGAN-style (relativistic) steps of our SRModel; image sizes stand in the notes."""
    args = case.args
    adam = {'type': 'Adam', 'betas': args['betas']}
    train = {
        'optim_g': {**adam, 'lr': args['lr_g']},
        'optim_d': {**adam, 'lr': args['lr_d']},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': args['pixel_weight']},
        'gan_opt': {'type': 'GANLoss', 'gan_type': args['gan_type'], 'loss_weight': args['gan_weight']},
        **{key: args[key] for key in ('ema_decay', 'net_d_iters', 'net_d_init_iters')},
    }
    kind = 'ESRGANModel' if 'ESRGAN' in case.spec['function'] else 'SRGANModel'
    networks = tiny_networks({name: value.shape for name, value in case.arrays.items()})
    (lq_seed, lq_shape), (gt_seed, gt_shape) = _images_of_iteration(case)
    model = prepared(options(networks, train, gt_shape[-1] // lq_shape[-1], kind))
    for label in ('g', 'd'):
        net = model.bare(label)
        net.load_state_dict({name: filled(f'{label}.{name}', value.shape) for name, value in net.state_dict().items()})
    model.averages['g'].update(model.bare('g'), decay=0)
    logs = []
    for k in range(1, args['iterations'] + 1):
        losses = learn(model, k, image(lq_seed + k, *lq_shape), image(gt_seed + k, *gt_shape))
        logs.append([losses[name].item() if name in losses else math.nan for name in args['log_names']])
    yield 'logs', logs
    for prefix, net in (('g', model.bare('g')), ('d', model.bare('d')), ('ema', model.averages['g'].net)):
        for name, value in net.state_dict().items():
            yield f'{prefix}_{name}', value


def _images_of_iteration(case: Case) -> list[tuple[int, list[int]]]:
    """Seed and shape of lq and gt from the notes' `lq = image(100+k,2,3,6,6) and gt = image(...)`."""
    found = [re.search(name + r' = image\((\d+)\+k,\s*([\d, ]+)\)', case.spec['notes']) for name in ('lq', 'gt')]
    if None in found:
        raise Unsupported('its notes do not say which images the iterations use')
    return [(int(match[1]), [int(side) for side in match[2].split(',')]) for match in found]


@checks('core', 'save_network')
def written_files(case: Case) -> Iterator[tuple]:
    """Names, nesting, types and settings of every file that a run writes; entries of our own may be added."""
    published = case.spec['files']
    state_name = next(name for name in published if name.endswith('.state'))
    state = published[state_name]
    files = {
        name.split('_')[1]: content
        for name, content in published.items()
        if name.endswith(f'_{Path(state_name).stem}.pth')
    }
    labels = sorted(files, reverse=True)  # g, then d: the order of the optimizers
    networks = tiny_networks(
        {f'{label}_{entry}': content['tensor'] for label in labels for entry, content in files[label]['params'].items()}
    )
    train = {'pixel_opt': {'type': 'L1Loss'}, 'ema_decay': 0.5 if 'params_ema' in files['g'] else 0}
    if 'd' in labels:
        train['gan_opt'] = {'type': 'GANLoss', 'gan_type': 'vanilla'}
    for label, optimizer in zip(labels, state['optimizers'], strict=True):
        group = _plain(optimizer['param_groups'][0])
        names = ('lr', 'momentum', 'betas', 'eps', 'weight_decay')
        train[f'optim_{label}'] = {
            'type': 'SGD' if 'momentum' in group else 'Adam',
            **{name: group[name] for name in names if name in group},
        }
    with tempfile.TemporaryDirectory() as folder, _logging_as_it_was():
        opt = options(networks, train, 2, path={'experiments_root': folder})
        model = prepared(opt)
        model.iteration = 1
        model.training_step({'lq': torch.rand(1, 3, 8, 8), 'gt': torch.rand(1, 3, 16, 16)})
        experiment = Experiment(opt, model.accelerator, resume=False)
        experiment.save(model, state['iter']['value'], samples=0, epoch=state['epoch']['value'])
        experiment.save_latest(model)
        written = {path.name: path for path in Path(folder).rglob('*') if path.suffix in ('.pth', '.state')}
        ours = {name: _described(torch.load(path, weights_only=True)) for name, path in written.items()}
    for name, content in published.items():
        expected = {k: v for k, v in content.items() if k != 'schedulers'}
        yield name, _differences(ours.get(name), expected, name), []
    yield 'states written', [name for name in ours if name.endswith('.state')], [state_name]
    yield 'schedulers', _scheduler_differences(state['schedulers'], model.optimizers), []


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Close the log file that an Experiment opened, before its folder goes."""
    before = LOGGER.handlers[:]
    try:
        yield
    finally:
        for handler in [handler for handler in LOGGER.handlers if handler not in before]:
            LOGGER.removeHandler(handler)
            handler.close()


def _scheduler_differences(published: list[dict], optimizers: dict) -> list[str]:
    """Of each recorded schedule, built with its settings for the optimizer it belonged to."""
    faults = []
    for content, optimizer in zip(published, optimizers.values(), strict=True):
        plain = _plain(content)
        if 'milestones' in plain:
            kind, names = 'MultiStepRestartLR', ('milestones', 'gamma', 'restarts', 'restart_weights')
            plain['milestones'] = [int(step) for step, count in plain['milestones'].items() for _ in range(count)]
        elif 'T_max' in plain:
            kind, names = 'TrueCosineAnnealingLR', ('T_max', 'eta_min')
        else:
            kind, names = 'CosineAnnealingRestartLR', ('periods', 'restart_weights', 'eta_min')
        section = {'type': kind, **{name: plain[name] for name in names}}
        (scheduler,) = LearningRates(section, {'g': optimizer}, -1).schedulers
        faults += _differences(_described(scheduler.state_dict()), content, kind)
    return faults


def _described(value: Any) -> Any:
    """The JSON's description of what a file holds."""
    if isinstance(value, Tensor):
        return {'tensor': list(value.shape), 'dtype': str(value.dtype).removeprefix('torch.')}
    if isinstance(value, dict | OrderedDict):
        return {str(key): _described(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_described(content) for content in value]
    return {'type': type(value).__name__, 'value': value}


def _plain(description: Any) -> Any:
    """The values of a description without tensors."""
    if isinstance(description, list):
        return [_plain(part) for part in description]
    if description.keys() == {'type', 'value'}:
        return description['value']
    return {key: _plain(part) for key, part in description.items()}


def _differences(ours: Any, published: Any, path: str) -> list[str]:
    """Where ours lacks what is published, or has something else there."""
    if isinstance(published, dict) and isinstance(ours, dict):
        return [
            fault
            for key, part in published.items()
            for fault in (_differences(ours[key], part, f'{path}: {key}') if key in ours else [f'{path}: no {key}'])
        ]
    if (
        isinstance(published, list)
        and isinstance(ours, list)
        and len(published) == len(ours)
        and any(isinstance(part, dict | list) for part in published)
    ):
        return [fault for k, part in enumerate(published) for fault in _differences(ours[k], part, f'{path}: {k}')]
    return [] if ours == published else [f'{path}: {ours} instead of {published}']


@checks('core', 'message formatting')
def log_text(case: Case) -> Iterator[tuple]:
    for k, line in enumerate(case.spec.get('training_lines', [])):
        config = line['config']
        values = dict(config['vars'])
        epoch, iteration, rates = (values.pop(key) for key in ('epoch', 'iter', 'lrs'))
        times = values.pop('time'), values.pop('data_time')
        eta = remaining_time(config['elapsed'], iteration, config['start_iter'], config['total_iter'])
        yield f'line {k}', training_line(config['name'], epoch, iteration, rates, eta, *times, values), line['message']
    block = case.spec.get('validation_block')
    if block:
        best = block['best'].get(block['dataset'], {})
        text = validation_block(block['dataset'], block['metric_results'], best)
        yield 'validation block', text, block['message']


@checks('core', 'force_yml')
def option_text(case: Case) -> Iterator[tuple]:
    """Values of the command line and of YAML; ours reads as numbers some that published code leaves as text."""
    read_as_numbers: list[str] = []

    def parsed(name: str, ours: Any, expected: dict) -> tuple:
        ours = _as_published(ours, expected['value'], read_as_numbers)
        return name, [type(ours).__name__, ours], [expected['type'], expected['value']]

    for text, expected in case.spec.get('values', {}).items():
        yield parsed(f'value {text!r}', parse_value(text), expected)
    update = case.spec.get('update')
    if update:
        for entry in update['entries']:
            apply_override(update['base'], entry)
        yield 'update', update['base'], update['result']
    document = case.spec.get('yaml')
    if document:
        tree, _ = parse_yaml(document['text'])
        yield 'yaml keys', sorted(tree), sorted(document['parsed'])
        for key, expected in document['parsed'].items():
            yield parsed(f'yaml {key}', tree.get(key), expected)
    if 'dict2str' in case.spec:
        yield 'option tree', option_tree(_tree_of(case.spec['dict2str'])), case.spec['dict2str']
    if read_as_numbers:
        yield Note(
            f'{len(read_as_numbers)} numbers that the published parser leaves as text: '
            f'{", ".join(dict.fromkeys(read_as_numbers))}'
        )


def _as_published(ours: Any, published: Any, read_as_numbers: list[str]) -> Any:
    """Our value, with the published text in place of each number that this text denotes; such texts are noted."""
    if isinstance(published, list) and isinstance(ours, list) and len(ours) == len(published):
        return [_as_published(*pair, read_as_numbers) for pair in zip(ours, published, strict=True)]
    if isinstance(published, dict) and isinstance(ours, dict):
        return {key: _as_published(value, published.get(key), read_as_numbers) for key, value in ours.items()}
    is_number = isinstance(ours, int | float) and not isinstance(ours, bool)
    if isinstance(published, str) and is_number and ours == float(published):
        read_as_numbers.append(published)
        return published
    return ours


def _tree_of(text: str) -> dict:
    """The nested options whose printed form is `text`."""
    stack: list[dict] = [{}]
    for line in text.strip().splitlines():
        key, _, value = line.strip().partition(':')
        if key == ']':
            stack.pop()
        elif value == '[':
            stack[-1][key] = {}
            stack.append(stack[-1][key])
        else:
            stack[-1][key] = value.strip()
    return stack[0]
