"""How good and how fast a model that restores in steps is with fewer of them: what sr3-steps and iter-steps share."""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from basicsr.data.loaders import build_dataset
from basicsr.metrics.evaluate import build_metrics, score
from basicsr.models.base_model import BaseModel
from basicsr.models.restorer import Restorer
from basicsr.models.sr3_model import enlarged
from basicsr.restoring import load_model
from basicsr.utils.registry import OptionError, UserError


@dataclass(frozen=True)
class Pair:
    """An lq and a gt image, (1, 3, h, w) in [0, 1]."""

    lq: Tensor
    gt: Tensor


@dataclass(frozen=True)
class Study:
    """What differs between the models.

    Args:
        columns: titles of the table's first columns, whose cells are the row's values of `keys`.
        line: key by which the plot's lines differ; '' for a single line.
        compared_with: title of what `is_reference` recognises, the row to compare the others with.
        metric: options of PSNR and SSIM, as the model's are published; `space` says them in a word.
        rows: (model, command line, images, measure) -> a row for each setting; `measure` restores the images, so many,
            with the model as it is and gives the scores and seconds.
    """

    command: str
    model_type: type[BaseModel]
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    line: str
    compared_with: str
    is_reference: Callable[[BaseModel, dict], bool]
    metric: dict
    space: str
    rows: Callable[[BaseModel, argparse.Namespace, int, Callable[[], dict]], Iterator[dict]]


def add_arguments(parser: argparse.ArgumentParser, study: Study, system: str, steps: tuple[int, ...]) -> None:
    """The options of both commands."""
    parser.set_defaults(study=study)
    add = parser.add_argument
    add('--opt', required=True, metavar='FILE', help=f'a test option file of {system}: its network, weights and images')
    add('--weights', metavar='FILE', help='default: those that the option file names')
    add('--steps', type=numbers, default=steps, metavar='N,N', help=f'default: {",".join(map(str, steps))}')
    add('--images', type=int, default=0, metavar='N', help='the first N; 0 (the default) takes all')
    add('--crop', type=int, default=0, metavar='N', help='the middle N x N pixels of each lq; 0 takes all')
    add('--dtype', choices=('auto', 'fp32', 'bf16', 'fp16'), default='fp32')
    add('--threads', type=int, default=0, help="0: torch's choice")
    add('--device', default='auto')
    add('--plot', metavar='FILE', help='draw quality over steps as a PNG picture there')
    add('--json', metavar='FILE', help='write all numbers there')


def steps_report(study: Study, args: argparse.Namespace, device: str, machine: dict) -> dict:
    """Restore the images with every setting; prints a Markdown table, row by row."""
    if args.plot:
        _pyplot()  # refused now rather than after an hour
    model = load_model(None, args.opt, args.weights, offline=True)
    if not isinstance(model, study.model_type):
        wanted = study.model_type.__name__
        raise UserError(f'{args.opt} describes a {type(model).__name__}; {study.command} needs an {wanted}')
    model.to(device)
    pairs = list(_pairs(model, args.images, args.crop))
    metrics, missing = _metrics(study.metric)
    restorer = Restorer(model, **(model.opt.val.restorer.model_dump() | {'dtype': args.dtype}))
    height, width = pairs[0].lq.shape[-2:]
    print(f'{len(pairs)} images, the first {width}x{height} -> x{model.scale}; on {machine["device"]}, {device}, '
          f'{machine["threads"]} threads, torch {machine["torch"]}, {restorer.dtype}{missing}\n')  # fmt: skip
    measured = 'PSNR', 'SSIM', 'LPIPS', 'seconds (CPU)'
    columns = (*study.columns, *measured, f'dB to {study.compared_with}', 'part of its time')
    print(f'| {" | ".join(columns)} |\n|{"---|" * len(columns)}')
    bicubic = _mean([score(metrics, enlarged(pair.lq, model.scale), pair.gt) for pair in pairs])
    report = {'machine': machine, 'options': args.opt, 'images': len(pairs), 'bicubic': bicubic, 'rows': []}
    _print_row(['bicubic', *['-'] * (len(study.columns) - 1)], bicubic)
    reference = None
    for row in study.rows(model, args, len(pairs), lambda: _measured(restorer, pairs, metrics)):
        if reference is None and study.is_reference(model, row):
            reference = row
        _print_row([_shown(row[key]) for key in study.keys], row, reference)
        report['rows'].append(row)
    if args.plot:
        plot(study, report, Path(args.plot))
        print(f'\nplot: {args.plot}')
    return report


def numbers(text: str) -> tuple[int, ...]:
    parts = text.split(',')
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} should be whole numbers such as 100,20')
    return tuple(map(int, parts))


def plot(study: Study, report: dict, path: Path) -> None:
    """PSNR, SSIM and, where it was measured, LPIPS over steps, and bicubic's."""
    pyplot = _pyplot()
    titles = {'psnr': f'PSNR (dB, {study.space})', 'ssim': f'SSIM ({study.space})', 'lpips': 'LPIPS (lower is better)'}
    metrics = [metric for metric in titles if metric in report['bicubic']]
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(5 * len(metrics), 4), layout='constrained')
    for axis, metric in zip(axes, metrics, strict=True):
        for line in dict.fromkeys(row.get(study.line, '') for row in report['rows']):
            rows = [row for row in report['rows'] if row.get(study.line, '') == line]
            label = line or study.model_type.__name__.removesuffix('Model')
            axis.plot([row['steps'] for row in rows], [row[metric] for row in rows], 'o-', label=label)
        axis.axhline(report['bicubic'][metric], color='gray', linestyle='--', label='bicubic')
        axis.set(xscale='log', xlabel='steps', ylabel=titles[metric])
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pairs(model: BaseModel, count: int, crop: int) -> Iterator[Pair]:
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


def _metrics(options: dict) -> tuple[dict, str]:
    """PSNR and SSIM, LPIPS where its weights are on this machine; and a word if they are not."""
    sections = {label: {'type': label, **options} for label in ('psnr', 'ssim')}
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


def _shown(value: str | int | float) -> str:
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def _print_row(cells: list[str], row: dict, reference: dict | None = None) -> None:
    seconds = f'{row["seconds"]:.2f} ({row["cpu_seconds"]:.2f})' if 'seconds' in row else '-'
    compared = ['-', '-']
    if reference is not None:
        part = row['cpu_seconds'] / reference['cpu_seconds']
        compared = [f'{row["psnr"] - reference["psnr"]:+.2f}', f'1/{1 / part:.0f}' if part < 1 else '1']
    lpips = f'{row["lpips"]:.4f}' if 'lpips' in row else '-'
    cells = [*cells, f'{row["psnr"]:.2f}', f'{row["ssim"]:.4f}', lpips, seconds, *compared]
    print(f'| {" | ".join(cells)} |', flush=True)


def _pyplot():
    try:
        import matplotlib
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install matplotlib') from None
    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot
