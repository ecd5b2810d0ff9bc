import pytest
import torch
from iter_arch_fixture import EXACT, agree, gradients, iter_vqgan_reference, randomised, twin
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.blocks import swin, windows
from basicsr.archs.blocks.swin import GatedMlp, SwinLayers, with_computed, without_computed

SMALL = {'embed_dim': 6, 'swin_dim': 16, 'blk_num': 2, 'blk_depth': 3, 'window_size': 4, 'num_heads': 4}


def pair(seed: int = 0, **changes) -> tuple[torch.nn.Module, SwinLayers]:
    options = SMALL | {'input_resolution': (8, 8)} | changes
    return twin(iter_vqgan_reference.SwinLayers(**options), SwinLayers(**options), seed)


@pytest.mark.parametrize('size', [(1, 8, 8), (2, 4, 12), (3, 8, 4), (1, 4, 4), (2, 16, 8)])
@pytest.mark.parametrize('resolution', [(8, 8), (4, 12), (16, 8)])
def test_equals_the_plain_transcription_at_any_size(size, resolution):
    reference, net = pair(input_resolution=resolution)
    x = torch.randn(size[0], 6, *size[1:], dtype=EXACT)
    with torch.no_grad():
        agree(net(x), reference(x))


@pytest.mark.parametrize('batch', [1, 2])
def test_gradients_equal_those_of_the_plain_transcription(batch):
    reference, net = pair()
    x = torch.randn(batch, 6, 8, 12, dtype=EXACT, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    expected, found = gradients(reference, reference(x)), gradients(net, net(y))
    agree(y.grad, x.grad)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        agree(found[name], gradient, name)


def test_windows_are_decided_by_the_resolution_at_construction():
    """Published: never by the image. A resolution of one window is never shifted, and may narrow the window."""
    narrow = SwinLayers(**SMALL | {'window_size': 8}, input_resolution=(4, 16))
    shifts = [block.attn.shift for group in narrow.swin_blks for block in group.residual_group['blocks']]
    assert narrow.window_size == 4 and set(shifts) == {0}
    wide = SwinLayers(**SMALL, input_resolution=(8, 8))
    shifts = [block.attn.shift for group in wide.swin_blks for block in group.residual_group['blocks']]
    assert wide.window_size == 4 and shifts == [0, 2, 0] * 2


def test_masks_of_a_size_are_made_once():
    net, x = SwinLayers(**SMALL, input_resolution=(8, 8)), torch.randn(1, 6, 12, 8)
    net(x)
    made = windows.cached_window_plan.cache_info().misses
    net(x)
    net(x)
    assert windows.cached_window_plan.cache_info().misses == made


def test_images_of_a_batch_do_not_see_one_another():
    _, net = pair()
    x = torch.randn(3, 6, 8, 8, dtype=EXACT)
    with torch.no_grad():
        assert_close(net(x), torch.cat([net(one[None]) for one in x]))


def test_gates_multiply_the_hidden_channels_with_and_without_gradients():
    mlp = randomised(GatedMlp(8, 32)).to(EXACT)
    x = torch.randn(2, 5, 8, dtype=EXACT)
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    gates = torch.sigmoid(mlp.attn[2](F.silu(mlp.attn[0](hidden.mean(1)))))
    expected = F.linear(hidden * gates[:, None], mlp.fc2.weight, mlp.fc2.bias)
    assert_close(mlp(x), expected)
    with torch.no_grad():
        assert_close(mlp(x), expected)


def test_attending_in_few_windows_at_once_equals_attending_by_kinds_of_mask(monkeypatch):
    _, net = pair()
    x = torch.randn(2, 6, 12, 8, dtype=EXACT)
    with torch.no_grad():
        at_once = net(x)
        monkeypatch.setattr(swin, 'FEW_WINDOWS', 0)
        agree(net(x), at_once)


def test_autocast_stays_near():
    torch.manual_seed(0)
    net, x = randomised(SwinLayers(**SMALL)), torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        exact = net(x)
        with torch.autocast('cpu', torch.bfloat16):
            assert (net(x) - exact).abs().max() < 0.03 * exact.abs().max()


def test_published_files_have_what_is_computed_here():
    net = SwinLayers(**SMALL, input_resolution=(8, 12))
    state = with_computed(net, net.state_dict())
    first, second = (f'swin_blks.0.residual_group.blocks.{i}' for i in (0, 1))
    assert f'{first}.attn_mask' not in state
    assert state[f'{second}.attn_mask'].shape == (6, 16, 16)
    assert set(state[f'{second}.attn_mask'].unique().tolist()) == {0, -100}
    assert state[f'{first}.attn.relative_position_index'].shape == (16, 16)
    assert list(without_computed(state)) == list(net.state_dict())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_heads': 3}, '3 heads do not divide the 16 channels'),
        ({'input_resolution': (10, 8)}, r'windows of 4 are made for multiples of it, got \(10, 8\)'),
        ({'input_resolution': (0, 8)}, r'got \(0, 8\)'),
    ],
)
def test_impossible_options_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        SwinLayers(**SMALL | changes)


def test_sizes_that_windows_do_not_divide_are_said():
    with pytest.raises(ValueError, match='multiples of their window 4, got 8x6'):
        SwinLayers(**SMALL)(torch.rand(1, 6, 8, 6))
