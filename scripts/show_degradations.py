"""Shows what an option file really does to images: a contact sheet, and histograms of what was drawn.

    python scripts/show_degradations.py -opt options/train/degradations/bsrgan_x4.yml
    python scripts/show_degradations.py -opt options/train/mine.yml -i photos 'scans/*.png' --count 4 --seed 7

Each row is one image: first gt as the data set crops it (not flipped), then several lq of it, enlarged by nearest
neighbour, with the main parameters below. gt is sharpened where training's is. Images that are smaller than the crop of
the option file are shown as far as they reach, even where training would refuse them.
OUT.png is the sheet; OUT_histograms.png has the parameters of --number-of-draws draws (it needs matplotlib: pip
install -e '.[plots]'; without, they are printed as a table). Where the option file reads lq from disk, the sheet
shows pairs as training cuts them. The training data need not be there otherwise: images come from -i.
"""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from contact_sheet import Tile, contact_sheet, enlarged
from drawn_parameters import Drawn, caption, histograms, legend, table
from pipelines import Pipeline
from preparing import Parser, UserError, whole

from basicsr.data.degradations.kernels import parameters as kernel_parameters
from basicsr.data.gt_transforms import GtCrop
from basicsr.data.loaders import build_dataset, check_datasets
from basicsr.utils.image import decode_pixels, write_image
from basicsr.utils.options import load_options
from basicsr.utils.picture_files import find_pictures
from basicsr.utils.plugins import import_plugins
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed, seeded
from basicsr.utils.yaml_loader import apply_override, load_yaml

TESTSET = Path(__file__).resolve().parents[1] / 'testset/gt'


def training_section(path: str, overrides: Sequence[str]) -> dict:
    """The options of the training set; empty if there is none."""
    tree, _ = load_yaml(path)
    for entry in overrides:
        apply_override(tree, entry)
    import_plugins(tree.get('custom_imports') or [])
    data = tree.get('datasets')
    section = data.get('train') if isinstance(data, dict) else None
    return section if isinstance(section, dict) else {}


def reads_lq(section: dict) -> bool:
    """Whether the data set gives pairs; what is wrong with the section is Pipeline's to say."""
    try:
        arguments = inspect.signature(DATASET_REGISTRY.get(section.get('type'))).parameters
    except OptionError:
        return False
    return not {'degradation', 'kernel_list'} & arguments.keys()


