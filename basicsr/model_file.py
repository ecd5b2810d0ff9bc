"""Model files that describe themselves: safetensors whose metadata say which network the weights belong to.

The entries are plain state dicts under the published names, which spandrel and chaiNNer read; a model of several
networks has them as `LABEL.NAME`. The metadata are texts: `options` (what an option file says of the model), `card`
(JSON: measured results), `licence`, `source` and `note`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.checkpoint import CheckpointError, write_atomically
from basicsr.utils.options import Options, parse_options
from basicsr.utils.registry import OptionError, UserError
from basicsr.utils.yaml_loader import apply_override, parse_yaml

FORMAT = 'basicsr-model-1'
KEYS = ('name', 'model_type', 'scale', 'model')  # beside the networks; others have no place in a file from elsewhere
OTHER_FILES = ('sd_path', 'prompt_embeddings', 'pretrained')  # options that name files: nor have these


@dataclass(frozen=True)
class Description:
    """What a model file says of itself; `card` is {data set: {metric: mean}}."""

    options: str
    card: dict[str, dict[str, float]] = field(default_factory=dict)
    licence: str = ''
    source: str = ''
    note: str = ''


def described(opt: Options, labels: tuple[str, ...]) -> str:
    """What an option file has to say for restoring with the networks of these labels, without names of other files."""
    tree = {'name': opt.name, 'model_type': opt.model_type, 'scale': opt.scale}
    model = {key: value for key, value in opt.model.items() if key not in OTHER_FILES}
    tree |= {'model': model} if model else {}
    tree |= {f'network_{label}': opt.networks[label] for label in labels}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)


def write_model_file(path: str | Path, networks: Mapping[str, Mapping[str, Tensor]], about: Description) -> None:
    """Write the networks' state dicts by their labels, whole or not at all. Raises CheckpointError."""
    alone = len(networks) == 1
    state = {
        name if alone else f'{label}.{name}': value.contiguous()
        for label, part in networks.items()
        for name, value in part.items()
    }
    texts = {'format': FORMAT, **asdict(about), 'card': json.dumps(about.card)}
    data = save(state, {key: value for key, value in texts.items() if value})
    write_atomically(Path(path), lambda file: file.write(data))


def read_description(path: str | Path) -> Description | None:
    """What a file says of itself; None if it is no model file. Raises CheckpointError if it is a damaged one."""
    path = Path(path)
    if path.suffix != '.safetensors' or not path.is_file():
        return None
    try:
        with safe_open(path, 'pt') as file:
            texts = file.metadata() or {}
        if texts.get('format') != FORMAT:
            return None
        card = json.loads(texts.get('card', '{}'))
        fields = {key: texts.get(key, '') for key in ('options', 'licence', 'source', 'note')}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f'{path}: damaged or truncated: {str(error).splitlines()[0]}') from None
    return Description(**fields, card=card if _is_card(card) else {})


def described_options(about: Description, path: Path, overrides: Sequence[str]) -> Options:
    """The options that a model file describes; the file itself has the weights of its networks.

    A file from elsewhere describes networks and how they restore, and nothing that would run code or read other files.
    Raises OptionError.
    """
    tree, lines = parse_yaml(about.options, str(path))
    foreign = [key for key in tree if key not in KEYS and not key.startswith('network_')]
    if foreign:
        raise OptionError(f'{path}: a model file describes networks, not {foreign[0]!r}')
    if place := _other_file(tree):
        raise OptionError(f'{path}: a model file names no other files, but has {place}; name it by --force_yml')
    networks = [key.removeprefix('network_') for key in tree if key.startswith('network_')]
    for label in networks:
        tree.setdefault('path', {})[f'pretrain_network_{label}'] = str(path)
        tree['path'][f'param_key_{label}'] = None if len(networks) == 1 else label
    for entry in overrides:
        apply_override(tree, entry)
    return parse_options(tree, False, str(path), lines, about.options, check_files=False)


def load_described(path: Path, overrides: Sequence[str] = (), asked: str | Path = '') -> BaseModel:
    """The model of a file that describes itself, on the CPU.

    Args:
        overrides: `section:key=value` entries that replace values of its options.
        asked: what the user called it, for the message.
    Raises UserError.
    """
    about = read_description(path)
    if about is None:
        called = f'{asked}: {path.name}' if asked else path
        raise UserError(
            f'{called} does not describe its network: name an option file that does with --opt '
            '(scripts/export_model.py writes files that describe theirs)'
        )
    return build_model(described_options(about, path.resolve(), overrides))


def _other_file(node: object, where: tuple[str, ...] = ()) -> str:
    """Where a tree of options names another file, as `section:key`; '' if it does nowhere."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return ''
    named = (key for key, value in node.items() if key in OTHER_FILES and isinstance(value, str))
    found = next((':'.join(map(str, (*where, key))) for key in named), '')
    return found or next((place for key, value in node.items() if (place := _other_file(value, (*where, key)))), '')


def _is_card(card: object) -> bool:
    return isinstance(card, dict) and all(
        isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values()) for row in card.values()
    )
