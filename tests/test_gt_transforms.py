"""The crop of data sets that read gt only: every place and state, whole types, resizes that stay in range."""

import random
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr.data.gt_transforms import GtCrop, mirrored_to
from basicsr.utils.registry import OptionError

STATES = [(h, v, t) for h in (False, True) for v in (False, True) for t in (False, True)]


def places(height: int, width: int) -> np.ndarray:
    """An image whose values tell where a pixel came from."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint16)
    return np.stack([rows, columns, rows * width + columns], axis=2)


def state_of(square: np.ndarray) -> tuple[bool, bool, bool]:
    """The flips of a square of `places`."""
    rows, columns = square[..., 0], square[..., 1]
    transposed = rows[0, 0] == rows[1, 0]
    if transposed:
        rows, columns = rows.T, columns.T
    return bool(columns[0, 1] < columns[0, 0]), bool(rows[1, 0] < rows[0, 0]), bool(transposed)


def test_every_place_and_every_state_comes_equally_often():
    crop, rng, seen = GtCrop(3, use_hflip=True, use_rot=True), np.random.default_rng(0), Counter()
    image = places(5, 6)
    for _ in range(4800):
        square = (crop(image, rng) * 65535).round().astype(int)
        rows, columns = square[..., 0], square[..., 1]
        assert rows.max() - rows.min() == 2 and columns.max() - columns.min() == 2
        assert (square[..., 2] == rows * 6 + columns).all()
        seen[int(rows.min()), int(columns.min()), state_of(square)] += 1
    assert len(seen) == 3 * 4 * 8 and min(seen.values()) > 20 and max(seen.values()) < 90


def test_flips_are_only_those_allowed():
    rng, image = np.random.default_rng(1), places(4, 4)
    for options, allowed in (
        ({}, {(False, False, False)}),
        ({'use_hflip': True}, {(False, False, False), (True, False, False)}),
        ({'use_rot': True}, {(False, v, t) for v in (False, True) for t in (False, True)}),
    ):
        crop = GtCrop(4, **options)
        assert {state_of((crop(image, rng) * 65535).round()) for _ in range(60)} == allowed


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_values_are_those_of_the_type_in_memory_of_their_own(dtype):
    rng = np.random.default_rng(2)
    largest = 1 if dtype is np.float32 else np.iinfo(dtype).max
    image = (rng.random((8, 8, 3)) * largest).astype(dtype)
    image.flags.writeable = False
    square = GtCrop(8)(image, rng)
    np.testing.assert_array_equal(square, image.astype(np.float32) / np.float32(largest))
    assert square.dtype == np.float32 and square.flags.writeable and square.flags.c_contiguous
    assert not np.shares_memory(square, image)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 4),
    st.sampled_from(['', 'pad', 'use_resize', 'use_resize_crop']),
    st.integers(0, 2**32),
)
def test_squares_have_their_size_and_range_and_repeat_for_a_seed(height, width, scale, factor, how, seed):
    size = scale * factor
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    crop = GtCrop(size, True, True, scale=scale, **({how: True} if how else {}))
    if min(height, width) < size and how not in ('pad', 'use_resize'):
        with pytest.raises(ValueError, match=rf'^{width}x{height} is smaller than the crop of gt_size {size}$'):
            crop(image, np.random.default_rng(seed))
        return
    square = crop(image, np.random.default_rng(seed))
    assert square.shape == (size, size, 3) and square.dtype == np.float32
    assert square.min() >= 0 and square.max() <= 1
    np.testing.assert_array_equal(square, crop(image, np.random.default_rng(seed)))


def test_no_other_generator_is_drawn_from():
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    GtCrop(4, True, True, use_resize_crop=True)(places(9, 9), np.random.default_rng(0))
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize(('height', 'width'), [(3, 5), (1, 4), (7, 2), (5, 9)])
def test_padding_mirrors_without_the_edge_pixel(height, width):
    image = places(height, width)
    expected = np.pad(image, ((0, max(0, 7 - height)), (0, max(0, 7 - width)), (0, 0)), mode='reflect')
    np.testing.assert_array_equal(mirrored_to(image, 7), expected)
    # The side that is long enough is still cropped at random.
    squares = [GtCrop(7, pad=True)(image, np.random.default_rng(seed)) for seed in range(30)]
    lefts = {int(square[0, 0, 1] * 65535 + 0.5) for square in squares}
    assert lefts == set(range(max(1, width - 6)))


def test_padding_follows_the_flips_as_published():
    crop, seen = GtCrop(7, use_hflip=True, use_rot=True, pad=True), set()
    for seed in range(60):
        square = (crop(places(5, 5), np.random.default_rng(seed)) * 65535).round()
        np.testing.assert_array_equal(square, mirrored_to(square[:5, :5].copy(), 7))
        seen.add(state_of(square[:5, :5]))
    assert len(seen) == 8


def test_a_random_resize_is_opencvs_cubic_of_the_whole_clipped():
    rng = np.random.default_rng(3)
    image = (rng.integers(0, 2, (24, 36, 3)) * 255).astype(np.uint8)  # hard edges: cubic leaves [0, 1]
    crop, heights, left = GtCrop(8, use_resize_crop=True, scale=4), set(), []
    for seed in range(60):
        height = int(np.random.default_rng(seed).integers(8, 24, endpoint=True))
        height -= height % 4
        whole = cv2.resize(
            image.astype(np.float32) / 255, (round(36 * height / 24), height), interpolation=cv2.INTER_CUBIC
        )
        square = crop(image, np.random.default_rng(seed))
        windows = np.lib.stride_tricks.sliding_window_view(whole.clip(0, 1), (8, 8, 3)).reshape(-1, 8, 8, 3)
        assert np.abs(windows - square).max((1, 2, 3)).min() < 1e-6
        heights.add(height)
        left.append(whole.min() < 0 or whole.max() > 1)
    assert heights == {8, 12, 16, 20, 24} and any(left)


@pytest.mark.parametrize(('height', 'width'), [(40, 13), (13, 40), (12, 12)])
def test_a_resized_image_still_holds_the_square(height, width):
    crop = GtCrop(12, use_resize_crop=True, scale=4)
    for seed in range(40):
        assert crop(places(height, width), np.random.default_rng(seed)).shape == (12, 12, 3)


@pytest.mark.parametrize(('height', 'width'), [(20, 50), (50, 20), (5, 9), (8, 8)])
def test_use_resize_brings_the_shorter_side_to_the_size(height, width):
    image = places(height, width)
    side = round(max(height, width) * 8 / min(height, width))
    whole = cv2.resize(
        image.astype(np.float32) / 65535, (side, 8) if width >= height else (8, side), interpolation=cv2.INTER_CUBIC
    ).clip(0, 1)
    square = GtCrop(8, use_resize=True)(image, np.random.default_rng(0))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 8, 3)).reshape(-1, 8, 8, 3)
    assert np.abs(windows - square).max((1, 2, 3)).min() < 1e-6


def test_options_that_do_not_fit_are_named():
    with pytest.raises(OptionError, match='exclude each other') as caught:
        GtCrop(8, use_resize=True, use_resize_crop=True)
    assert caught.value.key == ('use_resize',)
    for settings_ in ({'size': 0}, {'size': 6, 'use_resize_crop': True, 'scale': 4}):
        with pytest.raises(OptionError, match='multiple of the scale') as caught:
            GtCrop(**settings_)
        assert caught.value.key == ('gt_size',)
