"""Folders and LMDBs give the same bytes by name, in any process."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_files import make_lmdb, make_pairs, make_sr3_lmdb, pixels
from golden_case import load_case
from option_files import TRAIN, fault
from torch.utils.data import DataLoader

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.storage import FolderStorage, LmdbStorage, open_storage
from basicsr.utils.image import decode_pixels
from basicsr.utils.registry import OptionError


def test_an_lmdb_of_basicsr_is_read_as_basicsr_reads_it(tmp_path):
    case = load_case('data', 'lmdb_layout')
    names = case.spec['keys_in_database']
    images = {name: case.arrays[f'image_{n}'].astype(np.uint8) for n, name in enumerate(names)}
    path = make_lmdb(tmp_path / 'x.lmdb', images)
    assert sorted(p.name for p in path.iterdir()) == sorted(case.spec['files'])
    assert (path / 'meta_info.txt').read_text() == case.spec['meta_info.txt']
    storage = open_storage(str(path), {'type': 'lmdb'})
    assert storage.names() == case.spec['keys_from_meta_info']
    for n, name in enumerate(names):
        rgb = decode_pixels(storage.read(name), storage.path(name))
        assert np.array_equal(rgb, case.arrays[f'read_bgr_{n}'][..., ::-1]), name


def test_keys_keep_dots_spaces_folders_and_other_alphabets(tmp_path):
    keys = ['a.b.c', 'v1.5/x', 'b c', 'p (1)', 'übung', 'name.jpg']
    storage = LmdbStorage(str(make_lmdb(tmp_path / 'x.lmdb', {k: pixels(n, 3, 4) for n, k in enumerate(keys)})))
    assert storage.names() == keys
    for n, key in enumerate(keys):
        assert np.array_equal(cv2.imdecode(np.frombuffer(storage.read(key), np.uint8), -1)[..., ::-1], pixels(n, 3, 4))


def test_lines_of_old_meta_files_without_a_size_are_read(tmp_path):
    path = make_lmdb(tmp_path / 'x.lmdb', {'a': pixels(0, 2, 2)})
    (path / 'meta_info.txt').write_text('a.png\nb.c.png (2,2,3)\nd.png (2, 2, 3) 1\n\n')
    assert LmdbStorage(str(path)).names() == ['a', 'b.c', 'd']


def paired(tmp_path: Path) -> PairedImageDataset:
    gt = make_lmdb(tmp_path / 'gt.lmdb', {f'im.{n}': pixels(n, 8, 8) for n in range(12)})
    lq = make_lmdb(tmp_path / 'lq.lmdb', {f'im.{n}': pixels(50 + n, 4, 4) for n in range(12)})
    return PairedImageDataset(str(gt), str(lq), 2, 'val', {'type': 'lmdb', 'readahead': True})


@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_an_lmdb_that_was_read_before_is_read_by_workers_and_after_them(start, tmp_path):
    dataset = paired(tmp_path)
    assert dataset.faults(thorough=True) == []  # several threads open it at once
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context=start)
    items = {batch['gt_path'][0]: batch['gt'][0] for batch in loader}
    assert len(items) == 12
    for n in range(12):
        item = dataset[n]
        assert np.array_equal(items[item['gt_path']], item['gt'])


def test_two_data_sets_may_share_an_lmdb(tmp_path):
    path = str(make_lmdb(tmp_path / 'x.lmdb', {'a': pixels(0, 4, 4)}))
    dataset = PairedImageDataset(path, path, 1, 'val', {'type': 'lmdb'})
    assert np.array_equal(dataset[0]['lq'], dataset[0]['gt'])
    assert pickle.loads(pickle.dumps(dataset))[0]['lq_path'] == f'{path}/a'


def test_threads_may_read_while_others_fork(tmp_path):
    dataset = paired(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(dataset.__getitem__, n % 12) for n in range(200)]
        for _ in range(3):
            process = multiprocessing.get_context('fork').Process(target=dataset.__getitem__, args=(0,))
            process.start()
            process.join()
            assert process.exitcode == 0
        assert all(future.result()['gt'].shape == (3, 8, 8) for future in reading)


def test_faults_of_an_lmdb_are_named(tmp_path):
    path = make_lmdb(tmp_path / 'x.lmdb', {'a': pixels(0, 2, 2)})
    with pytest.raises(ValueError, match=r'x.lmdb/b: the LMDB has no such key'):
        LmdbStorage(str(path)).read('b')
    with pytest.raises(OptionError, match=r'an LMDB is a folder NAME.lmdb with data.mdb and meta_info.txt'):
        LmdbStorage(str(tmp_path))
    with pytest.raises(OptionError, match=r'is an LMDB, which io_backend: \{type: lmdb\} reads'):
        FolderStorage(str(path))
    damaged = make_lmdb(tmp_path / 'damaged.lmdb', {'a': pixels(0, 2, 2)})
    (damaged / 'data.mdb').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'damaged.lmdb/a: cannot be read: '):
        LmdbStorage(str(damaged)).read('a')
    truncated = make_lmdb(tmp_path / 'truncated.lmdb', {f'{n}': pixels(n, 99, 99) for n in range(9)})
    whole = (truncated / 'data.mdb').read_bytes()
    (truncated / 'data.mdb').write_bytes(whole[: len(whole) // 2])  # reading the rest would end the process
    with pytest.raises(ValueError, match=r'truncated.lmdb/8: cannot be read: data.mdb is truncated: \d+ bytes of \d+'):
        LmdbStorage(str(truncated)).read('8')
    (damaged / 'meta_info.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(OptionError, match=r'meta_info.txt: cannot be read'):
        LmdbStorage(str(damaged)).names()


# ---- SR3's layout


def sr3_images() -> dict[str, np.ndarray]:
    """Keys of sizes that begin alike, and of names with underscores."""
    parts = {'hr_128': 8, 'sr_16_128': 8, 'lr_16': 2, 'hr_12': 4}
    names = ('00001', '00000', 'a_b', '128_x')
    return {
        f'{part}_{name}': pixels(10 * p + n, side, side)
        for p, (part, side) in enumerate(parts.items())
        for n, name in enumerate(names)
    }


def test_an_lmdb_of_sr3_is_read_by_the_names_of_its_parts(tmp_path):
    images = sr3_images()
    root = make_sr3_lmdb(tmp_path / 'faces_16_128', images, '4')
    for part in ('hr_128', 'sr_16_128', 'lr_16', 'hr_12'):
        storage = open_storage(str(root / part), {'type': 'sr3_lmdb'})
        assert storage.names() == ['00000', '00001', '128_x', 'a_b']
        for name in storage.names():
            image = images[f'{part}_{name}']
            assert np.array_equal(storage.pixels(name), image)
            assert storage.size(name, True) == storage.size(name, False) == image.shape[1::-1]
            assert storage.path(name) == f'{root}/{part}/{name}'


@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_pairs_of_an_lmdb_of_sr3_are_found_by_name(start, tmp_path):
    images = sr3_images()
    root = make_sr3_lmdb(tmp_path / 'faces_16_128', images, '4')
    dataset = PairedImageDataset(str(root / 'hr_128'), str(root / 'lr_16'), 4, io_backend={'type': 'sr3_lmdb'})
    assert dataset.faults(True) == []
    loader = DataLoader(dataset, num_workers=2, multiprocessing_context=start)
    for batch in loader:
        name = Path(batch['gt_path'][0]).name
        assert np.array_equal(batch['lq'][0].permute(1, 2, 0).numpy() * 255, images[f'lr_16_{name}'].astype(np.float32))


def test_an_lmdb_of_sr3_that_is_not_whole_is_refused(tmp_path):
    images = sr3_images()
    kind = {'type': 'sr3_lmdb'}
    del images['lr_16_00001']
    root = make_sr3_lmdb(tmp_path / 'a', images, '4')
    with pytest.raises(OptionError, match=r'a/lr_16: the LMDB holds 3 images where it says 4'):
        open_storage(str(root / 'lr_16'), kind).names()
    with pytest.raises(OptionError, match=r'a/hr_64: .*/a has no such part; it has hr_12, hr_128, lr_16, sr_16_128'):
        open_storage(str(root / 'hr_64'), kind).names()
    stopped = make_sr3_lmdb(tmp_path / 'b', images)
    with pytest.raises(OptionError, match=r'b/hr_128: the LMDB holds 4 images where it says nothing'):
        open_storage(str(stopped / 'hr_128'), kind).names()
    with pytest.raises(ValueError, match=r'a/hr_128/x: the LMDB has no such key'):
        open_storage(str(root / 'hr_128'), kind).read('x')
    damaged = make_sr3_lmdb(tmp_path / 'c', images, '4')
    (damaged / 'data.mdb').write_bytes(b'nothing')
    with pytest.raises(OptionError, match=r'c: cannot be read: '):
        open_storage(str(damaged / 'lr_16'), kind).names()
    for place in (root, tmp_path / 'nowhere', tmp_path):
        with pytest.raises(OptionError, match=r'is a folder ROOT with data.mdb, whose parts are named ROOT/hr_128'):
            open_storage(str(place), kind)


def test_every_kind_of_storage_names_the_one_that_reads_a_place(tmp_path):
    sr3 = make_sr3_lmdb(tmp_path / 'faces', {'hr_8_a': pixels(0, 8, 8)}, '1')
    ours = make_lmdb(tmp_path / 'x.lmdb', {'a': pixels(0, 2, 2)})
    for kind in ('disk', 'lmdb', 'packed'):
        for place in (sr3, sr3 / 'hr_8'):
            with pytest.raises(OptionError, match=r"in SR3's layout, which io_backend: {type: sr3_lmdb} reads"):
                open_storage(str(place), {'type': kind})
    with pytest.raises(OptionError, match=r'x.lmdb: is an LMDB, which io_backend: {type: lmdb} reads'):
        open_storage(str(ours), {'type': 'sr3_lmdb'})


def test_an_option_file_may_name_a_part_of_an_lmdb_of_sr3(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sr3_lmdb(tmp_path / 'faces', {'hr_16_a': pixels(0, 16, 16)}, '1')
    there = TRAIN.replace('dataroot_gt: gt', 'dataroot_gt: faces/hr_16')
    assert "dataroot_lq: 'lq' does not exist" in fault(tmp_path, there, check_files=True)
    absent = TRAIN.replace('dataroot_gt: gt', 'dataroot_gt: nowhere/hr_16')
    assert "dataroot_gt: 'nowhere/hr_16' does not exist" in fault(tmp_path, absent, check_files=True)


@pytest.mark.parametrize(
    ('backend', 'message'),
    [
        ({}, 'None is not a known io_backend; known: disk, lmdb, packed, sr3_lmdb'),
        ({'type': 'dsik'}, "'dsik' is not a known io_backend; did you mean 'disk'?"),
        ({'typ': 'disk'}, "'typ' is not a known option of io_backend; did you mean 'type'?"),
        (
            {'type': 'lmdb', 'readonyl': True},
            "'readonyl' is not a known option of io_backend lmdb; did you mean 'readonly'?",
        ),
        ({'type': 'lmdb', 'lock': 3}, 'should be true or false, got 3'),
        ({'type': 'disk', 'lock': True}, "'lock' is not a known option of io_backend disk"),
    ],
)
def test_mistakes_in_io_backend_are_said(backend, message, tmp_path):
    with pytest.raises(OptionError) as caught:
        open_storage(str(tmp_path), backend)
    assert message in str(caught.value)


def test_a_folder_lists_images_below_it_sorted(tmp_path):
    make_pairs(tmp_path, ['b.png', 'a.jpg', 'sub/c.PNG', 'sub/deep/d.tif', '.hidden.png', '.git/e.png'])
    (tmp_path / 'gt/notes.txt').touch()
    storage = FolderStorage(str(tmp_path / 'gt'))
    assert storage.names() == ['a.jpg', 'b.png', 'sub/c.PNG', 'sub/deep/d.tif']
    assert storage.read('b.png') == (tmp_path / 'gt/b.png').read_bytes()
    assert storage.read('b.png', 10) == storage.read('b.png')[:10]
    with pytest.raises(ValueError, match=r'gt/x.png: No such file or directory'):
        storage.read('x.png')
    with pytest.raises(OptionError, match=r'no such folder'):
        FolderStorage(str(tmp_path / 'gt/b.png'))


def test_links_to_folders_are_followed_once(tmp_path):
    make_pairs(tmp_path, ['a.png', 'sub/b.png'])
    (tmp_path / 'gt/sub/up').symlink_to('..')
    (tmp_path / 'gt/sub/loop').symlink_to('.')
    (tmp_path / 'gt/other').symlink_to(tmp_path / 'lq/sub')
    assert FolderStorage(str(tmp_path / 'gt')).names() == ['a.png', 'other/b.png', 'sub/b.png']
