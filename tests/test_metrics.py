import sys
import urllib.error

import numpy as np
import pytest
import scipy.linalg
import skimage.data
import torch
from golden_case import load_case
from oracles import ssim_reference
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from basicsr.metrics.fid import frechet_distance
from basicsr.metrics.learned import lpips, pyiqa, pyiqa_nr
from basicsr.metrics.niqe import niqe
from basicsr.metrics.psnr_ssim import psnr, psnr_bounded, ssim
from basicsr.utils.color import luma
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY, OptionError


def pair(height: int = 40, width: int = 36) -> tuple[torch.Tensor, torch.Tensor]:
    """Two similar 8-bit RGB images, as metrics get them."""
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(1, 3, height, width, generator=generator)
    sr = gt + 0.1 * torch.randn(gt.shape, generator=generator)
    return tuple((image.clamp(0, 1) * 255).round() / 255 for image in (sr, gt))


def array(image: torch.Tensor) -> np.ndarray:
    return image[0].double().permute(1, 2, 0).numpy()


@pytest.mark.parametrize('crop_border', [0, 3])
@pytest.mark.parametrize('test_y_channel', [False, True])
def test_psnr_and_ssim_equal_scikit_image(crop_border, test_y_channel):
    sr, gt = pair()
    scores = [metric(sr, gt, crop_border, test_y_channel).item() for metric in (psnr, ssim)]
    inside = slice(crop_border, -crop_border or None)
    images = [array(luma(image.double()) if test_y_channel else image)[inside, inside] for image in (sr, gt)]
    expected_psnr = peak_signal_noise_ratio(*images, data_range=1)
    similarity = structural_similarity(
        *images, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    expected_ssim = similarity[5:-5, 5:-5].mean()  # super-resolution counts whole windows only
    np.testing.assert_allclose(scores, [expected_psnr, expected_ssim], rtol=1e-10)


@pytest.mark.parametrize('shape', [(1, 3, 11, 11), (2, 1, 40, 23), (1, 3, 64, 48)])
def test_ssim_equals_dense_windows(shape):
    generator = torch.Generator().manual_seed(0)
    sr, gt = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    torch.testing.assert_close(ssim(sr, gt), ssim_reference.ssim(sr * 255, gt * 255), rtol=0, atol=1e-6)


def test_scores_equal_basicsr():
    case = load_case('core', 'psnr_ssim')
    sr, gt = (
        torch.from_numpy(case.arrays[name][..., ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None]
        for name in ('img', 'img2')
    )
    for name, metric in (('calculate_psnr', 'psnr'), ('calculate_ssim', 'ssim')):
        function = METRIC_REGISTRY.get(name)
        scores = [
            function(sr, gt, crop_border=crop, test_y_channel=y).item()
            for crop in case.args['crops']
            for y in (False, True)
        ]
        np.testing.assert_allclose(scores, case.arrays[metric], atol=1e-5)


def test_each_image_of_a_batch_has_its_own_score():
    (sr, gt), flat = pair(), torch.full((1, 3, 40, 36), 0.5)
    for metric in (psnr, ssim, psnr_bounded):
        scores = metric(torch.cat([sr, flat]), torch.cat([gt, gt]))
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, torch.cat([metric(sr, gt), metric(flat, gt)]), rtol=1e-12, atol=0)


def test_equal_images_are_perfect():
    _, gt = pair()
    assert psnr(gt, gt).item() == float('inf')
    assert ssim(gt, gt).item() == pytest.approx(1, abs=1e-12)
    assert psnr_bounded(gt, gt).item() == pytest.approx(80)


def test_what_lies_in_the_border_does_not_count():
    sr, gt = pair()
    changed = sr.clone()
    changed[..., :4, :] = 0
    for metric in (psnr, ssim):
        assert metric(changed, gt, crop_border=4) == metric(sr, gt, crop_border=4)
        assert metric(changed, gt, crop_border=3) != metric(sr, gt, crop_border=3)


@pytest.mark.parametrize('metric', [psnr, ssim, lpips])
def test_images_of_different_sizes_are_refused(metric):
    with pytest.raises(ValueError, match=r'needs images of one size, got sr \(1, 3, 40, 36\)'):
        metric(torch.rand(1, 3, 40, 36), torch.rand(1, 3, 40, 35))


def test_other_bad_images_are_refused():
    image = torch.rand(1, 3, 12, 12)
    for bad, arguments, message in (
        (image[0], {}, 'floating-point tensors'),
        ((image * 255).byte(), {}, 'floating-point tensors'),
        (image, {'crop_border': 6}, 'border of 6'),
        (image, {'crop_border': -1}, 'border of -1'),
        (image[:, :1], {'test_y_channel': True}, 'colour conversion'),
    ):
        with pytest.raises(ValueError, match=message):
            psnr(bad, bad, **arguments)
    with pytest.raises(ValueError, match='at least 11x11'):
        ssim(image, image, crop_border=1)


def test_niqe_equals_basicsr_on_photographs():
    case = load_case('core', 'niqe')
    for name, published in zip(case.args['images'], case.arrays['niqe'], strict=True):
        image = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255
        scores = [niqe(image).item(), niqe(image, crop_border=4).item(), niqe(image, convert_to='gray').item()]
        np.testing.assert_allclose(scores, published, rtol=1e-3)


def test_niqe_needs_no_other_image_and_sees_noise():
    image = torch.from_numpy(skimage.data.chelsea()[:192, :192]).permute(2, 0, 1)[None] / 255
    noisy = (image + 0.2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert niqe(torch.cat([image, noisy]))[0] < niqe(noisy)[0]


def test_niqe_refuses_what_is_smaller_than_its_blocks():
    with pytest.raises(ValueError, match=r'needs 96x96 pixels inside a border of 4'):
        niqe(torch.rand(1, 3, 103, 200), crop_border=4)
    with pytest.raises(ValueError, match='RGB'):
        niqe(torch.rand(1, 1, 200, 200))


def test_niqe_of_a_blank_image_is_not_a_number():
    assert niqe(torch.full((1, 3, 96, 192), 0.5)).isnan().all()


def test_frechet_distance_equals_the_matrix_square_root():
    generator = np.random.default_rng(0)
    features = [generator.normal(size=(50, 6)) @ generator.normal(size=(6, 6)) + shift for shift in (0, 1)]
    means, covariances = [f.mean(0) for f in features], [np.cov(f, rowvar=False) for f in features]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_singular_features_is_finite_and_zero_to_itself():
    features = np.repeat(np.arange(10.0)[:, None], 4, axis=1)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(16, rel=1e-9)
    with pytest.raises(ValueError, match='at least 2 images'):
        frechet_distance(features[:1], features)


def test_lpips_is_a_distance():
    distance = ARCH_REGISTRY.build({'type': 'LPIPS', 'net': 'alex', 'pretrained': False})
    sr, gt = pair(64, 64)
    with torch.no_grad():
        assert distance(gt, gt).item() == 0
        assert distance(sr, gt).shape == (1,) and distance(sr, gt).item() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not any(module.training for module in distance.train().modules() if module is not distance)


def test_without_a_network_lpips_says_which_weights_it_lacks(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError('no network here')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'urlopen', offline)
    with pytest.raises(OptionError, match=r'alex.*no network here') as caught:
        lpips(*pair(64, 64))
    assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('call', [lambda sr, gt: pyiqa(sr, gt, metric='dists'), lambda sr, gt: pyiqa_nr(sr, 'musiq')])
def test_without_pyiqa_its_metrics_say_what_to_install(monkeypatch, call):
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    with pytest.raises(OptionError, match=r'non-commercial.*pip install pyiqa'):
        call(*pair())


def test_option_files_may_use_published_and_own_names():
    METRIC_REGISTRY.check({'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}, ('sr', 'gt'))
    METRIC_REGISTRY.check({'type': 'niqe', 'crop_border': 4, 'convert_to': 'gray'}, ('sr', 'gt'))
    with pytest.raises(OptionError, match="did you mean 'crop_border'"):
        METRIC_REGISTRY.check({'type': 'ssim', 'crop_boarder': 2}, ('sr', 'gt'))
