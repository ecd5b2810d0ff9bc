"""State dicts of published files in which a module appears under several names."""

import torch
from torch import Tensor


def without_copies(state: dict[str, Tensor], copies: dict[str, str]) -> dict[str, Tensor]:
    """A state without the entries whose names contain a key of `copies`; its value there gives the name of the other.

    Raises ValueError if an entry is no copy of the other, as of a file of something else.
    """
    kept = {}
    for name, value in state.items():
        part = next((part for part in copies if part in f'.{name}'), None)
        if part is None:
            kept[name] = value
            continue
        original = f'.{name}'.replace(part, copies[part], 1).removeprefix('.')
        if original not in state or not torch.equal(value, state[original]):
            raise ValueError(f'{name} should be a copy of {original}')
    return kept


def with_copies(state: dict[str, Tensor], copies: dict[str, str]) -> dict[str, Tensor]:
    """The inverse of without_copies; copies follow what they repeat."""
    whole, waiting = {}, {}
    for name, value in state.items():
        part = next((part for part, original in copies.items() if original in f'.{name}'), None)
        if part is None:
            whole |= waiting
            waiting = {}
        else:
            waiting[f'.{name}'.replace(copies[part], part, 1).removeprefix('.')] = value.clone()
        whole[name] = value
    return whole | waiting
