"""Data sets of shards: items, options, and everything that may be wrong with a shard."""

import builtins
import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from data_files import pixels
from shard_files import BICUBIC, COUNTS, items, make_shards, options, png, write_tar

from basicsr.data import shards as shard_reading
from basicsr.data.loaders import DataError, build_train_loader, check_datasets
from basicsr.data.sharded_image_dataset import ShardedImageDataset
from basicsr.data.shards import Shard, expanded, found_shards, index_text, read_samples
from basicsr.utils.registry import DATASET_REGISTRY, OptionError

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


@pytest.fixture
def pattern(tmp_path) -> str:
    return make_shards(tmp_path / 'data', COUNTS)


# ---- items


def test_an_item_is_the_square_that_its_shard_holds(tmp_path):
    shard = write_tar(tmp_path / 'a.tar', [('sub.x/one.png', png(3, 8, 8)), ('sub.x/one.json', b'{}')])
    dataset = ShardedImageDataset(shard, 2, 8, BICUBIC)
    (item,) = dataset
    assert item['gt_path'] == f'{shard}/sub.x/one.png' and item['lq'].shape == (3, 4, 4)
    expected = torch.from_numpy(pixels(3, 8, 8)).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(item['gt'], expected, rtol=0, atol=1e-7)


KERNELS = {
    'kernel_list': ['iso', 'aniso'], 'kernel_prob': [0.5, 0.5], 'sinc_prob': 0.1, 'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4], 'betap_range': [1, 2], 'kernel_list2': ['iso'], 'kernel_prob2': [1.0],
    'sinc_prob2': 0.1, 'blur_sigma2': [0.2, 1.5], 'betag_range2': [0.5, 4], 'betap_range2': [1, 2],
    'final_sinc_prob': 0.8,
}  # fmt: skip


def test_kernels_come_instead_of_lq_for_a_degradation_on_the_device(pattern):
    opt = options(pattern, batch=4, degradation=None, kernels=KERNELS)
    batch = next(iter(build_train_loader(opt, 0, 1)[0]))
    assert 'lq' not in batch and batch['gt'].shape == (4, 3, 8, 8)
    for name in ('kernel1', 'kernel2', 'sinc_kernel'):
        assert batch[name].shape == (4, 21, 21)
        torch.testing.assert_close(batch[name].sum((1, 2)), torch.ones(4))
    assert len({kernel.numpy().tobytes() for kernel in batch['kernel1']}) == 4
    with pytest.raises(DataError, match='needs a section `degradation:`'):
        items(opt, 1)


def test_a_small_image_is_continued_or_named(tmp_path):
    shard = write_tar(tmp_path / 'a.tar', [('one.png', png(3, 6, 9))])
    with pytest.raises(ValueError, match=rf'^{shard}/one.png: 9x6 is smaller than the crop of gt_size 8$'):
        next(iter(ShardedImageDataset(shard, 2, 8, BICUBIC)))
    gt = next(iter(ShardedImageDataset(shard, 2, 8, BICUBIC, pad=True)))['gt']
    torch.testing.assert_close(gt[:, 6:], gt[:, 3:5].flip(1))


# ---- options


@pytest.mark.parametrize(
    ('shards', 'words'),
    [
        ('pipe:touch RAN', 'would run a command'),
        (['a.tar', 'PIPE:touch RAN'], 'would run a command'),
        ('{a.tar,pipe:touch RAN}', 'would run a command'),
        ('htp://host/a.tar', "'htp' is not a known kind of URL; did you mean 'http'"),
        ('a-{0..3.tar', 'a-{0..3.tar'),
        ('a-{0,0}.tar', "'a-0.tar' is named more than once"),
        ([], 'no shards are named'),
    ],
)
def test_shards_are_named_by_paths_and_urls_only(shards, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=words):
        DATASET_REGISTRY.build(
            {'type': 'ShardedImageDataset', 'shards': shards, 'gt_size': 8, 'degradation': BICUBIC},
            scale=2, phase='train',
        )  # fmt: skip
    assert not (tmp_path / 'RAN').exists()


