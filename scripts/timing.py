"""Two ways to do the same work, timed in turn in one process, and the table of what was seen."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LEVEL = 1 / 255


@dataclass(frozen=True)
class Row:
    """A piece of work, done by `ours(plan)` and `other(plan)` for plans 0, 1, ...

    Args:
        images: that one call works on.
        plans: different pieces of randomly drawn work; 1: always the same, which is repeated.
        target: how many times as many images per second are wanted.
        outputs: (ours, theirs) for a plan, computed from equal draws; None where the results of the calls are that.
        compared: on how many plans.
    """

    title: str
    ours: Callable[[int], Any]
    other: Callable[[int], Any]
    images: int = 1
    plans: int = 1
    target: float | None = None
    outputs: Callable[[int], tuple[Any, Any]] | None = None
    compared: int = 1


def measured(row: Row, repeats: int) -> dict:
    """Seconds and CPU seconds of both ways, how many times as fast ours is, and how far the results differ.

    Rates are means over plans that differ; of work that is always the same, medians.
    """
    calls = {'ours': row.ours, 'other': row.other}
    outputs = row.outputs or (lambda plan: (row.ours(plan), row.other(plan)))
    differences = [difference(*outputs(plan)) for plan in range(row.compared)]  # this warms up, too
    wall: dict[str, list[float]] = {key: [] for key in calls}
    cpu: dict[str, list[float]] = {key: [] for key in calls}
    for plan in range(row.plans) if row.plans > 1 else [0] * repeats:
        for key, call in calls.items():
            if row.plans == 1:
                call(plan)  # not counted: after the other one, caches are cold
            started, started_cpu = time.perf_counter(), time.process_time()
            call(plan)
            wall[key].append(time.perf_counter() - started)
            cpu[key].append(time.process_time() - started_cpu)
    report = {'title': row.title, 'plans': row.plans, 'repeats': len(wall['ours']), 'target': row.target}
    for key in calls:
        median, mean = statistics.median(wall[key]), statistics.mean(wall[key])
        report[key] = {
            'median_seconds': median,
            'mean_seconds': mean,
            'fastest_seconds': min(wall[key]),
            'cpu_seconds': statistics.mean(cpu[key]) if row.plans > 1 else statistics.median(cpu[key]),
            'images_per_second': row.images / (mean if row.plans > 1 else median),
        }
    ours, other = report['ours'], report['other']
    report['faster'] = ours['images_per_second'] / other['images_per_second']
    typical = 'median_seconds' if row.plans > 1 else 'fastest_seconds'
    report['faster_typical'] = other[typical] / ours[typical]
    report['faster_cpu'] = other['cpu_seconds'] / ours['cpu_seconds']
    report['difference'] = max(largest for largest, _ in differences)
    report['visible'] = statistics.mean(share for _, share in differences)
    return report


def difference(ours: Any, other: Any) -> tuple[float, float]:
    """The largest absolute difference of arrays, or sequences of them, and the share of those above one 8-bit level."""
    if isinstance(ours, list | tuple):
        pairs = [difference(*pair) for pair in zip(ours, other, strict=True)]
        return max(largest for largest, _ in pairs), statistics.mean(share for _, share in pairs)
    ours, other = (np.asarray(torch.as_tensor(values), np.float64) for values in (ours, other))
    if ours.shape != other.shape:
        raise ValueError(f'the results have different shapes: {ours.shape} and {other.shape}')
    gap = np.abs(ours - other)
    return float(gap.max()), float((gap > 1.5 * LEVEL).mean())


HEADER = (
    'work', 'ours', 'transcription', 'times as fast', 'by CPU time', 'by medians (*: fastest)', 'wanted',
    'largest difference',
)  # fmt: skip


def line_of(report: dict) -> str:
    """A line of the Markdown table."""
    gap = f'{report["difference"]:.0e}' if report['difference'] else '0'
    if report['visible']:
        gap += f'; more than a level: {report["visible"]:.1%}'
    cells = [
        report['title'],
        *(f'{rate(report[key]["images_per_second"])}/s' for key in ('ours', 'other')),
        f'{report["faster"]:.1f}',
        f'{report["faster_cpu"]:.1f}',
        f'{report["faster_typical"]:.1f}{"" if report["plans"] > 1 else " *"}',
        f'{report["target"]:g}' if report['target'] else '-',
        gap,
    ]
    return table_line(cells)


def header(names: Sequence[str]) -> str:
    return f'{table_line(names)}\n|{"---|" * len(names)}'


def table_line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def rate(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
