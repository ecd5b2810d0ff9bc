"""Streams of shards: each epoch is each sample once, and what a sample becomes does not depend on who reads it."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import BICUBIC, COUNTS, items, make_shards, options
from training_fixture import Workplace, differences

from basicsr.data import shards as shard_reading
from basicsr.data.shards import read_samples
from basicsr.data.streams import Lane, shuffled_order

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


@pytest.fixture
def pattern(tmp_path) -> str:
    return make_shards(tmp_path / 'data', COUNTS)


def per_epoch(found: dict[int, tuple], total: int) -> list[Counter]:
    """How often each file came in each whole epoch."""
    epochs = (max(found) + 1) // total
    return [Counter(found[number][0] for number in range(e * total, (e + 1) * total)) for e in range(epochs)]


# ---- order


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 7), st.integers(1, 40), st.data())
def test_lanes_fill_every_place_once_and_count_what_lies_before(world, workers, batch, phase, total, data):
    lanes = [Lane(rank, world, worker, workers, batch, phase) for rank in range(world) for worker in range(workers)]
    filled = [[lane.number(turn) for turn in range(40)] for lane in lanes]
    whole = min(numbers[-1] for numbers in filled)
    assert sorted(n for numbers in filled for n in numbers if n <= whole) == list(range(phase, whole + 1))
    limit = data.draw(st.integers(0, whole))
    assert [lane.before(limit) for lane in lanes] == [sum(n < limit for n in numbers) for numbers in filled]
    shares = [lane.within(3, total) for lane in lanes]
    assert sum(shares) == total - max(0, min(total, phase - 3 * total))


def test_neighbouring_shares_of_an_epoch_differ_by_a_batch_at_most():
    for total in (1, 10, 97, 1000):
        shares = [Lane(rank, 3, worker, 2, 4).within(2, total) for rank in range(3) for worker in range(2)]
        assert max(shares) - min(shares) <= 4


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 9))
def test_a_buffer_lets_every_sample_out_once_and_none_before_it_could_be_in(count, buffer, seed):
    order = shuffled_order(count, buffer, seed).tolist()
    assert sorted(order) == list(range(count))
    assert all(number < place + buffer for place, number in enumerate(order))
    assert order == shuffled_order(count, buffer, seed).tolist()
    if buffer == 1:
        assert order == list(range(count))


@pytest.mark.parametrize(
    ('world', 'workers', 'batch'),
    [(1, 0, 1), (1, 0, 3), (1, 2, 2), (2, 0, 3), (3, 0, 2), (2, 2, 2), (1, 3, 16), (5, 0, 4)],
)
def test_every_sample_comes_once_per_epoch_on_any_number_of_processes_and_workers(world, workers, batch, pattern):
    opt = options(pattern, workers, batch)
    found = items(opt, -(-48 // (batch * world)), world)
    assert sorted(found) == list(range(len(found))), 'the numbers of the stream have no holes'
    epochs = per_epoch(found, 16)
    assert len(epochs) >= 3
    assert all(len(epoch) == 16 and set(epoch.values()) == {1} for epoch in epochs)


def test_a_sample_becomes_the_same_whoever_reads_it(pattern):
    def by_epoch(world: int, workers: int, batch: int) -> dict:
        found = items(options(pattern, workers, batch), 32 // (batch * world), world)
        return {(number // 16, path): content for number, (path, content) in found.items()}

    alone = by_epoch(1, 0, 4)
    assert len(alone) == 32 and by_epoch(2, 0, 2) == by_epoch(1, 2, 8) == by_epoch(4, 1, 1) == alone
    assert sum(alone[0, path] == alone[1, path] for epoch, path in alone if epoch == 0) <= 2, 'epochs differ'


def test_a_sample_becomes_the_same_where_ever_its_shard_lies(pattern, tmp_path):
    moved = pattern.replace('data', 'elsewhere')
    shutil.copytree(tmp_path / 'data', tmp_path / 'elsewhere')
    assert [content for _, (_, content) in sorted(items(options(pattern), 8).items())] == [
        content for _, (_, content) in sorted(items(options(moved), 8).items())
    ]


def test_the_order_is_a_function_of_seed_and_epoch(pattern):
    def orders(seed: int) -> list[tuple[str, ...]]:
        found = items(options(pattern, seed=seed), 24)
        return [tuple(found[number][0] for number in range(e * 16, (e + 1) * 16)) for e in range(3)]

    assert orders(1) == orders(1)
    assert len({*orders(1), *orders(2)}) == 6
    first = [path.split('/')[-2] for path in orders(1)[0]]
    assert len(set(first[:8])) > 1 and sorted(first) != first, 'shards are mixed'


@pytest.mark.parametrize(('world', 'workers', 'batch'), [(1, 0, 3), (1, 2, 2), (2, 2, 3), (3, 0, 1)])
@pytest.mark.parametrize('done', [1, 2, 5, 16])
def test_going_on_gives_the_samples_that_would_have_come(world, workers, batch, done, pattern):
    opt = options(pattern, workers, batch)
    whole = items(opt, done + 6, world)
    samples = done * batch * world
    rest = items(opt, 6, world, samples)
    assert rest == {number: content for number, content in whole.items() if number >= samples}


def test_going_on_opens_only_the_shards_that_are_needed_and_decodes_nothing_before(pattern, monkeypatch):
    opened, decoded = [], []
    monkeypatch.setattr(
        'basicsr.data.streams.read_samples',
        lambda url, *rest: (opened.append(url), read_samples(url, *rest))[1],
    )
    original = shard_reading.decode_pixels
    monkeypatch.setattr(
        shard_reading, 'decode_pixels', lambda data, name: (decoded.append(name), original(data, name))[1]
    )
    opt = options(pattern, shuffle_buffer=1)
    whole = items(opt, 8)
    assert len(opened) == 4, 'an empty shard is not opened'
    opened.clear(), decoded.clear()
    assert items(opt, 2, samples=12) == {number: whole[number] for number in range(12, 16)}
    assert decoded == [whole[number][0] for number in range(12, 16)]
    assert set(opened) == {str(Path(whole[number][0]).parent) for number in range(12, 16)}


def test_going_on_says_on_what_it_depends_that_no_sample_comes_twice(pattern, caplog):
    caplog.set_level('INFO', 'basicsr')
    items(options(pattern, 2, 2), 1)
    items(options(pattern, 2, 2), 1, samples=16)
    assert not caplog.records
    items(options(pattern, 2, 2), 1, samples=4)
    assert 'within epoch 0, exactly if it was left with 1 processes of 2 workers and batches of 2' in caplog.text
    caplog.clear()
    found = items(options(pattern, batch=3), 10, samples=4)
    assert 'come twice' in caplog.text and caplog.records[0].levelname == 'WARNING'
    later = Counter(path for number, (path, _) in found.items() if 16 <= number < 32)
    assert len(later) == 16, 'the next epoch is whole'


# ---- training


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_run_on_shards_goes_on_as_if_nothing_had_happened(workers, tmp_path):
    place = Workplace(tmp_path)
    train = {
        'name': 'stream', 'type': 'ShardedImageDataset', 'shards': make_shards(tmp_path / 'data', (3, 4)), 'gt_size': 8,
        'degradation': BICUBIC, 'shuffle_buffer': 3, 'num_worker_per_gpu': workers, 'batch_size_per_gpu': 2,
    }  # fmt: skip
    changes = {'datasets:train': train, 'train:total_iter': 4, 'logger:save_checkpoint_freq': 2}
    assert place.train('whole', changes) == 0
    assert place.train('run', {**changes, 'train:total_iter': 2}) == 0
    assert place.train('run', changes, resume=True) == 0
    assert differences(place.saved('run', 4), place.saved('whole', 4)) == []
    text = place.log('run')
    assert '7 training items, 2 per iteration' in text and 'going on within epoch 0' in text
