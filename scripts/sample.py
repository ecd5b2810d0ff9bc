"""Makes images from noise alone with an unconditional SR3 or DDPM network.

    python scripts/sample.py --opt options/test/SR3/sample_sr3_128.yml --count 16 --output results/faces
    python scripts/sample.py --opt ... --weights net_g_latest.pth --sampler ddim --steps 50 --eta 1 --save-process

Each image follows from its number, the seed, alone: SEED.png is the same in whatever batch and call. grid.png shows all
of them. The sampler is that of the option file unless it is given here.
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import torch
from tqdm import tqdm

from basicsr.models.diffusion_sampling import Sampler
from basicsr.models.restorer import DTYPES, automatic_dtype
from basicsr.models.sr3_model import SR3Model, checked_sampler
from basicsr.restoring import load_model
from basicsr.utils.cli import run
from basicsr.utils.grid import image_grid
from basicsr.utils.image import to_uint8, write_image
from basicsr.utils.messages import start_logging
from basicsr.utils.registry import UserError


def main() -> int:
    args = parse_arguments()
    start_logging(is_main=True)
    model = load_model(None, args.opt, args.weights, args.offline)
    if not isinstance(model, SR3Model):
        raise UserError(f'{args.opt} describes a {type(model).__name__}, which makes no images from noise')
    model.to(chosen_device(args.device)).sampler = chosen_sampler(model.sampler, args)
    seed, output = model.seed if args.seed is None else args.seed, Path(args.output or f'results/{model.opt.name}')
    dtype = automatic_dtype(model.device) if args.dtype == 'auto' else args.dtype
    images = []
    calls = len(model.sampler.steps_of(model.sampled, model.continuous).alphas)
    with tqdm(total=-(-args.count // args.batch) * calls, unit='step') as bar:
        for first in range(seed, seed + args.count, args.batch):
            count = min(args.batch, seed + args.count - first)
            with torch.autocast(model.device.type, DTYPES[dtype], enabled=dtype != 'fp32'):
                frames = model.sample(count, first, args.size, snapshots=True, progress=lambda *_: bar.update())
            images.append(frames[-1])
            for number in range(count):
                name = f'{first + number:05d}'
                write_image(output / f'{name}.png', to_uint8(frames[-1, number]))
                if args.save_process:
                    write_image(output / f'{name}_process.png', to_uint8(image_grid(frames[:, number])))
    if args.count > 1:
        write_image(output / 'grid.png', to_uint8(image_grid(torch.cat(images))))
    print(f'{args.count} images in {output}')
    return 0


def chosen_sampler(configured: Sampler, args: argparse.Namespace) -> Sampler:
    """The option file's, with what the command line says; another type begins with that type's defaults."""
    given = {name: getattr(args, name) for name in ('steps', 'eta', 'spacing') if getattr(args, name) is not None}
    section = asdict(configured) if args.sampler in (None, configured.type) else {'type': args.sampler}
    return Sampler(**checked_sampler(section | given))


def chosen_device(name: str) -> torch.device:
    name = name if name != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {name}: {str(error).splitlines()[0]}') from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--opt', required=True, metavar='FILE', help='the option file that describes the network')
    add('--weights', metavar='FILE|URL', help='default: those that the option file names')
    add('--output', '-o', metavar='FOLDER', help='default: results/NAME')
    add('--count', '-n', type=at_least(1), default=16, help='images (16)')
    add('--seed', type=at_least(0), help="number of the first image; default: the option file's")
    add('--batch', type=at_least(1), default=16, help='images made at once (16)')
    add('--size', type=parse_size, metavar='HxW', help="default: the network's image_size")
    add('--sampler', choices=('ancestral', 'ddim', 'dpmpp_2m'))
    add('--steps', type=at_least(1), help='calls of the network for an image')
    add('--eta', type=float, help='of ddim: 0 adds no noise, 1 as much as ancestral sampling')
    add('--spacing', choices=('trailing', 'linspace', 'logsnr', 'leading'), help='which steps of the trained chain')
    add('--save-process', action='store_true', help='also write SEED_process.png: about ten states on the way')
    add('--device', default='auto', help='auto (cuda, else cpu), or a device of torch')
    add('--dtype', default='auto', choices=('auto', *DTYPES), help='auto: bf16 on a GPU that has it, else fp32')
    add('--offline', action='store_true', help='download nothing')
    return parser.parse_args()


def at_least(least: int):
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} should be a whole number, {least} or more')
        return int(text)

    return number


def parse_size(text: str) -> tuple[int, int]:
    """'64x48' -> (64, 48), height first."""
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} should be HEIGHTxWIDTH, such as 128x128')
    return int(parts[0]), int(parts[1])


if __name__ == '__main__':
    run(main)
