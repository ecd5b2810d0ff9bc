"""What `scripts/benchmark.py data` measures: degradations, kernels, resizing and SSIM against plain transcriptions of
the published forms (tests/oracles), which compute the same.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from oracles import (
    bsrgan_reference,
    degradation_reference,
    imresize_reference,
    realesrgan_reference,
    ssim_array_reference,
    ssim_reference,
)
from pipelines import Pipeline
from timing import HEADER, Row, header, line_of, measured
from torch import Tensor

from basicsr.data.degradations.bsrgan_kernels import anisotropic_gaussian
from basicsr.data.degradations.bsrgan_steps import AnisotropicBlur, IsotropicBlur, Noise, Poisson, Step
from basicsr.data.degradations.filters import USMSharpener, filter2d
from basicsr.data.degradations.jpeg import DiffJPEG
from basicsr.data.degradations.kernels import KernelPlan, kernels_of
from basicsr.data.degradations.noise import poisson_noise, poisson_rates
from basicsr.data.degradations.realesrgan_plan import SamplePlan, SeededNoise
from basicsr.metrics.psnr_ssim import ssim
from basicsr.utils.image import read_image, to_tensor
from basicsr.utils.registry import DEGRADATION_REGISTRY
from basicsr.utils.resize import imresize

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ROOT / 'options/train/degradations'
BATCH = 4
NAMES = ('kernel1', 'kernel2', 'sinc_kernel')


def photograph(height: int, width: int, number: int = 0) -> np.ndarray:
    """uint8 RGB (h, w, 3): a picture of the test set, continued by its mirror images."""
    paths = sorted((ROOT / 'testset/gt').glob('*.png'))
    image = np.rint(read_image(paths[number % len(paths)]) * 255).astype(np.uint8)
    top, left = np.random.default_rng(number).integers(0, 100, 2)
    image = np.pad(image, ((top, height), (left, width), (0, 0)), mode='symmetric')
    return np.ascontiguousarray(image[:height, :width])


def floats(height: int, width: int, number: int = 0) -> np.ndarray:
    return photograph(height, width, number).astype(np.float32) / 255


def images(side: int, number: int = 0, count: int = BATCH) -> Tensor:
    return torch.stack([to_tensor(floats(side, side, BATCH * number + n)) for n in range(count)])


# ---- degradations of batches


class Recorder(SeededNoise):
    """Keeps the noise that is drawn, by the transcription's names."""

    def __init__(self):
        self.noise: dict[str, Tensor] = {}

    def normal(self, image: Tensor, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor | None]:
        return self._kept(stage, 'randn', super().normal(image, stage, plans))

    def counts(self, rates: Any, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor]:
        return self._kept(stage, 'poisson', super().counts(rates, stage, plans))

    def _kept(self, stage: int, kind: str, draws: tuple) -> tuple:
        named = zip((f'stage{stage + 1}_{kind}_color', f'stage{stage + 1}_{kind}_gray'), draws)
        self.noise |= {name: draw for name, draw in named if draw is not None}
        return draws


def published_plan(plans: Sequence[SamplePlan]) -> dict:
    """Plans of one group in the words of the transcription; the crop is all of the image."""
    decided = plans[0].decisions

    def stage(options: Any, own: Sequence) -> dict:
        strength = 'sigma' if options.noise == 'gaussian' else 'scale_noise'
        return {
            **{key: getattr(options, key) for key in ('blur', 'scale', 'mode', 'noise')},
            'gray': [float(sample.gray) for sample in own],
            strength: [sample.noise for sample in own],
            'jpeg_quality': [sample.quality for sample in own],
        }

    second = stage(decided.second, [plan.second for plan in plans])
    order = 'jpeg_then_resize_sinc' if decided.jpeg_first else 'resize_sinc_then_jpeg'
    return {
        'stage1': stage(decided.first, [plan.first for plan in plans]),
        'stage2': second,
        'final': {'order': order, 'mode': decided.final_mode, 'jpeg_quality': second.pop('jpeg_quality')},
        'crop_lq': {'top': 0, 'left': 0},
    }


