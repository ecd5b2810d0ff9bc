"""Tiles make the whole image again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from basicsr.utils.tiling import tile_count, tiled


def doubled(image):
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


def blurred_and_doubled(image, radius=2):
    """Looks `radius` pixels around each pixel; beyond the border it sees the border."""
    side = 2 * radius + 1
    return doubled(F.avg_pool2d(F.pad(image, [radius] * 4, mode='replicate'), side, 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(0, 29), st.integers(1, 5))
def test_a_pixelwise_function_gives_the_whole_image(height, width, tile, overlap, batch):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    result = tiled(doubled, image, 2, tile, min(overlap, tile - 1), batch)
    torch.testing.assert_close(result, doubled(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(('tile', 'overlap'), [(16, 8), (20, 9), (24, 12), (17, 16)])
def test_a_function_that_looks_no_further_than_a_quarter_of_the_overlap_gives_the_whole_image(tile, overlap):
    image = torch.rand(1, 3, 61, 45)
    result = tiled(blurred_and_doubled, image, 2, tile, overlap)
    torch.testing.assert_close(result, blurred_and_doubled(image), atol=1e-6, rtol=0)


def test_tiles_that_disagree_are_blended_without_a_step():
    values = iter([0.0, 1.0])
    result = tiled(lambda image: torch.full_like(image, next(values)), torch.zeros(1, 1, 32, 48), 1, 32, 16)
    line = result[0, 0, 0]
    assert line[0] == 0 and line[-1] == 1
    assert (line.diff() >= 0).all() and line.diff().max() < 0.25


def test_all_tiles_have_one_shape_and_come_in_batches():
    shapes = []

    def fn(image):
        shapes.append(tuple(image.shape))
        return image

    tiled(fn, torch.rand(1, 3, 50, 70), 1, 32, 8, batch=4)
    assert {shape[1:] for shape in shapes} == {(3, 32, 32)}
    assert [shape[0] for shape in shapes] == [4, 2]
    assert tile_count(50, 70, 32, 8) == 6


def test_an_image_within_one_tile_is_a_plain_call():
    calls = []
    image = torch.rand(1, 3, 32, 20)
    for tile in (0, 32, 100):
        assert tiled(lambda x: calls.append(x) or x, image, 1, tile, 8) is image
        assert tile_count(32, 20, tile, 8) == 1
    assert all(call is image for call in calls)


def test_progress_counts_every_tile():
    steps = []
    tiled(lambda x: x, torch.rand(1, 1, 40, 40), 1, 16, 4, 3, lambda done, total: steps.append((done, total)))
    assert steps == [(3, 9), (6, 9), (9, 9)]


def test_an_overlap_as_large_as_the_tile_and_a_wrong_output_size_are_refused():
    with pytest.raises(ValueError, match='overlap from 0 to 15, got 16'):
        tiled(doubled, torch.rand(1, 3, 40, 40), 2, 16, 16)
    with pytest.raises(ValueError, match=r'x3 of \(16, 16\) pixels is \(48, 48\)'):
        tiled(doubled, torch.rand(1, 3, 40, 40), 3, 16, 4)
