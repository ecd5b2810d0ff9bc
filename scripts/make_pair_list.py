"""Writes the list of pairs that D2C-SR trains from: lines `LR HR` for RealSR, DRealSR, D2CRealSR and alike folders.

    python scripts/make_pair_list.py --input RealSR_V3 --scale 4 --output realsr_x4.txt       # Canon_034_LR4, .._HR
    python scripts/make_pair_list.py --input DRealSR/Test_x4 --scale 4 --output drealsr_x4.txt    # test_LR, test_HR
    python scripts/make_pair_list.py --lr my/small --hr my/large --scale 8 --output mine_x8.txt

Pairs are found by name: what is left of a path when the words LR, HR and a scale (LR4, x4) at the end of a folder's or
a file's name are taken away must be equal. Images of other scales in one folder are passed over. Every image without
a partner and every pair whose sizes do not fit is listed, and then nothing is written.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from preparing import Parser, Source, UserError, refuse, survey, whole, write_atomic

# Of a file's name: Canon_034_LR4, Canon_034_HR. Of a folder: LR, test_LR, LR_x4. A scale alone: sony_101_x1, 0001x4.
FILE = re.compile(r'(?P<rest>.+)[_-](?P<side>LR|HR)[_-]?x?(?P<scale>\d*)', re.IGNORECASE)
FOLDER = re.compile(r'(?P<rest>|.*[_-])(?P<side>LR|HR)[_-]?x?(?P<scale>\d*)', re.IGNORECASE)
SCALE_ONLY = re.compile(r'(.+?)[_-]?x\d+', re.IGNORECASE)


def side_of(name: str) -> tuple[str | None, str, str]:
    """('lr', 'hr' or None, the scale that the words name or '', what pairs have in common) of a relative path."""
    path = PurePosixPath(name)
    folders, stem = list(path.parts[:-1]), path.stem
    named = FILE.fullmatch(stem)
    if named:
        return named['side'].lower(), named['scale'], '/'.join([*folders, named['rest']])
    alone = SCALE_ONLY.fullmatch(stem)
    stem = alone[1] if alone else stem
    for place in reversed(range(len(folders))):
        named = FOLDER.fullmatch(folders[place])
        if named:
            folders[place] = named['rest'].rstrip('_-')
            return named['side'].lower(), named['scale'], '/'.join([*folders, stem])
    return None, '', '/'.join([*folders, stem])


class Sides:
    """The images of both sides by what they have in common with their partners, and what is wrong with others."""

    def __init__(self, scale: int):
        self.scale, self.faults = scale, []
        self.found: dict[str, dict[str, Source]] = {'lr': {}, 'hr': {}}
        self.other_scales: set[str] = set()

    def add(self, folder: Path, side: str | None = None) -> None:
        """All images below a folder, which is of one side or says it by its names."""
        sources, faults = survey(folder, recursive=True)
        self.faults += faults
        for source in sources:
            named, scale, common = side_of(source.name)
            common = common if side else f'{folder}/{common}'  # partners lie below one folder
            if side and named not in (None, side):
                self.faults.append(f'{source.path}: its name says {named.upper()}, it lies among the {side.upper()}')
            elif not (side or named):
                self.faults.append(f'{source.path}: neither its name nor a folder says whether it is LR or HR')
            elif (side or named) == 'lr' and scale and int(scale) != self.scale:
                self.other_scales.add(common)
            else:
                first = self.found[side or named].setdefault(common, source)
                if first is not source:
                    self.faults.append(f'{source.path}: cannot be told from {first.path} by its name')

    def pairs(self) -> list[tuple[Source, Source]]:
        """(LR, HR), sorted by the path of LR. Raises UserError that lists all faults."""
        lr, hr = self.found['lr'], self.found['hr']
        alone = [f'{lr[common].path}: has no HR' for common in lr.keys() - hr.keys()]
        alone += [f'{hr[common].path}: has no LR' for common in hr.keys() - lr.keys() - self.other_scales]
        pairs = sorted(((lr[c], hr[c]) for c in lr.keys() & hr.keys()), key=lambda pair: str(pair[0].path))
        sizes = [fault for pair in pairs if (fault := self._misfit(*pair))]
        refuse([*self.faults, *sorted(alone), *sizes])
        if not pairs:
            raise UserError(f'there is no LR of scale {self.scale}')
        return pairs

    def _misfit(self, lr: Source, hr: Source) -> str | None:
        """HR may be a little larger, less than one LR pixel more at each of them: training cuts it."""
        if (hr.width // lr.width, hr.height // lr.height) == (self.scale, self.scale):
            return None
        return f'{hr.path}: is {hr.width}x{hr.height}, not {self.scale} times {lr.width}x{lr.height} of {lr.path}'


def line(pair: Sequence[Source], root: Path | None) -> str:
    """`LR HR` as absolute paths, or relative to a root. Raises UserError for paths that such a list cannot hold."""
    paths = [source.path.resolve() for source in pair]
    for path in paths:
        if root is not None and not path.is_relative_to(root.resolve()):
            raise UserError(f'{path}: is not below {root}')
    paths = [str(path if root is None else path.relative_to(root.resolve())) for path in paths]
    for path in paths:
        if len(path.split()) != 1:
            raise UserError(f'{path!r}: white space ends a path in such a list; rename it, or use --relative-to')
    return ' '.join(paths) + '\n'


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, nargs='+', default=[], metavar='FOLDER', help='folders with both sides')
    parser.add_argument('--lr', type=Path, help='instead: folder of the LR images')
    parser.add_argument('--hr', type=Path, help='and that of the HR images')
    parser.add_argument('--scale', type=whole(1), required=True, help='how much larger HR is')
    parser.add_argument('--output', type=Path, required=True, help='the list, a text file')
    parser.add_argument('--relative-to', type=Path, metavar='FOLDER', help='write paths relative to this folder')
    args = parser.parse_args(arguments)
    if bool(args.input) == bool(args.lr or args.hr) or bool(args.lr) != bool(args.hr):
        parser.error('give --input, or --lr and --hr')
    with parser.faults_in_words():
        sides = Sides(args.scale)
        for folder in args.input:
            sides.add(folder)
        for side in ('lr', 'hr'):
            if getattr(args, side):
                sides.add(getattr(args, side), side)
        pairs = sides.pairs()
        write_atomic(args.output, ''.join(line(pair, args.relative_to) for pair in pairs).encode())
        larger = sum((hr.width, hr.height) != (lr.width * args.scale, lr.height * args.scale) for lr, hr in pairs)
        if larger:
            print(f'{larger} HR are a little larger than {args.scale} times their LR: training cuts them')
        print(f'{len(pairs)} pairs in {args.output}')


if __name__ == '__main__':
    main()