def batch_row(title: str, file: str, side: int, plans: int, target: float | None) -> Row:
    """The section `degradation:` of an option file, from gt to the cropped pair; the crop is all of it."""
    pipeline = Pipeline.load(str(OPTIONS / file))
    options = {**pipeline.sections['degradation'], 'gt_size': side, 'groups': 1}
    is_s3diff = options['type'] == 'S3DiffDegradation'
    options |= {'no_degradation_prob': 0} if is_s3diff else {'queue_size': 0}
    scale = pipeline.scale
    degrade = DEGRADATION_REGISTRY.build(options, scale=scale, seed=0, global_batch=BATCH)
    published = realesrgan_reference.s3diff if is_s3diff else realesrgan_reference.real_esrgan
    kernels = [
        [
            torch.stack(parts)
            for parts in zip(*(map(torch.from_numpy, pipeline.kernels.draw(rng)) for _ in range(BATCH)))
        ]
        for rng in map(np.random.default_rng, range(plans))
    ]
    batches = [
        {'gt': images(side, n), **dict(zip(NAMES, kernels[n])), 'number': torch.arange(BATCH * n, BATCH * (n + 1))}
        for n in range(plans)
    ]

    def other(n: int, noise: dict | None = None) -> tuple:
        plan = published_plan(degrade.draw(batches[n]['number'].tolist()))
        return published(batches[n]['gt'], kernels[n], plan, scale, side, noise)

    def outputs(n: int) -> tuple:
        recorder, gt = Recorder(), batches[n]['gt']
        degrade.apply(degrade.sources(gt)[0], tuple(kernels[n]), degrade.draw(batches[n]['number'].tolist()), recorder)
        made = degrade(batches[n])
        return [made[key] for key in (('lq_up', 'lq', 'gt') if is_s3diff else ('lq', 'gt'))], [
            *other(n, recorder.noise)
        ]

    title = f'{title}, {BATCH}x3x{side}x{side}'
    return Row(title, lambda n: degrade(batches[n]), other, BATCH, plans, target, outputs, min(plans, 6))


# ---- degradations of single images


def published_noise(step: Noise, shape: tuple[int, ...]) -> np.ndarray:
    """Drawn as the published code does."""
    if step.kind == 'correlated':
        return np.random.multivariate_normal([0, 0, 0], step.covariance, shape[:2]).astype(np.float32)  # noqa: NPY002
    channels = 1 if step.kind == 'gray' else 3
    return np.random.normal(0, step.level / 255, (*shape[:2], channels)).astype(np.float32)  # noqa: NPY002


def transcribed(image: np.ndarray, plan: Sequence[Step], own_noise: bool) -> np.ndarray:
    """lq by the transcription, step by step; its noise is drawn as published, or is the plan's own."""
    for step in plan:
        fields = {'op': type(step).__name__, **asdict(step)}
        if isinstance(step, Noise):
            fields['draw'] = step.draw(*image.shape[:2]) if own_noise else published_noise(step, image.shape)
        elif isinstance(step, Poisson):
            fields['draw'] = poisson_counts(step, image) if own_noise else None
        image = bsrgan_reference.applied(image, [fields])[1]
    return image


def poisson_counts(step: Poisson, image: np.ndarray) -> np.ndarray:
    """What a step draws."""
    exact = np.rint(image * 255)
    if step.kind == 'gray':
        exact = np.rint(exact @ np.array([0.299, 0.587, 0.114]))
    return np.random.default_rng(step.seed).poisson((exact / 255).astype(np.float32) * step.values)


def is_narrow(step: Step) -> bool:
    """Whether it is a kernel of even size whose published sum can be 0."""
    return isinstance(step, IsotropicBlur | AnisotropicBlur) and step.size % 2 == 0


