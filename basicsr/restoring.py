"""The loop of inference.py: pictures through a Restorer into files, scored where there is ground truth."""

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from basicsr.hub import PREFIX, prefixed_file
from basicsr.metrics.evaluate import build_metrics, metric_sections, score
from basicsr.model_file import Description, load_described, read_description
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.models.restorer import Restorer
from basicsr.utils.checkpoint import has_part, read_checkpoint
from basicsr.utils.download import local_path
from basicsr.utils.grid import image_grid
from basicsr.utils.image import read_image, to_tensor, to_uint8, write_image
from basicsr.utils.messages import LOGGER
from basicsr.utils.options import Options, load_options
from basicsr.utils.picture import Picture
from basicsr.utils.picture_files import Job
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY, UserError
from basicsr.utils.resize import imresize
from basicsr.utils.zoo import find_model

logger = logging.getLogger(__name__)
BROKEN = (ValueError, OSError, MemoryError, ArithmeticError, RuntimeError)  # what one picture may fail with
WHITE_SPREAD = 0.1  # of the range from black to white: what the picture of the uncertainty shows as white
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Outcome:
    """What became of one picture; `scores` and `bicubic` by metric, empty without ground truth."""

    job: Job
    error: str = ''
    scores: dict[str, float] = field(default_factory=dict)
    bicubic: dict[str, float] = field(default_factory=dict)


def load_model(
    name: str | None, option_file: str | None, weights: str | None, offline: bool, overrides: Sequence[str] = ()
) -> BaseModel:
    """The model of a name in models.yml or on the hub (`hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`), of an option file,
    or of a file of weights alone that describes itself.

    With its weights, on the CPU.

    A file of weights that holds several networks feeds each that restoring needs; one network's file feeds network_g.

    Args:
        overrides: `section:key=value` entries that replace values of the option file.
    Raises UserError.
    """
    if name is not None and name.startswith(PREFIX):
        path = prefixed_file(name, offline or None)
    elif name is not None:
        known = find_model(name)
        option_file, overrides = str(known.option_file), [*known.overrides, *overrides]
        opt = load_options(option_file, is_train=False, overrides=overrides, check_files=False)
        MODEL_REGISTRY.get(opt.model_type).check_needs(opt, offline or None)
        path = known.weights_file(offline)
    else:
        path = None if weights is None else local_path(weights, offline)
    if option_file is None:
        return load_described(path, overrides)
    opt = load_options(option_file, is_train=False, overrides=overrides, check_files=False)
    if path is not None:
        overrides = [*weights_overrides(opt, path.resolve()), *overrides]
        opt = load_options(option_file, is_train=False, overrides=overrides, check_files=False)
    for label in needed_networks(opt):
        if label not in opt.path.pretrained:
            key = f'pretrain_network_{label}'
            if path is None:
                raise UserError(f'{option_file} names no weights (path: {key}); name them with --weights')
            raise UserError(f'{path} holds no network_{label}, and {option_file} names no other file (path: {key})')
    return build_model(opt)


def about_weights(name: str | None, weights: str | None) -> Description:
    """What weights say of themselves, and models.yml of those with a name, as load_model takes both; else nothing."""
    known = find_model(name) if name and not name.startswith(PREFIX) else None
    if known:
        about = read_description(known.weights_file()) or Description('')
        return replace(about, licence=known.licence, source=known.source, note=known.note)
    file = prefixed_file(name) if name else weights and local_path(weights)
    return (read_description(file) if file else None) or Description('')


def needed_networks(opt: Options) -> list[str]:
    """The networks that restoring needs."""
    model = MODEL_REGISTRY.get(opt.model_type)
    return [label for label in opt.networks if label not in model.training_only]


def weights_overrides(opt: Options, path: Path) -> list[str]:
    """What an option file would say of the weights in `path`, which may hold one network or several."""
    content, parts = read_checkpoint(path), {}
    for label in needed_networks(opt):
        published = getattr(ARCH_REGISTRY.get(opt.networks[label]['type']), 'published_keys', ())
        parts[label] = next((key for key in (*published, label) if has_part(content, key)), None)
    if not any(parts.values()):
        parts = {'g': 'params_ema'}
    return [
        line
        for label, key in parts.items()
        if key is not None
        for line in (f'path:pretrain_network_{label}={path}', f'path:param_key_{label}={key}')
    ]


