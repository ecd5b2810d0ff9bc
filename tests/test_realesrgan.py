"""The second-order degradation: published numbers, a plain transcription, and independence of how batches are split."""

import numpy as np
import pytest
import torch
from degradation_batches import KERNELS, kernels_of, make_batch, real_esrgan
from golden_case import GOLDEN, load_case
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import realesrgan_reference as oracle
from oracles.degradation_reference import usm_sharpened
from reference import realesrgan_cases
from reference.checking import judge

from basicsr.data.degradations.realesrgan import RealESRGANDegradation, S3DiffDegradation
from basicsr.data.degradations.realesrgan_plan import SeededNoise
from basicsr.utils.registry import OptionError

PIPELINES = sorted(path.stem for path in (GOLDEN / 'data').glob('*_pipeline_[0-9].json'))
BUILD = {'RealESRGANDegradation': RealESRGANDegradation, 'S3DiffDegradation': S3DiffDegradation}


# ---- equal to what was published


@pytest.mark.parametrize('name', [*PIPELINES, 'train_pair_pool'])
def test_the_recorded_plans_give_the_published_images(name):
    verdict = judge(load_case('data', name))
    assert verdict.status == 'pass', verdict


def test_the_recorded_cases_cover_every_branch():
    plans = [realesrgan_cases.recorded_plan(load_case('data', name).args['plan'])[0].decisions for name in PIPELINES]
    assert {plan.jpeg_first for plan in plans} == {True, False}
    assert {stage.mode for plan in plans for stage in (plan.first, plan.second)} == {'area', 'bilinear', 'bicubic'}
    assert {stage.noise for plan in plans for stage in (plan.first, plan.second)} == {'gaussian', 'poisson'}


class Recorder(SeededNoise):
    """Keeps the noise by the names of the reference cases."""

    def __init__(self):
        self.noise = {}

    def normal(self, image, stage, plans):
        draws = super().normal(image, stage, plans)
        self._keep(stage, 'randn', draws)
        return draws

    def counts(self, rates, stage, plans):
        draws = super().counts(rates, stage, plans)
        self._keep(stage, 'poisson', draws)
        return draws

    def _keep(self, stage, kind, draws):
        self.noise |= {f'stage{stage + 1}_{kind}_{name}': draw for name, draw in zip(('color', 'gray'), draws)}


def published_plan(plans, top: int = 0, left: int = 0) -> dict:
    """Our plan of one group in the words of the reference cases."""
    decided = plans[0].decisions

    def stage(options, own):
        amounts = 'sigma' if options.noise == 'gaussian' else 'scale_noise'
        return {
            'resize': options.resize, 'scale': options.scale, 'mode': options.mode, 'noise': options.noise,
            'blur': options.blur, 'gray': [float(s.gray) for s in own], amounts: [s.noise for s in own],
            'jpeg_quality': [s.quality for s in own],
        }  # fmt: skip

    second = stage(decided.second, [p.second for p in plans])
    order = 'jpeg_then_resize_sinc' if decided.jpeg_first else 'resize_sinc_then_jpeg'
    final = {'order': order, 'mode': decided.final_mode, 'jpeg_quality': second.pop('jpeg_quality')}
    first = stage(decided.first, [p.first for p in plans])
    return {'stage1': first, 'stage2': second, 'final': final, 'crop_lq': {'top': top, 'left': left}}


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_drawn_plans_give_what_the_transcription_gives(scale):
    """For most plans to the last pixel; in others a JPEG coefficient between two levels is rounded the other way."""
    changed = []
    for seed in range(12):
        batch = make_batch(range(3), max(48, 16 * scale), max(48, 18 * scale), seed)
        kernels = kernels_of(batch)
        degrade, recorder = real_esrgan(scale, seed, 3, gt_size=12 * scale), Recorder()
        plan = degrade.draw([0, 1, 2])
        sharp, _ = degrade.sources(batch['gt'])
        lq = degrade.apply(sharp, kernels, plan, recorder)
        noise = {name: draw for name, draw in recorder.noise.items() if draw is not None}
        expected = oracle.eight_bit(
            oracle.degrade(usm_sharpened(batch['gt']), kernels, published_plan(plan), scale, noise)
        )
        assert lq.shape == expected.shape
        changed.append(float(((lq - expected).abs() > 1e-4).float().mean()))
    assert sum(share < 0.001 for share in changed) >= 10 and max(changed) < 0.2, changed


