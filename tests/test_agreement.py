"""What makes restored images agree with lq."""

import torch
from iter_fixture import images, tiny_model
from training_fixture import ROOT

from basicsr.models.agreement import lacking
from basicsr.models.restorer import Restorer
from basicsr.utils.image import read_image, to_tensor
from basicsr.utils.resize import imresize


def distance(image: torch.Tensor, lq: torch.Tensor) -> float:
    """By MATLAB's reduction, which is another implementation, away from the edges."""
    return (imresize(image, lq.shape[-1] / image.shape[-1]) - lq)[..., 3:-3, 3:-3].square().mean().sqrt().item()


def test_what_is_added_makes_an_images_reduction_lq():
    lq = to_tensor(read_image(ROOT / 'testset/lq_x4/chelsea_right.png'))[None, :, :24, :32]
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    before, after = distance(image, lq), distance(image + lacking(image, lq), lq)
    assert after < before / 5


def test_an_image_that_agrees_is_left_as_it_is():
    image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    reduced = torch.nn.functional.interpolate(image.float(), (8, 10), mode='bicubic', antialias=True)
    assert lacking(image, reduced).abs().max() == 0


def test_iter_restores_images_that_agree_and_shows_such_on_the_way():
    lq, plain, consistent = images(2, 24, 20), tiny_model(), tiny_model(model={'consistency': True})
    sr, agreed = Restorer(plain)(lq), Restorer(consistent, maps=True)(lq)
    assert distance(agreed[:, :3], lq) < distance(sr, lq) / 2
    steps = consistent.refinement.T
    assert torch.equal(agreed[:, 3 * steps : 3 * steps + 3], agreed[:, :3])
    assert all(distance(agreed[:, 3 * n : 3 * n + 3], lq) < distance(sr, lq) / 2 for n in range(1, steps))
