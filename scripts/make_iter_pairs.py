"""Makes the training pairs of ITER and FeMaSR: HQ_sub_samename, and LQ_sub_samename_X2 and _X4 with the same names.

    python scripts/make_iter_pairs.py --input DIV2K_train_HR --output datasets/iter

HQ are sub-images of the photographs; each LQ is made once of the whole sub-image by the full BSRGAN degradation and
saved by cutting levels off, as published. An LQ depends on the seed and on its own name only; what was drawn stands in
LQ_sub_samename_X4.jsonl. A stopped run may be started again.
"""

from collections.abc import Sequence
from pathlib import Path

from extract_subimages import extract_folder
from make_lq import make_folder
from pipelines import Pipeline
from preparing import Parser, refuse, survey, whole

BSRGAN = {'type': 'DegradedImageDataset', 'degradation': {'type': 'BSRGANDegradation'}}


def make_pairs(
    folder: Path, output: Path, scales: Sequence[int], crop: int, step: int, seed: int = 123, workers: int = 1
) -> int:
    """Make the folders; returns the number of sub-images. Raises UserError that lists all faults."""
    sources, faults = survey(folder)
    small = [source for source in sources if min(source.width, source.height) < crop]
    faults += [f'{s.path}: {s.width}x{s.height} is smaller than a sub-image of {crop}x{crop}' for s in small]
    faults += [f'sub-images of {crop}x{crop} are no multiple of the scale {scale}' for scale in scales if crop % scale]
    refuse(faults)
    pipelines = [Pipeline.of({'scale': scale, 'datasets': {'train': BSRGAN}}) for scale in scales]
    hq = output / 'HQ_sub_samename'
    count = extract_folder(folder, hq, crop, step, workers=workers)
    for pipeline in pipelines:
        lq = output / f'LQ_sub_samename_X{pipeline.scale}'
        make_folder(hq, lq, pipeline.scale, workers, pipeline=pipeline, seed=seed, truncate=True)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, required=True, help='folder of high-quality images')
    parser.add_argument('--output', type=Path, required=True, help='folder for the three folders')
    parser.add_argument('--scale', type=whole(2), nargs='+', default=[2, 4], help='scales (default: 2 4)')
    parser.add_argument('--crop', type=whole(1), default=512, help='side of a sub-image (default: 512)')
    parser.add_argument('--step', type=whole(1), help='distance of two sub-images (default: that of --crop)')
    parser.add_argument('--seed', type=whole(0), default=123, help='another one draws anew (default: 123)')
    parser.add_workers()
    args = parser.parse_args(arguments)
    with parser.faults_in_words():
        step = args.step or args.crop
        count = make_pairs(args.input, args.output, args.scale, args.crop, step, args.seed, args.workers)
        print(f'{count} pairs for each of x{", x".join(map(str, args.scale))} in {args.output}')


if __name__ == '__main__':
    main()
