"""Folders and LMDBs give the same bytes by name, in any process."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_files import make_lmdb, make_pairs, pixels
from golden_case import load_case
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
    (damaged / 'meta_info.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(OptionError, match=r'meta_info.txt: cannot be read'):
        LmdbStorage(str(damaged)).names()


@pytest.mark.parametrize(
    ('backend', 'message'),
    [
        ({}, 'None is not a known io_backend; known: disk, lmdb'),
        ({'type': 'dsik'}, "'dsik' is not a known io_backend; did you mean 'disk'?"),
        ({'typ': 'disk'}, "'typ' is not a known option of an io_backend; did you mean 'type'?"),
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
