"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class WeightAverage:
    """`net`: a frozen copy of a network that follows it, average = decay * average + (1 - decay) * weights.

    Args:
        buffers: copy buffers (running statistics) at every update; published BasicSR leaves them as they were.
    """

    def __init__(self, net: nn.Module, decay: float, buffers: bool = True):
        self.net, self.decay, self.buffers = copy.deepcopy(net).eval().requires_grad_(False), decay, buffers

    @torch.no_grad()
    def update(self, net: nn.Module, decay: float | None = None) -> None:
        """Move towards the weights of `net`; decay 0 copies them."""
        decay = self.decay if decay is None else decay
        torch._foreach_lerp_(list(self.net.parameters()), [p.detach() for p in net.parameters()], 1 - decay)
        if self.buffers:
            for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
                mine.copy_(theirs)
