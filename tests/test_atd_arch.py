import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from golden_case import GOLDEN, image, load_case
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles.atd_reference import ATDReference
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr.archs.atd_arch import ATD, CategoryAttention, category_order
from basicsr.archs.blocks.windows import cached_window_plan
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

SMALL = {
    'embed_dim': 12,
    'depths': (2, 2),
    'num_heads': (2, 3),
    'window_size': 4,
    'category_size': 20,
    'num_tokens': 6,
    'reducted_dim': 3,
    'upscale': 2,
    'upsampler': 'pixelshuffledirect',
}
PUBLISHED = sorted(path.stem for path in (GOLDEN / 'atd').glob('full_*.json'))


def pair(seed: int = 0, **changes) -> tuple[ATD, ATDReference]:
    """The network and the plain transcription with the same random weights, every one of which matters."""
    torch.manual_seed(seed)
    reference = ATDReference(**SMALL | changes)
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn_like(parameter)
            parameter += noise / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1 * noise
    net = ATD(**SMALL | changes)
    net.load_state_dict(reference.state_dict())
    return net, reference


def category_margin(net: nn.Module, x: torch.Tensor) -> float:
    """The smallest relative distance of the two largest similarities: below rounding, categories may differ."""
    margins = []

    def look(_, __, result):
        best, second = result[1].topk(2, -1).values.unbind(-1)
        margins.append((best / second).log().min().item())

    hooks = [m.register_forward_hook(look) for name, m in net.named_modules() if name.endswith('attn_atd')]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return min(margins)


def gradients(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_(True)
    net.zero_grad()
    net(x).square().mean().backward()
    return {'input': x.grad} | {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize('name', PUBLISHED)
def test_state_dict_is_the_published_one_in_names_order_shapes_and_count(name):
    spec = load_case('atd', name).spec
    with torch.device('meta'):
        net = ATD(**spec['args'])
    assert [(k, list(v.shape)) for k, v in net.state_dict().items()] == list(spec['layout'].items())
    assert sum(p.numel() for p in net.parameters()) == spec['parameters']


def test_the_six_published_networks_are_here():
    assert len(PUBLISHED) == 6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 21), st.integers(1, 21)),
    window_size=st.sampled_from([3, 4, 8]),
    category_size=st.integers(5, 80),
    upsampler=st.sampled_from(['', 'pixelshuffle', 'pixelshuffledirect']),
    upscale=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_transcription_at_any_size(size, window_size, category_size, upsampler, upscale, seed):
    b, h, w = size
    changes = {'window_size': window_size, 'category_size': category_size, 'upsampler': upsampler, 'upscale': upscale}
    net, reference = pair(seed, **changes)
    x = image(seed, b, 3, h, w)
    assume(category_margin(reference, x) > 1e-5)
    with torch.no_grad():
        expected, found = reference(x), net(x)
    assert found.shape == (b, 3, h * net.scale, w * net.scale)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert_close(net(x).detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'changes', [{}, {'window_size': 5, 'resi_connection': '3conv', 'qkv_bias': False}, {'ape': True}]
)
def test_gradients_equal_the_plain_transcription(changes):
    net, reference = pair(3, img_size=12, **changes)
    x = image(81, 2, 3, 11, 10) if changes.get('ape') else image(81, 2, 3, 7, 14)
    assert category_margin(reference, x) > 1e-5
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        found, expected = (gradients(module.to(dtype), x.to(dtype)) for module in (net, reference))
        for name, gradient in expected.items():
            allowed = tolerance * gradient.abs().max().clamp(min=1e-3)
            assert (found[name] - gradient).abs().max() < allowed, name