def restore_pictures(
    restorer: Restorer,
    jobs: Sequence[Job],
    gt: dict[Path, Path],
    max_pixels: int,
    show_progress: bool,
    outscale: float | None = None,
) -> list[Outcome]:
    """Restore and write every picture, `outscale` times as large; what is broken is logged and the others go on.

    A disk that is full or read-only ends the loop: the outcomes are then fewer than the jobs.
    """
    outcomes = []
    bar = tqdm(
        total=len(jobs),
        disable=not show_progress,
        bar_format='{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]',
    )
    with bar, logging_redirect_tqdm([LOGGER]):
        for index, job in enumerate(jobs):
            bar.set_postfix_str(job.source.name)

            def advance(done: int, total: int, index: int = index) -> None:
                bar.n = index + done / total
                bar.refresh()

            try:
                outcomes.append(restore_picture(restorer, job, gt.get(job.source), max_pixels, advance, outscale))
            except BROKEN as error:
                reason = ' '.join(str(error).split()) or type(error).__name__
                if str(job.source) not in reason and str(job.target) not in reason:
                    reason = f'{job.source}: {reason}'
                outcomes.append(Outcome(job, reason))
                LOGGER.error('%s', reason)
                if isinstance(error, OSError) and error.errno in FULL:
                    break
            advance(1, 1)
    return outcomes


def restore_picture(
    restorer: Restorer,
    job: Job,
    gt: Path | None,
    max_pixels: int,
    progress: Callable[[int, int], None],
    outscale: float | None = None,
) -> Outcome:
    """Restore and write one picture, and score it against its ground truth.

    Args:
        outscale: how much larger it is written; None: as the model makes it, as it must be for ground truth.
    """
    picture, scale = Picture.read(job.source, max_pixels), restorer.model.scale
    reference = None if gt is None else _reference(gt, picture.lq, scale)  # before the work, if it does not fit
    restored = restorer(picture.lq, progress)
    sr, maps = restored[:, :3], restored[:, 3:]
    alpha = None
    if picture.alpha is not None and picture.alpha.min() < picture.alpha.max():
        # Edges of alpha must be as sharp as those of the colours.
        alpha = restorer(picture.alpha.expand(-1, 3, -1, -1))[:, :3]
    if outscale and outscale != scale:
        sr, alpha = (None if one is None else _resized(one, picture.lq, outscale) for one in (sr, alpha))
    picture.save(job.target, sr, alpha)
    if restorer.maps:
        names = restorer.model.maps
        for path, image in zip(map_files(job.target, names), MAP_PICTURES[names](maps), strict=True):
            write_image(path, image)
    if reference is None:
        return Outcome(job)
    metrics = build_metrics(metric_sections('sr_y', {}, scale))
    bicubic = imresize(picture.lq, scale)
    return Outcome(job, '', score(metrics, sr, reference), score(metrics, bicubic, reference))


def check_maps(model: BaseModel, names: Sequence[str]) -> None:
    """Raise UserError unless the maps of a model are those of these names."""
    if model.maps != names:
        others = f'its maps are {", ".join(model.maps)}' if model.maps else 'it has none'
        raise UserError(f'{type(model).__name__} has no maps called {", ".join(names)}: {others}')


def map_files(target: Path, names: Sequence[str]) -> list[Path]:
    """Where the maps of the picture that is written as `target` go."""
    return [target.with_name(f'{target.stem}_{what}.png') for what in names]


def check_map_files(jobs: Sequence[Job], names: Sequence[str]) -> None:
    """Raise UserError for a map that would take the place of a picture or of another map."""
    owners = {job.target.name.casefold(): job.target for job in jobs}
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        for path in map_files(job.target, names):
            other = owners.setdefault(path.name.casefold(), job.target)
            if other != job.target or path.resolve() in inputs:
                raise UserError(f'{path}, a map of {job.source}, would overwrite another file: rename the picture')


