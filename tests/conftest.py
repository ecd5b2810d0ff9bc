"""Every test process, and those that it starts, computes on one core: `pytest -n` runs several at once."""

import os

os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported

import pytest


@pytest.fixture(autouse=True)
def _environment():
    """What a test, or a program that it calls, says by environment variables is forgotten after it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
