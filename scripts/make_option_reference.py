"""Write the pages that list what option files may say, read from the code that reads them.

python scripts/make_option_reference.py            # docs/options/*.md
python scripts/make_option_reference.py --check    # say whether they are what the code reads today
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

# This folder holds `option_reference`; the checkout's `basicsr` must win over an installed one.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from option_reference import (  # noqa: E402
    OWN_KEYS,
    argument_texts,
    component_schema,
    constructor_schema,
    default_text,
    described,
    first_sentence,
    nested_options,
    section_schema,
    type_text,
)

from basicsr.models.iter_training import TokenTraining  # noqa: E402
from basicsr.models.s3diff_training import S3DiffTraining  # noqa: E402
from basicsr.utils import option_sections as sections  # noqa: E402
from basicsr.utils import registry  # noqa: E402
from basicsr.utils.checkpoint import write_atomically  # noqa: E402
from basicsr.utils.cli import run  # noqa: E402
from basicsr.utils.nested_options import Checker, ComponentOf  # noqa: E402
from basicsr.utils.published_options import DEGRADING_MODELS, PUBLISHED_MODELS, REPLACED  # noqa: E402
from basicsr.utils.registry import MODEL_REGISTRY, Registry, UserError  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / 'docs' / 'options'
PAGES: dict[str, tuple[str, str, Registry]] = {
    'networks.md': ('Networks', 'Sections `network_g`, `network_d` and so on.', registry.ARCH_REGISTRY),
    'models.md': ('Models', '`model_type` names one; its options are those of `model:`.', registry.MODEL_REGISTRY),
    'datasets.md': (
        'Data sets',
        'Entries of `datasets:`, beside the [loader keys](file.md).',
        registry.DATASET_REGISTRY,
    ),
    'degradations.md': (
        'Degradations',
        '`degradation:` of a data set (single images) or at the top of the file (whole batches).',
        registry.DEGRADATION_REGISTRY,
    ),
    'losses.md': ('Losses', 'Sections `pixel_opt`, `gan_opt` and so on of `train:`.', registry.LOSS_REGISTRY),
    'metrics.md': (
        'Metrics',
        'Entries of `val: metrics:`, beside `better: higher` or `lower`.',
        registry.METRIC_REGISTRY,
    ),
    'schedulers.md': ('Schedulers', '`scheduler:` of `train:`.', registry.SCHEDULER_REGISTRY),
}
# The parts of models that some of their options belong to.
TRAINED_BY: dict[str, type] = {'ITERModel': TokenTraining, 'S3DiffModel': S3DiffTraining}
SAME_OPTIONS = {'DDPMUNet': 'SR3UNet'}
COMMON = {
    'kernel_list': 'kinds of blur kernels',
    'kernel_prob': 'how likely each kind is',
    'sinc_prob': 'how likely a sinc kernel is instead',
    'blur_sigma': 'widths of kernels, in pixels, drawn between the two',
    'betag_range': 'exponents of generalised Gaussian kernels',
    'betap_range': 'exponents of plateau kernels',
    'final_sinc_prob': 'how likely a last sinc filter is',
    'blur_kernel_size': 'largest side of kernels, where limit_kernel_size is true',
    'resize_prob': 'how likely resizing goes up, down, or is left out',
    'resize_range': 'smallest and largest factor',
    'gaussian_noise_prob': 'how likely the noise is Gaussian; Poisson otherwise',
    'noise_range': 'standard deviations of Gaussian noise, on the scale 0..255',
    'poisson_scale_range': 'strengths of Poisson noise',
    'gray_noise_prob': 'how likely noise has no colour',
    'jpeg_range': 'lowest and highest JPEG quality',
    'second_blur_prob': 'how likely the second blur is',
    'scale': 'enlargement',
    'loss_weight': 'what the loss is multiplied by',
    'reduction': "'mean', 'sum' or 'none' of the elements",
    'crop_border': 'pixels left out at each side',
    'test_y_channel': 'compare BT.601 luma, not rounded',
    'num_in_ch': 'channels of the input',
    'num_out_ch': 'channels of the output',
    'num_feat': 'feature channels',
    'io_backend': 'what the images lie in: disk, lmdb, packed or sr3_lmdb',
    'gt_size': 'side of the square cut out of gt for training',
    'use_hflip': 'flip at random',
    'use_rot': 'turn at random',
    'max_num': 'the first so many images only',
    'limit_kernel_size': 'whether blur_kernel_size counts; as published it does not',
    'no_degradation_prob': 'how likely the image is left as it is',
    'eps': 'added under the root, so that the loss is smooth at 0',
    'metric': "pyiqa's name of the metric",
    'num_degradation': 'scores of an image: blur and noise',
    'input_nc': 'channels of the input',
    'periods': 'iterations of each period',
    'restarts': 'iterations at which the schedule begins anew',
    'restart_weights': 'what the initial rate is multiplied by at each restart',
    'milestones': 'iterations after which the rate is multiplied by gamma',
    'gamma': 'see milestones',
    'eta_min': 'the lowest rate',
    'gan_type': 'which adversarial loss',
    'real_label_val': 'what real images should be judged as',
    'fake_label_val': 'what restored images should be judged as by the discriminator',
    'ndf': 'channels of the first layer',
    'n_layers': 'layers that halve the size',
    'order': "of the colours that luma is computed from: 'published' takes B, G, R for R, G, B",
    'T_max': 'iterations until the lowest rate',
}
HEAD = ('option', 'type', 'default', 'meaning')
NETWORKS = ('`network_X`', 'section', 'g is required', 'a [network](networks.md); g restores')
# Fields that a file spells by the names of its networks and losses, and those that other pages explain.
SPELLED = {
    'optims': ('`optim_X`', 'section', 'required for g', 'optimizer of `network_X`: `type` and its arguments'),
    'losses': ('`X_opt`', 'section', '~', 'a [loss](losses.md); the [model](models.md) says which X it has'),
    'scheduler': ('`scheduler`', 'section', '~', 'of the learning rates, see [schedulers](schedulers.md)'),
    'pretrained': (
        '`pretrain_network_X`, `param_key_X`, `strict_load_X`',
        'text, text, `true` or `false`',
        '~, params, true',
        'first weights of `network_X`: file or URL, entry of the file, whether all entries must fit',
    ),
    'options': ('others', 'any', '', 'options of the [data set](datasets.md) that `type` names'),
    'metrics': ('`metrics`', 'section', '{}', 'by names of your own: `type` and options of a [metric](metrics.md)'),
    'datasets': ('`datasets`', 'section', '{}', '`train`, `val`, `test_1` and so on, see below'),
    'degradation': ('`degradation`', 'section', '~', 'of whole batches, see [degradations](degradations.md)'),
    'model': ('`model`', 'section', '{}', 'options of the [model](models.md)'),
}
SECTIONS: dict[str, tuple[type[sections.Section], str, dict[str, str]]] = {
    'At the top': (
        sections.Options,
        '',
        {
            'name': 'of the run: its folder in `experiments/` or `results/`',
            'model_type': 'how the networks learn and restore, see [models](models.md)',
            'scale': 'enlargement',
            'manual_seed': 'what everything drawn at random follows from',
            'device': '`cpu` even where there is a GPU',
            'find_unused_parameters': 'for networks of which a step may leave parts unused, on several devices',
            'path': 'files and folders',
            'train': 'for train.py only; test.py does without',
            'val': 'validation while training, and test.py',
            'logger': 'what is written, and how often',
        },
    ),
    'An entry of `datasets:`': (
        sections.DatasetOptions,
        'Training takes one entry whose label begins with `train`; all others are for validation or test.py.',
        {
            'name': 'in tables and folders; without, the label of the entry',
            'num_worker_per_gpu': 'processes that read images; 0 reads in the process itself',
            'batch_size_per_gpu': 'items of a batch of each process; required for training',
            'dataset_enlarge_ratio': 'how often an epoch has each item',
            'pin_memory': 'faster copies to a GPU',
        },
    ),
    '`path:`': (
        sections.PathOptions,
        '',
        {
            'resume_state': 'a `.state` file to go on from; `--auto_resume` finds the newest itself',
            'ignore_resume_networks': 'networks, such as `network_d`, that a resumed run begins anew',
            'experiments_root': 'folder of trainings',
            'results_root': 'folder of test.py',
        },
    ),
    '`train:`': (
        sections.TrainOptions,
        'An iteration is one optimizer step, whatever the number of devices and of accumulated batches.',
        {
            'total_iter': 'iterations of the whole run',
            'warmup_iter': 'iterations in which the rate rises linearly; -1: none',
            'ema_decay': 'of the average of the weights, which then restores; 0: no average',
            'gradient_accumulation_steps': 'batches of one iteration',
            'mixed_precision': 'without: what `accelerate launch` says',
            'compile': 'torch.compile',
            'channels_last': 'memory format of the networks',
        },
    ),
    '`val:`': (
        sections.ValOptions,
        '',
        {
            'val_freq': 'iterations between validations; 0: never',
            'save_img': 'also write the images',
            'suffix': 'of the names of images; without: the name of the run',
            'pbar': 'a progress bar',
            'key_metric': 'the metric that the best checkpoint is chosen by; without: the first',
            'restorer': 'tiles and precision',
        },
    ),
    '`val: restorer:`': (
        sections.RestorerOptions,
        'Sizes are pixels of lq.',
        {
            'tile': 'largest side restored at once; 0: the whole image',
            'overlap': 'what tiles share and blend',
            'tile_batch': 'tiles restored at once',
            'self_ensemble': 'mean over eight flips and turns',
            'color_fix': 'give results the coarse colours (`wavelet`) or mean and contrast (`adain`) of lq',
            'color_strength': 'of the colour fix, from 0 to 1',
            'dtype': '`auto`: bf16 on a GPU that has it, else fp32',
        },
    ),
    '`logger:`': (
        sections.LoggerOptions,
        'Frequencies are in iterations; 0: never.',
        {
            'print_freq': 'of lines in the log',
            'save_checkpoint_freq': 'of checkpoints with their state to resume from',
            'keep_last': 'checkpoints that stay; 0: all',
            'keep_best': 'the best by `val: key_metric` stays too',
            'use_tb_logger': 'tensorboard records in `tb_logger/NAME`',
            'wandb': 'Weights & Biases',
        },
    ),
    '`logger: wandb:`': (
        sections.WandbOptions,
        '',
        {'project': 'without: no records', 'resume_id': 'of the run to continue'},
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; status 1 if a page differs')
    args = parser.parse_args()
    for name, text in pages().items():
        path = FOLDER / name
        if args.check:
            if not path.is_file() or path.read_text(encoding='utf-8') != text:
                raise UserError(f'{path} is not what the code reads: run python scripts/make_option_reference.py')
            continue
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
        print(path)
    return 0


def pages() -> dict[str, str]:
    """The text of every page by its file name."""
    return {'file.md': _file_page()} | {name: _component_page(*page) for name, page in PAGES.items()}


def _component_page(title: str, where: str, kind: Registry) -> str:
    parts, entries = [f'# {title}', where], {name: kind.get(name) for name in kind.names()}
    # Data sets, and degradations, mean the same by the same name.
    alike = entries.values() if kind in (registry.DATASET_REGISTRY, registry.DEGRADATION_REGISTRY) else ()
    shared = {option: text for entry in alike for option, text in argument_texts(entry).items()}
    for name, entry in entries.items():
        schema = component_schema(kind, name)
        parts += [f'## {name}', escaped(schema['description'])]
        if kind is MODEL_REGISTRY:
            parts.append(f'Losses: {", ".join(f"`{loss}_opt`" for loss in entry.loss_names)}.')
        own = argument_texts(TRAINED_BY.get(name, entries[SAME_OPTIONS.get(name, name)]))
        parts.append(_options_table(schema, own, shared, nested_options(entry)))
    for entry, (given, places) in _nested(entries).items():
        parts += [f'## {entry.__name__}', escaped(first_sentence(entry)), _place(places)]
        parts.append(_options_table(constructor_schema(entry, given), argument_texts(entry), {}, nested_options(entry)))
    return '\n\n'.join(parts) + '\n'


def _nested(components: dict[str, Callable]) -> dict[Callable, tuple[Collection[str], list[tuple[str, str, str]]]]:
    """The constructors that describe sections inside the components' options, and inside these.

    For each the arguments that no file sets, and where it counts: the option, whose option it is, what must be written.
    """
    found: dict[Callable, tuple[Collection[str], list[tuple[str, str, str]]]] = {}
    owners = list(components.items())
    for owner, entry in owners:  # which grows
        for option, checker in nested_options(entry).items():
            for written, inner in described(checker).items():
                if inner not in found and inner not in components.values():
                    owners.append((inner.__name__, inner))
                found.setdefault(inner, (checker.given, []))[1].append((option, owner, written))
    return {entry: rest for entry, rest in found.items() if entry not in components.values()}


def _place(places: list[tuple[str, str, str]]) -> str:
    """'`io_backend` of A and B, with `type: lmdb`.'"""
    options, owners, written = (list(dict.fromkeys(column)) for column in zip(*places))
    condition = f', with `{written[0]}`' if written[0] else ''
    return f'{_listed(f"`{option}`" for option in options)} of {_listed(owners)}{condition}.'


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f'{", ".join(most)} and {last}' if most else last


def _section_text(checker: Checker) -> str:
    """What stands for the type of a nested section: links to what it may hold."""
    if isinstance(checker, ComponentOf):
        page, title = next((page, title) for page, (title, _, kind) in PAGES.items() if kind is checker.registry)
        return f'section: one of the [{title.lower()}]({page})'
    links = [
        f'[{f"`{written}`" if written else entry.__name__}](#{entry.__name__.lower()})'
        for written, entry in described(checker).items()
    ]
    return f'section: {" or ".join(links)}'


def _options_table(schema: dict, own: dict[str, str], shared: dict[str, str], sections: dict[str, Checker]) -> str:
    """Of a schema's options: what its docstring says, else that of another component for an option of the same name."""
    rows = []
    for option, part in schema['properties'].items():
        text = own.get(option) or part.get('description') or shared.get(option) or _common(option)
        name, kind, *rest = _row(option, part | {'description': escaped(text)}, schema)
        kind = kind.replace('section', _section_text(sections[option])) if option in sections else kind
        rows.append((name, kind, *rest))
    return _table(HEAD, rows) if rows else 'No options.'


