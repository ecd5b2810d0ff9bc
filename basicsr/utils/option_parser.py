"""From the tree of an option file to checked sections; an OptionError carries the path of the faulty key."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from basicsr.utils import registry
from basicsr.utils.option_sections import (
    DatasetOptions,
    LoggerOptions,
    Options,
    PathOptions,
    PretrainedOptions,
    RestorerOptions,
    Section,
    TrainOptions,
    ValOptions,
    WandbOptions,
    whole,
)
from basicsr.utils.plugins import import_plugins
from basicsr.utils.published_options import (
    GIVEN_TO_DEGRADATIONS,
    MODEL_OPTIONS_OF_TRAIN,
    REPLACED,
    published_model,
)
from basicsr.utils.registry import OptionError, argument_model, check_arguments, first_fault, reject_unknown

logger = logging.getLogger('basicsr')

MADE_BY_THE_PROGRAM = {'is_train', 'file', 'text', 'networks'}  # of Options, not keys of a file


class OptionParser:
    """Checks the tree of one file part by part, then the components that it names against their constructors."""

    def __init__(self, tree: dict, is_train: bool):
        self.tree, self.is_train = _copied(tree), is_train

    def options(self, file: str, text: str) -> Options:
        """The checked options. Raises OptionError for the first fault."""
        self._drop_replaced()
        tree = {key: value for key, value in self.tree.items() if value is not None}  # an empty key is an absent one
        model_type, extra = published_model(tree)
        networks = [key for key in tree if key.startswith('network_')]
        reject_unknown(tree, {*Options.model_fields, 'network_g', *networks} - MADE_BY_THE_PROGRAM, 'option')
        for key in ('name', 'model_type'):
            if key not in tree:
                raise OptionError(f'option {key!r} is missing')
        check_name(tree['name'], 'an experiment', ('name',))
        if not isinstance(model_type, str):
            raise OptionError(f'should be the name of a model, got {model_type!r}', ('model_type',))
        networks = {key.removeprefix('network_'): _section(tree, key) for key in networks}
        train = _section(tree, 'train')
        moved = {key: whole(train.pop(key)) for key in MODEL_OPTIONS_OF_TRAIN if key in train}
        parts = {
            'networks': networks,
            'model_type': model_type,
            'model': {**extra, **moved, **_section(tree, 'model')},
            'datasets': self._datasets(_section(tree, 'datasets')),
            'path': self._path(_section(tree, 'path'), networks),
            'val': self._val(_section(tree, 'val')),
            'logger': self._logger(_section(tree, 'logger')),
            'train': self._train(train) if self.is_train else None,
        }
        made = {'is_train': self.is_train, 'file': file, 'text': text}
        options = _checked(Options, {**tree, **parts, **made})
        import_plugins(options.custom_imports)
        _check_components(options, moved)
        return options

    def _drop_replaced(self) -> None:
        for pattern, replacement in REPLACED.items():
            for path, section in _sections(self.tree, pattern[:-1]):
                if pattern[-1] in section:
                    value = section.pop(pattern[-1])
                    if pattern == ('num_gpu',) and value == 0:
                        self.tree.setdefault('device', 'cpu')
                    logger.info('%s is not used: %s', ':'.join((*path, pattern[-1])), replacement)

    def _datasets(self, sections: dict) -> dict[str, DatasetOptions]:
        datasets = {label: self._dataset(label, _section(sections, label, 'datasets')) for label in list(sections)}
        names = {}
        for label, dataset in datasets.items():
            check_name(dataset.name, 'a data set', ('datasets', label, 'name'))
            if not _trains(label) and names.setdefault(dataset.name, label) != label:
                raise OptionError(f'{names[dataset.name]} is called {dataset.name!r} too', ('datasets', label, 'name'))
        return datasets

    def _dataset(self, label: str, section: dict) -> DatasetOptions:
        fields = DatasetOptions.model_fields.keys() - {'options'}
        loader = {k: v for k, v in section.items() if k in fields and v is not None}
        options = {k: _expanded(v) if k.startswith('dataroot') else v for k, v in section.items() if k not in fields}
        loader.setdefault('name', label)
        if self.is_train and _trains(label) and 'batch_size_per_gpu' not in loader:
            raise OptionError("option 'batch_size_per_gpu' is missing", ('datasets', label))
        return _checked(DatasetOptions, {**loader, 'options': options}, 'datasets', label)

    def _path(self, section: dict, networks: dict) -> PathOptions:
        section = {k: v for k, v in section.items() if v is not None}
        common, pretrained, keys = section.pop('strict_load', True), {}, {'strict_load'}
        for label in dict.fromkeys([*networks, 'hq']):
            fields = {'path': 'pretrain_network', 'param_key': 'param_key', 'strict': 'strict_load'}
            names = {field: f'{key}_{label}' for field, key in fields.items()}
            values = {field: section.pop(key) for field, key in names.items() if key in section}
            if 'path' in values:
                values = {'strict': common, **values, 'path': _expanded(values['path'])}
                pretrained[label] = _checked(PretrainedOptions, values, 'path', names=names)
            keys |= set(names.values()) if label in networks else set()
        _reject_unknown_in(section, {*PathOptions.model_fields, *keys} - {'pretrained'}, 'path')
        return _checked(PathOptions, {**section, 'pretrained': pretrained}, 'path')

    def _train(self, section: dict) -> TrainOptions:
        if not section:
            raise OptionError("section 'train' is missing: this is a test file, or the wrong program")
        section = {k: v for k, v in section.items() if v is not None}
        optims = {k: _section(section, k, 'train') for k in list(section) if k.startswith('optim_')}
        losses = {k: _section(section, k, 'train') for k in list(section) if k.endswith('_opt')}
        usual = {'optim_g', 'pixel_opt', 'perceptual_opt', 'gan_opt', *MODEL_OPTIONS_OF_TRAIN}
        _reject_unknown_in(section, {*TrainOptions.model_fields, *usual} - {'optims', 'losses'}, 'train')
        return _checked(
            TrainOptions,
            {
                **section,
                'optims': {k.removeprefix('optim_'): part for k, part in optims.items()},
                'losses': {k.removesuffix('_opt'): part for k, part in losses.items()},
            },
            'train',
        )

    def _val(self, section: dict) -> ValOptions:
        section = {k: v for k, v in section.items() if v is not None}
        restorer = _checked(RestorerOptions, _section(section, 'restorer', 'val'), 'val', 'restorer')
        metrics = _section(section, 'metrics', 'val')
        metrics = {label: _section(metrics, label, 'val', 'metrics') for label in list(metrics)}
        options = _checked(ValOptions, {**section, 'metrics': metrics, 'restorer': restorer}, 'val')
        if options.suffix is not None:
            check_name(options.suffix, 'a suffix', ('val', 'suffix'))
        if options.key_metric is not None and options.protocol is None:
            where, key = ('val', 'key_metric'), options.key_metric
            with_context(where, lambda: reject_unknown([key], metrics, 'label of val:metrics'), keep_key=False)
        return options

    def _logger(self, section: dict) -> LoggerOptions:
        wandb = _checked(WandbOptions, _section(section, 'wandb', 'logger'), 'logger', 'wandb')
        return _checked(LoggerOptions, {k: v for k, v in section.items() if v is not None} | {'wandb': wandb}, 'logger')


def _check_components(options: Options, moved: dict) -> None:
    """Every named component exists and takes its options."""
    model = with_context(('model_type',), lambda: registry.MODEL_REGISTRY.get(options.model_type), keep_key=False)
    try:
        check_arguments(model, options.model, ('opt',))
    except OptionError as error:
        raise OptionError(str(error), ('train' if {*error.key} & {*moved} else 'model', *error.key)) from None
    for label, section in options.networks.items():
        with_context((f'network_{label}',), lambda s=section: _check_network(s, options.scale))
    if options.degradation is not None:
        with_context(('degradation',), lambda: _check_degradation(options.degradation, options.scale))
    for label in options.path.ignore_resume_networks:
        known = [f'network_{name}' for name in options.networks]
        with_context(
            ('path', 'ignore_resume_networks'),
            lambda n=label, k=known: reject_unknown([n], k, 'network'),
            keep_key=False,
        )
    for label, dataset in options.datasets.items():
        with_context(('datasets', label), lambda k=label, d=dataset: _check_dataset(k, d, options))
    for label, metric in options.val.metrics.items():
        with_context(('val', 'metrics', label), lambda m=metric: _check_metric(m))
    if options.train is not None:
        _check_training(options, options.train, model)


def _check_network(section: dict, scale: int) -> None:
    registry.ARCH_REGISTRY.check(section)
    if section.get('upscale', scale) != scale:
        raise OptionError(f'should be the scale of the file, {scale}, got {section["upscale"]}', ('upscale',))


def _check_dataset(label: str, dataset: DatasetOptions, options: Options) -> None:
    given = ('scale', 'phase')
    if isinstance(dataset.options.get('type'), str):
        entry = registry.DATASET_REGISTRY.get(dataset.options['type'])
        own = argument_model(entry, given).model_fields.keys()
        loading = DatasetOptions.model_fields.keys() - {'options'}
        reject_unknown(dataset.options, {'type', *own, *loading}, f'option of {entry.__name__}')
        size = dataset.options.get('gt_size')
        if (
            options.is_train
            and _trains(label)
            and 'gt_size' in own
            and ('crop_size' not in own or size is not None)  # with crop_size, the degradation cuts to its own gt_size
            and not (isinstance(size, int) and size > 0 and size % options.scale == 0)
        ):
            raise OptionError(
                f'training needs a gt_size that is a multiple of the scale {options.scale}, got {size!r}', ('gt_size',)
            )
    registry.DATASET_REGISTRY.check(dataset.options, given)


def _check_degradation(section: dict, scale: int) -> None:
    """Build it once, so its own checks of values count too. It works on batches; others belong to a data set."""
    registry.DEGRADATION_REGISTRY.check(section, GIVEN_TO_DEGRADATIONS)
    entry = registry.DEGRADATION_REGISTRY.get(section['type'])
    if not hasattr(entry, 'forward'):
        raise OptionError(
            f'{entry.__name__} degrades single images: name it in datasets:train:degradation of a DegradedImageDataset',
            ('type',),
        )
    registry.DEGRADATION_REGISTRY.build(section, scale=scale, seed=0, global_batch=1)


def _check_metric(section: dict) -> None:
    if section.get('better', 'higher') not in ('higher', 'lower'):
        raise OptionError(f"should be 'higher' or 'lower', got {section['better']!r}", ('better',))
    registry.METRIC_REGISTRY.check({k: v for k, v in section.items() if k != 'better'}, ('sr', 'gt'))


def _check_training(options: Options, train: TrainOptions, model: type) -> None:
    if sum(map(_trains, options.datasets)) != 1:
        got = ', '.join(options.datasets) or 'none'
        raise OptionError(f"training needs one entry 'train', got {got}", ('datasets',))
    given, losses = ([f'{label}_opt' for label in labels] for labels in (train.losses, model.loss_names))
    with_context(('train',), lambda: reject_unknown(given, losses, f'loss of {model.__name__}'))
    for label, section in train.losses.items():
        with_context(('train', f'{label}_opt'), lambda s=section: registry.LOSS_REGISTRY.check(s))
    optims = [f'optim_{label}' for label in options.networks]
    with_context(
        ('train',),
        lambda: reject_unknown(
            [f'optim_{k}' for k in train.optims], optims, 'optimizer, which are named as the networks are'
        ),
    )
    for label in model.always_trained:
        if label not in train.optims:
            raise OptionError(f"option 'optim_{label}' is missing", ('train',))
    for label, section in train.optims.items():
        with_context(('train', f'optim_{label}'), lambda s=section: _check_optimizer(s))
    if train.scheduler is not None:
        with_context(('train', 'scheduler'), lambda: _check_scheduler(train.scheduler))


def _check_optimizer(section: dict) -> None:
    """Build it once, for a network of one number: so its own checks of values count too."""
    import torch

    kind, options = optimizer_class(section.get('type')), {k: v for k, v in section.items() if k != 'type'}
    check_arguments(kind, options, ('params',))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        kind([torch.nn.Parameter(torch.zeros(1, 1))], **options)
    except ValueError as error:
        raise OptionError(f'{error} ({kind.__name__})') from None


def _check_scheduler(section: dict) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    registry.SCHEDULER_REGISTRY.build(section, optimizer=optimizer)


def optimizer_names() -> list[str]:
    """The classes of torch.optim."""
    import torch

    classes = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return sorted(name for name in classes if name[0].isupper() and name != 'Optimizer')


def optimizer_class(name: Any) -> type:
    """An optimizer of torch.optim, or of the optional package pytorch_optimizer, by its class name."""
    import torch

    names = optimizer_names()
    if name in names:
        return getattr(torch.optim, name)
    try:
        import pytorch_optimizer
    except ImportError:
        hint = '; more optimizers: pip install pytorch-optimizer'
    else:
        names += [n for n in dir(pytorch_optimizer) if isinstance(getattr(pytorch_optimizer, n), type)]
        if name in names:
            return getattr(pytorch_optimizer, name)
        hint = ''
    raise OptionError(f'{name!r} is not a known optimizer; {registry.suggestion(str(name), names)}{hint}', ('type',))


def check_name(name: Any, what: str, key: tuple[str, ...]) -> None:
    """Raise OptionError unless `name` can be a part of one file name, and so cannot leave its folder."""
    if not isinstance(name, str):
        raise OptionError(f'the name of {what} is text, got {name!r}; quote it', key)
    unprintable = any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name)
    if unprintable or not name.strip() or name[0] == '.' or set(name) & set('/\\') or len(name.encode()) > 200:
        raise OptionError(
            f'{name[:60]!r} cannot be the name of {what}: it becomes (a part of) one file name, at most '
            '200 bytes long, without slashes, control characters or a leading dot',
            key,
        )


def with_context(where: tuple[str, ...], check: Callable[[], Any], keep_key: bool = True) -> Any:
    """Run `check`; an OptionError that it raises gets `where` in front of the path of its key."""
    try:
        return check()
    except OptionError as error:
        raise OptionError(str(error), (*where, *(error.key if keep_key else ()))) from None


def _reject_unknown_in(section: dict, known: set[str], *where: str) -> None:
    with_context(where, lambda: reject_unknown(section, known, f'option of {":".join(where)}'))


def _checked(kind: type[Section], values: dict, *where: str, names: dict[str, str] | None = None) -> Any:
    """An object of `kind`; `names` are the keys in the file where they are not the fields' own names."""
    if where and not names:
        _reject_unknown_in(values, {*kind.model_fields}, *where)
    try:
        return kind(**values)
    except pydantic.ValidationError as error:
        message, key = first_fault(error)
        raise OptionError(message, (*where, *((names or {}).get(part, part) for part in key))) from None


def _section(tree: dict, key: str, *where: str) -> dict:
    """Take a sub-section out of `tree`; an empty one if it is absent."""
    value = tree.pop(key, None)
    if value is not None and not isinstance(value, dict):
        raise OptionError(f'should be a section of `key: value` lines, got {value!r}', (*where, key))
    return value or {}


def _trains(label: str) -> bool:
    return label.split('_')[0] == 'train'


def _expanded(value: Any) -> Any:
    """Paths may begin with the home folder's `~`."""
    return str(Path(value).expanduser()) if isinstance(value, str) and value[:1] == '~' else value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _sections(tree: Any, pattern: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict]]:
    """The dictionaries inside `tree` at the path `pattern`, where '*' stands for any key, with their paths."""
    if not isinstance(tree, dict):
        return
    if not pattern:
        yield (), tree
        return
    for key in list(tree) if pattern[0] == '*' else [pattern[0]]:
        for path, section in _sections(tree.get(key), pattern[1:]):
            yield (key, *path), section
