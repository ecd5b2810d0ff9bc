"""Makes SR3's folders: from images, PREFIX_l_r with lr_l, hr_r and sr_l_r, where sr is lr enlarged again by Pillow.

    python scripts/make_sr3_data.py --input ffhq --output datasets/ffhq --size 16,128
    python scripts/make_sr3_data.py --input ffhq --output datasets/ffhq --size 64,512 --lmdb

Pixels are those of the published prepare_data.py bit for bit: the shorter side is resized in 8 bits, the middle is cut
out. Names are file names up to their first dot, filled with zeros to 5 characters; --lmdb stores PNG files under the
keys hr_128_00000 and so on, in one database. Images whose results are there are kept, so a stopped run may be started
again; PREFIX_l_r.jsonl beside the folder has the recipe and each name's source.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from journal import Journal
from preparing import (
    Parser,
    Source,
    UserError,
    check_folders,
    clashes,
    encoded_png,
    is_current,
    refuse,
    run_jobs,
    survey,
    write_atomic,
)

from basicsr.data.degradations.resize import PILLOW_FILTERS, resize_and_center_crop
from basicsr.utils.image import decode_pixels

COMMIT = 100  # images per transaction of a database


@dataclass(frozen=True)
class Sizes:
    """How an image becomes three: sides of lr and hr, filter, and whether only the width is looked at, as published."""

    low: int
    high: int
    resample: str = 'bicubic'
    published_width_test: bool = False

    @property
    def kinds(self) -> tuple[str, str, str]:
        """The folders, and the starts of the keys, of lr, hr and sr."""
        return f'lr_{self.low}', f'hr_{self.high}', f'sr_{self.low}_{self.high}'

    def images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """lr, hr and sr of a (h, w, 3) uint8 image."""
        reduced = partial(
            resize_and_center_crop, resample=self.resample, published_width_test=self.published_width_test
        )
        lr = reduced(pixels, self.low)
        return lr, reduced(pixels, self.high), reduced(lr, self.high)

    def shapes(self, source: Source) -> Iterator[tuple[int, int]]:
        """(width, height) of lr, hr and sr."""
        for size in (self.low, self.high):
            uncut = self.published_width_test and source.width == size
            yield size, source.height if uncut else size
        yield self.high, self.high


def stored_name(source: Source) -> str:
    """Published: up to the first dot, five characters at least."""
    return source.path.name.split('.')[0].zfill(5)


def faults_of_depth(sources: Iterable[Source]) -> list[str]:
    """PNG files of 16 bits by their headers; those of other formats are seen when they are decoded."""
    found = []
    for source in sources:
        with source.path.open('rb') as file:
            start = file.read(25)
        if start.startswith(b'\x89PNG') and start[24] > 8:
            found.append(too_deep(source))
    return found


def too_deep(source: Source) -> str:
    return f'{source.path} has more than 8 bits a channel, which Pillow does not resize as published'


def encoded(sizes: Sizes, source: Source) -> list[bytes]:
    """lr, hr and sr as PNG files."""
    pixels = decode_pixels(source.path.read_bytes(), str(source.path))
    if pixels.dtype != np.uint8:
        raise ValueError(too_deep(source))
    return [encoded_png(image) for image in sizes.images(pixels)]


def store_files(sizes: Sizes, root: Path, source: Source) -> None:
    """Write the three files of a source unless they are there, whole and not older."""
    paths = [root / kind / f'{stored_name(source)}.png' for kind in sizes.kinds]
    if not all(is_current(path, source.path, *shape) for path, shape in zip(paths, sizes.shapes(source))):
        for path, data in zip(paths, encoded(sizes, source)):
            write_atomic(path, data)


def store_database(results: Iterable[tuple[Source, list[bytes]]], sizes: Sizes, root: Path, journal: Journal) -> None:
    """Put all results into the database, and how many images there are; the journal hears of what is on the disk."""
    import lmdb

    results = iter(results)
    with lmdb.open(str(root), map_size=1 << 28) as environment:
        fault = None
        while True:
            taken = []
            try:
                for result in islice(results, COMMIT):
                    taken.append(result)
            except UserError as error:  # some sources are faulty: what the others gave is kept
                fault = error
            keys = [
                (f'{kind}_{stored_name(source)}'.encode(), png)
                for source, pngs in taken
                for kind, png in zip(sizes.kinds, pngs)
            ]
            _put(environment, keys)
            for source, _ in taken:
                _record(journal, source)
            if fault or len(taken) < COMMIT:
                break
        _put(environment, [(b'length', str(len(journal.made)).encode())])
    if fault:
        raise fault


def _put(environment, items: list[tuple[bytes, bytes]]) -> None:
    """All items in one transaction; a database that is full becomes twice as large."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in items:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()['map_size'])


