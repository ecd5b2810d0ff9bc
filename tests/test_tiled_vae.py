"""The autoencoder in lockstep tiles: what one tile makes of all, what tiles make of each other's statistics."""

import copy

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3diff_fixture import TINY_VAE
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks import tiled_vae
from basicsr.archs.blocks.tiled_vae import Lockstep, decode_tiled, encode_tiled, is_tiled, tiles_of

STATISTICS = ('published', 'pooled')


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL.from_config(TINY_VAE).eval().requires_grad_(False)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([32, 64, 96]))
def test_tiles_give_each_pixel_once_and_see_more(height, width, tile):
    """Of the encoder, whose boxes end at whole latents."""
    height, width = 8 * height, 8 * width
    count = torch.zeros(height, width)
    for box in tiles_of(height, width, tile, 32):
        for span, side in ((box.rows, height), (box.columns, width)):
            assert 0 <= span.seen[0] <= span.given[0] < span.given[1] <= span.seen[1] <= side
            assert not any(place % 8 for place in (*span.seen, *span.given))
            assert span.given[0] - span.seen[0] >= 32 or span.given[0] == 0
            assert span.seen[1] - span.given[1] >= 32 or span.given[1] == side
        count[slice(*box.rows.given), slice(*box.columns.given)] += 1
    assert (count == 1).all()


def test_only_inputs_larger_than_a_tile_and_its_padding_are_tiled():
    assert not is_tiled(128, 96, 64, 32) and is_tiled(136, 96, 64, 32) and is_tiled(96, 129, 64, 32)
    assert not is_tiled(10000, 10000, 0, 32)


@pytest.mark.parametrize('statistics', STATISTICS)
def test_one_tile_makes_what_the_network_makes(vae, statistics, monkeypatch):
    monkeypatch.setattr(tiled_vae, 'is_tiled', lambda *_: True)
    x, z = noise(2, 3, 64, 40), noise(2, 4, 8, 5)
    torch.testing.assert_close(encode_tiled(vae.encoder, x, 512, statistics), vae.encoder(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decode_tiled(vae.decoder, z, 512, statistics), vae.decoder(z), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('statistics', STATISTICS)
def test_without_norms_each_tile_is_what_the_network_makes_of_it_alone(vae, statistics, monkeypatch):
    vae = copy.deepcopy(vae)
    monkeypatch.setattr(Lockstep, 'norm', lambda self, norm, tiles, then=None: [(then or norm)(tile) for tile in tiles])
    for name, module in vae.named_modules():
        if isinstance(module, nn.GroupNorm):
            vae.set_submodule(name, nn.Identity())
    cases = (
        (vae.encoder, encode_tiled, noise(1, 3, 96, 168), 64, 32, 1 / 8),
        (vae.decoder, decode_tiled, noise(1, 4, 24, 41), 8, 11, 8),
    )
    for half, tiled, x, tile, padding, scale in cases:
        result = tiled(half, x, tile, statistics)
        boxes = tiles_of(*x.shape[-2:], tile, padding)
        assert len(boxes) >= 2
        for box in boxes:
            seen = half(x[..., slice(*box.rows.seen), slice(*box.columns.seen)])
            rows, columns = (
                [round((place - first) * scale) for first in (span.seen[0], 0) for place in span.given]
                for span in (box.rows, box.columns)
            )
            part = result[..., slice(*rows[2:]), slice(*columns[2:])]
            torch.testing.assert_close(part, seen[..., slice(*rows[:2]), slice(*columns[:2])], atol=1e-5, rtol=1e-4)


def lockstep(x: Tensor, statistics: str, tile: int = 8, padding: int = 3) -> Lockstep:
    return Lockstep(x, tiles_of(*x.shape[-2:], tile, padding), statistics)


def norm_with_any_weights() -> nn.GroupNorm:
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(noise(8)), norm.bias.copy_(noise(8, seed=1))
    return norm


def test_pooled_statistics_are_those_of_the_whole_image():
    x = 3 * noise(2, 8, 31, 22) + torch.linspace(0, 9, 22)
    norm, tiles = norm_with_any_weights(), lockstep(x, 'pooled')
    normed = tiles.norm(norm, tiles.tiles)
    assert len(normed) > 4
    torch.testing.assert_close(tiles.joined(normed, 31, 22), norm(x), atol=1e-5, rtol=1e-5)


def test_published_statistics_are_the_means_over_tiles_weighted_by_their_pixels():
    """s3diff.md 3.3; what lies between the means of tiles is left out of the variance."""
    x = 3 * noise(2, 8, 31, 22) + torch.linspace(0, 9, 22)
    norm, tiles = norm_with_any_weights(), lockstep(x, 'published')
    pixels = sum(tile[0, 0].numel() for tile in tiles.tiles)
    mean, variance = torch.zeros(2, 4), torch.zeros(2, 4)
    for tile in tiles.tiles:
        share, groups = tile[0, 0].numel() / pixels, tile.unflatten(1, (4, 2))
        mean += share * groups.mean((2, 3, 4))
        variance += share * groups.var((2, 3, 4), correction=0)
    mean, variance = (one.repeat_interleave(2, 1)[..., None, None] for one in (mean, variance))
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(tiles.joined(tiles.norm(norm, tiles.tiles), 31, 22), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, norm(x), atol=0.1)


def test_attention_looks_around_in_one_tile(vae):
    attention, x = vae.encoder.mid_block.attentions[0], noise(1, 64, 31, 22)
    tiles = lockstep(x, 'published')
    scale, shift = tiles._normalisation(attention.group_norm, tiles.tiles)
    found = tiles.attention(attention, list(tiles.tiles))
    for tile, result in zip(tiles.tiles, found, strict=True):
        tokens = (tile * scale + shift).flatten(2).mT
        logits = attention.to_q(tokens) @ attention.to_k(tokens).mT / 64**0.5
        change = attention.to_out[0](logits.softmax(-1) @ attention.to_v(tokens))
        torch.testing.assert_close(result, tile + change.mT.unflatten(2, tile.shape[2:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('statistics', STATISTICS)
def test_images_of_a_batch_do_not_see_each_other(vae, statistics):
    x, z = noise(2, 3, 64, 136), noise(2, 4, 8, 40)
    x[1] *= 5
    for half, tiled, one, tile in ((vae.encoder, encode_tiled, x, 64), (vae.decoder, decode_tiled, z, 8)):
        alone = torch.cat([tiled(half, part, tile, statistics) for part in one.split(1)])
        torch.testing.assert_close(tiled(half, one, tile, statistics), alone, atol=1e-5, rtol=1e-4)


def test_pooled_statistics_come_nearer_to_the_whole_image(vae):
    """An image whose tiles differ: the published variance is too small for it."""
    z = noise(1, 4, 16, 96) * 0.2 + torch.linspace(-4, 4, 96)
    whole = vae.decoder(z)
    errors = {name: (decode_tiled(vae.decoder, z, 32, name) - whole).abs().mean().item() for name in STATISTICS}
    assert errors['pooled'] < 0.7 * errors['published']


def test_bf16_is_near_and_input_stays_as_it_was(vae):
    x = noise(1, 3, 64, 168)
    before = x.clone()
    exact = encode_tiled(vae.encoder, x, 64, 'published')
    with torch.autocast('cpu', torch.bfloat16):
        near = encode_tiled(vae.encoder, x, 64, 'published')
    assert near.dtype == torch.bfloat16 and torch.equal(x, before)
    assert F.mse_loss(near.float(), exact) < 0.01 * exact.var()
