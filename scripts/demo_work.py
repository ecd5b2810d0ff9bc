"""The web demo's work: one model on the device at a time, restoring that can be stopped, and files that go away.

No web page in here: demo_page.py shows what this gives.
"""

import html
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from demo_controls import Offer, overrides_of, restoring_of
from torch import nn

from basicsr.models.base_model import BaseModel
from basicsr.models.restorer import Restorer
from basicsr.restoring import BROKEN, load_model
from basicsr.utils.image import header_size
from basicsr.utils.messages import LOGGER
from basicsr.utils.picture import Picture
from basicsr.utils.registry import UserError
from basicsr.utils.resize import imresize

Progress = Callable[[int, int], None]
EXAMPLES = 'examples'  # the folder of files that belong to no page


class Stopped(Exception):
    """The work was cancelled, or whoever asked for it has gone."""


@dataclass(frozen=True)
class Upload:
    """A file that was sent, and the name that it had there."""

    path: Path
    name: str

    @property
    def label(self) -> str:
        """The name in messages; long ones are cut."""
        return self.name if len(self.name) <= 60 else f'{self.name[:40]}...{self.name[-15:]}'

    @property
    def stem(self) -> str:
        """The beginning of the result's name, of letters that every system takes."""
        return re.sub(r'[^\w -]', '_', Path(self.name).stem).strip()[:80] or 'image'


@dataclass(frozen=True)
class Result:
    """PNG files of one size: the enlarged input and what was restored; and a line on how."""

    before: Path
    after: Path
    size: tuple[int, int]
    summary: str
    warnings: tuple[str, ...]


@dataclass
class Visit:
    """What one open page has on disk, and how to stop its work."""

    stop: threading.Event = field(default_factory=threading.Event)
    uploads: set[Path] = field(default_factory=set)
    results: list[Path] = field(default_factory=list)  # folders, the newest last


