"""A folder that appears whole or not at all, whatever ends the process that writes it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from basicsr.utils.registry import UserError


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write into; at the end it is flushed to disk and renamed to `path`.

    An error inside leaves nothing; a killed process leaves the hidden folder, which the next call for the same `path`
    clears. Raises UserError if `path` is there or another process is writing it, OSError naming it if it cannot be
    written.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name
    part = path.with_name(f'.{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if os.path.lexists(path):
                raise UserError(f'{path}: is there already')
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                yield part
                for written in [*part.rglob('*'), part]:
                    _flush(written)
                part.rename(path)
                _flush(path.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise OSError(error.errno, f'cannot write {path}: {error.strerror or error}') from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f'.{path.name}.lock'))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not Path(lock.lock_file).exists():
            raise OSError(errno.EACCES, 'the folder around it cannot be written to') from None
        raise UserError(f'{path}: another process is writing it') from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it when it is released, and not before
            Path(lock.lock_file).unlink()
        lock.release()


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name != 'posix':  # elsewhere folders cannot be opened
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
