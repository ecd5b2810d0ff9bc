import numpy as np
import pytest
import torch

from basicsr.utils.padding import extend_reflect, extend_symmetric


@pytest.mark.parametrize('size', [(1, 1), (3, 40), (16, 15), (17, 32), (5, 64)])
@pytest.mark.parametrize('unit', [1, 8, 16])
def test_images_grow_by_mirror_images_to_the_next_multiple(size, unit):
    image = torch.rand(2, 3, *size)
    growth = [(side // unit + 1) * unit - side for side in size]
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, growth[0]), (0, growth[1])), mode='symmetric')
    assert torch.equal(extend_symmetric(image, unit), torch.from_numpy(expected))


def test_multiples_grow_by_a_whole_unit_as_published():
    assert extend_symmetric(torch.rand(1, 3, 16, 32), 16).shape == (1, 3, 32, 48)


@pytest.mark.parametrize(('size', 'unit'), [((20, 14), 16), ((9, 64), 64), ((33, 5), 8), ((16, 32), 16)])
def test_images_grow_to_multiples_by_reflection_about_their_edge(size, unit):
    image = torch.rand(2, 3, *size)
    growth = [-side % unit for side in size]
    reflected = [min(one, side - 1) for one, side in zip(growth, size, strict=True)]
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, reflected[0]), (0, reflected[1])), mode='reflect')
    rest = [one - part for one, part in zip(growth, reflected, strict=True)]
    expected = np.pad(expected, ((0, 0), (0, 0), (0, rest[0]), (0, rest[1])), mode='edge')
    assert torch.equal(extend_reflect(image, unit), torch.from_numpy(expected))


def test_a_single_pixel_fills_what_reflection_cannot():
    assert torch.equal(extend_reflect(torch.full((1, 3, 1, 1), 0.7), 64), torch.full((1, 3, 64, 64), 0.7))