class Visits:
    """The open pages by the server's names for them; what one has on disk goes when it is closed.

    The server keeps equal uploads once, so a file goes with the last page that has it.
    """

    def __init__(self, folder: Path):
        self.folder, self._visits, self._lock = folder, {}, threading.Lock()

    def begin(self, name: str) -> threading.Event:
        """A new piece of work of a page: the event that stops it. A former one of the same page is stopped."""
        with self._lock:
            visit = self._visits.setdefault(name, Visit())
            visit.stop.set()
            visit.stop = threading.Event()
            return visit.stop

    def cancel(self, name: str) -> None:
        with self._lock:
            if name in self._visits:
                self._visits[name].stop.set()

    def uploaded(self, name: str, path: Path) -> None:
        """Note a file that goes with the page."""
        with self._lock:
            self._visits.setdefault(name, Visit()).uploads.add(path)

    def result_folder(self, name: str) -> Path:
        """A new folder for a result of a page; its former results go."""
        place = Path(tempfile.mkdtemp(prefix='result-', dir=self.folder))
        with self._lock:
            visit = self._visits.setdefault(name, Visit())
            old, visit.results = visit.results, [place]
        for one in old:
            shutil.rmtree(one, ignore_errors=True)
        return place

    def end(self, name: str) -> None:
        """Stop a page's work and delete its files."""
        with self._lock:
            visit = self._visits.pop(name, None)
            if visit is None:
                return
            visit.stop.set()
            others = set().union(*(one.uploads for one in self._visits.values()))
        for path in visit.uploads - others:
            path.unlink(missing_ok=True)
        for folder in visit.results:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, age: float) -> None:
        """Delete the files that are older than so many seconds, whoever has them; the examples stay."""
        for path in self.folder.rglob('*'):
            if path.is_file() and path.parent.name != EXAMPLES and time.time() - path.stat().st_mtime > age:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End all visits."""
        for name in list(self._visits):
            self.end(name)


class Workshop:
    """Restores by the models of `offers`, one image at a time.

    Args:
        device: where; the model that was used last stays there.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, offers: Mapping[str, Offer], device: torch.device, max_pixels: int):
        self.offers, self.device, self.max_pixels = offers, device, max_pixels
        self._device_lock = threading.Lock()
        self._loaded: tuple[tuple, BaseModel] | None = None

    def examine(self, upload: Upload) -> tuple[int, int]:
        """(width, height) of a file, from its header. Raises UserError for what is no image, or too large a one."""
        try:
            width, height = header_size(upload.path.read_bytes(), upload.label)
        except (ValueError, OSError) as error:
            raise UserError(said(error, upload)) from None
        if width * height > self.max_pixels:
            raise UserError(
                f'{upload.label} has {width} \u00d7 {height} pixels, {width * height:,} in all: '
                f'this demo takes at most {self.max_pixels:,} (--max-pixels)'
            )
        return width, height

    def restore(
        self,
        name: str,
        values: Mapping[str, Any],
        upload: Upload,
        folder: Path,
        stop: threading.Event,
        progress: Progress | None = None,
    ) -> Result:
        """Restore an image into `folder`.

        Args:
            name, values: the model, and what its controls stand at.
            progress: called with (steps done, steps in all).
        Raises UserError, in words for whoever sent it, or Stopped.
        """
        if name not in self.offers:
            raise UserError(f'{str(name)[:40]!r} is not a model of this demo')
        offer = self.offers[name]
        overrides, settings = overrides_of(offer, values), restoring_of(offer, values)
        self.examine(upload)
        try:
            with self._device_lock, warnings_kept() as warnings:
                return self._restored(offer, overrides, settings, upload, folder, stop, progress, warnings)
        except BROKEN as error:
            raise UserError(said(error, upload)) from None

    def _restored(
        self,
        offer: Offer,
        overrides: list[str],
        settings: Mapping[str, Any],
        upload: Upload,
        folder: Path,
        stop: threading.Event,
        progress: Progress | None,
        warnings: list[str],
    ) -> Result:
        if stop.is_set():
            raise Stopped
        picture = Picture.read(upload.path, self.max_pixels)
        model = self._model(offer.known.name, overrides)
        restorer, start = Restorer(model, **settings, dtype='auto'), time.monotonic()

        def advance(done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped
            if progress:
                progress(done, total)

        with stoppable(model.nets.values(), stop):
            sr = restorer(picture.lq, advance)
            alpha = None if picture.alpha is None else restorer(picture.alpha.expand(-1, 3, -1, -1), advance)
        seconds = time.monotonic() - start
        before, after = folder / 'enlarged.png', folder / f'{upload.stem}_x{offer.scale}.png'
        picture.save(before, imresize(picture.lq, offer.scale).clamp(0, 1))
        picture.save(after, sr, alpha)
        (height, width), (rows, columns) = sr.shape[-2:], picture.lq.shape[-2:]
        summary = (
            f'{columns} \u00d7 {rows} \u2192 {width} \u00d7 {height} pixels by {offer.known.name} in {seconds:.1f} s '
            f'({self.device}, {restorer.dtype})'
        )
        return Result(before, after, (width, height), summary, tuple(dict.fromkeys(warnings)))

    def _model(self, name: str, overrides: list[str]) -> BaseModel:
        """A model with its weights on the device; it stays until another one, or other options, are asked for."""
        key = name, *overrides
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # its memory goes before the next one's is needed
            self._loaded = key, load_model(name, None, None, True, overrides).to(self.device)
        return self._loaded[1]


@contextmanager
def stoppable(nets: Iterable[nn.Module], stop: threading.Event) -> Iterator[None]:
    """Inside, networks that are called look before each of their layers whether to stop, and raise Stopped."""

    def look(*_: object) -> None:
        if stop.is_set():
            raise Stopped

    handles = [module.register_forward_pre_hook(look) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """A list of what this thread warns of inside, such as memory that ran out; it is logged as well."""
    kept: list[str] = []
    handler, thread = logging.Handler(logging.WARNING), threading.get_ident()
    handler.emit = lambda record: kept.append(record.getMessage())
    handler.addFilter(lambda record: record.thread == thread)
    LOGGER.addHandler(handler)
    try:
        yield kept
    finally:
        LOGGER.removeHandler(handler)


def said(error: Exception, upload: Upload) -> str:
    """An error in one line, without the server's paths."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text.replace(str(upload.path), upload.label)


def message(text: str, kind: str = 'note', more: Iterable[str] = ()) -> str:
    """HTML of what a person is told: a 'note', 'done' or an 'error', and further lines."""
    role = 'alert' if kind == 'error' else 'status'
    lines = ''.join(f'<p class="more">{html.escape(line)}</p>' for line in more)
    return f'<div class="message {kind}" role="{role}"><p>{html.escape(text)}</p>{lines}</div>' if text else ''
