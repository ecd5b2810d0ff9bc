"""What the scripts that prepare data share: looking through a folder before any work starts, work in several processes,
outputs that appear whole or not at all, and faults of the user said in lines of text.

A script lists its images by `survey`, says all faults at once by `refuse`, does the work by `run_jobs`, and
writes by `write_png` or `write_image`, so that a stopped run may be started again by the same command.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.data.storage import open_storage
from basicsr.utils.image import decode_pixels, header_size, write_atomic
from basicsr.utils.image_codec import Pixels, decode, expected_format
from basicsr.utils.registry import UserError

SHOWN = 50  # faults; more would hide the first ones
HEADER_BYTES = 1 << 16  # enough for the header of nearly every image; the others are read whole


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: {message}\n')

    def add_workers(self) -> None:
        self.add_argument(
            '--workers', type=whole(1), default=os.cpu_count() or 1, help='processes (default: all cores)'
        )

    @contextmanager
    def faults_in_words(self) -> Iterator[None]:
        """Inside, a fault of the user (status 2) or of the disk (1) ends the program without a traceback."""
        try:
            yield
        except UserError as error:
            self.exit(2, f'{self.prog}: {error}\n')
        except OSError as error:  # ours name the file in their text, where Python would put the number before it
            self.exit(1, f'{self.prog}: {error.strerror if error.strerror and not error.filename else error}\n')
        except KeyboardInterrupt:
            self.exit(130, f'{self.prog}: stopped; the same command goes on from here\n')


def whole(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least `least`."""

    def number(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} should be a whole number of at least {least}')
        return int(text)

    return number


@dataclass(frozen=True)
class Source:
    """An image of a folder: its name relative to the folder, with `/`, and its size upright by EXIF."""

    folder: Path
    name: str
    width: int
    height: int

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def png(self) -> str:
        """The name as a PNG file."""
        return str(PurePosixPath(self.name).with_suffix('.png'))


def survey(folder: Path, recursive: bool = False) -> tuple[list[Source], list[str]]:
    """The images of a folder, sorted by name, and what is wrong with others: empty, truncated, mislabelled, no image.

    Hidden files and files without an image suffix are passed over. Raises UserError if there is no image at all.
    """
    names = open_storage(str(folder), {'type': 'disk'}).names()
    names = [name for name in names if recursive or '/' not in name]
    if not names:
        raise UserError(f'{folder}: holds no images{"" if recursive else " (its sub-folders are not looked through)"}')
    with ThreadPoolExecutor(8) as pool:  # waiting for a disk is most of it
        found = list(pool.map(partial(_examined, folder), names))
    return [item for item in found if isinstance(item, Source)], [item for item in found if isinstance(item, str)]


def _examined(folder: Path, name: str) -> Source | str:
    path = folder / name
    try:
        with path.open('rb') as file:
            start = file.read(HEADER_BYTES)
            file.seek(max(0, path.stat().st_size - 64))
            end = file.read()
        kind, promised = _format(start), expected_format(name)
        if kind and promised != kind:
            return f'{path} is mislabelled: its content is {kind}; rename it'
        try:
            width, height = header_size(start, str(path))
        except ValueError:
            width, height = header_size(path.read_bytes(), str(path))
        if not _ends_whole(kind, end):
            decode_pixels(path.read_bytes(), str(path))
    except OSError as error:
        return f'{path}: {error.strerror}'
    except ValueError as error:
        return str(error)
    return Source(folder, name, width, height)


def _format(start: bytes) -> str | None:
    starts = {b'\x89PNG\r\n\x1a\n': 'PNG', b'\xff\xd8\xff': 'JPEG', b'BM': 'BMP', b'II*\0': 'TIFF', b'MM\0*': 'TIFF'}
    known = [kind for magic, kind in starts.items() if start.startswith(magic)]
    return known[0] if known else 'WEBP' if start[:4] == b'RIFF' and start[8:12] == b'WEBP' else None


def _ends_whole(kind: str | None, end: bytes) -> bool:
    """Whether the last bytes are those of a whole file; of formats without an end marker that is not known."""
    return (kind == 'PNG' and end.endswith(b'IEND\xaeB`\x82')) or (
        kind == 'JPEG' and end.rstrip(b'\0').endswith(b'\xff\xd9')
    )


def clashes(sources: Iterable[Source], output: Callable[[Source], Hashable]) -> list[str]:
    """What is wrong with sources that would be written to one and the same output."""
    first: dict[Hashable, Source] = {}
    return [
        f'{source.path}: {first[output(source)].path} would be written to the same place'
        for source in sources
        if first.setdefault(output(source), source) is not source
    ]


def refuse(faults: Sequence[str]) -> None:
    """Raise UserError that lists the faults, if there are any: before anything is written."""
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        raise UserError(f'{len(faults)} faults, nothing was started:\n  {_listed(faults)}')


