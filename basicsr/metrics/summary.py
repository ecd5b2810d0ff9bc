"""Tables of scores: per image as CSV, per data set as Markdown and LaTeX, means with bootstrap confidence intervals."""

import csv
import io
import math

import numpy as np

RESAMPLES = 10_000


def confidence_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron 1979): resampled images, a fixed seed, so repeatable."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        return math.nan, math.nan
    picks = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def scores_csv(results: dict[str, list[dict]]) -> str:
    """One line per image: data set, image, each metric."""
    metrics = metric_names(results)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['dataset', 'image', *metrics])
    for dataset, rows in results.items():
        writer.writerows([dataset, row['image'], *(row.get(metric, '') for metric in metrics)] for row in rows)
    return file.getvalue()


def markdown_table(results: dict[str, list[dict]]) -> str:
    """One row per data set: images, then mean and 95% interval of each metric."""
    metrics = metric_names(results)
    lines = ['| data set | images | ' + ' | '.join(metrics) + ' |', '|---|---|' + '---|' * len(metrics)]
    for dataset, rows in results.items():
        cells = [with_interval(metric, [row[metric] for row in rows if metric in row]) for metric in metrics]
        lines.append(f'| {dataset} | {len(rows)} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def latex_row(name: str, scale: int, results: dict[str, list[dict]]) -> str:
    """The row of a paper's table: name, scale, the first two metrics of each data set as `psnr/ssim`."""
    metrics = metric_names(results)[:2]
    cells = [
        '/'.join(number(metric, _mean([row[metric] for row in rows if metric in row])) for metric in metrics)
        for rows in results.values()
        if any(metric in row for row in rows for metric in metrics)
    ]
    return ' & '.join([name.replace('_', r'\_'), rf'$\times${scale}', *cells]) + r' \\'


def metric_names(results: dict[str, list[dict]]) -> list[str]:
    """The metrics of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for rows in results.values() for row in rows for key in row if key != 'image'))


def with_interval(metric: str, values: list[float]) -> str:
    """Mean and 95% interval as the tables show them; a dash where there are no values."""
    if not values:
        return '-'
    low, high = confidence_interval(values)
    interval = '' if math.isnan(low) else f' [{number(metric, low)}, {number(metric, high)}]'
    return number(metric, _mean(values)) + interval


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def number(metric: str, value: float) -> str:
    """A score with the decimals that its metric is published with."""
    return f'{value:.2f}' if 'psnr' in metric.lower() else f'{value:.4f}'
