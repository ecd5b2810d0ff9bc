"""scripts/pack_dataset.py: stores equal what decoding the files gives, or are not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import make_lmdb, make_pairs, pixels
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

from pack_dataset import in_8_bits, main, pack

from basicsr.data.packed import PackedStorage
from basicsr.data.paths import read_meta_info
from basicsr.data.storage import open_storage
from basicsr.utils.image import write_image
from basicsr.utils.image_codec import encode
from basicsr.utils.registry import OptionError, UserError

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts' / 'pack_dataset.py'


def make_images(folder: Path) -> Path:
    """Files of every kind that has 8 bits a channel."""
    for name in ('a.png', 'sub/v1.5 (2).png', 'ü/x.bmp', 'y.webp', 'z.tif', 'j.jpg'):
        write_image(folder / name, pixels(len(name), 9 + len(name), 7))
    write_image(folder / 'gray.png', pixels(1, 6, 5, 1))
    write_image(folder / 'gray.jpg.jpeg', pixels(1, 6, 5, 1))
    write_image(folder / 'alpha.png', pixels(2, 6, 5, 4))
    write_image(folder / 'gray_alpha.png', pixels(2, 6, 5, 2))
    image = Image.fromarray(pixels(3, 6, 5))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / 'turned.jpg', exif=exif)
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    image.quantize(8).save(folder / 'palette.png')
    Image.fromarray(pixels(4, 6, 5, 1) > 99).save(folder / 'bits.png')
    (folder / 'notes.txt').write_text('no image')
    return folder


def assert_equal_storages(packed: Path, root: str, kind: str = 'disk') -> None:
    store, source = PackedStorage(str(packed)), open_storage(root, {'type': kind})
    assert store.names() == source.names()
    for name in source.names():
        assert np.array_equal(store.pixels(name), source.pixels(name)), name
        assert store.size(name, thorough=True) == source.size(name, thorough=False), name


def test_a_store_equals_decoding_the_files_whatever_the_number_of_workers(tmp_path):
    folder = make_images(tmp_path / 'images')
    assert pack(folder, tmp_path / 'a.packed') == (14, False)
    assert_equal_storages(tmp_path / 'a.packed', str(folder))
    gray = {'gray.png', 'gray.jpg.jpeg', 'gray_alpha.png', 'bits.png'}
    store = PackedStorage(str(tmp_path / 'a.packed'))
    assert {name for name in store.names() if store.entry(name).channels == 1} == gray
    assert pack(folder, tmp_path / 'b.packed', workers=3) == (14, False)
    for file in ('pixels.bin', 'index.jsonl'):
        assert (tmp_path / 'a.packed' / file).read_bytes() == (tmp_path / 'b.packed' / file).read_bytes()


def test_an_lmdb_is_packed_under_its_keys(tmp_path):
    archive = make_lmdb(tmp_path / 'x.lmdb', {'b.1': pixels(0, 4, 5), 'a/ü': pixels(1, 3, 2, 1)})
    assert pack(archive, tmp_path / 'x.packed') == (2, False)
    assert_equal_storages(tmp_path / 'x.packed', str(archive), 'lmdb')
    damaged = make_lmdb(tmp_path / 'y.lmdb', {'a': pixels(0, 4, 5)})
    with (damaged / 'meta_info.txt').open('a') as file:
        file.write('b.png (4,5,3) 1\nc.png (4,5,3) 1\n')
    with pytest.raises(UserError) as caught:
        pack(damaged, tmp_path / 'y.packed')
    assert str(caught.value).splitlines()[1:] == [f'  {damaged}/{key}: the LMDB has no such key' for key in ('b', 'c')]


# ---- more than 8 bits


def test_all_images_with_more_than_8_bits_are_named_before_work_starts(tmp_path):
    write_image(tmp_path / 'in/a.png', pixels(0, 4, 4))
    deep = [tmp_path / 'in' / name for name in ('b.png', 'c.tif', 'd.png')]
    for seed, path in enumerate(deep):
        write_image(path, pixels(seed, 4, 4, 1 if path.name == 'd.png' else 3, np.uint16))
    Image.fromarray(np.float32([[0, 0.5], [1, 0.25]])).save(tmp_path / 'in/e.tif')
    with pytest.raises(UserError) as caught:
        pack(tmp_path / 'in', tmp_path / 'x.packed')
    assert str(caught.value).splitlines() == [
        '4 faults, nothing was started:',
        *(
            f'  {path} has more than 8 bits a channel; --to-8-bit rounds them, or leave it out'
            for path in [*deep, tmp_path / 'in/e.tif']
        ),
    ]
    assert not (tmp_path / 'x.packed').exists()
    assert pack(tmp_path / 'in', tmp_path / 'x.packed', to_8_bit=True) == (5, False)
    store = PackedStorage(str(tmp_path / 'x.packed'))
    for seed, path in enumerate(deep):
        exact = np.atleast_3d(pixels(seed, 4, 4, 1 if path.name == 'd.png' else 3, np.uint16)) / 65535 * 255
        assert np.abs(store.pixels(path.name) - exact).max() <= 0.5
    assert store.pixels('e.tif')[..., 0].tolist() == [[0, 128], [255, 64]]


def test_rounding_to_8_bits_is_right_for_every_value():
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(in_8_bits(every), np.floor(every / 65535 * 255 + 0.5))
    assert np.array_equal(in_8_bits(np.arange(256, dtype=np.float32) / 255), np.arange(256))


# ---- faults


def test_all_faults_of_the_input_are_listed_before_work_starts(tmp_path):
    folder = Path(make_pairs(tmp_path, ['a.png', 'b.png', 'c.png', 'd.png'])[0])
    whole = (folder / 'a.png').read_bytes()
    (folder / 'a.png').write_bytes(b'')
    (folder / 'b.png').write_bytes(whole[:-9])
    (folder / 'c.jpg').write_bytes(whole)
    with pytest.raises(UserError) as caught:
        pack(folder, tmp_path / 'x.packed')
    lines = str(caught.value).splitlines()
    assert lines[0] == '3 faults, nothing was started:'
    assert [next(n for n in ('a.png', 'b.png', 'c.jpg') if n in line) for line in lines[1:]] == [
        'a.png',
        'b.png',
        'c.jpg',
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['gt', 'lq']


@pytest.mark.parametrize('workers', [1, 2])
def test_damage_that_only_decoding_finds_leaves_nothing(workers, tmp_path):
    folder = Path(make_pairs(tmp_path, ['a.png', 'b.png', 'c.png'], height=40, width=40)[0])
    for name in ('a.png', 'c.png'):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 255
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        pack(folder, tmp_path / 'x.packed', workers=workers)
    lines = str(caught.value).splitlines()
    assert lines[0] == '2 of 3 could not be used; nothing was written:' and len(lines) == 3
    assert f'{folder}/a.png' in lines[1] and f'{folder}/c.png' in lines[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['gt', 'lq']


def test_what_is_no_input_is_said(tmp_path):
    folder = make_images(tmp_path / 'in')
    pack(folder, tmp_path / 'x.packed')
    (tmp_path / 'empty').mkdir()
    for root, message in (
        (tmp_path / 'x.packed', 'is a packed store already'),
        (tmp_path / 'nowhere', 'no such folder'),
        (tmp_path / 'empty', 'holds no images'),
    ):
        with pytest.raises(UserError, match=message):
            pack(root, tmp_path / 'y.packed')


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    folder = Path(make_pairs(tmp_path, ['a.png'])[0])
    usage = type('Usage', (), {'free': 959})
    monkeypatch.setattr('pack_dataset.shutil.disk_usage', lambda _: usage)
    with pytest.raises(UserError, match=r'x.packed: needs 0.00 GB, the disk has 0.00 GB left'):
        pack(folder, tmp_path / 'new/x.packed')  # 16 x 20 x 3 = 960
    usage.free = 960
    assert pack(folder, tmp_path / 'new/x.packed') == (1, False)


# ---- again, verifying, listing


def test_a_store_of_the_same_files_is_kept_and_another_refused(tmp_path):
    folder = make_images(tmp_path / 'in')
    pack(folder, tmp_path / 'x.packed')
    before = (tmp_path / 'x.packed/index.jsonl').stat()
    assert pack(folder, tmp_path / 'x.packed') == (14, True)
    assert (tmp_path / 'x.packed/index.jsonl').stat().st_mtime_ns == before.st_mtime_ns
    write_image(folder / 'a.png', pixels(9, 4, 4))
    with pytest.raises(UserError, match=r'x.packed: is there already, made of other files(.|\n)*in/a.png: is n'):
        pack(folder, tmp_path / 'x.packed')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'file: is there already, and is no packed store'):
        pack(folder, tmp_path / 'file')


def run(capsys, *arguments: str | Path) -> tuple[int, str]:
    try:
        main([*map(str, arguments)])
        status = 0
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr()
    return status, said.err if status else said.out


def test_verifying_compares_pixels_and_sources(tmp_path, capsys):
    folder, store = make_images(tmp_path / 'in'), tmp_path / 'x.packed'
    assert run(capsys, '--input', folder, '--output', store, '--workers', 1) == (0, f'14 images in {store}\n')
    assert run(capsys, '--verify', store, '--input', folder) == (0, f'{store} is whole: 14 images\n')
    write_image(folder / 'a.png', pixels(9, 4, 4))
    write_image(folder / 'new.png', pixels(9, 4, 4))
    (folder / 'y.webp').unlink()
    assert run(capsys, '--verify', store)[0] == 0
    status, said = run(capsys, '--verify', store, '--input', folder)
    assert status == 2 and said.splitlines()[-4:] == [
        f'pack_dataset.py: 3 faults in {store}:'.replace('pack_dataset.py', Path(sys.argv[0]).name),
        f'  {folder}/new.png: is not in {store}',
        f'  {store}/y.webp: is not in {folder}',
        f'  {folder}/a.png: is not the file that was packed',
    ]
    content = bytearray((store / 'pixels.bin').read_bytes())
    content[0] ^= 1
    (store / 'pixels.bin').write_bytes(content)
    status, said = run(capsys, '--verify', store)
    assert status == 2 and f'{store}/a.png: its pixels are not those that were packed' in said


def test_the_list_of_a_store_chooses_its_images(tmp_path, capsys):
    folder, store = make_images(tmp_path / 'in'), tmp_path / 'x.packed'
    pack(folder, store)
    status, said = run(capsys, '--list', store)
    assert status == 0 and 'a.png (14,7,3)' in said.splitlines() and 'gray.png (6,5,1)' in said.splitlines()
    (tmp_path / 'list.txt').write_text(said, encoding='utf-8')
    assert read_meta_info(str(tmp_path / 'list.txt')) == PackedStorage(str(store)).names()


@pytest.mark.parametrize(
    'arguments', [[], ['--input', 'a'], ['--output', 'a'], ['--verify', 'a', '--list', 'b'], ['--verify', 'nowhere']]
)
def test_wrong_arguments_end_in_one_line(arguments, capsys):
    status, said = run(capsys, *arguments)
    assert status == 2 and len(said.splitlines()) == 1


# ---- interrupted


def test_killing_the_script_leaves_nothing_that_opens(tmp_path):
    (tmp_path / 'in').mkdir()
    data = encode(pixels(0, 1200, 1200), '.png')
    for n in range(40):
        (tmp_path / f'in/{n}.png').write_bytes(data)
    command = [sys.executable, str(SCRIPT), '--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'x.packed')]
    process = subprocess.Popen([*command, '--workers', '2'], stderr=subprocess.DEVNULL, start_new_session=True)
    started, part = time.monotonic(), tmp_path / '.x.packed.part' / 'pixels.bin'
    while not (part.exists() and part.stat().st_size) and time.monotonic() - started < 120:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -9 and part.stat().st_size
    assert not (tmp_path / 'x.packed').exists()
    with pytest.raises(OptionError):
        PackedStorage(str(tmp_path / '.x.packed.part'))
    for path in sorted((tmp_path / 'in').iterdir())[2:]:
        path.unlink()
    assert pack(tmp_path / 'in', tmp_path / 'x.packed') == (2, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in', 'x.packed']
