import math
import random

import numpy as np
import pytest
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import degradation_reference as oracle
from reference import degradation_cases  # noqa: F401 (it registers)
from reference.checking import judge

from basicsr.data.degradations.kernels import (
    KINDS,
    SIZES,
    KernelOptions,
    KernelPlan,
    draw_mixed_kernel,
    kernels_of,
    padded,
    parameters,
    sinc_kernel,
)
from basicsr.utils.registry import OptionError, check_arguments

FAMILIES = {'iso': 'gaussian', 'aniso': 'gaussian'}
REAL_ESRGAN = {
    'blur_kernel_size': 21,
    'kernel_list': list(KINDS),
    'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4],
    'betap_range': [1, 2],
    'blur_kernel_size2': 21,
    'kernel_list2': list(KINDS),
    'kernel_prob2': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob2': 0.1,
    'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4],
    'betap_range2': [1, 2],
    'final_sinc_prob': 0.8,
}


def options(**changes) -> KernelOptions:
    return KernelOptions(**REAL_ESRGAN | changes)


def plans(count: int = 300, **changes) -> list[tuple[KernelPlan, KernelPlan, KernelPlan]]:
    rng, chosen = np.random.default_rng(0), options(**changes)
    return [chosen.plan(rng) for _ in range(count)]


@pytest.mark.parametrize('name', ['blur_kernels', 'rng_mixed_kernels'])
def test_equals_the_published_kernels(name):
    verdict = judge(load_case('data', name))
    assert verdict.status == 'pass', verdict


# ---- formulas


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    size=st.sampled_from(SIZES),
    sigma_x=st.floats(0.1, 8),
    sigma_y=st.floats(0.1, 8),
    theta=st.floats(-math.pi, math.pi),
    beta=st.floats(0.3, 8),
)
def test_a_kernel_equals_its_formula_with_matrices(kind, size, sigma_x, sigma_y, theta, beta):
    aniso, bell = kind.endswith('aniso'), kind in FAMILIES
    plan = KernelPlan(kind, size, sigma_x, sigma_y if aniso else None, theta if aniso else None, None if bell else beta)
    family = FAMILIES.get(kind, kind.rpartition('_')[0])
    expected = oracle.bivariate_kernel(family, size, sigma_x, sigma_y, theta, beta, isotropic=not aniso)
    kernel = plan.kernel()
    np.testing.assert_allclose(kernel, expected, atol=1e-9)
    assert kernel.min() >= 0 and math.isclose(kernel.sum(), 1, abs_tol=1e-12)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)  # no shift of the image


def test_a_wide_kernel_has_the_moments_of_its_gaussian():
    kernel = KernelPlan('aniso', 61, sigma_x=4.0, sigma_y=1.5, theta=0.4).kernel()
    y, x = np.mgrid[:61, :61] - 30
    turn = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    expected = turn @ np.diag([16.0, 2.25]) @ turn.T
    moments = [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    np.testing.assert_allclose(moments, expected, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sigma', [1e-8, 1e8])
def test_extreme_widths_stay_finite(kind, sigma):
    kernel = KernelPlan(kind, 7, sigma, sigma, 0.3, None if kind in FAMILIES else 3.0).kernel()
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel, oracle.padded(np.ones((1, 1)), 7) if sigma < 1 else 1 / 49, atol=1e-6)


def test_a_sinc_kernel_lets_low_frequencies_pass_and_no_others():
    response = np.abs(np.fft.fft2(sinc_kernel(201, math.pi / 2)))
    frequency = np.abs(2 * math.pi * np.fft.fftfreq(201))
    radius = np.hypot(frequency[:, None], frequency)
    np.testing.assert_allclose(response[radius < 1.3], 1, atol=0.08)
    np.testing.assert_allclose(response[radius > 1.9], 0, atol=0.08)


@pytest.mark.parametrize('size', [7, 13, 21])
@pytest.mark.parametrize('cutoff', [math.pi / 5, 1.1, math.pi])
def test_a_sinc_kernel_equals_its_formula(size, cutoff):
    ours = padded(sinc_kernel(size, cutoff))
    np.testing.assert_allclose(ours, oracle.sinc_kernel(cutoff, size, pad_to=21), atol=1e-7)


# ---- drawing


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from(SIZES))
def test_draws_are_the_published_ones_for_any_seed(seed, size):
    given = KINDS, REAL_ESRGAN['kernel_prob'], size, (0.2, 3), (0.5, 4), (1, 2)
    ours = draw_mixed_kernel(*given, random.Random(seed), np.random.RandomState(seed))
    expected = oracle.mixed_kernel(*given, random.Random(seed), np.random.RandomState(seed))
    np.testing.assert_allclose(ours.kernel(), expected, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**63), sinc=st.sampled_from([0, 0.5, 1]), limited=st.booleans())
def test_drawn_kernels_are_arrays_of_21_that_keep_brightness_and_depend_on_the_generator_alone(seed, sinc, limited):
    chosen = options(sinc_prob=sinc, final_sinc_prob=sinc, limit_kernel_size=limited, blur_kernel_size2=9)
    kernels = chosen.draw(np.random.default_rng(seed))
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel.shape == (21, 21) and kernel.dtype == np.float32 and np.isfinite(kernel).all()
        assert math.isclose(kernel.sum(dtype=np.float64), 1, abs_tol=1e-5)
    for once, again in zip(kernels, kernels_of(chosen.plan(np.random.default_rng(seed)))):
        np.testing.assert_array_equal(once, again)