def test_patterns_name_shards_in_their_order():
    assert expanded(['x/{08..11}.tar', 'http://h/{a,b}.tar']) == [
        'x/08.tar', 'x/09.tar', 'x/10.tar', 'x/11.tar', 'http://h/a.tar', 'http://h/b.tar',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'kernels': KERNELS}, 'either `degradation`'),
        ({'degradation': None}, 'either `degradation`'),
        ({'degradation': None, 'kernels': {**KERNELS, 'sinc_prob': 2}}, 'sinc_prob is a probability'),
        ({'degradation': None, 'kernels': {'sinc_prop': 1}}, "did you mean 'sinc_prob'"),
        ({'gt_size': 9}, 'multiple of the scale 2'),
        ({'dataset_enlarge_ratio': 2}, 'an epoch of shards is each sample once'),
        ({'shuffle_buffer': 0}, 'greater than 0'),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, words, pattern):
    with pytest.raises(OptionError, match=words):
        build_train_loader(options(pattern, **changes), 0, 1)


def test_shards_are_for_training_only(pattern):
    with pytest.raises(OptionError, match='for training only'):
        ShardedImageDataset(pattern, 2, 8, BICUBIC, phase='val')


def test_a_missing_package_is_named_with_its_installation(pattern, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest):
        if name.split('.')[0] == 'webdataset':
            raise ImportError(name)
        return real(name, *rest)

    shard_reading.webdataset.cache_clear()
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(OptionError, match='pip install webdataset'):
        ShardedImageDataset(pattern, 2, 8, BICUBIC)


# ---- faults


def broken(folder: Path, kind: str) -> str:
    """A shard of three samples of which the second is broken; returns its name."""
    data = png(1)
    damaged = {'empty': b'', 'truncated': data[:60], 'mislabelled': b'BM' + data, 'no image': None}[kind]
    second = [('b.txt', b'words')] if damaged is None else [('b.png', damaged)]
    return write_tar(folder / 'a.tar', [('a.png', png(0)), *second, ('c.png', png(2))])


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('kind', ['empty', 'truncated', 'mislabelled', 'no image'])
def test_a_broken_member_is_named_and_never_replaced(kind, workers, tmp_path):
    shard = broken(tmp_path, kind)
    opt = options(shard, workers, 1)
    with pytest.raises(DataError) as caught:
        items(opt, 3)
    assert f'{shard}/b' in str(caught.value) and '\n' not in str(caught.value)
    faults = build_train_loader(opt, 0, 1)[1].faults(thorough=True)
    assert len(faults) == 1 and f'{shard}/b' in faults[0]


def test_two_images_of_one_key_are_not_guessed_between(tmp_path):
    shard = write_tar(tmp_path / 'a.tar', [('a.v1.png', png(0)), ('a.v2.png', png(1))])
    dataset = ShardedImageDataset(shard, 2, 8, BICUBIC)
    assert len(dataset) == 1
    (fault,) = dataset.faults(False)
    assert fault == f'{shard}/a: holds several images: v1.png, v2.png'
    with pytest.raises(ValueError, match='holds several images'):
        list(dataset)


def test_everything_that_is_wrong_with_local_shards_is_listed_at_once(pattern, tmp_path):
    data = (tmp_path / 'data/train-2.tar').read_bytes()
    (tmp_path / 'data/train-0.tar').unlink()
    (tmp_path / 'data/train-1.tar').write_bytes(b'')
    (tmp_path / 'data/train-2.tar').write_bytes(data[:1500])
    (tmp_path / 'data/train-3.tar').write_bytes(b'no tar file' * 100)
    opt = options(pattern)
    with pytest.raises(DataError) as caught:
        check_datasets([build_train_loader(opt, 0, 1)[1]])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith('4 items')
    for number, (line, words) in enumerate(zip(lines, ('No such file', 'no whole tar', 'truncated', 'no whole tar'))):
        assert f'train-{number}.tar: ' in line and words in line