class Cropper:
    """gt as a data set crops it, without flips; then what is shown of that.

    Args:
        section: the options of the training set; with `crop_size`, what is degraded is larger than what is used.
        gt_size: of the section `degradation:`, where it cuts the square that is used.
        shown: side of the square that is shown; 0: all of it.
    """

    def __init__(self, section: dict, scale: int, gt_size: int | None, shown: int):
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(DATASET_REGISTRY.get(section['type'])).parameters.items()
        }
        options = {**defaults, **section}
        self.scale, self.pad = scale, 'crop_size' in options or bool(options.get('pad'))
        self.size = options.get('crop_size') or options.get('gt_size') or gt_size
        if not isinstance(self.size, int):
            raise UserError(f'datasets:train: {section["type"]} needs a gt_size that says what is cropped')
        self.used = min(gt_size or self.size, self.size)
        self.shown = min(shown or self.used, self.used) // scale * scale
        self.resizes = {key: bool(options.get(key)) for key in ('use_resize', 'use_resize_crop')}

    def gt(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What is degraded, (h, w, 3) float32 in [0, 1]; of a smaller image the largest square."""
        short = min(pixels.shape[:2])
        size = self.size if self.pad or self.resizes['use_resize'] else min(self.size, short - short % self.scale)
        if size < self.scale:
            raise ValueError(f'{pixels.shape[1]}x{pixels.shape[0]} is smaller than one pixel of lq')
        return GtCrop(size, pad=self.pad, scale=self.scale, **self.resizes)(pixels, rng)

    def place(self, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """The square of lq pixels that is shown, of what those of an image are without its mirrored continuation."""
        size = min(self.shown, height, width) // self.scale
        top, left = (int(rng.integers(side // self.scale - size, endpoint=True)) for side in (height, width))
        return slice(top, top + size), slice(left, left + size)


def gt_of(place: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    return tuple(slice(part.start * scale, part.stop * scale) for part in place)


def row_of(
    pipeline: Pipeline, cropper: Cropper, path: Path, count: int, *numbers: int
) -> tuple[list[Tile], list[Drawn]]:
    """gt and `count` of its lq, and what was drawn. Raises UserError for an image that cannot be used."""
    rng = np.random.default_rng(derived_seed(*numbers))
    try:
        pixels = decode_pixels(path.read_bytes(), str(path))
        source = cropper.gt(pixels, rng)
        height, width = source.shape[:2]
        if cropper.pad:
            height, width = (min(sides) for sides in zip(source.shape[:2], pixels.shape))
        place = cropper.place(height, width, rng)
        results = [pipeline.degrade(source, *numbers, draw) for draw in range(count)]
    except ValueError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f'{path}: {text}') from None
    gt = results[0][0]
    was_changed = not np.array_equal(gt, source[: gt.shape[0], : gt.shape[1]])
    shown = gt[gt_of(place, pipeline.scale)]
    note = f'gt, {shown.shape[1]}x{shown.shape[0]}{", sharpened" if was_changed else ""}'
    size, notes = f'{cropper.size}x{cropper.size}', [path.name, note]
    if min(height, width) < cropper.size:
        notes.append(f'(mirrored to {size} outside)' if cropper.pad else f'(too small to crop {size})')
    tiles = [Tile(enlarged(lq[place], pipeline.scale), caption(drawn)) for _, lq, drawn in results]
    return [Tile(shown, notes), *tiles], [drawn for _, _, drawn in results]


def draw_only(pipeline: Pipeline, side: int, *numbers: int) -> Drawn:
    """What `pipeline.degrade` would draw for a square gt, without an image."""
    seed = derived_seed(*numbers)
    rng = np.random.default_rng(seed)
    if pipeline.kernels is None:
        return pipeline.degradation.parameters(pipeline.degradation.draw(side, side, rng))
    kernels = kernel_parameters(pipeline.kernels.plan(rng))
    return kernels | pipeline.degradation.parameters(pipeline.degradation.draw([seed])[0])


def pair_rows(path: str, overrides: Sequence[str], count: int, seed: int) -> tuple[list[list[Tile]], str]:
    """Pairs of an option file that reads lq from disk, and a title. Raises UserError if they are not there."""
    opt = load_options(path, True, overrides, check_files=False)
    options = next(options for label, options in opt.datasets.items() if label.split('_')[0] == 'train')
    kind = options.options['type']
    try:
        dataset = build_dataset(options, 'train', opt.scale)
    except OptionError as error:
        raise UserError(f'{path}: {kind} reads lq from disk, there is nothing to degrade; {error}') from None
    check_datasets([dataset])
    rows = []
    for number, index in enumerate(spread(range(len(dataset)), count)):
        with seeded(seed, number):
            item = dataset[index]
        if not {'lq', 'gt'} <= item.keys():
            raise UserError(f'{path}: {kind} gives no pairs of lq and gt')
        gt, lq = (item[key].expand(3, -1, -1).permute(1, 2, 0).numpy() for key in ('gt', 'lq'))
        size = [f'{image.shape[1]}x{image.shape[0]}' for image in (gt, lq)]
        rows.append(
            [
                Tile(gt, [Path(item['gt_path']).name, f'gt, {size[0]}']),
                Tile(enlarged(lq, opt.scale), [Path(item['lq_path']).name, f'lq, {size[1]}']),
            ]
        )
    return rows, f'{kind}, x{opt.scale}: pairs on disk, {len(dataset)} in all, nothing is drawn but their crops'


def spread(items: Sequence, count: int) -> list:
    """At most `count` of the items, evenly from first to last."""
    count = min(count, len(items))
    return [items[round(number * (len(items) - 1) / max(1, count - 1))] for number in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('-opt', '--opt', metavar='FILE', required=True, help='the option file (YAML)')
    parser.add_argument('overrides', nargs='*', metavar='A:B=VALUE', help='replace values of the option file')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='A:B=VALUE', help='the same')
    parser.add_argument(
        '-i', '--input', nargs='+', metavar='IMAGE', help='images, folders or patterns (default: testset/gt)'
    )
    parser.add_argument('-o', '--output', type=Path, metavar='OUT', help='default: results/degradations/NAME.png')
    parser.add_argument('--rows', type=whole(1), default=4, help='images at most, evenly from those given (default: 4)')
    parser.add_argument('--count', type=whole(1), default=5, help='lq of each image (default: 5)')
    parser.add_argument('--number-of-draws', type=whole(0), default=500, help='for the histograms (default: 500)')
    parser.add_argument('--shown', type=whole(0), default=0, metavar='SIDE', help='only so many gt pixels (0: all)')
    parser.add_argument('--seed', type=whole(0), default=0, help='another one draws anew (default: 0)')
    args = parser.parse_args(arguments)
    given = args.input or []  # an option with several values takes what follows it too
    overrides = [*args.overrides, *args.force_yml, *(text for text in given if is_override(text))]
    images = [text for text in given if not is_override(text)]
    with parser.faults_in_words():
        output = (args.output or Path('results/degradations') / Path(args.opt).stem).with_suffix('.png')
        section = training_section(args.opt, overrides)
        if reads_lq(section):
            if images:
                raise UserError(f'{args.opt} reads lq from disk: there is nothing to degrade -i by; leave it out')
            rows, kind = pair_rows(args.opt, overrides, args.rows, args.seed)
            write_image(output, contact_sheet([args.opt, kind], rows))
            print(output)
            return
        pipeline = Pipeline.load(args.opt, overrides)
        gt_size = pipeline.sections['degradation'].get('gt_size') if pipeline.kernels else None
        cropper = Cropper(section, pipeline.scale, gt_size, args.shown)
        paths = spread(find_pictures(images or [str(TESTSET)]), args.rows)
        made = [row_of(pipeline, cropper, path, args.count, args.seed, n) for n, path in enumerate(paths)]
        rows, units = [row for row, _ in made], legend(made[0][1][0])
        kind = f'{type(pipeline.degradation).__name__}, x{pipeline.scale}'
        title = [args.opt, f'{kind}, seed {args.seed}{"; " if units else ""}{units}']
        write_image(output, contact_sheet(title, rows))
        print(output)
        draws = [draw_only(pipeline, cropper.size, args.seed, n) for n in range(args.number_of_draws)]
        if any(draws):
            show_draws(f'{args.opt}: {kind}, {len(draws)} draws', draws, output)


def show_draws(title: str, draws: Sequence[Drawn], output: Path) -> None:
    """Write the histograms beside the sheet, or print them if there is no matplotlib."""
    try:
        picture = histograms(title, draws)
    except UserError as error:
        print(f'{error}; here they are as a table', file=sys.stderr)
        print(table(draws))
        return
    target = output.with_name(f'{output.stem}_histograms.png')
    write_image(target, picture)
    print(target)


def is_override(text: str) -> bool:
    """Whether an argument is A:B=VALUE, and no file."""
    return '=' in text and not Path(text).exists()


if __name__ == '__main__':
    main()
