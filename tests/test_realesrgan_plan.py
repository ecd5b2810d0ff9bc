"""Plans of the second-order degradation: what is drawn, for whom, and which options are mistakes."""

from collections import Counter

import numpy as np
import pytest
import torch
from degradation_batches import real_esrgan
from golden_case import GOLDEN, load_case
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.data.degradations.realesrgan import S3DiffDegradation
from basicsr.data.degradations.realesrgan_plan import SeededNoise
from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError

PIPELINES = sorted(path.stem for path in (GOLDEN / 'data').glob('*_pipeline_[0-9].json'))
NAMES = ['RealESRGANDegradation', 'S3DiffDegradation']


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40), step=st.integers(0, 10**7), groups=st.integers(0, 5), global_batch=st.integers(1, 12)
)
def test_groups_share_their_decisions(seed, step, groups, global_batch):
    numbers = range(step * global_batch, (step + 1) * global_batch)
    plans = real_esrgan(seed=seed, global_batch=global_batch, groups=groups).draw(numbers)
    assert plans == tuple(
        real_esrgan(seed=seed, global_batch=global_batch, groups=groups).draw([n])[0] for n in numbers
    )
    group = [n if groups == 0 else n % groups for n in numbers]
    for one, plan in zip(group, plans):
        for other, further in zip(group, plans):
            assert (plan.decisions == further.decisions) == (one == other)
    assert len({own.noise_seed for plan in plans for own in (plan.first, plan.second)}) == 2 * global_batch
    assert len({plan.first.quality for plan in plans}) == global_batch


def test_the_gray_map_is_one_for_a_group_and_the_color_noise_everybodys_own():
    degrade = real_esrgan(global_batch=4, gaussian_noise_prob=1, gray_noise_prob=1)
    flat = torch.full((4, 3, 10, 10), 0.5)
    color, gray = SeededNoise().normal(flat, 0, degrade.draw(range(4)))
    assert gray.shape == (10, 10) and not color.any()
    assert torch.equal(gray, SeededNoise().normal(flat[:1], 0, degrade.draw([2]))[1])
    other_stage = SeededNoise().normal(flat, 1, degrade.draw(range(4)))[1]
    other_step = SeededNoise().normal(flat, 0, degrade.draw([4]))[1]
    assert not torch.equal(gray, other_stage) and not torch.equal(gray, other_step)
    alone = [SeededNoise().normal(flat[:1], 0, real_esrgan(groups=0).draw([n])) for n in range(2)]
    plans = real_esrgan(groups=0, gaussian_noise_prob=1, gray_noise_prob=1)
    maps = [SeededNoise().normal(flat[:1], 0, plans.draw([n]))[1] for n in range(2)]
    assert not torch.equal(*maps) and len(alone) == 2
    color, gray = SeededNoise().normal(flat, 0, real_esrgan(gray_noise_prob=0).draw(range(4)))
    assert gray is None and len({float(map_.sum()) for map_ in color}) == 4


# ---- what is drawn


def test_draws_have_the_ranges_and_probabilities_of_the_options():
    plans = [p for s in range(4) for p in real_esrgan(seed=s, groups=0, resize_range=(0.15, 1.5)).draw(range(1000))]

    def share(found: Counter, expected: dict) -> None:
        assert found.keys() == expected.keys()
        for name, probability in expected.items():
            deviation = np.sqrt(probability * (1 - probability) / len(plans))
            assert abs(found[name] / len(plans) - probability) < 5 * deviation, name

    def uniform(values: list[float], low: float, high: float) -> None:
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        assert low <= quantiles[0] and quantiles[-1] <= high
        assert np.abs(quantiles - np.linspace(low, high, 5)).max() < 2.5 * (high - low) / np.sqrt(len(values))

    for name, resize, range_, options in (
        ('first', (0.2, 0.7, 0.1), (0.15, 1.5), ((1, 30), (0.05, 3))),
        ('second', (0.3, 0.4, 0.3), (0.3, 1.2), ((1, 25), (0.05, 2.5))),
    ):
        stages = [(getattr(p.decisions, name), getattr(p, name)) for p in plans]
        share(Counter(s.resize for s, _ in stages), dict(zip(('up', 'down', 'keep'), resize)))
        share(Counter(s.mode for s, _ in stages), dict.fromkeys(('area', 'bilinear', 'bicubic'), 1 / 3))
        share(Counter(s.noise for s, _ in stages), {'gaussian': 0.5, 'poisson': 0.5})
        share(Counter(own.gray for _, own in stages), {True: 0.4, False: 0.6})
        uniform([s.scale for s, _ in stages if s.resize == 'up'], 1, range_[1])
        uniform([s.scale for s, _ in stages if s.resize == 'down'], range_[0], 1)
        assert {s.scale for s, _ in stages if s.resize == 'keep'} == {1}
        uniform([own.noise for s, own in stages if s.noise == 'gaussian'], *options[0])
        uniform([own.noise for s, own in stages if s.noise == 'poisson'], *options[1])
        uniform([own.quality for _, own in stages], 30, 95)
    assert {p.decisions.first.blur for p in plans} == {True}
    share(Counter(p.decisions.second.blur for p in plans), {True: 0.8, False: 0.2})
    share(Counter(p.decisions.final_mode for p in plans), dict.fromkeys(('area', 'bilinear', 'bicubic'), 1 / 3))
    share(Counter(p.decisions.jpeg_first for p in plans), {True: 0.5, False: 0.5})
    uniform([p.top for p in plans], 0, 1)
    assert Counter(p.offset(2, 0) for p in plans).keys() == {(0, 0), (1, 0), (2, 0)}
    assert not any(p.decisions.untouched for p in plans)


