"""What `basicsr info` says of a model or of a file of weights."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from basicsr.dry_run import flops
from basicsr.model_file import Description, described_options, read_description
from basicsr.models import build_model
from basicsr.models.sr3_model import SR3Model
from basicsr.restoring import needed_networks, weights_overrides
from basicsr.utils.checkpoint import CheckpointError, load_pretrained, read_checkpoint
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import ARCH_REGISTRY, OptionError
from basicsr.utils.zoo import PROJECT, KnownModel

Size = tuple[int, int]


def about_model(known: KnownModel, size: Size) -> list[str]:
    """The lines on a model that has a name; its weights are not fetched."""
    opt = load_options(known.option_file, is_train=False, overrides=known.overrides, check_files=False)
    lines = [_line('model', f'{known.name} ({known.note})'), *_networks(opt, size)]
    state = {'bundled': 'bundled', 'here': 'here', 'by hand': f'to be fetched from {known.page}'}
    lines.append(_line('weights', state.get(known.state(), known.weights)))
    about = read_description(known.weights_file(True)) if known.state() in ('bundled', 'here') else None
    return [*lines, *_results(about), *_line_if('licence', known.licence), *_line_if('from', known.source)]


def about_file(path: str, size: Size) -> list[str]:
    """The lines on a file of weights. Raises CheckpointError for what is none."""
    place = Path(path)
    content = read_checkpoint(place)
    tensors = list(_tensors(content))
    count, kinds = sum(t.numel() for t in tensors), sorted({str(t.dtype).removeprefix('torch.') for t in tensors})
    lines = [
        _line('file', f'{place}, {place.stat().st_size:,} bytes'),
        _line('holds', f'{len(tensors)} tensors with {count:,} values ({", ".join(kinds) or "none"})'),
    ]
    about = read_description(place)
    if about is not None:
        lines += _networks(described_options(about, place, []), size)
        return [*lines, *_results(about), *_line_if('licence', about.licence), *_line_if('from', about.source),
                *_line_if('note', about.note)]  # fmt: skip
    fitting = list(_fitting(place))
    if not fitting:
        shown = ', '.join(map(str, list(content)[:6])) + (', ...' if len(content) > 6 else '')
        return [*lines, _line('entries', shown), _line('network', 'none that an option file here describes')]
    lines += _networks(load_options(fitting[0], is_train=False, check_files=False), size)
    return [*lines, *(_line('fits', str(file.relative_to(PROJECT))) for file in fitting)]


def _fitting(place: Path) -> Iterator[Path]:
    """The option files for restoring, or else for training, whose networks have exactly the entries of a file."""
    answers: dict[str, bool] = {}  # of option files with the same networks
    for kind in ('test', 'train'):
        for file in sorted((PROJECT / 'options' / kind).rglob('*.yml')):
            opt = load_options(file, is_train=False, check_files=False)
            networks = repr({label: opt.networks[label] for label in needed_networks(opt)})
            if networks not in answers:
                answers[networks] = _fits(file, place)
            if answers[networks]:
                yield file
        if any(answers.values()):
            return


def _fits(file: Path, place: Path) -> bool:
    try:
        opt = load_options(file, is_train=False, check_files=False)
        overrides = weights_overrides(opt, place.resolve())
        opt = load_options(file, is_train=False, overrides=overrides, check_files=False)
        for label in needed_networks(opt):
            source = opt.path.pretrained[label].model_copy(update={'strict': True})
            with warnings.catch_warnings(action='ignore'):  # torch's, that nothing is copied
                load_pretrained(_shape_of(opt, label), source, 'params_ema')
    except (CheckpointError, OptionError, KeyError):
        return False
    return True


def _shape_of(opt: Options, label: str) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device('meta'):
        return ARCH_REGISTRY.build(opt.networks[label])


def _networks(opt: Options, size: Size) -> list[str]:
    """Architecture, scale, parameters and cost of what restores by these options."""
    lines = [_line('system', f'{opt.model_type}, x{opt.scale}')]
    for label in needed_networks(opt):
        net = _shape_of(opt, label)
        count = sum(p.numel() for p in net.parameters())
        lines.append(_line(f'network_{label}', f'{type(net).__name__} with {count:,} parameters'))
    return [*lines, _line('FLOPs', _cost(opt, *size))]


def _cost(opt: Options, height: int, width: int) -> str:
    bare = opt.model_copy(update={'path': opt.path.model_copy(update={'pretrained': {}})})
    try:
        with torch.device('meta'):
            model = build_model(bare)
        steps = 1
        if isinstance(model, SR3Model):  # all steps cost the same: one is counted
            steps = len(model.sampler.steps_of(model.sampled, model.continuous).alphas)
            model.sampler = replace(model.sampler, steps=1)
        cost = steps * flops(model, torch.zeros(1, 3, height, width)) / 1e9
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f'cannot be counted here ({str(error).splitlines()[0]})'
    return f'{cost:,.2f} G to restore an lq of {width}x{height}' + (f', in {steps} steps' if steps > 1 else '')


def _results(about: Description | None) -> list[str]:
    rows = about.card.items() if about is not None else ()
    return [_line('results', f'{name}: {", ".join(_score(k, v) for k, v in row.items())}') for name, row in rows]


def _score(metric: str, value: float) -> str:
    return f'{metric} {value:.2f}' if abs(value) >= 10 else f'{metric} {value:.4f}'


def _tensors(content) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value)


def _line(title: str, text: str) -> str:
    return f'{title:<12} {text}'


def _line_if(title: str, text: str) -> list[str]:
    return [_line(title, text)] if text else []
