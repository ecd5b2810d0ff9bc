"""Tiny trainings for tests: a folder with images and option files, runs in this process and in others."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState

from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.image import write_image
from basicsr.utils.messages import LOGGER
from basicsr.utils.options import load_options

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = Path(__file__).with_name('training_plugins.py')
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
ACCELERATE = (sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '1')

OPTIONS = {
    'name': 'run',
    'model_type': 'SRModel',
    'scale': 2,
    'manual_seed': 3,
    'device': 'cpu',
    'custom_imports': [str(PLUGINS)],
    'datasets': {
        'train': {
            'name': 'noise', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'gt_size': 16,
            'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2,
        },
        'val': {'name': 'held out', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'},
    },
    'network_g': {'type': 'TinyNet', 'scale': 2},
    'train': {
        'total_iter': 8,
        'warmup_iter': 3,
        'ema_decay': 0.9,
        'optim_g': {'type': 'AdamW', 'lr': 1e-2},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [4, 6], 'gamma': 0.5},
        'pixel_opt': {'type': 'L1Loss'},
    },
    'val': {'val_freq': 0, 'protocol': 'sr_y'},
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 4},
}  # fmt: skip
ADVERSARIAL = {
    'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
    'train:optim_d': {'type': 'Adam', 'lr': 1e-3},
    'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
}


def make_images(folder: Path, count: int = 6, scale: int = 2, size: tuple[int, int] = (12, 11)) -> None:
    """`count` random pairs under lq/ and gt/."""
    rng = np.random.default_rng(0)
    for number in range(count):
        lq = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        write_image(folder / 'lq' / f'{number}.png', lq)
        write_image(folder / 'gt' / f'{number}.png', lq.repeat(scale, 0).repeat(scale, 1))


class Workplace:
    """A folder to train in; runs differ from OPTIONS by changes such as {'train:total_iter': 3}."""

    def __init__(self, folder: Path, **images: Any):
        self.folder = folder
        make_images(folder, **images)

    def options(self, name: str = 'run', changes: dict[str, Any] | None = None) -> Path:
        """Write the option file of the run `name`; a value of None removes an option."""
        tree = yaml.safe_load(yaml.safe_dump({**OPTIONS, 'name': name}))
        for key, value in (changes or {}).items():
            *sections, last = key.split(':')
            section = tree
            for part in sections:
                section = section[part]
            section[last] = value
            if value is None:
                del section[last]
        path = self.folder / f'{name}.yml'
        path.write_text(yaml.safe_dump(tree))
        return path

    def train(self, name: str = 'run', changes: dict[str, Any] | None = None, resume: bool = False) -> int:
        """Train in this process; returns the exit status."""
        with contextlib.chdir(self.folder):
            return train_here(load_options(self.options(name, changes), True), resume)

    def start(
        self,
        name: str = 'run',
        changes: dict[str, Any] | None = None,
        *,
        flags: tuple[str, ...] = (),
        launcher: tuple[str, ...] = (sys.executable,),
        script: str = 'train',
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.Popen:
        """Start a training, or another script of basicsr/, as a process of its own."""
        file = (
            self.options(name, changes)
            if changes is not None or not (self.folder / f'{name}.yml').exists()
            else self.folder / f'{name}.yml'
        )
        command = [*launcher, str(ROOT / 'basicsr' / f'{script}.py'), '-opt', str(file), *flags]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTEST', 'PYTHONPATH'))}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**clean, 'OMP_NUM_THREADS': '1', **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def process(self, *arguments: Any, status: int | None = 0, **settings: Any) -> str:
        """As `start`, to its end; returns what it printed. The exit status must be `status`, if that is a number."""
        process = self.start(*arguments, **settings)
        output, errors = process.communicate(timeout=240)
        assert status is None or process.returncode == status, f'{process.returncode}\n{output}\n{errors}'
        return output + errors

    def saved(self, name: str, iteration: int = 8) -> dict:
        """All that a run saved at an iteration: networks with averages, optimizers, schedules, positions."""
        folder = self.folder / 'experiments' / name
        networks = {
            path.name: read_checkpoint(path) for path in sorted((folder / 'models').glob(f'net_*_{iteration}.pth'))
        }
        assert networks
        return {**networks, 'state': read_checkpoint(folder / 'training_states' / f'{iteration}.state')}

    def log(self, name: str) -> str:
        """The text of all logs of a run."""
        files = sorted((self.folder / 'experiments' / name).glob('train_*.log'))
        return ''.join(path.read_text() for path in files)


def train_here(opt: Any, resume: bool = False) -> int:
    """basicsr.train.train in this process, as it would be in a fresh one with one thread."""
    from basicsr.launch import launched
    from basicsr.train import train

    with _fresh_process(), launched(opt) as accelerator:
        return train(opt, accelerator, resume)


@contextlib.contextmanager
def _fresh_process() -> Iterator[None]:
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    forget_accelerate()
    try:
        yield
    finally:
        forget_accelerate()
        torch.set_num_threads(threads)
        torch.set_rng_state(random_state)
        for handler in LOGGER.handlers[:]:
            handler.close()
            LOGGER.removeHandler(handler)


def forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def differences(ours: Any, theirs: Any, path: str = '', tolerance: float = 0) -> list[str]:
    """Where two nested values are not equal; with the default tolerance, bit for bit."""
    if isinstance(ours, torch.Tensor):
        if not isinstance(theirs, torch.Tensor) or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return [f'{path}: another kind of value']
        if tolerance == 0:
            return [] if torch.equal(ours, theirs) else [f'{path}: {(ours - theirs).abs().max()}']
        return (
            [] if torch.allclose(ours, theirs, rtol=0, atol=tolerance) else [f'{path}: {(ours - theirs).abs().max()}']
        )
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return [f'{path}: {sorted(map(str, ours.keys() ^ theirs.keys()))}']
        return [d for key in ours for d in differences(ours[key], theirs[key], f'{path}/{key}', tolerance)]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [
            d
            for n, pair in enumerate(zip(ours, theirs, strict=True))
            for d in differences(*pair, f'{path}/{n}', tolerance)
        ]
    return [] if ours == theirs else [f'{path}: {ours!r} and {theirs!r}']


def iterations_logged(text: str) -> list[int]:
    return [int(number.replace(',', '')) for number in re.findall(r'iter: +([\d,]+), lr', text)]
