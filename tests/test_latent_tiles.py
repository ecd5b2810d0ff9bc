"""Latent tiles: the published layout as one more of our tiling, both prompts in one batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from basicsr.models.latent_tiles import guided, passes
from basicsr.utils.tiling import gaussian, tile_count, tile_starts, tiled

PROMPTS = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), -1.0)  # positive, negative


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def published(fn, z: Tensor, tile: int, overlap: int) -> Tensor:
    """s3diff.md 3.2 written down: sums of weighted tiles, divided by the sums of the weights."""
    height, width = z.shape[-2:]
    t = min(tile, height, width)

    def starts(length: int) -> list[int]:
        found, start = [], 0
        while start + t < length:
            found.append(start)
            start += t - overlap
        return [*found, length - t]

    def weights(middle: float) -> Tensor:
        return torch.tensor([math.exp(-(((k - middle) / t) ** 2) / 0.02) / math.sqrt(0.02 * math.pi) for k in range(t)])

    weight = weights(t / 2)[:, None] * weights((t - 1) / 2)
    total, count = torch.zeros_like(z), torch.zeros_like(z)
    for x in starts(width):
        for y in starts(height):
            total[..., y : y + t, x : x + t] += fn(z[..., y : y + t, x : x + t]) * weight
            count[..., y : y + t, x : x + t] += weight
    return total / count


def centred(part: Tensor) -> Tensor:
    """Another function of each tile: less its mean, plus its place in the tile."""
    return part - part.mean((2, 3), keepdim=True) + torch.linspace(0, 1, part.shape[-1])


@pytest.mark.parametrize(
    ('size', 'tile', 'overlap'), [((24, 40), 16, 4), ((40, 24), 16, 0), ((33, 18), 16, 15), ((9, 60), 16, 4)]
)
def test_the_layout_is_the_published_one(size, tile, overlap):
    z = noise(2, 4, *size)
    result = tiled(centred, z, 1, tile, overlap, 3, layout='gaussian')
    torch.testing.assert_close(result, published(centred, z, tile, overlap), atol=1e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(0, 19), st.integers(1, 4))
def test_a_pixelwise_function_gives_the_whole_image_whatever_the_sides(height, width, tile, overlap, batch):
    """Also where the shorter side is no longer than the overlap, for which published code has no end."""
    z = noise(2, 3, height, width)
    result = tiled(lambda part: 2 * part, z, 1, tile, min(overlap, tile - 1), batch, layout='gaussian')
    torch.testing.assert_close(result, 2 * z, atol=1e-5, rtol=1e-5)


def test_a_side_no_longer_than_the_overlap_is_cut_into_tiles_that_overlap_by_half():
    rows, columns = tile_starts(16, 160, 96, 32, 'gaussian')
    assert rows == ([0], 16) and columns == ([*range(0, 144, 8), 144], 16)


def test_a_latent_of_no_more_pixels_than_a_tile_is_taken_whole():
    assert tile_count(8, 32, 16, 4, 'gaussian') == 1
    assert tile_count(8, 40, 16, 4, 'gaussian') == 9
    z = noise(1, 4, 8, 32)
    assert tiled(lambda part: part, z, 1, 16, 4, layout='gaussian') is z


def test_results_that_are_larger_than_the_image_are_weighted_around_their_own_middle():
    z = noise(1, 1, 8, 40)
    twice = tiled(lambda part: part.repeat_interleave(2, 3).repeat_interleave(2, 2), z, 2, 16, 4, layout='gaussian')
    torch.testing.assert_close(twice, z.repeat_interleave(2, 3).repeat_interleave(2, 2), atol=1e-5, rtol=1e-5)


def test_weights_are_normal_densities():
    place = torch.arange(9, dtype=torch.float64)
    density = torch.distributions.Normal(4.5 / 9, 0.1).log_prob(place / 9).exp()
    torch.testing.assert_close(gaussian(9, 4.5), density * 0.1 / math.sqrt(0.01))


class Denoiser:
    """A stand-in for the UNet, which is linear in the prompt and keeps what it was called with."""

    def __init__(self):
        self.shapes = []

    def __call__(self, z: Tensor, prompt: Tensor) -> Tensor:
        assert len(prompt) == len(z)
        self.shapes.append(tuple(z.shape))
        return prompt.mean((1, 2))[:, None, None, None] * z


def test_guidance_leads_away_from_the_negative_prompt_and_both_are_seen_at_once():
    z, net = noise(2, 4, 8, 8), Denoiser()
    torch.testing.assert_close(guided(net, z, PROMPTS, 1.5, 16, 4), (-1 + 1.5 * 3) * z)
    assert net.shapes == [(4, 4, 8, 8)]


def test_guidance_of_one_does_not_ask_for_the_negative_prompt():
    z, net = noise(2, 4, 8, 8), Denoiser()
    torch.testing.assert_close(guided(net, z, PROMPTS, 1.0, 16, 4), 2 * z)
    assert net.shapes == [(2, 4, 8, 8)]
    assert (passes(z, 1.0, 16, 4), passes(z, 1.07, 16, 4)) == (1, 2)


def test_tiles_come_in_batches_image_by_image_in_turn():
    z = torch.stack([torch.full((1, 8, 40), 1.0), torch.full((1, 8, 40), 2.0)])
    order, shapes = [], []

    def denoise(part: Tensor, prompt: Tensor) -> Tensor:
        order.append(part[:, 0, 0, 0].tolist())
        shapes.append(part.shape)
        return prompt[:, :1, :1, None].expand_as(part) + 0 * part

    result = guided(denoise, z, PROMPTS, 1.07, 16, 4, batch=2)
    assert set(order[0]) == {1.0, 2.0} and order[0] == [1.0, 2.0] * 4 and shapes[-1] == (4, 1, 8, 8)
    assert passes(z, 1.07, 16, 4) == 18
    torch.testing.assert_close(result, torch.full_like(z, -1 + 1.07 * 3))
