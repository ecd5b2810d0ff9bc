"""Makes low-resolution images by MATLAB's bicubic: a folder of gt -> a folder of lq under the same names.

    python scripts/make_lq.py --gt datasets/mine/gt --lq datasets/mine/lq_x4 --scale 4

An lq that exists, has the right size and is newer than its gt is kept, so a stopped run may be started again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from make_procedural_images import Parser
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from basicsr.data.degradations.resize import imresize
from basicsr.utils.image import IMAGE_SUFFIXES, read_image, write_image


def bicubic_lq(gt: np.ndarray, scale: int) -> np.ndarray:
    """uint8 lq (h / scale, w / scale, 3) of a float gt (h, w, 3) in [0, 1].

    It is resized in levels (0 to 255) and double precision: then the sums for scales 2 and 4 are exact and
    the rounding, half to even, is the same on every machine.
    """
    levels = np.rint(gt.astype(np.float64) * 65535) / 257  # exactly the levels that 8 and 16 bit files hold
    return np.rint(imresize(levels, 1 / scale).clip(0, 255)).astype(np.uint8)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) from the header of an image file."""
    with Image.open(path) as image:
        return image.size


def is_made(lq_path: Path, gt_path: Path, size: tuple[int, int]) -> bool:
    """Whether lq is a whole image of that size, made after gt."""
    try:
        with Image.open(lq_path) as image:
            image.load()
            return image.size == size and lq_path.stat().st_mtime_ns >= gt_path.stat().st_mtime_ns
    except (OSError, SyntaxError):
        return False


def make(gt_path: Path, lq: Path, scale: int, cropped_gt: Path | None) -> None:
    """Write the lq of one gt, and the gt without its odd rows and columns if there is a folder for it."""
    width, height = (side // scale * scale for side in size_of(gt_path))
    lq_path = (lq / gt_path.name).with_suffix('.png')
    cropped_path = cropped_gt and (cropped_gt / gt_path.name).with_suffix('.png')
    whole = cropped_path is None or is_made(cropped_path, gt_path, (width, height))
    if whole and is_made(lq_path, gt_path, (width // scale, height // scale)):
        return
    gt = read_image(gt_path)
    gt = gt[: gt.shape[0] // scale * scale, : gt.shape[1] // scale * scale]
    if cropped_path is not None:
        write_image(cropped_path, np.rint(gt * 255).astype(np.uint8))
    write_image(lq_path, bicubic_lq(gt, scale))


def make_folder(gt: Path, lq: Path, scale: int, workers: int = 1, cropped_gt: Path | None = None) -> int:
    """Make `lq` from every image of `gt`, by `workers` processes; returns their number.

    Raises ValueError for no images, or for sides that are no multiple of `scale` while there is no `cropped_gt` folder.
    """
    paths = sorted(path for path in gt.glob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f'no images in {gt}')
    odd = [path for path in paths if any(side % scale for side in size_of(path))] if cropped_gt is None else []
    if odd:
        raise ValueError(
            f'{len(odd)} images have sides that are no multiple of {scale}, first {odd[0]}; '
            'give --cropped-gt FOLDER for gt without the odd rows and columns'
        )
    job = partial(make, lq=lq, scale=scale, cropped_gt=cropped_gt)
    progress = partial(tqdm, total=len(paths), desc=f'lq x{scale}', unit='image')
    if workers == 1:
        for path in progress(paths):
            job(path)
        return len(paths)
    with get_context('spawn').Pool(workers) as pool:
        for _ in progress(pool.imap_unordered(job, paths, chunksize=8)):
            pass
    return len(paths)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gt', type=Path, required=True, help='folder of high-resolution images')
    parser.add_argument('--lq', type=Path, required=True, help='folder for the low-resolution images (PNG)')
    parser.add_argument('--scale', type=int, required=True, choices=(2, 3, 4), help='how much smaller lq is')
    parser.add_argument('--cropped-gt', type=Path, help='folder for gt cropped to multiples of the scale')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes (default: all cores)')
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f'--workers must be at least 1, got {args.workers}')
    if args.gt.resolve() in (args.lq.resolve(), args.cropped_gt and args.cropped_gt.resolve()):
        parser.error('--gt would be overwritten: give other folders for the results')
    try:
        make_folder(args.gt, args.lq, args.scale, args.workers, args.cropped_gt)
    except (OSError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: {error}\n')


if __name__ == '__main__':
    main()
