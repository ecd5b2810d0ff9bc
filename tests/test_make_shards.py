"""Shards from a folder: the very bytes, keys that WebDataset reads again, faults before work, restarts."""

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
from shard_files import BICUBIC, png, write_tar

from basicsr.data.sharded_image_dataset import ShardedImageDataset
from basicsr.data.shards import checksum

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

import make_shards

NAMES = (
    'a.png',
    'b.PNG',
    'sub.dir/0001.v2.png',
    'sub.dir/0001.v3.png',
    'deep/er/100%.png',
    '__x__/note.png',
    'é ü.png',
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images whose names WebDataset would otherwise split, mix or pass over."""
    for seed, name in enumerate(NAMES):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return tmp_path / 'images'


def run(*arguments: object) -> int:
    """The exit status of the script in this process."""
    try:
        make_shards.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def made(folder: Path, output: Path, size: int = 2500) -> list:
    return make_shards.make_shards(folder, output, 'train', size)


def contents(output: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(output.glob('*.tar')):
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    return found


def read_by_webdataset(output: Path) -> dict[str, bytes]:
    """Image bytes by key as the package itself groups them."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    sources = [{'url': str(path), 'stream': io.BytesIO(path.read_bytes())} for path in sorted(output.glob('*.tar'))]
    return {sample['__key__']: sample['png'] for sample in group_by_keys(tar_file_expander(sources))}


def test_webdataset_reads_every_image_unchanged_under_its_own_key(folder, tmp_path):
    made(folder, tmp_path / 'out')
    found = read_by_webdataset(tmp_path / 'out')
    assert sorted(found) == sorted(
        ['a', 'b', 'sub.dir/0001%2Ev2', 'sub.dir/0001%2Ev3', 'deep/er/100%25', '%5F_x__/note', 'é ü']
    )
    assert sorted(found.values()) == sorted((folder / name).read_bytes() for name in NAMES)
    assert found['sub.dir/0001%2Ev3'] == (folder / 'sub.dir/0001.v3.png').read_bytes()


def test_the_data_set_streams_what_was_made_and_believes_its_index(folder, tmp_path):
    shards = made(folder, tmp_path / 'out')
    assert len(shards) > 2
    dataset = ShardedImageDataset([shard.url for shard in shards], 2, 8, BICUBIC)
    assert dataset.shards == shards and len(dataset) == 7 and dataset.faults(True) == []
    assert len({item['gt_path'] for item in dataset}) == 7


def test_the_index_tells_samples_bytes_and_checksum_of_each_shard(folder, tmp_path):
    made(folder, tmp_path / 'out')
    entries = json.loads((tmp_path / 'out/index.json').read_text())['shardlist']
    assert [entry['url'] for entry in entries] == [f'train-{n:06d}.tar' for n in range(len(entries))]
    for entry in entries:
        path = tmp_path / 'out' / entry['url']
        with tarfile.open(path) as archive:
            assert entry['nsamples'] == len(archive.getnames())
        assert entry['filesize'] == path.stat().st_size and entry['sha256'] == checksum(path)
    assert not list((tmp_path / 'out').glob('.*'))


def test_shards_are_as_large_as_asked_and_the_same_every_time(folder, tmp_path):
    sizes = []
    for size in (1, 2500, 10**6):
        shards = made(folder, tmp_path / str(size), size)
        sizes.append([shard.samples for shard in shards])
        assert sum(sizes[-1]) == 7
        again = made(folder, tmp_path / f'{size} again', size)
        assert [shard.sha256 for shard in again] == [shard.sha256 for shard in shards]
    assert sizes[0] == [1] * 7 and 1 < len(sizes[1]) < 7 and sizes[2] == [7]
    order = list(contents(tmp_path / '1000000'))
    assert order != sorted(order), 'neighbours in the folder are not neighbours in the shard'


def test_several_processes_make_the_same_shards(folder, tmp_path, capsys):
    assert run('--input', folder, '--output', tmp_path / 'two', '--workers', 2) == 0
    assert run('--input', folder, '--output', tmp_path / 'one', '--workers', 1) == 0
    assert (tmp_path / 'one/index.json').read_bytes() == (tmp_path / 'two/index.json').read_bytes()
    assert re.search(r'7 samples in 1 shards, 0\.0 MB; .*one/index.json', capsys.readouterr().out)


def test_a_second_run_keeps_whole_shards_and_makes_the_others_again(folder, tmp_path, monkeypatch):
    output = tmp_path / 'out'
    shards = made(folder, output)
    index = (output / 'index.json').read_bytes()
    first, second = Path(shards[0].url), Path(shards[1].url)
    first.write_bytes(first.read_bytes()[:700])
    changed = next(path for path in folder.rglob('*') if path.is_file() and path.read_bytes() in contents_of(second))
    os.utime(changed, ns=(2**62, 2**62))
    (output / '.train-000009.tar.part').write_bytes(b'of a killed run')
    written = []
    original = make_shards.add_member
    monkeypatch.setattr(make_shards, 'add_member', lambda *given: (written.append(given[1].name), original(*given))[1])
    made(folder, output)
    assert sorted(written) == sorted([*names_of(first), *names_of(second)])
    assert (output / 'index.json').read_bytes() == index and not list(output.glob('.*'))


def names_of(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def contents_of(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        return [archive.extractfile(member).read() for member in archive]


def test_a_run_that_was_stopped_leaves_no_half_shard_and_no_index(folder, tmp_path, monkeypatch):
    output = tmp_path / 'out'
    made(folder, output)
    for path in list(folder.rglob('*.png'))[:3]:
        os.utime(path, ns=(2**62, 2**62))
    before = {path.name: path.read_bytes() for path in output.glob('*.tar')}

    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_shards, 'add_member', stop)
    with pytest.raises(KeyboardInterrupt):
        made(folder, output)
    assert not (output / 'index.json').exists() and not list(output.glob('.*'))
    assert {path.name: path.read_bytes() for path in output.glob('*.tar')} == before


def test_everything_that_is_wrong_is_listed_before_anything_is_written(folder, tmp_path, capsys):
    (folder / 'a.jpg').write_bytes((folder / 'a.png').read_bytes())
    (folder / 'sub.dir/empty.png').write_bytes(b'')
    (folder / 'cut.png').write_bytes(png(9)[:50])
    (folder / 'b.png').write_bytes(png(8))
    assert run('--input', folder, '--output', tmp_path / 'out') == 2
    text = capsys.readouterr().err
    assert '4 faults, nothing was started' in text and not (tmp_path / 'out').exists()
    for words in ('a.jpg is mislabelled', 'empty.png is empty', 'cut.png', 'b.PNG would be written to the same place'):
        assert words in text


def test_an_image_that_does_not_decode_leaves_no_shard(folder, tmp_path, capsys):
    data = bytearray(png(9))
    data[len(data) // 2] ^= 1  # its end is whole: only decoding tells
    (folder / 'bad.png').write_bytes(data)
    assert run('--input', folder, '--output', tmp_path / 'out', '--workers', 1) == 2
    assert 'bad.png: wrong checksum' in capsys.readouterr().err
    assert list((tmp_path / 'out').iterdir()) == []


def test_shards_and_indexes_of_other_images_are_not_mixed_with_these(folder, tmp_path, capsys):
    output = tmp_path / 'out'
    write_tar(output / 'train-000100.tar', [])
    assert run('--input', folder, '--output', output) == 2
    assert 'train-000100.tar: is none of the shards that this would make' in capsys.readouterr().err
    (output / 'train-000100.tar').rename(tmp_path / 'x.tar')
    (output / 'index.json').write_text('{"shardlist": [{"url": "http://h/far.tar", "nsamples": 3}]}')
    assert run('--input', folder, '--output', output) == 2
    assert 'index.json: is about far.tar' in capsys.readouterr().err
    assert run('--count', tmp_path / 'x.tar', '--output', output) == 2
    assert 'index.json: is about far.tar' in capsys.readouterr().err


def test_existing_shards_are_counted_into_an_index(folder, tmp_path, capsys):
    made(folder, tmp_path / 'out')
    count = len(list((tmp_path / 'out').glob('*.tar')))
    pattern = f'{tmp_path}/out/train-{{000000..{count - 1:06d}}}.tar'
    assert run('--count', pattern, '--output', tmp_path / 'index', '--workers', 1) == 0
    assert (tmp_path / 'index/index.json').read_bytes() == (tmp_path / 'out/index.json').read_bytes()
    bad = write_tar(tmp_path / 'bad.tar', [('a.png', b''), ('b.txt', b'words')])
    (tmp_path / 'junk.tar').write_bytes(b'junk')
    capsys.readouterr()
    command = ('--count', bad, tmp_path / 'junk.tar', tmp_path / 'no.tar', '--output', tmp_path / 'other')
    assert run(*command, '--workers', 1) == 2
    text = capsys.readouterr().err
    for words in (
        'bad.tar/a.png is empty',
        'bad.tar/b: holds no image',
        'junk.tar: is no whole tar',
        'no.tar: No such',
    ):
        assert words in text
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('--input', 'x', '--output', 'y', '--size', '0'), 'at least 1'),
        (('--input', 'x', '--output', 'y', '--prefix', 'a/b'), 'beginning of a file name'),
        (('--count', 'x', '--output', 'y', '--size', '5'), 'not of those that are counted'),
        (('--count', 'pipe:ls', '--output', 'y'), 'would run a command'),
        (('--input', 'x', '--output', 'x/y'), 'results may not be written into the folder of the sources'),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    text = capsys.readouterr().err
    assert words in text and len(text.splitlines()) == 1
