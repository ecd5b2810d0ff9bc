"""Option files as dictionaries: safe YAML, `1e-4` a number, a duplicate key an error, the line of every key kept."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from basicsr.utils.registry import OptionError

MAX_BYTES = 1 << 18
MAX_VALUES = 20_000  # as written, and once more after the expansion of aliases: an alias bomb stops here
MAX_DEPTH = 40

Lines = dict[tuple[str, ...], int]

_MERGE = 'tag:yaml.org,2002:merge'
_SCALARS = {'!', *(f'tag:yaml.org,2002:{kind}' for kind in ('str', 'int', 'float', 'bool', 'null'))}

_FLOAT = re.compile(r'[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z')


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, whose floats need no dot before the exponent and whose dates are text."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.nodes += 1
        if self.nodes > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem='too many values', problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, list('-+.0123456789'))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != 'tag:yaml.org,2002:timestamp']
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_yaml(path: str | Path) -> tuple[dict, Lines]:
    """Read an option file: its dictionary, and the line number of each key by the path of the key.

    Raises OptionError with file and line for what YAML or this project does not accept.
    """
    path = Path(path)
    if not path.is_file():
        raise OptionError(f'{path}: no such option file')
    if path.stat().st_size > MAX_BYTES:
        raise OptionError(f'{path}: an option file of more than {MAX_BYTES >> 10} KiB is not read')
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise OptionError(f'{path}: not a text file in UTF-8') from None
    except OSError as error:
        raise OptionError(f'{path}: cannot be read: {error.strerror}') from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = 'option text') -> tuple[dict, Lines]:
    """As `load_yaml`, from text; `name` stands for the file in messages."""
    lines: Lines = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = {} if node is None else _Builder(loader, lines, name).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise OptionError(f'{name}:{mark.line + 1 if mark else 1}: {error.problem or error.context}') from None
    except yaml.YAMLError as error:
        raise OptionError(f'{name}: {str(error).splitlines()[0]}') from None
    except RecursionError:
        raise OptionError(f'{name}: nested too deeply') from None
    if not isinstance(tree, dict):
        raise OptionError(
            f'{name}: an option file is a list of `key: value` lines, this one is a {type(tree).__name__}'
        )
    return tree, lines


class _Builder:
    """Turns YAML nodes into Python values while it counts them and notes their lines."""

    def __init__(self, loader: _Loader, lines: Lines, name: str):
        self.loader, self.lines, self.name, self.count = loader, lines, name, 0

    def build(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self._count(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._plain_tag(node, 'seq')
            return [self.build(child, (*path, str(index))) for index, child in enumerate(node.value)]
        if node.tag not in _SCALARS:
            raise self._error(node, f'the tag {node.tag!r} is not allowed in an option file')
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError):
            kind = node.tag.rpartition(':')[2]
            raise self._error(node, f'{node.value[:60]!r} is no value of the type {kind}') from None

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict:
        self._plain_tag(node, 'map')
        result, merged = {}, {}
        for key_node, value_node in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):  # own lines come last
            if key_node.tag == _MERGE:
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in reversed(sources):
                    if not isinstance(source, yaml.MappingNode):
                        raise self._error(key_node, '`<<` merges mappings only')
                    self._count(source, path)
                    merged.update(self._mapping(source, path))
                continue
            if key_node.tag not in ('!', 'tag:yaml.org,2002:str'):
                raise self._error(key_node, f'an option name must be text, got {_shown(key_node)}; quote it')
            key = key_node.value
            where = (*path, key)
            if key in result:
                raise self._error(key_node, f'{":".join(where)}: the key is already given in line {self.lines[where]}')
            self.lines[where] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, where)
        return {**merged, **result}

    def _count(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self._error(node, 'too many or too deeply nested values (an alias bomb?)')

    def _plain_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag not in (f'tag:yaml.org,2002:{kind}', '!'):
            raise self._error(node, f'the tag {node.tag!r} is not allowed in an option file')

    def _error(self, node: yaml.Node, message: str) -> OptionError:
        return OptionError(f'{self.name}:{node.start_mark.line + 1}: {message}')


def _shown(node: yaml.Node) -> str:
    return repr(node.value[:60]) if isinstance(node, yaml.ScalarNode) else f'a {node.id}'


def parse_value(text: str) -> Any:
    """The value of a `key=value` given on the command line.

    As BasicSR reads `--force_yml` (`~`/none, true/false, digits, one-dot floats, `!!float`, lists), without eval, and
    numbers with a sign or an exponent are numbers too. Everything else is the text itself.
    """
    text = text.strip()
    if text == '~' or text.lower() == 'none':
        return None
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if text.startswith('!!float'):
        try:
            return float(text[len('!!float') :])
        except ValueError:
            raise OptionError(f'command line: {text!r} is not a number') from None
    if re.fullmatch(r'[-+]?\d{1,1000}', text):
        return int(text)
    if re.fullmatch(r'[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?', text):
        return float(text)
    if text.startswith('['):
        try:
            return ast.literal_eval(text)  # literals only: what BasicSR's lists are written in
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return parse_yaml(f'value: {text}', f'command line, {text!r}')[0]['value']
    return text


def apply_override(tree: dict, entry: str) -> tuple[str, ...]:
    """Set one `a:b=value` (or `a.b=value`) in the nested `tree`; returns the path of the option that it set."""
    keys, separator, value = entry.partition('=')
    path = tuple(part.strip() for part in re.split(r'[:.]', keys))
    if not separator or not all(path):
        raise OptionError(f'command line, {entry!r}: an override is written section:key=value')
    section = tree
    for position, key in enumerate(path[:-1]):
        if section.get(key) is None:  # absent, or a section left empty
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise OptionError(f'command line, {entry!r}: {":".join(path[: position + 1])!r} is a value, not a section')
    section[path[-1]] = parse_value(value)
    return path
