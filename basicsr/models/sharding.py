"""Frozen weights shared out: each process keeps a part of them and fetches the rest of a block while it works.

What is trained stays whole on each process, so that optimizers, gradients and checkpoints are as they always are. The
work is PyTorch's fully_shard (FSDP2); what is asked of it comes from accelerate's configuration.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Sharding:
    """How to share out frozen weights.

    Args:
        reshard: whether a block's weights go when it has worked, and are fetched again for its gradients. Otherwise
            they go after those: less to send, more to keep.
    """

    reshard: bool = True

    def apply(self, nets: Mapping[str, nn.Module], device: str, processes: int) -> None:
        """Share out what is frozen in the `frozen_blocks` of networks, which move to the device block by block."""
        mesh = init_device_mesh(device, (processes,))
        for net in nets.values():
            for block in net.frozen_blocks() if hasattr(net, 'frozen_blocks') else ():
                trained = {parameter for parameter in block.parameters() if parameter.requires_grad}
                fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, ignored_params=trained)

    def wrapped(self, net: nn.Module, accelerator: Any) -> DistributedDataParallel:
        """As accelerate wraps a network for several processes, but that it refuses weights that are split."""
        shared = [name for name, parameter in net.named_parameters() if isinstance(parameter, DTensor)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, shared)
        in_precision = accelerator.prepare_model(net, evaluation_mode=True)
        return DistributedDataParallel(in_precision, **accelerator.ddp_handler.to_kwargs())

    def shared(self, net: nn.Module) -> int:
        """How many parameters of a network are split."""
        return sum(parameter.numel() for parameter in net.parameters() if isinstance(parameter, DTensor))

    @contextmanager
    def whole(self, nets: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, each process has all weights, to restore images by itself.

        All processes enter and leave at once. `state_dict` of a network ends it for that process.
        """
        blocks = [module for net in nets for module in net.modules() if isinstance(module, FSDPModule)]
        for block in blocks:
            block.set_reshard_after_forward(False, recurse=False)
            block.unshard()
        try:
            yield
        finally:
            for block in blocks:
                block.reshard()
                block.set_reshard_after_forward(self.reshard, recurse=False)
