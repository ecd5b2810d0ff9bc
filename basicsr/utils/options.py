"""An option file as a checked, frozen object: every key is declared here or by the component that it configures."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from basicsr.utils import registry
from basicsr.utils.plugins import import_plugins
from basicsr.utils.registry import OptionError, check_arguments, first_fault, reject_unknown
from basicsr.utils.yaml_loader import Lines, apply_override, load_yaml

logger = logging.getLogger('basicsr')


def _whole(value: Any) -> Any:
    """5e3 is written for a count in many published files."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, pydantic.BeforeValidator(_whole)]
Path_ = str


class Section(pydantic.BaseModel):
    """A part of an option file that the framework owns: known keys, exact types, frozen."""

    model_config = pydantic.ConfigDict(extra='forbid', strict=True, frozen=True, protected_namespaces=())


class DatasetOptions(Section):
    """One entry of `datasets:`; `options` go to the constructor of the registered data set `options['type']`."""

    name: str
    num_worker_per_gpu: Annotated[Count, pydantic.Field(ge=0)] = 0
    batch_size_per_gpu: Annotated[Count, pydantic.Field(ge=1)] = 1
    dataset_enlarge_ratio: Annotated[float, pydantic.Field(gt=0)] = 1
    pin_memory: bool = True
    persistent_workers: bool = True
    timeout: float = 0  # seconds to wait for a worker before the run fails; 0 waits for ever
    options: dict


class PretrainedOptions(Section):
    """Where the first weights of a network come from."""

    path: Path_
    param_key: str | None = 'params'
    strict: bool = True


class PathOptions(Section):
    """`path:`; pretrain_network_g and its relatives are gathered in `pretrained['g']`."""

    pretrained: dict[str, PretrainedOptions] = {}
    resume_state: Path_ | None = None
    ignore_resume_networks: list[str] = []
    experiments_root: Path_ = 'experiments'
    results_root: Path_ = 'results'


class TrainOptions(Section):
    """`train:`; optim_X is `optims['X']` and X_opt is `losses['X']`. Iterations are optimizer steps."""

    total_iter: Annotated[Count, pydantic.Field(ge=1)]
    warmup_iter: Count = -1
    optims: dict[str, dict]
    scheduler: dict | None = None
    losses: dict[str, dict]
    ema_decay: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0
    grad_clip: Annotated[float, pydantic.Field(ge=0)] = 0  # largest gradient norm; 0 does not clip
    gradient_accumulation_steps: Annotated[Count, pydantic.Field(ge=1)] = 1
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = None  # None: what `accelerate launch` says
    compile: bool = False
    channels_last: bool = False
    deterministic: bool = False
    max_nonfinite: Annotated[Count, pydantic.Field(ge=0)] = 0  # steps in a row that a non-finite loss may skip


class RestorerOptions(Section):
    """`val: restorer:`, the arguments of Restorer. Sizes in pixels of lq; tile 0 restores the whole image at once."""

    tile: Annotated[Count, pydantic.Field(ge=0)] = 0
    overlap: Annotated[Count, pydantic.Field(ge=0)] = 32
    tile_batch: Annotated[Count, pydantic.Field(ge=1)] = 1
    self_ensemble: bool = False
    dtype: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'fp32'


class ValOptions(Section):
    """`val:`, for validation while training and for test.py."""

    val_freq: Count = 0
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    protocol: Literal['sr_y', 'sr_rgb'] | None = None  # a named set of metrics, in place of `metrics`
    metrics: dict[str, dict] = {}
    key_metric: str | None = None
    restorer: RestorerOptions = RestorerOptions()


class WandbOptions(Section):
    project: str | None = None
    resume_id: str | None = None


class LoggerOptions(Section):
    """`logger:`; frequencies in iterations, 0 is never. keep_last: how many checkpoints stay, 0 is all."""

    print_freq: Annotated[Count, pydantic.Field(ge=0)] = 100
    save_checkpoint_freq: Annotated[Count, pydantic.Field(ge=0)] = 5000
    keep_last: Annotated[Count, pydantic.Field(ge=0)] = 0
    keep_best: bool = True
    save_safetensors: bool = False  # also write the weights to use as plain .safetensors
    use_tb_logger: bool = False
    wandb: WandbOptions = WandbOptions()


