import copy
import math

import pytest
import torch
from golden_case import load_case
from sr3_unet_fixture import EXACT, KINDS, SMALL, both_kinds, inputs, pair
from torch import nn
from torch.testing import assert_close

from basicsr.archs.sr3_unet_arch import TABLES, DDPMUNet, SR3UNet
from basicsr.utils.checkpoint import CheckpointError, load_network, network_state, read_checkpoint
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

PUBLISHED = ('sr_sr3_16_128', 'sr_sr3_64_512', 'sr_ddpm_16_128', 'sample_sr3_128', 'sample_ddpm_128')


@both_kinds
def test_names_and_their_order_are_those_of_the_transcription(kind):
    for changes in (
        {},
        {'channel_mults': (1, 2, 2), 'attn_res': (), 'res_blocks': 2},
        {'channel_mults': (2,), 'attn_res': (16,)},
    ):
        net, reference = kind(**SMALL | changes), KINDS[kind](**SMALL | changes)
        ours, theirs = ([(k, v.shape) for k, v in module.state_dict().items()] for module in (net, reference))
        assert ours == theirs
        assert [name for name, _ in net.named_parameters()] == [name for name, _ in reference.named_parameters()]


def attention(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_modules() if name.endswith('.attn')]


def test_an_odd_level_is_another_resolution_on_the_way_up():
    """28, 14, 7, 3 on the way down are 3, 6, 12, 24 on the way up."""
    options = SMALL | {'channel_mults': (1, 1, 1, 1), 'image_size': 28}
    assert attention(SR3UNet(**options | {'attn_res': (7,)})) == ['downs.5.attn', 'mid.0.attn']
    assert attention(SR3UNet(**options | {'attn_res': (6,)})) == ['mid.0.attn', 'ups.3.attn', 'ups.4.attn']
    assert attention(SR3UNet(**options | {'attn_res': (3,)})) == [
        'downs.7.attn',
        'mid.0.attn',
        'ups.0.attn',
        'ups.1.attn',
    ]
    net, reference = pair(SR3UNet, 1, **options | {'attn_res': (7, 12)})
    x, level = inputs(SR3UNet, 1, 16, 8)
    with torch.no_grad():
        assert_close(net(x, level), reference(x, level), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_full_networks_have_the_published_names_and_shapes_in_the_published_order(name):
    spec = load_case('sr3', f'layout_{name}').spec
    kind = SR3UNet if spec['args']['which_model_G'] == 'sr3' else DDPMUNet
    with torch.device('meta'):
        net = kind(**spec['args']['unet'])
    layout = {k.removeprefix('denoise_fn.'): v for k, v in spec['layout'].items() if k.startswith('denoise_fn.')}
    assert [(k, list(v.shape)) for k, v in net.state_dict().items()] == list(layout.items())
    assert sum(p.numel() for p in net.parameters()) == spec['params']
    assert attention(net) == spec['attention']


def published_file(folder, reference: nn.Module, length: int = 20):
    """A *_gen.pth as the publishers write it."""
    state = {name: torch.rand(length) for name in TABLES}
    state |= {f'denoise_fn.{name}': value for name, value in reference.state_dict().items()}
    torch.save(state, folder / 'I1_E1_gen.pth')
    return folder / 'I1_E1_gen.pth'


@both_kinds
def test_a_published_file_loads_strictly_and_returns(kind, tmp_path):
    _, reference = pair(kind, 9)
    path = published_file(tmp_path, reference)
    net = kind(**SMALL)
    state = network_state(read_checkpoint(path), None, str(path))
    assert load_network(net, state, str(path)) == set()
    for name, value in reference.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    again = kind(**SMALL)
    load_network(again, net.state_dict(), 'ours')
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'inner_channel': 16}, r'of another shape: noise_level_mlp.1.weight \(32, 8\) instead of \(64, 16\)'),
        ({'in_channel': 3}, r'1 of another shape: downs.0.weight \(8, 6, 3, 3\) instead of \(8, 3, 3, 3\)'),
        ({'attn_res': ()}, r'unexpected: downs.3.attn.norm.weight'),
        ({'res_blocks': 2}, r'missing: '),
        ({'channel_mults': (1, 2, 2)}, r'missing: '),
    ],
)
def test_a_file_of_another_network_is_refused_with_names_and_shapes(changes, message, tmp_path):
    path = published_file(tmp_path, pair()[1])
    net = SR3UNet(**SMALL | changes)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_network(net, network_state(read_checkpoint(path), None, str(path)), str(path))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))


