"""Optimizers and learning-rate schedules from options, stepped once per iteration, with the published numbers."""

import math
import warnings
from collections import Counter
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from basicsr.utils.options import optimizer_class
from basicsr.utils.registry import SCHEDULER_REGISTRY, OptionError


def build_optimizer(
    section: dict, parameters: Iterable[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that `section` (`type`, `lr`, ...) describes, in its fused form where torch has one."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k != 'type'}
    kind, trained = optimizer_class(section['type']), [p for p in parameters if p.requires_grad]
    if not trained:
        raise OptionError(f'{section["type"]} has nothing to train: every parameter is frozen')
    fuses = kind.__name__ in ('Adam', 'AdamW', 'SGD', 'Adagrad') and device.type in ('cuda', 'cpu')
    if fuses and not {'fused', 'foreach', 'capturable', 'differentiable'} & options.keys():
        options['fused'] = True
    return kind(trained, **options)


class LearningRates:
    """One schedule per optimizer and BasicSR's linear warm-up, which overwrites the schedule's rate.

    The step-wise schedules continue from the current rate, so the last overwritten one, (warmup_iter - 1) / warmup_iter
    of its nominal value, stays until a restart: a quirk of the published runs (core.md 6), kept for equal numbers.
    """

    def __init__(self, section: dict | None, optimizers: dict[str, torch.optim.Optimizer], warmup_iter: int):
        self.optimizers, self.warmup_iter = list(optimizers.values()), warmup_iter
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault('initial_lr', group['lr'])
        self.schedulers = (
            []
            if section is None
            else [SCHEDULER_REGISTRY.build(section, optimizer=optimizer) for optimizer in self.optimizers]
        )

    def set(self, iteration: int) -> None:
        """Put the rates of `iteration` (counted from 1) in force; doing so again for one iteration changes nothing."""
        for scheduler in self.schedulers:
            while scheduler.last_epoch < iteration - 1:
                with warnings.catch_warnings(action='ignore', category=UserWarning):  # torch's, of a network that waits
                    scheduler.step()
        if iteration < self.warmup_iter:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group['lr'] = group['initial_lr'] / self.warmup_iter * iteration

    def current(self) -> list[float]:
        """The rates of the first optimizer's groups, as log lines print them."""
        return [group['lr'] for group in self.optimizers[0].param_groups]


@SCHEDULER_REGISTRY.register()
class MultiStepRestartLR(LRScheduler):
    """The current rate times gamma at every milestone; at a restart the initial rate times the restart's weight."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        restarts: list[int] = [0],  # noqa: B006 (never changed; the option's default)
        restart_weights: list[float] = [1],  # noqa: B006 (as above)
    ):
        if len(restarts) != len(restart_weights):
            raise OptionError(f'{len(restarts)} restarts need as many restart_weights, got {len(restart_weights)}')
        self.milestones, self.gamma = Counter(milestones), gamma
        self.restarts, self.restart_weights = list(restarts), list(restart_weights)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        if self.last_epoch in self.restarts:
            weight = self.restart_weights[self.restarts.index(self.last_epoch)]
            return [group['initial_lr'] * weight for group in self.optimizer.param_groups]
        factor = self.gamma ** self.milestones[self.last_epoch] if self.last_epoch in self.milestones else 1
        return [group['lr'] * factor for group in self.optimizer.param_groups]


@SCHEDULER_REGISTRY.register()
class MultiStepLR(MultiStepRestartLR):
    """BasicSR's other name of MultiStepRestartLR."""


@SCHEDULER_REGISTRY.register()
class CosineAnnealingRestartLR(LRScheduler):
    """Half a cosine from weight * initial rate to eta_min in each period; eta_min after the last one."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        periods: list[int],
        restart_weights: list[float] = [1],  # noqa: B006 (never changed; the option's default)
        eta_min: float = 0,
    ):
        if len(periods) != len(restart_weights):
            raise OptionError(f'{len(periods)} periods need as many restart_weights, got {len(restart_weights)}')
        self.periods, self.restart_weights, self.eta_min = list(periods), list(restart_weights), eta_min
        self.cumulative_period = [sum(periods[: n + 1]) for n in range(len(periods))]
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        epoch = min(self.last_epoch, self.cumulative_period[-1])
        cycle = next(n for n, end in enumerate(self.cumulative_period) if epoch <= end)
        position = (epoch - self.cumulative_period[cycle] + self.periods[cycle]) / self.periods[cycle]
        half = 0.5 * self.restart_weights[cycle] * (1 + math.cos(math.pi * position))
        return [self.eta_min + half * (base - self.eta_min) for base in self.base_lrs]


@SCHEDULER_REGISTRY.register()
class TrueCosineAnnealingLR(CosineAnnealingLR):
    """torch's CosineAnnealingLR, in the recursive form that continues from the current rate (ATD)."""

    def __init__(self, optimizer: torch.optim.Optimizer, T_max: int, eta_min: float = 0):
        super().__init__(optimizer, T_max, eta_min)
