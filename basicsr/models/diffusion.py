"""Diffusion: noise schedules, mixing of images and noise, and the random levels that a network learns from."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from basicsr.utils.registry import OptionError

Schedule = Literal['linear', 'quad', 'warmup10', 'warmup50', 'const', 'jsd', 'cosine']
SAME = {'rtol': 1e-5, 'atol': 1e-9}  # of two schedules, one of which was stored in float32


def beta_schedule(schedule: Schedule, n_timestep: int, linear_start: float, linear_end: float) -> np.ndarray:
    """The variances that the forward process adds, float64 (n_timestep,); `jsd` and `cosine` take no end points."""
    match schedule:
        case 'linear':
            return np.linspace(linear_start, linear_end, n_timestep)
        case 'quad':
            return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep) ** 2
        case 'warmup10' | 'warmup50':
            betas, rising = np.full(n_timestep, linear_end), n_timestep * int(schedule[-2:]) // 100
            betas[:rising] = np.linspace(linear_start, linear_end, rising)
            return betas
        case 'const':
            return np.full(n_timestep, linear_end)
        case 'jsd':
            return 1 / np.linspace(n_timestep, 1, n_timestep)
        case 'cosine':  # Nichol and Dhariwal, arXiv:2102.09672
            angles = (np.arange(n_timestep + 1) / n_timestep + 0.008) / 1.008 * np.pi / 2
            signal = np.cos(angles) ** 2
            return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    raise OptionError(f'{schedule!r} is not a known noise schedule', ('schedule',))


class GaussianDiffusion:
    """The process that mixes images with noise: sqrt(abar) * image + sqrt(1 - abar) * noise, abar = prod(1 - beta).

    All products are float64: in float32, 1 - abar of SR3's first step would be 1.3 % off.

    Args:
        schedule: one of the seven published names.
        n_timestep: steps of the trained chain, T.
        linear_start, linear_end: first and last beta.
    Raises OptionError for variances outside (0, 1].
    """

    def __init__(self, schedule: Schedule, n_timestep: PositiveInt, linear_start: float, linear_end: float):
        self.betas = beta_schedule(schedule, n_timestep, linear_start, linear_end)
        self.schedule = {'schedule': schedule, 'n_timestep': n_timestep}
        self.schedule |= {'linear_start': linear_start, 'linear_end': linear_end}
        if not ((self.betas > 0) & (self.betas <= 1)).all():
            raise OptionError(f'betas are above 0 and at most 1, got {self.betas.min():g} to {self.betas.max():g}')
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        self.levels = np.sqrt(np.append(1, self.alphas_cumprod))  # of the image after 0 to T steps

    def __len__(self) -> int:
        return len(self.betas)

    def buffers(self) -> dict[str, Tensor]:
        """The tables that published checkpoints hold, in their order: float32 (T,)."""
        betas, signal = self.betas, self.alphas_cumprod
        before = np.append(1, signal[:-1])
        with np.errstate(divide='ignore', invalid='ignore'):  # `jsd` ends without any signal
            variance = betas * (1 - before) / (1 - signal)
            tables = {
                'betas': betas,
                'alphas_cumprod': signal,
                'alphas_cumprod_prev': before,
                'sqrt_alphas_cumprod': np.sqrt(signal),
                'sqrt_one_minus_alphas_cumprod': np.sqrt(1 - signal),
                'log_one_minus_alphas_cumprod': np.log(1 - signal),
                'sqrt_recip_alphas_cumprod': np.sqrt(1 / signal),
                'sqrt_recipm1_alphas_cumprod': np.sqrt(1 / signal - 1),
                'posterior_variance': variance,
                'posterior_log_variance_clipped': np.log(np.maximum(variance, 1e-20)),
                'posterior_mean_coef1': betas * np.sqrt(before) / (1 - signal),
                'posterior_mean_coef2': (1 - before) * np.sqrt(1 - betas) / (1 - signal),
            }
        return {name: torch.from_numpy(table.astype(np.float32)) for name, table in tables.items()}

    def add_noise(self, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The mixture at a level per image: its part of the image, in [0, 1], or the number of a step, 0 to T - 1.

        Shape: (b, c, h, w) twice and (b,), floating point or integer -> (b, c, h, w).
        """
        if level.is_floating_point():
            signal = level.to(image.device)
            spread = (1 - signal.square()).sqrt()
        else:
            step = level.cpu().numpy()
            signal, spread = (
                torch.from_numpy(np.sqrt(part[step])).to(image)
                for part in (self.alphas_cumprod, 1 - self.alphas_cumprod)
            )
        return signal.view(-1, 1, 1, 1) * image + spread.view(-1, 1, 1, 1) * noise

    def random_steps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """A step for each of `count` images, each of the T alike: int64 (count,) on the CPU."""
        return torch.randint(len(self), (count,), generator=generator)

    def random_levels(
        self,
        count: int,
        share_timestep: bool = True,
        uniform_in: Literal['level', 'alpha_bar'] = 'level',
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A level for each of `count` images, between neighbouring steps of the chain: float32 (count,), on the CPU.

        Args:
            share_timestep: one pair of steps for all images, as published; otherwise one for each.
            uniform_in: what is drawn uniformly between the steps: the level as published, or its square (the paper).
        """
        step = torch.randint(1, len(self) + 1, (1 if share_timestep else count,), generator=generator)
        part = torch.rand(count, dtype=torch.float64, generator=generator)
        return self.level_between(step.expand(count), part, uniform_in)

    def level_between(self, step: Tensor, part: Tensor, uniform_in: Literal['level', 'alpha_bar'] = 'level') -> Tensor:
        """The level that lies `part` (0 to 1) of the way from that of step - 1 to that of `step` (1 to T): float32."""
        table = torch.from_numpy(self.levels if uniform_in == 'level' else self.levels**2)
        value = table[step - 1] + (table[step] - table[step - 1]) * part.double()
        return (value if uniform_in == 'level' else value.sqrt()).float()

    def difference(self, buffers: Mapping[str, Tensor]) -> str:
        """How the tables of a published checkpoint differ from these, and what their schedule is; '' if they agree."""
        for name, ours in self.buffers().items():
            if name not in buffers:
                continue
            theirs, ours = buffers[name].double().numpy(), ours.double().numpy()
            if theirs.shape == ours.shape and np.allclose(theirs, ours, **SAME, equal_nan=True):
                continue
            if theirs.shape != ours.shape:
                what = f'{name} has {len(theirs)} steps, the configured schedule {len(ours)}'
            else:
                worst = int(np.argmax(~np.isclose(theirs, ours, **SAME, equal_nan=True)))
                what = f'{name}[{worst}] is {theirs[worst]:.6g}, of the configured schedule {ours[worst]:.6g}'
            found = recognised_schedule(buffers['betas'].double().numpy()) if 'betas' in buffers else None
            told = ', '.join(f'{key}: {value}' for key, value in (found or {}).items())
            return f'{what}; ' + (f'the file was trained with {{{told}}}' if found else 'its schedule is none of ours')
        return ''


def recognised_schedule(betas: np.ndarray) -> dict | None:
    """The options of a schedule from its betas, end points to 5 digits; None if it has no published name."""
    start, end = (float(f'{value:.5g}') for value in (betas[0], betas[-1]))
    for schedule in ('const', 'linear', 'quad', 'warmup10', 'warmup50', 'cosine', 'jsd'):
        if np.allclose(beta_schedule(schedule, len(betas), start, end), betas, **SAME):
            return {'schedule': schedule, 'n_timestep': len(betas), 'linear_start': start, 'linear_end': end}
    return None
