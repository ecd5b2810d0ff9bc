"""Speed and peak memory of a registered network, or of the whole restore path, against a second variant; speed of the
degradations and of loading.

    python scripts/benchmark.py network --arch ATD --options '{"upscale": 4}' --size 64x64 --train-step
    python scripts/benchmark.py network --opt options/test/ATD/ATD-demo_x4.yml --dtype bf16 --against plain
    python scripts/benchmark.py restore --opt options/test/ATD/ATD-demo_x4.yml --size 300x400 --tile 96
    python scripts/benchmark.py network --arch SR3UNet --level 0.5 --constant-weights --size 128x128 --against plain
    python scripts/benchmark.py atd
    python scripts/benchmark.py d2c
    python scripts/benchmark.py sr3
    python scripts/benchmark.py iter
    python scripts/benchmark.py s3diff
    python scripts/benchmark.py data
    python scripts/benchmark.py sr3-steps --opt options/test/SR3/SR3-demo_x4.yml --crop 16 --plot docs/sr3_steps.png
    python scripts/benchmark.py iter-steps --opt options/test/ITER/ITER_x4.yml --steps 1,2,4,8,16

Both variants run in turn, on equal weights; medians count. Where other programs run, CPU time is the fairer number.
--against is `calibration` (a fixed workload, to compare machines), `plain` (the same network in fp32 without --compile,
--channels-last and --constant-weights) or FILE.py:CLASS (another implementation, with the same options and parameters).
Peak memory is measured in a fresh process for each, on top of the network and the libraries.

`data` compares degradations, kernels, resizing and SSIM with plain transcriptions of the published forms, and training
from PNG files with LMDBs and packed stores; nothing needs to be downloaded.

`sr3-steps` restores images with every sampler and number of steps, `iter-steps` with every number of steps: PSNR and
SSIM as the system is published, LPIPS where its weights are.
"""

import argparse
import json
import sys
from pathlib import Path

# This folder holds `benchmarking`; the checkout's `basicsr` must win over an installed one; `oracles` are in tests.
sys.path[:1] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tests'))

import torch  # noqa: E402
from benchmarking import Variant, Work, compare, machine, peak  # noqa: E402
from benchmarking_iter import add_steps_parser as add_iter_parser  # noqa: E402
from benchmarking_sr3 import add_parser as add_sr3_parser  # noqa: E402

from basicsr.utils.cli import run  # noqa: E402
from basicsr.utils.options import load_options  # noqa: E402
from basicsr.utils.registry import ARCH_REGISTRY, OptionError, UserError, suggestion  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    args = parse_arguments()
    if args.command == 'peak':
        print(peak(args.spec))
        return 0
    content = {
        'atd': system_report,
        'd2c': system_report,
        'sr3': system_report,
        'iter': system_report,
        's3diff': system_report,
        'data': data_report,
        'sr3-steps': study_report,
        'iter-steps': study_report,
    }.get(args.command, single_report)(args)
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return 0


def study_report(args: argparse.Namespace) -> dict:
    """A model's quality and seconds for numbers of steps, as a Markdown table and a plot."""
    from benchmarking_steps import steps_report

    if args.threads:
        torch.set_num_threads(args.threads)
    device = chosen_device(args.device)
    return steps_report(args.study, args, device, machine(Work('restore', 0, 0, device=device)))


