"""Write the JSON schema of option files, by which editors complete, explain and check them while one types.

python scripts/make_schema.py            # options/schema.json, which the first line of our option files names
python scripts/make_schema.py --check    # say whether it is what the code reads today

The schema is made of the same constructors and sections that the programs check files against. It knows less: what
depends on several options at once, or on files on this machine, only they say.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path

# This folder holds `option_reference`; the checkout's `basicsr` must win over an installed one.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from option_reference import (  # noqa: E402
    REGISTRIES,
    component_schema,
    constructor_schema,
    nested_options,
    section_schema,
)

from basicsr.utils.checkpoint import write_atomically  # noqa: E402
from basicsr.utils.cli import run  # noqa: E402
from basicsr.utils.nested_options import Checker, ComponentOf, OptionsByOption, OptionsByType, OptionsOf  # noqa: E402
from basicsr.utils.option_parser import optimizer_names  # noqa: E402
from basicsr.utils.option_sections import DatasetOptions, LoggerOptions, Options, PathOptions, TrainOptions, ValOptions  # noqa: E402
from basicsr.utils.published_options import DEGRADING_MODELS, MODEL_OPTIONS_OF_TRAIN, PUBLISHED_MODELS, REPLACED  # noqa: E402
from basicsr.utils.registry import DEGRADATION_REGISTRY, MODEL_REGISTRY, UserError  # noqa: E402

SCHEMA = Path(__file__).resolve().parents[1] / 'options' / 'schema.json'
LOADING = [name for name in DatasetOptions.model_fields if name != 'options']
OLD = {'description': 'a key of BasicSR that has no effect here', 'deprecated': True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; status 1 if the file differs')
    args = parser.parse_args()
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + '\n'
    if args.check:
        if not SCHEMA.is_file() or SCHEMA.read_text(encoding='utf-8') != text:
            raise UserError(f'{SCHEMA} is not what the code reads: run python scripts/make_schema.py')
        return 0
    write_atomically(SCHEMA, lambda file: file.write(text.encode()))
    print(SCHEMA)
    return 0


def schema() -> dict:
    """The schema of a whole option file (draft 7, which editors know best)."""
    definitions: dict[str, dict] = {}
    for registry in REGISTRIES:
        for name in registry.names():
            _define(definitions, f'{registry.kind}.{name}', component_schema(registry, name))
    for registry in REGISTRIES:
        for name in registry.names():
            _nest(definitions, definitions[f'{registry.kind}.{name}'], registry.get(name))
    return {
        '$schema': 'http://json-schema.org/draft-07/schema#',
        'title': 'basicsr option file',
        'type': 'object',
        'required': ['name', 'model_type'],
        'additionalProperties': False,
        'properties': _top(definitions),
        'patternProperties': {'^network_': _chosen('arch', definitions)},
        'allOf': [*_of_models(definitions)],
        'definitions': definitions,
    }


def _top(definitions: dict) -> dict:
    """Every key at the top of a file."""
    of_options = section_schema(Options)['properties']
    plain = ('name', 'scale', 'manual_seed', 'device', 'find_unused_parameters', 'custom_imports')
    old = dict.fromkeys((pattern[0] for pattern in REPLACED if len(pattern) == 1), OLD)
    return old | {
        **{name: of_options[name] for name in plain},
        'model_type': {
            'description': 'how the networks learn and restore',
            'enum': [*MODEL_REGISTRY.names(), *PUBLISHED_MODELS, *DEGRADING_MODELS],
        },
        'model': {'type': ['object', 'null'], 'description': 'options of the model'},
        'datasets': {'type': 'object', 'additionalProperties': _dataset(definitions)},
        'degradation': _chosen('degradation', definitions, 'of whole batches, on the device', _degrades_batches),
        'path': _path(definitions),
        'train': _train(definitions),
        'val': _val(definitions),
        'logger': _section(definitions, LoggerOptions),
    }


def _dataset(definitions: dict) -> dict:
    loading = section_schema(DatasetOptions)['properties']
    old = {pattern[-1]: OLD for pattern in REPLACED if pattern[0] == 'datasets'}
    for kind in [name for name in definitions if name.startswith('dataset.')]:
        definitions[kind]['properties'] |= {name: loading[name] for name in LOADING} | old
    return _chosen('dataset', definitions)


def _path(definitions: dict) -> dict:
    part = _section(definitions, PathOptions)
    del part['properties']['pretrained']
    part['properties']['strict_load'] = {'type': 'boolean', 'description': 'of all networks'}
    part['patternProperties'] = {
        '^pretrain_network_': {'type': ['string', 'null'], 'description': 'file or URL of the first weights'},
        '^param_key_': {'type': ['string', 'null'], 'description': "entry of that file, such as 'params_ema'"},
        '^strict_load_': {'type': 'boolean', 'description': 'whether all entries must fit (default: true)'},
    }
    return part


def _train(definitions: dict) -> dict:
    part = _section(definitions, TrainOptions)
    del part['properties']['optims'], part['properties']['losses'], part['required']
    part['properties']['scheduler'] = _chosen('scheduler', definitions, 'of the learning rates')
    part['properties'] |= {key: {'type': 'number'} for key in MODEL_OPTIONS_OF_TRAIN}
    part['patternProperties'] = {
        '^optim_': {
            'type': 'object',
            'required': ['type'],
            'properties': {'type': {'type': 'string', 'examples': optimizer_names()}},
        },
        '_opt$': {'anyOf': [{'type': 'null'}, _chosen('loss', definitions)]},
    }
    return part


def _val(definitions: dict) -> dict:
    part = _section(definitions, ValOptions)
    for kind in [name for name in definitions if name.startswith('metric.')]:
        definitions[kind]['properties']['better'] = {'enum': ['higher', 'lower'], 'default': 'higher'}
    part['properties']['metrics'] = {
        'type': ['object', 'null'],
        'additionalProperties': _chosen('metric', definitions),
    }
    return part


def _of_models(definitions: dict) -> list[dict]:
    """What follows from model_type: the options of `model:` and the names of the losses."""
    rules = []
    for name in MODEL_REGISTRY.names():
        names = [name, *(alias for alias, (ours, _) in PUBLISHED_MODELS.items() if ours == name)]
        losses = [f'{loss}_opt' for loss in MODEL_REGISTRY.get(name).loss_names]
        follows = {
            'model': {'anyOf': [{'type': 'null'}, {'$ref': f'#/definitions/model.{name}'}]},
            'train': {'propertyNames': {'anyOf': [{'not': {'pattern': '_opt$'}}, {'enum': losses}]}},
        }
        chosen = {'properties': {'model_type': {'enum': names}}, 'required': ['model_type']}
        rules.append({'if': chosen, 'then': {'properties': follows}})
    return rules


def _degrades_batches(name: str) -> bool:
    return hasattr(DEGRADATION_REGISTRY.get(name), 'forward')


def _nest(definitions: dict, part: dict, entry: Callable) -> None:
    """Say in the schema of a constructor's arguments what those that are nested sections may hold."""
    for option, checker in nested_options(entry).items():
        whole = part['properties'][option]
        if isinstance(checker, OptionsByOption):
            part.setdefault('allOf', []).extend(_depending(definitions, part, option, checker))
        elif 'anyOf' in whole:
            section = _nested(definitions, checker)
            whole['anyOf'] = [section if kind.get('type') == 'object' else kind for kind in whole['anyOf']]
        else:
            del whole['type'], whole['additionalProperties']
            whole['allOf'] = [_nested(definitions, checker)]