def test_kinds_and_sizes_come_as_often_as_the_options_say():
    drawn = [plan[0] for plan in plans(4000)]
    shares = [sum(plan.kind == kind for plan in drawn) / len(drawn) for kind in (*KINDS, 'sinc')]
    np.testing.assert_allclose(shares, [*(0.9 * np.array(REAL_ESRGAN['kernel_prob'])), 0.1], atol=0.02)
    np.testing.assert_allclose([sum(plan.size == s for plan in drawn) / len(drawn) for s in SIZES], 1 / 8, atol=0.02)


def test_numbers_stay_in_their_ranges():
    for first, second, final in plans(1000):
        for plan, widest in ((first, 3), (second, 1.5)):
            if plan.kind == 'sinc':
                assert math.pi / (3 if plan.size < 13 else 5) <= plan.cutoff <= math.pi
                continue
            assert 0.2 <= plan.sigma_x <= widest
            assert (plan.sigma_y is None) == (plan.theta is None) == (not plan.kind.endswith('aniso'))
            assert plan.sigma_y is None or (0.2 <= plan.sigma_y <= widest and abs(plan.theta) <= math.pi)
            low, high = (0.5, 4) if plan.kind.startswith('generalized') else (1, 2)
            assert (plan.beta is None) if plan.kind in FAMILIES else (low <= plan.beta <= high)
        assert final.kind == 'pulse' or math.pi / 3 <= final.cutoff <= math.pi


def test_half_of_the_betas_are_below_one_and_a_lower_end_of_one_gives_exactly_one():
    drawn = [plan for plan, _, _ in plans(1000, kernel_list=['plateau_iso'], kernel_prob=[1], sinc_prob=0)]
    assert 0.45 < np.mean([plan.beta == 1 for plan in drawn]) < 0.55
    drawn = [plan for plan, _, _ in plans(1000, kernel_list=['generalized_iso'], kernel_prob=[1], sinc_prob=0)]
    assert 0.45 < np.mean([plan.beta < 1 for plan in drawn]) < 0.55


def test_the_published_kernel_size_has_no_effect_unless_it_is_asked_for():
    assert {second.size for _, second, _ in plans(blur_kernel_size2=11)} == set(SIZES)
    limited = plans(blur_kernel_size2=11, limit_kernel_size=True)
    assert {second.size for _, second, _ in limited} == {7, 9, 11}
    assert {first.size for first, _, _ in limited} == set(SIZES)


def test_a_final_kernel_without_sinc_changes_nothing():
    pulse = np.zeros((21, 21))
    pulse[10, 10] = 1
    np.testing.assert_array_equal(options(final_sinc_prob=0).draw(np.random.default_rng(0))[2], pulse)


def test_what_was_drawn_is_told_under_flat_names():
    chosen = options(kernel_list=['aniso'], kernel_prob=[1], sinc_prob=0, sinc_prob2=1, final_sinc_prob=0)
    told = parameters(chosen.plan(np.random.default_rng(0)))
    assert list(told) == [
        'kernel1', 'kernel1_size', 'kernel1_sigma_x', 'kernel1_sigma_y', 'kernel1_theta',
        'kernel2', 'kernel2_size', 'kernel2_cutoff',
        'sinc_kernel', 'sinc_kernel_size',
    ]  # fmt: skip
    assert (told['kernel1'], told['kernel2'], told['sinc_kernel']) == ('aniso', 'sinc', 'pulse')


# ---- options


def test_a_published_section_fits():
    check_arguments(KernelOptions, REAL_ESRGAN)
    check_arguments(KernelOptions, REAL_ESRGAN | {'blur_kernel_size2': 11, 'limit_kernel_size': True})


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('kernel_list', ['iso', 'anisotropic'], "'anisotropic' in kernel_list is not a known kernel"),
        ('kernel_list2', ['plato_iso', *KINDS[1:]], "did you mean 'plateau_iso'?"),
        ('kernel_prob', [0.5, 0.5], 'kernel_list has 6 kernels and kernel_prob 2 numbers'),
        ('kernel_prob', [0.5, 0.25, 0.12, 0.03, 0.12, 0.03], 'whose sum is 1'),
        ('kernel_prob2', [1.2, -0.2, 0, 0, 0, 0], 'kernel_prob2 needs probabilities'),
        ('sinc_prob', 1.1, 'sinc_prob is a probability, between 0 and 1, got 1.1'),
        ('final_sinc_prob', -0.1, 'final_sinc_prob is a probability'),
        ('blur_sigma', [3, 0.2], 'blur_sigma needs [smallest, largest], above 0; got [3, 0.2]'),
        ('blur_sigma2', [0, 1], 'above 0'),
        ('blur_sigma2', [0.2, math.inf], 'above 0'),
        ('blur_sigma', [math.nan, 1], 'above 0'),
        ('betag_range', [1.5, 4], 'with 1 between them; got [1.5, 4]'),
        ('betap_range2', [0.2, 0.9], 'betap_range2 needs'),
        ('blur_kernel_size', 20, 'blur_kernel_size should be one of 7, 9, 11'),
        ('blur_kernel_size2', 31, 'blur_kernel_size2 should be one of'),
    ],
)
def test_impossible_options_are_said_with_their_key(key, value, message):
    with pytest.raises(OptionError) as caught:
        options(**{key: value})
    probabilities = 'kernel_prob' + key.removeprefix('kernel_list')
    assert message in str(caught.value) and caught.value.key in ((key,), (probabilities,))
