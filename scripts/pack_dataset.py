"""Packs images into a store of decoded pixels, from which training cuts without decoding: `io_backend: {type: packed}`.

    python scripts/pack_dataset.py --input DIV2K/HR_sub --output DIV2K/HR_sub.packed
    python scripts/pack_dataset.py --verify DIV2K/HR_sub.packed --input DIV2K/HR_sub
    python scripts/pack_dataset.py --list DIV2K/HR_sub.packed

The input is a folder, read with its sub-folders, an LMDB, or a part of one in SR3's layout such as ffhq_16_128/hr_128.
A store has height x width x 3 bytes for each image (gray ones: x 1), several times what PNG takes. Alpha is dropped
and EXIF orientation applied, as whenever a data set reads an image. Images with more than 8 bits a channel are refused
unless --to-8-bit rounds them. The store is there whole or not at all: a stopped run leaves nothing that opens.

--verify compares every image with its hash and, with --input, with the file that it was made from; --list prints
`NAME (H,W,C)` for each image, as a meta_info_file wants it.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from preparing import Parser, UserError, refuse, run_jobs, survey
from tqdm import tqdm

from basicsr.data.packed import PackedStorage, write_packed
from basicsr.data.storage import EncodedStorage, open_storage
from basicsr.data.storage_kinds import kind_of
from basicsr.utils.image import decode_pixels

PNG = b'\x89PNG\r\n\x1a\n'
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


@dataclass(frozen=True)
class Item:
    """An image of the input: its name there, and the bytes of its pixels as far as its header tells."""

    root: str
    name: str
    size: int

    @property
    def path(self) -> str:
        return source_storage(self.root).path(self.name)


@cache
def source_storage(root: str) -> EncodedStorage:
    """The storage of an input, by what lies there; one in each process. Raises UserError for what is no input."""
    kind = kind_of(Path(root))
    if kind == 'packed':
        raise UserError(f'{root}: is a packed store already')
    return open_storage(root, {'type': kind or 'disk'})


def survey_input(root: Path, to_8_bit: bool) -> tuple[list[Item], list[str]]:
    """The images of an input, and what is wrong with others. Raises UserError if there is no image at all."""
    storage, faults = source_storage(str(root)), []
    if kind_of(root) == 'disk':
        sources, faults = survey(root, recursive=True)
        names = [source.name for source in sources]
    else:
        names = storage.names()
    if not names and not faults:
        raise UserError(f'{root}: holds no images')
    with ThreadPoolExecutor(8) as pool:  # waiting for a disk is most of it
        found = list(pool.map(partial(_examined, storage, to_8_bit), names))
    return [item for item in found if isinstance(item, Item)], [*faults, *(f for f in found if isinstance(f, str))]


def _examined(storage: EncodedStorage, to_8_bit: bool, name: str) -> Item | str:
    try:
        start = storage.read(name, 33)
        width, height = storage.size(name, thorough=False)
        deep = start.startswith(PNG) and start[24] == 16
        if start.startswith(TIFF) and not to_8_bit:
            deep = storage.pixels(name).dtype != np.uint8
    except ValueError as error:
        return str(error)
    if deep and not to_8_bit:
        return _too_deep(storage.path(name))
    gray = start.startswith(PNG) and start[25] in (0, 4)
    return Item(str(storage.root), name, height * width * (1 if gray else 3))


def _too_deep(path: str) -> str:
    return f'{path} has more than 8 bits a channel; --to-8-bit rounds them, or leave it out'


def decoded(to_8_bit: bool, item: Item) -> tuple[np.ndarray, str]:
    """(h, w, 1 or 3) uint8 pixels of an image, and the SHA-256 of its file. Raises ValueError that names it."""
    data = source_storage(item.root).read(item.name)
    pixels = decode_pixels(data, item.path)
    if pixels.strides[2] == 0:  # gray is repeated without being copied
        pixels = pixels[..., :1]
    if pixels.dtype != np.uint8:
        if not to_8_bit:
            raise ValueError(_too_deep(item.path))
        pixels = in_8_bits(pixels)
    return np.ascontiguousarray(pixels), hashlib.sha256(data).hexdigest()


def in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16, or float32 in [0, 1], rounded to the nearest of 256 levels."""
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return (pixels * np.float32(255)).round().astype(np.uint8)


