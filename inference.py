"""Restore pictures: a file, a folder or a glob in, the super-resolved pictures out.

python inference.py -i testset/lq_x4 --gt testset/gt
python inference.py -i photo.jpg 'scans/*.tif' -o restored -m ATD-demo_x2
python inference.py model.safetensors photo.jpg
accelerate launch inference.py -i folder --opt options/test/ATD/ATD-demo_x4.yml --weights net_g_latest.pth
"""

import os
import sys
from pathlib import Path

# Another package called basicsr is often installed; the one beside this file is meant.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import argparse

import torch

from basicsr.hub import PREFIX
from basicsr.models.restorer import DTYPES, SMALLEST_TILE, Restorer
from basicsr.restoring import (
    INTERMEDIATE,
    PROCESS,
    UNCERTAINTY,
    WHITE_SPREAD,
    Outcome,
    check_map_files,
    check_maps,
    load_model,
    restore_pictures,
    score_table,
)
from basicsr.utils.cli import run
from basicsr.utils.color_fix import FIXES
from basicsr.utils.image import MAX_PIXELS
from basicsr.utils.messages import LOGGER, start_logging
from basicsr.utils.picture_files import (
    EXISTING,
    check_folder,
    find_partners,
    find_pictures,
    plan_outputs,
    prepare_folder,
)
from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import ACCEPTED
from basicsr.utils.zoo import known_models

DEFAULT_MODEL = 'ATD-demo_x4'