def _common(option: str) -> str:
    """The meaning of an option of many components; a 2 at the end of its name is of the second degradation."""
    if option in COMMON:
        return COMMON[option]
    return f'{COMMON[option[:-1]]}, in the second degradation' if option[-1] == '2' and option[:-1] in COMMON else ''


def _file_page() -> str:
    """The keys that the framework owns, and BasicSR's that mean something else here."""
    parts = [
        '# The option file',
        'What the framework itself reads. Other sections are options of the component that their `type` names, or'
        ' that `model_type` names. `~` is YAML for nothing given.',
    ]
    for title, (section, about, meanings) in SECTIONS.items():
        names = OWN_KEYS if section is sections.Options else section.model_fields
        rows = [*_rows(section, names, meanings), *([NETWORKS] if section is sections.Options else [])]
        parts += [f'## {title}', about, _table(HEAD, rows)]
    parts += ['## Optimizers', 'Those of torch by their names (`AdamW`, `Adam`, `SGD` ...) with their arguments.']
    models = [
        (f'`{name}`', f'`{ours}`', f'`{options}`' if options else '')
        for name, (ours, options) in PUBLISHED_MODELS.items()
    ]
    models += [(f'`{name}`', '`SRModel`', 'with `RealESRGANDegradation`') for name in DEGRADING_MODELS]
    parts += ["## Names of models in BasicSR's files", _table(('there', 'here', 'with'), models)]
    replaced = [(f'`{":".join(key)}`', escaped(what)) for key, what in REPLACED.items()]
    parts += ["## Keys of BasicSR's files without effect", _table(('key', 'instead'), replaced)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _rows(section: type[sections.Section], names: Collection[str], meanings: dict[str, str]) -> list[tuple[str, ...]]:
    schema, meanings = section_schema(section), {k: escaped(v) for k, v in _comments(section).items()} | meanings
    rows = []
    for name, part in schema['properties'].items():
        if name in names:
            rows.append(SPELLED.get(name) or _row(name, part | {'description': meanings[name]}, schema))
    return rows


def _row(name: str, part: dict, schema: dict) -> tuple[str, ...]:
    definitions = schema.get('$defs', {})
    is_section = '$ref' in part and 'properties' in definitions.get(part['$ref'].rpartition('/')[2], {})
    default = 'see below' if is_section else default_text(part, name in schema.get('required', ()))
    return f'`{name}`', type_text(part, definitions), escaped(default), part.get('description', '')


def _comments(section: type) -> dict[str, str]:
    """What the comment behind a field of a section says."""
    return dict(re.findall(r'^    (\w+): .*?  # (.*)$', inspect.getsource(section), re.MULTILINE))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple('---' for _ in head), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines)


def escaped(text: str) -> str:
    """Text in which Markdown sees no emphasis, link or HTML; what stands in backticks is left as it is."""
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if p.startswith('`') else re.sub(r'([*_<>\[\]])', r'\\\1', p) for p in parts)


if __name__ == '__main__':
    run(main)
