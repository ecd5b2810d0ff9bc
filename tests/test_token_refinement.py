"""Refining tokens: the numbers kept, the draws, and the loop, image by image as the plain transcription does it."""

import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from golden_case import GOLDEN
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(GOLDEN.parent / 'oracles'))

from iter_reference import ITERReference, Rule, kept_count, onehot

from basicsr.models.token_refinement import (
    GivenNoise,
    Greedy,
    Refinement,
    SeededDraws,
    first_step,
    keep_more,
    kept_counts,
    masked_share,
    refine_tokens,
)
from basicsr.utils.registry import OptionError

TOKENS = 6


class Toy:
    """A critic and a refiner of one convolution each, on one-hot maps; one image at a time, so that all is exact."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.critic_weight = torch.randn(2, 2 * TOKENS, 3, 3, generator=generator)
        self.refiner_weight = torch.randn(TOKENS, 2 * TOKENS + 2, 3, 3, generator=generator)
        self.calls = []

    def critic_condition(self, lq_tokens: Tensor) -> Tensor:
        return onehot(lq_tokens, TOKENS)

    def evaluate(self, candidate: Tensor, condition: Tensor) -> Tensor:
        self.calls.append(('critic', len(candidate)))
        pairs = torch.cat([onehot(candidate, TOKENS), condition], 1)
        return torch.cat([F.conv2d(pair[None], self.critic_weight, padding=1) for pair in pairs])

    def refine_condition(self, lq_tokens: Tensor, good: Tensor) -> Tensor:
        return torch.cat([onehot(lq_tokens, TOKENS), 1 - good[:, None]], 1)

    def refine(self, condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        self.calls.append(('refiner', len(tokens)))
        kept = kept[:, None]
        pairs = torch.cat([condition, onehot(tokens, TOKENS) * kept, 1 - kept], 1)
        return torch.cat([F.conv2d(pair[None], self.refiner_weight, padding=1) for pair in pairs])

    def transcribed(self, tokens: Tensor, rule: Rule):
        """What the plain transcription, which is given one-hot maps, makes of one image's tokens."""

        def refine(lq: Tensor, good: Tensor, current: Tensor, kept: Tensor) -> Tensor:
            return F.conv2d(torch.cat([lq, 1 - good, current * kept, 1 - kept], 1), self.refiner_weight, padding=1)

        system = SimpleNamespace(
            n=TOKENS,
            lq_encoder=lambda tokens: onehot(tokens, TOKENS),
            crit=lambda a, b: F.conv2d(torch.cat([a, b], 1), self.critic_weight, padding=1),
            refine=refine,
            vqgan=SimpleNamespace(decode_indices=lambda tokens: tokens),
        )
        return ITERReference.restore_padded(system, tokens, rule)


def token_maps(count: int = 5, height: int = 6, width: int = 5) -> Tensor:
    """Maps of which the first have few good tokens and the last many, by chance; not in this order."""
    maps = torch.randint(0, TOKENS, (count, height, width), generator=torch.Generator().manual_seed(3))
    return maps.clamp(max=torch.tensor([5, 0, 2, 1, 4])[:count].view(-1, 1, 1))


def gumbel(*shape: int) -> Tensor:
    return -(-torch.rand(shape, generator=torch.Generator().manual_seed(7)).log()).log()


RULES = {
    'greedy': Refinement(sampling='greedy', threshold=0.5),
    'paper': Refinement(sampling='greedy', threshold=0.3, schedule='cosine', T=6, temp_token=0.7, temp_mask=2.0),
    'many steps': Refinement(sampling='greedy', threshold=0.9, schedule='pow0.5', T=12),
    'begins above zero': Refinement(sampling='greedy', threshold=0.8, schedule='exp10', T=5),
    'one step': Refinement(sampling='greedy', threshold=1.0, T=1),
}


@pytest.mark.parametrize('noise', [False, True], ids=['greedy', 'noise'])
@pytest.mark.parametrize('how', RULES.values(), ids=RULES)
def test_every_image_of_a_batch_takes_the_steps_that_it_takes_alone(how, noise):
    maps, toy = token_maps(), Toy()
    noises = gumbel(how.T, 5, TOKENS, 6, 5), gumbel(how.T, 5, 6, 5)
    found = refine_tokens(toy, maps, how, GivenNoise(*noises) if noise else Greedy(), keep_history=True)
    for index, tokens in enumerate(maps):
        token_noise, mask_noise = (part[:, index : index + 1] if noise else None for part in noises)
        rule = Rule(how.T, how.temp_token, how.temp_mask, how.threshold, how.schedule, token_noise, mask_noise)
        alone = toy.transcribed(tokens[None], rule)
        assert list(range(found.starts[index], how.T)) == alone.executed
        assert torch.equal(found.history[:, index], torch.cat(alone.tokens)), 'the map after each step'
        assert torch.equal(found.masks[:, index], torch.cat(alone.masks)[:, 0].bool())
        assert torch.equal(found.tokens[index], alone.image[0])
    assert found.sound.all()
    if how.T > 1:
        assert len(set(found.starts)) > 2, 'this is to be a test with images that begin at several steps'


