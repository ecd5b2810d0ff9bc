"""Packed stores give the pixels that were packed, without a copy, or say what is wrong with them."""

import hashlib
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_lmdb, make_pairs, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from basicsr.data.degraded_image_dataset import DegradedImageDataset
from basicsr.data.packed import PackedStorage, read_index, write_packed
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.data.storage import FolderStorage, LmdbStorage, open_storage
from basicsr.utils.registry import OptionError, UserError

PACKED = {'type': 'packed'}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_store(path: Path, images: dict[str, np.ndarray]) -> PackedStorage:
    write_packed(path, ((name, np.atleast_3d(image), digest(b'')) for name, image in images.items()))
    return PackedStorage(str(path))


def packed_folder(folder: str) -> str:
    """A store of the images of a folder, beside it."""
    storage = open_storage(folder, {'type': 'disk'})
    make_store(Path(f'{folder}.packed'), {name: storage.pixels(name) for name in storage.names()})
    return f'{folder}.packed'


names = st.text(st.characters(exclude_characters='\0'), min_size=1)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


@settings(deadline=None)
@given(st.dictionaries(names, st.tuples(st.integers(0, 99), shapes), min_size=1, max_size=9))
def test_what_was_packed_is_read_back(tmp_path_factory, images):
    made = {name: np.atleast_3d(pixels(seed, *shape)) for name, (seed, shape) in images.items()}
    store = make_store(tmp_path_factory.mktemp('store') / 'x.packed', made)
    assert store.names() == list(made)
    for name, image in made.items():
        found = store.pixels(name)
        assert found.dtype == np.uint8 and found.shape == (*image.shape[:2], 3)
        assert np.array_equal(found, image.repeat(3 // image.shape[2], axis=2))
        assert store.size(name, thorough=True) == store.size(name, thorough=False) == image.shape[1::-1]


def test_the_files_are_what_the_format_says(tmp_path):
    images = {'b/ü 1.x.png': pixels(0, 3, 4), 'a': pixels(1, 2, 5, 1)}
    make_store(tmp_path / 'x.packed', images)
    assert sorted(path.name for path in (tmp_path / 'x.packed').iterdir()) == ['index.jsonl', 'pixels.bin']
    whole = b''.join(image.tobytes() for image in images.values())
    assert (tmp_path / 'x.packed/pixels.bin').read_bytes() == whole
    header, *lines = (tmp_path / 'x.packed/index.jsonl').read_bytes().splitlines(keepends=True)
    header = json.loads(header)
    assert header['format'] == 'basicsr packed 1' and header['images'] == 2 and header['bytes'] == len(whole)
    assert header['sha256'] == digest(b''.join(lines))
    rows = [dict(zip(header['columns'], json.loads(line), strict=True)) for line in lines]
    assert [row['name'] for row in rows] == list(images) and [row['offset'] for row in rows] == [0, 36]
    for row, image in zip(rows, images.values()):
        assert (row['height'], row['width'], row['channels']) == np.atleast_3d(image).shape
        assert row['pixels_sha256'] == digest(image.tobytes()) and row['source_sha256'] == digest(b'')


def test_an_image_is_a_view_that_cannot_be_written_to(tmp_path):
    store = make_store(tmp_path / 'x.packed', {'a': pixels(0, 6, 7), 'gray': pixels(1, 6, 7, 1)})
    first, again = store.pixels('a'), store.pixels('a')
    assert np.shares_memory(first, again) and np.shares_memory(store.pixels('gray'), store.pixels('gray'))
    for image in (first, store.pixels('gray')):
        with pytest.raises(ValueError, match='read-only'):
            image[0, 0, 0] = 1


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_a_data_set_gives_the_same_items_as_from_png(phase, tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'sub/b.v2.png', 'ü c (1).png'], height=16, width=13)
    options = {'scale': 2, 'phase': phase, 'gt_size': 16, 'use_hflip': True, 'use_rot': True}
    files = PairedImageDataset(gt, lq, **options)
    packed = PairedImageDataset(packed_folder(gt), packed_folder(lq), io_backend=PACKED, **options)
    assert packed.pairs == files.pairs and packed.faults(True) == []
    for seed in range(12):
        random.seed(seed)
        expected = files[seed % 3]
        random.seed(seed)
        item = packed[seed % 3]
        assert torch.equal(item['lq'], expected['lq']) and torch.equal(item['gt'], expected['gt'])
        assert item['gt_path'] == expected['gt_path'].replace('/gt/', '/gt.packed/')


def test_every_data_set_reads_a_store(tmp_path):
    gt, lq = make_pairs(tmp_path, ['a.png', 'sub/b.png'], height=16, width=20)
    packed = packed_folder(gt), packed_folder(lq)
    bicubic = {'type': 'BicubicDegradation', 'round_to_8_bit': False}
    for build in (
        lambda roots, **backend: SingleImageDataset(roots[1], **backend),
        lambda roots, **backend: DegradedImageDataset(roots[0], 2, bicubic, phase='val', **backend),
    ):
        files, store = build((gt, lq)), build(packed, io_backend=PACKED)
        assert len(store) == 2 and store.faults(True) == []
        for n in range(2):
            item = store[n]
            assert all(torch.equal(item[k], v) for k, v in files[n].items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize('start', ['fork', 'spawn'])
@pytest.mark.parametrize('read_before', [False, True])
def test_workers_read_a_store(start, read_before, tmp_path):
    gt, lq = make_pairs(tmp_path, [f'{n}.png' for n in range(8)])
    dataset = PairedImageDataset(packed_folder(gt), packed_folder(lq), 2, io_backend=PACKED)
    if read_before:
        assert dataset.faults(True) == []
    files = PairedImageDataset(gt, lq, 2)
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context=start)
    for n, batch in enumerate(loader):
        assert torch.equal(batch['gt'][0], files[n]['gt'])
    assert n == 7 and torch.equal(dataset[0]['gt'], files[0]['gt'])


def test_a_pickled_store_leaves_its_pixels_behind(tmp_path):
    store = make_store(tmp_path / 'x.packed', {f'{n}': pixels(n, 64, 64) for n in range(9)})
    store.pixels('3')
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).pixels('3'), pixels(3, 64, 64))