def main() -> int:
    args = parse_arguments()
    is_main = os.environ.get('RANK', '0') == '0'
    start_logging(is_main)
    if args.list:
        print(model_list())
        return 0
    name = args.model or (None if args.opt or args.weights else DEFAULT_MODEL)
    if args.offline:
        os.environ['BASICSR_OFFLINE'] = '1'
    if args.accept_license:
        os.environ[ACCEPTED] = '1'
    called = name.removeprefix(PREFIX) if name else Path(args.opt or args.weights).stem
    folder = Path(args.output or Path('results/inference') / called)
    sources = find_pictures(args.input)
    jobs = plan_outputs(sources, folder, args.suffix, args.ext, args.existing)
    maps = args.maps or ()
    check_map_files(jobs, maps)
    check_folder(folder)
    gt = find_partners([job.source for job in jobs], Path(args.gt)) if args.gt else {}
    state = process_state(args.device)
    try:
        rank, world = (state.process_index, state.num_processes) if state else (0, 1)
        device = state.device if state else chosen_device(args.device)
        model = load_model(name, args.opt, args.weights, args.offline, args.force_yml).to(device)
        prepare_folder(folder)  # not before: a misspelt model leaves no folder of its name behind
        if maps:
            check_maps(model, maps)
        if 0 < args.tile < SMALLEST_TILE:
            LOGGER.warning('--tile %d: so small tiles take very long and see little; 64 or more is usual', args.tile)
        settings = {'tile': args.tile, 'overlap': args.overlap, 'tile_batch': args.tile_batch}
        settings |= {'self_ensemble': args.self_ensemble, 'maps': bool(maps)}
        settings |= {'color_fix': args.color_fix, 'color_strength': args.color_strength}
        restorer = Restorer(model, **settings, dtype=args.dtype)
        LOGGER.info(
            '%s (x%d) on %s%s in %s: %s -> %s',
            name or args.opt or args.weights,
            model.scale,
            device,
            f' x {world}' if world > 1 else '',
            restorer.dtype,
            counted(len(jobs)),
            folder,
        )
        outcomes = restore_pictures(restorer, jobs[rank::world], gt, args.max_pixels, is_main, args.outscale)
        if state:
            from accelerate.utils import gather_object

            outcomes = sorted(gather_object(outcomes), key=lambda outcome: jobs.index(outcome.job))
    finally:
        if state:
            state.destroy_process_group()
    return report(outcomes, len(jobs), folder) if is_main else 0


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('files', nargs='*', metavar='FILE', help='pictures, as -i; a first one MODEL.safetensors is the model')
    add('-i', '--input', nargs='+', action='extend', default=[], metavar='PATH', help='files, folders or globs')
    add('-o', '--output', metavar='FOLDER', help='default: results/inference/MODEL')
    add('-m', '--model', metavar='NAME', help=f'one that --list shows, or hf:OWNER/NAME; default: {DEFAULT_MODEL}')
    add('--opt', metavar='FILE', help='an option file that describes the model, in place of -m')
    add(
        '--weights',
        metavar='FILE|URL',
        help='with --opt: its weights; default: those that the option file names. Without: a model file that describes'
        ' itself (scripts/export_model.py writes them)',
    )
    add(
        '--force_yml',
        nargs='+',
        action='extend',
        default=[],
        metavar='A:B=VALUE',
        help='replace values of the option file, also of a model with a name: model:refinement:T=4 model:seed=1',
    )
    add('--list', action='store_true', help='show the models that have names')
    add('--device', default='auto', help='auto (cuda, else mps, else cpu), or a device of torch such as cuda:1')
    add('--dtype', default='auto', choices=('auto', *DTYPES), help='auto: bf16 on a GPU that has it, else fp32')
    add(
        '--tile',
        type=int,
        default=0,
        metavar='N',
        help='largest side, in input pixels, restored at once; 0 (the'
        ' default) takes the whole picture. Tiles need less memory; for ATD, which compares all parts of a picture with'
        ' each other, they are an approximation',
    )
    add('--overlap', type=int, default=32, metavar='N', help='pixels that tiles share and blend (32)')
    add('--tile-batch', type=int, default=1, metavar='N', help='tiles restored at once (1)')
    add('--self-ensemble', action='store_true', help='mean over eight flips and turns: a little better, 8x the work')
    add(
        '--color-fix',
        default='none',
        choices=FIXES,
        help='give the results the colours of the inputs, where a model shifts them: the coarse ones (wavelet), or mean'
        ' and contrast of each channel (adain); S3Diff has a fix of its own, model:color_fix, before this one',
    )
    add('--color-strength', type=float, default=1, metavar='S', help='of the colour fix, from 0 to 1 (1)')
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        '--save-uncertainty',
        dest='maps',
        action='store_const',
        const=UNCERTAINTY,
        help='models with several predictions (D2C-SR): also write NAME_uncertainty.png, the standard deviation of the'
        f' predictions, mean of the colours (black 0, white {WHITE_SPREAD:g} or more, where the picture has 0 to 1),'
        ' and NAME_weights.png, how much each of the four counts (black 0, white 1; branches 11, 12 above 21, 22)',
    )
    shown.add_argument(
        '--save-process',
        dest='maps',
        action='store_const',
        const=PROCESS,
        help='models that restore step by step (SR3): also write NAME_process.png, the enlarged input and about ten'
        ' states on the way to the result, row by row',
    )
    shown.add_argument(
        '--save-intermediate',
        dest='maps',
        action='store_const',
        const=INTERMEDIATE,
        help='models that refine tokens (ITER): also write NAME_intermediate.png, the picture after each step, above'
        ' what was kept for the step (white)',
    )
    add(
        '--outscale',
        type=enlargement,
        metavar='S',
        help='how much larger the results are, such as 2.5: resized (bicubic) from what the model gives',
    )
    add('--gt', metavar='FOLDER', help='ground truth of the same names: print PSNR and SSIM next to those of bicubic')
    add('--ext', default='auto', type=extension, help='format of the results (png, jpg, tif, ...); auto: as the input')
    add('--suffix', default='', help='added to the names of the results')
    add('--existing', default='overwrite', choices=EXISTING, help='what to do about results that are there (overwrite)')
    add('--max-pixels', type=int, default=MAX_PIXELS, metavar='N', help=f'refuse larger inputs ({MAX_PIXELS})')
    add('--offline', action='store_true', help='download nothing')
    add(
        '--accept-license',
        action='store_true',
        help='accept the licence of other models that this one builds on (S3Diff: SD-Turbo), which is shown before they'
        ' are downloaded; without, a terminal is asked',
    )
    args = parser.parse_args()
    if args.files and args.files[0].endswith('.safetensors'):
        if args.weights or args.model:
            parser.error(f'{args.files[0]} is a model, and another one is named too')
        args.weights = args.files.pop(0)
    args.input += args.files
    if not args.list and not args.input:
        parser.error('name at least one picture, folder or glob with -i')
    if args.model and (args.opt or args.weights):
        parser.error('-m excludes --opt and --weights')
    if args.outscale and args.gt:
        parser.error("--gt compares with pictures of the model's own scale: it excludes --outscale")
    return args


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f'Error: {message} (--help explains)\n')


def extension(text: str) -> str:
    text = text.lower()
    return text if text == 'auto' or text.startswith('.') else f'.{text}'


def enlargement(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 64:
        raise argparse.ArgumentTypeError(f'is a number, more than 0 and at most 64, got {text}')
    return value


def process_state(device: str):
    """accelerate's view of the processes that `accelerate launch` or torchrun started; None for one process."""
    if int(os.environ.get('WORLD_SIZE', '1')) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=chosen_device(device).type == 'cpu')


def chosen_device(name: str) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {name}: {str(error).splitlines()[0]}') from None


def model_list() -> str:
    rows = [(m.name, m.state(), m.licence, m.note, m.page or m.source) for m in known_models().values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def counted(pictures: int) -> str:
    return f'{pictures} picture{"" if pictures == 1 else "s"}'


def report(outcomes: list[Outcome], planned: int, folder: Path) -> int:
    """Print the scores and how many pictures were restored; the exit status."""
    table = score_table(outcomes)
    if table:
        print(table)
    done = sum(not outcome.error for outcome in outcomes)
    print(f'{done} of {counted(planned)} restored in {folder}')
    return int(done < planned)


if __name__ == '__main__':
    run(main)
