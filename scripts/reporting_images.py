"""Images of the report: lq enlarged, each model's, gt; as lossless data URIs, as many as a size limit allows."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from reporting_runs import Run, named_image
from reporting_scores import most_telling

from basicsr.utils.image import read_image
from basicsr.utils.registry import UserError
from basicsr.utils.resize import imresize

WEBP_SIDE = 16383
THUMBNAIL = 96
LQ, GT = 'lq, bicubic', 'gt'


@dataclass(frozen=True)
class Panel:
    """An image of a shot."""

    label: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Shot:
    """What is shown of one image of a data set, panels of equal size."""

    dataset: str
    key: str
    panels: list[Panel]
    thumbnail: str


@dataclass
class Gallery:
    """The shots, why others were left out (reason -> how many), and panels that shots lack (name -> how many)."""

    shots: list[Shot] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)

    def place(self, dataset: str, key: str) -> int | None:
        return next((n for n, shot in enumerate(self.shots) if (shot.dataset, shot.key) == (dataset, key)), None)


class Pictures:
    """Collects shots. Raises UserError for folders of lq and gt that are not there.

    Args:
        gt, lq: folders; without, gt is sought where the option file has it, lq where test.py read it.
        megabytes: of data URIs, all together.
    """

    def __init__(self, runs: Sequence[Run], gt: Path | None, lq: Path | None, megabytes: float):
        for folder in (gt, lq):
            if folder and not folder.is_dir():
                raise UserError(f'{folder}: no such folder')
        self.runs, self.gt, self.lq, self.megabytes = runs, gt, lq, megabytes
        self.free = megabytes * 1e6

    def gallery(self, metrics: dict[str, str], extremes: int) -> Gallery:
        """The images of each data set (name -> metric that ranks them), extremes first until the limit is reached."""
        gallery = Gallery()
        queues = []
        for dataset, metric in metrics.items():
            having = [run for run in self.runs if dataset in run.scores]
            queues.append([(dataset, key) for key in most_telling(having, dataset, metric, extremes)])
        for place in range(max(map(len, queues), default=0)):  # the sets share the limit
            for queue in queues:
                if place < len(queue):
                    self._add(gallery, *queue[place])
        order = {dataset: number for number, dataset in enumerate(metrics)}
        gallery.shots.sort(key=lambda shot: (order[shot.dataset], shot.key))
        return gallery

    def _add(self, gallery: Gallery, dataset: str, key: str) -> None:
        reason = f'no room within {self.megabytes:g} MB (--max-megabytes)'
        if self.free <= 0:
            gallery.left_out[reason] += 1
            return
        try:
            shot = self._shot(dataset, key)
        except ValueError as error:
            gallery.left_out[str(error)] += 1
            return
        size = len(shot.thumbnail) + sum(len(panel.uri) for panel in shot.panels)
        if size > self.free:
            gallery.left_out[reason] += 1
            return
        self.free -= size
        labels = [panel.label for panel in shot.panels]
        wanted = [LQ, *(run.name for run in self.runs if dataset in run.scores), GT]
        gallery.missing.update(label for label in wanted if label not in labels)
        gallery.shots.append(shot)

    def _shot(self, dataset: str, key: str) -> Shot:
        """Raises ValueError where there is nothing to show."""
        having = [run for run in self.runs if dataset in run.scores]
        found = [(run.name, _pixels(path)) for run in having if (path := run.image(dataset, key))]
        if not found:
            raise ValueError('no model saved it (val:save_img)')
        height, width = found[0][1].shape[:2]
        panels = [*found]
        lq = self._lq(having[0], dataset, key)
        if lq is not None and (enlarged := _enlarged(lq, height, width)) is not None:
            panels.insert(0, (LQ, enlarged))
        gt = self._gt(having[0], dataset, key)
        if gt is not None:
            panels.append((GT, gt[:height, :width]))
        panels = [(label, pixels) for label, pixels in panels if pixels.shape[:2] == (height, width)]
        small = Image.fromarray(found[0][1])
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        return Shot(
            dataset,
            key,
            [Panel(label, data_uri(pixels), width, height) for label, pixels in panels],
            _uri(small, 'WEBP', quality=70),
        )

    def _lq(self, run: Run, dataset: str, key: str) -> np.ndarray | None:
        path = run.lq[dataset][key]
        if self.lq:
            path = named_image(self.lq, path.stem, key)
        return _pixels(path) if path and path.is_file() else None

    def _gt(self, run: Run, dataset: str, key: str) -> np.ndarray | None:
        folder = self.gt or run.gt_folder(dataset)
        path = named_image(folder, Path(key).stem) if folder and folder.is_dir() else None
        return _pixels(path) if path else None


def data_uri(pixels: np.ndarray) -> str:
    """(h, w, 3) uint8 without loss."""
    image = Image.fromarray(pixels)
    if max(image.size) > WEBP_SIDE:
        return _uri(image, 'PNG')
    return _uri(image, 'WEBP', lossless=True, method=3)


def _uri(image: Image.Image, kind: str, **options) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'


def _pixels(path: Path) -> np.ndarray:
    return np.rint(read_image(path) * 255).astype(np.uint8)


def _enlarged(lq: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """lq by bicubic interpolation; None if the size is no whole multiple of it."""
    scale = height // lq.shape[0]
    if scale < 1 or (lq.shape[0] * scale, lq.shape[1] * scale) != (height, width):
        return None
    if scale == 1:
        return lq
    return np.rint(imresize(lq.astype(np.float32) / 255, scale).clip(0, 1) * 255).astype(np.uint8)
