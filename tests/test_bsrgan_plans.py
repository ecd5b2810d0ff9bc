"""BSRGAN's plans: the published probabilities, orders and ranges, counted over thousands of draws."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from oracles import bsrgan_reference as reference

from basicsr.data.degradations.bsrgan import (
    BSRGANDegradation,
    BSRGANPlusDegradation,
)
from basicsr.data.degradations.bsrgan_steps import (
    AnisotropicBlur,
    Cut,
    FinalJpeg,
    Halve,
    IsotropicBlur,
    Jpeg,
    Noise,
    Poisson,
    Resize,
    ResizeToLq,
    Sharpen,
    ShiftDown,
    Speckle,
)
from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError

NAMES = ['BSRGANDegradation', 'BSRGANLightDegradation', 'BSRGANPlusDegradation', 'BicubicDegradation']


def plans(count: int, degradation, height: int = 48, width: int = 64, seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [degradation.draw(height, width, rng) for _ in range(count)]


def kinds(plan: tuple, *classes: type) -> list:
    """The steps that are exactly of one of the classes."""
    return [step for step in plan if type(step) in classes]


# ---- what plans are made of


def close(share: float, expected: float, count: int) -> bool:
    """Within five standard deviations of a share of `count` draws."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize(('name', 'noise', 'jpeg'), [(NAMES[0], (2, 25), (30, 95)), (NAMES[1], (2, 8), (80, 95))])