def test_training_keeps_less_than_half_of_what_plain_attention_keeps():
    net, reference = pair(window_size=16, category_size=256, depths=(2,), num_heads=(3,))
    kept = []
    for module in (net, reference):
        storages = {}

        def count(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module(image(1, 1, 3, 32, 32))
        kept.append(sum(storages.values()))
    assert kept[0] < kept[1] / 2


@pytest.mark.parametrize(('use_checkpoint', 'blocks'), [(True, 4), (1, 1), (2, 2), (False, 0)])
def test_checkpointing_recomputes_the_first_blocks_and_changes_no_number(use_checkpoint, blocks):
    shape = {'depths': (1,) * 5, 'num_heads': (2,) * 5}
    plain, _ = pair(**shape)
    saving = ATD(**SMALL | shape, use_checkpoint=use_checkpoint)
    saving.load_state_dict(plain.state_dict())
    calls = [0] * 5
    for i, block in enumerate(saving.layers):
        block.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    x = image(5, 1, 3, 9, 8)
    assert_close(gradients(saving, x), gradients(plain, x), atol=0, rtol=0)
    assert calls == [2] * blocks + [1] * (5 - blocks)
    with torch.no_grad():
        assert_close(saving(x), plain(x), atol=0, rtol=0)
    assert calls == [3] * blocks + [2] * (5 - blocks)


@pytest.mark.parametrize('how', ['module', 'autocast'])
def test_bfloat16_is_close_and_its_categories_come_from_float32(how):
    net, reference = pair(2)
    x = image(4, 2, 3, 12, 16)
    expected = reference(x).detach()
    seen = []
    net.layers[0].residual_group.layers[1].attn_atd.register_forward_hook(
        lambda m, xs, out: seen.append((m, *xs, out[1]))
    )
    if how == 'module':
        found = net.bfloat16()(x.bfloat16())
        assert found.dtype == torch.bfloat16
    else:
        with torch.autocast('cpu', torch.bfloat16):
            found = net(x)
    assert (found.detach().float() - expected).abs().mean() < 0.1 * expected.std()
    found.float().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in net.parameters())
    attention, y, dictionary, similarity = seen[0]
    assert similarity.dtype == torch.float32
    exact = copy.deepcopy(attention).double()
    q, k = F.normalize(exact.wq(y.double()), dim=-1), F.normalize(exact.wk(dictionary.double()), dim=-1)
    logits = q @ k.mT * (1 + exact.scale.clamp(0, 1) * math.log(SMALL['num_tokens']))
    assert_close(similarity.double(), logits.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('change', ['load', 'step', 'data', 'foreach', 'cast'])
def test_a_changed_weight_is_used_at_once(change):
    net, other = pair(0)[0].eval(), pair(1)[0].eval()
    x = image(6, 1, 3, 12, 12)
    with torch.no_grad():
        before = net(x)
    if change == 'load':
        net.load_state_dict(other.state_dict())
    elif change == 'step':
        gradients(net, x)
        torch.optim.SGD(net.parameters(), lr=1.0).step()
    elif change == 'data':  # the way of BasicSR's moving average: invisible to version counters
        for mine, theirs in zip(net.parameters(), other.parameters()):
            mine.data.mul_(0.5).add_(theirs.data, alpha=0.5)
    elif change == 'foreach':
        with torch.no_grad():
            torch._foreach_lerp_(list(net.parameters()), list(other.parameters()), 0.5)
    else:
        net.double()
    fresh = ATD(**SMALL).eval()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        after = net(x.double() if change == 'cast' else x).float()
        assert_close(after, fresh(x), atol=1e-5, rtol=1e-5)
        if change != 'cast':
            assert (after - before).abs().max() > 1e-3


def test_copies_and_pickles_of_a_used_network_compute_the_same():
    net = pair()[0].eval()
    x = image(7, 1, 3, 9, 13)
    with torch.inference_mode():
        expected = net(x)
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert_close(copied(x), expected, atol=0, rtol=0)
    assert list(copied.state_dict()) == list(ATD(**SMALL).state_dict())


def test_plans_are_few_and_one_made_in_inference_mode_serves_training():
    net, _ = pair()
    cached_window_plan.cache_clear()
    with torch.inference_mode():
        for width in range(4, 44, 4):
            net(torch.rand(1, 3, 4, width))
    assert cached_window_plan.cache_info().currsize <= cached_window_plan.cache_info().maxsize <= 8
    assert gradients(net, torch.rand(1, 3, 4, 40))['input'].isfinite().all()


def test_tied_categories_keep_raster_order():
    ids = torch.randint(0, 5, (2, 1000))
    similarity = F.one_hot(ids, 5).float()
    similarity[:, ::7] = 0.2  # all equal: the smallest entry wins
    order = category_order(similarity)
    ids[:, ::7] = 0
    expected = [sorted(range(1000), key=row.__getitem__) for row in ids.tolist()]
    assert order.tolist() == expected


def test_categories_may_attend_only_to_their_group():
    attention = CategoryAttention(4, 2, category_size=8, bias=True)
    qkv = torch.randn(1, 24, 12)
    similarity = F.one_hot(torch.arange(24) % 3, 3).float()[None]
    before = attention(qkv, similarity)
    qkv[:, 0] += 1  # token 0 belongs to category 0: tokens 0, 3, 6, ...
    changed = (attention(qkv, similarity) - before).abs().amax(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == list(range(0, 24, 3))


def test_inputs_are_extended_by_repeated_mirrors():
    net, _ = pair()
    x = image(8, 1, 3, 3, 1)
    extended = torch.cat([x, x.flip(2)[:, :, :1]], 2).expand(-1, -1, -1, 4)
    with torch.no_grad():
        assert_close(net(x), net(extended)[:, :, :6, :2], atol=1e-6, rtol=0)


def test_memory_formats_do_not_matter():
    net, _ = pair(patch_norm=False)
    x = image(9, 2, 3, 8, 12)
    expected = net(x).detach()
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(last.detach(), expected, atol=1e-5, rtol=1e-5)


def test_no_tensor_has_more_than_five_dimensions():
    class Ranks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            assert not isinstance(result, torch.Tensor) or result.dim() <= 5, function
            return result

    net, _ = pair()
    x = image(10, 2, 3, 9, 11)
    with Ranks():
        net(x).mean().backward()
        with torch.no_grad():
            net(x)


def test_compiles_to_one_graph_and_exports():
    net, _ = pair(depths=(2,), num_heads=(2,))
    x = image(11, 2, 3, 7, 11)
    expected = gradients(net, x)
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    compiled.zero_grad()
    compiled(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-3)
    with torch.no_grad():
        assert_close(torch.export.export(net.eval(), (x,)).module()(x), net(x), atol=1e-5, rtol=1e-5)


def test_files_without_normalisation_are_read_and_the_mark_is_not_written():
    net, reference = pair(img_range=255.0)
    state = ATD.from_published({**reference.state_dict(), 'no_norm': torch.zeros(1)})
    net.load_state_dict(state, strict=True)
    assert 'no_norm' in state  # the caller's dictionary stays as it was
    reference.mean, reference.img_range = torch.zeros(1, 3, 1, 1), 1.0
    x = image(12, 1, 3, 8, 8)
    with torch.no_grad():
        assert_close(net(x), reference(x), atol=1e-4, rtol=1e-4)
    assert list(net.state_dict()) == list(reference.state_dict())


def test_version_two_of_the_network_is_named_and_refused():
    layer = 'layers.0.residual_group.layers.0'
    newer = {f'{layer}.attn_atd.scale': torch.ones(1), f'{layer}.fc_td.weight': torch.ones(1)}
    with pytest.raises(ValueError, match=r'ATD v2 \(CVL-UESTC, 2026\).*implements ATD v1'):
        ATD.from_published(newer)
    with torch.device('meta'):
        state = ATD(**SMALL).state_dict()
    assert ATD.from_published(state) == state


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_heads': (5, 2)}, 'embed_dim 12 must be divisible'),
        ({'num_heads': (2,)}, 'depths has 2 blocks but num_heads has 1'),
        ({'convffn_kernel_size': 4}, 'must be odd, got 4'),
        ({'upsampler': 'pixelshufle'}, "got 'pixelshufle'"),
        ({'upsampler': 'nearest+conv'}, 'enlarges by 4 only, got upscale 2'),
        ({'upsampler': 'pixelshuffle', 'upscale': 5}, 'got upscale 5'),
        ({'resi_connection': '2conv'}, "got '2conv'"),
    ],
)
def test_impossible_networks_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        ATD(**SMALL | changes)
    assert '\n' not in str(error.value)


