"""What `scripts/benchmark.py sr3-steps` measures: how good and how fast SR3 is with fewer steps and other samplers."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from basicsr.data.loaders import build_dataset
from basicsr.metrics.evaluate import build_metrics, score
from basicsr.models.diffusion_sampling import Sampler
from basicsr.models.restorer import Restorer
from basicsr.models.sr3_model import SR3Model, enlarged
from basicsr.restoring import load_model
from basicsr.utils.registry import OptionError, UserError

SAMPLERS = {'ancestral': 'trailing', 'ddim': 'trailing', 'dpmpp_2m': 'logsnr'}  # with the spacings that suit them
STEPS = (2000, 250, 100, 50, 20, 10)
COLUMNS = ('sampler', 'steps', 'PSNR', 'SSIM', 'LPIPS', 'seconds (CPU)', 'dB to all steps', 'part of its time')


@dataclass(frozen=True)
class Pair:
    """An lq and a gt image, (1, 3, h, w) in [0, 1]."""

    lq: Tensor
    gt: Tensor


def add_parser(commands) -> None:
    """The command of benchmark.py."""
    parser = commands.add_parser('sr3-steps', help='SR3: quality and seconds for numbers of steps and samplers')
    add = parser.add_argument
    add('--opt', required=True, metavar='FILE', help='a test option file of SR3: its network, weights and images')
    add('--weights', metavar='FILE', help='default: those that the option file names')
    add('--steps', type=numbers, default=STEPS, metavar='N,N', help=f'default: {",".join(map(str, STEPS))}')
    add('--samplers', type=names, default=tuple(SAMPLERS), metavar='A,B', help=f'default: {",".join(SAMPLERS)}')
    add('--images', type=int, default=0, metavar='N', help='the first N; 0 (the default) takes all')
    add('--crop', type=int, default=0, metavar='N', help='the middle N x N pixels of each lq; 0 takes all')
    add('--dtype', choices=('auto', 'fp32', 'bf16', 'fp16'), default='fp32')
    add('--threads', type=int, default=0, help="0: torch's choice")
    add('--device', default='auto')
    add('--plot', metavar='FILE', help='draw quality over steps as a PNG picture there')
    add('--json', metavar='FILE', help='write all numbers there')


def steps_report(args: argparse.Namespace, device: str, machine: dict) -> dict:
    """Restore the images with every sampler; prints a Markdown table, row by row."""
    if args.plot:
        _pyplot()  # refused now rather than after an hour
    model = load_model(None, args.opt, args.weights, offline=True)
    if not isinstance(model, SR3Model):
        raise UserError(f'{args.opt} describes a {type(model).__name__}; sr3-steps needs an SR3Model')
    model.to(device)
    pairs = list(_pairs(model, args.images, args.crop))
    metrics, missing = _metrics()
    restorer = Restorer(model, **(model.opt.val.restorer.model_dump() | {'dtype': args.dtype}))
    samplers = _samplers(model, args.samplers, args.steps)
    height, width = pairs[0].lq.shape[-2:]
    print(f'{len(pairs)} images, the first {width}x{height} -> x{model.scale}; on {machine["device"]}, {device}, '
          f'{machine["threads"]} threads, torch {machine["torch"]}, {restorer.dtype}{missing}\n')  # fmt: skip
    print(f'| {" | ".join(COLUMNS)} |\n|{"---|" * len(COLUMNS)}')
    bicubic = _mean([score(metrics, enlarged(pair.lq, model.scale), pair.gt) for pair in pairs])
    report = {'machine': machine, 'options': args.opt, 'images': len(pairs), 'bicubic': bicubic, 'rows': []}
    _print_row('bicubic', '-', bicubic)
    reference = None
    for sampler in samplers:
        model.sampler = sampler
        row = {'sampler': sampler.type, 'steps': sampler.steps, 'spacing': sampler.spacing}
        row |= _measured(restorer, pairs, metrics)
        if reference is None and sampler.type == 'ancestral' and sampler.steps == len(model.sampled):
            reference = row
        _print_row(sampler.type, sampler.steps, row, reference)
        report['rows'].append(row)
    if args.plot:
        plot(report, Path(args.plot))
        print(f'\nplot: {args.plot}')
    return report


def numbers(text: str) -> tuple[int, ...]:
    parts = text.split(',')
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} should be whole numbers such as 100,20')
    return tuple(map(int, parts))


def names(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(','))
    if not set(parts) <= SAMPLERS.keys():
        raise argparse.ArgumentTypeError(f'{text!r} should be some of {",".join(SAMPLERS)}')
    return parts


def plot(report: dict, path: Path) -> None:
    """PSNR and SSIM over steps, a line for each sampler, and bicubic's."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for axis, metric in zip(axes, ('psnr', 'ssim'), strict=True):
        for sampler in dict.fromkeys(row['sampler'] for row in report['rows']):
            rows = [row for row in report['rows'] if row['sampler'] == sampler]
            axis.plot([row['steps'] for row in rows], [row[metric] for row in rows], 'o-', label=sampler)
        axis.axhline(report['bicubic'][metric], color='gray', linestyle='--', label='bicubic')
        axis.set(xscale='log', xlabel='steps', ylabel='PSNR (dB, RGB)' if metric == 'psnr' else 'SSIM (RGB)')
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pairs(model: SR3Model, count: int, crop: int) -> Iterator[Pair]:
    """The pairs of the option file's first data set."""
    if not model.opt.datasets:
        raise OptionError(f'{model.opt.file} names no data set')
    label = sorted(model.opt.datasets)[0]
    dataset, scale = build_dataset(model.opt.datasets[label], label, model.scale), model.scale
    for number in range(min(count or len(dataset), len(dataset))):
        lq, gt = (dataset[number][key][None] for key in ('lq', 'gt'))
        if crop:
            top, left = ((side - crop) // 2 for side in lq.shape[-2:])
            if min(top, left) < 0:
                raise UserError(f'{dataset[number]["lq_path"]} is smaller than the crop of {crop}')
            lq = lq[..., top : top + crop, left : left + crop]
            gt = gt[..., top * scale : (top + crop) * scale, left * scale : (left + crop) * scale]
        yield Pair(lq, gt)


def _samplers(model: SR3Model, kinds: tuple[str, ...], steps: tuple[int, ...]) -> list[Sampler]:
    """Every kind with every number of steps, no more than the chain has."""
    counts = dict.fromkeys(min(count, len(model.sampled)) for count in steps)
    return [Sampler(kind, count, spacing=SAMPLERS[kind]) for kind in kinds for count in counts]


def _metrics() -> tuple[dict, str]:
    """PSNR and SSIM as SR3 is published, LPIPS where its weights are on this machine; and a word if they are not."""
    sections = {label: {'type': label, 'crop_border': 0, 'test_y_channel': False} for label in ('psnr', 'ssim')}
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    here = any(folder.glob('alexnet-*.pth'))
    if here:
        sections['lpips'] = {'type': 'lpips', 'net': 'alex'}
    return build_metrics(sections), '' if here else f'; without LPIPS: the weights of AlexNet are not in {folder}'


def _measured(restorer: Restorer, pairs: list[Pair], metrics: dict) -> dict[str, float]:
    """Mean scores, and seconds for an image."""
    on_cuda, results = restorer.model.device.type == 'cuda', []
    if on_cuda:
        torch.cuda.synchronize()
    started, started_cpu = time.perf_counter(), time.process_time()
    for pair in pairs:
        results.append(restorer(pair.lq.to(restorer.model.device)))
    if on_cuda:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started, time.process_time() - started_cpu
    scores = _mean([score(metrics, sr.cpu(), pair.gt) for sr, pair in zip(results, pairs, strict=True)])
    return scores | {'seconds': elapsed[0] / len(pairs), 'cpu_seconds': elapsed[1] / len(pairs)}


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]}


def _print_row(sampler: str, steps: int | str, row: dict, reference: dict | None = None) -> None:
    seconds = f'{row["seconds"]:.2f} ({row["cpu_seconds"]:.2f})' if 'seconds' in row else '-'
    compared = ['-', '-']
    if reference is not None:
        part = row['cpu_seconds'] / reference['cpu_seconds']
        compared = [f'{row["psnr"] - reference["psnr"]:+.2f}', f'1/{1 / part:.0f}' if part < 1 else '1']
    lpips = f'{row["lpips"]:.4f}' if 'lpips' in row else '-'
    cells = [sampler, str(steps), f'{row["psnr"]:.2f}', f'{row["ssim"]:.4f}', lpips, seconds, *compared]
    print(f'| {" | ".join(cells)} |', flush=True)


def _pyplot():
    try:
        import matplotlib
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install matplotlib') from None
    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot
