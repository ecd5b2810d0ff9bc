"""DiffAugment against loops over pixels; its draws and gradients."""

import pytest
import torch
from torch import Tensor

from basicsr.archs.blocks.diff_augment import AugmentDraws, diff_augment, random_draws

SIZES = [(8, 8), (7, 9), (13, 6), (3, 2), (1, 5)]


def images(height: int, width: int, count: int = 4) -> Tensor:
    return 2 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) - 1


def by_pixels(x: Tensor, draws: AugmentDraws) -> Tensor:
    """s3diff.md 2.5, step 1, image by image and pixel by pixel."""
    out = torch.zeros_like(x)
    height, width = x.shape[-2:]
    hole_h, hole_w = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    for n, image in enumerate(x):
        image = image + (draws.brightness[n] - 0.5)
        grey = image.mean(0, keepdim=True)
        image = (image - grey) * 2 * draws.saturation[n] + grey
        image = (image - image.mean()) * (draws.contrast[n] + 0.5) + image.mean()
        for row in range(height):
            for column in range(width):
                from_row, from_column = row + int(draws.shift_y[n]), column + int(draws.shift_x[n])
                if 0 <= from_row < height and 0 <= from_column < width:
                    out[n, :, row, column] = image[:, from_row, from_column]
        for down in range(hole_h):
            for right in range(hole_w):
                row = min(max(int(draws.hole_y[n]) - hole_h // 2 + down, 0), height - 1)
                column = min(max(int(draws.hole_x[n]) - hole_w // 2 + right, 0), width - 1)
                out[n, :, row, column] = 0
    return out


@pytest.mark.parametrize('size', SIZES)
def test_equals_loops_over_pixels(size):
    x = images(*size)
    for seed in range(5):
        torch.manual_seed(seed)
        draws = random_draws(x)
        torch.testing.assert_close(diff_augment(x, draws), by_pixels(x, draws))


@pytest.mark.parametrize(('size', 'shift', 'places'), [(24, 3, 25), (20, 3, 21), (7, 1, 8), (5, 1, 5)])
def test_draws_take_all_values_of_their_ranges_and_no_others(size, shift, places):
    torch.manual_seed(0)
    draws = random_draws(torch.zeros(3000, 3, size, size))
    for drawn in (draws.shift_y, draws.shift_x):
        assert drawn.unique().tolist() == [*range(-shift, shift + 1)]
    for drawn in (draws.hole_y, draws.hole_x):
        assert drawn.unique().tolist() == [*range(places)]
    for drawn in draws[:3]:
        assert 0 <= drawn.min() < 0.01 and 0.99 < drawn.max() < 1


def test_neutral_draws_change_nothing_but_the_hole():
    x, half, zero = images(8, 8, 1), torch.tensor([0.5]), torch.tensor([0])
    y = diff_augment(x, AugmentDraws(half, half, half, zero, zero, torch.tensor([2]), torch.tensor([6])))
    torch.testing.assert_close(y[..., 4:, :], x[..., 4:, :])
    torch.testing.assert_close(y[..., :4, :4], x[..., :4, :4])
    assert not y[..., :4, 4:].any()


def test_the_gradient_passes_and_equals_finite_differences():
    x = images(6, 5, 2).double().requires_grad_()
    draws = random_draws(x)
    torch.autograd.gradcheck(lambda given: diff_augment(given, draws), x)