class Options(Section):
    """A whole option file. `text` is the file as it was read, for the copy that a run keeps."""

    name: str
    model_type: str
    scale: Annotated[Count, pydantic.Field(ge=1)] = 1
    manual_seed: Count = 0
    device: Literal['auto', 'cpu'] = 'auto'
    find_unused_parameters: bool = False
    custom_imports: list[str] = []  # Python files or modules that register networks, data sets, losses of their own
    datasets: dict[str, DatasetOptions] = {}
    networks: dict[str, dict]
    model: dict = {}
    path: PathOptions = PathOptions()
    train: TrainOptions | None = None
    val: ValOptions = ValOptions()
    logger: LoggerOptions = LoggerOptions()
    is_train: bool
    file: Path_ = ''
    text: str = ''


# Model names of the published option files -> this project's model and the options that make it behave alike.
PUBLISHED_MODELS: dict[str, tuple[str, dict]] = {
    'ATDModel': ('SRModel', {}),
    'SwinIRModel': ('SRModel', {}),
    'SRGANModel': ('SRModel', {}),
    'ESRGANModel': ('SRModel', {'relativistic': True}),
}

# Keys of BasicSR's files that have no effect here -> what does their work.
REPLACED = {
    ('num_gpu',): '`accelerate launch --num_processes N` (or torchrun) chooses the devices',
    ('dist_params',): '`accelerate launch` (or torchrun) sets up the process group',
    ('bsz',): 'it only holds an anchor; batch sizes are read from the data sets',
    ('datasets', '*', 'prefetch_mode'): 'the loader always prefetches, from pinned memory on a GPU',
    ('datasets', '*', 'num_prefetch_queue'): 'the loader chooses its own queue',
    ('datasets', '*', 'use_shuffle'): 'training always shuffles, validation never does',
    ('datasets', '*', 'phase'): 'the name of the data set entry says it',
    ('datasets', '*', 'scale'): 'the scale at the top of the file is used',
    ('logger', 'save_latest_freq'): 'save_checkpoint_freq and keep_last say what is kept',
}


def load_options(
    path: str | Path, is_train: bool, overrides: Collection[str] = (), check_files: bool = True
) -> Options:
    """Read and check a whole option file; nothing is built and no image is read.

    Args:
        overrides: `section:key=value` entries that replace values of the file.
        check_files: whether data folders and checkpoints that the file names must exist.
    Raises OptionError, whose message names file, line and key, for the first fault found.
    """
    tree, lines = load_yaml(path)
    for entry in overrides:
        where = apply_override(tree, entry)
        lines = {key: line for key, line in lines.items() if key[: len(where)] != where}
    text = Path(path).read_text(encoding='utf-8')
    return parse_options(tree, is_train, str(path), lines, text, check_files)


def parse_options(
    tree: dict,
    is_train: bool,
    file: str = 'options',
    lines: Lines | None = None,
    text: str = '',
    check_files: bool = False,
) -> Options:
    """As `load_options`, from a dictionary."""
    try:
        options = _Parser(tree, is_train).options(file, text)
        if check_files:
            _check_files(options)
        return options
    except OptionError as error:
        key = tuple(part for part in error.key if part)
        line = (lines or {}).get(key) or next(
            (lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in (lines or {})), None
        )
        where = f'{file}:{line}' if line else file
        prefix = f'{":".join(key)}: ' if key else ''
        raise OptionError(f'{where}: {prefix}{error}', key) from None


