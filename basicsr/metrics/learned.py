"""Metrics that are trained networks: LPIPS, and those of the optional package pyiqa."""

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY, OptionError


@METRIC_REGISTRY.register()
@torch.no_grad()
def lpips(sr: Tensor, gt: Tensor, net: Literal['alex', 'vgg', 'squeeze'] = 'alex', crop_border: int = 0) -> Tensor:
    """Learned perceptual distance (arXiv:1801.03924), one per image; lower is closer.

    Args:
        net: the network whose features are compared; the first use may download its weights.
        crop_border: pixels left out at each side.
    Shape: two (b, 3, h, w) in [0, 1] -> (b,). Raises OptionError if the weights cannot be had.
    """
    if sr.shape != gt.shape:
        raise ValueError(f'lpips needs images of one size, got sr {tuple(sr.shape)} and gt {tuple(gt.shape)}')
    inside = slice(crop_border, -crop_border or None)
    return _lpips(net, sr.device)(sr[..., inside, inside].float(), gt[..., inside, inside].float())


@METRIC_REGISTRY.register()
@torch.no_grad()
def pyiqa(sr: Tensor, gt: Tensor, metric: str) -> Tensor:
    """A metric of pyiqa that compares with gt (dists, lpips-vgg, ...), by its name there; one value per image.

    pyiqa is an extra because its licence is non-commercial. Its own PSNR and SSIM measure another luma by default.
    Shape: (b, 3, h, w) in [0, 1] twice -> (b,).
    """
    return _pyiqa(metric, 'FR', sr.device)(sr.float(), gt.float()).flatten()


@METRIC_REGISTRY.register()
@torch.no_grad()
def pyiqa_nr(sr: Tensor, metric: str) -> Tensor:
    """A metric of pyiqa that looks at sr alone (musiq, clipiqa, maniqa, ...): (b, 3, h, w) in [0, 1] -> (b,)."""
    return _pyiqa(metric, 'NR', sr.device)(sr.float()).flatten()


@lru_cache(maxsize=4)
def _lpips(net: str, device: torch.device) -> nn.Module:
    return ARCH_REGISTRY.build({'type': 'LPIPS', 'net': net}).to(device)


@lru_cache(maxsize=8)
def _pyiqa(metric: str, mode: Literal['FR', 'NR'], device: torch.device) -> Any:
    try:
        from pyiqa import create_metric, list_models
    except ImportError:
        raise OptionError(
            f'metric {metric!r} needs the package pyiqa (licence: non-commercial use only): pip install pyiqa',
            ('metric',),
        ) from None
    if metric not in list_models():
        raise OptionError(f'{metric!r} is not a metric of pyiqa; known: {", ".join(list_models())}', ('metric',))
    measure = create_metric(metric, device=device)
    if measure.metric_mode != mode:
        right = 'pyiqa' if measure.metric_mode == 'FR' else 'pyiqa_nr'
        raise OptionError(f'{metric!r} is a metric of the mode {measure.metric_mode}: write `type: {right}`', ('type',))
    return measure
