"""Multi-head attention inside groups of rows (windows, categories), by the fastest equal path of each device."""

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**19  # logits computed at a time in the backward pass: 2 MiB of float32, about what two caches hold


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """The type for sums and exponentials of numbers of `dtype`: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> torch.autocast:
    """A context of computing as it is written, whatever autocast says; also on `meta`, which has no autocast."""
    kind = device.type
    return torch.autocast(kind if torch.amp.is_autocast_available(kind) else 'cpu', enabled=False)


def grouped_attention(rows: Tensor, heads: int, scale: Tensor | float, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v in every group and head.

    Shape: rows (g, n, 3 * dim) in the order q, k, v, each split into heads; scale without axes, so that it promotes no
    type; bias (heads, n, n) -> (g, n, dim).
    """
    if bias is not None:
        bias = bias.to(rows.dtype)
    tensors = [t for t in (rows, scale, bias) if isinstance(t, Tensor)]
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if learning and rows.device.type == 'cpu' and not torch.compiler.is_compiling():
        return RecomputedAttention.apply(rows, torch.as_tensor(scale, dtype=exact_type(rows.dtype)), bias, heads)
    # The fused kernels of the CPU refuse a mask that requires a gradient, even where none is recorded.
    return fused_attention(rows, heads, scale, bias if bias is None or learning else bias.detach())


def fused_attention(rows: Tensor, heads: int, scale: Tensor | float, bias: Tensor | None) -> Tensor:
    """grouped_attention by scaled_dot_product_attention, which never stores the logits of all groups.

    Here bias may also be that of each group: (g, heads, n, n).
    """
    q, k, v = (rearrange(part, 'g n (heads d) -> g heads n d', heads=heads) for part in rows.chunk(3, -1))
    width = q.shape[-1]
    if isinstance(scale, Tensor):
        q, scale = q * scale, 1.0
    if rows.is_cuda and width % 8:  # fused CUDA kernels want aligned heads; zeros change nothing
        q, k, v = (F.pad(part, (0, -width % 8)) for part in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, None if bias is None else bias.view(-1, *bias.shape[-3:]), scale=scale
    )
    return rearrange(out[..., :width], 'g heads n d -> g n (heads d)')


class RecomputedAttention(torch.autograd.Function):
    """Attention for training on the CPU, whose own kernels lack the gradient of the bias.

    The backward pass computes the probabilities again, a few groups at a time: they are never all in memory, and a
    chunk stays in the cache. Products with narrow heads are written transposed, (d, n), which is twice as fast.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, scale: Tensor, bias: Tensor | None, heads: int) -> Tensor:
        out = fused_attention(rows, heads, scale, None if bias is None else bias.detach())
        ctx.save_for_backward(rows, scale, bias, out)
        ctx.heads = heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        rows, scale, bias, out = ctx.saved_tensors
        heads, (groups, n, _) = ctx.heads, rows.shape
        exact = exact_type(rows.dtype)  # logits in bfloat16 would lose the small ones
        step = max(1, min(groups, CHUNK // (heads * n * n)))
        grad_rows = torch.empty_like(rows)
        grad_scale = torch.zeros_like(scale, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if ctx.needs_input_grad[2] else None
        factor = scale.to(exact)
        p_memory, s_memory = torch.empty(2, step * heads, n, n, dtype=exact)
        with torch.autocast('cpu', enabled=False):
            for start in range(0, groups, step):
                part = slice(start, start + step)
                q, k, v = rearrange(rows[part].to(exact), 'g n (qkv heads d) -> qkv (g heads) d n', qkv=3, heads=heads)
                do, o = (
                    rearrange(x[part].to(exact), 'g n (heads d) -> (g heads) d n', heads=heads) for x in (grad, out)
                )
                p, s, qs = p_memory[: len(q)], s_memory[: len(q)], q * factor
                torch.bmm(qs.transpose(1, 2), k, out=s)
                if bias is not None:
                    s.view(-1, *bias.shape).add_(bias)
                torch.softmax(s, -1, out=p)
                torch.bmm(do.transpose(1, 2), v, out=s)
                s.sub_((do * o).sum(1).unsqueeze(-1)).mul_(p)  # now the gradient of the logits
                grad_q = torch.bmm(k, s.transpose(1, 2))
                if grad_scale is not None:
                    grad_scale += (grad_q * q).sum()
                if grad_bias is not None:
                    for logits in s.view(-1, *bias.shape):
                        grad_bias += logits
                grads = torch.stack((grad_q * factor, torch.bmm(qs, s), torch.bmm(do, p)))
                grad_rows[part] = rearrange(grads, 'qkv (g heads) d n -> g n (qkv heads d)', heads=heads)
        return grad_rows, grad_scale, grad_bias, None