@pytest.mark.parametrize('scale', [2, 4])
def test_full_and_light_plans_follow_the_published_probabilities(name, noise, jpeg, scale):
    count, places = 3000, Counter()
    seen = {'levels': set(), 'qualities': set(), 'anisotropic': [], 'isotropic': [], 'factors': [], 'shifts': []}
    number = Counter()
    for plan in plans(count, DEGRADATION_REGISTRY.build({'type': name}, scale=scale), 64, 64):
        assert plan[0] == Cut(64, 64) and type(plan[-1]) is FinalJpeg
        halved = [(n, step) for n, step in enumerate(plan) if isinstance(step, Halve)]
        assert not halved or (halved[0][0] == 1 and len(halved) == 1 and scale == 4)
        number.update(f'halve {step.interpolation}' for _, step in halved)
        left = 2 if halved else scale
        chain = plan[2 if halved else 1 : -1]
        down, last = kinds(chain, Resize, ShiftDown), kinds(chain, ResizeToLq)
        assert len(down) == len(last) == 1 and chain.index(down[0]) < chain.index(last[0])
        assert (last[0].width, last[0].height) == (64 // scale, 64 // scale)
        blurs, noises, jpegs = kinds(chain, IsotropicBlur, AnisotropicBlur), kinds(chain, Noise), kinds(chain, Jpeg)
        assert len(blurs) == 2 and len(noises) == 1 and len(jpegs) <= 1
        assert len(chain) == 5 + len(jpegs)
        number['jpeg'] += len(jpegs)
        number[f'noise {noises[0].kind}'] += 1
        places[chain.index(noises[0])] += len(jpegs)
        if noises[0].kind == 'correlated':
            assert noises[0].level == noise[1]
        else:
            seen['levels'].add(noises[0].level)
        seen['qualities'] |= {step.quality for step in (*jpegs, plan[-1])}
        seen['anisotropic'] += [(b.size, b.theta, v / (4 + left))
                                for b in kinds(blurs, AnisotropicBlur) for v in (b.variance1, b.variance2)]  # fmt: skip
        seen['isotropic'] += [(b.size, b.sigma / (2 + 0.2 * left)) for b in kinds(blurs, IsotropicBlur)]
        if isinstance(down[0], ShiftDown):
            assert down[0].factor == left
            seen['shifts'].append(down[0].sigma / left)
        else:
            number[down[0].interpolation] += 1
            seen['factors'].append(down[0].width / (64 // scale))
    divisor = 4 if 'Light' in name else 1
    assert seen['levels'] == set(range(noise[0], noise[1] + 1))
    assert seen['qualities'] == set(range(jpeg[0], jpeg[1] + 1))
    assert close(number['jpeg'] / count, 0.9, count)
    for kind, share in (('color', 0.4), ('gray', 0.4), ('correlated', 0.2)):
        assert close(number[f'noise {kind}'] / count, share, count)
    halved = sum(value for key, value in number.items() if key.startswith('halve'))
    assert close(halved / count, 0.25, count) if scale == 4 else halved == 0
    assert scale == 2 or close(number['halve matlab'] / halved, 0.5, halved)
    assert close(len(seen['shifts']) / count, 0.25, count)
    assert min(seen['shifts']) < 0.1 and 0.58 < max(seen['shifts']) <= 0.6
    for interpolation in ('linear', 'cubic', 'area'):
        assert close(number[interpolation] / len(seen['factors']), 1 / 3, len(seen['factors']))
    assert max(seen['factors']) <= scale and min(seen['factors']) >= 0.4
    assert close(len(seen['isotropic']) / (2 * count), 0.5, 2 * count)
    sizes = {size for size, *_ in seen['anisotropic']}, {size for size, _ in seen['isotropic']}
    assert sizes == ((set(range(5, 15)), {5, 6, 7}) if divisor == 4 else 2 * (set(range(7, 26, 2)),))
    for values, largest in (([v for *_, v in seen['anisotropic']], 1), ([s for _, s in seen['isotropic']], 1)):
        values = np.array(values) * divisor
        assert values.min() >= 0 and values.max() <= largest
        assert values.mean() == pytest.approx(0.5, abs=0.02) and values.std() == pytest.approx(12**-0.5, abs=0.02)
    thetas = [theta for _, theta, _ in seen['anisotropic']]
    assert min(thetas) >= 0 and max(thetas) <= math.pi and np.mean(thetas) == pytest.approx(math.pi / 2, abs=0.08)
    # With JPEG in it the chain has six places; noise has no part in the rule about the resizes.
    assert all(close(places[k] / number['jpeg'], 1 / 6, number['jpeg']) for k in range(6))


def test_the_order_is_a_shuffle_in_which_one_pair_may_swap():
    """Against the published rule on all permutations of seven, without the seventh."""
    expected = Counter()
    rng = np.random.default_rng(1)
    count = 6000
    for _ in range(count):
        order = rng.permutation(7).tolist()
        down, last = order.index(2), order.index(3)
        if down > last:
            order[down], order[last] = order[last], order[down]
        expected[''.join({0: 'b', 1: 'b', 2: 'd', 3: 'l', 4: 'n', 5: '', 6: ''}[o] for o in order)] += 1
    letters = {IsotropicBlur: 'b', AnisotropicBlur: 'b', Resize: 'd', ShiftDown: 'd', ResizeToLq: 'l', Noise: 'n'}
    found = Counter(
        ''.join(letters.get(type(step), '') for step in plan) for plan in plans(count, BSRGANDegradation(2))
    )
    assert found.keys() == expected.keys() and len(found) == 30
    for order, number in expected.items():
        assert abs(found[order] - number) < 6 * math.sqrt(number)


def test_plus_plans_follow_the_published_probabilities():
    count, number, fixed, resizes = 3000, Counter(), 0, []
    for plan in plans(count, BSRGANPlusDegradation(4), 640, 640):
        assert plan[:2] == (Cut(640, 640), Sharpen()) and isinstance(plan[-2], ResizeToLq)
        assert type(plan[-1]) is FinalJpeg and (plan[-2].width, plan[-2].height) == (160, 160)
        chain = plan[2:-2]
        for kind, times in (((IsotropicBlur, AnisotropicBlur), 2), ((Resize,), 2), ((Noise,), 2), ((Jpeg,), 1)):
            assert len(kinds(chain, *kind)) == times
        number['poisson'] += len(kinds(chain, Poisson))
        number['speckle'] += len(kinds(chain, Speckle))
        number['poisson color'] += sum(step.kind == 'color' for step in kinds(chain, Poisson))
        for step in kinds(chain, Poisson):
            assert 100 <= step.values <= 10000
        letters = ''.join({'IsotropicBlur': 'b', 'AnisotropicBlur': 'b', 'Resize': 'r', 'Jpeg': 'j'}
                          .get(type(step).__name__, 'n') for step in chain)  # fmt: skip
        fixed += letters.replace('n', '') == 'brjbr' and letters.startswith('br') and 'brn' in letters[3:]
        sides = [640, *(step.width for step in kinds(chain, Resize))]
        resizes += [after / before for before, after in pairwise(sides)]
    assert close(number['poisson'] / (2 * count), 0.1, 2 * count)
    assert close(number['speckle'] / (2 * count), 0.1, 2 * count)
    assert close(number['poisson color'] / number['poisson'], 0.5, number['poisson'])
    assert 0.48 < fixed / count < 0.56  # one half, and the few that a shuffle gives
    resizes = np.array(resizes)
    # Sides are cut to whole pixels, so that a few factors near 1 end there.
    assert 0.08 < (resizes == 1).mean() < 0.12 and 0.18 < (resizes > 1).mean() < 0.22
    assert 0.12 <= resizes.min() < 0.15 and 1.95 < resizes.max() <= 2


def test_plus_options_change_what_they_name():
    image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    plain = BSRGANPlusDegradation(2, use_sharp=False, poisson_prob=0.0, speckle_prob=0.0, shuffle_prob=0.0)
    for plan in plans(50, plain, 16, 16):
        assert not kinds(plan, Sharpen, Poisson, Speckle)
        np.testing.assert_array_equal(plain.apply(image, plan)[0], image)
        names = [type(step).__name__[-4:] for step in plan[1:]]
        assert names == ['Blur', 'size', 'oise', 'Jpeg', 'Blur', 'size', 'oise', 'ToLq', 'Jpeg']
    always = BSRGANPlusDegradation(2, poisson_prob=1.0, speckle_prob=1.0)
    for plan in plans(20, always, 16, 16):
        assert len(kinds(plan, Poisson)) == len(kinds(plan, Speckle)) == 2
        np.testing.assert_allclose(always.apply(image, plan)[0], reference.sharpened(image), atol=1e-6)


def test_parameters_are_named_by_their_step():
    plan = (
        Cut(64, 32),
        Halve('matlab'),
        IsotropicBlur(7, 1.5),
        Resize(8, 16, 'cubic'),
        AnisotropicBlur(9, 0.5, 1.0, 2.0),
        Noise('gray', 5, 123),
        ResizeToLq(8, 16, 'area'),
        Jpeg(50),
        FinalJpeg(90),
    )
    assert BSRGANDegradation(4).parameters(plan) == {
        'order': 'halve blur resize blur noise resize_to_lq jpeg final_jpeg',
        'halve_interpolation': 'matlab',
        'blur_kind': 'isotropic',
        'blur_size': 7,
        'blur_sigma': 1.5,
        'resize_factor': 0.5,
        'resize_interpolation': 'cubic',
        'blur2_kind': 'anisotropic',
        'blur2_size': 9,
        'blur2_theta': 0.5,
        'blur2_variance1': 1.0,
        'blur2_variance2': 2.0,
        'noise_kind': 'gray',
        'noise_level': 5,
        'resize_to_lq_factor': 1.0,
        'resize_to_lq_interpolation': 'area',
        'jpeg_quality': 50,
        'final_jpeg_quality': 90,
    }


# ---- options


@pytest.mark.parametrize(
    ('section', 'key', 'message'),
    [
        ({'type': 'BSRGANDegradation', 'noise_range': [9, 2]}, 'noise_range', 'goes from low to high'),
        ({'type': 'BSRGANDegradation', 'noise_range': [-1, 2]}, 'noise_range', 'greater than or equal to 0'),
        ({'type': 'BSRGANLightDegradation', 'jpeg_range': [0, 50]}, 'jpeg_range', 'greater than or equal to 1'),
        ({'type': 'BSRGANPlusDegradation', 'jpeg_range': [30, 101]}, 'jpeg_range', 'less than or equal to 100'),
        ({'type': 'BSRGANPlusDegradation', 'jpeg_range': [50, 30]}, 'jpeg_range', 'goes from low to high'),
        ({'type': 'BSRGANPlusDegradation', 'poisson_prob': 1.5}, 'poisson_prob', 'less than or equal to 1'),
        ({'type': 'BSRGANDegradation', 'lq_patchsize': 0}, 'lq_patchsize', 'greater than 0'),
        ({'type': 'BSRGANDegradation', 'jpeg_rang': [30, 95]}, 'jpeg_rang', "did you mean 'jpeg_range'"),
        ({'type': 'BSRGANDegradation', 'jpeg_range': 30}, 'jpeg_range', 'should be a list'),
        ({'type': 'BicubicDegradation', 'round_to_8_bit': 1}, 'round_to_8_bit', 'true or false'),
        ({'type': 'BSRGANDegradatio'}, 'type', "did you mean 'BSRGANDegradation'"),
    ],
)
def test_bad_options_are_named(section, key, message):
    with pytest.raises(OptionError, match=message) as caught:
        DEGRADATION_REGISTRY.build(section, scale=2)
    assert caught.value.key[0] == key


def test_ranges_of_the_options_are_the_ranges_drawn():
    degradation = DEGRADATION_REGISTRY.build(
        {'type': 'BSRGANLightDegradation', 'noise_range': [3, 4], 'jpeg_range': [60, 60]}, scale=2
    )
    drawn = plans(200, degradation)
    assert {step.level for plan in drawn for step in kinds(plan, Noise)} == {3, 4}
    assert {step.quality for plan in drawn for step in kinds(plan, Jpeg, FinalJpeg)} == {60}
