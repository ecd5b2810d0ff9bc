"""The report as one HTML page that needs nothing but itself."""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from reporting_curves import COLOURS, POINTS, Training, binned, labels_of, plot
from reporting_images import Gallery
from reporting_runs import Origin, Run, datasets_of
from reporting_scores import notices, paired_difference, ranked, ranked_gains

from basicsr.metrics.summary import RESAMPLES, number, with_interval

ASSETS = Path(__file__).resolve().parent / 'report_assets'
MINUS = '\u2212'
NOT_RECORDED = '<span class="faint">not recorded in this folder</span>'


@dataclass(frozen=True)
class Report:
    """What the page is made of.

    Args:
        metrics: of each data set, the one that ranks its images.
        extremes: how many best and worst images are named.
        made: when and by which command.
    """

    runs: Sequence[Run]
    gallery: Gallery
    trainings: Sequence[Training]
    metrics: dict[str, str]
    extremes: int
    made: str


def text(value: object) -> str:
    """As text of a page: markup is escaped, control characters are shown as a box."""
    return escape(re.sub(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]', '\ufffd', str(value)))


def page(report: Report) -> str:
    names = ', '.join(run.name for run in report.runs)
    style, script = ((ASSETS / name).read_text(encoding='utf-8') for name in ('report.css', 'viewer.js'))
    allowed = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    sections = [
        ('results', 'Results', results(report)),
        ('extremes', 'Best and worst images', extremes(report)),
        ('images', 'Images', images(report.gallery, report.runs)),
        ('training', 'Training', training(report.trainings)),
        ('origin', 'Environment and commands', origin(report)),
    ]
    sections = [section for section in sections if section[2]]
    links = ''.join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = ''.join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}; base-uri \'none\'; form-action \'none\'">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(names)}</title><style>{style}</style></head>\n'
        f'<body><header><h1>{text(names)}</h1><nav aria-label="Parts of this page">{links}</nav></header>\n'
        f'<main>{body}</main>\n<script>{script}</script></body></html>\n'
    )


def _hash(content: str) -> str:
    return f'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'


# ---- tables


