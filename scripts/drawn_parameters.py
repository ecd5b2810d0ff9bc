"""What degradations drew, for people: captions, tables and histograms of flat dictionaries of parameters."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from basicsr.utils.registry import UserError

Drawn = dict[str, float | str]
BINS, BLOCKS = 20, ' ▁▂▃▄▅▆▇█'
MOST_NAMES = 8  # of a parameter that is a text; the rest is counted together
MOST_IN_CAPTION = 10
COLUMNS, PANEL = 6, (2.5, 1.6)  # of the picture of histograms; inches


# ---- captions


def caption(drawn: Drawn) -> list[str]:
    """The main parameters in a few lines; widths of blurs are standard deviations in pixels."""
    if not drawn:
        return ['nothing is drawn']
    if 'order' in drawn:
        return [', '.join(_steps(drawn))]
    if 'kernel1' in drawn and 'final_order' in drawn:
        return _stages(drawn)
    shown = [f'{key} {_short(value)}' for key, value in drawn.items()]
    return [', '.join(shown[:MOST_IN_CAPTION] + (['...'] if len(shown) > MOST_IN_CAPTION else []))]


def legend(drawn: Drawn) -> str:
    """What the numbers in captions are; '' where captions name them."""
    if 'order' in drawn:
        return 'steps in order; blur: widths in pixels; resize: factor; noise: sigma of 255; poisson: counts of 1.0'
    if 'kernel1' in drawn and 'final_order' in drawn:
        return ('1, 2: the two stages, 3: last steps; blur: widths in pixels (sinc: cutoff in radians per pixel); '
                'resize: factor of the image, then of lq; noise: sigma of 255; poisson: strength')  # fmt: skip
    return ''


def _stages(drawn: Drawn) -> list[str]:
    """Of the second-order degradation: a line for each of its three parts."""
    first, second = _stage(drawn, ''), _stage(drawn, '2')
    sinc = f'sinc {drawn["sinc_kernel_cutoff"]:.2f}' if drawn['sinc_kernel'] == 'sinc' else ''
    resize, jpeg = f'to lq {drawn["final_mode"]}', f'jpeg {drawn["jpeg_quality2"]:.0f}'
    last = [jpeg, resize, sinc] if str(drawn['final_order']).startswith('jpeg') else [resize, sinc, jpeg]
    return [
        '1: ' + ', '.join([*first, f'jpeg {drawn["jpeg_quality"]:.0f}']),
        '2: ' + ', '.join(second),
        '3: ' + ', '.join(filter(None, last)),
    ]


def _stage(drawn: Drawn, end: str) -> list[str]:
    kernel, parts = f'kernel{end or 1}', []
    if drawn.get('blur2') != 'no' or not end:
        widths = [drawn[key] for key in (f'{kernel}_sigma_x', f'{kernel}_sigma_y', f'{kernel}_cutoff') if key in drawn]
        shape = str(drawn[kernel]).replace('_', ' ')
        parts.append(f'{shape} blur {" x ".join(f"{width:.2f}" for width in widths)}')
    if end:
        parts.append(f'{drawn["resize_mode2"]} to {drawn["resize_scale2"]:.2f} lq')
    elif drawn['resize'] != 'keep':
        parts.append(f'{drawn["resize_mode"]} by {drawn["resize_scale"]:.2f}')
    kind, _, color = str(drawn[f'noise{end}']).partition(', ')
    amount = drawn.get(f'noise_sigma{end}', drawn.get(f'poisson_scale{end}'))
    return [*parts, f'{color} {"noise" if kind == "gaussian" else kind} {_short(amount)}']


def _steps(drawn: Drawn) -> list[str]:
    """Of BSRGAN: its steps in their order."""
    seen, texts = Counter(), []
    for name in str(drawn['order']).split():
        seen[name] += 1
        label = name if seen[name] == 1 else f'{name}{seen[name]}'
        own = {key.removeprefix(f'{label}_'): value for key, value in drawn.items() if key.startswith(f'{label}_')}
        texts.append(_step(name, own))
    return [text for text in texts if text]


def _step(name: str, own: dict[str, Any]) -> str:
    if name == 'blur':
        widths = [own['sigma']] if 'sigma' in own else [math.sqrt(own['variance1']), math.sqrt(own['variance2'])]
        return f'blur {" x ".join(f"{width:.2f}" for width in widths)}'
    if name == 'resize':
        return f'{own["interpolation"]} by {own["factor"]:.2f}' if own['factor'] != 1 else ''
    if name == 'resize_to_lq':
        return f'to lq {own["interpolation"]}'
    if name == 'shift_down':
        return f'blur {own["sigma"]:.2f} and 1 of {own["factor"]}'
    if name == 'halve':
        return f'half by {own["interpolation"]}'
    if name in ('noise', 'speckle', 'poisson'):
        kind = '' if name == 'noise' else f' {name}'
        return f'{own["kind"]}{kind or " noise"} {_short(own["level"] if "level" in own else own["values"])}'
    return f'jpeg {own["quality"]}' if name.endswith('jpeg') else ' '.join([name, *map(_short, own.values())])


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f'{value:.3g}' if abs(value) < 100 else f'{value:.0f}'


# ---- many draws


def by_parameter(draws: Sequence[Drawn]) -> dict[str, list]:
    """The values of each parameter, of the draws that have it; those that occur together stand together."""
    keys: list[str] = []
    for drawn in draws:
        place = 0
        for key in drawn:
            if key not in keys:
                keys.insert(place, key)
            place = keys.index(key) + 1
    if 'order' in keys:  # steps are drawn in any order
        keys.sort(key=lambda key: (key != 'order', _step_of(key)))
    return {key: [drawn[key] for drawn in draws if key in drawn] for key in keys}


def _step_of(key: str) -> tuple[str, int]:
    """('blur', 2) of 'blur2_sigma': the second blur comes after the first."""
    name, number = re.fullmatch(r'(.*?)(\d*)(?:_[a-z]+\d?)?', key).groups()
    return name, int(number or 1)


def counts(values: Sequence) -> list[tuple[str, int]]:
    """How often each text occurs; beyond the most frequent ones, all others together."""
    ranked = Counter(values).most_common()
    rest = sum(number for _, number in ranked[MOST_NAMES:])
    return [*ranked[:MOST_NAMES], *([(f'{len(ranked) - MOST_NAMES} others', rest)] if rest else [])]


def edges(values: Sequence[float], bins: int = BINS) -> np.ndarray:
    """Bounds of the bins of a histogram; whole numbers are in the middle of theirs."""
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        step = max(1, -(-(high - low + 1) // bins))
        if step == 1 and len({value % 2 for value in values}) == 1 and high > low:
            step = 2  # sizes of kernels are odd
        return np.arange(low - step / 2, high + step, step)
    return np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])


def table(draws: Sequence[Drawn]) -> str:
    """The distribution of each parameter in a line of text."""
    lines = [f'{"parameter":30} {"drawn":>6}  {"least":>8} {"median":>8} {"most":>8}']
    for key, values in by_parameter(draws).items():
        share = f'{key:30} {len(values) / len(draws):6.0%}  '
        if isinstance(values[0], str):
            shares = [f'{name} {number / len(values):.0%}' for name, number in counts(values)]
            lines.append(share + ('in any order' if key == 'order' and len(shares) > MOST_NAMES else ', '.join(shares)))
            continue
        heights, _ = np.histogram(values, edges(values))
        bars = ''.join(BLOCKS[math.ceil(height / heights.max() * (len(BLOCKS) - 1))] for height in heights)
        numbers = [f'{_short(float(number)):>8}' for number in (min(values), np.median(values), max(values))]
        lines.append(f'{share}{" ".join(numbers)}  |{bars}|')
    return '\n'.join(lines)


def histograms(title: str, draws: Sequence[Drawn]) -> np.ndarray:
    """The distribution of each parameter as a picture, uint8 RGB (h, w, 3). Raises UserError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("histograms need the package matplotlib: pip install -e '.[plots]' in the checkout") from None
    found = by_parameter(draws)
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    width, height = max(columns * PANEL[0], 6.5), rows * PANEL[1] + 0.5
    figure = Figure((width, height), dpi=100)
    figure.text(0.15 / width, 1 - 0.28 / height, title, fontsize=12)
    margins = {'left': 0.45 / width, 'right': 1 - 0.2 / width, 'top': 1 - 0.65 / height, 'bottom': 0.3 / height}
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={**margins, 'wspace': 0.26, 'hspace': 0.55})
    for panel, (key, values) in zip(panels.flatten(), found.items()):
        panel.set_title(key, fontsize=9, loc='left', pad=4)
        if len(values) < len(draws):
            share = f'{len(values) / len(draws):.0%} of draws'
            panel.text(1, 0.98, share, fontsize=7, color='#606060', ha='right', va='top', transform=panel.transAxes)
        panel.tick_params(labelsize=8, length=2)
        panel.spines[['top', 'right']].set_visible(False)
        if key == 'order':
            _positions(panel, [str(value).split() for value in values])
        elif isinstance(values[0], str):
            _bars(panel, values)
        else:
            _bins(panel, values)
    for panel in panels.flatten()[len(found) :]:
        panel.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _bins(panel: Any, values: Sequence[float]) -> None:
    bounds = edges(values, max(5, min(BINS, round(math.sqrt(len(values))))))
    heights, _, _ = panel.hist(
        values, bounds, rwidth=0.92, color='#6f9bc8', weights=np.full(len(values), 100 / len(values))
    )
    panel.set_ylim(0, 1.25 * heights.max())  # room for the share of draws
    panel.locator_params(axis='y', nbins=4)
    panel.yaxis.set_major_formatter('{x:g}%')


