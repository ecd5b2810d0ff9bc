"""Where images lie: a folder, an LMDB as BasicSR or SR3 writes it, a packed store; all give pixels by name."""

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.data.packed import PackedStorage
from basicsr.data.storage_kinds import refuse_other_kind
from basicsr.utils.image import IMAGE_SUFFIXES, decode_pixels, decoded_size, header_size
from basicsr.utils.nested_options import OptionsByType, nested
from basicsr.utils.registry import OptionError

# The handles of LMDBs that this process has opened. LMDB allows one handle of a file in a process and none that was
# inherited: so data sets share them, and they are closed before a process forks and opened again when next read.
_environments: dict[str, Any] = {}
_reading = threading.RLock()

HEADER_BYTES = 1 << 16  # enough for nearly every image file; the others are read whole


class EncodedStorage(ABC):
    """What folders and LMDBs share: they hold image files, which are decoded when pixels are asked for."""

    root: Path

    def pixels(self, name: str) -> np.ndarray:
        """An image as (h, w, 3) RGB, uint8 or uint16 (float files: float32 in [0, 1]), perhaps read-only.

        Alpha is dropped, gray repeated. Raises ValueError that names the image.
        """
        return decode_pixels(self.read(name), self.path(name))

    def size(self, name: str, thorough: bool) -> tuple[int, int]:
        """(width, height) of an image, from its header or from decoding it. Raises ValueError that names it."""
        path = self.path(name)
        if thorough:
            return decoded_size(self.read(name), path)
        try:
            return header_size(self.read(name, HEADER_BYTES), path)
        except ValueError:
            return header_size(self.read(name), path)

    @abstractmethod
    def read(self, name: str, limit: int = -1) -> bytes:
        """The bytes of one image file, the first `limit` of them if that is given. Raises ValueError that names it."""

    def path(self, name: str) -> str:
        """Where the image is, for messages."""
        return str(self.root / name)


class FolderStorage(EncodedStorage):
    """The images below a folder, by their relative paths with suffix, sorted."""

    def __init__(self, root: str):
        self.root = Path(root)
        refuse_other_kind(self.root, 'disk')
        if not self.root.is_dir():
            raise OptionError(f'{root}: no such folder')

    def names(self) -> list[str]:
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in _files(self.root)
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')
        )

    def read(self, name: str, limit: int = -1) -> bytes:
        try:
            with (self.root / name).open('rb') as file:
                return file.read(limit)
        except OSError as error:
            raise ValueError(f'{self.path(name)}: {error.strerror}') from None


class _LmdbReader(EncodedStorage):
    """Images in the LMDB environment `folder`: the key of a name is `prefix` and the name, as UTF-8."""

    def __init__(self, root: str, folder: Path, prefix: str, settings: dict[str, bool]):
        self.root, self.folder, self.prefix, self.settings = Path(root), folder, prefix, settings

    def read(self, name: str, limit: int = -1) -> bytes:
        with self._transaction(self.path(name)) as transaction:
            value = transaction.get((self.prefix + name).encode('utf-8'))
        if value is None:
            raise ValueError(f'{self.path(name)}: the LMDB has no such key')
        return value if limit < 0 else value[:limit]

    @contextmanager
    def _transaction(self, path: str) -> Iterator[Any]:
        """Reading inside raises ValueError, with `path`, for an LMDB that is damaged."""
        import lmdb

        place = str(self.folder.resolve())
        try:
            with _reading:
                if place not in _environments:
                    _environments[place] = _opened(place, self.settings)
                with _environments[place].begin(write=False) as transaction:
                    yield transaction
        except lmdb.Error as error:
            raise ValueError(f'{path}: cannot be read: {error}') from None


class LmdbStorage(_LmdbReader):
    """An LMDB of encoded images in BasicSR's layout: keys are paths without `.png`, listed in its meta_info.txt.

    Args:
        readonly: open it for reading only.
        lock: take LMDB's lock, for what is written meanwhile.
        readahead: let the system read ahead.
    """

    def __init__(self, root: str, readonly: bool = True, lock: bool = False, readahead: bool = False):
        super().__init__(root, Path(root), '', {'readonly': readonly, 'lock': lock, 'readahead': readahead})
        refuse_other_kind(self.root, 'lmdb')
        if self.root.suffix != '.lmdb' or not (self.root / 'meta_info.txt').is_file():
            raise OptionError(f'{root}: an LMDB is a folder NAME.lmdb with data.mdb and meta_info.txt')

    def names(self) -> list[str]:
        try:
            lines = (self.root / 'meta_info.txt').read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f'{self.root / "meta_info.txt"}: cannot be read: {error}') from None
        return [_key(line) for line in lines if line.strip()]


