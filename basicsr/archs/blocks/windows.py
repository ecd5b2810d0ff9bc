"""Windows of an image: partition and merge, the mask of shifted windows, the relative position index, row orders.

The only copies in this project. No tensor here has more than five dimensions, so that networks built on it export.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def mirror_pad(x: Tensor, multiple: int) -> Tensor:
    """Extend (b, c, h, w) at the bottom and the right to multiples, by mirrors that repeat the edge, however small."""
    for dim, size in ((2, x.shape[2]), (3, x.shape[3])):
        if torch.compiler.is_exporting() or size % multiple:  # an exported network takes every size in one way
            # Written so, the tracer sees that it is a multiple.
            place = torch.arange((size + multiple - 1) // multiple * multiple, device=x.device)
            place = place.remainder(torch.full_like(place, 2 * size))  # by a tensor: ONNX takes no symbol there
            x = x.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    return x


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, window_size^2, c), windows and pixels in raster order; h and w are multiples."""
    b, h, w, c = x.shape
    strips = x.reshape(b * (h // window_size), window_size, w // window_size, window_size * c)
    return strips.transpose(1, 2).reshape(-1, window_size**2, c)


def window_merge(windows: Tensor, window_size: int, h: int, w: int) -> Tensor:
    """The inverse of window_partition: (b * windows, window_size^2, c) -> (b, h, w, c)."""
    c = windows.shape[-1]
    strips = windows.reshape(-1, w // window_size, window_size, window_size * c)
    return strips.transpose(1, 2).reshape(-1, h, w, c)


def relative_position_index(window_size: int, device: torch.device | None = None) -> Tensor:
    """(n, n) int64 for n = window_size^2: the row of a (2 * window_size - 1)^2 bias table for each pair of pixels."""
    pixel = torch.arange(window_size**2, device=device)
    y, x = pixel // window_size, pixel % window_size
    dy, dx = y[:, None] - y + window_size - 1, x[:, None] - x + window_size - 1
    return dy * (2 * window_size - 1) + dx


def relative_position_bias(table: Tensor, window_size: int) -> Tensor:
    """((2 * window_size - 1)^2, heads) -> (heads, n, n): table[relative_position_index], read as overlapping views."""
    side = 2 * window_size - 1
    mirrored = table.t().reshape(-1, side, side).flip(1, 2)
    pairs = mirrored.unfold(1, window_size, 1).unfold(2, window_size, 1).flip(1, 2)
    return pairs.reshape(-1, window_size**2, window_size**2)


def shift_mask(h: int, w: int, window_size: int, device: torch.device | None = None) -> Tensor:
    """(windows, n, n) float32, n = window_size^2: added to the logits of an image rolled by -(window_size // 2).

    0 where two pixels were neighbours before the roll, -100 where only the roll brought them together. Only windows
    of the last row and column have such pairs.
    """

    def labels(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place >= size - window_size).long() + (place >= size - window_size // 2).long()

    region = 3 * labels(h)[:, None] + labels(w)
    region = window_partition(region[None, :, :, None], window_size).squeeze(-1)
    return (region[:, :, None] != region[:, None]) * -100.0


class WindowPlan(NamedTuple):
    """How the rows of (b * h * w, c) tokens form windows, grouped by the mask that they need.

    order: row of the tokens for every row of the windows; inverse: the way back.
    groups: (number of windows, mask (n, n) or None) one after another; masked groups exist in shifted plans only.
    """

    order: Tensor
    inverse: Tensor
    groups: tuple[tuple[int, Tensor | None], ...]


def window_plan(b: int, h: int, w: int, window_size: int, shift: int, device: torch.device) -> WindowPlan:
    """The plan for b images of h x w pixels, rolled by -shift; h and w are multiples of window_size.

    A shifted image has just four masks: none in the interior, one in the last column, one in the last row, and one
    in the corner. Windows are sorted by mask, so that a mask is never repeated over windows.
    """
    # A tracer's tensors are not real: they must not stay in the cache, nor real ones become constants of the trace.
    make = make_window_plan if torch.compiler.is_compiling() else cached_window_plan
    return make(b, h, w, window_size, shift, device)


def make_window_plan(b: int, h: int, w: int, window_size: int, shift: int, device: torch.device) -> WindowPlan:
    with torch.inference_mode(False):  # the plan outlives the mode of the call that happened to make it
        rows = torch.arange(b * h * w, device=device).view(b, h, w, 1)
        if not shift:
            order = window_partition(rows, window_size).flatten()
            return WindowPlan(order, order.argsort(), ((order.shape[0] // window_size**2, None),))
        tall, wide = h // window_size, w // window_size
        windows = window_partition(rows.roll((-shift, -shift), (1, 2)), window_size)
        if torch.compiler.is_exporting():  # for images of any size, also where a group has no window: each has its mask
            masks = shift_mask(h, w, window_size, device).repeat(b, 1, 1)[:, None]
            order = windows.flatten()
            return WindowPlan(order, order.argsort(), ((windows.shape[0], masks),))
        windows = windows.view(b, tall, wide, window_size**2)
        parts = (windows[:, :-1, :-1], windows[:, :-1, -1:], windows[:, -1:, :-1], windows[:, -1:, -1:])
        order = torch.cat([part.flatten() for part in parts])
        masks = shift_mask(2 * window_size, 2 * window_size, window_size, device)
        groups = tuple(
            (part.shape[:3].numel(), None if i == 0 else masks[i]) for i, part in enumerate(parts) if part.numel()
        )
        return WindowPlan(order, order.argsort(), groups)


cached_window_plan = lru_cache(maxsize=8)(make_window_plan)  # 16 bytes a token: big images must not pile up


class TakeRows(torch.autograd.Function):
    """Reordered rows; the gradient is taken back by the inverse order instead of added up row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return TakeRows.apply(grad, inverse, order), None, None


def take_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x[order] of (rows, c) for a permutation and its inverse."""
    if not torch.is_grad_enabled():
        return x.index_select(0, order)
    return TakeRows.apply(x, order, inverse)