def test_images_without_steps_and_evaluations_that_nothing_uses_are_not_computed():
    maps, toy = token_maps(), Toy()
    how = Refinement(sampling='greedy', threshold=0.1, T=4)
    starts = refine_tokens(toy, maps, how, Greedy()).starts
    at_work = [sum(start <= step for start in starts) for step in range(how.T)]
    expected = [('critic', 5)]
    for images in at_work:
        expected += [('refiner', images), ('critic', images)] if images else []
    assert toy.calls == expected[:-1], 'all but the evaluation after the last step'
    assert how.T in starts and len(set(at_work)) > 2


def test_without_adaptive_start_all_steps_run_from_a_masked_map_and_lq_is_not_evaluated():
    maps, toy = token_maps(), Toy()
    how = Refinement(adaptive=False, sampling='greedy', schedule='cosine')
    found = refine_tokens(toy, maps, how, Greedy(), keep_history=True)
    assert toy.calls == [('refiner', 5), *[('critic', 5), ('refiner', 5)] * 7] and found.starts == [0] * 5
    for index, tokens in enumerate(maps):
        alone = toy.transcribed(tokens[None], Rule(threshold=1.1))
        assert torch.equal(found.history[:, index], torch.cat(alone.tokens))
        assert torch.equal(found.masks[:, index], torch.cat(alone.masks)[:, 0].bool())


def test_drawing_from_seeds_depends_on_neither_batch_nor_order():
    maps, toy, how, seeds = token_maps(), Toy(), Refinement(threshold=0.5), [5, 3, 2**33, 0, 3]

    def refined(rows: list[int]) -> Tensor:
        draws = SeededDraws([seeds[row] for row in rows], (how.T, 6, 5))
        return refine_tokens(toy, maps[rows], how, draws).tokens

    together = refined([0, 1, 2, 3, 4])
    assert torch.equal(refined([3, 0, 4, 2, 1]), together[[3, 0, 4, 2, 1]])
    for index in range(5):
        assert torch.equal(refined([index])[0], together[index])
    seeds[0] = 6
    assert not torch.equal(refined([0])[0], together[0])


def test_kept_positions_only_grow_by_the_numbers_of_the_schedule():
    how = Refinement(threshold=0.5, schedule='cosine')
    maps = token_maps()
    draws = SeededDraws(range(5), (how.T, 6, 5))
    found = refine_tokens(Toy(), maps, how, draws, keep_history=True)
    counts = kept_counts('cosine', how.T, 6, 5)
    for start, masks in zip(found.starts, found.masks.unbind(1), strict=True):
        sizes = masks.sum((1, 2)).tolist()
        assert all((after | before == after).all() for before, after in itertools.pairwise(masks))
        for step in range(start + 1, how.T):
            assert sizes[step] == max(counts[step], sizes[step - 1] + 1)


def test_a_position_that_is_kept_is_not_drawn_again_where_all_probabilities_vanish():
    """Published: the floor of the weights makes kept positions as likely as others whose probability underflows."""
    kept = torch.tensor([[[True, False, False, True]]])
    equal = torch.full((1, 1, 4), 1e-8)
    assert keep_more(kept, equal, 3).tolist() == [[[True, True, False, True]]]
    assert keep_more(kept, equal, 0).sum() == 3, 'at least one more'
    assert keep_more(torch.ones_like(kept), equal, 9).all(), 'there are no more'


