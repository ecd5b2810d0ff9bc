import re

import pytest
import torch
from golden_case import image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from basicsr.archs.blocks import linear_tail
from basicsr.archs.rcan_arch import RCAN
from basicsr.utils.checkpoint import CheckpointError, load_network
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

SMALL = {'upscale': 2, 'num_feat': 8, 'num_group': 2, 'num_block': 1, 'squeeze_factor': 4}


def network(seed: int = 0, **changes) -> RCAN:
    torch.manual_seed(seed)
    return RCAN(**SMALL | changes).eval()


def in_the_authors_form(net: RCAN) -> dict[str, torch.Tensor]:
    """With the two constant convolutions that their files hold."""
    shift = 255 * net.mean.flatten()
    eye = torch.eye(3).view(3, 3, 1, 1)
    shifts = {'sub_mean.weight': eye, 'sub_mean.bias': -shift, 'add_mean.weight': eye, 'add_mean.bias': shift}
    return net.state_dict() | shifts


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 34), st.integers(1, 34)),
    upscale=st.sampled_from([2, 3, 4]),
    worthwhile=st.sampled_from([0, linear_tail.WORTHWHILE]),
)
def test_equals_an_implementation_by_others(size, upscale, worthwhile):
    spandrel = pytest.importorskip('spandrel')
    net, x = network(upscale, upscale=upscale), image(1, size[0], 3, *size[1:])
    theirs = spandrel.ModelLoader().load_from_state_dict(in_the_authors_form(net))
    assert theirs.architecture.id == 'RCAN'
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(linear_tail, 'WORTHWHILE', worthwhile)
        assert_close(net(x), theirs.model(x.clone()), atol=1e-5, rtol=1e-5)


def test_the_authors_files_are_read_and_their_constants_left():
    net, other = network(1), network(2)
    load_network(other, in_the_authors_form(net), 'file')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_basicsrs_names_are_read():
    net, other = network(1, num_block=2), network(2, num_block=2)
    theirs = {}
    for name, value in net.state_dict().items():
        for pattern, replacement in (
            (r'^head\.0\.', 'conv_first.'),
            (r'^tail\.0\.', 'upsample.'),
            (r'^tail\.1\.', 'conv_last.'),
            (r'^body\.2\.', 'conv_after_body.'),
            (r'^(body\.\d)\.body\.2\.', r'\1.conv.'),
            (r'^(body\.\d)\.body\.(\d)\.body\.', r'\1.residual_group.\2.rcab.'),
            (r'conv_du\.0\.', 'attention.1.'),
            (r'conv_du\.2\.', 'attention.3.'),
        ):
            name = re.sub(pattern, replacement, name)
        theirs[name] = value
    assert 'body.1.residual_group.0.rcab.3.attention.1.weight' in theirs
    load_network(other, theirs, 'file')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_another_network_is_refused():
    with pytest.raises(CheckpointError, match='missing'):
        load_network(network(), nn.Conv2d(3, 3, 3).state_dict(), 'file')


def test_gradients_equal_those_without_the_composed_tail(monkeypatch):
    net, x, found = network(3).double(), image(2, 1, 3, 20, 21).double(), []
    for worthwhile in (0, 1e9):
        monkeypatch.setattr(linear_tail, 'WORTHWHILE', worthwhile)
        net.zero_grad()
        net(x).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    assert_close(*found, atol=1e-12, rtol=1e-8)


def test_the_published_size_has_the_published_number_of_weights():
    with torch.device('meta'):
        net = RCAN()
    assert sum(p.numel() for p in net.parameters()) == 15_592_355


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'upscale': 6}, 'upscale must be 3 or a power of 2, got 6'),
        ({'num_block': 0}, 'num_group, num_block and squeeze_factor are 1 or more'),
        ({'num_feat': 2}, 'num_feat is at least squeeze_factor, got 2, 1, 4 and 2'),
    ],
)
def test_impossible_networks_are_refused_in_one_line(changes, message):
    with pytest.raises(OptionError) as caught:
        ARCH_REGISTRY.build({'type': 'RCAN', **SMALL, **changes})
    assert message in str(caught.value) and '\n' not in str(caught.value)
