"""Imported into the trainings of the tests by `custom_imports`: tiny parts, and signals at chosen moments.

The environment variable SIGNAL_AT names a moment, SIGNAL the numbers of the signals that the process then sends itself
(negative: to its whole process group).
"""

import io
import os
import signal
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import checkpoint, experiment
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, DEGRADATION_REGISTRY, LOSS_REGISTRY


@ARCH_REGISTRY.register()
class TinyNet(nn.Module):
    """Two convolutions with dropout between, so that a run depends on torch's random numbers."""

    def __init__(self, scale: int, dropout: float = 0.1):
        super().__init__()
        self.first, self.dropout = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout)
        self.last = nn.Sequential(nn.Conv2d(8, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lq: Tensor) -> Tensor:
        return self.last(self.dropout(torch.relu(self.first(lq))))


@DATASET_REGISTRY.register()
class RecordingDataset(PairedImageDataset):
    """Writes down which process read which image."""

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        with Path(f'reads_{os.environ.get("RANK", "0")}.txt').open('a') as file:
            file.write(Path(item['gt_path']).name + '\n')
        return item


@DATASET_REGISTRY.register()
class FailingDataset(PairedImageDataset):
    """Raises for one image, in a way that no data set of ours does."""

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        if item['gt_path'].endswith('3.png'):
            raise ZeroDivisionError('a fault in the code of a data set')
        return item


@DEGRADATION_REGISTRY.register()
class AveragingDegradation(nn.Module):
    """A degradation as docs/data.md describes one: nothing but `forward`."""

    def __init__(self, scale: int, seed: int, global_batch: int, gt_size: int = 16):
        super().__init__()
        self.scale, self.gt_size = scale, gt_size

    def forward(self, batch: dict) -> dict:
        gt = batch['gt'][..., : self.gt_size, : self.gt_size]
        return {'gt': gt, 'lq': nn.functional.avg_pool2d(gt, self.scale)}


@LOSS_REGISTRY.register()
class PoisonedLoss(nn.Module):
    """Mean squared error, but NaN (or a NaN gradient) in the given calls, counted from 1."""

    def __init__(self, calls: list[int], gradient_only: bool = False):
        super().__init__()
        self.poisoned, self.gradient_only, self.call = calls, gradient_only, 0

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        self.call += 1
        loss = (sr - gt).square().mean()
        if self.call not in self.poisoned:
            return loss
        return loss + (0 * sr).abs().sum().sqrt() if self.gradient_only else loss * float('nan')


def moment(name: str) -> None:
    """Send the signals that are due at this moment."""
    if os.environ.get('SIGNAL_AT') == name and os.environ.get('RANK', '0') == os.environ.get('SIGNAL_RANK', '0'):
        for number in os.environ['SIGNAL'].split(','):
            if int(number) < 0:  # as from a terminal, by a process outside the group
                subprocess.run(['kill', number, '--', f'-{os.getpgid(0)}'], start_new_session=True, check=True)
                time.sleep(0.5)  # another thread may get it, which a busy machine may not run at once
            else:
                os.kill(os.getpid(), int(number))
                signal.getsignal(int(number))  # a bytecode or two, in which Python calls its handler


def _watch() -> None:
    save, enter, write = torch.save, checkpoint._enter, experiment.write_checkpoint
    log, save_states = experiment.Experiment.log, experiment.Experiment.save

    def half_saved(content: object, file: io.BufferedWriter) -> None:
        name = '.'.join(Path(file.name).name.split('.')[1:-2])
        if os.environ.get('SIGNAL_AT') == f'half of {name} is written':
            buffer = io.BytesIO()
            save(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            moment(f'half of {name} is written')
        save(content, file)

    def entered(path: Path, entry: dict | None) -> None:
        moment(f'{path.name} is written but not listed')
        enter(path, entry)
        moment(f'{path.name} is listed but not renamed')

    def written(path: Path, content: dict) -> None:
        write(path, content)
        moment(f'{Path(path).name} is complete')

    def logged(self: experiment.Experiment, iteration: int, *values: object) -> None:
        log(self, iteration, *values)
        moment(f'iteration {iteration} is logged')

    def saved_by_all(self: experiment.Experiment, model: object, iteration: int, *counts: object) -> None:
        if os.environ.get('SAVE_EVERY_RANK'):
            save(model.networks(), f'rank{self.accelerator.process_index}_{iteration}.pth')
        save_states(self, model, iteration, *counts)

    torch.save, checkpoint._enter, experiment.write_checkpoint = half_saved, entered, written
    experiment.Experiment.log, experiment.Experiment.save = logged, saved_by_all


if {'SIGNAL_AT', 'SAVE_EVERY_RANK'} & os.environ.keys():
    _watch()
