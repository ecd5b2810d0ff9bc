"""What option files may say, read from the code that reads them: for make_schema.py and the documentation."""

import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from basicsr.utils.nested_options import Checker, ComponentOf, OptionsByOption, OptionsByType, checker_of
from basicsr.utils.option_parser import MADE_BY_THE_PROGRAM
from basicsr.utils.option_sections import Options, Section
from basicsr.utils.published_options import GIVEN_TO_DEGRADATIONS
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    DEGRADATION_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    SCHEDULER_REGISTRY,
    Registry,
    argument_model,
)

# Arguments that the program gives, so that no option file sets them.
GIVEN: dict[str, tuple[str, ...]] = {
    'arch': (),
    'model': ('opt',),
    'dataset': ('scale', 'phase'),
    'degradation': GIVEN_TO_DEGRADATIONS,
    'loss': (),
    'metric': ('sr', 'gt'),
    'scheduler': ('optimizer',),
}
REGISTRIES: tuple[Registry, ...] = (
    ARCH_REGISTRY,
    MODEL_REGISTRY,
    DATASET_REGISTRY,
    DEGRADATION_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    SCHEDULER_REGISTRY,
)
BOUNDS = {'ge': 'minimum', 'gt': 'exclusiveMinimum', 'le': 'maximum', 'lt': 'exclusiveMaximum'}
OWN_KEYS = {name: field for name, field in Options.model_fields.items() if name not in MADE_BY_THE_PROGRAM}


def component_schema(registry: Registry, name: str) -> dict:
    """JSON schema of the options of one registered class or function, `type` not included."""
    return constructor_schema(registry.get(name), GIVEN[registry.kind])


def constructor_schema(entry: Callable, given: Collection[str]) -> dict:
    """JSON schema of the arguments of a class or function except those in `given`; nested sections are any object."""
    schema = _with_bounds(argument_model(entry, given).model_json_schema())
    del schema['title']
    schema |= {'description': first_sentence(entry), 'additionalProperties': False}
    texts = argument_texts(entry)
    for option, part in schema.setdefault('properties', {}).items():
        part.pop('title', None)
        if option in texts:
            part['description'] = texts[option]
    return schema


def nested_options(entry: Callable) -> dict[str, Checker]:
    """The arguments of a class or function that are nested sections, and what these describe."""
    checkers = {name: checker_of(part.annotation) for name, part in inspect.signature(entry).parameters.items()}
    return {name: checker for name, checker in checkers.items() if checker}


def described(checker: Checker) -> dict[str, Callable]:
    """The constructors whose arguments a nested section may hold, by what must be written for each to be meant.

    '' where nothing needs to be; nothing for registered components, which are described elsewhere.
    """
    match checker:
        case ComponentOf():
            return {}
        case OptionsByType():
            return {f'type: {kind}': entry for kind, entry in checker.kinds.items()}
        case OptionsByOption():
            return {f'{checker.option}: {kind}': entry for kind, entry in checker.kinds.items()}
    return {'': checker.entry}


def section_schema(section: type[Section]) -> dict:
    """JSON schema of a section that the framework owns."""
    schema = _with_bounds(section.model_json_schema())
    schema.pop('title', None)
    for part in schema.get('properties', {}).values():
        part.pop('title', None)
    return schema


def _with_bounds(node: Any) -> Any:
    """A schema in which limits have JSON schema's names, which pydantic leaves out where a validator comes first."""
    if isinstance(node, dict):
        return {BOUNDS.get(key, key): _with_bounds(value) for key, value in node.items()}
    return [_with_bounds(part) for part in node] if isinstance(node, list) else node


def first_sentence(entry: Callable) -> str:
    """The first paragraph of a docstring, on one line."""
    text = inspect.getdoc(entry) or ''
    return ' '.join(text.partition('\n\n')[0].split())


def argument_texts(entry: Callable) -> dict[str, str]:
    """What the docstring's `Args:` says of each argument; one line may name several: `a, b: ...`."""
    lines = (inspect.getdoc(entry) or '').splitlines()
    texts: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in lines:
        if not line.startswith(' '):
            inside, names = line.rstrip() == 'Args:', []
            continue
        if not inside:
            continue
        heads = re.fullmatch(r' {4}(?=\S)(.*)', line)
        if heads:
            texts, names = _with_heads(texts, heads[1])
        else:
            for name in names:
                texts[name] += f' {line.strip()}'
    return texts


def _with_heads(texts: dict[str, str], line: str) -> tuple[dict[str, str], list[str]]:
    """The texts with those that a line `a, b: text; c: text` begins, and the names of its last part."""
    names: list[str] = []
    for part in re.split(r'; (?=\w+(?:, \w+)*: )', line):
        heads, colon, text = part.partition(':')
        if colon and re.fullmatch(r'\w+(?:, \w+)*', heads):
            names = heads.split(', ')
            texts = texts | dict.fromkeys(names, text.strip())
    return texts, names


def default_text(schema: dict, required: bool) -> str:
    """The default of an option as an option file would write it; 'required' if there is none."""
    return 'required' if required else written(schema.get('default'))


def written(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if value is None:
        return '~'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(written, value))}]'
    if isinstance(value, dict):
        return '{' + ', '.join(f'{k}: {written(v)}' for k, v in value.items()) + '}'
    return f"'{value}'" if value == '' else str(value)


def type_text(schema: dict, definitions: dict) -> str:
    """The type of an option in words that a writer of option files uses."""
    if '$ref' in schema:
        return type_text(definitions[schema['$ref'].rpartition('/')[2]], definitions)
    if 'enum' in schema or 'const' in schema:
        return ' or '.join(f'`{written(v)}`' for v in schema.get('enum', [schema.get('const')]))
    if 'anyOf' in schema:
        return ' or '.join(dict.fromkeys(type_text(part, definitions) for part in schema['anyOf']))
    kind = schema.get('type')
    if kind == 'array':
        parts = schema.get('prefixItems')
        items = parts[0] if parts else schema.get('items', {})
        count = f' of {len(parts)}' if parts else ''
        return f'list{count}: {type_text(items, definitions)}' if items else 'list'
    words = {'integer': 'whole number', 'number': 'number', 'boolean': '`true` or `false`', 'string': 'text'}
    words |= {'object': 'section', 'null': '`~`'}
    return words.get(kind, 'any') + bounds(schema)


def bounds(schema: dict) -> str:
    """' >= 1, <= 8' where a schema limits a number."""
    signs = {'minimum': '>=', 'exclusiveMinimum': '>', 'maximum': '<=', 'exclusiveMaximum': '<'}
    limits = [f'{sign} {written(schema[key])}' for key, sign in signs.items() if key in schema]
    return f' {", ".join(limits)}' if limits else ''
