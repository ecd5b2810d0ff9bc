"""The second-order degradation as data.md 5 describes the published form: one batch, one set of decisions.

A plan is the dictionary of the reference cases (`args.plan`), the noise a dictionary of arrays by their names. Where
the noise has none, it is drawn from torch's global generator, as published. Nothing of basicsr is imported.
"""

import torch
import torch.nn.functional as F
from oracles.degradation_reference import (
    add_noise,
    diff_jpeg,
    eight_bit,
    filter2d,
    gaussian_noise,
    poisson_noise,
    poisson_rates,
    usm_sharpened,
)
from torch import Tensor


def stage_noise(image: Tensor, stage: dict, number: int, noise: dict[str, Tensor]) -> Tensor:
    """The image with the noise of stage 1 or 2, clipped."""
    gray = torch.tensor(stage['gray'], dtype=torch.float32)
    if stage['noise'] == 'gaussian':
        color_draw, gray_draw = noise.get(f'stage{number}_randn_color'), noise.get(f'stage{number}_randn_gray')
        if color_draw is None:
            gray_draw = torch.randn(image.shape[-2:]) if gray.sum() > 0 else None
            color_draw = torch.randn_like(image)
        return add_noise(image, gaussian_noise(image, torch.tensor(stage['sigma']), gray, color_draw, gray_draw))
    color_counts, gray_counts = noise.get(f'stage{number}_poisson_color'), noise.get(f'stage{number}_poisson_gray')
    rates = poisson_rates(image, gray)
    if color_counts is None:
        color_counts = torch.poisson(rates[0])
        gray_counts = torch.poisson(rates[2]) if gray.sum() > 0 else None
    return add_noise(image, poisson_noise(rates, torch.tensor(stage['scale_noise']), gray, color_counts, gray_counts))


def degrade(gt: Tensor, kernels, plan: dict, scale: int, noise: dict[str, Tensor] | None = None) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> lq (b, 3, h / scale, w / scale) before the last clamp or rounding.

    Args:
        kernels: of the first and the second blur and the sinc filter, each (b, 21, 21).
    """
    noise, (h, w) = noise or {}, gt.shape[-2:]
    first, second, final = plan['stage1'], plan['stage2'], plan['final']
    out = filter2d(gt, kernels[0])
    out = F.interpolate(out, scale_factor=first['scale'], mode=first['mode'])
    out = stage_noise(out, first, 1, noise)
    out = diff_jpeg(torch.clamp(out, 0, 1), torch.tensor(first['jpeg_quality']))

    if second['blur']:
        out = filter2d(out, kernels[1])
    size = int(h / scale * second['scale']), int(w / scale * second['scale'])
    out = F.interpolate(out, size=size, mode=second['mode'])
    out = stage_noise(out, second, 2, noise)

    size, quality = (h // scale, w // scale), torch.tensor(final['jpeg_quality'])
    if final['order'] == 'resize_sinc_then_jpeg':
        out = F.interpolate(out, size=size, mode=final['mode'])
        out = filter2d(out, kernels[2])
        return diff_jpeg(torch.clamp(out, 0, 1), quality)
    out = diff_jpeg(torch.clamp(out, 0, 1), quality)
    out = F.interpolate(out, size=size, mode=final['mode'])
    return filter2d(out, kernels[2])


def real_esrgan(gt: Tensor, kernels, plan: dict, scale: int, gt_size: int, noise=None) -> tuple[Tensor, Tensor]:
    """(lq, sharpened gt), rounded to 8 bits and cropped at the plan's place."""
    gt = usm_sharpened(gt)
    return cropped(eight_bit(degrade(gt, kernels, plan, scale, noise)), gt, plan, scale, gt_size)


def s3diff(gt: Tensor, kernels, plan: dict, scale: int, gt_size: int, noise=None) -> tuple[Tensor, Tensor, Tensor]:
    """(lq at the size of gt, lq, gt), all in [0, 1]."""
    lq, gt = cropped(torch.clamp(degrade(gt, kernels, plan, scale, noise), 0, 1), gt, plan, scale, gt_size)
    return torch.clamp(F.interpolate(lq, size=gt.shape[-2:], mode='bicubic'), 0, 1), lq, gt


def cropped(lq: Tensor, gt: Tensor, plan: dict, scale: int, gt_size: int) -> tuple[Tensor, Tensor]:
    top, left, size = plan['crop_lq']['top'], plan['crop_lq']['left'], gt_size // scale
    lq = lq[:, :, top : top + size, left : left + size]
    return lq, gt[:, :, top * scale : top * scale + gt_size, left * scale : left * scale + gt_size]
