"""train.py --dry-run: what a run would cost, after checking everything that it would need; nothing is written."""

from __future__ import annotations

import copy
import datetime
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from basicsr.data.loaders import CountedBatches, build_dataset, build_degradation, build_train_loader, check_datasets
from basicsr.models import build_model
from basicsr.models.optimizer_step import optimizer_step
from basicsr.utils.experiment import free_bytes
from basicsr.utils.options import Options
from basicsr.utils.seeding import derived_seed, seed_all

if TYPE_CHECKING:
    from basicsr.models.sharding import Sharding


def dry_run(opt: Options, accelerator, sharding: Sharding | None = None) -> int:
    """Check data sets, build everything, run one step to warm up and one to measure; print a summary."""
    check_datasets((build_dataset(options, label, opt.scale) for label, options in opt.datasets.items()), thorough=True)
    loader, dataset = build_train_loader(opt, accelerator.process_index, accelerator.num_processes)
    seed_all(derived_seed(opt.manual_seed))
    model = build_model(opt)
    shapes = without_data(model)  # before weights are split
    model.prepare(accelerator, sharding)
    degrade = build_degradation(opt, accelerator.device, accelerator.num_processes)
    batches = CountedBatches(loader, accelerator.device, degrade=degrade)
    optimizer_step(model, batches, 1)
    started = time.perf_counter()
    losses = {name: float(loss.mean()) for name, loss in optimizer_step(model, batches, 2).items()}
    seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        lq = next(batches)['lq']
        operations = flops(shapes, lq[:1])
        print('\n'.join(_summary(opt, model, losses, seconds, len(dataset), lq, operations)))
    return 0


def _summary(
    opt: Options, model, losses: dict[str, float], seconds: float, items: int, lq: torch.Tensor, operations: int
) -> list[str]:
    duration = datetime.timedelta(seconds=int(seconds * opt.train.total_iter))
    every, keep = opt.logger.save_checkpoint_freq, opt.logger.keep_last
    count = min(-(-opt.train.total_iter // every), keep or opt.train.total_iter) if every else 0
    disk = count * _checkpoint_bytes(model)
    networks = [
        f'network_{label:<7} {type(model.bare(label)).__name__}, '
        f'{sum(p.numel() for p in model.bare(label).parameters()):,} parameters'
        for label in model.nets
    ]
    return [
        f'data            {items} training items; every file of every data set was decoded without fault',
        *networks,
        f'FLOPs           {operations / 1e9:,.2f} G for one lq of {lq.shape[-1]}x{lq.shape[-2]} (forward)',
        f'peak memory     {_peak_memory(lq.device) / 2**30:.2f} GiB for a batch of {len(lq)}',
        f'speed           {1 / seconds:.3f} iterations per second, {seconds:.3f} s each',
        f'time            {duration} for {opt.train.total_iter} iterations, validation not counted',
        f'disk            {disk / 2**30:.2f} GiB for {count} checkpoints; free: '
        f'{free_bytes(Path(opt.path.experiments_root)) / 2**30:.2f} GiB',
        'losses          ' + ', '.join(f'{name} {value:.4e}' for name, value in losses.items()),
    ]


def without_data(model):
    """The model with copies of its networks that have shapes and no data."""
    shapes = copy.copy(model)
    shapes.nets = {label: _on_meta(model.bare(label)) for label in model.nets}
    shapes.averages, shapes.accelerator, shapes.device = {}, None, torch.device('meta')
    return shapes


def _on_meta(net: nn.Module) -> nn.Module:
    shapes = {id(one): nn.Parameter(one.detach().to('meta'), one.requires_grad) for one in net.parameters()}
    return copy.deepcopy(net, shapes | {id(one): one.to('meta') for one in net.buffers()})


def flops(model, lq: torch.Tensor) -> int:
    """Multiplications and additions of restoring one image, as torch counts them.

    Counted without data: on a CPU the counter does not see into fused attention.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        without_data(model).restore(lq.to('meta'))
    return counter.get_total_flops()


def _checkpoint_bytes(model) -> int:
    networks = sum(
        v.numel() * v.element_size()
        for content in model.networks().values()
        for state in content.values()
        for v in state.values()
    )
    trained = (p for net in model.trained for p in net.parameters() if p.requires_grad)
    moments = 2 * sum(p.numel() * p.element_size() for p in trained)
    return networks + moments


def _peak_memory(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
