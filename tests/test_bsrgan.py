"""BSRGAN and bicubic: the published numbers, a plain transcription step by step, and what plans are made of."""

import math
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.ndimage
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bsrgan_reference as reference
from reference.bsrgan_cases import stepped
from reference.checking import judge

from basicsr.data.degradations.bsrgan import (
    BicubicDegradation,
)
from basicsr.data.degradations.bsrgan_kernels import (
    anisotropic_gaussian,
    convolve,
    convolve_separable,
    gaussian_taps,
    shifted_taps,
)
from basicsr.data.degradations.bsrgan_steps import (
    AnisotropicBlur,
    Cut,
    IsotropicBlur,
    Noise,
    Patch,
    Poisson,
    ResizeToLq,
    Speckle,
)
from basicsr.utils.image import jpeg_round_trip
from basicsr.utils.registry import DEGRADATION_REGISTRY
from basicsr.utils.resize import imresize

NAMES = ['BSRGANDegradation', 'BSRGANLightDegradation', 'BSRGANPlusDegradation', 'BicubicDegradation']
PIPELINES = ['bsrgan_pipeline_x4', 'bsrgan_pipeline_x2', 'bsrgan_light_pipeline_x2']


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image with noise, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width, :1][:2] / 7
    waves = np.sin(x * rng.uniform(0.2, 2, 3) + y * rng.uniform(0.2, 2, 3) + rng.uniform(0, 6, 3))
    return (0.5 + 0.4 * waves + rng.uniform(-0.1, 0.1, (height, width, 3))).astype(np.float32).clip(0, 1)


def plans(count: int, degradation, height: int = 48, width: int = 64, seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [degradation.draw(height, width, rng) for _ in range(count)]


def kinds(plan: tuple, *classes: type) -> list:
    """The steps that are exactly of one of the classes."""
    return [step for step in plan if type(step) in classes]


# ---- the published numbers


@pytest.mark.parametrize('name', ['bsrgan_kernels', *PIPELINES])
def test_published_results_are_met(name):
    verdict = judge(load_case('data', name))
    assert verdict.status == 'pass', verdict.note


@pytest.mark.parametrize('name', PIPELINES)
def test_a_whole_published_chain_is_met_but_for_the_codec(name):
    case = load_case('data', name)
    image = case.inputs['image_u8'].astype(np.float32) / 255
    for step in case.args['steps']:
        image = stepped(case, step, image)
    apart = np.abs(image - case.arrays['lq'])
    assert (apart > 2e-5).mean() < 0.05 and apart.max() < 8 / 255


# ---- kernels and convolution


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.floats(0, math.pi), st.sampled_from([0, 1e-9, 0.01, 0.3, 2, 8]), st.floats(0.01, 8))
def test_anisotropic_kernels_are_the_density_at_each_tap(size, theta, variance1, variance2):
    ours = anisotropic_gaussian(size, theta, variance1, variance2)
    assert ours.shape == (size, size) and ours.sum() == pytest.approx(1) and (ours >= 0).all()
    if min(variance1, variance2) > 0.009 or size % 2:
        np.testing.assert_allclose(
            ours, reference.anisotropic_gaussian(size, theta, variance1, variance2), atol=1e-9, rtol=1e-6
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.floats(0.05, 5), st.integers(1, 4))
def test_isotropic_and_shifted_kernels_are_products_of_rows(size, sigma, scale):
    taps = gaussian_taps(size, sigma)
    if size % 2 or sigma > 0.1:
        np.testing.assert_allclose(np.outer(taps, taps), reference.isotropic_gaussian(size, sigma), atol=1e-12)
    if size > 1:
        moved = shifted_taps(taps, scale)
        np.testing.assert_allclose(np.outer(moved, moved), reference.shifted(np.outer(taps, taps), scale), atol=1e-12)