class _Parser:
    """Turns the tree of one file into Options, part by part; an OptionError carries the path of the faulty key."""

    def __init__(self, tree: dict, is_train: bool):
        self.tree, self.is_train = _copied(tree), is_train

    def options(self, file: str, text: str) -> Options:
        self._drop_replaced()
        tree = self.tree
        for key in ('name', 'model_type'):
            if key not in tree:
                raise OptionError(f'option {key!r} is missing')
        check_name(tree['name'])
        networks = {key.removeprefix('network_'): tree.pop(key) for key in list(tree) if key.startswith('network_')}
        model_type, extra = PUBLISHED_MODELS.get(tree['model_type'], (tree['model_type'], {}))
        train_section = self._section(tree, 'train')
        for key in {'net_d_iters', 'net_d_init_iters'} & train_section.keys():  # BasicSR's place of these options
            extra = {**extra, key: _whole(train_section.pop(key))}
        own = {
            'networks': networks,
            'model_type': model_type,
            'model': {**extra, **self._section(tree, 'model')},
            'datasets': {k: self._dataset(k, v) for k, v in self._section(tree, 'datasets').items()},
            'path': self._path(self._section(tree, 'path'), networks),
            'val': self._val(self._section(tree, 'val')),
            'logger': self._framework(LoggerOptions, self._section(tree, 'logger'), 'logger'),
            'train': self._train(train_section) if self.is_train else None,
        }
        tree.pop('train', None)
        known = {*Options.model_fields, *(f'network_{label}' for label in networks)} - {
            'is_train',
            'file',
            'text',
            'networks',
        }
        reject_unknown(tree, known, 'option')
        options = self._framework(Options, {**tree, **own, 'is_train': self.is_train, 'file': file, 'text': text}, '')
        import_plugins(options.custom_imports)
        self._check_components(options)
        return options

    def _drop_replaced(self) -> None:
        for pattern, replacement in REPLACED.items():
            for section in _sections(self.tree, pattern[:-1]):
                if pattern[-1] in section:
                    value = section.pop(pattern[-1])
                    if pattern == ('num_gpu',) and value == 0:
                        self.tree.setdefault('device', 'cpu')
                    logger.info('%s is not used: %s', ':'.join(pattern), replacement)

    def _section(self, tree: dict, key: str) -> dict:
        value = tree.pop(key, None)
        if value is not None and not isinstance(value, dict):
            raise OptionError(f'should be a section of `key: value` lines, got {value!r}', (key,))
        return value or {}

    def _framework(self, kind: type[Section], values: dict, *where: str) -> Section:
        if kind is not Options:
            with_context(where, lambda: reject_unknown(values, kind.model_fields, f'option of {":".join(where)}'))
        try:
            return kind(**values)
        except pydantic.ValidationError as error:
            message, key = first_fault(error)
            raise OptionError(message, (*where, *key)) from None

    def _dataset(self, label: str, section: dict) -> DatasetOptions:
        if not isinstance(section, dict):
            raise OptionError(f'should be a section of `key: value` lines, got {section!r}', ('datasets', label))
        loader = {k: v for k, v in section.items() if k in DatasetOptions.model_fields and k != 'options'}
        options = {k: _expanded(k, v) for k, v in section.items() if k not in loader}
        loader.setdefault('name', label)
        if not isinstance(options.get('type'), str):
            raise OptionError("option 'type' is missing: the class of the data set", ('datasets', label))
        if self.is_train and label.split('_')[0] == 'train' and 'batch_size_per_gpu' not in loader:
            raise OptionError("option 'batch_size_per_gpu' is missing", ('datasets', label))
        return self._framework(DatasetOptions, {**loader, 'options': options}, 'datasets', label)

    def _path(self, section: dict, networks: dict) -> PathOptions:
        section = {k: v for k, v in section.items() if v is not None}
        common_strict = section.pop('strict_load', True)
        pretrained = {}
        for label in [*networks, 'hq']:
            path = section.pop(f'pretrain_network_{label}', None)
            values = {
                'param_key': section.pop(f'param_key_{label}', 'params'),
                'strict': section.pop(f'strict_load_{label}', common_strict),
            }
            if path is not None:
                pretrained[label] = self._framework(
                    PretrainedOptions, {**values, 'path': _expanded('dataroot', path)}, 'path'
                )
        labels = [f'{kind}_{label}' for kind in ('pretrain_network', 'param_key', 'strict_load') for label in networks]
        known = {*PathOptions.model_fields, *labels, 'strict_load'} - {'pretrained'}
        with_context(('path',), lambda: reject_unknown(section, known, 'option of path'))
        return self._framework(PathOptions, {**section, 'pretrained': pretrained}, 'path')

    def _train(self, section: dict) -> TrainOptions:
        if not section:
            raise OptionError("section 'train' is missing: this is a test file, or the wrong program", ())
        optims = {k.removeprefix('optim_'): section.pop(k) for k in list(section) if k.startswith('optim_')}
        losses = {k.removesuffix('_opt'): section.pop(k) for k in list(section) if k.endswith('_opt')}
        losses = {label: options for label, options in losses.items() if options is not None}
        known = {*TrainOptions.model_fields, 'optim_g', 'pixel_opt', 'perceptual_opt', 'gan_opt'} - {'optims', 'losses'}
        with_context(('train',), lambda: reject_unknown(section, known, 'option of train'))
        return self._framework(TrainOptions, {**section, 'optims': optims, 'losses': losses}, 'train')

    def _val(self, section: dict) -> ValOptions:
        section = {k: v for k, v in section.items() if v is not None or k == 'suffix'}
        restorer = self._framework(RestorerOptions, section.pop('restorer', {}), 'val', 'restorer')
        return self._framework(ValOptions, {**section, 'restorer': restorer}, 'val')

    def _check_components(self, options: Options) -> None:
        model = with_context(('model_type',), lambda: registry.MODEL_REGISTRY.get(options.model_type), keep_key=False)
        with_context(('model',), lambda: check_arguments(model, options.model, ('opt',)))
        for label, section in options.networks.items():
            with_context((f'network_{label}',), lambda s=section: registry.ARCH_REGISTRY.check(s))
        for label, dataset in options.datasets.items():
            with_context(
                ('datasets', label), lambda d=dataset: registry.DATASET_REGISTRY.check(d.options, ('scale', 'phase'))
            )
        for label, metric in options.val.metrics.items():
            arguments = {k: v for k, v in metric.items() if k != 'better'}
            with_context(('val', 'metrics', label), lambda a=arguments: registry.METRIC_REGISTRY.check(a, ('sr', 'gt')))
        if options.train is not None:
            self._check_training(options, model)

    def _check_training(self, options: Options, model: type) -> None:
        if not any(label.split('_')[0] == 'train' for label in options.datasets):
            raise OptionError("section 'train' is missing", ('datasets',))
        train = options.train
        known = {f'{label}_opt' for label in model.loss_names}
        with_context(
            ('train',), lambda: reject_unknown([f'{k}_opt' for k in train.losses], known, f'loss of {model.__name__}')
        )
        for label, section in train.losses.items():
            with_context(('train', f'{label}_opt'), lambda s=section: registry.LOSS_REGISTRY.check(s))
        for label, section in train.optims.items():
            if label not in options.networks:
                raise OptionError(f'there is no network_{label} that it could train', ('train', f'optim_{label}'))
            with_context(
                ('train', f'optim_{label}'),
                lambda s=section: check_arguments(optimizer_class(s.get('type')), _without_type(s), ('params',)),
            )
        if 'g' not in train.optims:
            raise OptionError("option 'optim_g' is missing", ('train',))
        if train.scheduler is not None:
            with_context(
                ('train', 'scheduler'), lambda: registry.SCHEDULER_REGISTRY.check(train.scheduler, ('optimizer',))
            )