def test_each_image_draws_its_own_number():
    kept = torch.tensor([[[False] * 5], [[True, True, False, False, False]]])
    ranks = torch.tensor([[[0.1, 0.5, 0.5, 0.2, 0.0]], [[9.0, 9.0, 0.0, 0.0, 1.0]]])
    assert keep_more(kept, ranks, 3).int().tolist() == [[[0, 1, 1, 1, 0]], [[1, 1, 0, 0, 1]]]


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'pow2', 'pow0.5', 'exp10', 'exp0.5'])
def test_schedules_are_their_formulas_and_counts_are_whole_numbers_of_float32(schedule):
    r = torch.linspace(0, 1, 21, dtype=torch.float64)
    share, number = masked_share(schedule, r), float(schedule[3:]) if schedule[3:].replace('.', '').isdigit() else 0
    formulas = {
        'lin': lambda r: 1 - r,
        'cos': lambda r: math.cos(math.pi * r / 2),
        'pow': lambda r: 1 - r**number,
        'exp': lambda r: (number - 1) / number * (1 - number ** (r - 1)),
    }
    torch.testing.assert_close(share, torch.tensor([formulas[schedule[:3]](value) for value in r.tolist()]).double())
    assert (share.diff() < 0).all() and share[-1].abs() < 1e-12 and share.max() <= 1 + 1e-12
    for steps, height, width in ((8, 8, 8), (6, 16, 24), (10, 32, 40), (12, 24, 24)):
        expected = [kept_count(step, steps, schedule, height, width) for step in range(steps)]
        assert kept_counts(schedule, steps, height, width) == expected


def test_a_third_of_the_steps_keeps_a_third_of_the_tokens_in_float32_only():
    assert kept_counts('linear', 6, 16, 24) == [0, 64, 128, 192, 256, 320]
    assert [int((1 - (1 - step / 6)) * 24 * 16) for step in range(6)] == [0, 63, 127, 192, 256, 320]


@pytest.mark.parametrize(
    ('schedule', 'words'),
    [
        ('cosin', 'known: linear, cosine'),
        ('pow', 'with a number'),
        ('pow-1', 'with a number'),
        ('pow0', "'pow' takes a number above 0, got 0"),
        ('exp1', "'exp' takes a number of 0.5 or more that is not 1"),
        ('exp0.2', 'got 0.2'),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule, words):
    with pytest.raises(OptionError, match=words) as error:
        Refinement(schedule=schedule)
    assert error.value.key == ('schedule',)


def test_the_start_is_the_first_step_that_keeps_as_many_as_are_good():
    counts = [0, 8, 16, 24]
    assert [first_step(counts, good) for good in (0, 1, 8, 9, 24, 25)] == [0, 1, 1, 2, 3, 4]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.randn(1, 7, 1, 1, generator=torch.Generator().manual_seed(1))
    logits[:, 2] = -math.inf
    side = 200
    drawn = SeededDraws([4], (1, side, side)).tokens(logits.expand(1, 7, side, side), 0, torch.tensor([0]))
    shares = torch.bincount(drawn.flatten(), minlength=7) / side**2
    wanted = logits.softmax(1).flatten()
    assert ((shares - wanted).abs() < 5 * (wanted * (1 - wanted) / side**2).sqrt() + 1e-9).all()
    assert shares[2] == 0


def test_positions_are_drawn_without_replacement_as_multinomial_draws_them():
    """How often each pair of positions is drawn: the closed form of two draws without replacement."""
    weights, images = torch.tensor([0.5, 0.3, 0.15, 0.05]), 20000
    ranks = SeededDraws(range(images), (1, 1, 4)).ranks(weights.expand(images, 1, 4), 0, torch.arange(images))
    drawn = keep_more(torch.zeros(images, 1, 4, dtype=torch.bool), ranks, 2)[:, 0]
    for a in range(4):
        for b in range(a):
            share = (drawn[:, a] & drawn[:, b]).float().mean()
            p, q = weights[a], weights[b]
            wanted = p * q / (1 - p) + q * p / (1 - q)
            assert abs(share - wanted) < 5 * (wanted / images).sqrt()


def test_logits_that_are_no_numbers_are_told_by_image():
    maps, toy = token_maps(), Toy()
    refine = toy.refine

    def broken(condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        logits = refine(condition, tokens, kept)
        logits[(condition[:, 5].sum((1, 2)) > 0)] = math.nan  # the first image alone has the last token
        return logits

    toy.refine = broken
    how = Refinement(threshold=1.0, sampling='greedy')
    assert refine_tokens(toy, maps, how, Greedy()).sound.tolist() == [False, True, True, True, True]


def test_progress_is_told_after_each_step_also_if_nobody_takes_it():
    done = []
    how = Refinement(threshold=0.0, T=3)
    refine_tokens(Toy(), token_maps(), how, Greedy(), progress=lambda *counts: done.append(counts))
    assert done == [(1, 3), (2, 3), (3, 3)]
