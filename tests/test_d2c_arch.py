import copy
import math
import pickle

import pytest
import torch
from golden_case import image, load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.d2c_reference import CNet, DNet
from torch import nn
from torch.testing import assert_close

from basicsr.archs import d2c_arch
from basicsr.archs.blocks import linear_tail
from basicsr.archs.blocks.linear_tail import LinearTail
from basicsr.archs.d2c_arch import BRANCHES, D2CBranches, D2CFusion
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

SMALL = {'scale': 2, 'n_resblocks': 1, 'n_feats': 6, 'reduction': 3}
EXACT = torch.float64


def randomised(net: nn.Module, seed: int) -> nn.Module:
    """Weights of which every one matters, and that keep the size of what they are given."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1 * noise)
    return net


def pair(seed: int = 0, **changes) -> tuple[D2CBranches, DNet]:
    """The network and the plain transcription with the same weights."""
    reference = randomised(DNet(**SMALL | changes), seed)
    net = D2CBranches(**SMALL | changes)
    net.load_state_dict(reference.state_dict())
    return net, reference


def fusions(seed: int = 0) -> tuple[D2CFusion, CNet]:
    net, reference = D2CFusion(), randomised(CNet(), seed)
    net.load_state_dict(reference.state_dict())
    return net, reference


def gradients(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    net.zero_grad()
    out = net(x)
    (out if isinstance(out, torch.Tensor) else out[0]).square().mean().backward()
    return {'input': x.grad} | {name: p.grad.clone() for name, p in net.named_parameters()}


def agree(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * gradient.abs().max().clamp(min=1e-6), name


# ---- the same function as the transcription


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 34), st.integers(1, 34)),
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    kernel_size=st.sampled_from([1, 3, 5]),
    blocks=st.integers(1, 2),
    worthwhile=st.sampled_from([0, linear_tail.WORTHWHILE]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_transcription_at_any_size(size, scale, kernel_size, blocks, worthwhile, seed):
    b, h, w = size
    net, reference = pair(seed, scale=scale, kernel_size=kernel_size, n_resblocks=blocks)
    x = image(seed, b, 3, h, w)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_tail, 'WORTHWHILE', worthwhile)
        with torch.no_grad():
            expected, found = reference(x), net.eval()(x)
        learning = net.train()(x).detach()
    assert found.shape == (b, 4, 3, h * scale, w * scale)
    for ours in (found, learning):
        assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize(('scale', 'size'), [(2, (2, 5, 3)), (2, (1, 33, 34)), (3, (1, 30, 34)), (4, (1, 32, 31))])
def test_gradients_equal_the_plain_transcription(scale, size):
    net, reference = pair(3, scale=scale)
    x = image(81, size[0], 3, *size[1:])
    for dtype, tolerance in ((EXACT, 1e-10), (torch.float32, 1e-4)):
        agree(*(gradients(module.to(dtype), x.to(dtype)) for module in (net, reference)), tolerance)


@pytest.mark.parametrize('scale', [2, 3, 4, 8, 16])
@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('with_colors', [False, True])
def test_a_composed_tail_is_the_same_tail_up_to_its_edges(scale, kernel_size, with_colors, monkeypatch):
    tail = randomised(LinearTail(3, 3, scale, kernel_size), scale).to(EXACT)
    colors = randomised(nn.Conv2d(3, 3, 1), scale).to(EXACT)
    x = torch.randn(2, 3, 4 * tail.edge + 6, 17, dtype=EXACT)
    expected = tail[1](tail[0](x))
    expected = colors(expected) if with_colors else expected
    monkeypatch.setattr(linear_tail, 'WORTHWHILE', 0)
    assert tail._repays(*(x.shape[i] for i in (0, 2, 3)))
    assert_close(tail(x, colors if with_colors else None), expected, atol=1e-11, rtol=1e-11)


def test_the_composed_kernel_is_what_a_single_pixel_becomes():
    tail = randomised(LinearTail(2, 3, 4), 5).to(EXACT)
    impulse = torch.zeros(1, 2, 5, 5, dtype=EXACT)
    impulse[0, 1, 2, 2] = 1
    response = tail[1](tail[0](impulse)) - tail[1](tail[0](torch.zeros_like(impulse)))
    weight, _ = tail.composed(None, impulse.device)
    assert weight.shape == (3 * 16, 2, 5, 5)
    found = nn.functional.pixel_shuffle(weight[:, 1].flip(1, 2)[None], 4)
    assert_close(found, response)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 9)), pixels=st.integers(1, 500))
def test_the_blend_equals_the_transcription_whole_and_in_bands(size, pixels):
    net, reference = fusions(1)
    branches = torch.stack([image(n, size[0], 3, *size[1:]) for n in range(4)], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(d2c_arch.BAND_PIXELS, 'cpu', pixels)
        patch.setattr(d2c_arch, 'FUSION_REACH', 3)
        with torch.no_grad():
            expected, banded = reference(branches), net(branches)
        whole = net(branches)
    for found in (banded, whole):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert_close(found[1].sum(1), torch.ones_like(found[1][:, 0]))


def test_bands_are_used_where_nothing_learns(monkeypatch):
    net, _ = fusions()
    heights = []
    net.fusion_final.register_forward_pre_hook(lambda _, args: heights.append(args[0].shape[2]))
    monkeypatch.setitem(d2c_arch.BAND_PIXELS, 'cpu', 1)
    branches = torch.rand(1, 4, 3, 110, 4)
    net(branches)
    assert heights == [110]
    with torch.no_grad():
        net(branches)
    assert heights[1:] == [51, 54, 17]


def test_gradients_of_the_blend_equal_the_transcription():
    branches = torch.stack([image(n, 2, 3, 7, 6) for n in range(4)], 1)
    agree(*(gradients(net.to(EXACT), branches.to(EXACT)) for net in fusions(2)), 1e-10)


def test_a_step_of_both_networks_changes_the_weights_as_it_changes_the_transcription():
    torch.manual_seed(0)
    lq, gt, after = torch.rand(1, 3, 31, 30), torch.rand(1, 3, 62, 60), []
    for net, blend in zip(pair(4), fusions(4), strict=True):
        net, blend = net.to(EXACT), blend.to(EXACT)
        optimizer = torch.optim.SGD([*net.parameters(), *blend.parameters()], 1e-3)
        images = net(lq.to(EXACT))
        ((images - gt[:, None]).square().mean() + (blend(images)[0] - gt).square().mean()).backward()
        optimizer.step()
        after.append(net.state_dict() | blend.state_dict())
    agree(*after, 1e-9)


# ---- precision, memory, copies


@pytest.mark.parametrize('how', ['module', 'autocast'])
def test_bfloat16_is_as_close_as_the_transcription_in_bfloat16(how):
    nets, x = (pair(7, n_feats=12), fusions(7)), image(3, 1, 3, 32, 34)
    with torch.no_grad():
        exact = nets[1][1](nets[0][1](x))[0]
        errors = []
        for net, blend in zip(*nets, strict=True):
            if how == 'module':
                sr = blend.bfloat16()(net.bfloat16()(x.bfloat16()))[0]
            else:
                with torch.autocast('cpu', torch.bfloat16):
                    sr = blend(net(x))[0]
            errors.append((sr - exact).square().mean().sqrt() / exact.std())
    assert errors[0] < 0.03 and errors[0] < 1.3 * errors[1]


def test_the_blend_is_computed_in_float32():
    net, _ = fusions()
    branches = torch.rand(1, 4, 3, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        sr, weights = net(branches.bfloat16())
    assert sr.dtype == weights.dtype == torch.float32


@pytest.mark.parametrize('change', ['load', 'step', 'data'])
def test_a_changed_weight_is_used_at_once(change):
    net, _ = pair(1)
    x = image(1, 1, 3, 34, 33)
    with torch.inference_mode():
        before = net(x)
    _, reference = pair(2)
    if change == 'load':
        net.load_state_dict(reference.state_dict())
    elif change == 'data':
        for name, parameter in net.named_parameters():
            parameter.data = reference.get_parameter(name).detach().clone()
    else:
        net(x).mean().backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
        reference.load_state_dict(net.state_dict())
    with torch.inference_mode():
        after = net(x)
        assert_close(after, reference(x), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, after)


def test_copies_and_pickles_compute_the_same():
    net, _ = pair(6)
    x = image(1, 1, 3, 33, 32)
    with torch.no_grad():
        expected = net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert_close(other(x), expected, atol=0, rtol=0)


def test_memory_formats_do_not_matter():
    net, reference = pair(2)
    x = image(4, 2, 3, 30, 29)
    with torch.no_grad():
        expected = reference(x)
        for weights in (torch.contiguous_format, torch.channels_last):
            for pixels in (torch.contiguous_format, torch.channels_last):
                found = net.to(memory_format=weights)(x.contiguous(memory_format=pixels))
                assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_training_keeps_less_than_the_transcription_keeps():
    kept = []
    for module in pair(0, scale=4, n_feats=16):
        storages = {}

        def count(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module(image(1, 1, 3, 64, 64))
        kept.append(sum(storages.values()))
    assert kept[0] < 0.75 * kept[1]


def test_compiles_to_one_graph():
    net, _ = pair(0)
    x = image(2, 1, 3, 32, 32)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    assert_close(compiled(x), net(x))


# ---- layout, colours, start


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_the_full_networks_have_the_published_names_and_shapes_in_the_published_order(scale):
    spec = load_case('d2c', 'full_x4' if scale == 4 else f'layout_x{scale}').spec
    with torch.device('meta'):
        net, blend = D2CBranches(scale), D2CFusion()
    for module, layout, letter in ((net, spec['layout'], 'D'), (blend, spec['layout_C'], 'C')):
        published = module.to_published(module.state_dict())
        assert [(k, list(v.shape)) for k, v in published.items()] == list(layout.items())
        assert sum(p.numel() for p in module.parameters()) == spec['parameters'][letter]


def published_state(net: nn.Module) -> dict:
    return {k: v[None, :, None, None] if k.endswith('bias') else v for k, v in net.state_dict().items()}


def test_folding_the_colours_equals_turning_the_images():
    (net, in_bgr), (blend, blend_in_bgr) = pair(5), fusions(5)
    net.load_state_dict(D2CBranches.from_published(published_state(in_bgr)))
    blend.load_state_dict(D2CFusion.from_published(blend_in_bgr.state_dict()))
    x = image(9, 2, 3, 9, 8)
    with torch.no_grad():
        images, expected = net(x), in_bgr(x.flip(1))
        assert_close(images, expected.flip(2), atol=1e-5, rtol=1e-5)
        (sr, weights), (expected, expected_weights) = blend(images), blend_in_bgr(expected)
    assert_close(sr, expected.flip(1), atol=1e-5, rtol=1e-5)
    assert_close(weights, expected_weights, atol=1e-5, rtol=1e-5)


def test_the_published_layout_returns_bit_by_bit():
    for net in (pair(8)[0], fusions(8)[0]):
        state = net.state_dict()
        published = net.to_published(state)
        assert all(v.ndim == 4 for v in published.values())
        again = net.from_published(published)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[k], state[k]) for k in state)


def test_biases_in_pytorchs_shape_are_read_too():
    net, reference = pair(5)
    mine = D2CBranches.from_published(reference.state_dict())
    assert_close(mine, D2CBranches.from_published(published_state(reference)))
    net.load_state_dict(mine)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from([1, 2, 3, 4, 8, 16]),
    n_resblocks=st.integers(1, 3),
    n_feats=st.sampled_from([3, 6, 9]),
    kernel_size=st.sampled_from([1, 3, 5]),
)
def test_the_options_are_found_in_the_shapes(scale, n_resblocks, n_feats, kernel_size):
    options = {'scale': scale, 'n_resblocks': n_resblocks, 'n_feats': n_feats, 'kernel_size': kernel_size}
    with torch.device('meta'):
        net = D2CBranches(**options, reduction=3)
    assert D2CBranches.options_of(net.state_dict()) == options | {'reduction': 3}
    assert D2CBranches.options_of(net.to_published(net.state_dict())) == options | {'reduction': 3}


def test_a_foreign_state_has_no_options():
    with pytest.raises(ValueError, match='no state dict of D2CBranches'):
        D2CBranches.options_of({'conv.weight': torch.ones(1)})


def test_weights_start_with_unit_gain_and_biases_with_zero():
    torch.manual_seed(0)
    for net in (D2CBranches(4, n_resblocks=1), D2CFusion()):
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1:
                assert parameter.abs().max() == 0, name
            elif parameter.numel() > 1000:
                assert_close(parameter.std().item(), parameter[0].numel() ** -0.5, atol=0, rtol=0.15)
    shifts = torch.stack([D2CBranches(**SMALL).sub_mean.weight.flatten() for _ in range(40)])
    assert_close(shifts.std().item(), 3**-0.5, atol=0, rtol=0.15)


def test_mean_shifts_may_start_as_what_their_name_says():
    net = D2CBranches(**SMALL, mean_shift_init='identity')
    mean = torch.tensor([0.4488, 0.4371, 0.4040])
    assert_close(net.sub_mean(mean.view(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))
    assert_close(net.add_mean(torch.zeros(1, 3, 1, 1)).flatten(), mean)
    assert net.sub_mean.weight.requires_grad and net.add_mean.bias.requires_grad


def test_every_weight_of_every_branch_is_reached():
    net, _ = pair(0)
    x = image(1, 1, 3, 8, 8)
    for index, name in enumerate(BRANCHES):
        net.zero_grad()
        net(x)[:, index].square().sum().backward()
        used = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        foreign = [other for other in BRANCHES if other != name]
        assert any(n.startswith(f'tail{name}.') for n in used)
        assert not any(n.startswith((f'tail{other}.', f'body{other}.')) for n in used for other in foreign)
        assert any(n.startswith(f'body{name[0]}.') for n in used)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'scale': 5}, 'scale must be 3 or a power of 2, got 5'),
        ({'scale': 0}, 'scale must be 3 or a power of 2, got 0'),
        ({'kernel_size': 4}, 'kernel_size must be odd, got 4'),
        ({'n_resblocks': 0}, 'n_resblocks and reduction are 1 or more'),
        ({'n_feats': 2}, 'n_feats is at least reduction, got 1, 3 and 2'),
        ({'n_colors': 1}, 'n_colors'),
        ({'mean_shift_init': 'none'}, 'mean_shift_init'),
    ],
)
def test_impossible_networks_are_refused_in_one_line(changes, message):
    with pytest.raises(OptionError) as caught:
        ARCH_REGISTRY.build({'type': 'D2CBranches', **SMALL, **changes})
    text = f'{caught.value} {caught.value.key}'
    assert message in text and '\n' not in text
