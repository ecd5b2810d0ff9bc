"""Sections inside the options of a component: said once, for the programs, the JSON schema and the option reference.

    checked_refinement = OptionsOf(Refinement, 'refinement')                     # what the section describes
    def __init__(self, refinement: nested(checked_refinement) | None = None):    # an argument that is such a section

A checker is called with a section and gives it back as it is, or raises OptionError with the path of what is wrong.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, ValidationInfo

from basicsr.utils.registry import OptionError, Registry, check_arguments, reject_unknown, suggestion


@dataclass(frozen=True, eq=False)
class OptionsOf:
    """A section of the arguments of `entry`.

    Args:
        what: whose options they are, in messages.
        given: arguments that no option file sets.
        tried: whether to make one, so that what its constructor says of several options counts too.
    """

    entry: Callable
    what: str
    given: Collection[str] = ()
    tried: bool = False

    def __call__(self, section: dict) -> dict:
        check_arguments(self.entry, section, self.given, f'option of {self.what}')
        if self.tried:
            self.entry(**section)
        return section


@dataclass(frozen=True, eq=False)
class OptionsByType:
    """A section whose `type` names one of several constructors, and whose other keys are its arguments."""

    kinds: Mapping[str, Callable]
    what: str
    given: Collection[str] = ()

    def __call__(self, section: dict) -> dict:
        if 'type' not in section:
            reject_unknown(section, ['type'], f'option of {self.what}')
        kind, options = section.get('type'), {key: value for key, value in section.items() if key != 'type'}
        if not isinstance(kind, str) or kind not in self.kinds:
            raise OptionError(f'{kind!r} is not a known {self.what}; {suggestion(str(kind), self.kinds)}', ('type',))
        check_arguments(self.kinds[kind], options, self.given, f'option of {self.what} {kind}')
        return section


@dataclass(frozen=True, eq=False)
class OptionsByOption:
    """A section of the arguments of the constructor that another option, which stands before it, names."""

    option: str
    kinds: Mapping[str, Callable]
    given: Collection[str] = ()

    def __call__(self, section: dict, info: ValidationInfo) -> dict:
        kind = info.data.get(self.option)
        if kind in self.kinds:  # otherwise the fault is that option's
            check_arguments(self.kinds[kind], section, self.given, f'option of {self.option} {kind}')
        return section


@dataclass(frozen=True, eq=False)
class ComponentOf:
    """A section for a registered component, as `Registry.build` takes it.

    Args:
        given: arguments that no option file sets.
        misplaced: why a component of the registry cannot be named here; '' for one that can.
    """

    registry: Registry
    given: Collection[str] = ()
    misplaced: Callable[[Callable], str] = lambda entry: ''

    def __call__(self, section: dict) -> dict:
        if isinstance(section.get('type'), str):
            reason = self.misplaced(self.registry.get(section['type']))
            if reason:
                raise OptionError(reason, ('type',))
        self.registry.check(section, self.given)
        return section


Checker = OptionsOf | OptionsByType | OptionsByOption | ComponentOf


def nested(checker: Checker) -> Any:
    """The annotation of an argument that is a section which `checker` checks."""
    return Annotated[dict, AfterValidator(checker)]


def checker_of(annotation: Any) -> Checker | None:
    """The checker of an argument's annotation, which may allow None too; None if there is none."""
    for part in get_args(annotation):
        found = part.func if isinstance(part, AfterValidator) else checker_of(part)
        if isinstance(found, Checker):
            return found
    return None