def bsrgan_row(name: str, scale: int, side: int, plans: int, target: float | None) -> Row:
    degrade = DEGRADATION_REGISTRY.build({'type': name}, scale=scale)
    sources = [floats(side, side, n) for n in range(8)]

    def drawn(n: int) -> tuple:
        return degrade.draw(side, side, np.random.default_rng(n))

    def ours(n: int) -> np.ndarray:
        return degrade.apply(sources[n % 8], drawn(n))[1]

    def outputs(n: int) -> tuple[np.ndarray, np.ndarray]:
        plan = [step for step in drawn(n) if not is_narrow(step)]
        return degrade.apply(sources[n % 8], plan)[1], transcribed(sources[n % 8], plan, True)

    def other(n: int) -> np.ndarray:
        return transcribed(sources[n % 8], drawn(n), False)

    title = f'{name.removesuffix("Degradation")} x{scale}, {side}x{side}'
    return Row(title, ours, other, 1, plans, target, outputs, min(plans, 20))


# ---- pieces


def fixed(
    title: str, ours: Callable[[], Any], other: Callable[[], Any], count: int, target: float | None = None
) -> Row:
    """Work that is always the same, of `count` images."""
    return Row(title, lambda _: ours(), lambda _: other(), count, target=target)


def piece_rows(side: int) -> Iterator[Row]:
    """The parts of the second-order degradation, on a batch."""
    batch, rng, size = images(side), np.random.default_rng(0), f'{BATCH}x3x{side}x{side}'
    sharpen, jpeg = USMSharpener(), DiffJPEG()
    oracle = degradation_reference
    yield fixed(f'USM, {size}', lambda: sharpen(batch), lambda: oracle.usm_sharpened(batch), BATCH)
    quality = torch.tensor([35.0, 60.0, 80.0, 95.0])
    yield fixed(f'DiffJPEG, {size}', lambda: jpeg(batch, quality), lambda: oracle.diff_jpeg(batch, quality), BATCH)
    kernels = torch.tensor(rng.random((BATCH, 21, 21)), dtype=torch.float32) / 220
    yield fixed(f'filter2D, {size}', lambda: filter2d(batch, kernels), lambda: oracle.filter2d(batch, kernels), BATCH)
    yield poisson_row(batch, size)


def poisson_row(batch: Tensor, size: str) -> Row:
    oracle, gray, scale = degradation_reference, torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.5, 1, 2, 3])

    def ours(_: int, draw: Callable = torch.poisson) -> Tensor:
        rates = poisson_rates(batch)
        return poisson_noise(batch, rates, scale, gray, draw(rates.color), draw(rates.gray))

    def other(_: int, draw: Callable = torch.poisson) -> Tensor:
        rates = oracle.poisson_rates(batch, gray)
        return oracle.poisson_noise(rates, scale, gray, draw(rates[0]), draw(rates[2]))

    def outputs(_: int) -> tuple[Tensor, Tensor]:
        return ours(0, torch.round), other(0, torch.round)  # the same counts

    return Row(f'Poisson noise with its draws, {size}', ours, other, BATCH, outputs=outputs)


def published_kernel(plan: KernelPlan) -> np.ndarray:
    oracle = degradation_reference
    if plan.kind == 'sinc':
        return oracle.sinc_kernel(plan.cutoff, plan.size, pad_to=21)
    if plan.kind == 'pulse':
        return oracle.padded(np.ones((1, 1)))
    family = 'gaussian' if plan.kind in ('iso', 'aniso') else plan.kind.rpartition('_')[0]
    isotropic = not plan.kind.endswith('aniso')
    shape = plan.sigma_x, plan.sigma_y or plan.sigma_x, plan.theta or 0.0, plan.beta or 1.0
    return oracle.padded(oracle.bivariate_kernel(family, plan.size, *shape, isotropic=isotropic))


