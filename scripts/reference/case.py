"""One reference case: what was built, its inputs and published outputs, and weights made from names and shapes."""

import fnmatch
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A case's JSON (`spec`) and the arrays of its NPZ, which is absent for cases that record a structure only."""

    spec: dict
    arrays: dict[str, np.ndarray]
    folder: Path = Path()  # where the files lie that the JSON names

    @property
    def name(self) -> str:
        """System and case, as in 'core/color'."""
        return f'{self.spec["system"]}/{self.spec["case"]}'

    @property
    def args(self) -> dict:
        """The arguments that the published code was called with."""
        return self.spec.get('args') or {}

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs by name: tensors for those made by `image`, stored arrays, or what the JSON itself says.

        A name with a star stands for all stored arrays that it matches.
        """
        listed, found = self.spec.get('inputs'), {}
        for pattern, how in listed.items() if isinstance(listed, dict) else ():
            names = fnmatch.filter(self.arrays, pattern) if '*' in pattern else [pattern]
            found |= {name: self._input(name, how) for name in names}
        return found

    @property
    def outputs(self) -> list[str]:
        """Names of the published outputs that are stored."""
        return [name for name in self.arrays if name not in self.inputs and not name.startswith('state:')]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The filled tensor of every entry of the published layout, without the exceptions that the JSON names."""
        return {name: filled(name, shape) for name, shape in self.spec['layout'].items()}

    def fill(self, net: nn.Module) -> nn.Module:
        """Load the case's weights into `net`, names and shapes matched strictly; integer buffers keep their values."""
        own = net.state_dict()
        kept = {name for name, value in own.items() if not value.is_floating_point()}
        state = {name: own[name] if name in kept else value for name, value in self.weights.items()}
        for name, value in self.spec.get('overrides', {}).items():
            state[name] = torch.full_like(state[name], value)
        for name in kept & self.weights.keys():
            if list(own[name].shape) != self.spec['layout'][name]:
                raise ValueError(f'{name} is {list(own[name].shape)} here and {self.spec["layout"][name]} as published')
        net.load_state_dict(state, strict=True)
        return net

    def _input(self, name: str, how: Any) -> Any:
        if how == 'npz':
            return self.arrays[name]
        return image(*how['image']) if isinstance(how, dict) and 'image' in how else how


def load(path: str | Path) -> Case:
    """The case whose JSON is at `path`; its NPZ lies beside it, where iter's inputs are called 'in:NAME'."""
    path = Path(path)
    stored = path.with_suffix('.npz')
    arrays = {name.removeprefix('in:'): value for name, value in np.load(stored).items()} if stored.exists() else {}
    return Case(json.loads(path.read_text(encoding='utf-8')), arrays, path.parent)


def filled(name: str, shape: list[int] | tuple[int, ...]) -> Tensor:
    """The float32 weights of the state-dict entry `name`: a function of the name and the shape alone.

    Standard normal noise seeded by the CRC-32 of the name; scaled by 1/sqrt(fan in) for two axes or more, around 1
    for norm weights and running variances, by 0.1 for everything else.
    """
    # The legacy generator's stream never changes, which is what makes the weights reproducible.
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    leaf = name.rpartition('.')[2]
    if leaf == 'running_var':
        value = 1 + 0.1 * np.abs(noise)
    elif leaf == 'weight' and len(shape) == 1:
        value = 1 + 0.1 * noise
    elif len(shape) >= 2:
        value = noise / np.sqrt(max(1, np.prod(shape[1:])))
    else:
        value = 0.1 * noise
    return torch.tensor(np.asarray(value, dtype=np.float32))


def image(seed: int, n: int, c: int, h: int, w: int) -> Tensor:
    """A smooth random image batch (n, c, h, w) in [0, 1]: six plane waves per channel."""
    state = np.random.RandomState(seed)
    y, x = np.mgrid[:h, :w]
    waves = np.zeros((n, c, h, w))
    for channel in waves.reshape(-1, h, w):
        for _ in range(6):
            fy, fx, phase = state.uniform(-0.9, 0.9), state.uniform(-0.9, 0.9), state.uniform(0, 6.283)
            channel += np.sin(fy * y + fx * x + phase)
    waves = (waves - waves.min()) / (waves.max() - waves.min())
    return torch.from_numpy(waves.astype(np.float32))
