"""How train.py and test.py start and end: processes, device, precision, gradient accumulation, trackers."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration

from basicsr import __version__
from basicsr.utils.messages import start_logging
from basicsr.utils.options import Options
from basicsr.utils.registry import OptionError, UserError

SPLITTING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


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
    if accelerator.distributed_type in SPLITTING:
        kind = accelerator.distributed_type.value
        raise UserError(
            f'accelerate is configured for {kind}, which splits networks; a network is whole on each device here'
        )
    return accelerator


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