def test_position_embeddings_name_the_size_that_they_need():
    net = ATD(**SMALL, ape=True, img_size=12)
    with pytest.raises(ValueError, match='padded input of 12x12 pixels only, got 12x16'):
        net(torch.rand(1, 3, 10, 13))


def test_unknown_arguments_are_errors():
    with pytest.raises(TypeError, match='embed_dims'):
        ATD(embed_dims=12)
    with pytest.raises(OptionError, match="did you mean 'embed_dim'"):
        ARCH_REGISTRY.build({'type': 'ATD', 'embed_dims': 12})
    assert ARCH_REGISTRY.build({'type': 'ATD', **SMALL, 'depths': [1], 'num_heads': [2], 'mlp_ratio': 2}).scale == 2


def test_spandrel_reads_this_state_dict_and_computes_the_same():
    spandrel = pytest.importorskip('spandrel')
    net, _ = pair(5, embed_dim=48, category_size=128, window_size=8)  # what spandrel assumes of this head and width
    x = image(13, 1, 3, 8, 15)  # 128 tokens: one group, whose order does not matter
    theirs = spandrel.ModelLoader().load_from_state_dict({'params_ema': net.state_dict()})
    assert (theirs.architecture.id, theirs.scale) == ('ATD', 2)
    with torch.no_grad():
        assert_close(net(x), theirs.model(x), atol=1e-4, rtol=1e-4)
