"""D2C-SR's tree of predictions (Li et al., ECCV 2022, arXiv:2103.14373) with any network as its branches."""

import copy

import torch
from torch import Tensor, nn

from basicsr.utils.nested_options import ComponentOf, nested
from basicsr.utils.registry import ARCH_REGISTRY

PARENTS = ((0, 1), (2, 3))  # branches 11 and 12, 21 and 22
PROBE = 8  # side of the image on which the shared modules are tried


@ARCH_REGISTRY.register()
class D2CBackboneBranches(nn.Module):
    """Four copies of a feed-forward network that have their first modules in common: the leaves of a binary tree.

    What is shared exists once and is computed once; everything else is each branch's own, and starts differently.

    Args:
        scale: that of the backbone.
        backbone: a network as an option file describes it: its `type` and options.
        shared: modules of the backbone that all four branches share, by their names, such as 'conv_first' or
            'layers.0'. They must be leading: what they are given depends on the image and on shared modules only.
        parents: modules that branches 11 and 12 share, and 21 and 22; they may follow `shared` ones.
    Shape: (b, 3, h, w) in [0, 1] -> (b, 4, 3, h * scale, w * scale): branches 11, 12, 21 and 22; any size that the
        backbone takes.
    """

    def __init__(
        self,
        scale: int,
        backbone: nested(ComponentOf(ARCH_REGISTRY)),
        shared: tuple[str, ...] = (),
        parents: tuple[str, ...] = (),
    ):
        super().__init__()
        self.branches = nn.ModuleList(ARCH_REGISTRY.build(backbone) for _ in range(4))
        self.memos: list[Memo] = []
        for names, siblings in ((shared, ((0, 1, 2, 3),)), (parents, PARENTS)):
            for name in names:
                for first, *others in siblings:
                    self._share(name, first, others)
        self._check(scale)

    def _share(self, name: str, first: int, others: list[int]) -> None:
        """Put what replays branch `first`'s module in the place of the others'."""
        modules = [dict(self.branches[branch].named_modules()).get(name) for branch in (first, *others)]
        module = modules[0]
        if module is None or not name:
            known = ', '.join(child for child, _ in self.branches[0].named_children())
            raise ValueError(f'the backbone has no module {name!r} to share; its first modules: {known}')
        if any(other is None or any(isinstance(part, Replay) for part in other.modules()) for other in modules):
            raise ValueError(f'{name!r} is shared already, or a part of it is')
        memo = Memo(name)
        module.register_forward_hook(memo.record, with_kwargs=True)
        for branch in others:
            self.branches[branch].set_submodule(name, Replay(memo))
        self.memos.append(memo)

    @torch.no_grad()
    def _check(self, scale: int) -> None:
        """Raise ValueError unless the branches enlarge by `scale` and what is shared is leading."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        was_training = self.training
        for memo in self.memos:
            memo.checks = True
        lq = torch.rand(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0))
        images = self.eval()(lq)
        self.train(was_training)
        for memo in self.memos:
            memo.checks = False
        if images.shape != (1, 4, 3, PROBE * scale, PROBE * scale):
            raise ValueError(
                f'scale is {scale}, but the backbone makes {tuple(images.shape[2:])} of an image (3, {PROBE}, {PROBE})'
            )

    def forward(self, lq: Tensor) -> Tensor:
        for memo in self.memos:
            memo.begin()
        try:
            return torch.stack([branch(lq) for branch in self.branches], 1)
        finally:
            for memo in self.memos:
                memo.end()


class Memo:
    """What a shared module gave in this forward pass, call by call; while it checks, also what it was given."""

    def __init__(self, name: str):
        self.name, self.is_open, self.checks = name, False, False
        self.calls: list[tuple] = []

    def begin(self) -> None:
        self.is_open, self.calls = True, []

    def end(self) -> None:
        self.is_open = False
        self.calls.clear()

    def record(self, module: nn.Module, given: tuple, named: dict, out: object) -> None:
        """A forward hook. Recomputation in a backward pass is not recorded."""
        if self.is_open:
            self.calls.append((out, (given, named), copy.deepcopy(out)) if self.checks else (out,))


class Replay(nn.Module):
    """In the place of a shared module: gives what the first branch's gave. It has no weights of its own."""

    def __init__(self, memo: Memo):
        super().__init__()
        self.memo, self.position, self.calls = memo, 0, None

    def forward(self, *given: object, **named: object) -> object:
        memo = self.memo
        if self.calls is not memo.calls:  # a new forward pass
            self.calls, self.position = memo.calls, 0
        if self.position >= len(memo.calls):
            raise ValueError(f'{memo.name!r} cannot be shared: not all branches call it equally often')
        out, *checked = memo.calls[self.position]
        self.position += 1
        if checked and not _same(checked[0], (given, named)):
            raise ValueError(f'{memo.name!r} cannot be shared: its input depends on modules that are not')
        if checked and not _same(checked[1], out):
            raise ValueError(f'{memo.name!r} cannot be shared: the module after it writes into its output')
        return out


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return type(one) is type(other) and one == other