def map_pictures(maps: Tensor) -> list[np.ndarray]:
    """(1, 1 + 4, h, w) -> two gray pictures: the spread, (h, w), and the weights of the branches, (2h, 2w).

    White is a spread of WHITE_SPREAD or more, and a weight of 1. Branches 11 and 12 are above 21 and 22.
    """
    spread, weights = maps[:, :1] / WHITE_SPREAD, maps[:, 1:]
    rows = [torch.cat(list(pair.split(1, 1)), 3) for pair in weights.split(2, 1)]
    return [to_uint8(image)[..., 0] for image in (spread, torch.cat(rows, 2))]


def process_picture(maps: Tensor) -> list[np.ndarray]:
    """(1, 3 * states, h, w) -> the picture that SR3's publishers show: the enlarged lq, then the states, row by row."""
    return [to_uint8(image_grid(maps[0].unflatten(0, (-1, 3))))]


def intermediate_picture(maps: Tensor) -> list[np.ndarray]:
    """(1, 4 * T, h, w) -> the picture that ITER's publishers show: the image after each of T steps, above its mask."""
    steps = maps.shape[1] // 4
    images, masks = maps[0].split([3 * steps, steps])
    rows = torch.cat([images.unflatten(0, (-1, 3)), masks[:, None].expand(-1, 3, -1, -1)])
    return [to_uint8(image_grid(rows, columns=steps, padding=0))]


# What --save-uncertainty, --save-process and --save-intermediate write, NAME_WHAT.png for each name, and what makes the
# pictures.
UNCERTAINTY, PROCESS, INTERMEDIATE = ('uncertainty', 'weights'), ('process',), ('intermediate',)
MAP_PICTURES = {UNCERTAINTY: map_pictures, PROCESS: process_picture, INTERMEDIATE: intermediate_picture}


def score_table(outcomes: Sequence[Outcome]) -> str:
    """PSNR and SSIM of each scored picture next to bicubic's, and the means."""
    rows = [(o.job.source.name, o.scores, o.bicubic) for o in outcomes if o.scores]
    if not rows:
        return ''
    mean = ({m: sum(row[i][m] for row in rows) / len(rows) for m in ('psnr', 'ssim')} for i in (1, 2))
    rows.append((f'mean of {len(rows)}', *mean))
    width = max(len(row[0]) for row in rows)
    lines = [f'{"PSNR, SSIM (Y)":{width}}  {"restored":>14}  {"bicubic":>14}  {"gain":>7}']
    for name, ours, bicubic in rows:
        gain = ours['psnr'] - bicubic['psnr']
        columns = '  '.join(f'{scores["psnr"]:7.3f} {scores["ssim"]:.4f}' for scores in (ours, bicubic))
        lines.append(f'{name:{width}}  {columns}  {gain:+7.3f}')
    return '\n'.join(lines)


def _resized(image: Tensor, lq: Tensor, outscale: float) -> Tensor:
    """An image with sides that are those of lq times outscale, rounded; both directions by one factor, then cut."""
    height, width = (max(1, round(side * outscale)) for side in lq.shape[-2:])
    factor = max(height / image.shape[-2], width / image.shape[-1])
    return imresize(image, factor)[..., :height, :width].clamp(0, 1)


def _reference(gt: Path, lq: Tensor, scale: int) -> Tensor:
    """Ground truth without the rows and columns that lq has no whole pixel for."""
    reference = to_tensor(read_image(gt))[None]
    height, width = (side * scale for side in lq.shape[-2:])
    rows, columns = reference.shape[-2] - height, reference.shape[-1] - width
    if not (0 <= rows < scale and 0 <= columns < scale):
        size = f'{reference.shape[-1]}x{reference.shape[-2]}'
        raise ValueError(
            f'{gt} is {size}, the restored picture would be {width}x{height}: this model enlarges x{scale}'
        )
    return reference[..., :height, :width]
