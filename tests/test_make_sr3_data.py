import os
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_sr3_data import main

from basicsr.data.degradations.resize import resize_and_center_crop
from basicsr.data.storage import open_storage
from basicsr.utils.image import read_image, write_image


@pytest.fixture
def run(tmp_path, capsys):
    """Calls the script for `tmp_path/source` as a user does; returns (status, what it said)."""

    def call(*arguments: str) -> tuple[int, str]:
        status = 0
        try:
            main(['--input', str(tmp_path / 'source'), '--output', str(tmp_path / 'set'), '--size', '4,16', *arguments])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def make_sources(folder: Path, count: int = 4) -> dict[str, np.ndarray]:
    sources = {f'{number:05d}': pixels(number, 20 + number, 30) for number in range(count)}
    for name, image in sources.items():
        write_image(folder / f'{int(name)}.png', image)
    return sources


def content(root: Path) -> dict[str, bytes]:
    with lmdb.open(str(root), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): value for key, value in transaction.cursor()}


def test_a_database_and_folders_hold_the_same_images(tmp_path, run):
    sources = make_sources(tmp_path / 'source')
    assert run('--workers', '1')[0] == 0
    (tmp_path / 'set_4_16').rename(tmp_path / 'folders')
    (tmp_path / 'set_4_16.jsonl').unlink()
    assert run('--workers', '2', '--lmdb')[0] == 0
    for kind, small in (('lr_4', True), ('hr_16', False), ('sr_4_16', False)):
        storages = (
            open_storage(str(tmp_path / 'folders' / kind), {'type': 'disk'}),
            open_storage(str(tmp_path / 'set_4_16' / kind), {'type': 'sr3_lmdb'}),
        )
        for name, image in sources.items():
            expected = resize_and_center_crop(image, 4 if small else 16)
            if kind == 'sr_4_16':
                expected = resize_and_center_crop(resize_and_center_crop(image, 4), 16)
            np.testing.assert_array_equal(storages[0].pixels(f'{name}.png'), expected)
            np.testing.assert_array_equal(storages[1].pixels(name), expected)


def test_a_second_run_makes_what_is_missing_torn_or_changed_and_keeps_the_rest(tmp_path, run):
    make_sources(tmp_path / 'source')
    assert run('--workers', '1')[0] == 0
    root = tmp_path / 'set_4_16'
    good = {path: path.read_bytes() for path in root.rglob('*.png')}
    (root / 'lr_4' / '00000.png').unlink()
    (root / 'hr_16' / '00001.png').write_bytes(b'torn')
    write_image(tmp_path / 'source' / '2.png', pixels(77, 30, 30))
    stamp = (root / 'hr_16' / '00003.png').stat().st_mtime_ns
    assert run('--workers', '1')[0] == 0
    now = {path: path.read_bytes() for path in root.rglob('*.png')}
    assert {path.stem for path in good if good[path] != now[path]} == {'00002'} and good.keys() == now.keys()
    assert (root / 'hr_16' / '00003.png').stat().st_mtime_ns == stamp


def test_a_stopped_database_goes_on_and_says_no_length_before(tmp_path, run, monkeypatch):
    make_sources(tmp_path / 'source')
    monkeypatch.setattr('make_sr3_data.COMMIT', 2)
    (tmp_path / 'source' / '3.png').unlink()
    write_image(tmp_path / 'source' / '3.tiff', pixels(0, 30, 30, dtype=np.uint16))  # known when it is decoded
    status, said = run('--workers', '1', '--lmdb')
    assert status == 2 and '3.tiff' in said and 'the other 3 are done' in said
    before = content(tmp_path / 'set_4_16')
    assert before['length'] == b'3' and len(before) == 10
    (tmp_path / 'source' / '3.tiff').unlink()
    write_image(tmp_path / 'source' / '3.png', pixels(0, 30, 30))
    assert run('--workers', '1', '--lmdb')[0] == 0
    after = content(tmp_path / 'set_4_16')
    assert after['length'] == b'4' and len(after) == 13
    assert all(after[key] == value for key, value in before.items() if key != 'length')


def test_a_database_that_is_full_grows(tmp_path, run, monkeypatch):
    make_sources(tmp_path / 'source')
    opened = lmdb.open
    monkeypatch.setattr('lmdb.open', lambda path, map_size=0, **options: opened(path, map_size=20480, **options))
    assert run('--workers', '1', '--lmdb')[0] == 0
    monkeypatch.undo()
    assert len(content(tmp_path / 'set_4_16')) == 13


def test_the_published_width_test_keeps_the_height(tmp_path, run):
    write_image(tmp_path / 'source' / 'a.b.png', pixels(0, 24, 16))
    assert run('--workers', '1')[0] == 0
    assert read_image(tmp_path / 'set_4_16' / 'hr_16' / '0000a.png').shape == (16, 16, 3)
    status, said = run('--workers', '1', '--published-width-test')
    assert status == 2 and 'was made otherwise' in said
    os.rename(tmp_path / 'set_4_16', tmp_path / 'old')  # noqa: PTH104 - both forms are one call
    (tmp_path / 'set_4_16.jsonl').unlink()
    assert run('--workers', '1', '--published-width-test')[0] == 0
    assert read_image(tmp_path / 'set_4_16' / 'hr_16' / '0000a.png').shape == (24, 16, 3)


def test_what_the_user_should_know_is_said(tmp_path, run):
    write_image(tmp_path / 'source' / 'face.png', pixels(0, 9, 40))
    status, said = run('--workers', '1', '--lmdb')
    assert status == 0 and '1 images are smaller than 16' in said and 'published SR3 code cannot read' in said


def test_png_files_of_16_bits_are_listed_before_any_work(tmp_path, run):
    make_sources(tmp_path / 'source')
    for name in ('2.png', '7.png'):
        write_image(tmp_path / 'source' / name, pixels(0, 30, 30, dtype=np.uint16))
    status, said = run('--workers', '1')
    assert status == 2 and '2 faults, nothing was started' in said and '7.png has more than 8 bits' in said
    assert not (tmp_path / 'set_4_16').exists()


@pytest.mark.parametrize(
    'arguments', [('--size', '16'), ('--size', '0,4'), ('--size', '16,4'), ('--resample', 'lanczos')]
)
def test_wrong_arguments_are_one_line(tmp_path, run, arguments):
    make_sources(tmp_path / 'source', 1)
    status, said = run(*arguments)
    assert status == 2 and said.count('\n') == 1 and arguments[0] in said


def test_names_that_would_be_one_are_refused(tmp_path, run):
    for name in ('1.a.png', '1.b.png', '00001.png'):
        write_image(tmp_path / 'source' / name, pixels(0, 20, 20))
    status, said = run('--workers', '1')
    assert status == 2 and '2 faults' in said and not (tmp_path / 'set_4_16').exists()
