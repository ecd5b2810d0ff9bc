"""MegEngine's pickles: read without running anything, whatever they hold."""

import codecs
import copyreg
import io
import logging
import os
import pickle
import random
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import read, refused
from d2c_files import KEYS, TINY, equal, published

from basicsr.utils import mge_checkpoint
from basicsr.utils.checkpoint import CheckpointError, network_state, read_checkpoint
from basicsr.utils.mge_checkpoint import Damaged, Refused, loads

PROTOCOLS = (2, 3, 4, 5)


# ---- reading


def test_the_file_that_megengine_wrote_is_read():
    equal(read_checkpoint(TINY), published())


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_all_protocols_of_both_numpys_give_the_same(protocol):
    data = pickle.dumps(published(), protocol)
    equal(loads(data), published())
    if protocol < 4:  # names are lines there, which may get longer
        equal(loads(data.replace(b'numpy._core.', b'numpy.core.')), published())


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_of_every_kind_and_numbers_of_numpy_are_read(protocol):
    arrays = {
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'big': np.arange(5, dtype='>f4'),
        'bool': np.array([True, False]),
        'scalar array': np.array(3.5, np.float16),
        **({} if protocol == 2 else {'empty': np.zeros((0, 4), np.int64)}),  # as a call of bytes(), in protocol 2
        **{code: np.arange(4).astype(code).reshape(2, 1, 2) for code in ('i1', 'i2', 'i4', 'u1', 'u2', 'f8')},
    }
    content = {'arrays': arrays, 'psnr': np.float32(31.5), 'epoch': np.int64(7), 'note': 'é', 'list': [1, (2.5, None)]}
    found = loads(pickle.dumps(content, protocol))
    for name, array in arrays.items():
        assert found['arrays'][name].shape == array.shape and found['arrays'][name].is_contiguous()
        np.testing.assert_array_equal(found['arrays'][name].numpy(), array)
    assert (found['psnr'], found['epoch'], found['note'], found['list']) == (31.5, 7, 'é', [1, (2.5, None)])


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_tensors_of_megengine_are_read_in_place_of_arrays(protocol, monkeypatch):
    class Tensor:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __reduce__(self):
            return type(self), self.arguments[:3], self.arguments[3]

    Tensor.__module__, Tensor.__qualname__ = 'megengine.tensor', 'Tensor'
    module = types.ModuleType('megengine.tensor')
    module.Tensor = Tensor
    monkeypatch.setitem(sys.modules, 'megengine', types.ModuleType('megengine'))
    monkeypatch.setitem(sys.modules, 'megengine.tensor', module)
    old, new = np.arange(3.0), np.arange(4.0)
    content = {'new': Tensor(new, np.float32, 'xpux', {}), 'old': Tensor(None, None, 'cpu0', {'data': old})}
    content['new'] = Tensor(new, np.dtype('f4'), 'xpux', {'q': None})
    found = loads(pickle.dumps(content, protocol))
    np.testing.assert_array_equal(found['new'].numpy(), new)
    np.testing.assert_array_equal(found['old'].numpy(), old)


def test_entries_that_are_not_networks_are_accepted_and_reported(tmp_path, caplog):
    path = tmp_path / 'checkpoint.pkl'
    path.write_bytes(pickle.dumps({'psnr': np.float64(30), **published()}))
    with caplog.at_level(logging.INFO, 'basicsr'):
        assert read_checkpoint(path)['psnr'] == 30
    assert f'{path} also holds, and this project does not use: psnr' in caplog.text


@pytest.mark.parametrize('key', KEYS)
def test_a_missing_network_is_named(key, tmp_path):
    content = published()
    del content[key]
    path = tmp_path / 'checkpoint.pkl'
    path.write_bytes(pickle.dumps(content))
    message = refused(network_state, read_checkpoint(path), key, str(path))
    (other,) = content
    assert f"no network under '{key}'; the file has: {other}" in message


