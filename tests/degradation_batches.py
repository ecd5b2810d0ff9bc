"""Batches of small images with kernels for tests of the second-order degradation."""

import torch
from torch import Tensor

from basicsr.data.degradations.realesrgan import RealESRGANDegradation

KERNELS = ('kernel1', 'kernel2', 'sinc_kernel')


def random_kernels(size: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Three sharp but asymmetric kernels for each sample."""
    kernels = torch.rand(3, size, 21, 21, generator=torch.Generator().manual_seed(seed)) ** 8
    kernels[..., 10, 10] += 20
    return tuple(kernels / kernels.sum((-1, -2), keepdim=True))


def image(size: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth images with edges: noise of a coarse grid, enlarged, and a few flat steps."""
    coarse = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode='bilinear')
    return (smooth * 6).round() / 12 + smooth / 2


def make_batch(numbers, height: int = 64, width: int = 64, seed: int = 0) -> dict:
    """A batch whose content depends on the numbers alone."""
    samples = [(image(1, height, width, seed + n), random_kernels(1, seed + n)) for n in numbers]
    kernels = [torch.cat(k) for k in zip(*(kernels for _, kernels in samples))]
    return {
        'gt': torch.cat([gt for gt, _ in samples]),
        **dict(zip(KERNELS, kernels)),
        'number': torch.tensor(list(numbers)),
        'gt_path': [f'{n}.png' for n in numbers],
    }


def real_esrgan(scale: int = 2, seed: int = 0, global_batch: int = 4, **options) -> RealESRGANDegradation:
    """One for small images: at least 11 pixels stay."""
    small = {'gt_size': 32, 'queue_size': 0, 'resize_range': (0.3, 1.5)}
    return RealESRGANDegradation(scale, seed, global_batch, **small | options)


def kernels_of(batch: dict) -> tuple[Tensor, ...]:
    return tuple(batch[name] for name in KERNELS)
