"""What a made folder was made of: NAME.jsonl beside it, its recipe in the first line, then a line for each image.

By the recipe, a stopped run goes on only with images of its own kind, and a data set can be made once more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from preparing import UserError, write_atomic


class Journal:
    """The record of a folder; as a context manager it is sorted by name when the work is done.

    made: what was recorded before, by name.

    Args:
        recipe: whatever the images depend on besides their sources. Raises UserError if the folder was made by
            another one, or holds images of an unknown one.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]):
        self.folder, self.path = folder, journal_path(folder)
        self.recipe = json.loads(json.dumps(recipe))
        self.made: dict[str, dict] = {}
        self._file: TextIO | None = None
        if self.path.is_file():
            self._read()
        elif folder.is_dir() and any(folder.iterdir()):
            raise UserError(f'{folder}: holds files that no {self.path.name} tells the origin of; give a new folder')

    def _read(self) -> None:
        lines = []
        for text in self.path.read_text(encoding='utf-8').splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the end of a run that was killed while it wrote
                break
        before = lines[0].get('recipe') if lines and isinstance(lines[0], dict) else None
        if not isinstance(before, dict):
            raise UserError(f'{self.path}: is no record of this script; give another folder')
        if before != self.recipe:
            different = sorted(k for k in {*before, *self.recipe} if before.get(k) != self.recipe.get(k))
            says = '; '.join(f'{k} was {_short(before.get(k))}, not {_short(self.recipe.get(k))}' for k in different)
            raise UserError(
                f'{self.folder}: was made otherwise ({says}); delete it and {self.path}, or give a new folder'
            )
        self.made = {line['name']: line for line in lines[1:]}

    def __enter__(self) -> 'Journal':
        self._write()
        self._file = self.path.open('a', encoding='utf-8')
        return self

    def add(self, name: str, **parameters: Any) -> None:
        """Record an image that was written: numbers, texts and lists by name."""
        self.made[name] = json.loads(json.dumps({'name': name, **parameters}))
        self._file.write(json.dumps(self.made[name]) + '\n')
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._write()

    def _write(self) -> None:
        lines = [{'recipe': self.recipe}, *(self.made[name] for name in sorted(self.made))]
        write_atomic(self.path, ''.join(json.dumps(line) + '\n' for line in lines).encode())


def journal_path(folder: Path) -> Path:
    """Beside the folder: `lq_x4` has `lq_x4.jsonl`."""
    return folder.resolve().with_name(f'{folder.resolve().name}.jsonl')


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f'{text[:60]}...'