def single_report(args: argparse.Namespace) -> dict:
    """Compare what the command line describes, and print it."""
    network, scale = described_network(args)
    settings = {'dtype': args.dtype, 'compile': args.compile, 'channels_last': args.channels_last}
    weights = args.weights or ''
    if args.command == 'network':
        settings['constant_weights'] = args.constant_weights
    ours = Variant(network['type'], network, weights=weights, **settings)
    if args.against == 'calibration':
        other = Variant('calibration')
    elif args.against == 'plain':
        other = Variant(f'{network["type"]}, plain', network, weights=weights)
    else:
        other = Variant(args.against.rpartition(':')[2], network, args.against, weights, args.against_dtype)
    kind, restorer = ('train' if args.command == 'network' and args.train_step else 'forward'), {}
    if args.command == 'restore':
        restorer = {'tile': args.tile, 'overlap': args.overlap, 'tile_batch': args.tile_batch}
        kind, restorer = 'restore', {**restorer, 'self_ensemble': args.self_ensemble}
    inputs = (args.channels or network.get('in_channel', 3), args.level) if args.command == 'network' else ()
    work = Work(kind, *args.size, args.batch, scale, chosen_device(args.device), args.threads, restorer, *inputs)
    report = compare(ours, other, work, args.repeats, args.memory)
    print('\n'.join(lines_of(report)))
    return report


def described_network(args: argparse.Namespace) -> tuple[dict, int]:
    """The `network_g` section and the scale."""
    if args.opt:
        is_train = 'train' in Path(args.opt).parts
        opt = load_options(args.opt, is_train, ['path:pretrain_network_g=~'], check_files=False)
        return opt.networks['g'], opt.scale
    try:
        network = {'type': args.arch, **json.loads(args.options)}
    except (ValueError, TypeError):
        raise OptionError(f'--options {args.options!r}: should be JSON, such as \'{{"upscale": 2}}\'') from None
    ARCH_REGISTRY.check(network)
    return network, args.scale or network.get('upscale') or network.get('scale') or 1


def lines_of(report: dict) -> list[str]:
    """A report for people."""
    work, machine = report['work'], report['machine']
    shape = 'x'.join(str(work[axis]) for axis in ('batch', 'channels', 'height', 'width'))
    where = f'{machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}'
    lines = [f'{work["kind"]}, {shape}, on {where}, medians of {report["repeats"]}']
    for key in ('ours', 'other'):
        variant = report[key]
        memory = '' if variant['peak_bytes'] is None else f'{variant["peak_bytes"] / 2**20:10.1f} MiB'
        cpu = f'(CPU {variant["cpu_seconds"]:.4f} s)'
        lines.append(f'{variant["title"]:32} {variant["dtype"]:5} {variant["seconds"]:10.4f} s {cpu:18}{memory}')
    ratio = report['ratio']
    memory = f', memory {ratio["peak_bytes"]:.3f}' if ratio.get('peak_bytes') is not None else ''
    lines.append(f'ratio: time {ratio["seconds"]:.3f}, CPU time {ratio["cpu_seconds"]:.3f}{memory}')
    if report['difference']:
        gap = report['difference']
        lines.append(
            f'difference: max {gap["max"]:.2e}, mean {gap["mean"]:.2e}, of values up to {gap["largest_value"]:.3g}'
        )
    return lines


def system_report(args: argparse.Namespace) -> list[dict]:
    """A system's published networks against a plain transcription, as a Markdown table."""
    from benchmarking_systems import system_reports

    return system_reports(args, chosen_device(args.device))


def data_report(args: argparse.Namespace) -> dict:
    """Degradations against plain transcriptions, and loading from different storages, as Markdown tables."""
    from benchmarking_data import compute_reports, rows, use_threads
    from benchmarking_loader import loader_reports

    names = [*dict.fromkeys(name for name, _ in rows(args.quick)), 'loading']
    chosen = [name for name in names if args.only in name]
    if not chosen:
        raise UserError(f'--only {args.only}: no row has such a name; {suggestion(args.only, names)}')
    use_threads(args.threads)
    seen = machine(Work('data', 0, 0))
    print(f'{seen["device"]}, {args.threads} thread{"s"[: args.threads - 1]}, torch {seen["torch"]}\n')
    report = {'machine': seen, 'computing': [], 'loading': []}
    if chosen != ['loading']:
        report['computing'] = compute_reports(args.only, args.quick, args.repeats)
    if 'loading' in chosen:
        print()
        report['loading'] = loader_reports(args.quick, args.repeats)
    return report


