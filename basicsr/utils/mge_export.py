"""Checkpoints as MegEngine's users keep them: a pickle of dictionaries of NumPy arrays (shared/spec/d2c.md 5.1).

Written opcode by opcode: Python's own pickle of an array names modules of the NumPy that runs here, which an older
NumPy, such as the one that MegEngine needs, does not have.
"""

import pickle
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def megengine_pickle(content: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """The file that holds state dicts by their names; tensors become float32 arrays of their shape, in their order."""
    return b''.join([pickle.PROTO, b'\x03', *_dictionary((k, _state(v)) for k, v in content.items()), pickle.STOP])


def _state(state: Mapping[str, Tensor]) -> Iterator[bytes]:
    yield _named('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    yield from _items((name, _array(value)) for name, value in state.items())


def _dictionary(items: Iterator[tuple[str, Iterator[bytes]]]) -> Iterator[bytes]:
    yield pickle.EMPTY_DICT
    yield from _items(items)


def _items(items: Iterator[tuple[str, Iterator[bytes]]]) -> Iterator[bytes]:
    yield pickle.MARK
    for name, value in items:
        yield _text(name)
        yield from value
    yield pickle.SETITEMS


def _array(value: Tensor) -> Iterator[bytes]:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b'b'), then its state: version, shape, type, order, bytes."""
    made_empty = _named('numpy', 'ndarray') + _number(0) + pickle.TUPLE1 + _data(b'b') + pickle.TUPLE3
    yield _named('numpy.core.multiarray', '_reconstruct') + made_empty + pickle.REDUCE
    yield pickle.MARK + _number(1)
    yield pickle.MARK + b''.join(map(_number, value.shape)) + pickle.TUPLE
    yield _named('numpy', 'dtype') + _text('f4') + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + _number(3) + _text('<') + 3 * pickle.NONE + 2 * _number(-1) + _number(0)
    yield pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE
    yield _data(value.detach().to('cpu', torch.float32).contiguous().numpy().astype('<f4').tobytes())
    yield pickle.TUPLE + pickle.BUILD


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack('<I', len(text.encode())) + text.encode()


def _data(data: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack('<I', len(data)) + data


def _number(number: int) -> bytes:
    return pickle.BININT + struct.pack('<i', number)
