"""Makes the picture material of this repository, and the training set of the bundled models.

    python scripts/make_demo_data.py --train datasets/ATD_demo     # needs nothing but this repository
    python scripts/make_demo_data.py --testset testset             # needs scikit-image: what testset/ was made by

--train cuts sub-images of the photographs in testset/train/gt, draws procedural images and makes lq_x2 and lq_x4.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from make_lq import make_folder
from make_procedural_images import make_images
from PIL import Image
from preparing import Parser, UserError, whole

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from basicsr.data.degradations.resize import imresize
from basicsr.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]

# Photographs of scikit-image that are free by its own documentation. None is in both tables: testset/README.md has
# their origins, and why the other pictures of scikit-image are not here.
TEST_CROPS = {  # file: {name of the crop: (top, left, height, width)}, sides divisible by 12
    'astronaut.png': {
        'astronaut_face': (0, 132, 252, 216),
        'astronaut_flag': (0, 0, 252, 132),
        'astronaut_patch': (260, 72, 252, 252),
    },
    'chelsea.png': {'chelsea_left': (0, 0, 300, 228), 'chelsea_right': (0, 228, 300, 216)},
    'coffee.png': {'coffee_left': (0, 0, 396, 300), 'coffee_right': (0, 300, 396, 300)},
    'rocket.jpg': {'rocket_towers': (156, 240, 264, 396)},
}
TRAIN_SCALES = {  # file: reduction that makes its finest details sharp (soft scans and JPEGs teach little as they are)
    'brick.png': 0.6,
    'camera.png': 1.0,
    'coins.png': 1.0,
    'grass.png': 1.0,
    'gravel.png': 1.0,
    'hubble_deep_field.jpg': 0.5,
    'ihc.png': 0.75,
    'retina.jpg': 0.25,
}
SUB_IMAGE, STEP = 256, 64
COPIES = (1.0, 0.75, 0.55)  # each photograph again at these sizes: other sharpness, other sizes of things


def photograph(name: str) -> np.ndarray:
    """A picture of the installed scikit-image, float32 RGB (h, w, 3); nothing is downloaded."""
    try:
        import skimage
    except ImportError:
        raise UserError('--testset takes its photographs from scikit-image: pip install scikit-image') from None
    return read_image(Path(skimage.__file__).parent / 'data' / name)


def shrink(image: np.ndarray, scale: float) -> np.ndarray:
    """The image reduced by MATLAB's bicubic and rounded to 8 bits, as float; unchanged for scale 1."""
    return image if scale == 1 else np.rint(255 * imresize(image.astype(np.float64), scale).clip(0, 1)) / 255


def save(path: Path, image: np.ndarray) -> None:
    """Write a float image as 8 bits unless the file already holds just that (then its lq stay valid)."""
    levels = np.rint(255 * image).astype(np.uint8)
    if path.is_file():
        with Image.open(path) as old:
            if old.size == levels.shape[1::-1] and np.array_equal(np.asarray(old), levels):
                return
    write_image(path, levels)


def make_testset(out: Path) -> None:
    """The held-out crops in out/gt, the training photographs in out/train/gt, and lq_x2 and lq_x4 of both."""
    for name, crops in TEST_CROPS.items():
        image = photograph(name)
        for crop, (top, left, height, width) in crops.items():
            save(out / 'gt' / f'{crop}.png', image[top : top + height, left : left + width])
    for name, scale in TRAIN_SCALES.items():
        image = shrink(photograph(name), scale)
        height, width = (side // 12 * 12 for side in image.shape[:2])
        save(out / 'train' / 'gt' / f'{Path(name).stem}.png', image[:height, :width])
    for folder in (out, out / 'train'):
        for scale in (2, 4):
            make_folder(folder / 'gt', folder / f'lq_x{scale}', scale)


def starts(side: int) -> list[int]:
    """Where sub-images begin along a side: every STEP pixels, and one that ends with it."""
    last = side - SUB_IMAGE
    return [*range(0, last, STEP), last] if last >= 0 else []


def tint(image: np.ndarray, number: int) -> np.ndarray:
    """A gray image in the tones between a dark and a light colour, chosen by `number`; colour images stay."""
    if not np.array_equal(image[..., 0], image[..., 1]):
        return image
    rng = np.random.default_rng(number)
    dark, light = rng.uniform(0, 0.35, 3), rng.uniform(0.55, 1, 3)
    return dark + (light - dark) * image


def make_sub_images(photographs: Path, out: Path) -> None:
    """Sub-images of every photograph at the sizes COPIES; the reduced copies of gray ones are tinted."""
    for path in sorted(photographs.glob('*.png')):
        whole = read_image(path)
        for copy in COPIES:
            image = shrink(whole, copy)
            places = [(top, left) for top in starts(image.shape[0]) for left in starts(image.shape[1])]
            for number, (top, left) in enumerate(places, 1):
                part = image[top : top + SUB_IMAGE, left : left + SUB_IMAGE]
                name = f'{path.stem}_{round(100 * copy)}_s{number:03d}.png'
                save(out / name, part if copy == 1 else tint(part, number))


def make_train(out: Path, photographs: Path, num: int, workers: int) -> None:
    """The training set: out/gt with sub-images and `num` procedural images, out/lq_x2 and out/lq_x4."""
    if not any(photographs.glob('*.png')):
        raise UserError(f'no photographs in {photographs}; make them with --testset testset')
    make_sub_images(photographs, out / 'gt')
    make_images(out / 'gt', num, SUB_IMAGE, workers=workers)
    for scale in (2, 4):
        make_folder(out / 'gt', out / f'lq_x{scale}', scale, workers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--testset', type=Path, help='folder to make the bundled photographs in')
    parser.add_argument('--train', type=Path, help='folder to make the training set in')
    parser.add_argument('--num', type=whole(1), default=800, help='procedural images of --train (default 800)')
    parser.add_workers()
    args = parser.parse_args(arguments)
    if not (args.testset or args.train):
        parser.error('give --train FOLDER or --testset FOLDER')
    with parser.faults_in_words():
        if args.testset:
            make_testset(args.testset)
        if args.train:
            make_train(args.train, ROOT / 'testset' / 'train' / 'gt', args.num, args.workers)


if __name__ == '__main__':
    main()