def _bars(panel: Any, values: Sequence[str]) -> None:
    """Names stand in their bars: so all panels are of one size."""
    names, numbers = zip(*counts(values))
    panel.barh(names, [100 * number / len(values) for number in numbers], color='#e8b58c')
    panel.set_ylim(len(names) - 0.4, -0.5 - 0.18 * len(names))  # room for the share of draws
    panel.set_yticks([])
    panel.locator_params(axis='x', nbins=5)
    panel.xaxis.set_major_formatter('{x:g}%')
    for place, name in enumerate(names):
        panel.text(0.02, place, name, fontsize=8, va='center', transform=panel.get_yaxis_transform())


def _positions(panel: Any, orders: Sequence[Sequence[str]]) -> None:
    """How often each step stands at each place, dark for often."""
    names = list(dict.fromkeys(name for order in orders for name in order))
    share = np.zeros((len(names), max(map(len, orders))))
    for order in orders:
        for place, name in enumerate(order):
            share[names.index(name), place] += 1 / len(orders)
    middle = (share * np.arange(share.shape[1])).sum(1) / share.sum(1)
    ranked = np.argsort(middle, kind='stable')
    extent = (0.5, share.shape[1] + 0.5, len(names) - 0.5, -0.5)
    panel.imshow(share[ranked] ** 0.5, cmap='Greens', aspect='auto', vmin=0, vmax=1.2, extent=extent)
    panel.set_yticks([])
    panel.set_xticks(range(1, share.shape[1] + 1, 2))
    for place, number in enumerate(ranked):
        left = middle[number] > share.shape[1] / 2
        where = {'x': 0.02 if left else 0.98, 'ha': 'left' if left else 'right'}
        panel.text(y=place, s=names[number], fontsize=6.5, va='center', transform=panel.get_yaxis_transform(), **where)
