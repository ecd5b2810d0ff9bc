"""Low-rank additions to frozen layers whose core is a matrix of each image (S3Diff, arXiv:2409.17058).

A layer computes y = base(x) + scaling * B (M^T (A x)). M is the same for all pixels or tokens of an image, so it is
folded into B once: U = scaling * B M^T, and y = base(x) + U (A x). Attribute names are those of published files, which
the package peft wrote.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ALPHA = 8  # peft's default, which published files do not hold: scaling is ALPHA / rank


class Projections:
    """The folded up-projections that LoRA layers use at the moment, held by all of them: one (n, out, rank) of each."""

    def __init__(self):
        self.current: Sequence[Tensor] | None = None

    @contextmanager
    def using(self, current: Sequence[Tensor] | None) -> Iterator[None]:
        before, self.current = self.current, current
        try:
            yield
        finally:
            self.current = before

    def checkpointed(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """A part of the network whose backward pass computes it again, with the projections of this moment."""
        if torch.compiler.is_compiling():  # which passes them on by itself
            return checkpoint(module.__call__, *inputs, use_reentrant=False)
        current = self.current
        return checkpoint(
            module.__call__, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), self.using(current))
        )


class LoRALayer(nn.Module):
    """A frozen Linear or Conv2d with a trained low-rank addition; used inside `Projections.using`.

    Args:
        adapter: name of the addition in files.
        row: which matrix of an image it takes.
        index: its place among the current projections.
    Shape: as the layer's; a Linear takes (b, tokens, c). b may be k times the n images that the projections belong to:
        x[i] is of image i % n.
    """

    def __init__(
        self, base: nn.Linear | nn.Conv2d, rank: int, adapter: str, row: int, projections: Projections, index: int
    ):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.adapter, self.row, self.projections, self.index = adapter, row, projections, index
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.set_rank(rank)

    def set_rank(self, rank: int) -> None:
        """Fresh matrices of a rank: A ~ N(0, 1 / rank^2) and B = 0, so that at first nothing is added."""
        base, place = self.base_layer, {'device': self.weight.device, 'dtype': self.weight.dtype}
        if isinstance(base, nn.Conv2d):
            how = base.kernel_size, base.stride, base.padding, base.dilation
            down = nn.Conv2d(base.in_channels, rank, *how, bias=False, **place)
            up = nn.Conv2d(rank, base.out_channels, 1, bias=False, **place)
        else:
            down = nn.Linear(base.in_features, rank, bias=False, **place)
            up = nn.Linear(rank, base.out_features, bias=False, **place)
        nn.init.normal_(down.weight, std=1 / rank)
        nn.init.zeros_(up.weight)
        self.lora_A[self.adapter], self.lora_B[self.adapter] = down, up
        self.scaling = ALPHA / rank

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.projections.current is None:
            raise RuntimeError('a LoRA layer works inside `modulated`: it adds what the matrices of an image say')
        return self.add(self.base_layer(x), self.lora_A[self.adapter](x))

    def add(self, y: Tensor, low: Tensor) -> Tensor:
        """y, which the frozen layer gives, and what is projected up from low, which A gives."""
        up = self.projections.current[self.index]
        if y.ndim == 3:
            return add_projected(y, low, up)
        if y.is_contiguous(memory_format=torch.channels_last):
            tokens = add_projected(rearrange(y, 'b c h w -> b (h w) c'), rearrange(low, 'b r h w -> b (h w) r'), up)
            return rearrange(tokens, 'b (h w) c -> b c h w', h=y.shape[2])
        return torch.baddbmm(y.flatten(2), _of_batch(up, len(y)), low.flatten(2)).view_as(y)


def add_projected(y: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """y (b, tokens, out) + low (b, tokens, r) up^T, for up (n, out, r); one for all is a single product."""
    if len(up) == 1:
        return torch.addmm(y.flatten(0, 1), low.flatten(0, 1), up[0].mT).view_as(y)
    return torch.baddbmm(y, low, _of_batch(up, len(y)).mT)


def _of_batch(up: Tensor, b: int) -> Tensor:
    if b % len(up):
        raise ValueError(f'a batch of {b} cannot be of {len(up)} images')
    return up.expand(b, -1, -1) if len(up) == 1 else up.repeat(b // len(up), 1, 1)


def fold(layers: Sequence[LoRALayer], matrices: Tensor) -> list[Tensor]:
    """U = scaling * B M^T of each layer, (n, out, rank) in the type of B, for matrices (n, rows, rank, rank).

    The layers of a row are folded in one product.
    """
    folded: dict[LoRALayer, Tensor] = {}
    for row in sorted({layer.row for layer in layers}):
        alike = [layer for layer in layers if layer.row == row]
        ups = [layer.lora_B[layer.adapter].weight.flatten(1) for layer in alike]
        product = torch.cat(ups).to(matrices.dtype) @ (alike[0].scaling * matrices[:, row]).mT
        folded |= zip(alike, product.to(ups[0].dtype).split([len(up) for up in ups], dim=1))
    return [folded[layer] for layer in layers]


def inject(
    net: nn.Module,
    is_target: Callable[[str], bool],
    row_of: Callable[[str], int],
    rank: int,
    adapter: str,
    projections: Projections,
    start: int = 0,
) -> list[LoRALayer]:
    """Put a LoRALayer in the place of each Linear and Conv2d whose name is a target; `start` is the first's index."""
    names = [
        name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d) and is_target(name)
    ]
    layers = []
    for index, name in enumerate(names, start):
        layer = LoRALayer(net.get_submodule(name), rank, adapter, row_of(name), projections, index)
        net.set_submodule(name, layer)
        layers.append(layer)
    return layers
