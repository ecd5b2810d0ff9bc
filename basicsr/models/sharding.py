"""Frozen weights shared out: each process keeps a part of them and fetches the rest of a block while it works.

What is trained stays whole on each process, so that optimizers, gradients and checkpoints are as they always are. The
work is PyTorch's fully_shard (FSDP2); what is asked of it comes from accelerate's configuration.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from basicsr.utils.registry import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharding:
    """How to share out frozen weights.

    Args:
        reshard: whether a block's weights go when it has worked, and are fetched again for its gradients. Otherwise
            they go after those: less to send, more to keep.
    """

    reshard: bool = True

    def apply(self, nets: Mapping[str, nn.Module], device: str, processes: int) -> None:
        """Share out what is frozen in the `frozen_blocks` of networks, which move to the device block by block.

        Raises UserError where no network has any.
        """
        split = {label: net.frozen_blocks() for label, net in nets.items() if hasattr(net, 'frozen_blocks')}
        if not split:
            named = ', '.join(f'network_{label} ({type(net).__name__})' for label, net in nets.items())
            raise UserError(
                "accelerate is configured for FSDP, which splits S3Diff's frozen weights here and can split nothing of "
                f'{named}: accelerate launch --config_file options/accelerate/one_node.yaml'
            )
        mesh = init_device_mesh(device, (processes,))
        for label, blocks in split.items():
            for block in blocks:
                trained = {parameter for parameter in block.parameters() if parameter.requires_grad}
                fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard, ignored_params=trained)
            shared = {name: p.numel() for name, p in nets[label].named_parameters() if isinstance(p, DTensor)}
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(nets[label], [*shared])
            logger.info(
                'FSDP: of network_%s %s frozen parameters are split among %d processes',
                label, f'{sum(shared.values()):,}', processes,
            )  # fmt: skip

    @contextmanager
    def whole(self, nets: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, each process has all weights, to restore images by itself; all of them enter and leave at once."""
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
