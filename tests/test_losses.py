import math

import pytest
import torch
import torch.nn.functional as F
from golden_case import load_case
from torch import nn

from basicsr.losses.gan_loss import gradient_penalty_loss, r1_penalty
from basicsr.losses.ldl_loss import artifact_map
from basicsr.metrics.psnr_ssim import psnr_bounded
from basicsr.utils.color import luma
from basicsr.utils.registry import LOSS_REGISTRY, OptionError

VGG = {
    'type': 'PerceptualLoss',
    'layer_weights': {'conv1_1': 1.0, 'relu2_1': 0.5},
    'vgg_type': 'vgg11_bn',
    'pretrained': False,
}


def images(count: int = 2, side: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, side, side, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    ('kind', 'function'), [('L1Loss', F.l1_loss), ('MSELoss', F.mse_loss), ('CharbonnierLoss', F.l1_loss)]
)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_pixel_losses_equal_torch(kind, function, reduction):
    sr, gt = images()
    loss = LOSS_REGISTRY.build({'type': kind, 'loss_weight': 0.7, 'reduction': reduction})
    torch.testing.assert_close(loss(sr, gt), 0.7 * function(sr, gt, reduction=reduction), rtol=1e-4, atol=1e-5)


def test_a_weighted_mean_counts_only_weighted_pixels():
    sr, gt = images()
    weight = torch.zeros(2, 1, 16, 16)
    weight[..., :4] = 2
    loss = LOSS_REGISTRY.build({'type': 'L1Loss'})
    torch.testing.assert_close(loss(sr, gt, weight), F.l1_loss(sr[..., :4], gt[..., :4]))
    torch.testing.assert_close(loss(sr, gt, weight.expand_as(sr)), F.l1_loss(sr[..., :4], gt[..., :4]))


def test_total_variation_of_a_ramp_is_its_slope():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    loss = LOSS_REGISTRY.build({'type': 'WeightedTVLoss', 'loss_weight': 0.5})
    assert loss(3 * ramp).item() == pytest.approx(1.5)
    with pytest.raises(OptionError, match="'mean' or 'sum'"):
        LOSS_REGISTRY.build({'type': 'WeightedTVLoss', 'reduction': 'none'})


@pytest.mark.parametrize('to_y', [False, True])
def test_psnr_loss_is_the_negative_metric(to_y):
    sr, gt = images()
    loss = LOSS_REGISTRY.build({'type': 'PSNRLoss', 'toY': to_y})
    expected = -psnr_bounded(luma(sr) if to_y else sr, luma(gt) if to_y else gt).mean()
    assert loss(sr, gt).item() == pytest.approx(expected.item(), rel=1e-5)


def test_wrong_sizes_and_reductions_are_refused():
    sr, gt = images()
    loss = LOSS_REGISTRY.build({'type': 'MSELoss'})
    with pytest.raises(ValueError, match='needs one size'):
        loss(sr, gt[..., :1])
    with pytest.raises(ValueError, match=r'a weight is \(b, 1, h, w\) or \(b, 3, h, w\)'):
        loss(sr, gt, torch.ones(2, 2, 16, 16))
    with pytest.raises(OptionError, match="'mean', 'sum' or 'none', got 'average'"):
        LOSS_REGISTRY.build({'type': 'L1Loss', 'reduction': 'average'})


@pytest.mark.parametrize('kind', ['vanilla', 'lsgan', 'wgan', 'wgan_softplus', 'hinge'])
def test_each_side_of_the_game_wants_the_opposite(kind):
    """One step down a side's own loss moves a judgement the way that side wants."""
    loss = LOSS_REGISTRY.build({'type': 'GANLoss', 'gan_type': kind, 'loss_weight': 0.1})
    for target_is_real, is_disc, direction in ((True, True, 1), (False, True, -1), (True, False, 1)):
        judgement = torch.full((2, 1), 0.3, requires_grad=True)
        loss(judgement, target_is_real, is_disc).backward()
        assert (direction * judgement.grad < 0).all()


def test_the_weight_counts_for_the_generator_only():
    pred = torch.randn(2, 1, 3, 3)
    section = {'type': 'GANLoss', 'gan_type': 'vanilla'}
    light, heavy = (LOSS_REGISTRY.build({**section, 'loss_weight': weight}) for weight in (1.0, 5.0))
    torch.testing.assert_close(heavy(pred, True), 5 * light(pred, True))
    torch.testing.assert_close(heavy(pred, False, is_disc=True), light(pred, False, is_disc=True))


def test_many_scales_are_averaged():
    options = {'gan_type': 'hinge', 'loss_weight': 0.1}
    one, many = (LOSS_REGISTRY.build({'type': kind, **options}) for kind in ('GANLoss', 'MultiScaleGANLoss'))
    fine, coarse = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 2, 2)
    expected = (one(fine, True, is_disc=True) + one(coarse, True, is_disc=True)) / 2
    torch.testing.assert_close(many([fine, [torch.randn(3), coarse]], True, is_disc=True), expected)


def test_an_unknown_gan_type_is_named():
    with pytest.raises(OptionError, match="'hinge', got 'wgan-gp'"):
        LOSS_REGISTRY.build({'type': 'GANLoss', 'gan_type': 'wgan-gp'})


