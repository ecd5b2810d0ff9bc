"""Training curves of the report: metrics.jsonl read, and drawn as inline SVG."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from reporting_runs import Origin, read_origin, read_text

from basicsr.utils.registry import UserError

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 44
POINTS = 300  # in a line; more records are averaged
LOG_FROM = 20  # largest over smallest value, from which on an axis is logarithmic
COLOURS = 6
NOT_CURVES = ('iter', 'epoch', 'dataset', 'time', 'data_time')

Line = list[tuple[float, float]]


@dataclass
class Training:
    """A run's curves: label -> (iteration, value), finite values only; `notices` say what was passed over."""

    name: str
    folder: Path
    origin: Origin
    curves: dict[str, Line] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bins:
    """A line of at most POINTS points: (iteration, mean, least, largest) of `count` records each."""

    points: list[tuple[float, float, float, float]]
    count: int


def read_training(folder: Path) -> Training:
    """The curves of experiments/NAME; a torn last line, of a run that was killed, is passed over."""
    file = folder / 'metrics.jsonl'
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; train.py writes experiments/NAME')
    if not file.is_file():
        raise UserError(f'{folder}: has no metrics.jsonl, which train.py writes from logger:print_freq on')
    lines = read_text(file).splitlines()
    training, unread, infinite = Training(folder.resolve().name, folder, read_origin(folder, 'train')), [], 0
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            unread.append(number)
            continue
        for label, value in _values(record):
            if math.isfinite(value):
                training.curves.setdefault(label, []).append((record['iter'], value))
            else:
                infinite += 1
    if unread == [len(lines)]:
        training.notices.append(f'{file}: its last line is torn and was passed over')
    elif unread:
        training.notices.append(f'{file}: lines that are no records: {len(unread)}, the first is line {unread[0]}')
    if infinite:
        training.notices.append(f'{file}: values that are not finite: {infinite}')
    if not training.curves:
        raise UserError(f'{file}: has no record yet')
    return training


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_number(record.get('iter')) else None


def _values(record: dict) -> list[tuple[str, float]]:
    rates = record.get('lr') if isinstance(record.get('lr'), list) else []
    values = {f'learning rate {n}' if len(rates) > 1 else 'learning rate': rate for n, rate in enumerate(rates, 1)}
    values |= {key: value for key, value in record.items() if key not in (*NOT_CURVES, 'lr')}
    if isinstance(record.get('dataset'), str):
        values = {f'{key}, {record["dataset"]}': value for key, value in values.items()}
    elif _is_number(record.get('time')):
        values['seconds per iteration'] = record['time']
    return [(label, float(value)) for label, value in values.items() if _is_number(value)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def labels_of(trainings: Sequence[Training]) -> list[str]:
    """What is plotted: losses and scores first, then learning rates and times."""
    labels = list(dict.fromkeys(label for training in trainings for label in training.curves))
    return sorted(labels, key=lambda label: (label.startswith('seconds'), label.startswith('learning rate')))


def binned(line: Line) -> Bins:
    """Records in their order, so many averaged that at most POINTS points remain."""
    count = -(-len(line) // POINTS)
    points = []
    for start in range(0, len(line), count):
        part = line[start : start + count]
        values = [value for _, value in part]
        points.append((sum(x for x, _ in part) / len(part), sum(values) / len(part), min(values), max(values)))
    return Bins(points, count)


def is_logarithmic(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for _, value in line]
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


class Axis:
    """Values -> pixels from `start` to `stop`, and round values to mark."""

    def __init__(self, least: float, largest: float, start: float, stop: float, logarithmic: bool = False):
        self.logarithmic, self.start, self.stop = logarithmic, start, stop
        self.low, self.high = (math.log10(v) if logarithmic else v for v in (least, largest))
        if self.low == self.high:
            margin = abs(self.low) / 10 or 1
            self.low, self.high = self.low - margin, self.high + margin

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                marks = [d * 10.0**e for e in exponents for d in digits if self.low <= math.log10(d) + e <= self.high]
                if len(marks) >= 3:
                    return marks[:: -(-len(marks) // 7)]
            return marks
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def plot(label: str, trainings: Sequence[Training]) -> str:
    """An SVG picture of one curve of all runs that have it, with titles for those who do not see it."""
    lines = {number: t.curves[label] for number, t in enumerate(trainings) if label in t.curves}
    logarithmic = is_logarithmic(list(lines.values()))
    bins = {number: binned(line) for number, line in lines.items()}
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    upward = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, logarithmic)
    title = f'{label} over iterations: {", ".join(trainings[number].name for number in lines)}'
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot"><title>{escape(title)}</title>']
    for value in upward.ticks():
        y = upward(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_mark(value)}</text>')
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    name = escape(label if len(label) <= 30 else f'{label[:29]}…') + (' (log scale)' if logarithmic else '')
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">iterations</text>')
    turned = f'text-anchor="middle" transform="translate(13 {centre}) rotate(-90)"'
    parts.append(f'<text class="axis" {turned}>{name}</text>')
    for number, line in bins.items():
        parts.append(_drawn(line, across, upward, number % COLOURS + 1))
    return ''.join([*parts, '</svg>'])


def _drawn(line: Bins, across: Axis, upward: Axis, colour: int) -> str:
    centres = [(across(x), upward(mean)) for x, mean, _, _ in line.points]
    if len(centres) == 1:
        return f'<circle class="dot s{colour}" cx="{centres[0][0]:.1f}" cy="{centres[0][1]:.1f}" r="3"/>'
    band = ''
    if line.count > 1:
        above = [(across(x), upward(high)) for x, _, _, high in line.points]
        below = [(across(x), upward(low)) for x, _, low, _ in reversed(line.points)]
        band = f'<polygon class="band s{colour}" points="{_points([*above, *below])}"/>'
    return f'{band}<polyline class="line s{colour}" points="{_points(centres)}"/>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)


def _mark(value: float) -> str:
    """A value beside the axis: 1.5e-4 rather than 0.00015."""
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, exponent = f'{value:.3e}'.partition('e')
        return f'{float(digits):g}e{int(exponent)}'
    return f'{value:.4g}'


def _short(value: float) -> str:
    """An iteration: 250k rather than 250000."""
    return f'{value / 1000:g}k' if value >= 10_000 and value % 100 == 0 else f'{value:g}'
