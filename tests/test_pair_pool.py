"""The training-pair pool: the published exchange without copying, exact resume, clear errors."""

import numpy as np
import pytest
import torch
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.data.degradations.pair_pool import PairPool
from basicsr.utils.registry import OptionError


def batch(t: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that are their numbers."""
    lq = torch.arange(t * size, (t + 1) * size, dtype=torch.float32).reshape(size, 1, 1, 1)
    return lq, 1000 + lq


class PublishedPool:
    """The text of data.md 5: the whole pool is permuted, the first samples leave, the new ones take their places."""

    def __init__(self, queue_size: int):
        self.queue_size, self.pairs = queue_size, []

    def exchange(self, lq, gt, permutation):
        new = list(zip(lq, gt))
        if len(self.pairs) < self.queue_size:
            self.pairs += new
            return lq, gt
        self.pairs = [self.pairs[n] for n in permutation]
        old, self.pairs[: len(new)] = self.pairs[: len(new)], new
        return torch.stack([pair[0] for pair in old]), torch.stack([pair[1] for pair in old])


def test_the_pairs_that_leave_are_the_published_ones():
    case = load_case('data', 'train_pair_pool')
    size, pool = case.args['batch'], PairPool(case.args['queue_size'])
    for t in range(case.args['batches']):
        lq, gt = pool.exchange_by(*batch(t, size), lambda t=t: case.inputs[f'perm_{t}'])
        assert np.array_equal(lq.flatten(), case.arrays['out_lq'][t])
        assert np.array_equal(gt.flatten(), case.arrays['out_gt'][t])


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 4), batches_held=st.integers(1, 5), steps=st.integers(1, 15), seed=st.integers(0, 2**62))
def test_it_equals_the_pool_that_copies_everything(size, batches_held, steps, seed):
    queue_size = size * batches_held
    pool, published = PairPool(queue_size), PublishedPool(queue_size)
    for t in range(steps):
        ours = pool.exchange(*batch(t, size), seed + t)
        theirs = published.exchange(*batch(t, size), np.random.default_rng(seed + t).permutation(queue_size))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 4), batches_held=st.integers(1, 4), steps=st.integers(1, 12))
def test_nothing_is_lost_or_doubled_and_pairs_stay_pairs(size, batches_held, steps):
    pool, given_out = PairPool(size * batches_held), []
    for t in range(steps):
        lq, gt = pool.exchange(*batch(t, size), t)
        assert torch.equal(gt, 1000 + lq)
        if t >= batches_held:
            given_out += lq.flatten().tolist()
    held = pool.state_dict()['lq'].flatten().tolist()
    assert sorted(given_out + held) == [float(n) for n in range(steps * size)]


def test_every_pair_leaves_with_the_same_probability():
    left = np.zeros(6)
    for seed in range(3000):
        pool = PairPool(6)
        for t in range(3):
            pool.exchange(*batch(t, 2), seed)
        left[pool.exchange(*batch(3, 2), seed)[0].flatten().long().numpy()] += 1
    assert np.all(np.abs(left / 3000 - 1 / 3) < 5 * np.sqrt(2 / 9 / 3000))


@pytest.mark.parametrize('saved_after', [0, 1, 3, 5])
def test_a_loaded_pool_goes_on_exactly(saved_after, tmp_path):
    pool, rest = PairPool(6), range(saved_after, 9)
    for t in range(saved_after):
        pool.exchange(*batch(t, 2), t)
    torch.save(pool.state_dict(), tmp_path / 'pool.pth')
    expected = [pool.exchange(*batch(t, 2), t) for t in rest]
    loaded = PairPool(6)
    loaded.exchange(*batch(7, 2), 0)
    loaded.load_state_dict(torch.load(tmp_path / 'pool.pth', weights_only=True))
    for t, pairs in zip(rest, expected):
        assert all(torch.equal(a, b) for a, b in zip(loaded.exchange(*batch(t, 2), t), pairs))


def test_what_leaves_is_not_changed_by_later_batches():
    pool = PairPool(2)
    pool.exchange(*batch(0, 2), 0)
    out = pool.exchange(*batch(1, 2), 0)[0]
    before = out.clone()
    pool.exchange(*batch(2, 2), 0)
    assert torch.equal(out, before)


def test_a_pool_may_have_any_size():
    """Of the batch that fills it, only a part is kept; then each step gives as many pairs as it takes."""
    pool, seen = PairPool(5), []
    for t in range(3):
        lq, _ = batch(t, 2)
        assert torch.equal(pool.exchange(*batch(t, 2), t)[0], lq)
    kept = set(range(5))  # of the samples 0 to 5
    for t in range(3, 40):
        lq, gt = pool.exchange(*batch(t, 2), t)
        out = {int(value) for value in lq.flatten()}
        assert len(out) == 2 and out <= kept and torch.equal(gt, lq + 1000)
        kept = kept - out | {2 * t, 2 * t + 1}
        seen += out
    assert len(seen) == len({*seen})


def test_sizes_that_do_not_fit_are_errors():
    with pytest.raises(OptionError, match='queue_size 4 is smaller than the batch of 8') as fault:
        PairPool(4).exchange(*batch(0, 8), 0)
    assert fault.value.key == ('queue_size',)
    with pytest.raises(OptionError, match='should be 1 or more'):
        PairPool(0)
    pool = PairPool(4)
    pool.exchange(*batch(0, 2), 0)
    with pytest.raises(ValueError, match=r'the pair pool holds lq of shape \(1, 1, 1\), got \(1, 2, 2\)'):
        pool.exchange(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 1, 1), 0)
    with pytest.raises(ValueError, match='queue_size was 4 and is 8 now'):
        PairPool(8).load_state_dict(pool.state_dict())