def _listed(faults: Sequence[str]) -> str:
    more = [f'... and {len(faults) - SHOWN} more'] if len(faults) > SHOWN else []
    return '\n  '.join([*faults[:SHOWN], *more])


def check_folders(source: Path, outputs: Iterable[Path | None], recursive: bool = False) -> None:
    """Raise UserError if results would be taken for sources by the next run, or two kinds of them would mix."""
    given = [output.resolve() for output in outputs if output is not None]
    for output in given:
        if output == source.resolve() or (recursive and output.is_relative_to(source.resolve())):
            raise UserError(f'{output}: results may not be written into the folder of the sources')
    if len(set(given)) < len(given):
        raise UserError(f'{given[0]}: two kinds of results would be written into one folder')


def read_pixels(path: Path) -> Pixels:
    """An image file in its own depth and channels (gray stays gray, alpha stays). Raises ValueError that names it."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f'{path}: {error.strerror}') from None


def is_whole(path: Path, width: int, height: int) -> bool:
    """Whether a file is an image of that size that decodes to its end."""
    try:
        return path.is_file() and read_pixels(path).array.shape[:2] == (height, width)
    except ValueError:
        return False


def is_current(output: Path, source: Path, width: int, height: int) -> bool:
    """Whether an output of that size is there, whole, and not older than its source: then it is kept."""
    return (
        output.is_file() and output.stat().st_mtime_ns >= source.stat().st_mtime_ns and is_whole(output, width, height)
    )


def encoded_png(pixels: np.ndarray, compression: int = 3) -> bytes:
    """(h, w) or (h, w, c) uint8 or uint16, channels as in `Pixels`, as a PNG file; compression is 0 to 9."""
    array = np.atleast_3d(pixels)
    if array.shape[2] == 2:  # OpenCV has no gray with alpha: four channels hold the same picture
        array = array[..., [0, 0, 0, 1]]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    return cv2.imencode('.png', array[..., order], [cv2.IMWRITE_PNG_COMPRESSION, compression])[1].tobytes()


def write_png(path: Path, pixels: np.ndarray, compression: int = 3) -> None:
    """`encoded_png` as a file, which is there whole or not at all."""
    write_atomic(path, encoded_png(pixels, compression))


def run_jobs(
    job: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    title: str,
    unit: str = 'image',
    all_or_nothing: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """(item, job(item)) of every item, as they are finished, by spawned processes with a progress bar.

    all_or_nothing: results come in the order of the items, and are of no use unless all of them come.

    The job must be importable and raise ValueError naming the file for an input that cannot be used: the others are
    still done, and in the end a UserError lists all of these. Any other error ends the work at once. One worker works
    in this process. Nothing depends on the number of workers: each computes on one core.
    """
    faults = []
    with tqdm(total=len(items), desc=title, unit=unit, disable=None) as progress:
        results = (
            _serial(job, items)
            if workers == 1
            else _spawned(job, items, min(workers, max(1, len(items))), all_or_nothing)
        )
        for item, result in results:
            progress.update()
            if isinstance(result, _Fault):
                faults.append(result.message)
            else:
                yield item, result
    if faults:
        done = f'; the other {len(items) - len(faults)} are done' if len(items) > len(faults) else ''
        done = '; nothing was written' if all_or_nothing else done
        raise UserError(f'{len(faults)} of {len(items)} could not be used{done}:\n  {_listed(sorted(faults))}')


@dataclass(frozen=True)
class _Fault:
    message: str


def _attempt(job: Callable[[Any], Any], item: Any) -> Any:
    try:
        return job(item)
    except ValueError as error:
        return _Fault(str(error))
    except MemoryError:
        raise UserError(f'{_named(item)}: there is not enough memory for it; try fewer --workers') from None


def _named(item: Any) -> str:
    return str(getattr(item, 'path', item))


def _serial(job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        for item in items:
            yield item, _attempt(job, item)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _spawned(
    job: Callable[[Any], Any], items: Sequence[Any], workers: int, in_order: bool
) -> Iterator[tuple[Any, Any]]:
    """A few items per process are on their way at a time: results that nobody has taken yet do not pile up."""
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: dict[Future, Any] = {}
    rest = iter(items)
    try:
        while True:
            with _children_deaf_to_interrupts():  # each submission may start one more worker
                for item in islice(rest, 4 * workers - len(pending)):
                    pending[pool.submit(_attempt, job, item)] = item
            if not pending:
                return
            for future in [next(iter(pending))] if in_order else wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending[future], future.result()
                del pending[future]
    except BrokenProcessPool:
        names = ', '.join(_named(item) for item in pending.values())
        raise UserError(
            f'a worker process ended early, perhaps for want of memory (try fewer --workers), at one of: {names}'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside leave Ctrl-C to this one: they inherit that it is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """One core each; when the main process is killed, its workers end too."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait_for([multiprocessing.parent_process().sentinel])
    os._exit(1)
