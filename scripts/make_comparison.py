"""A picture for a paper or a README: rows of crops, each as bicubic | restored | ground truth, with their PSNR.

    python scripts/make_comparison.py --lq testset/lq_x4 --gt testset/gt --sr results/inference/ATD-demo_x4 \\
        --crop astronaut_face:60,40,96,96 --crop coffee_spoon:0,0,96,96 -o docs/comparison.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basicsr.metrics.psnr_ssim import psnr
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.registry import UserError
from basicsr.utils.resize import imresize

MARGIN, LABEL = 6, 22


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('lq', 'sr', 'gt'):
        parser.add_argument(f'--{name}', type=Path, required=True, help=f'folder of the {name} images')
    parser.add_argument(
        '--crop', action='append', required=True, metavar='STEM:LEFT,TOP,WIDTH,HEIGHT', help='in gt pixels'
    )
    parser.add_argument('--zoom', type=int, default=2, help='enlargement of the crops, nearest neighbour (2)')
    parser.add_argument('--label', default='restored', help='title of the middle column')
    parser.add_argument('-o', '--output', type=Path, required=True)
    args = parser.parse_args()
    rows = [row(args, *parsed(crop)) for crop in args.crop]
    write_image(args.output, np.concatenate(rows))
    print(args.output)
    return 0


def parsed(crop: str) -> tuple[str, list[int]]:
    stem, _, box = crop.rpartition(':')
    numbers = [int(part) for part in box.split(',') if part.strip().isdecimal()]
    if not stem or len(numbers) != 4:
        raise UserError(f'{crop!r}: a crop is written STEM:LEFT,TOP,WIDTH,HEIGHT')
    return stem, numbers


def row(args: argparse.Namespace, stem: str, box: list[int]) -> np.ndarray:
    """Three labelled panels side by side, uint8."""
    gt, lq, sr = (read_image(one_file(folder, stem)) for folder in (args.gt, args.lq, args.sr))
    scale = round(gt.shape[0] / lq.shape[0])
    gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
    bicubic = (imresize(lq, scale) * 255).round().clip(0, 255) / 255
    panels = [
        panel(image, box, args.zoom, f'{title} {score(image, gt, scale)}')
        for image, title in ((bicubic, 'bicubic'), (sr, args.label))
    ]
    return np.concatenate([*panels, panel(gt, box, args.zoom, 'ground truth')], axis=1)


def score(image: np.ndarray, gt: np.ndarray, scale: int) -> str:
    value = psnr(to_tensor(image)[None].float(), to_tensor(gt)[None].float(), crop_border=scale, test_y_channel=True)
    return f'{float(value):.2f} dB'


def panel(image: np.ndarray, box: list[int], zoom: int, title: str) -> np.ndarray:
    left, top, width, height = box
    crop = image[top : top + height, left : left + width]
    if crop.shape[:2] != (height, width):
        raise UserError(f'the crop {left},{top},{width},{height} leaves the image of {image.shape[1]}x{image.shape[0]}')
    pixels = np.rint(crop * 255).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
    canvas = Image.new('RGB', (width * zoom + 2 * MARGIN, height * zoom + LABEL + MARGIN), 'white')
    canvas.paste(Image.fromarray(pixels), (MARGIN, LABEL))
    ImageDraw.Draw(canvas).text((MARGIN, 3), title, fill='black', font=ImageFont.load_default(14))
    return np.asarray(canvas)


def one_file(folder: Path, stem: str) -> Path:
    """The image of that stem, or the one whose stem goes on after an underscore (a suffix)."""
    found = sorted(p for p in folder.glob('*') if p.stem == stem) or sorted(folder.glob(f'{stem}_*'))
    if not found:
        raise UserError(f'{folder}: no image called {stem}')
    return found[0]


if __name__ == '__main__':
    run(main)
