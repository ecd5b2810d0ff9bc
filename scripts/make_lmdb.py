"""Packs a folder of images into an LMDB in BasicSR's layout, which `io_backend: {type: lmdb}` reads.

    python scripts/make_lmdb.py --input DIV2K/HR_sub --output DIV2K/HR_sub.lmdb

Keys are the paths below the folder, as UTF-8, without the suffix; values are PNG files of compression level 1, as 8 or
16 bits, gray or colour, with alpha if there is any; meta_info.txt lists `KEY.png (H,W,C) LEVEL`. Images are turned
upright by EXIF. The LMDB is there whole or not at all: a stopped run leaves nothing, and is started anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from preparing import Parser, Source, UserError, clashes, encoded_png, read_pixels, refuse, run_jobs, survey

from basicsr.utils.whole_folder import whole_folder

FIRST_MAP = 1 << 24  # bytes; on Windows the file has the size of the map, so it grows with what is in it
BATCH = 1 << 26  # bytes in a transaction, which is repeated when the map turns out to be full
LONGEST_KEY = 511  # bytes, a constant of LMDB


def key_of(source: Source) -> str:
    return str(PurePosixPath(source.name).with_suffix(''))


def encode(source: Source, compression: int) -> tuple[bytes, tuple[int, int, int]]:
    """An image as a PNG file, and the shape that OpenCV would read from it. Raises ValueError that names it."""
    array = read_pixels(source.path).array
    if array.dtype == np.float32:
        raise ValueError(f'{source.path} has float values, which PNG cannot hold')
    height, width, channels = array.shape
    return encoded_png(array, compression), (height, width, 4 if channels == 2 else channels)


def fill(folder: Path, items: Iterable[tuple[str, bytes]], first_map: int = FIRST_MAP) -> None:
    """Put (key, value) pairs into a new LMDB, some at a time; a map that is full becomes twice as large."""
    import lmdb

    with lmdb.open(str(folder), map_size=first_map, sync=False) as environment:
        batch, size = [], 0
        for key, value in items:
            batch.append((key.encode('utf-8'), value))
            size += len(value)
            if size >= BATCH:
                _commit(environment, batch)
                batch, size = [], 0
        _commit(environment, batch)
        environment.sync(True)


def _commit(environment, batch: list[tuple[bytes, bytes]]) -> None:
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value, overwrite=False)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()['map_size'])


def faults_of_keys(sources: Iterable[Source]) -> list[str]:
    """What is wrong with names that cannot be keys."""
    found = []
    for source in sources:
        try:
            length = len(key_of(source).encode('utf-8'))
        except UnicodeEncodeError:
            found.append(f'{str(source.path)!r}: its name is no valid text')
            continue
        if length > LONGEST_KEY:
            found.append(f'{source.path}: its name has {length} bytes, a key of LMDB at most {LONGEST_KEY}')
        elif '\n' in source.name or '\r' in source.name:
            found.append(f'{str(source.path)!r}: its name holds a line break, which meta_info.txt cannot')
    return found


def make_lmdb(folder: Path, output: Path, compression: int = 1, workers: int = 1) -> int:
    """Write the LMDB of all images below a folder; returns their number. Raises UserError that lists all faults."""
    import lmdb

    if output.suffix != '.lmdb':
        raise UserError(f'{output}: the name of an LMDB ends with .lmdb')
    if output.exists():
        raise UserError(f'{output}: is there already; delete it, or give another name')
    sources, faults = survey(folder, recursive=True)
    refuse([*faults, *faults_of_keys(sources), *clashes(sources, key_of)])
    lines = []

    def items() -> Iterator[tuple[str, bytes]]:
        job = partial(encode, compression=compression)
        for source, (png, shape) in run_jobs(job, sources, workers, output.name, all_or_nothing=True):
            lines.append(f'{key_of(source)}.png ({",".join(map(str, shape))}) {compression}\n')
            yield key_of(source), png

    with whole_folder(output) as part:
        try:
            fill(part, items())
        except lmdb.Error as error:
            raise UserError(f'{output}: cannot be written: {error}') from None
        (part / 'meta_info.txt').write_text(''.join(lines), encoding='utf-8', newline='\n')
    return len(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, required=True, help='folder of images; its sub-folders count')
    parser.add_argument('--output', type=Path, required=True, help='the LMDB, a folder NAME.lmdb')
    parser.add_argument('--compression', type=int, choices=range(10), default=1, help='of PNG, 0 to 9 (default: 1)')
    parser.add_workers()
    args = parser.parse_args(arguments)
    with parser.faults_in_words():
        count = make_lmdb(args.input, args.output, args.compression, args.workers)
        print(f'{count} images in {args.output}')


if __name__ == '__main__':
    main()
