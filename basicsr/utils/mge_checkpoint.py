"""Checkpoints of MegEngine: pickles of NumPy arrays, read without MegEngine and without running anything in them.

The reader is an interpreter of its own for the few opcodes that such a file has (shared/spec/d2c.md 5.2). It never
imports or calls what a file names: a name is looked up in a table of stand-ins, which make arrays and plain values.
"""

import logging
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

logger = logging.getLogger(__name__)

LARGEST = 2**30  # bytes of a file; the published networks have 25 MB
MOST_OPCODES = 10**6  # a network of five hundred arrays has twenty thousand
TORCH_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first pickle of torch.save's old format
DTYPES = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


class Refused(ValueError):
    """The file holds what no checkpoint holds."""


class Damaged(ValueError):
    """The file is not a whole pickle."""


def is_plain_pickle(start: bytes) -> bool:
    """Whether a file that starts like this is a pickle of its own, not one of torch's formats."""
    return len(start) > 1 and start[0] == 0x80 and start[1] <= 5 and not start.startswith(TORCH_MAGIC)


def read_pickle(path: Path) -> dict:
    """The dictionary in a file that `megengine.save` or `pickle.dump` wrote; arrays become tensors of their shape.

    Raises Refused or Damaged with the reason. Logs the names of entries that are no dictionaries.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise Refused(f'{size} bytes are more than a checkpoint of this kind has')
    content = loads(path.read_bytes())
    if isinstance(content, Mapping):
        others = [str(name)[:60] for name, value in content.items() if not isinstance(value, Mapping)]
        if others and len(others) < len(content):
            logger.info('%s also holds, and this project does not use: %s', path, ', '.join(others[:10]))
    return content


def loads(data: bytes) -> Any:
    """The value that a pickle of protocol 2 to 5 describes. Raises Refused or Damaged with the reason."""
    machine = Machine(len(data))
    count = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            count += 1
            if count > MOST_OPCODES:
                raise Refused(f'more than {MOST_OPCODES} opcodes')
            if (opcode.name == 'PROTO') != (position == 0):
                raise Refused('not one pickle of protocol 2 to 5')
            machine.run(opcode.name, argument)
    except (Refused, Damaged):
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error) as error:
        raise Damaged(' '.join(str(error).split())[:160] or type(error).__name__) from None
    if not machine.done:
        raise Damaged('the pickle has no end')
    try:
        return tensors_in(machine.result, Budget(len(data)))
    except RecursionError:
        raise Refused('containers in containers without end') from None


class Callee(NamedTuple):
    """What a global of a file stands for: a name, and the maker that its arguments are given to, if it has one."""

    name: str
    make: Callable[..., Any] | None


class Budget:
    """How many bytes a file may still expand to: no more than its own size, or it repeats itself without end."""

    def __init__(self, size: int):
        self.left = size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Refused('it would expand to more than its size')


class DType:
    """numpy.dtype: (code, align, copy); its state holds the byte order."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or code.lstrip('<>=|') not in DTYPES:
            raise Refused(f'an array of type {str(code)[:40]!r}')
        self.code, self.order = code.lstrip('<>=|'), code[0] if code[0] in '<>=|' else '='

    def build(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ('<', '>', '=', '|'):
            raise Refused('a type of arrays with fields')
        self.order = order

    def exact(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array:
    """numpy.ndarray: made empty; its state is (version, shape, dtype, fortran order, bytes)."""

    def __init__(self) -> None:
        self.content: tuple | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused('an array whose state is not that of numpy')
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, 'F' if fortran else 'C')

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> 'Array':
        known = isinstance(shape, tuple) and all(type(side) is int and 0 <= side < 2**40 for side in shape)
        if not isinstance(data, bytes | bytearray) or not isinstance(dtype, DType) or not known or order not in 'CF':
            raise Refused('an array that is not made of bytes')
        if len(shape) > 16:
            raise Refused(f'an array with {len(shape)} axes')
        self.content = data, dtype, shape, order
        return self

    def tensor(self, budget: Budget) -> torch.Tensor:
        if self.content is None:
            raise Damaged('an array without content')
        data, dtype, shape, order = self.content
        exact = dtype.exact()
        if len(data) != math.prod(shape) * exact.itemsize:
            raise Damaged(f'an array of shape {shape} in {len(data)} bytes')
        budget.take(len(data))
        values = np.ndarray(shape, exact, data, order=order)
        return torch.from_numpy(np.array(values, exact.newbyteorder('='), order='C'))


class Holder:
    """megengine.tensor.Tensor and Parameter: made from (array, dtype, device); very old files have it in the state."""

    def __init__(self, *arguments: Any):
        self.array = arguments[0] if arguments else None

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused('a tensor of megengine with an unknown state')
        self.array = state.get('data', self.array)


class Machine:
    """The stack of a pickle. What it makes is None, bool, numbers, text, bytes, containers and the stand-ins above."""

    def __init__(self, size: int):
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = Budget(size)  # of bytes that are written as text
        self.result, self.done = None, False
        numpy_entries = {
            'multiarray._reconstruct': self._reconstruct,
            'multiarray.scalar': self._scalar,
            'numeric._frombuffer': lambda data, dtype, shape, order: Array().fill(data, dtype, shape, order),
        }
        self.table = {
            'collections.OrderedDict': self._ordered_dict,
            'numpy.ndarray': None,
            'numpy.dtype': DType,
            '_codecs.encode': self._encoded,
            'megengine.tensor.Tensor': Holder,
            'megengine.tensor.Parameter': Holder,
            **{f'numpy.{core}.{name}': make for name, make in numpy_entries.items() for core in ('core', '_core')},
        }

    def run(self, name: str, argument: Any) -> None:
        """One opcode. Raises Refused for those that no checkpoint has."""
        if name in PUSHED:
            self.stack.append(argument)
        elif name in MADE:
            self.stack.append(MADE[name]())
        elif name == 'STOP':
            (self.result,), self.done = self.stack, True
        else:
            action = getattr(self, f'_{name.lower()}', None)
            if name not in ACTIONS or action is None:
                raise Refused(f'the opcode {name}')
            action(argument)

    def _proto(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise Refused(f'pickle protocol {version}')

    def _frame(self, _: int) -> None:
        """The length of what follows, which the end of the file says as well."""

    def _mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _since_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _long_binput = _binput

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binget = _binget

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: None) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _: None) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[self._key(key)] = value

    def _setitems(self, _: None) -> None:
        items = self._since_mark()
        self._top(dict).update(zip(map(self._key, items[::2]), items[1::2], strict=True))

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f'an item of what is no {kind.__name__}')
        return self.stack[-1]

    @staticmethod
    def _key(key: Any) -> Any:
        if not isinstance(key, str | int | bytes):
            raise Refused(f'a key that is a {type(key).__name__}')
        return key

    def _global(self, names: str) -> None:
        self._find(*names.split(' ', 1))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._find(module, name)

    def _find(self, module: Any, name: Any) -> None:
        full = f'{module}.{name}' if isinstance(module, str) and isinstance(name, str) else 'a global without a name'
        if full not in self.table:
            raise Refused(' '.join(full.split())[:120] or 'a global without a name')
        self.stack.append(Callee(full, self.table[full]))

    def _reduce(self, _: None) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        if not isinstance(callee, Callee) or callee.make is None or type(arguments) is not tuple:
            raise Refused('a call of what is no function')
        try:
            self.stack.append(callee.make(*arguments))
        except TypeError:
            raise Refused(f'{callee.name} with unknown arguments') from None

    _newobj = _reduce

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], DType | Array | Holder):
            raise Refused(f'a state for a {type(self.stack[-1]).__name__}')
        self.stack[-1].build(state)

    @staticmethod
    def _ordered_dict() -> dict:
        return {}

    @staticmethod
    def _reconstruct(kind: Any, *_: Any) -> Array:
        if not isinstance(kind, Callee) or kind.name != 'numpy.ndarray':
            raise Refused('a subclass of arrays')
        return Array()

    def _scalar(self, dtype: Any, data: Any) -> float | int | bool:
        if not isinstance(dtype, DType) or not isinstance(data, bytes):
            raise Refused('a number that is not made of bytes')
        return np.frombuffer(data, dtype.exact(), count=1)[0].item()

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != 'latin1':
            raise Refused('_codecs.encode of anything but latin1')
        self.budget.take(len(text))
        return text.encode('latin1')


PUSHED = {
    'BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8',
    'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8',
}  # fmt: skip
OPEN = object()  # in place of a container whose items are being converted
MADE = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_DICT': dict,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
}
ACTIONS = {
    'PROTO', 'FRAME', 'MARK', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET', 'TUPLE', 'TUPLE1', 'TUPLE2',
    'TUPLE3', 'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD',
}  # fmt: skip


def tensors_in(value: Any, budget: Budget) -> Any:
    """The value with its arrays as tensors; what occurs twice is converted once."""
    made: dict[int, Any] = {}

    def convert(part: Any) -> Any:
        if isinstance(part, Callee | DType):
            raise Refused('a function or a type in place of a value')
        if not isinstance(part, Array | Holder | dict | list | tuple):
            return part
        if id(part) not in made:
            made[id(part)] = OPEN
            made[id(part)] = build(part)
        if made[id(part)] is OPEN:
            raise Refused('a container that contains itself')
        return made[id(part)]

    def build(part: Any) -> Any:
        if isinstance(part, Holder):
            return convert(part.array)
        if isinstance(part, Array):
            return part.tensor(budget)
        if isinstance(part, dict):
            return {name: convert(item) for name, item in part.items()}
        return type(part)(map(convert, part))

    return convert(value)