@pytest.mark.parametrize('cut', [0, 100, 511, 512, 600, 1023])
def test_a_shard_that_ends_early_is_noticed_wherever_it_was_cut(cut, tmp_path):
    """The reader of tar files takes an end between two members for the end of the archive."""
    member = 512 * (1 + -(-len(png(0)) // 512))
    shard = write_tar(tmp_path / 'a.tar', [(f'{n}.png', png(n)) for n in range(4)])
    whole = found_shards(shard)[0]
    data = (tmp_path / 'a.tar').read_bytes()
    (tmp_path / 'a.tar').write_bytes(data[: 2 * member + cut])
    assert len(found_shards(shard)[1]) == 1
    with pytest.raises(ValueError, match=f'^{shard}: '):
        list(read_samples(shard, end=whole[0].samples))


def test_a_shard_damaged_in_the_middle_is_noticed(tmp_path):
    shard = write_tar(tmp_path / 'a.tar', [(f'{n}.png', png(n)) for n in range(4)])
    data = bytearray((tmp_path / 'a.tar').read_bytes())
    member = 512 * (1 + -(-len(png(0)) // 512))
    data[2 * member : 2 * member + 512] = b'x' * 512
    (tmp_path / 'a.tar').write_bytes(data)
    assert [f'damaged at byte {2 * member}' in fault for fault in found_shards(shard)[1]] == [True]


def test_shards_without_samples_are_a_fault(tmp_path):
    dataset = ShardedImageDataset(write_tar(tmp_path / 'a.tar', []), 2, 8, BICUBIC)
    assert dataset.faults(False) == ['the shards hold no samples']


# ---- index


def write_index(folder: Path, **changes) -> None:
    shards, _ = found_shards([str(path) for path in sorted(folder.glob('*.tar'))])
    sized = [Shard(s.url, s.samples, Path(s.url).stat().st_size, shard_reading.checksum(Path(s.url))) for s in shards]
    tree = json.loads(index_text(sized))
    tree['shardlist'][2].update(changes)
    (folder / 'index.json').write_text(json.dumps(tree))


def test_an_index_beside_the_shards_is_believed_and_checked(pattern, tmp_path, monkeypatch):
    plain = items(options(pattern), 8)
    write_index(tmp_path / 'data')
    monkeypatch.setattr(shard_reading, 'counted', None)  # not looked through any more
    opt = options(pattern)
    dataset = build_train_loader(opt, 0, 1)[1]
    assert dataset.faults(True) == [] and items(opt, 8) == plain
    data = bytearray((tmp_path / 'data/train-2.tar').read_bytes())
    data[700] ^= 1
    (tmp_path / 'data/train-2.tar').write_bytes(data)
    assert build_train_loader(opt, 0, 1)[1].faults(False) == []
    faults = build_train_loader(opt, 0, 1)[1].faults(True)
    assert len(faults) == 2 and 'its checksum is not that of its index' in faults[0] and '/004.png' in faults[1]
    (tmp_path / 'data/train-2.tar').write_bytes(data[:-512])
    (fault,) = build_train_loader(opt, 0, 1)[1].faults(False)
    assert f'has {len(data) - 512} bytes, its index says {len(data)}' in fault


def test_an_index_that_counts_wrong_is_noticed_in_training(pattern, tmp_path):
    write_index(tmp_path / 'data', nsamples=9)
    with pytest.raises(DataError, match=r'train-2.tar: ends after 7 samples of 9: it is truncated or was changed'):
        items(options(pattern), 9)


def test_an_index_is_named_where_it_cannot_be_used(pattern, tmp_path):
    (tmp_path / 'data/index.json').write_text('{"shardlist": [{"url": "train-0.tar"}]}')
    with pytest.raises(OptionError, match='is no index of shards'):
        build_train_loader(options(pattern), 0, 1)
    (tmp_path / 'data/index.json').unlink()
    with pytest.raises(OptionError, match='index of the shards cannot be read: No such file'):
        build_train_loader(options(pattern, index=str(tmp_path / 'none.json')), 0, 1)


@pytest.fixture
def served(tmp_path):
    """A server on this machine; gives its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which('curl') is None, reason='webdataset downloads by curl')
def test_shards_at_urls_are_those_of_the_disk(pattern, served, tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    remote = pattern.replace(str(tmp_path), served)
    with pytest.raises(OptionError, match=r'index.json does not tell the number of its samples; make an index'):
        build_train_loader(options(remote), 0, 1)
    write_index(tmp_path / 'data')
    here, there = items(options(pattern), 8), items(options(remote), 8)
    assert [content for _, content in here.values()] == [content for _, content in there.values()]
    assert all(path.startswith(served) for path, _ in there.values())
    (tmp_path / 'data/train-2.tar').unlink()
    with pytest.raises(DataError, match=r'train-2.tar: the download ended with status 22'):
        items(options(remote), 8)
