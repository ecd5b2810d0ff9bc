import numpy as np
import pytest
import torch

from basicsr.utils.padding import extend_symmetric


@pytest.mark.parametrize('size', [(1, 1), (3, 40), (16, 15), (17, 32), (5, 64)])
@pytest.mark.parametrize('unit', [1, 8, 16])
def test_images_grow_by_mirror_images_to_the_next_multiple(size, unit):
    image = torch.rand(2, 3, *size)
    growth = [(side // unit + 1) * unit - side for side in size]
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, growth[0]), (0, growth[1])), mode='symmetric')
    assert torch.equal(extend_symmetric(image, unit), torch.from_numpy(expected))


def test_multiples_grow_by_a_whole_unit_as_published():
    assert extend_symmetric(torch.rand(1, 3, 16, 32), 16).shape == (1, 3, 32, 48)
