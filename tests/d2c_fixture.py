"""Tiny D2C-SR models for tests, with networks that are no more than a few convolutions."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from training_fixture import forget_accelerate

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.options import Options, parse_options
from basicsr.utils.registry import ARCH_REGISTRY

DIVERGENCE = {'type': 'TripletDivergenceLoss', 'loss_weight': 1.0, 'margin_same': 0.1, 'margin_diff': 0.3}
ADAM = {'type': 'Adam', 'lr': 1e-3}


@ARCH_REGISTRY.register()
class TinyBranches(nn.Module):
    """Four enlargements of a common feature map; dropout lets a run depend on torch's random numbers."""

    def __init__(self, scale: int, dropout: float = 0.0):
        super().__init__()
        self.head, self.dropout = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(dropout)
        self.tails = nn.ModuleList(nn.Conv2d(8, 3 * scale**2, 3, padding=1) for _ in range(4))
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, lq: Tensor) -> Tensor:
        features = self.dropout(torch.relu(self.head(lq)))
        return torch.stack([self.shuffle(tail(features)) for tail in self.tails], 1)


@ARCH_REGISTRY.register()
class TinyFusion(nn.Module):
    """A blend by the softmax of one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.conv(branches.flatten(1, 2)).softmax(1)
        return (branches * weights[:, :, None]).sum(1), weights


def options(changes: dict[str, Any] | None = None) -> Options:
    """A training of the tiny networks, with changes such as {'train:optim_f': None}."""
    tree = {
        'name': 'tiny',
        'model_type': 'D2CModel',
        'scale': 2,
        'device': 'cpu',
        'datasets': {
            'train': {
                'type': 'PairedImageDataset',
                'dataroot_gt': '.',
                'dataroot_lq': '.',
                'gt_size': 16,
                'batch_size_per_gpu': 2,
            }
        },
        'network_g': {'type': 'TinyBranches', 'scale': 2},
        'network_f': {'type': 'TinyFusion'},
        'model': {},
        'path': {},
        'train': {
            'total_iter': 10,
            'optim_g': dict(ADAM),
            'optim_f': dict(ADAM),
            'pixel_opt': {'type': 'MSELoss'},
            'divergence_opt': dict(DIVERGENCE),
        },
    }
    for key, value in (changes or {}).items():
        *sections, last = key.split(':')
        section = tree
        for part in sections:
            section = section[part]
        section[last] = value
        if value is None:
            del section[last]
    return parse_options(tree, is_train=True)


def prepared(changes: dict[str, Any] | None = None, seed: int = 0) -> BaseModel:
    """The model of `options`, ready to train, with weights that follow from the seed."""
    opt = options(changes)
    forget_accelerate()  # it keeps the precision of the first Accelerator of a process
    torch.manual_seed(seed)
    return build_model(opt).prepare(Accelerator(cpu=True, mixed_precision=opt.train.mixed_precision or 'no'))


def batch(seed: int = 0, count: int = 2, side: int = 8, scale: int = 2) -> dict[str, Tensor]:
    """A smooth gt and the mean of its squares of scale x scale pixels."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(count, 3, side, side, generator=generator)
    gt = nn.functional.interpolate(gt, scale_factor=scale, mode='bicubic').clamp(0, 1)
    return {'lq': nn.functional.avg_pool2d(gt, scale), 'gt': gt}


def learn(model: BaseModel, iterations: int, **images: int) -> list[dict[str, float]]:
    """Train on one batch; returns the logged losses of each iteration."""
    logged = []
    for iteration in range(1, iterations + 1):
        model.before_step(iteration)
        losses = model.training_step(batch(**images))
        model.after_step(iteration)
        logged.append({name: loss.item() for name, loss in losses.items()})
    return logged


def parameters(model: BaseModel, label: str) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.bare(label).parameters()]
