"""Which pictures a command takes, and under which names it writes the results."""

import glob
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr.utils.image import IMAGE_SUFFIXES
from basicsr.utils.registry import UserError

logger = logging.getLogger(__name__)
EXISTING = ('overwrite', 'skip', 'rename')


@dataclass(frozen=True)
class Job:
    """A picture to restore, and the file to write."""

    source: Path
    target: Path


def find_pictures(patterns: Iterable[str]) -> list[Path]:
    """Files as they are named, the images directly inside folders, and those that globs match; each once, in order.

    Raises UserError for a name or glob that gives nothing.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = _images(path.iterdir())
            if not matches:
                raise UserError(f'{pattern}: no images in this folder ({", ".join(IMAGE_SUFFIXES)})')
        elif path.is_file():
            matches = [path]
        elif path.exists():
            raise UserError(f'{pattern}: neither a file nor a folder')
        else:
            matches = _images(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (Path.glob: no absolute pattern)
            if not matches:
                raise UserError(f'{pattern}: no such file or folder, and no image matches it')
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def plan_outputs(
    sources: Sequence[Path], folder: Path, suffix: str = '', extension: str = 'auto', existing: str = 'overwrite'
) -> list[Job]:
    """One file name in `folder` for each source, decided before anything is restored: `<stem><suffix><extension>`.

    Sources that would get one name get `_2`, `_3`, ... A result never takes the place of a source.

    Args:
        extension: 'auto' keeps that of the source, or an image suffix.
        existing: what to do about files that are there: 'overwrite', 'skip' (no job), 'rename' (the next free number).
    """
    if any(c in suffix for c in '/\\\0'):
        raise UserError(f'the suffix {suffix!r} is part of a file name and holds no slashes')
    if extension != 'auto' and extension not in IMAGE_SUFFIXES:
        raise UserError(f'{extension!r} is not a known image suffix; known: auto, {", ".join(IMAGE_SUFFIXES)}')
    if not suffix and any(source.parent.resolve() == folder.resolve() for source in sources):
        raise UserError(f'{folder} holds the input: give a --suffix or another output folder')
    inputs = {(status.st_dev, status.st_ino) for status in (source.stat() for source in sources)}
    jobs, taken = [], set()
    for source in sources:
        ending = _ending(source) if extension == 'auto' else extension
        number = 1
        while True:
            name = f'{source.stem}{suffix}{f"_{number}" if number > 1 else ""}{ending}'
            target = folder / name
            # Two names that differ in case only are one file on some systems.
            if name.casefold() not in taken and not (existing == 'rename' and os.path.lexists(target)):
                break
            number += 1
        taken.add(name.casefold())
        if target.exists() and not target.is_symlink():
            status = target.stat()
            if (status.st_dev, status.st_ino) in inputs or target.is_dir():
                raise UserError(f'{target} is an input or a folder: give a --suffix or another output folder')
        if number > 1:
            logger.info('%s is written as %s', source, name)
        jobs.append(Job(source, target))
    if existing == 'skip':
        kept = [job for job in jobs if not job.target.exists()]
        if len(kept) < len(jobs):
            logger.info('%d of %d results are there already and are skipped', len(jobs) - len(kept), len(jobs))
        return kept
    return jobs


def find_partners(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The image of the same stem in `folder` for each source. Raises UserError naming those without one."""
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of ground truth')
    by_stem = {path.stem: path for path in reversed(_images(folder.iterdir()))}
    missing = [source.name for source in sources if source.stem not in by_stem]
    if missing:
        more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
        raise UserError(f'{folder} has no image of the same name for {", ".join(missing[:5])}{more}')
    return {source: by_stem[source.stem] for source in sources}


def check_folder(folder: Path) -> None:
    """Raise UserError for an output folder that cannot be made; nothing is made yet."""
    if folder.suffix.lower() in IMAGE_SUFFIXES and not folder.is_dir():
        raise UserError(f'{folder}: the output is a folder, not a file')
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = 'may not be written' if there.is_dir() else 'is a file'
        raise UserError(f'cannot write to the output folder {folder}: {there} {reason}')


def prepare_folder(folder: Path) -> None:
    """Make the folder and prove that a file can be written there. Raises UserError in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise UserError(f'cannot write to the output folder {folder}: {error.strerror or error}') from None


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.') and path.is_file()
    )


def _ending(source: Path) -> str:
    ending = source.suffix.lower()
    return ending if ending in IMAGE_SUFFIXES else '.png'
