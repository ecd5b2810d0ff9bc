import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.patch_discriminator_arch import (
    MultiScaleNLayerDiscriminator,
    NLayerDiscriminator,
    VQGANDiscriminator,
)
from basicsr.utils.registry import ARCH_REGISTRY, OptionError


def test_both_names_mean_the_same_network():
    one, other = VQGANDiscriminator(3, 4, 2), NLayerDiscriminator(3, 4, 2)
    other.load_state_dict(one.state_dict(), strict=True)
    x = torch.rand(2, 3, 32, 24)
    assert torch.equal(one.eval()(x), other.eval()(x))


def test_a_pyramid_judges_each_size_by_itself_small_ones_first():
    net, x = MultiScaleNLayerDiscriminator([1, 0.5], ndf=4, n_layers=1).eval(), torch.rand(1, 3, 16, 16)
    small = net.D_pool[0](F.interpolate(x, scale_factor=0.5, mode='bilinear'))
    large = net.D_pool[1](x)
    logits = net(x)
    assert_close(logits[:, 1:], large)
    assert_close(logits[:, :1], F.interpolate(small, size=large.shape[-2:], mode='nearest'))


@pytest.mark.parametrize('halvings', [1, 2, 3])
def test_images_that_are_too_small_are_said(halvings):
    net = VQGANDiscriminator(3, 4, halvings).eval()
    least = net.smallest
    assert min(net(torch.rand(1, 3, least, least)).shape[-2:]) >= 1
    with pytest.raises(ValueError, match=f'judges {least} pixels and more'):
        net(torch.rand(1, 3, least, least - 1))


def test_a_pyramid_of_nothing_is_refused():
    with pytest.raises(OptionError, match='scales is empty'):
        ARCH_REGISTRY.build({'type': 'MultiScaleNLayerDiscriminator', 'scales': []})