def pack(root: Path, output: Path, to_8_bit: bool = False, workers: int = 1) -> tuple[int, bool]:
    """Write a store; returns the number of images, and whether the store was there already, made of the same files.

    Raises UserError that lists all faults.
    """
    items, faults = survey_input(root, to_8_bit)
    refuse(faults)
    if output.exists():
        _check_existing(output, root)
        return len(items), True
    size, free = sum(item.size for item in items), shutil.disk_usage(_existing_parent(output)).free
    if size > free:
        raise UserError(f'{output}: needs {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left')

    def images() -> Iterator[tuple[str, np.ndarray, str]]:
        for item, result in run_jobs(partial(decoded, to_8_bit), items, workers, output.name, all_or_nothing=True):
            yield item.name, *result

    return write_packed(output, images()), False


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.resolve().parents if parent.exists())


def _check_existing(output: Path, root: Path) -> None:
    """Raise UserError unless a store is the one that would be made."""
    if kind_of(output) != 'packed':
        raise UserError(f'{output}: is there already, and is no packed store')
    if different := differences(PackedStorage(str(output)), root):
        raise UserError(
            f'{output}: is there already, made of other files; delete it, or give another name\n  '
            + '\n  '.join(different[:10])
        )


def differences(store: PackedStorage, root: Path) -> list[str]:
    """Where a store is not what its input is now: images added, gone, or of another file."""
    storage = source_storage(str(root))
    packed, there = set(store.names()), set(storage.names())
    found = [f'{storage.path(name)}: is not in {store.root}' for name in sorted(there - packed)]
    found += [f'{store.path(name)}: is not in {storage.root}' for name in sorted(packed - there)]

    def changed(name: str) -> str:
        digest = hashlib.sha256(storage.read(name)).hexdigest()
        same = digest == store.entry(name).source_sha256
        return '' if same else f'{storage.path(name)}: is not the file that was packed'

    return [*found, *_in_threads(changed, sorted(packed & there), 'files')]


def verify(store: PackedStorage, root: Path | None) -> int:
    """Compare a store with its hashes, and with its input; returns its images. Raises UserError that lists faults."""

    def damaged(name: str) -> str:
        try:
            store.size(name, thorough=True)
        except ValueError as error:
            return str(error)
        return ''

    faults = _in_threads(damaged, store.names(), 'pixels')
    faults += differences(store, root) if root else []
    if faults:
        raise UserError(f'{len(faults)} faults in {store.root}:\n  ' + '\n  '.join(faults[:50]))
    return len(store.names())


def _in_threads(check, names: Sequence[str], title: str) -> list[str]:
    """What a check says of images, except '': hashing lets other threads work."""
    with ThreadPoolExecutor() as pool:
        said = tqdm(pool.map(check, names), total=len(names), desc=title, unit='image', disable=None)
        return [fault for fault in said if fault]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('--input', type=Path, help='folder of images, LMDB, or part of an LMDB of SR3')
    parser.add_argument('--output', type=Path, metavar='STORE', help='the store to make, a folder')
    parser.add_argument('--to-8-bit', action='store_true', help='round 16-bit and float images to 8 bits')
    parser.add_argument('--verify', type=Path, metavar='STORE', help='instead: check a store')
    parser.add_argument('--list', type=Path, metavar='STORE', help='instead: list the images of a store')
    parser.add_workers()
    args = parser.parse_args(arguments)
    if sum(map(bool, (args.output, args.verify, args.list))) != 1 or bool(args.output) > bool(args.input):
        parser.error('give --input and --output, or --verify, or --list')
    with parser.faults_in_words():
        if args.list:
            store = PackedStorage(str(args.list))
            for entry in map(store.entry, store.names()):
                print(f'{entry.name} ({entry.height},{entry.width},{entry.channels})')
        elif args.verify:
            print(f'{args.verify} is whole: {verify(PackedStorage(str(args.verify)), args.input)} images')
        else:
            count, kept = pack(args.input, args.output, args.to_8_bit, args.workers)
            print(f'{count} images in {args.output}{", which was there already" if kept else ""}')


if __name__ == '__main__':
    main()
