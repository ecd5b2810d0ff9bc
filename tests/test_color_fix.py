"""Colour fixes: what is taken from the source, against closed forms and convolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.color_fix import adain_fix, fix_color, lowest_band, wavelet_fix
from basicsr.utils.registry import UserError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def bands_by_convolution(image: Tensor, levels: int = 5) -> tuple[Tensor, Tensor]:
    """High and lowest band as published: dilated 3x3 convolutions of each channel, the edge repeated."""
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel, high = (line[:, None] * line / 16)[None, None], torch.zeros_like(image)
    for level in range(levels):
        step, channels = 2**level, image.shape[1]
        padded = F.pad(image, (step,) * 4, mode='replicate')
        blurred = F.conv2d(padded, kernel.repeat(channels, 1, 1, 1), groups=channels, dilation=step)
        high, image = high + image - blurred, blurred
    return high, image


@pytest.mark.parametrize('size', [(37, 52), (3, 5), (1, 1)])
def test_the_wavelet_fix_joins_the_high_bands_of_one_to_the_lowest_of_the_other(size):
    image, source = 2 * noise(2, 3, *size) - 0.5, noise(2, 3, *size, seed=1)
    (high, _), (_, low) = bands_by_convolution(image), bands_by_convolution(source)
    torch.testing.assert_close(lowest_band(source), low, atol=1e-6, rtol=0)
    torch.testing.assert_close(wavelet_fix(image, source), high + low, atol=1e-6, rtol=0)


def test_a_shift_of_the_colours_is_undone():
    image = noise(1, 3, 24, 40)
    shift = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    torch.testing.assert_close(wavelet_fix(image + shift, image), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(adain_fix(0.5 * image + shift, image), image, atol=1e-3, rtol=0)


def test_adain_gives_each_channel_of_each_image_the_mean_and_deviation_of_the_source():
    image, source = noise(2, 3, 20, 30), 0.3 * noise(2, 3, 20, 30, seed=1) ** 2
    fixed = adain_fix(image, source)
    torch.testing.assert_close(fixed.mean((2, 3)), source.mean((2, 3)))
    torch.testing.assert_close(fixed.std((2, 3)), source.std((2, 3)), atol=1e-4, rtol=1e-2)
    assert torch.isfinite(adain_fix(image[..., :1, :1], source[..., :1, :1])).all()


@pytest.mark.parametrize('method', ['wavelet', 'adain'])
def test_strength_goes_from_the_image_as_it_is_to_the_whole_fix(method):
    image, source = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    whole = fix_color(image, source, method)
    assert fix_color(image, source, method, 0) is image
    torch.testing.assert_close(fix_color(image, source, method, 0.25), 0.75 * image + 0.25 * whole)


def test_none_changes_nothing_and_others_are_refused():
    image = noise(1, 3, 8, 8)
    assert fix_color(image, image, 'none') is image
    with pytest.raises(UserError, match="'wavelets' is not a known colour fix; did you mean 'wavelet'"):
        fix_color(image, image, 'wavelets')
    with pytest.raises(ValueError, match=r'one size, not \(1, 3, 8, 7\)'):
        fix_color(image, image[..., 1:], 'adain')
