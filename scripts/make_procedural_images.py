"""Makes training images by drawing: edges, textures, text and patterns whose every pixel is known to be sharp.

    python scripts/make_procedural_images.py --out datasets/procedural --num 600

Everything is drawn at 3 or 4 times the wanted size and reduced by area averaging, because a super-resolution network
learns what a correctly sampled edge looks like. Image k depends on the seed, k, the size and the kinds only, so a
stopped run may be started again and any number of workers gives the same files. The main kind is dead leaves, random
shapes that hide one another: their statistics are close to those of photographs (Lee, Mumford and Huang, IJCV 2001).
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin
from preparing import Parser, run_jobs, whole
from procedural_drawings import KINDS, VERSION, render


def is_made(path: Path, recipe: str, size: int) -> bool:
    """Whether the file is a whole image of that recipe."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get('recipe') == recipe and image.size == (size, size)
    except (OSError, SyntaxError):
        return False


def make(index: int, out: Path, size: int, seed: int, kinds: Sequence[str]) -> None:
    """Write image `index` into `out` unless it is there already; never leaves half a file under the final name."""
    path = out / f'procedural_{index:06d}.png'
    recipe = f'v{VERSION} seed {seed} index {index} size {size} kinds {",".join(kinds)}'
    if is_made(path, recipe, size):
        return
    note = PngImagePlugin.PngInfo()
    note.add_text('recipe', recipe)
    partial_path = path.with_suffix(f'.{os.getpid()}.tmp')
    Image.fromarray(render(index, size, seed, kinds)).save(partial_path, 'PNG', compress_level=1, pnginfo=note)
    partial_path.replace(path)


def make_images(
    out: Path, num: int, size: int = 256, seed: int = 0, kinds: Sequence[str] = tuple(KINDS), workers: int = 1
) -> None:
    """Make images 0 to num - 1 in the folder `out`, by `workers` processes."""
    out.mkdir(parents=True, exist_ok=True)
    job = partial(make, out=out, size=size, seed=seed, kinds=tuple(kinds))
    for _ in run_jobs(job, range(num), workers, 'procedural images'):
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--out', type=Path, required=True, help='folder for procedural_000000.png, ...')
    parser.add_argument('--num', type=whole(1), default=600, help='number of images (default 600)')
    parser.add_argument('--size', type=whole(32), default=256, help='side in pixels, 32 to 2048 (default 256)')
    parser.add_argument('--seed', type=whole(0), default=0, help='another seed gives other images (default 0)')
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), metavar='KIND', help=f'some of: {" ".join(KINDS)}')
    parser.add_workers()
    args = parser.parse_args(arguments)
    unknown = [kind for kind in args.kinds if kind not in KINDS]
    if unknown:
        parser.error(f'--kinds: {" ".join(unknown)} not known; known: {" ".join(KINDS)}')
    if args.size > 2048:
        parser.error(f'--size must be 32 to 2048, got {args.size}')
    with parser.faults_in_words():
        make_images(args.out, args.num, args.size, args.seed, args.kinds, args.workers)


if __name__ == '__main__':
    main()
