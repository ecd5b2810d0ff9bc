"""Where image files lie: a folder, or an LMDB as BasicSR writes it; both give bytes by name."""

import os
from pathlib import Path

from basicsr.utils.image import IMAGE_SUFFIXES
from basicsr.utils.registry import OptionError


class FolderStorage:
    """The images below a folder, by their relative paths with suffix, sorted."""

    def __init__(self, root: str):
        self.root = Path(root)
        if not self.root.is_dir():
            raise OptionError(f'{root}: no such folder')

    def names(self) -> list[str]:
        found = (Path(folder) / name for folder, _, names in os.walk(self.root, followlinks=True) for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in found
                      if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.'))

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises ValueError that names it."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise ValueError(f'{self.path(name)}: {error.strerror}') from None

    def path(self, name: str) -> str:
        return str(self.root / name)


class LmdbStorage:
    """An LMDB of encoded images: keys are relative paths without `.png`, listed in its meta_info.txt.

    The database is opened in the process that first reads, since its handles must not be inherited or pickled.
    """

    def __init__(self, root: str, readonly: bool = True, lock: bool = False, readahead: bool = False):
        self.root = Path(root)
        self.settings = {'readonly': readonly, 'lock': lock, 'readahead': readahead}
        if self.root.suffix != '.lmdb' or not (self.root / 'meta_info.txt').is_file():
            raise OptionError(f'{root}: an LMDB is a folder NAME.lmdb with data.mdb and meta_info.txt')
        self._opened: tuple[int, object] | None = None

    def names(self) -> list[str]:
        lines = (self.root / 'meta_info.txt').read_text(encoding='utf-8').splitlines()
        return [line.rpartition('.png (')[0] or line.split('.')[0] for line in lines if line.strip()]

    def read(self, name: str) -> bytes:
        with self._environment().begin(write=False) as transaction:
            value = transaction.get(name.encode('utf-8'))
        if value is None:
            raise ValueError(f'{self.path(name)}: the LMDB has no such key')
        return bytes(value)

    def path(self, name: str) -> str:
        return f'{self.root}/{name}'

    def _environment(self):
        import lmdb
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), lmdb.open(str(self.root), subdir=True, max_readers=512, **self.settings))
            except lmdb.Error as error:
                raise ValueError(f'{self.root}: cannot be opened as an LMDB: {error}') from None
        return self._opened[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_opened': None}


def open_storage(root: str, io_backend: dict) -> FolderStorage | LmdbStorage:
    """The storage of `root` as `io_backend` (`type: disk` or `type: lmdb` and its settings) says."""
    options = {key: value for key, value in io_backend.items() if key != 'type'}
    kinds = {'disk': FolderStorage, 'lmdb': LmdbStorage}
    kind = io_backend.get('type')
    if kind not in kinds:
        raise OptionError(f'{kind!r} is not a known io_backend; known: {", ".join(kinds)}', ('io_backend', 'type'))
    try:
        return kinds[kind](root, **options)
    except TypeError as error:
        raise OptionError(f'io_backend {kind}: {error}', ('io_backend',)) from None
