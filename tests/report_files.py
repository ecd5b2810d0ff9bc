"""Folders as test.py and train.py write them, and an HTML page read back, for the tests of scripts/report.py."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import report

from basicsr.metrics.summary import scores_csv
from basicsr.utils.image import write_image

VOID = {'meta', 'img', 'br', 'wbr', 'input', 'line', 'path', 'circle', 'polygon', 'polyline'}
OPTIONS = """# GENERATE TIME: Mon Jan  5 10:00:00 2026
# CMD: basicsr/test.py -opt options/test/a.yml

name: NAME
scale: SCALE
datasets:
  test:
    name: set
    dataroot_gt: gt
    filename_tmpl: 'TEMPLATE'
val:
  protocol: sr_y
  metrics:
    lpips: {type: lpips, better: lower}
"""


def noise(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return pixels(seed, height, width)


def make_results(
    folder: Path,
    scores: dict[str, dict[str, dict[str, float]]],
    images: dict[str, np.ndarray] | None = None,
    scale: int = 4,
    template: str = '{}',
    options: str = OPTIONS,
) -> Path:
    """results/NAME: scores by data set, gt's stem and metric; restored images of the data set `set` by stem."""
    folder.mkdir(parents=True)
    rows = {
        dataset: [{'image': f'lq/{template.format(stem)}.png', **row} for stem, row in images.items()]
        for dataset, images in scores.items()
    }
    (folder / 'scores.csv').write_text(scores_csv(rows), encoding='utf-8')
    for word, value in (('NAME', json.dumps(folder.name)), ('SCALE', str(scale)), ('TEMPLATE', template)):
        options = options.replace(word, value)
    (folder / 'run.yml').write_text(options, encoding='utf-8')
    (folder / 'test_run_20260105_100000.log').write_text('2026-01-05 10:00:00,1 INFO: environment: torch 9; cpu\n')
    for stem, image in (images or {}).items():
        write_image(folder / 'visualization/set' / f'{template.format(stem)}_{folder.name}.png', image)
    return folder


def make_training(folder: Path, records: list[dict], end: str = '') -> Path:
    """experiments/NAME; `end` follows the last whole line."""
    folder.mkdir(parents=True)
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'metrics.jsonl').write_text(lines + end, encoding='utf-8')
    return folder


def made(*arguments: object) -> 'Page':
    """The page that a command writes, read back."""
    report.main([*map(str, arguments), '-o', 'report.html'])
    return Page(Path('report.html').read_text(encoding='utf-8'))


class Page(HTMLParser):
    """A page's tags, tables (by caption: rows of cells), lists of images (by heading) and text.

    Raises AssertionError for tags that do not close in order.
    """

    def __init__(self, source: str):
        super().__init__()
        self.source, self.open = source, []
        self.tags: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.lists: dict[str, list[str]] = {}
        self.text, self._heading, self._rows = '', '', []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'h3':
            self._heading = ''
        elif tag == 'ol':
            self.lists[self._heading] = []
        elif tag == 'li' and 'ol' in self.open:
            self.lists[self._heading].append('')
        elif tag == 'tr':
            self._rows.append([])
        elif tag in ('td', 'th'):
            self._rows[-1].append('')
        elif tag == 'table':
            self._rows, self._caption = [], ''

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == 'table':
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        if {'style', 'script'} & set(self.open):
            return
        self.text += data
        if 'h3' in self.open:
            self._heading += data
        elif 'caption' in self.open:
            self._caption += data
        elif {'td', 'th'} & set(self.open):
            self._rows[-1][-1] += data
        elif 'li' in self.open and 'ol' in self.open:
            self.lists[self._heading][-1] += data if 'a' in self.open else f' {data}'

    def values(self, tag: str, attribute: str) -> list[str]:
        return [attributes[attribute] for name, attributes in self.tags if name == tag and attribute in attributes]