def _record(journal: Journal, source: Source) -> None:
    journal.add(stored_name(source), source=source.name, changed=source.path.stat().st_mtime_ns)


def _is_recorded(journal: Journal, source: Source) -> bool:
    record = journal.made.get(stored_name(source), {})
    return record.get('source') == source.name and record.get('changed') == source.path.stat().st_mtime_ns


def make_data(folder: Path, prefix: Path, sizes: Sizes, lmdb: bool = False, workers: int = 1) -> tuple[Path, list[str]]:
    """Make PREFIX_l_r; returns it and remarks for the user. Raises UserError that lists all faults."""
    root = prefix.with_name(f'{prefix.name}_{sizes.low}_{sizes.high}')
    check_folders(folder, [root], recursive=True)
    sources, faults = survey(folder, recursive=True)
    refuse([*faults, *faults_of_depth(sources), *clashes(sources, stored_name)])
    recipe = {'sizes': [sizes.low, sizes.high], 'resample': sizes.resample, 'layout': 'lmdb' if lmdb else 'folders'}
    with Journal(root, {**recipe, 'published_width_test': sizes.published_width_test}) as journal:
        if lmdb:
            root.mkdir(parents=True, exist_ok=True)
            missing = [source for source in sources if not _is_recorded(journal, source)]
            results = run_jobs(partial(encoded, sizes), missing, workers, root.name)
            store_database(results, sizes, root, journal)
        else:
            for source, _ in run_jobs(partial(store_files, sizes, root), sources, workers, root.name):
                _record(journal, source)
    return root, remarks(sources, sizes, lmdb)


def remarks(sources: Sequence[Source], sizes: Sizes, lmdb: bool) -> list[str]:
    """What the user should know of the data."""
    said = []
    small = [source for source in sources if min(source.width, source.height) < sizes.high]
    if small:
        said.append(f'{len(small)} images are smaller than {sizes.high} and were enlarged, first {small[0].path}')
    names = {stored_name(source) for source in sources}
    if lmdb and names != {f'{number:05d}' for number in range(len(names))}:
        said.append(
            f'the names are not 00000 to {len(names) - 1:05d}: the published SR3 code cannot read this database'
        )
    return said


def two_sizes(text: str) -> tuple[int, int]:
    parts = text.split(',')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} should be LR,HR such as 16,128')
    if int(parts[0]) >= int(parts[1]):
        raise argparse.ArgumentTypeError(f'{text!r} should be LR,HR such as 16,128, the smaller one first')
    return int(parts[0]), int(parts[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', '--path', '-p', type=Path, required=True, help='folder of images, with sub-folders')
    parser.add_argument('--output', '--out', '-o', type=Path, required=True, metavar='PREFIX', help='see above')
    parser.add_argument('--size', type=two_sizes, default=(64, 512), metavar='LR,HR', help='sides (default: 64,512)')
    parser.add_argument('--resample', choices=tuple(PILLOW_FILTERS), default='bicubic', help='default: bicubic')
    parser.add_argument('--lmdb', '-l', action='store_true', help='one LMDB instead of folders of PNG files')
    parser.add_argument(
        '--published-width-test',
        action='store_true',
        help='keep an image of the wanted width uncut whatever its height, as the published script does',
    )
    parser.add_workers()
    args = parser.parse_args(arguments)
    sizes = Sizes(*args.size, args.resample, args.published_width_test)
    with parser.faults_in_words():
        root, said = make_data(args.input, args.output, sizes, args.lmdb, args.workers)
        print(*said, root, sep='\n')


if __name__ == '__main__':
    main()