def test_gradient_penalties_of_a_linear_judge_have_a_closed_form():
    slope = torch.tensor([1.0, 2.0, 2.0]).view(1, 3, 1, 1)

    def judge(x: torch.Tensor) -> torch.Tensor:
        return (slope * x).sum((1, 2, 3))

    real, fake = images()
    real.requires_grad_(True)
    assert r1_penalty(judge(real), real).item() == pytest.approx(9 * 16 * 16)
    assert gradient_penalty_loss(judge, real, fake).item() == pytest.approx((3 - 1) ** 2)
    half = torch.full_like(real, 0.5)
    assert gradient_penalty_loss(judge, real, fake, weight=half).item() == pytest.approx((1.5 - 1) ** 2 / 0.5)


def test_penalties_can_be_trained_through():
    judge = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))
    real, fake = images()
    gradient_penalty_loss(judge, real, fake).backward()
    assert judge[0].weight.grad.abs().sum() > 0


def test_artifacts_are_counted_only_where_the_average_is_better():
    gt, sr, _ = images(3)
    assert (artifact_map(gt, sr, gt) > 0).all()
    assert (artifact_map(gt, gt.clone(), sr) == 0).all()
    loss = LOSS_REGISTRY.build({'type': 'LDLLoss', 'loss_weight': 2.0})
    expected = 2 * (artifact_map(gt, sr, gt) * (sr - gt).abs()).mean()
    torch.testing.assert_close(loss(sr, gt, gt), expected)
    with pytest.raises(ValueError, match='ksize must be odd'):
        LOSS_REGISTRY.build({'type': 'LDLLoss', 'ksize': 6})


@pytest.mark.parametrize('criterion', ['l1', 'l2', 'fro'])
def test_equal_images_have_equal_features(criterion):
    sr, gt = images()
    loss = LOSS_REGISTRY.build({**VGG, 'criterion': criterion, 'style_weight': 2.0})
    assert [part.item() for part in loss(gt, gt)] == [0, 0]
    assert all(part.item() > 0 for part in loss(sr, gt))


def test_a_part_of_weight_zero_is_left_out():
    sr, gt = images()
    assert LOSS_REGISTRY.build({**VGG, 'style_weight': 0})(sr, gt)[1] is None
    assert LOSS_REGISTRY.build({**VGG, 'perceptual_weight': 0, 'style_weight': 1})(sr, gt)[0] is None


def test_perceptual_loss_teaches_sr_and_nothing_else():
    sr, gt = (image.requires_grad_(True) for image in images())
    loss = LOSS_REGISTRY.build(VGG).train()
    loss(sr, gt)[0].backward()
    assert sr.grad.abs().sum() > 0 and gt.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert not any(module.training for module in loss.vgg.modules())


def test_a_convolutions_own_output_is_before_its_relu():
    loss = LOSS_REGISTRY.build({**VGG, 'layer_weights': {'conv1_1': 1, 'relu1_1': 1}, 'vgg_type': 'vgg16'})
    features = loss.vgg(images()[0])
    assert features['conv1_1'].min() < 0
    torch.testing.assert_close(features['relu1_1'], features['conv1_1'].relu())


def test_features_equal_torchvisions_network(tmp_path):
    """A file in torchvision's own layout is read; its network and ours give the same features."""
    torchvision = pytest.importorskip('torchvision')
    published = torchvision.models.vgg11(weights=None).eval()
    torch.save(published.state_dict(), tmp_path / 'vgg11.pth')
    section = {**VGG, 'vgg_type': 'vgg11', 'layer_weights': {'relu2_1': 1}, 'use_input_norm': False}
    loss = LOSS_REGISTRY.build({**section, 'pretrained': str(tmp_path / 'vgg11.pth')})
    image = images(1)[0]
    torch.testing.assert_close(loss.vgg(image)['relu2_1'], published.features[:5](image))


def test_unknown_layers_and_networks_are_named():
    with pytest.raises(OptionError, match='conv1_9'):
        LOSS_REGISTRY.build({**VGG, 'layer_weights': {'conv1_9': 1.0}})
    with pytest.raises(OptionError, match="'vgg12' is not known"):
        LOSS_REGISTRY.build({**VGG, 'vgg_type': 'vgg12'})
    with pytest.raises(ValueError, match=r'nowhere\.pth'):
        LOSS_REGISTRY.build({**VGG, 'pretrained': 'nowhere.pth'})


def test_without_a_network_the_missing_weights_are_one_clear_line(monkeypatch, tmp_path):
    pytest.importorskip('torchvision')

    def offline(*args, **kwargs):
        raise OSError('no network here')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, 'urlopen', offline)
    with pytest.raises(OptionError, match=r'vgg11_bn.*no network here') as caught:
        LOSS_REGISTRY.build({**VGG, 'pretrained': True})
    assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_lpips_loss_is_zero_for_equal_images_and_teaches_otherwise():
    sr, gt = images(side=64)
    loss = LOSS_REGISTRY.build({'type': 'LPIPSLoss', 'loss_weight': 2.0, 'net': 'squeeze', 'pretrained': False})
    assert loss(gt, gt).item() == 0
    loss(sr.requires_grad_(True), gt).backward()
    assert sr.grad.abs().sum() > 0


def test_losses_equal_basicsr_in_the_published_cases():
    case = load_case('core', 'pixel_losses')
    sr, gt = (torch.from_numpy(case.arrays[name]) for name in ('pred', 'target'))
    loss = LOSS_REGISTRY.build(
        {'type': 'CharbonnierLoss', 'loss_weight': case.args['loss_weight'], 'eps': case.args['charbonnier_eps']}
    )
    assert loss(sr, gt).item() == pytest.approx(case.arrays['CharbonnierLoss_mean'].item(), rel=1e-5)
    assert math.isfinite(loss(gt, gt).item())
