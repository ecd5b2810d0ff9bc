"""The training-pair pool: later batches mix samples that were degraded in different batches."""

import numpy as np
import torch
from torch import Tensor

from basicsr.utils.registry import OptionError


class PairPool:
    """Keeps `queue_size` pairs and exchanges a batch of new ones for as many random ones (Real-ESRGAN).

    The published pool is permuted as a whole in every step, its first samples leave and the new ones take their
    places. Here only the places are permuted: the pairs that leave are the same, and nothing else is copied.

    Args:
        queue_size: pairs; at least a batch, of which the last one that fills the pool may not fit whole. Memory at gt
            256, lq 64: 0.84 MB each.
    """

    def __init__(self, queue_size: int):
        if queue_size < 1:
            raise OptionError(f'queue_size should be 1 or more, got {queue_size}', ('queue_size',))
        self.queue_size, self.filled = queue_size, 0
        self.order = np.arange(queue_size)  # the place in memory of the n-th pair
        self.lq: Tensor | None = None
        self.gt: Tensor | None = None

    def exchange(self, lq: Tensor, gt: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As many pairs as are given, which are kept: the given ones themselves until the pool is full.

        Args:
            seed: of the permutation.
        Raises ValueError for batches that do not fit the pool or the earlier ones.
        """
        return self.exchange_by(lq, gt, lambda: np.random.default_rng(seed).permutation(self.queue_size))

    def exchange_by(self, lq: Tensor, gt: Tensor, permutation) -> tuple[Tensor, Tensor]:
        """`exchange` with a function that gives the permutation of the pairs, asked only when the pool is full."""
        size = len(lq)
        if self.queue_size < size:
            raise OptionError(f'queue_size {self.queue_size} is smaller than the batch of {size}', ('queue_size',))
        self._fit('lq', lq)
        self._fit('gt', gt)
        if self.filled < self.queue_size:
            room = min(size, self.queue_size - self.filled)
            places = slice(self.filled, self.filled + room)
            self.lq[places], self.gt[places] = lq[:room], gt[:room]
            self.filled += room
            return lq, gt
        self.order = self.order[permutation()]
        places = on_device(self.order[:size], lq.device)
        old = self.lq[places], self.gt[places]
        self.lq[places], self.gt[places] = lq, gt
        return old

    def state_dict(self) -> dict:
        """All that the next exchanges depend on; the tensors are the pool's own, not copies."""
        state = {'filled': self.filled, 'order': torch.from_numpy(self.order)}
        return state if self.lq is None else {**state, 'lq': self.lq[: self.filled], 'gt': self.gt[: self.filled]}

    def load_state_dict(self, state: dict) -> None:
        """Go on as the pool that gave `state`. Raises ValueError if that had another size."""
        order = state['order'].cpu().numpy()
        if len(order) != self.queue_size:
            raise ValueError(f'queue_size was {len(order)} and is {self.queue_size} now')
        self.order, self.filled, self.lq, self.gt = order.copy(), state['filled'], None, None
        if self.filled:
            self.lq, self.gt = self._room(state['lq']), self._room(state['gt'])
            self.lq[: self.filled], self.gt[: self.filled] = state['lq'], state['gt']

    def _room(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.queue_size, *like.shape[1:])

    def _fit(self, name: str, batch: Tensor) -> None:
        """Make room at the first batch; follow later ones to their device."""
        pool = getattr(self, name)
        if pool is None:
            setattr(self, name, self._room(batch))
        elif pool.shape[1:] != batch.shape[1:]:
            raise ValueError(f'the pair pool holds {name} of shape {(*pool.shape[1:],)}, got {(*batch.shape[1:],)}')
        elif pool.device != batch.device:
            setattr(self, name, pool.to(batch.device))


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The values as a tensor, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)
