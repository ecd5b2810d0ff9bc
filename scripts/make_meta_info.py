"""Lists the images of a folder for the option `meta_info_file`: lines `NAME (h,w,c)`, sorted, as BasicSR writes them.

    python scripts/make_meta_info.py --input DF2K/HR_sub --output DF2K_HR_sub.txt

Only gray and RGB images are listed; which ones are left out, and why, is printed. Names are relative to the folder.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from preparing import Parser, Source, UserError, refuse, survey, write_atomic
from tqdm import tqdm

CHANNELS = {'L': 1, 'I;16': 1, 'RGB': 3}  # of Pillow's kinds of pixels


def kind_of(source: Source) -> str:
    """How a file stores its pixels, from its header: L is gray, P palette."""
    try:
        with Image.open(source.path) as image:
            return image.mode
    except OSError:  # what Pillow does not open: TIFF with 16-bit colour
        return 'RGB'


def make_list(folder: Path, output: Path) -> tuple[int, list[str]]:
    """Write the list; returns the number of its lines and what was left out. Raises UserError that lists all faults."""
    sources, faults = survey(folder, recursive=True)
    refuse(faults)
    lines, left_out = [], []
    for source in tqdm(sources, desc='meta info', unit='image', disable=None):
        kind = kind_of(source)
        if kind in CHANNELS:
            lines.append(f'{source.name} ({source.height},{source.width},{CHANNELS[kind]})\n')
        else:
            left_out.append(f'{source.path} is left out: its pixels are {kind}, neither gray nor RGB')
    if not lines:
        raise UserError(f'{folder}: holds neither gray nor RGB images')
    write_atomic(output, ''.join(lines).encode())
    return len(lines), left_out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, required=True, help='folder of images; its sub-folders count')
    parser.add_argument('--output', type=Path, required=True, help='the list, a text file')
    args = parser.parse_args(arguments)
    with parser.faults_in_words():
        count, left_out = make_list(args.input, args.output)
        print(*left_out, f'{count} images in {args.output}', sep='\n')


if __name__ == '__main__':
    main()