def kernel_rows(count: int) -> Iterator[Row]:
    rng, options = np.random.default_rng(0), Pipeline.load(str(OPTIONS / 'realesrnet_x4.yml')).kernels
    plans = [options.plan(rng) for _ in range(count)]
    yield fixed(
        'Real-ESRGAN: the three kernels of an image',
        lambda: [kernel for plan in plans for kernel in kernels_of(plan)],
        lambda: [published_kernel(kernel) for plan in plans for kernel in plan],
        count,
    )
    shapes = [(2 * int(rng.integers(2, 12)) + 3, rng.random() * np.pi, *(0.1 + 8 * rng.random(2))) for _ in range(8)]
    yield fixed(
        'BSRGAN: an anisotropic kernel',
        lambda: [anisotropic_gaussian(*shape) for shape in shapes],
        lambda: [bsrgan_reference.anisotropic_gaussian(*shape) for shape in shapes],
        len(shapes),
    )


def resize_rows(sizes: Sequence[tuple[int, int, float]]) -> Iterator[Row]:
    for height, width, scale in sizes:
        image, factor = floats(height, width), f'x{scale:g}' if scale > 1 else f'/{1 / scale:g}'
        yield fixed(
            f'imresize {height}x{width} {factor}',
            partial(imresize, image, scale),
            partial(imresize_reference.imresize, image, scale),
            1,
            3,
        )


def ssim_rows(side: int) -> Iterator[Row]:
    gt, size = images(side, count=1), f'3x{side}x{side}'
    sr = (gt + 0.05 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    arrays = [image[0].permute(1, 2, 0).numpy() * 255 for image in (sr, gt)]
    yield fixed(f'SSIM, {size}', lambda: ssim(sr, gt), lambda: np.array([ssim_array_reference.ssim(*arrays)]), 1, 4)
    yield fixed(f'SSIM, tensor form, {size}', lambda: ssim(sr, gt), lambda: ssim_reference.ssim(sr * 255, gt * 255), 1)


def rows(quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of rows, each with a function that gives the row, or several of them."""
    side, batches, plans = (64, 2, 3) if quick else (256, 20, 80)
    sizes = [(480, 480, 1 / 2), (480, 480, 1 / 3), (480, 480, 1 / 4), (1356, 2040, 1 / 4), (120, 120, 4)]
    # The published chain may leave 15 % of a side, and the second blur needs more than 10 pixels.
    yield 'realesrgan', lambda: batch_row('Real-ESRNet x4 with USM', 'realesrnet_x4.yml', max(side, 96), batches, 4)
    yield 's3diff', lambda: batch_row('S3Diff x4', 's3diff_x4.yml', max(side, 96), batches, None)
    for name, scale in (('', 4), ('', 2), ('Light', 4), ('Light', 2), ('Plus', 4)):
        row = partial(bsrgan_row, f'BSRGAN{name}Degradation', scale, side, plans, 3)
        yield f'bsrgan{name.lower()}', row
    yield 'ssim', lambda: ssim_rows(64 if quick else 512)
    yield 'imresize', lambda: resize_rows([(48, 60, 1 / 4), (24, 20, 2)] if quick else sizes)
    yield 'pieces', lambda: piece_rows(side)
    yield 'kernels', lambda: kernel_rows(4 if quick else 60)


def compute_reports(only: str, quick: bool, repeats: int) -> list[dict]:
    """Measure all rows, or those whose name contains `only`, and print them as a Markdown table."""
    reports = []
    print(header(HEADER), flush=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings('ignore', 'covariance is not', RuntimeWarning)  # the published code gets it, too
        for name, make in rows(quick):
            if only not in name:
                continue
            made = make()
            for row in [made] if isinstance(made, Row) else made:
                random.seed(0)
                np.random.seed(0)  # noqa: NPY002
                torch.manual_seed(0)
                reports.append(measured(row, repeats))
                print(line_of(reports[-1]), flush=True)
    return reports


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
