"""How a case is judged: the checker that its JSON asks for computes the outputs, each is compared within tolerance."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.case import Case

# A checker yields (output name, ours) for the stored outputs and (label, ours, published) for what the JSON holds.
Checker = Callable[[Case], Iterable[tuple]]

_checkers: list[tuple[str, str, tuple[str, ...], Checker]] = []


class Unsupported(Exception):
    """A case that this project cannot run (yet); counted as failed."""


class Note(str):
    """What a checker wants printed beside its verdict; yielded among the outputs."""


@dataclass(frozen=True)
class Verdict:
    """`error` is the worst difference in units of the case's tolerance: 1 is just allowed. `note` says where."""

    status: str
    error: float = math.nan
    note: str = ''


@dataclass(frozen=True)
class Within:
    """An output with a tolerance of its own, for cases whose JSON gives several."""

    value: Any
    atol: float = 0
    rtol: float = 0


def checks(system: str, text: str, names: tuple[str, ...] = ('',)) -> Callable[[Checker], Checker]:
    """Decorator: the checker of a system's cases whose network or function contains `text`; the longest text wins, and
    of equal ones that for names.

    Args:
        names: how the names of its cases begin, where others have the same text.
    """

    def add(checker: Checker) -> Checker:
        _checkers.append((system, text, names, checker))
        return checker

    return add


def judge(case: Case) -> Verdict:
    """Run a case; whatever goes wrong in it is a verdict, not an exception."""
    asked = f'{case.spec.get("network", "")} {case.spec.get("function", "")}'
    fitting = [
        ((len(text), names != ('',)), checker)
        for system, text, names, checker in _checkers
        if system == case.spec['system'] and text in asked and case.spec['case'].startswith(names)
    ]
    checker = max(fitting, key=lambda entry: entry[0], default=(None, None))[1]
    if checker is None:
        return Verdict('unsupported', note=f'no checker for: {asked.strip()}')
    torch.manual_seed(0)
    try:
        return _compared(case, checker)
    except Unsupported as error:
        return Verdict('unsupported', note=str(error))
    except Exception as error:  # one broken case must not hide the others
        return Verdict('FAIL', note=f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}')


def _compared(case: Case, checker: Checker) -> Verdict:
    worst, fault, seen, notes = 0.0, '', set(), []
    for item in checker(case):
        if isinstance(item, Note):
            notes.append(item)
            continue
        name, ours, *stored = item
        if not stored and name not in case.arrays:
            continue  # an output that this case does not record
        published = stored[0] if stored else case.arrays[name]
        tolerance = case.spec.get('tolerance', {'atol': 0, 'rtol': 0})  # structures have none
        if isinstance(ours, Within):
            ours, tolerance = ours.value, {'atol': ours.atol, 'rtol': ours.rtol}
        error = error_in_tolerances(ours, published, tolerance)
        seen.add(name)
        if not error <= worst:
            worst, fault = error, f'at {name}{"" if _is_numeric(published) else f": {ours!r}"[:300]}'
    missed = [name for name in case.outputs if name not in seen and name != 'marker']
    if missed or not seen:
        return Verdict('FAIL', math.inf, f'not compared: {", ".join(missed) or "anything"}')
    return Verdict('pass', worst, '; '.join(notes)) if worst <= 1 else Verdict('FAIL', worst, fault)


def error_in_tolerances(ours: Any, published: Any, tolerance: dict[str, float]) -> float:
    """The largest |ours - published| / (atol + rtol * |published|): 0 if equal, infinite for another shape or kind."""
    if not _is_numeric(published):
        return 0.0 if type(ours) is type(published) and ours == published else math.inf
    ours, published = _array(ours), _array(published)
    if ours.shape != published.shape and not (ours.size == published.size == 1):
        return math.inf
    ours, published = ours.reshape(-1).astype(np.float64), published.reshape(-1).astype(np.float64)
    unequal = (ours != published) & ~(np.isnan(ours) & np.isnan(published))
    ours, published = ours[unequal], published[unequal]
    if not ours.size:
        return 0.0
    with np.errstate(invalid='ignore', divide='ignore'):
        errors = np.abs(ours - published) / (tolerance['atol'] + tolerance['rtol'] * np.abs(published))
    finite = np.isfinite(ours) & np.isfinite(published)
    return float(errors.max()) if finite.all() else math.inf


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor | float | int) and not isinstance(value, bool)


def closest(case: Case, name: str, candidates: Iterable[Any]) -> tuple[str, Any]:
    """The candidate that is nearest to the stored output, where the JSON does not say which argument it belongs to."""
    tolerance, published = case.spec['tolerance'], case.arrays[name]
    return name, min(candidates, key=lambda candidate: error_in_tolerances(candidate, published, tolerance))


def mostly(case: Case, name: str, ours: Any, share: float) -> tuple[str, Any]:
    """`ours` with its worst values, up to `share` of all, taken from the stored output: JPEG may flip those."""
    if name not in case.arrays:
        return name, ours
    published, ours = np.asarray(case.arrays[name], np.float64), np.array(_array(ours), np.float64)
    if ours.shape != published.shape:
        return name, ours
    tolerance = case.spec['tolerance']
    errors = np.abs(ours - published) - tolerance['rtol'] * np.abs(published)
    errors[np.isnan(ours)] = np.inf
    worst = np.argsort(-errors, axis=None)[: int(share * errors.size)]
    ours.flat[worst] = published.flat[worst]
    return name, ours


def tensors(case: Case, *names: str) -> Iterator[Tensor]:
    """The named inputs of a case as tensors."""
    for name in names:
        yield torch.as_tensor(case.inputs[name])


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
