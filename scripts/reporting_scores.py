"""What the scores of tested models say: paired differences with bootstrap intervals, best and worst images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reporting_runs import Run, common_keys

from basicsr.metrics.summary import confidence_interval


@dataclass(frozen=True)
class Difference:
    """Of two models on the images that both have restored: mean of (other - first), with its 95% interval.

    Args:
        better: images on which `other` is the better one, of `count`.
        verdict: 'better' or 'worse' where the interval excludes 0, else 'undecided'.
    """

    mean: float
    low: float
    high: float
    better: int
    count: int
    verdict: str


def paired_difference(first: Run, other: Run, dataset: str, metric: str) -> Difference | None:
    """None where the two have no image and score in common."""
    pairs = [
        (first.scores[dataset][key][metric], other.scores[dataset][key][metric])
        for key in common_keys([first, other], dataset)
        if metric in first.scores[dataset][key] and metric in other.scores[dataset][key]
    ]
    if not pairs:
        return None
    gaps = [0.0 if a == b else b - a for a, b in pairs]  # equal infinities do not differ
    low, high = confidence_interval(gaps)
    sign = -1 if other.lower_is_better(metric) else 1
    verdict = 'undecided'
    if low > 0 or high < 0:
        verdict = 'better' if sign * low > 0 else 'worse'
    return Difference(float(np.mean(gaps)), low, high, sum(sign * gap > 0 for gap in gaps), len(gaps), verdict)


def ranked(run: Run, dataset: str, metric: str) -> list[str]:
    """The images that have the score, best first."""
    scores = {k: row[metric] for k, row in run.scores[dataset].items() if not math.isnan(row.get(metric, math.nan))}
    return sorted(scores, key=scores.get, reverse=not run.lower_is_better(metric))


def ranked_gains(first: Run, other: Run, dataset: str, metric: str) -> list[tuple[str, float]]:
    """(image, other - first) for those that both have, where `other` gains most first."""
    gains = []
    for key in common_keys([first, other], dataset):
        a, b = (run.scores[dataset][key].get(metric, math.nan) for run in (first, other))
        if math.isfinite(b - a):
            gains.append((key, b - a))
    return sorted(gains, key=lambda pair: pair[1], reverse=not other.lower_is_better(metric))


def most_telling(runs: Sequence[Run], dataset: str, metric: str, count: int) -> list[str]:
    """All common images in the order in which they are worth showing: the extremes of each ranking come first."""
    keys = common_keys(runs, dataset)
    rankings = [ranked(run, dataset, metric) for run in runs]
    rankings += [[key for key, _ in ranked_gains(runs[0], run, dataset, metric)] for run in runs[1:]]
    extremes = [ranking[place] for ranking in rankings for place in _ends(len(ranking), count)]
    wanted = [key for key in dict.fromkeys(extremes) if key in set(keys)]
    return [*wanted, *(key for key in keys if key not in set(wanted))]


def notices(runs: Sequence[Run], dataset: str) -> list[str]:
    """What forbids to compare the runs as they are, or limits it; lines for the reader."""
    lines, having = [], [run for run in runs if dataset in run.scores]
    if len({run.scale() for run in having}) > 1:
        lines.append(f'The models enlarge by different factors ({_each(having, Run.scale)}).')
    if len({run.protocol() for run in having}) > 1:
        lines.append(f'The scores were measured differently ({_each(having, Run.protocol)}).')
    if len(having) > 1:
        common = len(common_keys(having, dataset))
        if any(len(run.scores[dataset]) != common for run in having):
            counts = _each(having, lambda run: len(run.scores[dataset]))
            lines.append(f'The models were tested on different images ({counts}; {common} in common).')
    if len(having) < len(runs):
        lines.append(f'Not tested on this set: {", ".join(run.name for run in runs if run not in having)}.')
    return lines


def _ends(length: int, count: int) -> list[int]:
    """Places of a ranking: the first and last `count`, from outside to inside."""
    pairs = [(place, length - 1 - place) for place in range(min(count, length))]
    return list(dict.fromkeys(place for pair in pairs for place in pair))


def _each(runs: Sequence[Run], value) -> str:
    return ', '.join(f'{run.name}: {value(run) or "not recorded"}' for run in runs)
