"""The command `basicsr`: what a model or a checkpoint is.

basicsr info ATD-demo_x4                       a model that has a name (inference.py --list shows them)
basicsr info net_g_latest.pth --size 128x96    any file of weights; nothing in it is executed
"""

import argparse
import sys

from basicsr.model_info import about_file, about_model
from basicsr.utils.cli import run
from basicsr.utils.registry import UserError
from basicsr.utils.zoo import find_model


def main() -> None:
    run(_main)


def _main() -> int:
    parser = argparse.ArgumentParser(
        'basicsr', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    info = commands.add_parser('info', help='which network a file of weights belongs to, its size, cost and licence')
    info.add_argument('what', metavar='FILE|MODEL', help='a checkpoint, a model file, or the name of a model')
    info.add_argument('--size', default='64x64', metavar='WxH', help='pixels of lq for which FLOPs are counted (64x64)')
    args = parser.parse_args()
    size = parsed_size(args.size)
    is_file = any(sign in args.what for sign in '/\\.')  # names of models have neither
    print('\n'.join(about_file(args.what, size) if is_file else about_model(find_model(args.what), size)))
    return 0


def parsed_size(text: str) -> tuple[int, int]:
    """(height, width) of 'WxH'."""
    width, _, height = text.lower().partition('x')
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f'--size {text}: a size is written WIDTHxHEIGHT, such as 64x64')
    return int(height), int(width)


if __name__ == '__main__':
    sys.exit(main())