def table(caption: str, head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first of each row is its heading."""
    columns = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = ''.join(
        f'<tr><th scope="row">{first.replace("_", "_<wbr>")}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f'<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def results(report: Report) -> str:
    parts = [
        f'<p class="faint">Means over images with 95% intervals of the percentile bootstrap ({RESAMPLES:,} resamples '
        'of the images, fixed seed). A difference is taken image by image, and its interval is that of its own mean: '
        'two models can differ clearly although their intervals overlap.</p>'
    ]
    for dataset in datasets_of(report.runs):
        parts.append(f'<h3>{text(dataset)}</h3>')
        parts += [f'<p class="notice">{text(line)}</p>' for line in notices(report.runs, dataset)]
        having = [run for run in report.runs if dataset in run.scores]
        metrics = list(dict.fromkeys(metric for run in having for metric in run.metrics(dataset)))
        arrows = [_with_arrow(having, metric) for metric in metrics]
        parts.append(table(f'{text(dataset)}: means', ['model', 'images', *arrows], _means(having, dataset, metrics)))
        if len(having) > 1:
            caption = f'{text(dataset)}: paired differences'
            parts.append(table(caption, ['difference', *arrows], _differences(having, dataset, metrics)))
        parts.append(_every_image(having, dataset, metrics, arrows))
    return ''.join(parts)


def _means(runs: Sequence[Run], dataset: str, metrics: Sequence[str]) -> Iterable[list[str]]:
    for run in runs:
        rows = run.scores[dataset].values()
        cells = [with_interval(metric, [row[metric] for row in rows if metric in row]) for metric in metrics]
        yield [text(run.name), str(len(rows)), *(_faint_range(cell) for cell in cells)]


def _differences(runs: Sequence[Run], dataset: str, metrics: Sequence[str]) -> Iterable[list[str]]:
    first, *others = runs
    for other in others:
        cells = []
        for metric in metrics:
            found = paired_difference(first, other, dataset, metric)
            if found is None:
                cells.append('-')
                continue
            mean, low, high = (signed(metric, value) for value in (found.mean, found.low, found.high))
            interval = '' if math.isnan(found.low) else f' [{low}, {high}]'
            verdict = f'<span class="{found.verdict}">{found.verdict}</span>'
            cells.append(
                f'{_faint_range(mean + interval)}<div>{verdict}, better on {found.better} of {found.count}</div>'
            )
        yield [f'{text(other.name)} {MINUS} {text(first.name)}', *cells]


def _every_image(runs: Sequence[Run], dataset: str, metrics: Sequence[str], arrows: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.scores[dataset]))
    head = ['image', *(f'{text(run.name)}<br>{arrow}' for arrow in arrows for run in runs)]
    rows = [[text(key), *(_score(run, dataset, key, metric) for metric in metrics for run in runs)] for key in keys]
    return f'<details><summary>Every image</summary>{table(f"{text(dataset)}: every image", head, rows)}</details>'


def signed(metric: str, value: float) -> str:
    shown = number(metric, abs(value))
    if math.isnan(value) or float(shown) == 0:
        return shown
    return f'{"+" if value > 0 else MINUS}{shown}'


def _score(run: Run, dataset: str, key: str, metric: str) -> str:
    scores = run.scores[dataset].get(key, {})
    return number(metric, scores[metric]) if metric in scores else '-'


def _scores(run: Run, dataset: str, key: str) -> str:
    scores = run.scores.get(dataset, {}).get(key, {})
    return ', '.join(f'{metric} {number(metric, value)}' for metric, value in scores.items())


def _faint_range(cell: str) -> str:
    mean, bracket, interval = cell.partition(' [')
    return f'{mean} <span class="range">[{interval}</span>' if bracket else mean


def _with_arrow(runs: Sequence[Run], metric: str) -> str:
    lower = runs[0].lower_is_better(metric)
    return f'{text(metric)} <span title="{"lower" if lower else "higher"} is better">{"↓" if lower else "↑"}</span>'


# ---- images


def extremes(report: Report) -> str:
    parts = []
    for dataset, metric in report.metrics.items():
        having = [run for run in report.runs if dataset in run.scores]
        lists = []
        for run in having:
            order = ranked(run, dataset, metric)
            scores = {key: number(metric, run.scores[dataset][key][metric]) for key in order}
            best = order[: (len(order) + 1) // 2]  # few images are in one of the lists only
            lists.append(_listed(report, dataset, f'{run.name}: best', best, scores))
            lists.append(_listed(report, dataset, f'{run.name}: worst', order[: len(best) - 1 : -1], scores))
        for other in having[1:]:
            pair, gains = f'{other.name} {MINUS} {having[0].name}', ranked_gains(having[0], other, dataset, metric)
            shown = {key: signed(metric, gain) for key, gain in gains}
            sign = -1 if other.lower_is_better(metric) else 1
            won = [key for key, gain in gains if sign * gain > 0]
            lost = [key for key, gain in reversed(gains) if sign * gain < 0]
            lists.append(_listed(report, dataset, f'{pair}: largest gains', won, shown))
            lists.append(_listed(report, dataset, f'{pair}: largest losses', lost, shown))
        if any(lists):
            parts.append(f'<h3>{text(dataset)}, by {text(metric)}</h3><div class="columns">{"".join(lists)}</div>')
    return ''.join(parts)


def _listed(report: Report, dataset: str, title: str, keys: Sequence[str], shown: dict[str, str]) -> str:
    """The first ones with what is shown of each; nothing if there are none."""
    items = ''.join(_named(report.gallery, dataset, key, shown[key]) for key in keys[: report.extremes])
    return f'<div><h3>{text(title)}</h3><ol class="images">{items}</ol></div>' if items else ''


def _named(gallery: Gallery, dataset: str, key: str, score: str) -> str:
    place = gallery.place(dataset, key)
    if place is None:
        blank = '<i class="blank"></i>' if any(shot.dataset == dataset for shot in gallery.shots) else ''
        return f'<li>{blank}<span>{text(key)}<br>{score}</span></li>'
    image = f'<img src="{gallery.shots[place].thumbnail}" alt="">'
    return f'<li>{image}<span><a href="#shot-{place}">{text(key)}</a><br>{score}</span></li>'


def images(gallery: Gallery, runs: Sequence[Run]) -> str:
    said = [f'{_counted(count)} left out: {reason}.' for reason, count in gallery.left_out.items()]
    said += [f'{_counted(count)} shown without {what}.' for what, count in gallery.missing.items()]
    parts = [f'<p class="notice">{text(line)}</p>' for line in said]
    if gallery.shots:
        parts.append('<div id="viewer" hidden></div><div id="gallery">')
        parts.append('<p class="notice">Zoom and differences need JavaScript.</p>')
    several = len({shot.dataset for shot in gallery.shots}) > 1
    for place, shot in enumerate(gallery.shots):
        name = text(f'{shot.dataset}: {shot.key}' if several else shot.key)
        scores = {run.name: _scores(run, shot.dataset, shot.key) for run in runs}
        figures = ''.join(
            f'<figure><img src="{panel.uri}" alt="{text(panel.label)}" width="{panel.width}" height="{panel.height}">'
            f'<figcaption>{text(panel.label)} <span>{text(scores.get(panel.label, ""))}</span></figcaption></figure>'
            for panel in shot.panels
        )
        strip = f'<div class="strip" tabindex="0" role="region" aria-label="{name}">{figures}</div>'
        parts.append(f'<div class="shot" id="shot-{place}" data-name="{name}"><h3>{name}</h3>{strip}</div>')
    if gallery.shots:
        parts.append('</div>')
    return ''.join(parts)


def _counted(count: int) -> str:
    return f'{count} images are' if count > 1 else '1 image is'


# ---- training, origin


def training(trainings: Sequence[Training]) -> str:
    if not trainings:
        return ''
    legend = ''.join(
        f'<li><svg viewBox="0 0 32 10" aria-hidden="true"><path class="line s{n % COLOURS + 1}" d="M0 5H32"/></svg>'
        f'{text(run.name)}</li>'
        for n, run in enumerate(trainings)
    )
    labels = labels_of(trainings)
    longest = max(binned(line).count for run in trainings for line in run.curves.values())
    averaged = (
        f'<p class="faint">Of more than {POINTS} records, neighbours are averaged (up to {longest}); '
        'the band reaches from the smallest to the largest of them.</p>'
    )
    said = ''.join(f'<p class="notice">{text(line)}.</p>' for run in trainings for line in run.notices)
    plots = ''.join(f'<figure>{plot(label, trainings)}</figure>' for label in labels)
    rows = [
        [text(label), text(run.name), *(_extreme(run.curves[label], kind) for kind in ('last', 'least', 'largest'))]
        for label in labels
        for run in trainings
        if label in run.curves
    ]
    numbers = table('Training curves in numbers', ['curve', 'run', 'last', 'smallest', 'largest'], rows)
    return (
        f'{said}<ul class="legend">{legend}</ul><div class="plots">{plots}</div>{averaged if longest > 1 else ""}'
        f'<details><summary>In numbers</summary>{numbers}</details>'
    )


def _extreme(line: list[tuple[float, float]], kind: str) -> str:
    values = np.array([value for _, value in line])
    place = {'last': len(line) - 1, 'least': values.argmin(), 'largest': values.argmax()}[kind]
    return f'{line[place][1]:.4g} <span class="range">at {line[place][0]:g}</span>'


def origin(report: Report) -> str:
    parts = []
    for run in report.runs:
        parts.append(f'<h3>{text(run.name)}</h3>')
        parts.append(_facts(run.origin, run.folder, Scores=run.protocol()))
    for run in report.trainings:
        parts.append(f'<h3>{text(run.name)} (training)</h3>')
        parts.append(_facts(run.origin, run.folder))
    return f'{"".join(parts)}<h3>This page</h3><p>{report.made}</p>'


def _facts(origin: Origin, folder: Path, **more: str) -> str:
    command = f'<code>{text(command_line(origin.command))}</code>' if origin.command else ''
    facts = {'Command': command, 'Begun': text(origin.began), 'Environment': text(origin.environment)}
    facts |= {'Folder': text(folder), **{name: text(value) for name, value in more.items()}}
    listed = ''.join(f'<dt>{name}</dt><dd>{value or NOT_RECORDED}</dd>' for name, value in facts.items())
    files = _file(origin.option_file, origin.option_text) + _file(origin.log_file, origin.log)
    return f'<dl>{listed}</dl>{files}'


def _file(name: str, content: str) -> str:
    if not name:
        return ''
    return f'<details><summary>{text(name)}</summary><pre tabindex="0">{text(content)}</pre></details>'


def command_line(command: str) -> str:
    """As it is typed: a script's own record of its arguments begins with the script."""
    return f'python {command}' if command.split()[0].endswith('.py') else command
