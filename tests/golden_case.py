"""Reference cases for tests: those copied to tests/golden, read by the code that scripts/check_reference.py uses."""

import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / 'golden'
sys.path.insert(0, str(GOLDEN.parents[1] / 'scripts'))

from reference.case import Case, filled, image, load  # noqa: E402 (scripts/ is no package: its folder must be found first)

__all__ = ['GOLDEN', 'Case', 'filled', 'image', 'load_case']


def load_case(system: str, name: str) -> Case:
    """The copy of a reference case: `spec`, `arrays`, `inputs`, `weights`, and `fill(net)`, which loads the weights."""
    return load(GOLDEN / system / f'{name}.json')
