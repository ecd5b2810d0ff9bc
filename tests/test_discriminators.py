import warnings

import pytest
import torch
from golden_case import load_case
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from basicsr.utils.checkpoint import load_network
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

TINY = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}


def normalised_by_torch(net: nn.Module) -> nn.Module:
    """A module with the same entries, in which torch does the spectral normalisation."""
    twin = nn.Module()
    for name, layer in net.named_children():
        if hasattr(layer, 'weight_orig'):
            shape, stride = layer.weight_orig.shape, layer.stride
            conv = nn.Conv2d(shape[1], shape[0], shape[2:], stride=stride, padding=1, bias=False)
            twin.add_module(name, spectral_norm(conv))
        else:
            twin.add_module(name, layer)
    return twin


def test_checkpoints_of_torchs_newer_spectral_norm_are_read():
    net = ARCH_REGISTRY.build(TINY)
    twin = normalised_by_torch(ARCH_REGISTRY.build(TINY)).eval()
    load_network(net, twin.state_dict(), 'twin')
    net.eval()
    for name in ('conv1', 'conv5'):
        x = torch.rand(1, getattr(net, name).weight_orig.shape[1], 8, 8)
        torch.testing.assert_close(getattr(net, name)(x), getattr(twin, name)(x), rtol=1e-4, atol=1e-6)


def test_power_iterations_find_the_largest_singular_value():
    layer = ARCH_REGISTRY.build(TINY).conv3
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        for _ in range(200):
            layer.train()(x)
        largest = torch.linalg.matrix_norm(layer.weight_orig.flatten(1), 2)
        expected = nn.functional.conv2d(x, layer.weight_orig / largest, stride=2, padding=1)
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-3, atol=1e-4)


def test_judging_changes_nothing_in_evaluation_mode():
    net = ARCH_REGISTRY.build(TINY).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.rand(1, 3, 16, 16))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_two_judgements_can_share_one_backward_pass_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net = ARCH_REGISTRY.build(TINY).train()
        (net(torch.rand(1, 3, 16, 16)).mean() - net(torch.rand(1, 3, 16, 16)).mean()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_unet_judges_every_pixel_and_names_sizes_it_cannot():
    net = ARCH_REGISTRY.build(TINY)
    assert net(torch.rand(2, 3, 16, 24)).shape == (2, 1, 16, 24)
    with pytest.raises(ValueError, match=r'multiples of 8, got \(20, 16\)'):
        net(torch.rand(1, 3, 20, 16))
    assert ARCH_REGISTRY.build({**TINY, 'skip_connection': False})(torch.rand(1, 3, 20, 16)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize('side', [128, 256])
def test_vgg_style_judges_a_crop_with_one_number(side):
    net = ARCH_REGISTRY.build({'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 2, 'input_size': side})
    assert net(torch.rand(2, 3, side, side)).shape == (2, 1)
    with pytest.raises(ValueError, match=f'judges {side}x{side} pixels, got 64x64'):
        net(torch.rand(1, 3, 64, 64))


def test_vgg_style_comes_in_two_sizes():
    with pytest.raises(OptionError, match='128 or 256, got 96'):
        ARCH_REGISTRY.build({'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 2, 'input_size': 96})


@pytest.mark.parametrize('name', ['unet_discriminator_sn', 'unet_discriminator_sn_full', 'vgg_style_discriminator'])
def test_entries_have_the_published_names_order_and_shapes(name):
    case = load_case('core', name)
    net = ARCH_REGISTRY.build({'type': case.spec['network'], **case.args})
    assert {entry: list(value.shape) for entry, value in net.state_dict().items()} == case.spec['layout']
    assert list(net.state_dict()) == list(case.spec['layout'])
