"""Cases of `data`: the second-order degradation by recorded plans and noise, and the training-pair pool."""

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from basicsr.data.degradations.filters import filter2d
from basicsr.data.degradations.noise import PoissonRates
from basicsr.data.degradations.pair_pool import PairPool
from basicsr.data.degradations.realesrgan import (
    BatchDegradation,
    RealESRGANDegradation,
    S3DiffDegradation,
    enlarged,
)
from basicsr.data.degradations.realesrgan_plan import Decisions, SamplePlan, StageDecisions, Strengths
from basicsr.data.degradations.realesrgan_stages import resized_by
from reference.case import Case
from reference.checking import checks, mostly, tensors

RUN = {'seed': 0, 'global_batch': 2}
FLIPPED = 0.01  # share of pixels that rounding in JPEG may change, by the cases' notes


@checks('data', 'second-order degradation')
def second_order(case: Case) -> Iterator[tuple]:
    """The degradation, built from the case's options, applied to the recorded plan and noise."""
    is_s3diff, (gt,) = 'S3Diff' in case.spec.get('source', '') or 'sf' in case.args, tensors(case, 'gt_u8')
    scale, plan = case.args.get('sf') or case.args['options']['scale'], recorded_plan(case.args['plan'])
    degrade = built(S3DiffDegradation if is_s3diff else RealESRGANDegradation, case, scale)
    # A plan without a second blur may come without its kernel.
    kernels = tuple(
        torch.as_tensor(case.inputs.get(name, case.inputs['kernel1'])) for name in ('kernel1', 'kernel2', 'sinc_kernel')
    )
    degraded, target = degrade.sources(gt.permute(0, 3, 1, 2).contiguous() / 255)

    blurred, first = filter2d(degraded, kernels[0]), plan[0].decisions.first
    yield top_left(case, 'after_blur1', blurred)
    yield top_left(case, 'after_resize1', resized_by(blurred, first.scale, first.mode))

    lq = degrade.apply(degraded, kernels, plan, RecordedNoise(case))
    if 'crop_lq' in case.args['plan']:
        size = case.args['options'].get('gt_size', degrade.gt_size)
        lq, target = cut(lq, target, scale, **case.args['plan']['crop_lq'], size=size)
    if not is_s3diff:
        yield mostly(case, 'lq', lq, FLIPPED)
        yield 'gt', target
        if degrade.gt_usm == 'both':
            yield 'gt_usm', degrade.usm(target)
        return
    yield mostly(case, 'lq_small', lq, FLIPPED)
    large = target if case.args.get('replaced_by_gt') else enlarged(lq, target.shape[-2:])
    yield mostly(case, 'lq', 2 * large - 1, FLIPPED)
    yield 'gt', 2 * target - 1


def built(kind: type[BatchDegradation], case: Case, scale: int) -> BatchDegradation:
    """The degradation by those of the case's options that are its own; others are about kernels, losses or files."""
    known = inspect.signature(kind).parameters
    given = {name: value for name, value in case.args['options'].items() if name in known}
    if 'queue_size' in known:
        given['queue_size'] = 0  # the cases pass the pool by
    if 'gt_usm' in case.arrays:
        given['gt_usm'] = 'both'
    return kind(**{**given, **RUN, 'scale': scale})


def top_left(case: Case, name: str, image: Tensor) -> tuple[str, Tensor]:
    """As much of an intermediate result as the case keeps."""
    height, width = case.arrays[name].shape[-2:] if name in case.arrays else (None, None)
    return name, image[..., :height, :width]


class RecordedNoise:
    """The noise that a case stores; where no sample is gray, no gray noise is."""

    def __init__(self, case: Case):
        self.case = case

    def normal(self, image: Tensor, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor | None]:
        return self._stored(stage, 'randn_color'), self._stored(stage, 'randn_gray')

    def counts(self, rates: PoissonRates, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor]:
        gray = self._stored(stage, 'poisson_gray')
        return self._stored(stage, 'poisson_color'), torch.zeros_like(rates.gray) if gray is None else gray

    def _stored(self, stage: int, kind: str) -> Tensor | None:
        stored = self.case.arrays.get(f'stage{stage + 1}_{kind}')
        return None if stored is None else torch.as_tensor(stored)


def recorded_plan(plan: dict) -> tuple[SamplePlan, ...]:
    """The plans of a case's samples."""
    stages, final = (plan['stage1'], plan['stage2']), plan['final']
    decided = [StageDecisions(s.get('blur', True), s['resize'], s['scale'], s['mode'], s['noise']) for s in stages]
    decisions = Decisions(*decided, final['mode'], final['order'] == 'jpeg_then_resize_sinc', False, (0, 0))
    qualities = stages[0]['jpeg_quality'], final['jpeg_quality']
    strengths = [
        [Strengths(*own, 0) for own in zip(s.get('sigma') or s['scale_noise'], map(bool, s['gray']), quality)]
        for s, quality in zip(stages, qualities)
    ]
    return tuple(SamplePlan(decisions, *own) for own in zip(*strengths))


def cut(lq: Tensor, gt: Tensor, scale: int, top: int, left: int, size: int) -> tuple[Tensor, Tensor]:
    """The same square of both; top and left in lq pixels, size in gt pixels."""
    side, y, x = size // scale, top * scale, left * scale
    return lq[..., top : top + side, left : left + side], gt[..., y : y + size, x : x + size]


@checks('data', 'pair pool')
def pair_pool(case: Case) -> Iterator[tuple]:
    """Samples that are their numbers go through the pool by the recorded permutations."""
    size, pool = case.args['batch'], PairPool(case.args['queue_size'])
    out = []
    for t in range(case.args['batches']):
        lq = torch.arange(t * size, (t + 1) * size, dtype=torch.float32).reshape(size, 1, 1, 1)
        out.append(pool.exchange_by(lq, 1000 + lq, lambda t=t: case.inputs[f'perm_{t}']))
    for name, images in zip(('out_lq', 'out_gt'), zip(*out)):
        yield name, torch.stack(images).flatten(1)
