import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from basicsr.archs.blocks.attention import grouped_attention
from basicsr.archs.blocks.windows import (
    relative_position_bias,
    relative_position_index,
    shift_mask,
    window_merge,
    window_partition,
    window_plan,
)


def test_attention_gradients_equal_finite_differences():
    torch.manual_seed(0)
    rows = torch.randn(3, 5, 3 * 4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: grouped_attention(tensors[0], 2, *tensors[1:]), (rows, scale, bias)
    )
    assert torch.autograd.gradcheck(lambda rows: grouped_attention(rows, 2, 0.5), (rows,))


def test_attention_in_several_chunks_has_the_same_gradients(monkeypatch):
    rows = torch.randn(7, 9, 3 * 6, requires_grad=True)
    bias = torch.randn(3, 9, 9, requires_grad=True)
    found = []
    for chunk in (1, 3 * 9 * 9 * 3, 2**18):
        monkeypatch.setattr('basicsr.archs.blocks.attention.CHUNK', chunk)
        out = grouped_attention(rows, 3, 0.4, bias)
        found.append(torch.autograd.grad(out.square().sum(), (rows, bias)))
    for other in found[1:]:
        assert_close(other, found[0])


@pytest.mark.parametrize(('h', 'w', 'ws'), [(8, 12, 4), (7, 14, 7), (8, 8, 8), (6, 3, 3)])
def test_a_shifted_plan_has_the_windows_and_masks_of_the_rolled_image(h, w, ws):
    plan = window_plan(2, h, w, ws, ws // 2, torch.device('cpu'))
    assert_close(plan.order[plan.inverse], torch.arange(2 * h * w))
    masks = torch.cat([torch.zeros(n, ws**2, ws**2) if m is None else m.expand(n, -1, -1) for n, m in plan.groups])
    rolled = torch.arange(2 * h * w).view(2, h, w, 1).roll((-(ws // 2),) * 2, (1, 2))
    expected = {
        tuple(window.tolist()): mask
        for window, mask in zip(window_partition(rolled, ws).squeeze(-1), shift_mask(h, w, ws).repeat(2, 1, 1))
    }
    windows = plan.order.view(-1, ws**2)
    assert len(windows) == len(masks) == len(expected)
    for window, mask in zip(windows, masks):
        assert_close(mask, expected[tuple(window.tolist())])


def test_windows_equal_unfold_and_merge_back():
    x = torch.randn(2, 12, 8, 3)
    columns = F.unfold(x.permute(0, 3, 1, 2), 4, stride=4)
    expected = columns.view(2, 3, 16, 6).permute(0, 3, 2, 1).reshape(12, 16, 3)
    assert_close(window_partition(x, 4), expected, atol=0, rtol=0)
    assert_close(window_merge(expected, 4, 12, 8), x, atol=0, rtol=0)


@pytest.mark.parametrize('ws', [1, 2, 7, 8])
def test_position_bias_is_the_table_at_the_position_index(ws):
    table = torch.randn((2 * ws - 1) ** 2, 3)
    expected = table[relative_position_index(ws)].permute(2, 0, 1)
    assert_close(relative_position_bias(table, ws), expected, atol=0, rtol=0)
