"""Cuts images into overlapping sub-images, which load faster in training: a folder -> a folder of STEM_s001.png ...

    python scripts/extract_subimages.py --input DIV2K_train_HR --output HR_sub --crop 480 --step 240
    python scripts/extract_subimages.py --input DIV2K_train_LR_bicubic/X4 --output X4_sub --crop 120 --step 60

A scale at the end of a name (0001x4.png) is left out, so that lq and gt get equal names. Images smaller than the crop
are kept whole.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.utils.image import IMAGE_SUFFIXES, read_image, to_tensor, to_uint8, write_image


def starts(length: int, crop: int, step: int, thresh: int) -> list[int]:
    """Where windows begin along one side: every `step`, and flush with the end if more than `thresh` pixels remain."""
    begin = list(range(0, max(length - crop, 0) + 1, step))
    if length - (begin[-1] + crop) > thresh:
        begin.append(length - crop)
    return begin


def windows(height: int, width: int, crop: int, step: int, thresh: int = 0) -> Iterator[tuple[int, int]]:
    """(top, left) of every window, row by row: the order of their numbers."""
    for top in starts(height, crop, step, thresh):
        for left in starts(width, crop, step, thresh):
            yield top, left


def extract(path: Path, output: Path, crop: int, step: int, thresh: int) -> int:
    """Write the sub-images of one image; returns their number."""
    image = read_image(path)
    stem = re.sub(r'x[2348]$', '', path.stem)
    number = 0
    for number, (top, left) in enumerate(windows(*image.shape[:2], crop, step, thresh), start=1):
        part = image[top : top + crop, left : left + crop]
        write_image(output / f'{stem}_s{number:03d}.png', to_uint8(to_tensor(part)))
    return number


def extract_folder(folder: Path, output: Path, crop: int, step: int, thresh: int = 0, workers: int = 1) -> int:
    """Write the sub-images of every image of `folder`; returns their number. Raises ValueError if there are none."""
    paths = sorted(path for path in folder.glob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f'no images in {folder}')
    job = partial(extract, output=output, crop=crop, step=step, thresh=thresh)
    progress = partial(tqdm, total=len(paths), desc='sub-images', unit='image')
    if workers == 1:
        return sum(progress(map(job, paths)))
    with get_context('spawn').Pool(workers) as pool:
        return sum(progress(pool.imap_unordered(job, paths)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', type=Path, required=True, help='folder of images')
    parser.add_argument('--output', type=Path, required=True, help='folder for the sub-images (PNG)')
    parser.add_argument('--crop', type=int, required=True, help='side of a sub-image')
    parser.add_argument('--step', type=int, required=True, help='distance of two sub-images')
    parser.add_argument('--thresh', type=int, default=0, help='pixels at an end that may be left out (default: 0)')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes (default: all cores)')
    args = parser.parse_args(arguments)
    if min(args.crop, args.step, args.workers) < 1 or args.thresh < 0:
        parser.error('--crop, --step and --workers must be at least 1, --thresh at least 0')
    if args.input.resolve() == args.output.resolve():
        parser.error('--output must be another folder than --input')
    try:
        count = extract_folder(args.input, args.output, args.crop, args.step, args.thresh, args.workers)
    except (OSError, ValueError) as error:
        parser.exit(1, f'{parser.prog}: {error}\n')
    print(f'{count} sub-images in {args.output}')


if __name__ == '__main__':
    main()
