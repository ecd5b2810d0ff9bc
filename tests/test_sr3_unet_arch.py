import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sr3_unet_fixture import EXACT, KINDS, both_kinds, inputs, pair, randomised
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.blocks import unet
from basicsr.archs.blocks.packing import packed_weights
from basicsr.archs.blocks.unet import EnlargingConv, norm_silu
from basicsr.archs.sr3_unet_arch import SR3UNet, StepCode


def gradients(net: nn.Module, x: torch.Tensor, level: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    net.zero_grad()
    net(x, level).square().mean().backward()
    return {'input': x.grad} | {name: p.grad.clone() for name, p in net.named_parameters()}


def agree(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():  # some are zero but for rounding: those of a bias in front of a norm
        assert (found[name] - gradient).abs().max() <= tolerance * gradient.abs().max().clamp(min=1e-3 * largest), name


# ---- the same function as the transcription


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(KINDS)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    mults=st.sampled_from([(1,), (2, 1), (1, 2), (1, 1, 2)]),
    attn_res=st.sampled_from([(), (16,), (16, 8)]),
    res_blocks=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    conditional=st.booleans(),
    folded_from=st.sampled_from([0, 256]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_transcription_at_any_size(
    kind, size, mults, attn_res, res_blocks, groups, conditional, folded_from, seed
):
    multiple, channels = 2 ** (len(mults) - 1), 6 if conditional else 3
    options = {'channel_mults': mults, 'res_blocks': res_blocks, 'norm_groups': groups, 'in_channel': channels}
    options['attn_res'] = tuple(res for res in attn_res if 16 >> (len(mults) - 1) <= res)
    net, reference = pair(kind, seed, **options)
    x, level = inputs(kind, size[0], size[1] * multiple, size[2] * multiple, channels, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.FOLDED_FROM, 'cpu', folded_from)
        with torch.no_grad():
            expected, found, column = reference(x, level), net(x, level), net(x, level[:, None])
            with net.constant_weights():
                packed = net(x, level)
        learning = net(x, level).detach()
    assert found.shape == (size[0], 3, *x.shape[2:])
    for ours in (found, column, packed, learning):
        assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@both_kinds
@pytest.mark.parametrize('size', [(1, 8, 4), (2, 24, 32)])
def test_gradients_equal_the_plain_transcription(kind, size):
    net, reference = (module.train() for module in pair(kind, 3))
    x, level = inputs(kind, *size)
    for dtype, tolerance in ((EXACT, 1e-8), (torch.float32, 1e-3)):
        exact_level = level.to(dtype) if level.is_floating_point() else level
        agree(*(gradients(module.to(dtype), x.to(dtype), exact_level) for module in (net, reference)), tolerance)


@both_kinds
def test_one_level_for_a_whole_batch_is_computed_once_and_means_the_same(kind):
    net, reference = pair(kind, 5)
    x, level = inputs(kind, 3, 8, 8)
    batches = []
    net.get_submodule(net.embedding_name).register_forward_hook(lambda _, args, out: batches.append(len(out)))
    with torch.no_grad():
        expected = reference(x, level[:1].repeat(3))
        assert_close(net(x, level[:1].expand(3)), expected, atol=1e-5, rtol=1e-5)
        assert_close(net(x, level[:1].repeat(3)), expected, atol=1e-5, rtol=1e-5)
    assert batches == [1, 3]


@both_kinds
def test_dropout_stays_out_of_evaluation_and_has_its_rate_in_training(kind):
    net, reference = pair(kind, 1, dropout=0.25)
    x, level = inputs(kind, 1, 16, 16)
    with torch.no_grad():
        assert_close(net(x, level), reference(x, level), atol=1e-5, rtol=1e-5)
    dropped = []
    for name, module in net.train().named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(
                lambda m, args, out, name=name: dropped.append(((out == 0).float().mean(), m.p, name))
            )
    net(x, level)
    for share, rate, name in dropped:
        assert rate == (0.25 if '.block2.' in name else 0), name
        assert abs(share - rate) < 0.1, name
    assert len(dropped) == 2 * sum(name.endswith('res_block') for name, _ in net.named_modules()) + 1


def test_an_adam_step_changes_the_weights_as_it_changes_the_transcription():
    x, level = inputs(SR3UNet, 2, 24, 24)
    after = []
    for net in pair(SR3UNet, 4):
        net = net.to(EXACT).train()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(2):
            net(x.to(EXACT), level.to(EXACT)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        after.append(net.state_dict())
    assert_close(*after, atol=1e-6, rtol=1e-6)


# ---- parts


@settings(max_examples=20, deadline=None, derandomize=True)
@given(b=st.integers(1, 2), h=st.integers(1, 6), w=st.integers(1, 6), c=st.integers(1, 4))
def test_the_folded_enlargement_is_the_enlargement_and_the_convolution(b, h, w, c):
    module = EnlargingConv(c).to(EXACT)
    x = torch.randn(b, c, h, w, dtype=EXACT, requires_grad=True)
    expected = module.conv(F.interpolate(x, scale_factor=2.0))
    expected_gradients = torch.autograd.grad(expected.square().sum(), [x, *module.parameters()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.FOLDED_FROM, 'cpu', 0)
        found = module(x)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found.square().sum(), [x, *module.parameters()]), expected_gradients)


@pytest.mark.parametrize('order', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_normalisation_with_its_activation_has_the_gradients_of_the_two(order, dtype):
    norm = randomised(nn.GroupNorm(3, 6), 1).to(dtype)
    x = torch.randn(2, 6, 5, 4, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    grad = torch.randn(2, 6, 5, 4, dtype=dtype)
    results = []
    for out in (norm_silu(x, norm), F.silu(norm(x))):
        results.append([out, *torch.autograd.grad(out, [x, norm.weight, norm.bias], grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert_close(*results, atol=tolerance, rtol=tolerance)


def test_normalisation_with_its_activation_passes_gradcheck():
    norm = randomised(nn.GroupNorm(2, 4), 1).to(EXACT)
    x = torch.randn(2, 4, 3, 2, dtype=EXACT, requires_grad=True)
    torch.autograd.gradcheck(lambda *args: norm_silu(args[0], norm), (x, norm.weight, norm.bias))


def test_a_network_whose_input_alone_is_learnt_has_its_gradient():
    net, reference = pair()
    x, level = inputs(SR3UNet, 1, 8, 8)
    for module in (net, reference):
        module.requires_grad_(False)
    found, expected = (
        torch.autograd.grad(module(y, level).square().sum(), y)
        for module in (net, reference)
        for y in [x.clone().requires_grad_()]
    )
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---- precision, memory, copies


@both_kinds
@pytest.mark.parametrize('how', ['module', 'autocast', 'packed'])
def test_bfloat16_is_as_close_as_the_transcription_in_bfloat16(kind, how):
    net, reference = pair(kind, 7, inner_channel=16)
    x, level = inputs(kind, 2, 32, 32)
    with torch.no_grad():
        exact = reference(x, level)
        with torch.autocast('cpu', torch.bfloat16):
            theirs = reference(x, level)
            ours = net(x, level)
            if how == 'packed':
                with net.constant_weights():
                    ours = net(x, level)
        if how == 'module':
            ours = net.bfloat16()(x.bfloat16(), level)
    errors = [(found.float() - exact).square().mean().sqrt() / exact.std() for found in (ours, theirs)]
    assert ours.dtype == torch.bfloat16
    assert errors[0] < 0.03 and errors[0] < 1.5 * errors[1]


def test_gradients_under_autocast_are_as_close_as_the_transcriptions():
    x, level = inputs(SR3UNet, 2, 32, 32)
    found = []
    for net in pair(SR3UNet, 2, inner_channel=16):
        exact = gradients(net, x, level)
        with torch.autocast('cpu', torch.bfloat16):
            mixed = gradients(net, x, level)
        assert all(g.dtype == torch.float32 for g in mixed.values())
        found.append(torch.stack([(mixed[k] - exact[k]).norm() for k in exact]).norm())
    assert found[0] < 1.3 * found[1]


def test_steps_keep_their_angles_when_the_weights_are_rounded():
    step = torch.tensor([0, 3, 1999])
    expected = StepCode(64)(step)
    assert_close(StepCode(64).bfloat16()(step), expected, atol=2e-4, rtol=0)
    assert_close(StepCode(64).double()(step).float(), expected, atol=2e-4, rtol=0)


def test_training_keeps_less_than_the_transcription_keeps():
    kept = []
    x, level = inputs(SR3UNet, 1, 64, 64)
    for module in pair(SR3UNet, 0, inner_channel=32, norm_groups=8):
        storages, weights = {}, {p.untyped_storage().data_ptr() for p in module.parameters()}

        def count(tensor, storages=storages, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module.train()(x, level)
        kept.append(sum(storages.values()))
    assert kept[0] < 0.65 * kept[1]


@pytest.mark.parametrize('change', ['load', 'step', 'data'])
@pytest.mark.parametrize('packed_before', [False, True])
def test_a_changed_weight_is_used_at_once(change, packed_before):
    net, _ = pair(SR3UNet, 1)
    x, level = inputs(SR3UNet, 2, 24, 16)
    with torch.inference_mode():
        if packed_before:
            with net.constant_weights():
                before = net(x, level)
        else:
            before = net(x, level)
    _, reference = pair(SR3UNet, 2)
    if change == 'load':
        net.load_state_dict(reference.state_dict())
    elif change == 'data':
        for name, parameter in net.named_parameters():
            parameter.data.copy_(reference.get_parameter(name))
    else:
        net(x, level).mean().backward()
        torch.optim.SGD(net.parameters(), 0.1).step()
        reference.load_state_dict(net.state_dict())
    with torch.inference_mode():
        after, expected = net(x, level), reference(x, level)
        with net.constant_weights():
            assert_close(net(x, level), expected, atol=1e-4, rtol=1e-4)
    assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, after, atol=1e-3)


def test_packed_weights_serve_any_size_order_and_type_and_leave_no_trace():
    net, reference = pair(SR3UNet, 3)
    forwards = {name: module.forward for name, module in net.named_modules()}
    keys = {name: sorted(vars(module)) for name, module in net.named_modules()}
    with net.constant_weights(), torch.no_grad():
        for size in ((1, 16, 16), (1, 48, 64), (3, 16, 16), (1, 2, 2)):
            for order in (torch.contiguous_format, torch.channels_last):
                x, level = inputs(SR3UNet, *size)
                found = net(x.contiguous(memory_format=order), level)
                assert_close(found, reference(x, level), atol=2e-5, rtol=2e-5)
                with torch.autocast('cpu', torch.bfloat16):
                    assert net(x, level).dtype == torch.bfloat16
        with torch.enable_grad():
            agree(gradients(net, x, level), gradients(reference, x, level), 1e-3)
        with packed_weights(net):
            assert_close(net(x, level), reference(x, level), atol=2e-5, rtol=2e-5)
        assert_close(net(x, level), reference(x, level), atol=2e-5, rtol=2e-5)
    assert forwards == {name: module.forward for name, module in net.named_modules()}
    assert keys == {name: sorted(vars(module)) for name, module in net.named_modules()}
    with pytest.raises(ValueError, match='multiples'), net.constant_weights():
        net(x[..., :1], level)
    assert keys == {name: sorted(vars(module)) for name, module in net.named_modules()}


@both_kinds
def test_copies_and_pickles_compute_the_same(kind):
    net, _ = pair(kind, 6)
    x, level = inputs(kind, 1, 8, 8)
    with torch.no_grad():
        expected = net(x, level)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert_close(other(x, level), expected, atol=0, rtol=0)


@both_kinds
def test_memory_formats_do_not_matter(kind):
    net, reference = pair(kind, 2)
    x, level = inputs(kind, 2, 24, 32)
    with torch.no_grad():
        expected = reference(x, level)
        for weights in (torch.contiguous_format, torch.channels_last):
            for pixels in (torch.contiguous_format, torch.channels_last):
                found = net.to(memory_format=weights)(x.contiguous(memory_format=pixels), level)
                assert_close(found, expected, atol=1e-4, rtol=1e-4)


@both_kinds
def test_compiles_to_one_graph(kind):
    net, _ = pair(kind, 0)
    x, level = inputs(kind, 1, 16, 16)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    assert_close(compiled(x, level), net(x, level), atol=1e-5, rtol=1e-5)
