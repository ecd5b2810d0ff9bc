"""Scores of a restorer on a data set, and its images: the one loop of validation, test.py and inference.py --gt."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.utils.image import to_uint8, write_image
from basicsr.utils.registry import METRIC_REGISTRY

# Named sets of metrics; '{scale}' is the scale of the run. Both are measured on 8-bit images.
PROTOCOLS: dict[str, dict[str, dict]] = {
    # The super-resolution literature's: luma of BT.601, `scale` pixels of border left out (atd.md 3, core.md 11.4).
    'sr_y': {
        'psnr': {'type': 'psnr', 'crop_border': '{scale}', 'test_y_channel': True},
        'ssim': {'type': 'ssim', 'crop_border': '{scale}', 'test_y_channel': True},
    },
    'sr_rgb': {
        'psnr': {'type': 'psnr', 'crop_border': '{scale}', 'test_y_channel': False},
        'ssim': {'type': 'ssim', 'crop_border': '{scale}', 'test_y_channel': False},
    },
}


def metric_sections(protocol: str | None, metrics: dict[str, dict], scale: int) -> dict[str, dict]:
    """The metrics of an option file: those of its protocol and those that it lists, by label."""
    named = {
        label: {k: scale if v == '{scale}' else v for k, v in section.items()}
        for label, section in PROTOCOLS.get(protocol, {}).items()
    }
    return named | metrics


def build_metrics(sections: dict[str, dict]) -> dict[str, Callable]:
    """label -> function of (sr, gt), each (1, 3, h, w) in [0, 1]; metrics that need no gt ignore it."""
    built = {}
    for label, section in sections.items():
        options = {k: v for k, v in section.items() if k != 'better'}
        METRIC_REGISTRY.check(options, ('sr', 'gt'))
        entry = METRIC_REGISTRY.get(options.pop('type'))
        built[label] = partial(entry, **options)
    return built


def needs_gt(metric: Callable) -> bool:
    """Whether a metric compares with ground truth."""
    return 'gt' in inspect.signature(metric).parameters


def quantised(image: Tensor) -> Tensor:
    """What an 8-bit file would hold, in [0, 1]: metrics are of images as they are saved."""
    return (image.clamp(0, 1) * 255).round() / 255


def score(metrics: dict[str, Callable], sr: Tensor, gt: Tensor | None) -> dict[str, float]:
    """Each metric of one image, both sides 8 bit; without gt only those that need none."""
    sr, gt = quantised(sr.float()), None if gt is None else quantised(gt.float())
    scores = {}
    for label, metric in metrics.items():
        if not needs_gt(metric):
            scores[label] = float(metric(sr))
        elif gt is not None:
            scores[label] = float(metric(sr, gt))
    return scores


def evaluate(
    restorer: Callable[[Tensor], Tensor],
    loader: Iterable[dict],
    metrics: dict[str, Callable],
    accelerator: Any,
    image_path: Callable[[str], Path] | None = None,
    progress: str = '',
) -> list[dict]:
    """Restore and score the images of a loader; every process calls it with its share and gets all rows.

    Args:
        image_path: where the restored image of an lq path is saved; None saves nothing.
        progress: title of the progress bar; none if empty.
    Returns one row per image, sorted: {'image': lq path, metric: score, ...}.
    """
    rows = []
    for batch in tqdm(loader, desc=progress, unit='image', disable=not progress or not accelerator.is_main_process):
        lq, gt = batch['lq'].to(accelerator.device), batch.get('gt')
        sr = restorer(lq)
        for index, path in enumerate(batch['lq_path']):
            reference = None if gt is None else gt[index : index + 1].to(sr.device)
            rows.append({'image': path, **score(metrics, sr[index : index + 1], reference)})
            if image_path is not None:
                write_image(image_path(path), to_uint8(sr[index]))
    return sorted(gathered(rows, accelerator), key=lambda row: row['image'])


def gathered(rows: list, accelerator: Any) -> list:
    """The rows of all processes, on all of them."""
    if accelerator.num_processes == 1:
        return rows
    shares: list = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]


def means(rows: list[dict]) -> dict[str, float]:
    """The mean of each metric over the rows that have it."""
    labels = [key for row in rows[:1] for key in row if key != 'image']
    return {
        label: sum(row[label] for row in rows if label in row) / sum(label in row for row in rows) for label in labels
    }
