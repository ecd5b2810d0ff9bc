"""Cuts images into overlapping sub-images, which load faster in training: a folder -> a folder of STEM_s001.png ...

    python scripts/extract_subimages.py --input DIV2K_train_HR --output HR_sub --crop 480 --step 240
    python scripts/extract_subimages.py --input DIV2K_train_LR_bicubic/X4 --output X4_sub --crop 120 --step 60

A scale at the end of a name (0001x4.png) is left out, so that lq and gt get equal names. Images smaller than the crop
are kept whole. Pixels stay as they are: 8 or 16 bits, gray or colour, with alpha if there is any. A sub-image that is
there with the right pixels is kept, so a stopped run may be started again.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from preparing import (
    Parser,
    Source,
    check_folders,
    clashes,
    encoded_png,
    read_pixels,
    refuse,
    run_jobs,
    survey,
    whole,
    write_atomic,
)


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


def stem(source: Source) -> str:
    """What the names of its sub-images begin with."""
    return re.sub(r'x[2348]$', '', source.path.stem)


def extract(source: Source, output: Path, crop: int, step: int, thresh: int, compression: int) -> int:
    """Write the sub-images of one image; returns their number."""
    image, number = read_pixels(source.path).array, 0
    if image.dtype == np.float32:
        raise ValueError(f'{source.path} has float values, which PNG cannot hold')
    for number, (top, left) in enumerate(windows(*image.shape[:2], crop, step, thresh), start=1):
        part, path = image[top : top + crop, left : left + crop], output / f'{stem(source)}_s{number:03d}.png'
        if not holds(path, part):
            write_atomic(path, encoded_png(part, compression))
    return number


def holds(path: Path, pixels: np.ndarray) -> bool:
    """Whether a file is an image of just these pixels."""
    try:
        return path.is_file() and np.array_equal(read_pixels(path).array, pixels)
    except ValueError:
        return False


def left_over(source: Source, output: Path, crop: int, step: int, thresh: int) -> list[str]:
    """What is wrong with the output folder: a sub-image beyond the last of this cut, which training would use."""
    count = len(list(windows(source.height, source.width, crop, step, thresh)))
    path = output / f'{stem(source)}_s{count + 1:03d}.png'
    return [f'{path}: there from another crop or step; delete it, or give a new folder'] if path.exists() else []


def extract_folder(
    folder: Path, output: Path, crop: int, step: int, thresh: int = 0, workers: int = 1, compression: int = 3
) -> int:
    """Write the sub-images of every image of `folder`; returns their number. Raises UserError that lists all faults."""
    check_folders(folder, [output])
    cut = {'output': output, 'crop': crop, 'step': step, 'thresh': thresh}
    sources, faults = survey(folder)
    leftovers = [fault for source in sources for fault in left_over(source, **cut)]
    refuse([*faults, *clashes(sources, stem), *leftovers])
    job = partial(extract, **cut, compression=compression)
    return sum(count for _, count in run_jobs(job, sources, workers, 'sub-images'))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, required=True, help='folder of images')
    parser.add_argument('--output', type=Path, required=True, help='folder for the sub-images (PNG)')
    parser.add_argument('--crop', type=whole(1), required=True, help='side of a sub-image')
    parser.add_argument('--step', type=whole(1), required=True, help='distance of two sub-images')
    parser.add_argument('--thresh', type=whole(0), default=0, help='pixels at an end that may be left out (default: 0)')
    parser.add_argument('--compression', type=int, choices=range(10), default=3, help='of PNG, 0 to 9 (default: 3)')
    parser.add_workers()
    args = parser.parse_args(arguments)
    with parser.faults_in_words():
        options = args.crop, args.step, args.thresh, args.workers, args.compression
        print(f'{extract_folder(args.input, args.output, *options)} sub-images in {args.output}')


if __name__ == '__main__':
    main()
