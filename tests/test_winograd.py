import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.blocks import winograd as module
from basicsr.archs.blocks.unet import EnlargingConv, convolved
from basicsr.archs.blocks.winograd import algorithm, repays, winograd


def convolution(inputs: int, out: int, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    conv = nn.Conv2d(inputs, out, 3, padding=1)
    nn.init.normal_(conv.weight, std=(9 * inputs) ** -0.5)
    nn.init.normal_(conv.bias)
    return conv


def exact(x: torch.Tensor, conv: nn.Conv2d, enlarges: bool = False, norm: nn.GroupNorm | None = None) -> torch.Tensor:
    """The formula in double precision."""
    x = x.double()
    if norm is not None:
        x = F.silu(F.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps))
    if enlarges:
        x = F.interpolate(x, scale_factor=2, mode='nearest')
    return F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=1)


@pytest.mark.parametrize('size', [(1, 4, 4), (2, 8, 20), (1, 36, 12)])
@pytest.mark.parametrize('widths', [(3, 5), (16, 8)])
@pytest.mark.parametrize('enlarges', [False, True])
@pytest.mark.parametrize(('band', 'kernels'), [(2**16, 2**23), (1, 1), (300, 2000)])
def test_equals_the_formula_but_for_rounding(size, widths, enlarges, band, kernels, monkeypatch):
    monkeypatch.setattr(module, 'BAND', band)
    monkeypatch.setattr(module, 'KERNELS', kernels)
    conv, x = convolution(*widths), torch.randn(size[0], widths[0], *size[1:])
    for order in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            found = winograd(x.contiguous(memory_format=order), conv, enlarges)
        expected = exact(x, conv, enlarges)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 3e-5


@pytest.mark.parametrize('band', [2**16, 100])
def test_norm_and_activation_are_applied_on_the_way(band, monkeypatch):
    monkeypatch.setattr(module, 'BAND', band)
    conv, norm = convolution(8, 4), nn.GroupNorm(2, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 + torch.randn(2, 8, 12, 16) * torch.linspace(0.1, 2, 8).view(-1, 1, 1)
    before = x.clone()
    with torch.no_grad():
        found = winograd(x, conv, norm=norm)
    assert (found - exact(x, conv, norm=norm)).abs().max() < 3e-5
    assert torch.equal(x, before)


def test_an_enlarged_image_needs_fewer_products():
    assert [len(algorithm(enlarges).tiles) for enlarges in (False, True)] == [36, 25]


def test_it_is_used_where_it_pays_and_nowhere_else():
    conv, x = convolution(64, 64), torch.rand(1, 64, 32, 32)
    with torch.no_grad():
        assert repays(x, conv) and repays(x[..., :16, :16], conv, enlarges=True)
        assert not repays(x[..., :28], conv)  # few pixels
        assert not repays(torch.rand(1, 64, 34, 34), conv)  # no whole tiles
        assert not repays(x[:, :32], convolution(32, 64))  # few channels
        assert not repays(x.double(), conv)
        with torch.autocast('cpu', torch.bfloat16):
            assert not repays(x, conv)
    assert not repays(x, conv)  # with gradients


def test_layers_give_the_same_with_and_without_it(monkeypatch):
    torch.manual_seed(0)
    x, norm, conv, up = torch.randn(1, 64, 32, 32), nn.GroupNorm(32, 64), convolution(64, 64), EnlargingConv(64)
    with torch.no_grad():
        fast = convolved(x, conv, norm), convolved(x, conv), up(x)
        monkeypatch.setattr(module, 'LEAST_CHANNELS', 65)
        for one, other in zip(fast, (convolved(x, conv, norm), convolved(x, conv), up(x)), strict=True):
            assert (one - other).abs().max() < 3e-5