class Sr3LmdbStorage(_LmdbReader):
    """One part of an LMDB in SR3's layout (keys such as hr_128_00000, no meta_info.txt), named as if it were a folder.

    Args:
        root: `ffhq_16_128/hr_128` is what the keys of the LMDB `ffhq_16_128` hold that begin with `hr_128_`.
        readonly: open it for reading only.
        lock: take LMDB's lock, for what is written meanwhile.
        readahead: let the system read ahead.
    """

    def __init__(self, root: str, readonly: bool = True, lock: bool = False, readahead: bool = False):
        place = Path(root)
        settings = {'readonly': readonly, 'lock': lock, 'readahead': readahead}
        super().__init__(root, place.parent, f'{place.name}_', settings)
        refuse_other_kind(place, 'sr3_lmdb')
        if place.exists() or not (self.folder / 'data.mdb').is_file():
            raise OptionError(
                f"{root}: an LMDB in SR3's layout is a folder ROOT with data.mdb, whose parts are named "
                'ROOT/hr_128, ROOT/sr_16_128, ROOT/lr_16 (with its own numbers)'
            )

    def names(self) -> list[str]:
        """Sorted. Raises OptionError for an LMDB that is damaged or does not hold as many images as it says."""
        try:
            with self._transaction(str(self.folder)) as transaction:
                length = transaction.get(b'length', b'').decode('ascii', 'replace')
                keys = [key.decode('utf-8', 'replace') for key in transaction.cursor().iternext(values=False)]
        except ValueError as error:
            raise OptionError(str(error)) from None
        names = sorted(key[len(self.prefix) :] for key in keys if key.startswith(self.prefix))
        if not names:
            parts = {match[1] for key in keys if (match := re.match(r'((?:hr|lr)_\d+|sr_\d+_\d+)_', key))}
            raise OptionError(
                f'{self.root}: {self.folder} has no such part; it has {", ".join(sorted(parts)) or "none"}'
            )
        if length != str(len(names)):
            raise OptionError(f'{self.root}: the LMDB holds {len(names)} images where it says {length or "nothing"}')
        return names


STORAGES = {'disk': FolderStorage, 'lmdb': LmdbStorage, 'sr3_lmdb': Sr3LmdbStorage, 'packed': PackedStorage}
Storage = FolderStorage | LmdbStorage | Sr3LmdbStorage | PackedStorage
checked_backend = OptionsByType(STORAGES, 'io_backend', ('root',))
IoBackend = nested(checked_backend)
DISK = {'type': 'disk'}


def open_storage(root: str, io_backend: dict) -> Storage:
    """The storage of `root` as `io_backend` (a `type` of STORAGES and its settings) says."""
    options = {key: value for key, value in checked_backend(io_backend).items() if key != 'type'}
    return STORAGES[io_backend['type']](root, **options)


def _files(root: Path) -> Iterator[Path]:
    """All files below `root`, through links to folders too, each folder once; hidden folders are passed over."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = Path(folder).resolve()
        folders[:] = [name for name in folders if not name.startswith('.')] if place not in seen else []
        if place not in seen:
            yield from (Path(folder) / name for name in names)
        seen.add(place)


def _opened(place: str, settings: dict[str, bool]) -> Any:
    """An environment to read. Raises lmdb.Error for one that cannot be, or whose file lacks its end."""
    import lmdb

    environment = lmdb.open(place, subdir=True, max_readers=512, **settings)
    needed = environment.stat()['psize'] * (environment.info()['last_pgno'] + 1)
    there = Path(place, 'data.mdb').stat().st_size
    # LMDB would read beyond the end, at which the system ends the process. (Where images were deleted, the last pages
    # may be missing by right; a copy made by LMDB's own mdb_copy -c has none such.)
    if there < needed:
        environment.close()
        raise lmdb.CorruptedError(f'data.mdb is truncated: {there} bytes of {needed}')
    return environment


def _key(line: str) -> str:
    """The key in a line `KEY.png (H,W,C) LEVEL` of meta_info.txt, whose size old files leave out."""
    match = re.fullmatch(r'(.*?)(\.png)?( \([\d, ]+\))?( \d+)?\s*', line)
    return match[1] if match[2] else match[1].split('.')[0]


def _close_environments() -> None:
    _reading.acquire()
    while _environments:
        _environments.popitem()[1].close()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_close_environments, after_in_parent=_reading.release, after_in_child=_reading.release)