def chosen_device(name: str) -> str:
    """'auto' is CUDA if there is any."""
    return name if name != 'auto' else ('cuda' if torch.cuda.is_available() else 'cpu')


def parse_size(text: str) -> tuple[int, int]:
    """'64x48' -> (64, 48), height first."""
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} should be HEIGHTxWIDTH, such as 64x48')
    return int(parts[0]), int(parts[1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    network = commands.add_parser('network', help='a forward pass or a training step of a network')
    network.add_argument('--train-step', action='store_true', help='forward, backward and AdamW, bf16 by autocast')
    network.add_argument('--channels', type=int, help='of the image (default: in_channel of the options, or 3)')
    network.add_argument('--level', type=float, help='what a denoising network is told besides the image')
    network.add_argument('--constant-weights', action='store_true', help='as a sampler calls a denoising network')
    restore = commands.add_parser('restore', help='an image through Restorer, as inference.py does it')
    restore.add_argument('--tile', type=int, default=0)
    restore.add_argument('--overlap', type=int, default=32)
    restore.add_argument('--tile-batch', type=int, default=1)
    restore.add_argument('--self-ensemble', action='store_true')
    for command in (network, restore):
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument('--arch', help='a registered network')
        source.add_argument('--opt', help='an option file, whose network_g is measured')
        command.add_argument('--weights', metavar='FILE', help='a checkpoint; else weights are made from their names')
        command.add_argument('--options', default='{}', help='options of --arch, as JSON')
        command.add_argument('--scale', type=int, help='of --arch, if its options do not say')
        command.add_argument('--size', type=parse_size, default=(64, 64), metavar='HxW', help='of the lq image')
        command.add_argument('--batch', type=int, default=1)
        command.add_argument('--against', default='calibration', metavar='WHAT')
        command.add_argument('--against-dtype', choices=('fp32', 'bf16', 'fp16'), default='fp32')
        command.add_argument('--dtype', choices=('fp32', 'bf16', 'fp16'), default='fp32')
        command.add_argument('--compile', action='store_true')
        command.add_argument('--channels-last', action='store_true')
    systems = [commands.add_parser(name, help=f'{title} against its plain transcription: a table of the README')
               for name, title in (('atd', 'ATD'), ('d2c', 'D2C-SR'), ('sr3', 'SR3'), ('iter', 'ITER'),
                                   ('s3diff', 'S3Diff'))]  # fmt: skip
    for command in systems:
        command.add_argument('--shrink', action='store_true', help='tiny networks and images, to try it out')
        command.add_argument('--only', default='', metavar='TEXT', help='rows that contain it, such as bf16 or decode')
        command.add_argument('--side', type=int, metavar='PIXELS', help='of the lq images, instead of the usual sizes')
    for command in (network, restore, *systems):
        command.add_argument('--repeats', type=int, default=5)
        command.add_argument('--threads', type=int, default=0, help="0: torch's choice")
        command.add_argument('--device', default='auto')
        command.add_argument('--memory', action=argparse.BooleanOptionalAction, default=True)
        command.add_argument('--json', metavar='FILE', help='write all numbers there')
    data = commands.add_parser('data', help='degradations and loading: the tables of docs/data.md')
    data.add_argument(
        '--only', default='', metavar='NAME', help='rows whose name contains it, such as bsrgan; or loading'
    )
    data.add_argument('--quick', action='store_true', help='tiny images and few repeats, to try it out')
    data.add_argument('--repeats', type=int, default=9)
    data.add_argument('--threads', type=int, default=1, help='of torch and OpenCV (default: 1)')
    data.add_argument('--json', metavar='FILE', help='write all numbers there')
    add_sr3_parser(commands)
    add_iter_parser(commands)
    hidden = commands.add_parser('peak', help='what the others start: one figure of memory')
    hidden.add_argument('spec')
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