@pytest.mark.parametrize('sigma', [0, 1e-9, 1e-3])
def test_the_narrowest_kernels_keep_their_sum(sigma):
    np.testing.assert_allclose(gaussian_taps(7, sigma), [0, 0, 0, 1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(gaussian_taps(6, sigma), [0, 0, 0.5, 0.5, 0, 0], atol=1e-12)
    for size in (5, 6):
        kernel = anisotropic_gaussian(size, 0.7, sigma, sigma)
        np.testing.assert_allclose(kernel, np.outer(*2 * [gaussian_taps(size, 1e-3)]), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 26), st.integers(0, 2**32))
def test_convolution_is_true_mirrored_and_centred_as_scipys(height, width, size, seed):
    rng = np.random.default_rng(seed)
    image = rng.random((height, width, 3)).astype(np.float32)
    kernel = rng.random((size, size)) * (rng.random((size, size)) < 0.6)
    kernel /= max(kernel.sum(), 1e-3)
    expected = scipy.ndimage.convolve(image.astype(np.float64), kernel[..., None], mode='mirror')
    np.testing.assert_allclose(convolve(image, kernel), expected, atol=2e-6)
    taps = rng.random(size) / size
    expected = scipy.ndimage.convolve(image.astype(np.float64), np.outer(taps, taps)[..., None], mode='mirror')
    np.testing.assert_allclose(convolve_separable(image, taps), expected, atol=2e-6)


@pytest.mark.parametrize('size', [7, 15, 25])
def test_leaving_out_negligible_taps_is_not_seen(size):
    image = picture(40, 50)
    for theta, variances in ((0.3, (8, 0.1)), (2, (1e-6, 5)), (1, (0.5, 0.4))):
        kernel = anisotropic_gaussian(size, theta, *variances)
        np.testing.assert_allclose(convolve(image, kernel), reference.convolved(image, kernel), atol=1e-6)


# ---- steps against the transcription


def transcribed(step, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """gt and lq after one step of the transcription, which is handed the noise."""
    fields = {'op': type(step).__name__, **asdict(step)}
    if isinstance(step, Noise):
        fields['draw'] = step.draw(*image.shape[:2])
    if isinstance(step, Poisson):
        exact = np.rint(image * 255)
        if step.kind == 'gray':
            exact = np.rint(exact @ np.array([0.299, 0.587, 0.114]))
        fields['draw'] = np.random.default_rng(step.seed).poisson((exact / 255).astype(np.float32) * step.values)
    return reference.applied(image, [fields])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NAMES[:3]),
    st.sampled_from([2, 3, 4]),
    st.integers(4, 40),
    st.integers(4, 40),
    st.integers(0, 2**32),
)
def test_every_step_equals_the_transcription(name, scale, height, width, seed):
    degradation = DEGRADATION_REGISTRY.build({'type': name}, scale=scale)
    plan = degradation.draw(height, width, np.random.default_rng(seed))
    image = picture(height, width, seed % 1000)
    for step in plan:
        ours = step.applied_to(image)
        even_and_narrow = isinstance(step, IsotropicBlur | AnisotropicBlur) and step.size % 2 == 0
        if not even_and_narrow:  # their published sum can be 0
            np.testing.assert_allclose(ours, transcribed(step, image)[1], atol=1e-5, err_msg=str(step))
        image = ours
    assert image.shape == (height // scale, width // scale, 3) and image.dtype == np.float32
    np.testing.assert_array_equal(degradation.apply(picture(height, width, seed % 1000), plan)[1], image)


@pytest.mark.parametrize('kind', ['color', 'gray'])
def test_poisson_noise_equals_the_transcription(kind):
    image = picture(20, 22)
    step = Poisson(300.0, kind, 5)
    np.testing.assert_allclose(step.applied_to(image), transcribed(step, image)[1], atol=2e-6)
    many = [replace(step, seed=seed).applied_to(np.full((20, 20, 3), 0.4, np.float32)) for seed in range(20)]
    noise = np.stack(many) - 102 / 255
    assert abs(noise.mean()) < 1e-3 and noise.var() == pytest.approx(0.4 / 300, rel=0.1)
    assert (np.ptp(noise, axis=3).max() < 1e-6) == (kind == 'gray')


def test_speckle_is_noise_times_the_image():
    image = picture(9, 8)
    for kind in ('color', 'gray'):
        step = Speckle(kind, 9, 3)
        expected = np.clip(image * (1 + Noise(kind, 9, 3).draw(9, 8)), 0, 1)
        np.testing.assert_allclose(step.applied_to(image), expected, atol=1e-6)


def test_noise_has_the_level_that_it_names():
    for kind, channels in (('color', 3), ('gray', 1)):
        draw = Noise(kind, 20, 7).draw(200, 200)
        assert draw.shape == (200, 200, channels) and draw.dtype == np.float32
        assert draw.std() == pytest.approx(20 / 255, rel=0.02) and abs(draw.mean()) < 2e-3
        correlation = np.corrcoef(draw.reshape(-1, channels).T)
        assert channels == 1 or np.abs(correlation - np.eye(3)).max() < 0.02
    assert not np.array_equal(Noise('gray', 20, 7).draw(9, 9), Noise('gray', 20, 8).draw(9, 9))


def test_correlated_noise_has_the_covariance_that_numpy_would_give_it():
    base = np.array([[2, 1, 0.5], [1, 3, 0.2], [0.5, 0.2, 1]]) * 1e-3
    indefinite = np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1]]) * 1e-3
    for covariance in (base, indefinite):
        draw = Noise('correlated', 25, 3, tuple(map(tuple, covariance.tolist()))).draw(500, 500).reshape(-1, 3)
        theirs = np.random.default_rng(0).multivariate_normal(
            [0, 0, 0], covariance, 250000, method='svd', check_valid='ignore'
        )
        np.testing.assert_allclose(np.cov(draw.T), np.cov(theirs.T), atol=4e-5)
    values, vectors = np.linalg.eigh(indefinite)
    np.testing.assert_allclose(np.cov(draw.T), vectors @ np.diag(np.abs(values)) @ vectors.T, atol=4e-5)


