"""Command lines of train.py and test.py: BasicSR's flags, overrides, and one line instead of a traceback."""

import argparse
import os
import sys
from collections.abc import Callable

from basicsr.utils.registry import UserError

PUBLISHED_FLAGS = {
    '--launcher': 'accelerate launch (or torchrun) starts the processes',
    '--local_rank': 'the launcher sets it',
    '--local-rank': 'the launcher sets it',
}


def option_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what train.py and test.py share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', '--opt', required=True, metavar='FILE', help='the option file (YAML)')
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='A:B=VALUE', help='replace values of the option file'
    )
    parser.add_argument('overrides', nargs='*', metavar='A:B=VALUE', help='the same, without --force_yml')
    for flag, replacement in PUBLISHED_FLAGS.items():
        parser.add_argument(
            flag, default=None, dest='published', metavar='VALUE', help=f'accepted and not used: {replacement}'
        )
    return parser


def run(main: Callable[[], int]) -> None:
    """Call `main` and exit with its status; a UserError is said in one line and exits with 2, Ctrl-C with 130."""
    try:
        status = main()
    except UserError as error:
        print(f'Error: {error}', file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # whoever reads what is printed, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.stdout.flush()
    sys.exit(status)
