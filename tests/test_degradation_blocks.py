"""Filters, noise and JPEG of the second-order degradation."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import degradation_reference as oracle
from reference import degradation_cases  # noqa: F401 (it registers)
from reference.checking import judge
from torch import Tensor

from basicsr.data.degradations.filters import USMSharpener, filter2d, usm_sharp
from basicsr.data.degradations.jpeg import BEST_QUALITY, DiffJPEG, quality_factor
from basicsr.data.degradations.noise import add_noise, gaussian_noise, poisson_noise, poisson_rates


def smooth(seed: int, b: int, h: int, w: int, c: int = 3) -> Tensor:
    """A batch in [0, 1] with shapes of all sizes."""
    draws = torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(seed))
    coarse = F.interpolate(draws[..., ::8, ::8], size=(h, w), mode='bicubic').clamp(0, 1)
    return 0.8 * coarse + 0.2 * F.avg_pool2d(draws, 3, 1, 1, count_include_pad=False)


def normalized_kernels(seed: int, b: int, side: int) -> Tensor:
    kernels = torch.rand(b, side, side, generator=torch.Generator().manual_seed(seed))
    return kernels / kernels.sum((1, 2), keepdim=True)


def unchanged(function, *arguments):
    """The result of the call, after a look at its arguments."""
    before = [a.clone() for a in arguments if isinstance(a, Tensor)]
    result = function(*arguments)
    for old, new in zip(before, (a for a in arguments if isinstance(a, Tensor))):
        torch.testing.assert_close(new, old, atol=0, rtol=0)
    return result


@pytest.mark.parametrize('name', ['filter2d_usm', 'noise', 'diffjpeg'])
def test_equals_the_published_code(name):
    verdict = judge(load_case('data', name))
    assert verdict.status == 'pass', verdict


def test_nothing_waits_for_the_device():
    """A meta tensor has no values: whatever looks at one fails."""
    image, one, kernels = (torch.rand(shape, device='meta') for shape in ((2, 3, 40, 36), (2,), (2, 21, 21)))
    assert filter2d(image, kernels).shape == USMSharpener()(image).shape == image.shape
    rates = poisson_rates(image)
    noise = poisson_noise(image, rates, one, one, rates.color, rates.gray)
    noise = noise + gaussian_noise(image, one, one, image, image[0, 0])
    assert add_noise(image, noise, rounds=True).shape == image.shape
    for quality in (one, 50):
        assert DiffJPEG().to('meta')(image, quality).shape == image.shape


# ---- filter2d


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    b=st.integers(1, 3),
    c=st.sampled_from([1, 3]),
    h=st.integers(11, 40),
    w=st.integers(11, 40),
    side=st.sampled_from([1, 3, 7, 21]),
)
def test_filter2d_equals_opencv_and_the_grouped_convolution(seed, b, c, h, w, side):
    image, kernels = smooth(seed, b, h, w, c), normalized_kernels(seed, b, side)
    ours = unchanged(filter2d, image, kernels)
    assert ours.is_contiguous()
    for sample, filtered, kernel in zip(image, ours, kernels):
        for plane, made in zip(sample.numpy(), filtered.numpy()):
            expected = cv2.filter2D(plane, -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
            np.testing.assert_allclose(made, expected, atol=2e-6)
    torch.testing.assert_close(ours, oracle.filter2d(image, kernels), atol=2e-6, rtol=0)


def test_filter2d_takes_one_kernel_for_all_and_any_memory_layout():
    image, kernel = smooth(0, 3, 20, 30), normalized_kernels(0, 1, 21)
    expected = filter2d(image, kernel.expand(3, -1, -1))
    for shared in (kernel, kernel[0]):
        torch.testing.assert_close(filter2d(image.to(memory_format=torch.channels_last), shared), expected)


def test_a_sample_is_filtered_alike_in_any_batch():
    image, kernels = smooth(0, 5, 40, 30), normalized_kernels(0, 5, 21)
    together = filter2d(image, kernels)
    for k in range(5):
        assert torch.equal(filter2d(image[k : k + 1], kernels[k : k + 1])[0], together[k])


@pytest.mark.parametrize(
    ('image', 'kernels', 'message'),
    [
        ((1, 3, 10, 30), (21, 21), 'sides above 10, got an image of 30x10'),
        ((1, 3, 30, 30), (4, 4), 'odd k'),
        ((1, 3, 30, 30), (3, 5), 'odd k'),
        ((3, 3, 30, 30), (2, 5, 5), '2 kernels for 3 images'),
    ],
)
def test_filter2d_says_what_does_not_fit(image, kernels, message):
    with pytest.raises(ValueError, match=message):
        filter2d(torch.rand(image), torch.rand(kernels))


# ---- sharpening


@pytest.mark.parametrize('size', [(26, 27), (64, 65), (70, 150)])
def test_sharpening_equals_dense_convolutions_and_the_array_form(size):
    image = smooth(1, 2, *size)
    ours = unchanged(USMSharpener(), image)
    torch.testing.assert_close(ours, oracle.usm_sharpened(image), atol=2e-5, rtol=0)
    array = image[0].permute(1, 2, 0).numpy().copy()
    before = array.copy()
    np.testing.assert_allclose(usm_sharp(array), ours[0].permute(1, 2, 0).numpy(), atol=2e-5)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 12), (25, 20)])
def test_images_smaller_than_the_blur_are_sharpened_as_by_opencv(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = usm_sharp(image[0].permute(1, 2, 0).numpy().reshape(*size, 3))
    np.testing.assert_allclose(USMSharpener()(image)[0].permute(1, 2, 0).numpy(), expected, atol=2e-5)


def test_a_flat_image_stays_and_an_edge_gets_steeper():
    flat = torch.full((1, 3, 40, 40), 0.4)
    torch.testing.assert_close(USMSharpener()(flat), flat, atol=1e-6, rtol=0)
    edge = torch.cat([flat * 0.75, flat * 1.5], -1)
    sharp = USMSharpener()(edge)
    assert sharp[..., 39].max() < edge[..., 39].min() and sharp[..., 40].min() > edge[..., 40].max()
    assert sharp.min() >= 0 and sharp.max() <= 1


# ---- noise


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    flags=st.lists(st.booleans(), min_size=1, max_size=4),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    own=st.booleans(),
)
def test_gaussian_noise_equals_the_transcription(seed, flags, h, w, own):
    torch.manual_seed(seed)
    b = len(flags)
    image, sigma, gray = torch.rand(b, 3, h, w), 30 * torch.rand(b), torch.tensor(flags)
    draws = torch.randn(b, 3, h, w), torch.randn((b, 1, h, w) if own else (h, w))
    noise = unchanged(gaussian_noise, image, sigma, gray, *draws)
    torch.testing.assert_close(noise, oracle.gaussian_noise(image, sigma, gray, *draws), atol=1e-6, rtol=1e-5)
    for sample, flag in zip(noise, flags):
        assert not flag or bool((sample == sample[:1]).all())
    if not any(flags):
        torch.testing.assert_close(gaussian_noise(image, sigma, gray, draws[0]), noise, atol=0, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    flags=st.lists(st.booleans(), min_size=1, max_size=4),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
)
def test_poisson_noise_equals_the_loop_over_samples(seed, flags, h, w):
    torch.manual_seed(seed)
    b = len(flags)
    image, scale, gray = 1.4 * torch.rand(b, 3, h, w) - 0.2, 3 * torch.rand(b), torch.tensor(flags)
    rates = unchanged(poisson_rates, image)
    color, values, luma, gray_values = oracle.poisson_rates(image)
    for ours, expected in zip(rates, (color, luma, values, gray_values)):
        torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    counts = torch.poisson(rates.color), torch.poisson(rates.gray)
    noise = unchanged(poisson_noise, image, rates, scale, gray, *counts)
    expected = oracle.poisson_noise((color, values, luma, gray_values), scale, gray, *counts)
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 63, 64, 65, 128, 129, 255, 256])
def test_values_are_the_next_power_of_two_of_the_distinct_intensities(count):
    levels = torch.randperm(256, generator=torch.Generator().manual_seed(count))[:count]
    image = levels[torch.arange(3 * 20 * 20) % count].view(1, 3, 20, 20) / 255
    other = torch.zeros_like(image)  # its neighbour in the batch has one
    rates = poisson_rates(torch.cat([other, image]))
    assert rates.values.flatten().tolist() == [1, 2 ** math.ceil(math.log2(count))]


def test_poisson_noise_has_no_bias_and_the_variance_of_its_counts():
    image = torch.full((1, 3, 200, 200), 0.2)
    image[..., :2, :] = torch.linspace(0, 1, 200)  # 200 intensities: v is 256
    rates, one, no = poisson_rates(image), torch.ones(1), torch.zeros(1)
    counts = torch.poisson(rates.color, generator=torch.Generator().manual_seed(0))
    noise = poisson_noise(image, rates, one, no, counts, rates.gray)[..., 2:, :]
    assert rates.values.item() == 256
    assert abs(noise.mean()) < 5e-4 and math.isclose(noise.var(), 0.2 / 256, rel_tol=0.02)


@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('rounds', [False, True])
def test_added_noise_is_clipped_and_rounded_when_asked(clip, rounds):
    image, noise = torch.linspace(0, 1, 101), torch.linspace(-0.5, 0.7, 101)
    out = unchanged(add_noise, image, noise, clip, rounds)
    expected = image + noise
    expected = expected.clamp(0, 1) if clip else expected
    torch.testing.assert_close(out, (expected * 255).round() / 255 if rounds else expected, atol=1e-7, rtol=0)


# ---- JPEG


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    h=st.integers(1, 50),
    w=st.integers(1, 50),
    qualities=st.lists(st.floats(1, 99), min_size=1, max_size=4),
    differentiable=st.booleans(),
)
def test_jpeg_equals_the_contraction_of_four_axes(seed, h, w, qualities, differentiable):
    image, quality = smooth(seed, len(qualities), h, w), torch.tensor(qualities)
    ours = unchanged(DiffJPEG(differentiable), image, quality)
    expected = oracle.diff_jpeg(image, quality, differentiable)
    assert ours.shape == image.shape and ours.is_contiguous() and ours.min() >= 0 and ours.max() <= 1
    # Where a coefficient lies on the border of two levels, a square of 16 pixels may differ.
    wrong = F.max_pool2d(((ours - expected).abs() > 2e-5).float(), 16, ceil_mode=True)
    assert wrong.amax(1).sum() <= 1


@pytest.mark.parametrize('value', [0, 36, 128, 200, 254])  # none lies between two levels
@pytest.mark.parametrize('quality', [5, 50.0, 90])
def test_a_gray_area_is_rounded_to_its_step(value, quality):
    image = torch.full((1, 3, 32, 16), value / 255)
    step = 16 * (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    level = (value - 128) * 8 / step  # the mean's coefficient is 8 times the mean
    expected = min(max(round(level) * step / 8 + 128, 0), 255) / 255
    torch.testing.assert_close(DiffJPEG()(image, quality), torch.full_like(image, expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize('quality', [25, 50])
def test_a_gray_image_equals_libjpegs_turned_on_its_side(quality):
    """The luminance steps are transposed, as published; at these qualities libjpeg's are not rounded or clipped."""
    pixels = (smooth(3, 1, 96, 80, c=1)[0, 0] * 255).round()
    code = cv2.imencode('.jpg', pixels.byte().numpy(), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    libjpeg = torch.from_numpy(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE))
    ours = DiffJPEG()((pixels.T / 255).expand(1, 3, -1, -1), quality)[0, 0].T * 255
    # Whole pixel values often put a coefficient on the border of two levels, where libjpeg's integers decide otherwise.
    assert ((ours - libjpeg).abs() > 0.8).float().mean() < 0.1
    upright = DiffJPEG()((pixels / 255).expand(1, 3, -1, -1), quality)[0, 0] * 255
    assert ((upright - libjpeg).abs() > 0.8).float().mean() > 0.5