def optimizer_class(name: Any) -> type:
    """An optimizer of torch.optim, or of the optional package pytorch_optimizer, by its class name."""
    import torch

    names = [
        n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n[0].isupper() and n != 'Optimizer'
    ]
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


def _expanded(key: str, value: Any) -> Any:
    """Paths may begin with the home folder's `~`."""
    return (
        str(Path(value).expanduser())
        if key.startswith('dataroot') and isinstance(value, str) and value[:1] == '~'
        else value
    )


def _without_type(section: dict) -> dict:
    return {key: value for key, value in section.items() if key != 'type'}


def _check_files(options: Options) -> None:
    for label, dataset in options.datasets.items():
        for key, value in dataset.options.items():
            if key.startswith(('dataroot', 'meta_info')) and isinstance(value, str) and not Path(value).exists():
                raise OptionError(f'{value!r} does not exist (seen from {Path.cwd()})', ('datasets', label, key))
    for label, pretrained in options.path.pretrained.items():
        if '://' not in pretrained.path and not Path(pretrained.path).is_file():
            raise OptionError(
                f'{pretrained.path!r} does not exist (seen from {Path.cwd()})', ('path', f'pretrain_network_{label}')
            )
    if options.path.resume_state and not Path(options.path.resume_state).is_file():
        raise OptionError(f'{options.path.resume_state!r} does not exist', ('path', 'resume_state'))


def check_name(name: Any) -> None:
    """Raise OptionError unless `name` can be the name of one folder inside the experiments' folder."""
    bad = not isinstance(name, str) or not name.strip() or name in ('.', '..') or len(name.encode()) > 200
    if bad or any(c in name for c in '/\\\0') or name.startswith('.') or any(ord(c) < 32 for c in name):
        raise OptionError(
            f'{str(name)[:60]!r} cannot be an experiment name: it names one folder, at most 200 bytes long, '
            'without slashes or a leading dot',
            ('name',),
        )


def with_context(where: tuple[str, ...], check: Callable[[], Any], keep_key: bool = True) -> Any:
    """Run `check`; an OptionError that it raises gets `where` in front of the path of its key."""
    try:
        return check()
    except OptionError as error:
        raise OptionError(str(error), (*where, *(error.key if keep_key else ()))) from None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _sections(tree: Any, pattern: tuple[str, ...]) -> list[dict]:
    """The dictionaries inside `tree` at the path `pattern`, where '*' stands for any key."""
    found = [tree]
    for part in pattern:
        found = [
            s
            for section in found
            if isinstance(section, dict)
            for s in (section.values() if part == '*' else [section.get(part)])
        ]
    return [s for s in found if isinstance(s, dict)]
