import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_case import load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import imresize_reference
from PIL import Image

from basicsr.data.degradations.resize import imresize, pillow_resize, resize_and_center_crop


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def resized_line(line: np.ndarray, scale: float, antialiasing: bool) -> np.ndarray:
    """MATLAB's imresize of a vector, written as its definition: one output pixel, one tap at a time."""

    def cubic(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    shrink = scale if scale < 1 and antialiasing else 1.0
    out = []
    for position in range(1, math.ceil(len(line) * scale) + 1):
        centre = position / scale + 0.5 * (1 - 1 / scale)
        first = math.floor(centre - 2 / shrink)
        total = weight_sum = 0.0
        for tap in range(first, first + math.ceil(4 / shrink) + 2):
            index = tap - 1
            while not 0 <= index < len(line):
                index = -index - 1 if index < 0 else 2 * len(line) - 1 - index
            weight = cubic((centre - tap) * shrink)
            total, weight_sum = total + weight * line[index], weight_sum + weight
        out.append(total / weight_sum)
    return np.array(out)


@settings(deadline=None, max_examples=40)
@given(
    side=st.integers(1, 23),
    scale=st.sampled_from([1 / 8, 1 / 4, 1 / 3, 0.37, 0.5, 0.7, 1.0, 1.5, 2, 3, 4]),
    antialiasing=st.booleans(),
)
def test_a_line_equals_the_definition_however_short(side, scale, antialiasing):
    line = noise(side)
    expected = resized_line(line, scale, antialiasing)
    np.testing.assert_allclose(imresize(line[:, None].repeat(3, 1), scale, antialiasing)[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize('scale', [2, 4, 1 / 2, 1 / 4])
def test_equals_torch_on_a_mirrored_image(scale):
    image, pad = torch.from_numpy(noise(1, 3, 24, 32)), 16
    mirrored = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (pad, pad), (pad, pad)], mode='symmetric'))
    expected = F.interpolate(mirrored, scale_factor=scale, mode='bicubic', antialias=True)
    cut = int(pad * scale)
    torch.testing.assert_close(imresize(image, scale), expected[..., cut:-cut, cut:-cut], atol=1e-10, rtol=0)


def test_arrays_gray_arrays_and_tensors_agree():
    image = noise(19, 26, 3).astype(np.float32)
    resized = imresize(image, 0.7)
    assert resized.dtype == np.float32 and resized.shape == (14, 19, 3)
    np.testing.assert_allclose(imresize(image[..., 1], 0.7), resized[..., 1], atol=1e-6)
    batch = torch.from_numpy(image).permute(2, 0, 1).expand(2, 3, 19, 26)
    np.testing.assert_allclose(imresize(batch, 0.7)[1].permute(1, 2, 0), resized, atol=1e-6)


def test_scale_one_changes_nothing():
    image = noise(9, 7, 3)
    np.testing.assert_allclose(imresize(image, 1), image, atol=1e-12)


def test_values_are_not_clipped():
    step = np.zeros((16, 16))
    step[:, 8:] = 1
    enlarged = imresize(step, 2)
    assert enlarged.min() < -0.01 and enlarged.max() > 1.01


def test_the_resized_tensor_passes_gradients():
    image = torch.rand(1, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image)


@pytest.mark.parametrize(
    ('image', 'scale'),
    [
        (np.zeros((4, 4, 3), np.uint8), 2),
        (np.zeros((2, 4, 4, 3)), 2),
        (np.zeros((0, 4)), 2),
        (np.zeros((4, 4)), 0),
        (np.zeros((4, 4)), -1),
        (np.zeros((4, 4)), math.nan),
        (np.zeros((4, 4)), math.inf),
        (torch.zeros(4), 2),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), 2),
    ],
)
def test_what_cannot_be_resized_is_refused(image, scale):
    with pytest.raises(ValueError, match='imresize needs'):
        imresize(image, scale)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(40, 70),
    width=st.integers(40, 70),
    channels=st.integers(0, 4),
    scale=st.sampled_from([1 / 4, 1 / 3, 0.37, 0.5, 0.7, 1.5, 2, 3, 4]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_images_equal_the_loop_over_lines_and_channels(height, width, channels, scale, dtype):
    image = noise(*(height, width, channels)[: 3 if channels else 2]).astype(dtype)
    resized, expected = imresize(image, scale), imresize_reference.imresize(image, scale)
    assert resized.dtype == expected.dtype == dtype and resized.shape == expected.shape
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-6 if dtype is np.float32 else 1e-13)


def test_strided_images_are_read_as_they_look():
    image = noise(40, 30, 3)
    np.testing.assert_array_equal(imresize(image[::2, ::-1], 0.5), imresize(image[::2, ::-1].copy(), 0.5))


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    size=st.integers(2, 40),
    resample=st.sampled_from(['bicubic', 'bilinear']),
)
def test_resizing_and_cropping_equals_torchvision_on_pillow_images(height, width, size, resample):
    functional = pytest.importorskip('torchvision.transforms.functional')
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = functional.resize(Image.fromarray(pixels), size, functional.InterpolationMode(resample))
    expected = np.asarray(functional.center_crop(image, size))
    np.testing.assert_array_equal(resize_and_center_crop(pixels, size, resample), expected)


@pytest.mark.parametrize('name', ['resize_bicubic', 'resize_bilinear', 'resize_upscale', 'resize_width_equal'])
def test_equals_what_sr3_published(name):
    case = load_case('sr3', name)
    small, large = case.args['sizes']
    pixels, resample = case.inputs['image'].astype(np.uint8), case.args['resample']
    lr, hr = (resize_and_center_crop(pixels, size, resample, published_width_test=True) for size in (small, large))
    made = {'lr': lr, 'hr': hr, 'sr': resize_and_center_crop(lr, large, resample)}
    for key, ours in made.items():
        np.testing.assert_array_equal(ours, case.arrays[key])


def test_an_image_of_the_wanted_width_is_cut_to_a_square_unless_the_published_test_is_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_and_center_crop(pixels, 8), pixels[2:10])  # 1.5 goes to the even side
    np.testing.assert_array_equal(resize_and_center_crop(pixels, 8, published_width_test=True), pixels)


def test_pillow_takes_bytes_and_known_filters_only():
    with pytest.raises(ValueError, match='takes uint8'):
        pillow_resize(noise(4, 4), 2, 2)
    with pytest.raises(ValueError, match=r'lanczos.*known: bicubic, bilinear'):
        pillow_resize(np.zeros((4, 4), np.uint8), 2, 2, 'lanczos')