def test_a_degradation_without_noise_and_resizes_is_two_blurs_a_sinc_and_jpeg():
    """The whole forward, against the transcription with its crop."""
    quiet = {'noise_range': (0, 0), 'noise_range2': (0, 0), 'gaussian_noise_prob': 1, 'gaussian_noise_prob2': 1}
    still = {'resize_prob': (0, 0, 1), 'resize_prob2': (0, 0, 1), 'second_blur_prob': 1}
    degrade, batch = real_esrgan(2, 5, 3, **quiet, **still), make_batch(range(3), 48, 52)
    plan = degrade.draw([0, 1, 2])
    result = degrade(batch)
    kernels = kernels_of(batch)
    for n, own in enumerate(plan):
        top, left = own.offset(24 - 16, 26 - 16)
        lq, gt = oracle.real_esrgan(
            batch['gt'][n : n + 1], [k[n : n + 1] for k in kernels], published_plan([own], top, left), 2, 32
        )
        assert ((result['lq'][n] - lq[0]).abs() > 1e-4).float().mean() < 0.05
        torch.testing.assert_close(result['gt'][n], gt[0], atol=2e-5, rtol=0)


def test_s3diffs_forward_equals_the_transcription():
    degrade, batch = S3DiffDegradation(2, 3, 2, gt_size=48, no_degradation_prob=0), make_batch([4, 5], 64, 64)
    plan, recorder = degrade.draw([4, 5]), Recorder()
    kernels = kernels_of(batch)
    degrade.apply(batch['gt'], kernels, plan, recorder)
    result = degrade(batch)
    noise = {name: draw for name, draw in recorder.noise.items() if draw is not None}
    for n, own in enumerate(plan):
        top, left = own.offset(32 - 24, 32 - 24)
        up, lq, gt = oracle.s3diff(batch['gt'], kernels, published_plan(plan, top, left), 2, 48, noise)
        for name, expected in (('lq_up', up), ('lq', lq), ('gt', gt)):
            assert ((result[name][n] - expected[n]).abs() > 1e-4).float().mean() < 0.05, name


# ---- a function of (seed, number), however batches are made


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    start=st.integers(0, 50),
    groups=st.integers(0, 4),
    parts=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    s3diff=st.booleans(),
)
def test_a_sample_is_the_same_in_any_batch(seed, start, groups, parts, s3diff):
    """One step of six samples, computed together and dealt out to up to three processes."""
    numbers = range(6 * start, 6 * start + 6)
    if s3diff:
        degrade = S3DiffDegradation(2, seed, 6, gt_size=32, groups=groups, no_degradation_prob=0.3)
    else:
        degrade = real_esrgan(2, seed, 6, groups=groups)
    together = degrade(make_batch(numbers, 48, 48))
    for process in range(3):
        chosen = [n for n, part in enumerate(parts) if part == process]
        if chosen:
            alone = degrade(make_batch([numbers[n] for n in chosen], 48, 48))
            assert alone['gt_path'] == [together['gt_path'][n] for n in chosen]
            for name in ('lq', 'gt', *(['lq_up'] if s3diff else [])):
                assert torch.equal(alone[name], together[name][chosen]), name


def test_the_order_of_a_batch_is_kept():
    degrade = real_esrgan(global_batch=6, groups=3)
    forward, backward = degrade(make_batch(range(6))), degrade(make_batch([*range(6)][::-1]))
    assert torch.equal(forward['lq'], backward['lq'].flip(0)) and torch.equal(forward['gt'], backward['gt'].flip(0))


def test_by_themselves_samples_do_not_depend_on_the_global_batch():
    one, other = (real_esrgan(global_batch=size, groups=0)(make_batch([7, 9])) for size in (2, 16))
    assert torch.equal(one['lq'], other['lq'])
    one, other = (real_esrgan(global_batch=size, groups=1).draw([7, 9]) for size in (2, 16))
    assert one[0].decisions != one[1].decisions and other[0].decisions == other[1].decisions