@pytest.mark.parametrize('differentiable', [False, True])
@pytest.mark.parametrize('quality', [100, 99.995, 1e6, 0, -3])
def test_qualities_beyond_the_ends_count_as_the_ends(quality, differentiable):
    jpeg, image = DiffJPEG(differentiable), smooth(5, 2, 33, 20)
    out = jpeg(image, quality)
    assert torch.isfinite(out).all()
    assert torch.equal(out, jpeg(image, BEST_QUALITY if quality > 50 else 1))
    assert quality_factor(torch.tensor([100.0])).item() == pytest.approx(2e-4, rel=0.05)


@pytest.mark.parametrize('quality', [99.6, 99.9, 99.99])
def test_qualities_close_to_the_end_are_as_published(quality):
    image = smooth(5, 2, 33, 20)
    # A coefficient or two may be rounded the other way.
    assert (DiffJPEG()(image, quality) - oracle.diff_jpeg(image, quality)).abs().max() < 5e-4


def test_a_number_and_a_tensor_mean_the_same_and_samples_do_not_touch():
    jpeg, image = DiffJPEG(), smooth(6, 3, 40, 24)
    qualities = torch.tensor([20.0, 60.0, 95.0])
    together = jpeg(image, qualities)
    for k, quality in enumerate((20, 60, 95)):
        torch.testing.assert_close(jpeg(image[k : k + 1], quality)[0], together[k], atol=1e-6, rtol=0)


def test_better_quality_loses_less():
    image = smooth(7, 1, 64, 64)
    errors = [(DiffJPEG()(image, q) - image).square().mean().item() for q in (5, 15, 30, 60, 90, 99)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize('quality', [15.0, 70.0])
def test_the_gradient_of_the_differentiable_form_is_that_of_finite_differences(quality):
    jpeg = DiffJPEG(differentiable=True).double()
    image = (0.3 + 0.4 * smooth(8, 1, 20, 33)).double().requires_grad_()
    weight, direction = (smooth(seed, 1, 20, 33).double() - 0.5 for seed in (9, 10))
    (jpeg(image, quality) * weight).sum().backward()
    with torch.no_grad():
        ahead, behind = ((jpeg(image + e * direction, quality) * weight).sum() for e in (1e-7, -1e-7))
    assert ((ahead - behind) / 2e-7).item() == pytest.approx((image.grad * direction).sum().item(), rel=1e-4)


def test_jpeg_has_nothing_to_save_and_refuses_other_images():
    assert DiffJPEG().state_dict() == {}
    with pytest.raises(ValueError, match=r'needs images \(b, 3, h, w\), got \(1, 1, 8, 8\)'):
        DiffJPEG()(torch.rand(1, 1, 8, 8), 50)