@both_kinds
def test_a_file_of_the_other_kind_is_named(kind, tmp_path):
    other = next(k for k in KINDS if k is not kind)
    path = published_file(tmp_path, pair(other)[1])
    with pytest.raises(CheckpointError, match=f'holds a {other.__name__}, network_g is a {kind.__name__}'):
        load_network(kind(**SMALL), network_state(read_checkpoint(path), None, str(path)), str(path))


def test_a_wrong_number_of_groups_loads_and_computes_something_else(tmp_path):
    """So the docstring says it, and the option files do."""
    path = published_file(tmp_path, pair()[1])
    net, other = SR3UNet(**SMALL).eval(), SR3UNet(**SMALL | {'norm_groups': 2}).eval()
    for module in (net, other):
        load_network(module, network_state(read_checkpoint(path), None, str(path)), str(path))
    x, level = inputs(SR3UNet, 1, 8, 8)
    assert not torch.allclose(net(x, level), other(x, level), atol=1e-2)
    assert 'norm_groups' in SR3UNet.__doc__.partition('Args:')[0]


@both_kinds
def test_weights_start_orthogonal_and_biases_with_zero(kind):
    torch.manual_seed(0)
    net = kind(**SMALL)
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            expected = 1 if name.endswith('weight') else 0
            assert (parameter == expected).all(), name
        else:
            rows = parameter.detach().flatten(1).to(EXACT)
            gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
            assert_close(gram, torch.eye(len(gram), dtype=EXACT), atol=1e-5, rtol=0, msg=name)


def test_the_step_frequencies_are_those_that_files_store():
    expected = torch.exp(torch.arange(0, 32, 2).float() * (-math.log(10000) / 32))
    assert torch.equal(DDPMUNet(**SMALL | {'inner_channel': 32}).state_dict()['time_mlp.0.inv_freq'], expected)


# ---- mistakes


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'inner_channel': 9, 'norm_groups': 3}, 'inner_channel must be even, got 9'),
        ({'norm_groups': 16}, 'norm_groups 16 does not divide 8, the width of a layer'),
        ({'channel_mults': (1, 2, 3), 'norm_groups': 8, 'inner_channel': 4}, 'norm_groups 8 does not divide 4'),
        ({'attn_res': (12,)}, 'attn_res 12 is no level of image_size 16, which has 16, 8'),
        ({'dropout': 1.0}, 'dropout must be at least 0 and below 1, got 1.0'),
        ({'channel_mults': ()}, 'are 1 or more'),
        ({'res_blocks': 0}, 'are 1 or more'),
    ],
)
@both_kinds
def test_options_that_fit_nothing_are_errors(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | changes)
    with pytest.raises(OptionError, match=message):
        ARCH_REGISTRY.build({'type': kind.__name__, **SMALL, **changes})


def test_empty_options_have_the_published_meaning():
    net = SR3UNet(**SMALL | {'in_channel': 4, 'out_channel': None})
    assert net.final_conv.block[3].out_channels == 4
    wide = {'inner_channel': 32, 'attn_res': ()}
    assert SR3UNet(**SMALL | wide | {'norm_groups': None}).final_conv.block[0].num_groups == 32


@both_kinds
def test_a_size_that_does_not_halve_names_the_multiple(kind):
    net = kind(**SMALL | {'channel_mults': (1, 2, 2), 'attn_res': ()})
    assert net.size_multiple == 4
    x, level = inputs(kind, 1, 8, 10)
    with pytest.raises(ValueError, match='sides must be multiples of 4, got 8x10'):
        net(x, level)
