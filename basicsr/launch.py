"""How train.py and test.py start and end: processes, device, precision, gradient accumulation, trackers."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration

from basicsr import __version__
from basicsr.utils.messages import LOGGER, start_logging
from basicsr.utils.options import Options
from basicsr.utils.registry import ARCH_REGISTRY, OptionError, UserError

if TYPE_CHECKING:
    from basicsr.models.sharding import Sharding

SWITCH = 'ACCELERATE_USE_FSDP'  # by which `accelerate launch` tells its processes of `distributed_type: FSDP`
WANTED = (  # of the variables beside it: the values that each may have, and what to do
    ('FSDP_VERSION', ('2',), 'fsdp_version: 2 is what splits weights here'),
    ('FSDP_RESHARD_AFTER_FORWARD', ('true', 'false', 'full_shard'), 'fsdp_reshard_after_forward is true or false'),
    ('FSDP_OFFLOAD_PARAMS', ('false',), 'weights stay on the devices: fsdp_offload_params: false'),
    ('FSDP_ACTIVATION_CHECKPOINTING', ('false',), 'model:gradient_checkpointing=true of the option file does that'),
)
UNKNOWN = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def start_terminal() -> None:
    """Log to the terminal, from the first process only, before accelerate knows the processes."""
    start_logging(is_main=os.environ.get('RANK', '0') == '0')


@contextmanager
def launched(opt: Options) -> Iterator[Accelerator]:
    """The accelerator of a run; afterwards trackers and process group are closed, whatever happened."""
    accelerator = build_accelerator(opt)
    start_logging(accelerator.is_main_process)
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def build_accelerator(opt: Options) -> Accelerator:
    """accelerate's launcher, precision and gradient accumulation; learning rates and saving stay ours."""
    steps, precision = (opt.train.gradient_accumulation_steps, opt.train.mixed_precision) if opt.train else (1, 'no')
    os.environ.pop(SWITCH, None)  # else accelerate would split what is trained, and transformers leave weights out
    parallel = DistributedDataParallelKwargs(find_unused_parameters=opt.find_unused_parameters)
    try:
        accelerator = Accelerator(
            cpu=opt.device == 'cpu' or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            mixed_precision=precision,
            kwargs_handlers=[parallel],
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False),
            project_config=ProjectConfiguration(logging_dir='tb_logger'),
        )
    except ValueError as error:
        raise OptionError(f'train:mixed_precision: {error}', ('train', 'mixed_precision')) from None
    if accelerator.distributed_type in UNKNOWN:
        kind = accelerator.distributed_type.value
        raise UserError(
            f'accelerate is configured for {kind}, which is not supported; S3Diff can split frozen weights by FSDP: '
            'accelerate launch --config_file options/accelerate/one_node_fsdp.yaml'
        )
    return accelerator


def asked_sharding(opt: Options) -> Sharding | None:
    """How accelerate's configuration wants frozen weights split; None: they are whole. Before `launched`.

    Raises UserError for what there is not here.
    """
    if os.environ.get(SWITCH, 'false').lower() != 'true':
        return None
    for name, values, instead in WANTED:
        given = os.environ.get(name, values[0])
        if given.lower() not in values:
            raise UserError(f'accelerate is configured with {name.lower()}: {given}; {instead}')
    kinds = {label: section['type'] for label, section in opt.networks.items()}
    if not any(hasattr(ARCH_REGISTRY.get(kind), 'frozen_blocks') for kind in kinds.values()):
        named = ', '.join(f'network_{label} ({kind})' for label, kind in kinds.items())
        raise UserError(
            "accelerate is configured for FSDP, which splits S3Diff's frozen weights here and can split nothing of "
            f'{named}: accelerate launch --config_file options/accelerate/one_node.yaml'
        )
    for option in ('compile', 'channels_last'):
        if getattr(opt.train, option):
            raise OptionError(f'train:{option}: not with weights that FSDP splits', ('train', option))
    if int(os.environ.get('WORLD_SIZE', '1')) < 2:
        LOGGER.warning('accelerate is configured for FSDP: on one process there is nothing to split')
        return None
    from basicsr.models.sharding import Sharding  # takes a second, and few ask for it

    return Sharding(reshard=os.environ.get('FSDP_RESHARD_AFTER_FORWARD', 'true').lower() != 'false')


def environment(accelerator: Accelerator) -> str:
    """What the numbers of a run depend on besides its options: versions, and the devices with their name."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    versions = f'basicsr {__version__}, Python {platform.python_version()}, torch {torch.__version__}'
    return f'{versions}, numpy {np.__version__}; {device.type} x {accelerator.num_processes} ({name})'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def start_trackers(opt: Options, accelerator: Accelerator) -> None:
    """tensorboard under tb_logger/NAME and wandb under its project, as the option file asks."""
    trackers, wandb = [], opt.logger.wandb
    wanted = [('tensorboard', opt.name, {})] if opt.logger.use_tb_logger else []
    if wandb.project:
        wanted.append(('wandb', wandb.project, {'name': opt.name, 'id': wandb.resume_id, 'resume': 'allow'}))
    for kind, project, settings in wanted:
        accelerator.log_with = [kind]
        try:
            accelerator.init_trackers(project, init_kwargs={kind: settings})
        except ImportError:
            raise UserError(f'logger: {kind} is not installed; pip install {kind}') from None
        trackers += accelerator.trackers
    accelerator.trackers = trackers
