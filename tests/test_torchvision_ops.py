"""The cure for a CPU torch beside a CUDA torchvision: seen in fresh interpreters, where torch calls the entry point."""

import os
import subprocess
import sys
from pathlib import Path

import basicsr_torchvision_ops


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment, cwd=folder)


def test_torchvision_and_what_stands_on_it_can_be_imported(tmp_path):
    done = python('import torchvision, lpips, spandrel', tmp_path)
    assert done.returncode == 0, done.stderr


def test_torch_can_be_imported_where_another_basicsr_comes_first(tmp_path):
    (tmp_path / 'basicsr').mkdir()
    (tmp_path / 'basicsr' / '__init__.py').write_text('')
    done = python('import torch, basicsr; print(basicsr.__file__)', tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_nothing_is_declared_when_torchvision_is_missing_or_fits_this_torch(monkeypatch):
    monkeypatch.setattr(basicsr_torchvision_ops, '_schemas', None)

    def missing(name: str) -> str:
        raise basicsr_torchvision_ops.importlib.metadata.PackageNotFoundError(name)

    for version in (missing, lambda name: '0.28.0+cpu'):
        monkeypatch.setattr(basicsr_torchvision_ops.importlib.metadata, 'version', version)
        basicsr_torchvision_ops.declare_missing_operators()
        assert basicsr_torchvision_ops._schemas is None
