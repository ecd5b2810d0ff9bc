"""A small network and what tests ask of its checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import nn

from basicsr.utils.checkpoint import CheckpointError, read_checkpoint


class Net(nn.Module):
    def __init__(self, width: int = 4, extra: bool = False):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.last = nn.Conv2d(width, 3, 3)
        if extra:
            self.extra = nn.Conv2d(3, 3, 1)


def state_of(net: nn.Module) -> dict:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def refused(action, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def read(path: Path) -> str:
    message = refused(read_checkpoint, path)
    assert str(path) in message
    return message


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if '.tmp' in path.name]