def test_nothing_outside_decides_and_nothing_outside_is_touched():
    degrade, batch = real_esrgan(), make_batch(range(4))
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = degrade(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(degrade(batch)['lq'], one['lq'])
    assert all(torch.equal(batch[name], value) for name, value in before.items())
    assert not torch.equal(real_esrgan(seed=1)(batch)['lq'], one['lq'])


@pytest.mark.parametrize('precision', ['highest', 'high', 'medium'])
def test_the_precision_of_training_is_not_that_of_the_degradation(precision):
    batch, expected = make_batch(range(4)), real_esrgan()(make_batch(range(4)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        result = real_esrgan()(batch)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(result['lq'], expected['lq'])


# ---- what goes in and comes out


@settings(max_examples=25, deadline=None)
@given(
    scale=st.integers(1, 4),
    height=st.integers(52, 80),
    width=st.integers(52, 80),
    seed=st.integers(0, 2**40),
    groups=st.integers(0, 2),
    s3diff=st.booleans(),
)
def test_shapes_and_ranges(scale, height, width, seed, groups, s3diff):
    size = 12 * scale
    batch = make_batch([0, 1, 2], height, width, seed)
    if s3diff:
        result = S3DiffDegradation(scale, seed, 3, gt_size=size, groups=groups)(batch)
    else:
        result = real_esrgan(scale, seed, 3, gt_size=size, groups=groups)(batch)
        levels = result['lq'] * 255
        assert torch.allclose(levels, levels.round(), atol=1e-4, rtol=0)
    images = {'lq': (3, 3, 12, 12), 'gt': (3, 3, size, size)} | ({'lq_up': (3, 3, size, size)} if s3diff else {})
    assert result.keys() == {*images, 'gt_path'}
    for name, shape in images.items():
        assert result[name].shape == shape and result[name].dtype == torch.float32
        assert result[name].min() >= 0 and result[name].max() <= 1


def test_lq_and_gt_show_the_same_place():
    """Hardly degraded, the lq is the shrunk gt; crops differ from sample to sample."""
    mild = {
        'resize_prob': (0, 0, 1), 'resize_prob2': (0, 0, 1), 'second_blur_prob': 0, 'noise_range': (0, 0),
        'noise_range2': (0, 0), 'gaussian_noise_prob': 1, 'gaussian_noise_prob2': 1, 'jpeg_range': (95, 95),
        'jpeg_range2': (95, 95), 'gt_usm': False,
    }  # fmt: skip
    degrade, batch = real_esrgan(2, 0, 8, groups=0, **mild), make_batch(range(8), 64, 72)
    for name in KERNELS:
        batch[name] = torch.zeros(8, 21, 21)
        batch[name][:, 10, 10] = 1
    result, wrong = degrade(batch), degrade(batch)['gt'].flip(0)
    small, other = (torch.nn.functional.avg_pool2d(gt, 2) for gt in (result['gt'], wrong))
    assert 3 * (result['lq'] - small).abs().mean() < (result['lq'] - other).abs().mean()
    places = {p.offset(16, 20) for p in degrade.draw(range(8))}
    assert len(places) > 4


def test_what_sharpening_is_for():
    batch = make_batch(range(4))
    plain, target, both = (real_esrgan(gt_usm=value, gt_size=64)(batch) for value in (False, True, 'both'))
    sharp = usm_sharpened(batch['gt'])
    assert torch.equal(plain['gt'], batch['gt']) and 'gt_usm' not in plain
    torch.testing.assert_close(target['gt'], sharp, atol=2e-5, rtol=0)
    assert torch.equal(both['gt'], batch['gt']) and torch.equal(both['lq'], target['lq'])
    torch.testing.assert_close(both['gt_usm'], sharp, atol=2e-5, rtol=0)
    assert not torch.equal(plain['lq'], target['lq'])


def test_the_pool_mixes_batches_and_sharpens_what_leaves():
    pooled, direct = real_esrgan(gt_usm='both', queue_size=8), real_esrgan(gt_usm='both')
    seen = []
    for step in range(5):
        batch = make_batch(range(4 * step, 4 * step + 4))
        seen.append((pooled(batch), direct(batch)))
    for ours, plain in seen[:2]:
        assert torch.equal(ours['lq'], plain['lq'])
    earlier = [pair for _, plain in seen[:2] for pair in zip(plain['lq'], plain['gt'])]
    ours = seen[2][0]
    for lq, gt in zip(ours['lq'], ours['gt']):
        assert any(torch.equal(lq, a) and torch.equal(gt, b) for a, b in earlier)
    torch.testing.assert_close(ours['gt_usm'], usm_sharpened(ours['gt']), atol=2e-5, rtol=0)


def test_training_goes_on_exactly_after_a_restart(tmp_path):
    unbroken, first = real_esrgan(queue_size=8), real_esrgan(queue_size=8)
    batches = [make_batch(range(4 * step, 4 * step + 4)) for step in range(6)]
    for batch in batches[:3]:
        unbroken(batch), first(batch)
    torch.save(first.training_state(), tmp_path / 'own.pth')
    second = real_esrgan(queue_size=8)
    second.load_training_state(torch.load(tmp_path / 'own.pth', weights_only=True))
    for batch in batches[3:]:
        assert torch.equal(unbroken(batch)['lq'], second(batch)['lq'])
    assert real_esrgan().training_state() == S3DiffDegradation(2, 0, 4).training_state() == {}


def test_without_degradation_s3diff_sees_the_gt_but_keeps_the_degraded_lq():
    batch, size = make_batch(range(4)), {'gt_size': 64}
    untouched = S3DiffDegradation(2, 0, 4, **size, no_degradation_prob=1)(batch)
    assert torch.equal(untouched['lq_up'], untouched['gt'])
    degraded = S3DiffDegradation(2, 0, 4, **size, no_degradation_prob=0)(batch)
    assert torch.equal(untouched['lq'], degraded['lq']) and not torch.equal(degraded['lq_up'], degraded['gt'])


def test_a_sample_that_is_not_finite_becomes_its_gt():
    batch = make_batch(range(3))
    degrade = S3DiffDegradation(2, 0, 3, gt_size=64, no_degradation_prob=0)
    whole = degrade(batch)
    batch['sinc_kernel'][1, 0, 0] = torch.nan
    broken = degrade(batch)
    assert torch.equal(broken['lq_up'][1], batch['gt'][1])
    torch.testing.assert_close(broken['lq'][1], torch.nn.functional.avg_pool2d(batch['gt'][1], 2))
    assert torch.equal(broken['lq'][::2], whole['lq'][::2]) and torch.equal(broken['lq_up'][::2], whole['lq_up'][::2])


@pytest.mark.parametrize('name', sorted(BUILD))
def test_one_image_as_a_whole(name):
    options = {'queue_size': 0, 'resize_range': (0.3, 1.5)} if name == 'RealESRGANDegradation' else {}
    degrade = BUILD[name](2, 0, 1, gt_size=64, **options)
    batch = make_batch([5])
    gt, lq, parameters = degrade.degrade_image(
        np.pad(batch['gt'][0].permute(1, 2, 0).numpy(), ((0, 1), (0, 0), (0, 0))),
        [kernel[0].numpy() for kernel in kernels_of(batch)],
        5,
    )
    assert gt.shape == (64, 64, 3) and lq.shape == (32, 32, 3) and gt.dtype == lq.dtype == np.float32
    expected = degrade(batch)
    assert np.array_equal(lq, expected['lq'][0].permute(1, 2, 0)) and np.array_equal(
        gt, expected['gt'][0].permute(1, 2, 0)
    )
    assert parameters == degrade.parameters(degrade.draw([5])[0])


# ---- mistakes


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match='gt of 40x30 is smaller than the crop of gt_size 32'):
        real_esrgan()(make_batch(range(4), 30, 40))
    with pytest.raises(ValueError, match='gt of 64x64 is too small: resize_range may leave 9 pixels of it'):
        real_esrgan(resize_range=(0.15, 1.5), groups=0)(make_batch(range(1)))
    batch = make_batch(range(100))
    for options, message in (
        ({'second_blur_prob': 1}, r'is too small: it shrinks to \d pixels on the way, where more than 10 are needed'),
        ({'second_blur_prob': 0, 'resize_range': (0.001, 1)}, r'shrinks to 0 pixels on the way, where more than 0'),
    ):
        shrinking = real_esrgan(resize_prob=(0, 1, 0), groups=0, seed=3, **{'resize_range': (0.05, 1), **options})
        with pytest.raises(ValueError, match=message):
            shrinking.apply(batch['gt'], kernels_of(batch), shrinking.draw(range(100)))
    with pytest.raises(ValueError, match='does not divide by the scale 2'):
        batch = make_batch([0], 41, 40)
        kernels = kernels_of(batch)
        real_esrgan().apply(batch['gt'], kernels, real_esrgan().draw([0]))
    with pytest.raises(OptionError, match='queue_size 3 is smaller than the batch of 4'):
        real_esrgan(queue_size=3)(make_batch(range(4)))