def test_jpeg_keeps_the_order_of_the_channels_and_gets_better_with_quality():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 255
    assert np.abs(jpeg_round_trip(image, 95).astype(int) - image).max() < 5
    source = (picture(32, 32) * 255).astype(np.uint8)
    errors = [np.abs(jpeg_round_trip(source, quality).astype(int) - source).mean() for quality in (10, 50, 95)]
    assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match='at most 65500 pixels a side, not 65501x1'):
        jpeg_round_trip(np.zeros((1, 65501, 3), np.uint8), 95)
    assert jpeg_round_trip(np.zeros((65500, 1, 3), np.uint8), 95).shape == (65500, 1, 3)


# ---- whole degradations


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 4), st.integers(1, 33), st.integers(1, 33), st.integers(0, 2**32))
def test_any_image_that_the_scale_fits_in_gives_a_pair_in_range(name, scale, height, width, seed):
    degradation = DEGRADATION_REGISTRY.build({'type': name}, scale=scale)
    gt = picture(height, width, seed % 100)
    if min(height, width) < scale:
        with pytest.raises(ValueError, match=rf'^{width}x{height} is smaller than {scale}x{scale}'):
            degradation.draw(height, width, np.random.default_rng(seed))
        return
    kept = gt.copy()
    plan = degradation.draw(height, width, np.random.default_rng(seed))
    out, lq = degradation.apply(gt, plan)
    assert out.shape == (height // scale * scale, width // scale * scale, 3)
    assert lq.shape == (height // scale, width // scale, 3) and lq.dtype == out.dtype == np.float32
    assert lq.min() >= 0 and lq.max() <= 1 and out.min() >= 0 and out.max() <= 1
    np.testing.assert_array_equal(gt, kept)
    if name != 'BSRGANPlusDegradation':
        np.testing.assert_array_equal(out, gt[: out.shape[0], : out.shape[1]])
    again = degradation.draw(height, width, np.random.default_rng(seed))
    assert again == plan == pickle.loads(pickle.dumps(plan))
    np.testing.assert_array_equal(degradation.apply(gt, again)[1], lq)
    assert all(isinstance(value, float | int | str) for value in degradation.parameters(plan).values())


def test_plans_of_one_generator_differ():
    for name in NAMES[:3]:
        assert len(set(plans(100, DEGRADATION_REGISTRY.build({'type': name}, scale=2)))) == 100


@pytest.mark.parametrize('name', NAMES[:3])
def test_a_patch_is_the_same_place_of_both(name):
    degradation = DEGRADATION_REGISTRY.build({'type': name, 'lq_patchsize': 5}, scale=2)
    whole = picture(24, 30)
    places = set()
    for plan in plans(40, degradation, 24, 30):
        gt, lq = degradation.apply(whole, plan)
        all_gt, all_lq = degradation.apply(whole, plan[:-1])
        patch = plan[-1]
        assert isinstance(patch, Patch) and gt.shape == (10, 10, 3) and lq.shape == (5, 5, 3)
        np.testing.assert_array_equal(lq, all_lq[patch.top : patch.top + 5, patch.left : patch.left + 5])
        np.testing.assert_array_equal(
            gt, all_gt[2 * patch.top : 2 * patch.top + 10, 2 * patch.left : 2 * patch.left + 10]
        )
        places.add((patch.top, patch.left))
    assert len(places) > 20
    with pytest.raises(ValueError, match=r'^30x9 is smaller than 10x10, which 5 lq pixels a side need$'):
        degradation.draw(9, 30, np.random.default_rng(0))


def test_images_that_are_not_square_are_cut_by_their_own_sides():
    """The published code swaps them."""
    for name in NAMES[:2]:
        degradation = DEGRADATION_REGISTRY.build({'type': name}, scale=4)
        assert all(plan[0] == Cut(20, 48) for plan in plans(5, degradation, 23, 50))
        for plan in plans(40, degradation, 23, 50):
            assert [(step.width, step.height) for step in kinds(plan, ResizeToLq)] == [(12, 5)]


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_bicubic_is_matlabs_of_whole_multiples(scale):
    gt = picture(25, 30)
    cut = gt[: 25 - 25 % scale, : 30 - 30 % scale]
    exact = imresize(cut.astype(np.float64), 1 / scale).clip(0, 1)
    plain = BicubicDegradation(scale, round_to_8_bit=False)
    out, lq = plain.apply(gt, plain.draw(25, 30, np.random.default_rng(0)))
    np.testing.assert_array_equal(out, cut)
    np.testing.assert_allclose(lq, exact, atol=1e-6)
    rounded = BicubicDegradation(scale)
    lq = rounded.apply(gt, rounded.draw(25, 30, np.random.default_rng(0)))[1]
    np.testing.assert_allclose(lq * 255, np.rint(lq * 255), atol=1e-4)
    assert np.abs(lq - exact).max() <= 0.5 / 255 + 1e-6 and rounded.parameters(plain.draw(25, 30, None)) == {}
