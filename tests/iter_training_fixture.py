"""Tiny trainings of ITER's stages for tests, without files and as runs."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from option_files import with_changes
from torch import Tensor, nn
from training_fixture import forget_accelerate

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.options import Options, parse_options
from basicsr.utils.registry import ARCH_REGISTRY

DDCONFIG = {'emb_dim': 8, 'resolution': [32, 32], 'nf': 4, 'ch_mult': [1, 1, 2], 'swin_dim': 8, 'swin_window': 2}
DDCONFIG |= {'swin_blk_depth': 2, 'num_res_blocks': 1, 'res_blocks': 1}
VQGAN = {'n_embed': 12, 'embed_dim': 8, 'ddconfig': DDCONFIG}
ADAM = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]}
ADVERSARY = {
    'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
    'train:optim_d': ADAM,
    'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'hinge', 'loss_weight': 0.1},
}
HQ = {
    'model_type': 'SwinVQGANModel',
    'scale': 1,
    'model': {},
    'network_g': {'type': 'SwinVQGAN', **VQGAN},
    'train:optim_g': ADAM,
    'train:pixel_opt': {'type': 'L1Loss'},
    'train:codebook_opt': {'type': 'CodebookLoss'},
}
LQ = {
    'model_type': 'ITERModel',
    'scale': 4,
    'model': {},
    'network_g': {
        'type': 'ITER',
        'scale_factor': 4,
        'vqgan_opt': VQGAN,
        'demask_opt': {'ch': 8, 'swin_blk_num': 1, 'swin_blk_depth': 2},
    },
    'path': {'pretrain_network_hq': 'vqgan.pth'},
    'train:optim_g': ADAM,
    'train:codebook_opt': {'type': 'TokenLoss'},
}
TOKENS = {**LQ, 'network_g': {**LQ['network_g'], 'refine': False}, 'model': {'stages': 'tokens'}}
REFINEMENT = {**LQ, 'model': {'stages': 'refinement'}, 'path': {'pretrain_network_g': 'tokens.pth'}}
STAGES = {'tokens': TOKENS, 'refinement': REFINEMENT, 'joint': LQ}
TREE = {
    'name': 'tiny',
    'device': 'cpu',
    'datasets': {'train': {'type': 'PairedImageDataset', 'dataroot_gt': '.', 'dataroot_lq': '.', 'gt_size': 32}},
    'train': {'total_iter': 100},
    'logger': {'print_freq': 1},
}


def options(*changes: dict[str, Any]) -> Options:
    """A training, with changes such as {'train:optim_d': None}."""
    batch = {'datasets:train:batch_size_per_gpu': 2}
    return parse_options(with_changes(TREE, batch, *changes), is_train=True)


def prepared(*changes: dict[str, Any]) -> BaseModel:
    """The model of `options`, ready to train, always with the same weights."""
    opt = options(*changes)
    forget_accelerate()  # it keeps the precision of the first Accelerator of a process
    torch.manual_seed(0)
    return build_model(opt).prepare(Accelerator(cpu=True, mixed_precision=opt.train.mixed_precision or 'no'))


def write_vqgan(folder: Path) -> Path:
    """FOLDER/vqgan.pth, a VQGAN with random weights whose codes are all used."""
    torch.manual_seed(1)
    net = ARCH_REGISTRY.build({'type': 'SwinVQGAN', **VQGAN})
    nn.init.normal_(net.quantize.embedding.weight)
    torch.save({'params': net.state_dict()}, folder / 'vqgan.pth')
    return folder / 'vqgan.pth'


def write_tokens(folder: Path) -> Path:
    """FOLDER/tokens.pth, what a second stage on FOLDER/vqgan.pth begins with."""
    torch.manual_seed(2)
    net = ARCH_REGISTRY.build(TOKENS['network_g'])
    net.vqgan.load_state_dict(torch.load(write_vqgan(folder))['params'])
    torch.save({'params': net.state_dict()}, folder / 'tokens.pth')
    return folder / 'tokens.pth'


def batch(seed: int = 0, count: int = 2, side: int = 32, scale: int = 4) -> dict[str, Tensor]:
    """A smooth gt and the mean of its squares of scale x scale pixels."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    gt = nn.functional.interpolate(gt, scale_factor=8, mode='bicubic').clamp(0, 1)
    return {'lq': nn.functional.avg_pool2d(gt, scale), 'gt': gt}


def learn(model: BaseModel, iterations: int, first: int = 1, **images: int) -> list[dict[str, float]]:
    """Train on one batch; returns the logged losses of each iteration."""
    logged = []
    for iteration in range(first, first + iterations):
        torch.manual_seed(iteration)
        model.before_step(iteration)
        losses = model.training_step(batch(**images))
        model.after_step(iteration)
        logged.append({name: loss.item() for name, loss in losses.items()})
    return logged


def parameters(model: BaseModel, label: str, part: str = '') -> dict[str, Tensor]:
    """Copies of the entries of a network whose names begin with `part`."""
    state = model.bare(label).state_dict()
    return {name: value.detach().clone() for name, value in state.items() if name.startswith(part)}


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The names of entries that differ."""
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}
