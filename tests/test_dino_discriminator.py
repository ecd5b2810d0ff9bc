"""S3Diff's discriminator: what is frozen, what a checkpoint holds, its judgements and losses."""

import copy
import sys

import pytest
import torch
from torch import nn

from basicsr.archs.blocks.spectral import SpectralConv2d, SpectralLinear
from basicsr.archs.dino_discriminator_arch import DinoDiscriminator
from basicsr.utils.checkpoint import load_network
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, UserError

TINY = {'type': 'DinoDiscriminator', 'pretrained': False, 'embed_dim': 16, 'depth': 8, 'num_heads': 2, 'image_size': 64}
TINY |= {'dim': 8}


def tiny(**changes) -> DinoDiscriminator:
    torch.manual_seed(0)
    return ARCH_REGISTRY.build(TINY | changes)


def test_judges_images_of_any_size_at_three_levels():
    net = tiny(image_size=224).eval()
    for size in ((32, 32), (50, 70), (300, 224)):
        shapes = [tuple(judged.shape) for judged in net(torch.zeros(2, 3, *size))]
        assert shapes == [(2, 3, 3), (2, 3, 3), (2, 1)]


def test_features_equal_the_blocks_of_the_transformer_one_after_the_other():
    net = tiny(depth=9)
    features, vit = net.backbone, net.backbone.vit
    x = torch.rand(2, 3, 40, 30) * 2 - 1
    tokens = vit.patch_embed(features.prepared(x))
    tokens = torch.cat([vit.cls_token.expand(2, -1, -1), tokens], 1) + vit.pos_embed
    outputs = []
    for block in vit.blocks:
        tokens = block(tokens)
        outputs.append(vit.norm(tokens))
    maps = [outputs[n][:, 1:].transpose(1, 2).reshape(2, 16, 4, 4) for n in (1, 5)]
    for ours, expected in zip(features(x), [*maps, outputs[8][:, 0]], strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_backbone_is_no_part_of_checkpoints():
    net, other = tiny(), tiny()
    assert not any('backbone' in name for name in net.state_dict())
    assert not any('backbone' in name for name in nn.Sequential(net).state_dict())
    with torch.no_grad():
        for parameter in (*other.decoder.parameters(), *other.backbone.parameters()):
            parameter.add_(1)
    backbone = copy.deepcopy(other.backbone.state_dict())
    assert load_network(other, net.state_dict(), 'net_d') == set()
    other.load_state_dict(net.state_dict(), strict=True)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
    assert all(torch.equal(value, backbone[name]) for name, value in other.backbone.state_dict().items())


def test_a_missing_entry_of_the_heads_is_still_an_error():
    net = tiny()
    state = net.state_dict()
    del state['decoder.0.out.bias']
    with pytest.raises(RuntimeError, match=r'decoder\.0\.out\.bias'):
        net.load_state_dict(state, strict=True)


def test_the_backbone_moves_with_the_network():
    net = copy.deepcopy(tiny()).to(torch.float64)
    assert {tensor.dtype for tensor in (*net.backbone.parameters(), *net.backbone.buffers())} == {torch.float64}
    assert net(torch.zeros(1, 3, 32, 32, dtype=torch.float64))[0].dtype == torch.float64


def test_the_backbone_stays_frozen_whatever_is_asked():
    net = tiny().requires_grad_(False).requires_grad_(True).train()
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert all(p.requires_grad for p in net.decoder.parameters())
    assert not any(module.training for module in net.backbone.modules())
    assert net.training and net.decoder.training


def test_the_image_gets_a_gradient_and_the_backbone_none():
    net, x = tiny(augment=False), torch.rand(2, 3, 32, 32, requires_grad=True)
    sum(judged.sum() for judged in net(x)).backward()
    assert x.grad.abs().min(1).values.count_nonzero() > 0.9 * x.grad[:, 0].numel()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.decoder.parameters())


def test_images_are_augmented_in_training_only_and_follow_the_seed():
    net, x = tiny(), torch.rand(2, 3, 32, 32) * 2 - 1

    def judged(seed: int, training: bool) -> torch.Tensor:
        torch.manual_seed(seed)
        return copy.deepcopy(net).train(training)(x)[0]

    assert torch.equal(judged(0, True), judged(0, True)) and not torch.equal(judged(0, True), judged(1, True))
    assert torch.equal(judged(0, False), judged(1, False))


def test_weights_of_the_backbone_come_from_a_file(tmp_path):
    state = {name: torch.randn_like(value) for name, value in tiny().backbone.vit.state_dict().items()}
    torch.save(state, tmp_path / 'dino.pth')
    loaded = tiny(pretrained=str(tmp_path / 'dino.pth')).backbone.vit.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_of_another_transformer_are_refused(tmp_path):
    torch.save(tiny(embed_dim=24).backbone.vit.state_dict(), tmp_path / 'dino.pth')
    with pytest.raises(UserError, match=r'dino\.pth: belongs to another network than VisionTransformer'):
        tiny(pretrained=str(tmp_path / 'dino.pth'))
    with pytest.raises(UserError, match=r'missing\.pth: no such file'):
        tiny(pretrained='missing.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'depth': 7}, 'depth 7 is too small'),
        ({'num_heads': 3}, 'embed_dim 16 should be a multiple of num_heads 3'),
        ({'image_size': 60}, 'image_size 60 of patch_size 16'),
    ],
)
def test_impossible_sizes_are_said_in_a_line(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)


def test_without_timm_the_install_command_is_said(monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'timm']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UserError, match=r"needs the package timm: pip install -e '\.\[s3diff\]'"):
        tiny()


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_spectral_layers_equal_torchs_own(kind):
    torch.manual_seed(0)
    if kind == 'conv':
        ours, plain, x = SpectralConv2d(3, 5, 3, stride=2), nn.Conv2d(3, 5, 3, stride=2), torch.randn(2, 3, 9, 9)
    else:
        ours, plain, x = SpectralLinear(4, 6), nn.Linear(4, 6), torch.randn(2, 4)
    theirs = nn.utils.spectral_norm(plain)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))


def test_power_iterations_reach_the_largest_singular_value():
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 5, 3)
    for _ in range(200):
        normalized = layer.normalized()
    torch.testing.assert_close(torch.linalg.matrix_norm(normalized.detach().flatten(1), 2), torch.tensor(1.0))


def test_two_forwards_may_precede_the_backward_pass():
    net, x = tiny(), torch.rand(2, 3, 32, 32)
    sum(judged.sum() for judged in (*net(x), *net(-x))).backward()
    assert net.decoder[0].out.weight_orig.grad is not None


def test_the_loss_is_the_cross_entropy_of_each_level_in_closed_form():
    loss = LOSS_REGISTRY.build({'type': 'MultiLevelGANLoss', 'loss_weight': 0.5})
    levels = [torch.randn(4, 3, 3), torch.randn(4, 2, 5), torch.randn(4, 1)]
    for real, label in ((True, 0.8), (False, 0.0)):
        expected = 0
        for logits in levels:
            p = logits.sigmoid()
            expected = expected - (label * p.log() + (1 - label) * (1 - p).log()).mean()
        for is_disc in (True, False):
            torch.testing.assert_close(loss(levels, real, is_disc), 0.5 * expected)
    torch.testing.assert_close(loss(levels[0], True), loss(levels[:1], True))
