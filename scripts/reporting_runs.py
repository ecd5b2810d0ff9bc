"""What a results folder of test.py holds, read for the report: scores, images, options, command, environment, log."""

import csv
import io
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from basicsr.utils.image_codec import IMAGE_SUFFIXES
from basicsr.utils.registry import UserError
from basicsr.utils.yaml_loader import apply_override, parse_yaml

LOG_CHARACTERS = 64_000  # the end of a longer log is shown
LOWER_IS_BETTER = ('lpips', 'dists', 'niqe')  # where the option file does not say it

Scores = dict[str, dict[str, float]]  # image -> metric -> score


@dataclass(frozen=True)
class Origin:
    """How the contents of a folder came about, as it was recorded there; '' for what was not."""

    option_file: str = ''
    option_text: str = ''
    command: str = ''
    began: str = ''
    environment: str = ''
    log_file: str = ''
    log: str = ''


@dataclass
class Run:
    """A tested model.

    Args:
        options: the option file with the overrides of the command; empty if the folder has no copy.
        scores: of each data set, by image; an image's key is its name without what the scale adds to it.
        lq: the path of each lq as test.py read it, by data set and key.
    """

    name: str
    folder: Path
    origin: Origin
    options: dict
    scores: dict[str, Scores] = field(default_factory=dict)
    lq: dict[str, dict[str, Path]] = field(default_factory=dict)

    def metrics(self, dataset: str) -> list[str]:
        return list(dict.fromkeys(m for row in self.scores.get(dataset, {}).values() for m in row))

    def lower_is_better(self, metric: str) -> bool:
        section = _at(self.options, 'val', 'metrics', metric)
        return section.get('better', 'lower' if section.get('type', metric) in LOWER_IS_BETTER else '') == 'lower'

    def protocol(self) -> str:
        """How it was scored, in words; '' if the options do not say it."""
        val = _at(self.options, 'val')
        extra = [f'{label} ({_listed(section)})' for label, section in _at(val, 'metrics').items()]
        return ', '.join([*([str(val['protocol'])] if val.get('protocol') else []), *extra])

    def scale(self) -> int | None:
        scale = self.options.get('scale')
        return scale if isinstance(scale, int) else None

    def gt_folder(self, dataset: str) -> Path | None:
        folder = _section(self.options, dataset).get('dataroot_gt')
        return Path(folder) if isinstance(folder, str) else None

    def image(self, dataset: str, key: str) -> Path | None:
        """The restored image; None if it was not saved. No name leads out of the folder."""
        stem, folder = self.lq[dataset][key].stem, self.folder / 'visualization'
        endings = _at(self.options, 'val').get('suffix'), self.options.get('name'), self.folder.name
        paths = [folder / dataset / f'{stem}_{ending}.png' for ending in endings if ending]
        inside = [path for path in paths if Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))]
        return next((path for path in inside if path.is_file()), None)


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs, by names that differ. Raises UserError for what is no results folder."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)
    if len({run.name for run in runs}) < len(runs):
        raise UserError('the same results folder is given twice')
    return runs


def read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; test.py writes results/NAME')
    file = folder / 'scores.csv'
    if not file.is_file():
        raise UserError(f'{folder}: has no scores.csv, which test.py writes when it is done')
    origin = read_origin(folder, 'test')
    run = Run(folder.resolve().name, folder, origin, _options(folder, origin))
    _read_scores(run, file)
    return run


def read_origin(folder: Path, verb: str) -> Origin:
    """verb: 'train' or 'test', as logs are called."""
    copy, log = next(iter(sorted(folder.glob('*.yml'))), None), max(folder.glob(f'{verb}_*.log'), default=None)
    option_text, log_text = read_text(copy) if copy else '', read_text(log) if log else ''
    head = dict(re.findall(r'^# (GENERATE TIME|CMD): (.*)$', option_text, re.MULTILINE))
    environment = re.search(r' INFO: (?:environment: |(?=torch ))(.*)', log_text)
    return Origin(
        copy.name if copy else '',
        option_text,
        head.get('CMD', '').strip(),
        head.get('GENERATE TIME', '').strip(),
        environment[1] if environment else '',
        log.name if log else '',
        log_text[-LOG_CHARACTERS:],
    )


def _options(folder: Path, origin: Origin) -> dict:
    options, _ = parse_yaml(origin.option_text, str(folder / origin.option_file))
    try:
        words = shlex.split(origin.command)
    except ValueError:  # a copy that somebody has edited
        words = []
    for before, word in pairwise(words):
        if '=' in word and not word.startswith('-') and before not in ('-opt', '--opt'):
            apply_override(options, word)
    return options


def _read_scores(run: Run, file: Path) -> None:
    rows, found = csv.reader(io.StringIO(read_text(file), newline='')), {}
    head = next(rows, [])
    if head[:2] != ['dataset', 'image']:
        raise UserError(f"{file}: should begin with the line 'dataset,image,METRIC,...' as test.py writes it")
    try:
        for row in rows:
            if len(row) != len(head):
                raise ValueError(f'has {len(row)} values, not {len(head)}')
            scores = {metric: float(text) for metric, text in zip(head[2:], row[2:]) if text}
            found.setdefault(row[0], {})[row[1]] = scores
    except (ValueError, csv.Error) as error:
        raise UserError(f'{file}, line {rows.line_num}: {error}') from None
    if not found:
        raise UserError(f'{file}: has no line for any image')
    for dataset, images in found.items():
        key = _keys(images, str(_section(run.options, dataset).get('filename_tmpl', '{}')))
        run.scores[dataset] = {key[image]: scores for image, scores in images.items()}
        run.lq[dataset] = {key[image]: Path(image) for image in images}


def _keys(images: Iterable[str], template: str) -> dict[str, str]:
    """Path of an lq -> its gt's stem, or the path where stems are not unique."""
    before, _, after = template.partition('{}')
    stems = {image: Path(image).stem.removeprefix(before).removesuffix(after) for image in images}
    return stems if len(set(stems.values())) == len(stems) else {image: image for image in stems}


def common_keys(runs: Iterable[Run], dataset: str) -> list[str]:
    """The images of a data set that all of the runs have restored, in the first one's order."""
    first, *others = [run.scores.get(dataset, {}) for run in runs]
    return [key for key in first if all(key in other for other in others)]


def datasets_of(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(dataset for run in runs for dataset in run.scores))


def named_image(folder: Path, *stems: str) -> Path | None:
    """The image of a folder that has one of the stems."""
    files = _images(folder)
    return next((files[stem] for stem in stems if stem in files), None)


@cache
def _images(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _section(options: dict, dataset: str) -> dict:
    """The options of a data set by its name."""
    sections = {label: section for label, section in _at(options, 'datasets').items() if isinstance(section, dict)}
    return next((s for label, s in sections.items() if dataset in (s.get('name'), label)), {})


def _at(tree: dict, *keys: str) -> dict:
    """The section there; empty if it is missing or none."""
    for key in keys:
        tree = tree.get(key)
        if not isinstance(tree, dict):
            return {}
    return tree


def _listed(section: object) -> str:
    return ', '.join(f'{k}: {v}' for k, v in section.items()) if isinstance(section, dict) else str(section)


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8', errors='replace')
    except OSError as error:
        raise UserError(f'{file}: cannot be read: {error.strerror}') from None
