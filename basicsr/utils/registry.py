"""The registries: names in option files -> networks, data sets, degradations, losses, metrics, models and schedules."""

import ast
import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pydantic

ROOT = Path(__file__).resolve().parents[1]  # the package folder `basicsr`


class UserError(ValueError):
    """A fault that the user can mend: commands say it in one line, without a traceback."""


class OptionError(UserError):
    """A mistake in an option file or on the command line; `key` is the path of the option inside its section."""

    def __init__(self, message: str, key: tuple[str, ...] = ()):
        super().__init__(message)
        self.key = key


def suggestion(name: str, known: Collection[str]) -> str:
    """'did you mean ...?' if a known name is close to `name`, else the list of known names."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f'did you mean {near[0]!r}?' if near else f'known: {", ".join(sorted(map(str, known))) or "none"}'


def reject_unknown(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise OptionError for the first of `names` that is not in `known`; `what` completes 'is not a known ...'."""
    for name in names:
        if name not in known:
            raise OptionError(f'{name!r} is not a known {what}; {suggestion(name, known)}', (name,))


def argument_model(entry: Callable, given: Collection[str]) -> type[pydantic.BaseModel]:
    """The constructor of `entry` as a pydantic model: its arguments except those in `given` and the variadic ones."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry).parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, strict=True, protected_namespaces=())
    return pydantic.create_model(f'{entry.__name__}Arguments', __config__=config, **fields)


# What pydantic calls a type -> what the writer of an option file calls it.
_EXPECTED = {
    'bool_type': 'true or false',
    'dict_type': 'a section of `key: value` lines',
    'float_type': 'a number',
    'int_from_float': 'a whole number',
    'int_type': 'a whole number',
    'list_type': 'a list',
    'model_type': 'a section of `key: value` lines',
    'none_required': 'empty',
    'string_type': 'text',
    'tuple_type': 'a list',
}


def first_fault(error: pydantic.ValidationError) -> tuple[str, tuple[str, ...]]:
    """The first fault that pydantic found, as one sentence, and the path of the option that has it."""
    details = [d for d in error.errors() if d['type'] not in ('is_instance_of', 'none_required')] or error.errors()
    detail = details[0]
    where, value = tuple(str(part) for part in detail['loc'][:1]), repr(detail['input'])
    value = value if len(value) <= 80 else f'{value[:80]}...'
    cause = detail.get('ctx', {}).get('error')
    if isinstance(cause, OptionError):  # from a validator of ours
        return str(cause), (*where, *cause.key)
    if detail['type'] == 'missing' and len(detail['loc']) == 1:
        return f'option {where[0]!r} is missing', where
    if detail['type'] in ('missing', 'too_short', 'too_long'):
        return 'the list has too many or too few values', where
    alike = [d for d in details if d['type'] in _EXPECTED and repr(d['input']) == repr(detail['input'])]
    alternatives = [_EXPECTED[d['type']] for d in alike]
    if alternatives:
        return f'should be {" or ".join(dict.fromkeys(alternatives))}, got {value}', where
    message = detail['msg'].replace('Input should be', 'should be')
    return f'{message[0].lower() + message[1:]}, got {value}', where


def check_arguments(entry: Callable, options: dict, given: Collection[str] = (), what: str = '') -> None:
    """Raise OptionError unless `entry(**options)` has known names, no missing argument and the annotated types.

    Lists are accepted where a tuple is declared and whole numbers where a float is; nothing else is converted.
    """
    model = argument_model(entry, given)
    reject_unknown(options, model.model_fields.keys(), what or f'option of {entry.__name__}')
    try:
        model.model_validate_json(json.dumps(options))  # as JSON, where a tuple is written as a list
    except pydantic.ValidationError as error:
        message, key = first_fault(error)
        raise OptionError(f'{message} ({what.removeprefix("option of ") or entry.__name__})', key) from None


def _same_definition(one: Callable, other: Callable) -> bool:
    """Whether two classes or functions are written alike: one file may be imported under two names."""
    try:
        return one is other or inspect.getsource(one) == inspect.getsource(other)
    except (OSError, TypeError):  # one of them was not written in a file
        return False


class Registry:
    """Registered classes and functions of one package folder, imported when their names are first asked for.

    A module of the folder is read (not run) to learn which names it registers, so that asking for one network does
    not import the others. Code outside the tree registers by the same decorator when it is imported.
    """

    def __init__(self, kind: str, folder: str):
        self.kind, self.folder = kind, folder
        self.variable = f'{kind.upper().replace(" ", "_")}_REGISTRY'
        self._entries: dict[str, Callable] = {}
        self._modules: dict[str, str] | None = None

    def register(self, name: str | None = None) -> Callable:
        """Decorator: makes the class or function known by `name`, by default its own name.

        Raises ValueError when another definition already has that name; the same one again is no fault.
        """

        def add(entry: Callable) -> Callable:
            key = name or entry.__name__
            old = self._entries.get(key)
            if old is not None and not _same_definition(old, entry):
                raise ValueError(f'{self.kind} {key!r} is registered twice: {old.__module__} and {entry.__module__}')
            self._entries[key] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """All registered names, sorted; imports nothing."""
        return sorted({*self._entries, *self._index()})

    def get(self, name: str) -> Callable:
        """The class or function of that name. Raises OptionError with the nearest known names."""
        if name not in self._entries:
            module = self._index().get(name)
            if module is None:
                raise OptionError(
                    f'{name!r} is not a known {self.kind} (see basicsr/{self.folder}/); '
                    f'{suggestion(name, self.names())}',
                    ('type',),
                )
            importlib.import_module(module)
        return self._entries[name]

    def check(self, section: dict, given: Collection[str] = ()) -> None:
        """Raise OptionError unless `build(section, **given)` would find its entry and all arguments in order."""
        entry, options = self._split(section)
        check_arguments(entry, options, given)

    def build(self, section: dict, **given: Any) -> Any:
        """Call the entry named by `section['type']` with the other options; `given` are arguments no file sets.

        Raises OptionError for options that do not fit it or one another, which a constructor says by ValueError.
        """
        entry, options = self._split(section)
        check_arguments(entry, options, given.keys())
        try:
            return entry(**options, **given)
        except UserError:
            raise
        except ValueError as error:
            raise OptionError(f'{error} ({entry.__name__})') from error

    def _split(self, section: dict) -> tuple[Callable, dict]:
        if not isinstance(section, dict) or not isinstance(section.get('type'), str):
            misspelt = difflib.get_close_matches('type', map(str, section), n=1) if isinstance(section, dict) else []
            reject_unknown(
                [key for key in misspelt if key != 'type'], ['type'], f'option of a section for a {self.kind}'
            )
            raise OptionError(
                f"option 'type' is missing: the name of the {self.kind}; {suggestion('', self.names())}", ('type',)
            )
        return self.get(section['type']), {k: v for k, v in section.items() if k != 'type'}

    def _index(self) -> dict[str, str]:
        if self._modules is None:
            self._modules = {}
            for path in sorted((ROOT / self.folder).glob('*.py')):
                for name in self._registered_names(path):
                    self._modules[name] = f'basicsr.{self.folder.replace("/", ".")}.{path.stem}'
        return self._modules

    def _registered_names(self, path: Path) -> Iterable[str]:
        text = path.read_text(encoding='utf-8')
        if self.variable not in text:
            return
        for node in ast.parse(text).body:
            for decorator in getattr(node, 'decorator_list', ()):
                if ast.unparse(decorator).startswith(f'{self.variable}.register('):
                    arguments = decorator.args
                    yield ast.literal_eval(arguments[0]) if arguments else node.name


ARCH_REGISTRY = Registry('arch', 'archs')
DATASET_REGISTRY = Registry('dataset', 'data')
DEGRADATION_REGISTRY = Registry('degradation', 'data/degradations')
LOSS_REGISTRY = Registry('loss', 'losses')
METRIC_REGISTRY = Registry('metric', 'metrics')
MODEL_REGISTRY = Registry('model', 'models')
SCHEDULER_REGISTRY = Registry('scheduler', 'models')
