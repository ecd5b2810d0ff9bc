import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.blocks.linear import FusedLinear
from basicsr.archs.blocks.packing import packed_weights


def layer(gelu: bool) -> FusedLinear:
    torch.manual_seed(0)
    return FusedLinear(12, 20, gelu)


def formula(net: FusedLinear, x: torch.Tensor) -> torch.Tensor:
    out = F.linear(x, net.weight, net.bias)
    return F.gelu(out) if net.gelu else out


@pytest.mark.parametrize('gelu', [False, True])
@pytest.mark.parametrize('shape', [(7, 12), (2, 5, 12)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_the_formula_with_and_without_gradients(gelu, shape, dtype):
    net = layer(gelu).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    assert_close(net(x), formula(net, x))
    with torch.no_grad():
        assert_close(net(x), formula(net, x))
    with torch.inference_mode(), packed_weights(net):
        assert_close(net(x), formula(net, x))


@pytest.mark.parametrize('gelu', [False, True])
def test_in_bfloat16_it_is_near_packed_or_not(gelu):
    net, x = layer(gelu), torch.randn(3, 5, 12)
    with torch.no_grad():
        expected = formula(net, x)
        with torch.autocast('cpu', torch.bfloat16):
            found = [net(x)]
            with packed_weights(net):
                found += [net(x), net(x[:, :2])[:, :2]]
    assert all(out.dtype == torch.bfloat16 for out in found)
    for out in found:
        assert (out - expected[:, : out.shape[1]]).abs().max() < 0.03


def test_gradients_are_those_of_the_formula():
    net, x = layer(gelu=True), torch.randn(4, 12)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(formula(net, x).square().sum(), parameters)
    with packed_weights(net):
        found = torch.autograd.grad(net(x).square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_weights_may_change_after_they_were_packed():
    net, x = nn.Sequential(layer(gelu=False)), torch.randn(4, 12)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        with packed_weights(net):
            net(x)
        net[0].weight.zero_()
        net[0].bias.fill_(1)
        assert torch.equal(net(x), torch.ones(4, 20, dtype=torch.bfloat16))
