"""train.py --dry-run: what a run would cost, after checking everything that it would need; nothing is written."""

import datetime
import resource
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from basicsr.data.loaders import build_eval_loaders, build_train_loader, check_dataset, fetched
from basicsr.models import build_model
from basicsr.utils.experiment import free_bytes
from basicsr.utils.options import Options
from basicsr.utils.seeding import derived_seed, seed_all


def dry_run(opt: Options, accelerator) -> int:
    """Check data sets, build everything, run one step to warm up and one to measure; print a summary."""
    loader, dataset = build_train_loader(opt, accelerator.process_index, accelerator.num_processes)
    check_dataset(dataset, thorough=True)
    for share in build_eval_loaders(opt, 0, 1).values():
        check_dataset(share.dataset.dataset, thorough=True)
    seed_all(derived_seed(opt.manual_seed))
    model = build_model(opt).prepare(accelerator)
    batches, device = iter(loader), accelerator.device
    for iteration in (1, 2):
        batch = fetched(batches)
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        started = time.perf_counter()
        with accelerator.accumulate(*model.trained):
            model.before_step(iteration)
            losses = model.training_step(batch)
        numbers = {key: float(value.detach().mean()) for key, value in losses.items()}
        seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        _report(opt, model, batch, numbers, seconds, len(dataset))
    return 0


def _report(opt: Options, model, batch: dict, losses: dict[str, float], seconds: float, items: int) -> None:
    steps = opt.train.gradient_accumulation_steps
    duration = datetime.timedelta(seconds=int(seconds * steps * opt.train.total_iter))
    every, keep = opt.logger.save_checkpoint_freq, opt.logger.keep_last
    count = min(-(-opt.train.total_iter // every), keep or opt.train.total_iter) if every else 0
    disk = count * _checkpoint_bytes(model)
    lines = [f'data            {items} training pairs, every file decoded without fault']
    for label in model.nets:
        net = model.bare(label)
        lines.append(f'network_{label:<7} {type(net).__name__}, {sum(p.numel() for p in net.parameters()):,} parameters')
    lq = batch['lq'][:1]
    lines += [
        f'FLOPs           {_flops(model, lq) / 1e9:,.2f} G for one lq of {lq.shape[-1]}x{lq.shape[-2]} (forward)',
        f'peak memory     {_peak_memory(lq.device) / 2**30:.2f} GiB for a batch of {len(batch["lq"])}',
        f'speed           {1 / (seconds * steps):.3f} iterations per second, {seconds * steps:.3f} s each',
        f'time            {duration} for {opt.train.total_iter} iterations, validation not counted',
        f'disk            {disk / 2**30:.2f} GiB for {count} checkpoints; free: '
        f'{free_bytes(Path(opt.path.experiments_root)) / 2**30:.2f} GiB',
        'losses          ' + ', '.join(f'{key} {value:.4e}' for key, value in losses.items()),
    ]
    print('\n'.join(lines))


def _flops(model, lq: torch.Tensor) -> int:
    """Multiplications and additions of restoring one image, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.restore(lq)
    return counter.get_total_flops()


def _checkpoint_bytes(model) -> int:
    networks = sum(v.numel() * v.element_size() for content in model.networks().values()
                   for state in content.values() for v in state.values())
    moments = 2 * sum(p.numel() * p.element_size() for net in model.trained for p in net.parameters())
    return networks + moments


def _peak_memory(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
