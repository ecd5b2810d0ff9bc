"""scripts/make_lmdb.py: BasicSR's layout, whole or not at all."""

import os
import signal
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from data_files import pixels
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

import make_lmdb as script
from make_lmdb import fill, main, make_lmdb

from basicsr.data.storage import open_storage
from basicsr.utils.image import write_image
from basicsr.utils.registry import UserError


def content(path: Path) -> dict[str, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): bytes(value) for key, value in transaction.cursor()}


def test_the_published_layout_is_written(tmp_path):
    case = load_case('data', 'lmdb_layout')
    names = case.spec['keys_in_database']
    for n, name in enumerate(names):
        write_image(tmp_path / f'in/{name}.png', case.arrays[f'image_{n}'].astype(np.uint8))
    assert make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb') == 3
    assert sorted(path.name for path in (tmp_path / 'x.lmdb').iterdir()) == sorted(case.spec['files'])
    assert (tmp_path / 'x.lmdb/meta_info.txt').read_bytes() == case.spec['meta_info.txt'].encode()
    assert list(content(tmp_path / 'x.lmdb')) == names
    storage = open_storage(str(tmp_path / 'x.lmdb'), {'type': 'lmdb'})
    for n, name in enumerate(storage.names()):
        assert np.array_equal(storage.pixels(name)[..., ::-1], case.arrays[f'read_bgr_{n}']), name


@pytest.mark.parametrize('workers', [1, 2])
def test_values_are_what_basicsr_would_store(workers, tmp_path):
    """Read unchanged by OpenCV, written as PNG of level 1."""
    shapes = {'a.png': 3, 'sub/v1.5 b.png': 1, 'ü.png': 4, 'deep.png': 3, 'deep_gray.tif': 1, 'x.webp': 3, 'z.bmp': 3}
    for seed, (name, channels) in enumerate(shapes.items()):
        image = pixels(seed, 20, 30, channels, np.uint16 if 'deep' in name else np.uint8)
        write_image(tmp_path / 'in' / name, image)
    gray_alpha = np.stack([pixels(9, 5, 6, 1), pixels(10, 5, 6, 1)], axis=2)
    Image.fromarray(gray_alpha, 'LA').save(tmp_path / 'in/la.png')
    assert make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb', workers=workers) == 8
    stored = content(tmp_path / 'x.lmdb')
    lines = (tmp_path / 'x.lmdb/meta_info.txt').read_text(encoding='utf-8').splitlines()
    assert [line.split('.png (')[0] for line in lines] == sorted(stored, key=lambda key: key)
    for name in [*shapes, 'la.png']:
        key = name.rsplit('.', 1)[0]
        image = cv2.imdecode(np.frombuffer((tmp_path / 'in' / name).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        assert stored[key] == cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(), name
        height, width, channels = np.atleast_3d(image).shape
        assert f'{key}.png ({height},{width},{channels}) 1' in lines


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.text(st.characters(codec='utf-8'), min_size=1, max_size=60), st.binary(max_size=9000)))
def test_a_full_map_grows(tmp_path_factory, items):
    folder = tmp_path_factory.mktemp('map')
    fill(folder, items.items(), first_map=1 << 14)
    assert content(folder) == items


def test_batches_are_committed_and_repeated_when_the_map_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(script, 'BATCH', 10_000)
    items = {f'{n:04d}': bytes([n % 251]) * 3000 for n in range(300)}
    fill(tmp_path, items.items(), first_map=1 << 16)
    assert content(tmp_path) == items


def test_all_faults_are_listed_before_work_starts(tmp_path):
    for name in ('a.png', 'b.png', 'sub/b.png', 'c.png'):
        write_image(tmp_path / 'in' / name, pixels(0, 4, 4))
    write_image(tmp_path / 'in/b.bmp', pixels(0, 4, 4))
    (tmp_path / 'in/c.png').write_bytes(b'')
    deep = tmp_path / 'in' / ('d' * 200) / ('e' * 200)
    write_image(deep / f'{"f" * 120}.png', pixels(0, 4, 4))
    (tmp_path / 'in/line\nbreak.png').write_bytes((tmp_path / 'in/a.png').read_bytes())
    (tmp_path / os.fsdecode(b'in/\xff.png')).write_bytes((tmp_path / 'in/a.png').read_bytes())
    with pytest.raises(UserError) as caught:
        make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb')
    said = str(caught.value)
    assert said.startswith('5 faults, nothing was started:\n') and len(said.splitlines()) == 6
    for words in (
        'in/c.png is empty',
        'its name has 522 bytes, a key of LMDB at most 511',
        r"in/line\nbreak.png': its name holds a line break",
        r"in/\udcff.png': its name is no valid text",
        'in/b.png: ',
    ):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ['in']


def test_float_images_are_named_and_nothing_is_left(tmp_path):
    write_image(tmp_path / 'in/a.png', pixels(0, 4, 4))
    Image.fromarray(np.float32([[0, 0.5], [1, 0.25]])).save(tmp_path / 'in/b.tif')
    with pytest.raises(UserError, match=r'nothing was written:\n  .*in/b.tif has float values, which PNG cannot hold'):
        make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb')
    assert [path.name for path in tmp_path.iterdir()] == ['in']


def test_an_lmdb_is_never_written_over(tmp_path, capsys):
    write_image(tmp_path / 'in/a.png', pixels(0, 4, 4))
    arguments = ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'x.lmdb'), '--workers', '1']
    main(arguments)
    assert capsys.readouterr().out == f'1 images in {tmp_path}/x.lmdb\n'
    for output, message in (('x.lmdb', 'is there already; delete it'), ('x', 'the name of an LMDB ends with .lmdb')):
        with pytest.raises(SystemExit) as caught:
            main([*arguments[:3], str(tmp_path / output)])
        said = capsys.readouterr().err
        assert caught.value.code == 2 and message in said and len(said.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='starts a process by fork')
def test_a_killed_run_leaves_nothing_that_opens(tmp_path, monkeypatch):
    for name in 'abcd':
        write_image(tmp_path / f'in/{name}.png', pixels(0, 4, 4))
    process = os.fork()
    if process == 0:
        monkeypatch.setattr(script, '_commit', lambda *given: os.kill(os.getpid(), signal.SIGKILL))
        make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb')
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert not (tmp_path / 'x.lmdb').exists()
    assert make_lmdb(tmp_path / 'in', tmp_path / 'x.lmdb') == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in', 'x.lmdb']