def test_no_degradation_is_drawn_with_its_probability():
    plans = S3DiffDegradation(4, 0, 1).draw(range(6000))
    assert 25 < sum(p.decisions.untouched for p in plans) < 95


def test_parameters_are_flat_and_say_everything_once():
    seen = [real_esrgan(groups=0).parameters(plan) for plan in real_esrgan(groups=0).draw(range(60))]
    assert {type(value) for flat in seen for value in flat.values()} == {str, float}
    names = {name for flat in seen for name in flat}
    assert names == {
        'resize', 'resize_scale', 'resize_mode', 'noise', 'noise_sigma', 'poisson_scale', 'jpeg_quality', 'blur2',
        'resize2', 'resize_scale2', 'resize_mode2', 'noise2', 'noise_sigma2', 'poisson_scale2', 'jpeg_quality2',
        'final_mode', 'final_order',
    }  # fmt: skip
    assert all(('noise_sigma' in flat) != ('poisson_scale' in flat) for flat in seen)


# ---- mistakes


@pytest.mark.parametrize('name', PIPELINES)
def test_the_published_options_load(name):
    options = dict(load_case('data', name).args['options'])
    options.pop('scale', None)
    kind = 'S3DiffDegradation' if name.startswith('s3diff') else 'RealESRGANDegradation'
    DEGRADATION_REGISTRY.build({'type': kind, **options}, scale=4, seed=0, global_batch=12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'resize_range': [1.5, 0.15]}, 'resize_range needs \\[smallest, largest\\], at least 0, got \\[1.5, 0.15\\]'),
        ({'resize_range2': [0.3, 0.9]}, 'resize_range2 shrinks'),
        ({'resize_range': [0, 1]}, 'resize_range shrinks'),
        ({'noise_range': [-1, 3]}, 'noise_range needs'),
        ({'noise_range2': [5, 3]}, 'noise_range2 needs'),
        ({'poisson_scale_range': [0.05]}, 'too few values'),
        ({'jpeg_range': [0, 95]}, 'jpeg_range needs .* between 1 and 100'),
        ({'jpeg_range2': [30, 101]}, 'jpeg_range2 needs'),
        ({'resize_prob': [0.2, 0.7, 0.2]}, 'resize_prob needs probabilities'),
        ({'resize_prob2': [1.2, -0.2, 0]}, 'resize_prob2 needs probabilities'),
        ({'gaussian_noise_prob': 1.5}, 'gaussian_noise_prob is a probability'),
        ({'gray_noise_prob2': -0.1}, 'gray_noise_prob2 is a probability'),
        ({'second_blur_prob': 2}, 'second_blur_prob is a probability'),
        ({'gt_size': 33}, 'gt_size should be a multiple of the scale 2, got 33'),
        ({'gt_size': 0}, 'gt_size should be'),
        ({'groups': -1}, 'groups is 0'),
        ({'resize_probability': 1}, 'did you mean'),
    ],
)
@pytest.mark.parametrize('name', NAMES)
def test_mistakes_in_options_are_named(name, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        DEGRADATION_REGISTRY.build({'type': name, **options}, scale=2, seed=0, global_batch=4)
    assert caught.value.key == (*options,)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('RealESRGANDegradation', {'queue_size': -1}, 'queue_size is a number of pairs'),
        ('RealESRGANDegradation', {'gt_usm': 'all'}, "true or false|'both'"),
        ('S3DiffDegradation', {'no_degradation_prob': 1.01}, 'no_degradation_prob is a probability'),
        ('S3DiffDegradation', {'queue_size': 180}, 'is not a known option of S3DiffDegradation'),
    ],
)
def test_mistakes_in_the_options_of_one_of_them(name, options, message):
    with pytest.raises(OptionError, match=message) as caught:
        DEGRADATION_REGISTRY.build({'type': name, **options}, scale=2, seed=0, global_batch=4)
    assert caught.value.key == (*options,)
