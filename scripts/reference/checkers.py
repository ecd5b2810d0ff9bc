"""Imports every file of this folder, so that each checker is registered: a new file needs no list to be named in."""

import importlib
from pathlib import Path

for path in sorted(Path(__file__).parent.glob('*.py')):
    if path.stem not in ('__init__', Path(__file__).stem):
        importlib.import_module(f'reference.{path.stem}')