# ---- faults


def fault_of(path: Path) -> str:
    """What a thorough look at a store says first; '' if nothing."""
    try:
        store = PackedStorage(str(path))
        for name in store.names():
            store.size(name, thorough=True)
    except ValueError as error:
        return str(error)
    return ''


@settings(deadline=None)
@given(st.data())
def test_no_flipped_bit_goes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('store') / 'x.packed'
    make_store(path, {'a b': pixels(0, 3, 4), 'c': pixels(1, 2, 5, 1)})
    before = read_index(path)
    file = path / data.draw(st.sampled_from(['index.jsonl', 'pixels.bin']))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    fault = fault_of(path)
    if fault:
        assert str(path) in fault and '\n' not in fault
    else:  # in the header's notes for people
        assert file.name == 'index.jsonl' and read_index(path) == before


@settings(deadline=None)
@given(st.data())
def test_no_truncation_goes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('store') / 'x.packed'
    make_store(path, {'a b': pixels(0, 3, 4), 'c': pixels(1, 2, 5, 1)})
    file = path / data.draw(st.sampled_from(['index.jsonl', 'pixels.bin']))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert str(path) in fault_of(path)


def test_damage_is_said_with_what_to_do(tmp_path):
    path = tmp_path / 'x.packed'
    store = make_store(path, {'a': pixels(0, 3, 4), 'b': pixels(1, 3, 4)})
    content = bytearray((path / 'pixels.bin').read_bytes())
    content[40] ^= 4
    (path / 'pixels.bin').write_bytes(content)
    assert store.size('a', True) == store.size('b', False) == (4, 3)
    with pytest.raises(ValueError, match=r'x.packed/b: its pixels are not those that were packed; pack the data set'):
        store.size('b', True)
    (path / 'pixels.bin').write_bytes(content[:71])
    with pytest.raises(OptionError, match=r'pixels.bin: has 71 bytes where its index tells of 72; pack the data set'):
        PackedStorage(str(path)).names()
    (path / 'pixels.bin').unlink()
    with pytest.raises(OptionError, match=r'pixels.bin: cannot be read'):
        PackedStorage(str(path)).names()
    index = (path / 'index.jsonl').read_text()
    (path / 'index.jsonl').write_text(index.replace('"a", 0, 3', '"a", 0, 4'))
    with pytest.raises(OptionError, match=r'index.jsonl: was truncated or altered'):
        PackedStorage(str(path)).names()
    (path / 'index.jsonl').write_text(index.replace('packed 1', 'packed 7'))
    with pytest.raises(OptionError, match=r"of format 'basicsr packed 7', not 'basicsr packed 1'"):
        PackedStorage(str(path)).names()
    (path / 'index.jsonl').write_text('[]')
    with pytest.raises(OptionError, match=r'index.jsonl: is no index of a packed store'):
        PackedStorage(str(path)).names()