def _nested(definitions: dict, checker: Checker) -> dict:
    match checker:
        case OptionsOf():
            return _arguments(definitions, f'options.{checker.entry.__name__}', checker.entry, checker.given)
        case OptionsByType():
            for kind, entry in checker.kinds.items():
                _arguments(definitions, f'{checker.what}.{kind}', entry, checker.given)
            section = _chosen(checker.what, definitions)
        case ComponentOf():
            kind, entry_of = checker.registry.kind, checker.registry.get
            section = _chosen(kind, definitions, fits=lambda name: not checker.misplaced(entry_of(name)))
    return section | {'type': 'object'}


def _depending(definitions: dict, part: dict, option: str, checker: OptionsByOption) -> list[dict]:
    """What `option` may hold for each value of the option that decides it; its default counts where it is absent."""
    rules, usual = [], part['properties'][checker.option].get('default')
    for kind, entry in checker.kinds.items():
        section = _arguments(definitions, f'{checker.option}.{kind}', entry, checker.given)
        chosen = {'properties': {checker.option: {'const': kind}}}
        chosen |= {} if kind == usual else {'required': [checker.option]}
        rules.append({'if': chosen, 'then': {'properties': {option: {'anyOf': [section, {'type': 'null'}]}}}})
    return rules


def _arguments(definitions: dict, name: str, entry: Callable, given: Collection[str]) -> dict:
    """A reference to the definition of a constructor's arguments, which is made once."""
    if name not in definitions:
        _define(definitions, name, constructor_schema(entry, given))
        _nest(definitions, definitions[name], entry)
    return {'$ref': f'#/definitions/{name}'}


def _chosen(
    kind: str, definitions: dict, description: str = '', fits: Callable[[str], bool] = lambda name: True
) -> dict:
    """A section whose `type` names a component that `fits`; its other keys are the options of that one."""
    names = [name.removeprefix(f'{kind}.') for name in definitions if name.startswith(f'{kind}.')]
    names = [name for name in names if fits(name)]
    for name in names:
        part = definitions[f'{kind}.{name}']
        part['properties'] = {'type': {'const': name}} | part['properties']
    return {
        'type': ['object', 'null'],
        'description': description or f'a {kind}, chosen by its `type`',
        'required': ['type'],
        'properties': {'type': {'enum': names}},
        'allOf': [
            {
                'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
                'then': {'$ref': f'#/definitions/{kind}.{name}'},
            }
            for name in names
        ],
    }


def _section(definitions: dict, kind: type) -> dict:
    """A section of the framework; the sections inside it become definitions of their own."""
    part = section_schema(kind)
    _define(definitions, '', part)
    return part | {'type': ['object', 'null']}


def _define(definitions: dict, name: str, part: dict) -> None:
    """Add a schema; what pydantic defined beside it moves to the common definitions."""
    for inner, content in part.pop('$defs', {}).items():
        definitions[inner] = _moved(content)
    moved = _moved(part)
    part.clear()
    part |= moved
    if name:
        definitions[name] = part


def _moved(node):
    """A part of a schema as draft 7 writes it: where definitions are, and how the parts of a tuple are called."""
    if isinstance(node, dict):
        moved = {'items' if key == 'prefixItems' else key: _moved(value) for key, value in node.items()}
        return moved | {key: moved[key].replace('#/$defs/', '#/definitions/') for key in ('$ref',) if key in moved}
    return [_moved(part) for part in node] if isinstance(node, list) else node


if __name__ == '__main__':
    run(main)
