"""Makes low-resolution images: a folder of gt -> a folder of lq (PNG) under the same names.

    python scripts/make_lq.py --gt datasets/mine/gt --lq datasets/mine/lq_x4 --scale 4
    python scripts/make_lq.py --gt datasets/mine/gt --lq datasets/mine/lq_real --opt options/train/mine.yml --seed 123

Without --opt it is MATLAB's bicubic. With it, the degradation that this option file trains with is applied once to each
whole image: of `datasets: train: degradation:` or of `degradation:`. An lq then depends on the seed and on its own name
only, and NAME.jsonl beside the folder lq keeps the recipe and what was drawn for each image.

An lq that exists, has the right size and is newer than its gt is kept, so a stopped run may be started again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from journal import Journal, journal_path
from pipelines import Pipeline, number_of
from preparing import (
    Parser,
    Source,
    UserError,
    check_folders,
    clashes,
    is_current,
    refuse,
    run_jobs,
    survey,
    whole,
)

from basicsr.data.degradations.resize import imresize
from basicsr.utils.image import read_image, write_image


def bicubic_lq(gt: np.ndarray, scale: int) -> np.ndarray:
    """uint8 lq (h / scale, w / scale, 3) of a float gt (h, w, 3) in [0, 1].

    It is resized in levels (0 to 255) and double precision: then the sums for scales 2 and 4 are exact and
    the rounding, half to even, is the same on every machine.
    """
    levels = np.rint(gt.astype(np.float64) * 65535) / 257  # exactly the levels that 8 and 16 bit files hold
    return np.rint(imresize(levels, 1 / scale).clip(0, 255)).astype(np.uint8)


def eight_bits(image: np.ndarray, truncate: bool = False) -> np.ndarray:
    """uint8 of a float image in [0, 1]: rounded, or cut off in single precision as FeMaSR and ITER save theirs."""
    levels = image.clip(0, 1) * np.float32(255)
    return (levels if truncate else np.rint(levels)).astype(np.uint8)


@dataclass(frozen=True)
class Task:
    """What is done with each gt; the pipeline None is bicubic.

    gt: folder for the gt that belongs to the lq: without odd rows and columns, sharpened where the pipeline says so.
    """

    lq: Path
    gt: Path | None
    scale: int
    pipeline: Pipeline | None = None
    seed: int = 0
    truncate: bool = False

    @property
    def recipe(self) -> dict:
        """Whatever an lq depends on besides its gt."""
        kept = 'truncated' if self.truncate else 'rounded'
        return {'pipeline': self.pipeline.sections, 'seed': self.seed, 'levels': kept}

    def is_done(self, source: Source) -> bool:
        """Whether the results of a source are there, whole, of the right size and not older."""
        width, height = source.width // self.scale, source.height // self.scale
        return is_current(self.lq / source.png, source.path, width, height) and (
            self.gt is None or is_current(self.gt / source.png, source.path, width * self.scale, height * self.scale)
        )

    def make(self, source: Source) -> dict | None:
        """Write the lq, and gt if there is a folder for it; returns what was drawn."""
        image = read_image(source.path)
        height, width = (side // self.scale * self.scale for side in image.shape[:2])
        gt = image[:height, :width]
        if self.pipeline is None:
            drawn, lq = None, bicubic_lq(gt, self.scale)
        else:
            try:
                gt, lq, drawn = self.pipeline.degrade(np.ascontiguousarray(gt), self.seed, number_of(source.png))
            except ValueError as error:
                raise ValueError(f'{source.path}: {error}') from None
            lq = eight_bits(lq, self.truncate)
        if self.gt is not None:
            write_image(self.gt / source.png, eight_bits(gt))
        write_image(self.lq / source.png, lq)
        return drawn


def made_or_kept(task: Task, kept: frozenset[str] | None, source: Source) -> tuple[bool, dict | None]:
    """Whether the source was worked on, and what was drawn; `kept` are those that may be left as they are."""
    if (kept is None or source.png in kept) and task.is_done(source):
        return False, None
    return True, task.make(source)


def make_all(sources: Sequence[Source], task: Task, workers: int = 1) -> int:
    """Carry out a task whose sources are known to be in order; returns their number. Raises UserError for others."""
    title = f'lq x{task.scale}'
    if task.pipeline is None:
        if journal_path(task.lq).is_file():
            raise UserError(f'{task.lq}: was made by a pipeline, see {journal_path(task.lq)}; give another folder')
        return sum(1 for _ in run_jobs(partial(made_or_kept, task, None), sources, workers, title))
    with Journal(task.lq, task.recipe) as journal:
        recorded = frozenset(journal.made)
        for source, (worked, drawn) in run_jobs(partial(made_or_kept, task, recorded), sources, workers, title):
            if worked:
                journal.add(source.png, **drawn)
    return len(sources)


def make_folder(
    gt: Path,
    lq: Path,
    scale: int,
    workers: int = 1,
    cropped_gt: Path | None = None,
    pipeline: Pipeline | None = None,
    seed: int = 0,
    truncate: bool = False,
    recursive: bool = False,
) -> int:
    """Make `lq` from every image of `gt`, by `workers` processes; returns their number.

    Raises UserError that lists all faults: unusable files, and, while there is no `cropped_gt` folder, sides that are
    no multiple of `scale`.
    """
    check_folders(gt, [lq, cropped_gt], recursive)
    sources, faults = survey(gt, recursive)
    faults += clashes(sources, lambda source: source.png)
    for source in sources:
        size = f'{source.path}: its size of {source.width}x{source.height}'
        if min(source.width, source.height) < scale:
            faults.append(f'{size} is less than one pixel of lq')
        elif cropped_gt is None and (source.width % scale or source.height % scale):
            faults.append(f'{size} is no multiple of {scale}; give --cropped-gt FOLDER for gt without the odd pixels')
    refuse(faults)
    return make_all(sources, Task(lq, cropped_gt, scale, pipeline, seed, truncate), workers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--gt', type=Path, required=True, help='folder of high-resolution images')
    parser.add_argument('--lq', type=Path, required=True, help='folder for the low-resolution images (PNG)')
    parser.add_argument('--scale', type=whole(2), help='how much smaller lq is (with --opt: as in the option file)')
    parser.add_argument(
        '--cropped-gt',
        type=Path,
        help='folder for gt cropped to multiples of the scale, and sharpened if the degradation sharpens its target',
    )
    parser.add_argument('--recursive', action='store_true', help='also the images of sub-folders')
    way = parser.add_mutually_exclusive_group()
    way.add_argument('--degradation', choices=('bicubic',), default='bicubic', help='the default')
    way.add_argument('-opt', '--opt', metavar='FILE', help='an option file (YAML) whose degradation is applied')
    parser.add_argument('overrides', nargs='*', metavar='A:B=VALUE', help='replace values of the option file')
    parser.add_argument('--seed', type=whole(0), default=0, help='of --opt: another one draws anew (default: 0)')
    parser.add_argument('--truncate', action='store_true', help='of --opt: cut levels off as FeMaSR does, not round')
    parser.add_workers()
    args = parser.parse_args(arguments)
    if args.opt is None and args.scale is None:
        parser.error('give --scale, or --opt FILE')
    if args.opt is None and (args.truncate or args.seed or args.overrides):
        parser.error('--seed, --truncate and A:B=VALUE are for --opt: bicubic draws nothing and rounds')
    with parser.faults_in_words():
        pipeline = Pipeline.load(args.opt, args.overrides) if args.opt else None
        scale = pipeline.scale if pipeline else args.scale
        if args.scale not in (None, scale):
            raise UserError(f'--scale is {args.scale}, but {args.opt} has the scale {scale}')
        folders = {'gt': args.gt, 'lq': args.lq, 'cropped_gt': args.cropped_gt}
        drawing = {'pipeline': pipeline, 'seed': args.seed, 'truncate': args.truncate}
        count = make_folder(**folders, scale=scale, workers=args.workers, recursive=args.recursive, **drawing)
        print(f'{count} images in {args.lq}')


if __name__ == '__main__':
    main()