def test_truncated_and_damaged_files_end_in_one_line_whatever_is_left_of_them(tmp_path):
    path, rng = tmp_path / 'checkpoint.pkl', random.Random(0)
    content = {k: dict(list(state.items())[:6]) for k, state in published().items()}
    whole = pickle.dumps(content, 4)
    for size in [*range(30), *(rng.randrange(len(whole)) for _ in range(60)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        message = read(path)
        assert f'({size} bytes)' in message or 'refused' in message
    for protocol in PROTOCOLS:
        whole = pickle.dumps(content, protocol)
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data)
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                assert '\n' not in str(error)


# ---- hostile files


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def harm(canary: Path) -> list[Calls]:
    """Each makes the folder `canary` when a common unpickler reads it."""
    code = f'__import__("os").mkdir({str(canary)!r})'
    return [
        Calls(os.system, f'mkdir {canary}'),
        Calls(os.mkdir, str(canary)),
        Calls(eval, code),
        Calls(exec, code),
        Calls(getattr, os, 'mkdir'),
        Calls(codecs.encode, str(canary), 'unicode_escape'),
        Calls(io.FileIO, str(canary), 'w'),
        Calls(np.load, str(canary)),
        Calls(OrderedDict, [(str(canary), 1)]),
        Calls(np.ndarray, (2,)),
    ]


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('index', range(10))
def test_a_hostile_pickle_executes_nothing(protocol, index, tmp_path):
    canary, path = tmp_path / 'canary', tmp_path / 'checkpoint.pkl'
    call_ = harm(canary)[index]
    try:
        data = pickle.dumps({**published(), 'x': call_}, protocol)
    except (TypeError, pickle.PicklingError):  # a module is no argument
        data = pickle.dumps({**published(), 'x': Calls(getattr, 'os', 'mkdir')}, protocol)
    path.write_bytes(data)
    message = read(path)
    assert 'refused' in message
    if protocol >= 2:
        assert 'nothing was executed' in message
        allowed = call_.function in (codecs.encode, OrderedDict, np.ndarray)
        assert allowed or f'.{call_.function.__name__})' in message
    assert not canary.exists()


def test_the_canary_dies_in_a_common_unpickler(tmp_path):
    canary = tmp_path / 'canary'
    pickle.loads(pickle.dumps(harm(canary)[1]))
    assert canary.exists()


def named(name: str) -> bytes:
    module, _, leaf = name.rpartition('.')
    return pickle.GLOBAL + f'{module}\n{leaf}\n'.encode()


DTYPE = named('numpy.dtype') + b'X\x02\x00\x00\x00f4' + b'\x89\x88\x87R'
RECONSTRUCT = named('numpy.core.multiarray._reconstruct')
EMPTY_ARRAY = RECONSTRUCT + named('numpy.ndarray') + b'K\x00\x85C\x01b\x87R'
BAD_ARGUMENTS = {
    'an array of another class': RECONSTRUCT + named('numpy.dtype') + b'K\x00\x85C\x01b\x87R',
    'an array of nothing': RECONSTRUCT + b')R',
    'a type of objects': named('numpy.dtype') + b'X\x02\x00\x00\x00O8\x89\x88\x87R',
    'a type that is text of python': named('numpy.dtype') + b'X\x08\x00\x00\x00f4,(99,)\x85R',
    'a type with fields': DTYPE + b'(K\x03X\x01\x00\x00\x00|N}K\x01tb',
    'a number of no bytes': named('numpy.core.multiarray.scalar') + DTYPE + b'K\x05\x86R',
    'a number of too few bytes': named('numpy.core.multiarray.scalar') + DTYPE + b'C\x01x\x86R',
    'an array of objects': EMPTY_ARRAY + b'(K\x01K\x01\x85' + DTYPE + b'\x89](K\x05eetb',
    'an array of text': EMPTY_ARRAY + b'(K\x01K\x01\x85' + DTYPE + b'\x89X\x04\x00\x00\x00abcdtb',
    'an array with a negative side': EMPTY_ARRAY + b'(K\x01J\xff\xff\xff\xff\x85' + DTYPE + b'\x89C\x04abcdtb',
    'an array larger than its bytes': EMPTY_ARRAY + b'(K\x01J\xff\xff\xff\x7f\x85' + DTYPE + b'\x89C\x04abcdtb',
    'an array without its state': EMPTY_ARRAY,
    'a state of a dictionary': named('collections.OrderedDict') + b')R}X\x05\x00\x00\x00itemsK\x01sb',
    'a state of text': b'X\x01\x00\x00\x00a}b',
    'a call of text': b'X\x01\x00\x00\x00a)R',
    'a call with a list': named('collections.OrderedDict') + b']R',
    'an object without a call': named('os.system') + b')\x81',
    'a function as a value': named('collections.OrderedDict'),
    'an item of a tuple': b')K\x01a',
    'an unhashable key': b'}]K\x01s',
}


@pytest.mark.parametrize('name', BAD_ARGUMENTS)
def test_allowed_names_with_other_arguments_are_refused(name):
    with pytest.raises((Refused, Damaged)):
        loads(b'\x80\x03' + BAD_ARGUMENTS[name] + b'.')


@pytest.mark.parametrize(
    ('what', 'data'),
    [
        ('BINPERSID', b'X\x01\x00\x00\x00aQ'),
        ('PERSID', b'Pa\n'),
        ('EXT1', b'\x82\x01'),
        ('EXT2', b'\x83\x01\x00'),
        ('EXT4', b'\x84\x01\x00\x00\x00'),
        ('INST', b'(ios\nsystem\n'),
        ('OBJ', b'(cos\nsystem\no'),
        ('NEXT_BUFFER', b'\x97'),
        ('STRING', b"S'a'\n"),
    ],
)
def test_what_no_checkpoint_has_is_refused_by_its_name(what, data):
    with pytest.raises(Refused, match=what if what != 'OBJ' else 'os.system'):
        loads(b'\x80\x05' + data + b'.')


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_registered_extensions_and_persistent_ids_are_refused(protocol, tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return 'x' if isinstance(value, bytes) else None

    file = io.BytesIO()
    Pickler(file, protocol).dump({'x': b'y'})
    with pytest.raises(Refused, match='BINPERSID'):
        loads(file.getvalue())
    copyreg.add_extension('posix', 'mkdir', 0x70)
    try:
        data = pickle.dumps(Calls(os.mkdir, str(tmp_path / 'canary')), protocol)
        with pytest.raises(Refused, match='EXT1'):
            loads(data)
    finally:
        copyreg.remove_extension('posix', 'mkdir', 0x70)
    assert not (tmp_path / 'canary').exists()


MANY_TEXTS = (
    b'X' + struct.pack('<I', 10_000) + b'a' * 10_000 + b'q\x00' + b'X\x06\x00\x00\x00latin1q\x01',
    (named('_codecs.encode') + b'h\x00h\x01\x86R') * 50,
)
MANY_ARRAYS = (
    b'B' + struct.pack('<I', 4000) + bytes(4000) + b'q\x00',
    (EMPTY_ARRAY + b'(K\x01M\xe8\x03\x85' + DTYPE + b'\x89h\x00tb') * 2000,
)
BOMBS = {
    'a memo of gigabytes': b'}r\xff\xff\xff\x7f',
    'bytes of exabytes': b'\x96' + struct.pack('<Q', 2**60) + b'a',
    'text of exabytes': b'\x8d' + struct.pack('<Q', 2**60) + b'a',
    'one text encoded again and again': b'(' + b''.join(MANY_TEXTS) + b't',
    'one text as many arrays': b'(' + b''.join(MANY_ARRAYS) + b't',
    'tuples of tuples': b')q\x00' + b''.join(b'(' + 2 * bytes([104, i]) + b'tq' + bytes([i + 1]) for i in range(200)),
    'a list in itself': b']q\x00(h\x00h\x00h\x00e',
    'lists in lists': b']' * 100_000 + b'a' * 99_999,
}


@pytest.mark.parametrize('name', BOMBS)
def test_a_small_file_cannot_take_much_memory_or_time(name):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        loads(b'\x80\x05' + BOMBS[name] + b'.')
    except (Refused, Damaged) as error:
        assert '\n' not in str(error)
    else:
        assert name in ('a memo of gigabytes', 'tuples of tuples')  # one entry; each tuple converted once
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_files_of_too_many_bytes_or_opcodes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / 'checkpoint.pkl'
    path.write_bytes(TINY.read_bytes())
    monkeypatch.setattr(mge_checkpoint, 'MOST_OPCODES', 1000)
    assert 'more than 1000 opcodes' in read(path)
    monkeypatch.setattr(mge_checkpoint, 'LARGEST', 1000)
    assert 'are more than a checkpoint of this kind has' in read(path)
