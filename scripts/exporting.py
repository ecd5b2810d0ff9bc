"""What the scripts that write a model as one file ask for: which model, and where to."""

import argparse
from pathlib import Path

from basicsr.utils.registry import UserError


def export_parser(description: str, suffix: str) -> argparse.ArgumentParser:
    """A parser of -m, --opt, --weights, -o and --overwrite; see check_export."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-m', '--model', metavar='NAME', help='a model that inference.py --list shows')
    parser.add_argument('--opt', metavar='FILE', help='in place of -m: the option file that describes the model')
    parser.add_argument('--weights', metavar='FILE|URL', help='with --opt: its weights; alone: a model file')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE', help=f'the {suffix} to write')
    parser.add_argument('--overwrite', action='store_true', help='replace what is there already')
    return parser


def check_export(args: argparse.Namespace, suffix: str, kind: str) -> None:
    """Raise UserError unless one model is named, and a file of that suffix that may be written."""
    if bool(args.model) == bool(args.opt or args.weights):
        raise UserError('name the model, either by -m or by --opt and --weights')
    if args.output.suffix != suffix:
        raise UserError(f'{args.output}: {kind} ends in {suffix}')
    if args.output.exists() and not args.overwrite:
        raise UserError(f'{args.output} exists; --overwrite replaces it')
