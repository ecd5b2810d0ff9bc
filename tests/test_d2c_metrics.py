"""The published metrics of D2C-SR: against other implementations where those agree."""

import numpy as np
import pytest
import torch
from golden_case import load_case
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from basicsr.metrics.d2c import WEIGHTS, psnr_d2c, ssim_d2c
from basicsr.metrics.evaluate import build_metrics
from basicsr.metrics.psnr_ssim import psnr


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and one that differs in red most, and leaves [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(2, 3, 20, 17, generator=generator, dtype=torch.float64)
    noise = torch.randn(gt.shape, generator=generator, dtype=torch.float64)
    return gt + noise * torch.tensor([0.3, 0.02, 0.01]).view(3, 1, 1), gt


def test_in_the_right_order_psnr_is_that_of_the_luma_channel():
    sr, gt = pair()
    expected = psnr(sr.clamp(0, 1), gt, crop_border=3, test_y_channel=True)
    torch.testing.assert_close(psnr_d2c(sr, gt, 3, 'rgb'), expected, rtol=0, atol=2e-4)  # weights have 6 digits
    torch.testing.assert_close(psnr_d2c(sr.flip(1), gt.flip(1), 3), psnr_d2c(sr, gt, 3, 'rgb'), rtol=1e-12, atol=0)


def test_the_order_counts_several_decibels_where_one_colour_is_noisy():
    sr, gt = pair()
    assert (psnr_d2c(sr, gt, 2) - psnr_d2c(sr, gt, 2, 'rgb') > 5).all()
    assert (ssim_d2c(sr, gt) > ssim_d2c(sr, gt, 'rgb')).all()


@pytest.mark.parametrize('order', ['published', 'rgb'])
def test_inside_the_image_ssim_is_that_of_scikit_image(order):
    """A black frame of ten pixels is as good as the zeros around an image; scikit-image mirrors zeros there."""
    sr, gt = (F.pad(image, [10] * 4) for image in pair())
    weights = torch.tensor(WEIGHTS[::-1] if order == 'published' else WEIGHTS, dtype=torch.float64).view(3, 1, 1)
    planes = [(image * weights).sum(1).numpy() for image in (sr, gt)]
    settings = {'gaussian_weights': True, 'use_sample_covariance': False, 'truncate': 3.5}
    expected = [structural_similarity(x, y, data_range=1.0, full=True, **settings)[1].mean() for x, y in zip(*planes)]
    np.testing.assert_allclose(ssim_d2c(sr, gt, order), expected, rtol=1e-9)


def test_the_border_counts_in_ssim_and_is_darkened_by_the_zeros_around_it():
    """Of two constant images only the lightness differs: inside by its usual formula, at the border by less."""
    sr, gt = torch.full((1, 3, 30, 30), 0.5), torch.full((1, 3, 30, 30), 0.9)
    x, y = 0.5 * sum(WEIGHTS), 0.9 * sum(WEIGHTS)
    inside = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert ssim_d2c(sr, gt).item() != pytest.approx(inside, abs=1e-3)
    assert psnr_d2c(sr, gt, 4).item() == pytest.approx(-20 * np.log10(y - x))


def test_equal_images_are_infinitely_near_and_quite_similar():
    _, gt = pair()
    assert psnr_d2c(gt, gt, 4).isinf().all()
    torch.testing.assert_close(ssim_d2c(gt, gt), torch.ones(2, dtype=torch.float64))


def test_an_option_file_names_them_and_each_image_has_its_value():
    sr, gt = pair()
    metrics = build_metrics(
        {'psnr': {'type': 'psnr_d2c', 'crop_border': 2}, 'ssim': {'type': 'ssim_d2c', 'order': 'rgb'}}
    )
    for metric in metrics.values():
        torch.testing.assert_close(metric(sr, gt)[1:], metric(sr[1:], gt[1:]))


def test_sizes_and_borders_that_do_not_fit_are_refused():
    sr, gt = pair()
    with pytest.raises(ValueError, match='of one size'):
        psnr_d2c(sr[..., 1:], gt, 2)
    with pytest.raises(ValueError, match='of one size'):
        ssim_d2c(sr[:, :1], gt[:, :1])
    with pytest.raises(ValueError, match='border of 9'):
        psnr_d2c(sr, gt, 9)


def test_published_arrays_are_the_channels_reversed():
    """The golden arrays are BGR: what they call flipped is our right order."""
    case = load_case('d2c', 'metrics')
    sr, gt = (torch.tensor(case.arrays[name]).flip(1) for name in ('sr', 'hr'))
    assert ssim_d2c(sr, gt).item() == pytest.approx(case.spec['values']['ssim'], abs=1e-5)
    assert ssim_d2c(sr, gt, 'rgb').item() == pytest.approx(case.spec['values']['ssim_flipped'], abs=1e-5)
