"""The packed store: the decoded pixels of a data set in one memory-mapped file, of which a crop is a view.

A store is a folder of two files, written once by `write_packed` (scripts/pack_dataset.py) and only read afterwards:

- `pixels.bin`: the images one after another, uint8, rows of pixels, RGB or one channel of gray.
- `index.jsonl`: in the first line the format, the number of images, the bytes of pixels.bin and the SHA-256 of the
  lines that follow; then a line for each image: its name, offset in bytes, height, width, channels, and the SHA-256
  of the file it was decoded from and of its pixels.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from basicsr.data.storage_kinds import INDEX, PIXELS, refuse_other_kind
from basicsr.utils.registry import OptionError
from basicsr.utils.whole_folder import whole_folder

FORMAT = 'basicsr packed 1'


class Entry(NamedTuple):
    """A line of the index. The pixels are [offset, offset + height * width * channels) of pixels.bin."""

    name: str
    offset: int
    height: int
    width: int
    channels: int
    source_sha256: str
    pixels_sha256: str


class PackedStorage:
    """The images of a packed store, read without decoding: what the operating system has cached costs microseconds.

    The store is opened when first read, by each process for itself (pickling leaves the handle behind), read-only.
    """

    def __init__(self, root: str):
        self.root = Path(root)
        self._opened: tuple[dict[str, Entry], np.ndarray] | None = None
        refuse_other_kind(self.root, 'packed')
        if not (self.root / INDEX).is_file():
            raise OptionError(
                f'{root}: a packed store is a folder with {INDEX} and {PIXELS}, which scripts/pack_dataset.py makes'
            )

    def __getstate__(self) -> dict[str, Any]:
        return {'root': self.root, '_opened': None}

    def names(self) -> list[str]:
        """In the order of the pixels. Raises OptionError for a store that is not whole."""
        return list(self._open()[0])

    def entry(self, name: str) -> Entry:
        """The line of the index about an image. Raises ValueError that names it if it is not there."""
        entry = self._open()[0].get(name)
        if entry is None:
            raise ValueError(f'{self.path(name)}: the packed store has no such image')
        return entry

    def pixels(self, name: str) -> np.ndarray:
        """An image as (h, w, 3) uint8 RGB: a read-only view, gray repeated. Raises ValueError that names it."""
        entry = self.entry(name)
        image = self._flat(entry).reshape(entry.height, entry.width, entry.channels)
        return image if entry.channels == 3 else np.broadcast_to(image, (entry.height, entry.width, 3))

    def size(self, name: str, thorough: bool) -> tuple[int, int]:
        """(width, height) of an image; if thorough, its pixels are compared with their hash.

        Raises ValueError that names it.
        """
        entry = self.entry(name)
        if thorough and hashlib.sha256(self._flat(entry)).hexdigest() != entry.pixels_sha256:
            raise ValueError(f'{self.path(name)}: its pixels are not those that were packed; pack the data set again')
        return entry.width, entry.height

    def path(self, name: str) -> str:
        """Where the image is, for messages."""
        return str(self.root / name)

    def _flat(self, entry: Entry) -> np.ndarray:
        return self._open()[1][entry.offset : entry.offset + entry.height * entry.width * entry.channels]

    def _open(self) -> tuple[dict[str, Entry], np.ndarray]:
        if self._opened is None:
            entries, total = read_index(self.root)
            try:
                with (self.root / PIXELS).open('rb') as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise OptionError(f'{self.root / PIXELS}: cannot be read: {error}') from None
            if len(mapped) != total:
                raise OptionError(
                    f'{self.root / PIXELS}: has {len(mapped)} bytes where its index tells of {total}; '
                    'pack the data set again'
                )
            self._opened = {entry.name: entry for entry in entries}, np.frombuffer(mapped, np.uint8)
        return self._opened


def read_index(root: Path) -> tuple[list[Entry], int]:
    """The entries of a store and the bytes of its pixels. Raises OptionError for an index that is not whole."""
    try:
        head, _, body = (root / INDEX).read_bytes().partition(b'\n')
    except OSError as error:
        raise OptionError(f'{root / INDEX}: cannot be read: {error.strerror}') from None
    try:
        header = json.loads(head)
        found, total, digest = header['format'], header['bytes'], header['sha256']
    except (ValueError, TypeError, KeyError):
        raise OptionError(f'{root / INDEX}: is no index of a packed store') from None
    if found != FORMAT:
        raise OptionError(f'{root}: is a packed store of format {found!r}, not {FORMAT!r}; pack the data set again')
    if hashlib.sha256(body).hexdigest() != digest:
        raise OptionError(f'{root / INDEX}: was truncated or altered; pack the data set again')
    return [Entry(*line) for line in json.loads(b'[' + b','.join(body.splitlines()) + b']')], total


def write_packed(path: str | Path, images: Iterable[tuple[str, np.ndarray, str]]) -> int:
    """Write a store, which is there whole or not at all; returns the number of images.

    Args:
        images: name, (h, w, 1 or 3) uint8 pixels, and the SHA-256 of the file that they were decoded from.
    Raises UserError if `path` is there, ValueError for what cannot be packed: another type, a name twice, no image.
    """
    lines, names, offset = [], set(), 0
    with whole_folder(path) as part:
        with (part / PIXELS).open('wb') as file:
            for name, pixels, source_sha256 in images:
                if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
                    raise ValueError(f'{name}: {pixels.dtype} {pixels.shape} is not (h, w, 1 or 3) uint8')
                if name in names:
                    raise ValueError(f'{name}: two images have this name')
                data = np.ascontiguousarray(pixels)
                file.write(data)
                names.add(name)
                lines.append(
                    Entry(name, offset, *data.shape, source_sha256, hashlib.sha256(data).hexdigest()),
                )
                offset += data.size
        if not lines:
            raise ValueError(f'{path}: no images to pack')
        body = ''.join(json.dumps(line) + '\n' for line in lines).encode()
        header = {
            'format': FORMAT,
            'images': len(lines),
            'bytes': offset,
            'sha256': hashlib.sha256(body).hexdigest(),
            'columns': Entry._fields,
        }
        (part / INDEX).write_bytes(json.dumps(header).encode() + b'\n' + body)
    return len(lines)