def test_what_is_not_there_is_named(tmp_path):
    store = make_store(tmp_path / 'x.packed', {'a': pixels(0, 3, 4)})
    for read in (store.pixels, store.entry, lambda name: store.size(name, False)):
        with pytest.raises(ValueError, match=r'x.packed/b.png: the packed store has no such image'):
            read('b.png')
    with pytest.raises(OptionError, match=r'nowhere: a packed store is a folder with index.jsonl and pixels.bin'):
        PackedStorage(str(tmp_path / 'nowhere'))


def test_other_kinds_of_storage_say_what_reads_a_place(tmp_path):
    make_store(tmp_path / 'x.packed', {'a': pixels(0, 3, 4)})
    archive = make_lmdb(tmp_path / 'x.lmdb', {'a': pixels(0, 3, 4)})
    for kind in (FolderStorage, LmdbStorage):
        with pytest.raises(OptionError, match=r'x.packed: is a packed store, which io_backend: {type: packed} reads'):
            kind(str(tmp_path / 'x.packed'))
    with pytest.raises(OptionError, match=r'x.lmdb: is an LMDB, which io_backend: {type: lmdb} reads'):
        PackedStorage(str(archive))
    with pytest.raises(OptionError, match=r'a packed store is a folder with'):
        PackedStorage(str(tmp_path))


# ---- writing


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([('a', pixels(0, 2, 2)), ('a', pixels(1, 2, 2))], 'a: two images have this name'),
        ([('a', pixels(0, 2, 2, dtype=np.uint16))], r'a: uint16 \(2, 2, 3\) is not'),
        ([('a', pixels(0, 2, 2, 4))], r'is not \(h, w, 1 or 3\) uint8'),
        ([('a', pixels(0, 2, 2)[..., 0])], 'is not'),
        ([('a', pixels(0, 2, 2)[:0])], 'is not'),
        ([], 'no images to pack'),
    ],
)
def test_what_cannot_be_packed_leaves_nothing(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_packed(tmp_path / 'sub/x.packed', ((name, image, '') for name, image in images))
    assert list((tmp_path / 'sub').iterdir()) == []


def test_an_image_need_not_lie_in_one_piece(tmp_path):
    image = pixels(0, 6, 8)
    store = make_store(tmp_path / 'x.packed', {'a': image[::2, ::-1], 'b': image.swapaxes(0, 1)})
    assert np.array_equal(store.pixels('a'), image[::2, ::-1])
    assert np.array_equal(store.pixels('b'), image.swapaxes(0, 1))


def test_a_store_is_never_written_over(tmp_path):
    store = make_store(tmp_path / 'x.packed', {'a': pixels(0, 3, 4)})
    with pytest.raises(UserError, match=r'x.packed: is there already'):
        make_store(tmp_path / 'x.packed', {'b': pixels(1, 3, 4)})
    assert store.names() == ['a'] and fault_of(tmp_path / 'x.packed') == ''


KILLED = """
import os, signal, sys
import numpy as np
from basicsr.data import packed
from basicsr.utils import whole_folder

def stop(*given):
    os.kill(os.getpid(), signal.SIGKILL)

def images():
    for n in range(9):
        if n == 5 and sys.argv[2] == 'pixels':
            stop()
        yield str(n), np.zeros((300, 300, 3), np.uint8), ''

if sys.argv[2] == 'index':
    packed.json.dumps = stop
if sys.argv[2] == 'flush':
    whole_folder._flush = stop
packed.write_packed(sys.argv[1], images())
"""


@pytest.mark.parametrize('moment', ['pixels', 'index', 'flush'])
def test_a_killed_packing_leaves_nothing_that_opens(moment, tmp_path):
    path = tmp_path / 'x.packed'
    done = subprocess.run([sys.executable, '-c', KILLED, str(path), moment], check=False)
    assert done.returncode == -9 and not path.exists()
    (left,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    assert left.name == '.x.packed.part' and (left / 'pixels.bin').exists()
    if moment != 'flush':
        with pytest.raises(OptionError):
            PackedStorage(str(left)).names()
    assert make_store(path, {'a': pixels(0, 3, 4)}).names() == ['a']
    assert [entry.name for entry in tmp_path.iterdir()] == ['x.packed']
