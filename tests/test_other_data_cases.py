"""Cases like the given ones with other arguments, whose outputs come from the plain transcriptions in tests/oracles."""

import random

import numpy as np
import pytest
import torch
from golden_case import Case, image, load_case
from oracles import bsrgan_reference as bsrgan
from oracles import degradation_reference as plain
from oracles import realesrgan_reference as second_order
from reference import checkers  # noqa: F401 (it registers them)
from reference.checking import judge


def other(name: str, outputs: dict, inputs: dict | None = None, args: dict | None = None, **spec) -> Case:
    """The given case with other arguments and arrays; an argument that is None is left out."""
    given = load_case('data', name).spec
    arrays = {key: np.asarray(value) for key, value in (inputs or {}).items()}
    args = {key: value for key, value in {**given['args'], **(args or {})}.items() if value is not None}
    listed = dict.fromkeys(arrays, 'npz')
    outputs = {key: np.asarray(value) for key, value in outputs.items()}
    return Case({**given, 'args': args, 'inputs': listed, **spec}, {**arrays, **outputs})


def passes(case: Case) -> None:
    verdict = judge(case)
    assert verdict.status == 'pass', verdict


def photo(seed: int, b: int, h: int, w: int) -> np.ndarray:
    """(b, h, w, 3) integers 0..255."""
    return (image(seed, b, 3, h, w).permute(0, 2, 3, 1).numpy() * 255).round().astype(np.int64)


def some_kernels(rng, b: int, size: int = 21) -> np.ndarray:
    kernels = [plain.bivariate_kernel('gaussian', size, *rng.uniform(0.5, 3, 2), 0.3, 1, False) for _ in range(b)]
    return np.float32(kernels)


def test_blur_kernels_of_other_sizes_and_another_covariance():
    asked = [
        {'kind': 'generalized', 'size': 9, 'sig_x': 0.7, 'sig_y': 2.2, 'theta': 3.0, 'beta': 1.7, 'isotropic': False},
        {'kind': 'plateau', 'size': 21, 'sig_x': 2.0, 'sig_y': 0.3, 'theta': -2.0, 'beta': 0.6, 'isotropic': False},
    ]
    kernels = {
        f'k_{k}': plain.bivariate_kernel(a['kind'], a['size'], a['sig_x'], a['sig_y'], a['theta'], a['beta'], False)
        for k, a in enumerate(asked)
    }
    sinc = {'sinc_0': plain.sinc_kernel(1.9, 11, 21)}
    args = {'kernels': asked, 'sinc': [{'cutoff': 1.9, 'size': 11, 'pad_to': 21}]}
    passes(other('blur_kernels', {**kernels, **sinc, 'sigma_matrix': plain.sigma_matrix(0.4, 3.1, -1.2)}, args=args))
    passes(other('blur_kernels', {**kernels, **sinc}, args=args))


def test_mixed_kernels_with_other_kinds_ranges_and_seeds():
    kinds, probabilities = ['aniso', 'plateau_aniso', 'generalized_iso'], [0.3, 0.4, 0.3]
    args = {
        'kernel_list': kinds, 'kernel_prob': probabilities, 'kernel_size': 17, 'sigma_x_range': [0.6, 5],
        'sigma_y_range': [0.6, 5], 'betag_range': [0.5, 8], 'betap_range': [0.5, 8], 'seeds': [11, 12, 13],
        'rotation_range': [-1, 2],
    }  # fmt: skip
    kernels = {}
    for seed in args['seeds']:
        rngs = random.Random(seed), np.random.RandomState(seed)
        ranges = [0.6, 5], [0.5, 8], [0.5, 8]
        kernels[f'kernel_{seed}'] = plain.mixed_kernel(kinds, probabilities, 17, *ranges, *rngs, rotation_range=[-1, 2])
    passes(other('rng_mixed_kernels', kernels, args=args))


def test_filters_of_other_sizes():
    x, kernels = image(3, 3, 3, 51, 70), torch.from_numpy(some_kernels(np.random.default_rng(0), 3, 15))
    outputs = {
        'filtered': plain.filter2d(x, kernels),
        'filtered_shared': plain.filter2d(x, kernels[0]),
        'usm_tensor': plain.usm_sharpened(x, 0.8, 4),
        'usm_array': bsrgan.sharpened(x[0].permute(1, 2, 0).numpy(), 0.8, 50, 4),
    }
    args = {'weight': 0.8, 'threshold': 4}
    passes(other('filter2d_usm', outputs, {'x': x, 'kernels': kernels}, args))


@pytest.mark.parametrize('gray', [[0.0], [1.0], [1.0, 0.0, 1.0, 1.0, 0.0]])
def test_noise_of_other_batches(gray):
    torch.manual_seed(0)
    b, x = len(gray), image(5, len(gray), 3, 9, 12)
    sigma, scale, flags = torch.rand(b) * 30, torch.rand(b) * 3, torch.tensor(gray)
    color, shared = torch.randn_like(x), torch.randn(9, 12)
    noise = plain.gaussian_noise(x, sigma, flags, color, shared if flags.any() else None)
    rates = plain.poisson_rates(x, flags)
    counts = torch.poisson(rates[0]), torch.poisson(rates[2]) if flags.any() else None
    inputs = {'x': x, 'sigma': sigma, 'gray': flags, 'scale': scale, 'gauss_color': color, 'poisson_color': counts[0]}
    if flags.any():
        inputs |= {'gauss_gray': shared, 'poisson_gray': counts[1]}
    shot = plain.poisson_noise(rates, scale, flags, *counts)
    outputs = {
        'gauss_noise': noise,
        'gauss_added_clip0_round0': x + noise,
        'gauss_added_clip1_round1': plain.add_noise(x, noise, True, True),
        'poisson_noise': shot,
        'poisson_added_clip1_round0': plain.add_noise(x, shot),
        'vals': rates[1].flatten(),
    }
    passes(other('noise', outputs, inputs))
    poisson = {key: value for key, value in outputs.items() if not key.startswith('gauss')}
    passes(other('noise', poisson, {key: value for key, value in inputs.items() if key != 'gauss_color'}))


@pytest.mark.parametrize('qualities', [[92], [1, 33.3, 60, 99]])
def test_jpeg_at_other_qualities(qualities):
    pixels = photo(7, 1, 33, 19)[0]
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    outputs = {f'hard_{k}': plain.diff_jpeg(x, float(quality)) for k, quality in enumerate(qualities)}
    given = torch.tensor(qualities, dtype=torch.float32)
    outputs['batch'] = plain.diff_jpeg(x.repeat(len(qualities), 1, 1, 1), given)
    outputs['factor'] = [plain.quality_factor(float(quality)) for quality in qualities]
    passes(other('diffjpeg', outputs, {'image_u8': pixels}, {'qualities': qualities}))


STAGES = {
    'up': {'resize': 'up', 'scale': 1.31, 'mode': 'bicubic', 'gray': [1, 0, 0], 'jpeg_quality': [31.0, 94.0, 55.5]},
    'down': {'resize': 'down', 'scale': 0.51, 'mode': 'bilinear', 'gray': [0, 0, 0], 'jpeg_quality': [60.0] * 3},
    'keep': {'resize': 'keep', 'scale': 1, 'mode': 'area', 'gray': [1, 1, 1], 'jpeg_quality': [80.0, 70.0, 90.0]},
}
STRENGTHS = {'gaussian': ('sigma', [2.0, 9.5, 24.0]), 'poisson': ('scale_noise', [0.1, 1.7, 2.5])}


def stage(resize: str, noise: str, blur: bool | None = None) -> dict:
    name, values = STRENGTHS[noise]
    return {**STAGES[resize], 'noise': noise, name: values, **({} if blur is None else {'blur': blur})}


def draws(sides: list[tuple[int, int]], plan: dict, rates) -> dict[str, torch.Tensor]:
    """Noise for both stages; counts are any numbers, as both ways must use them alike."""
    found = {}
    for number, size in enumerate(sides, start=1):
        decided = plan[f'stage{number}']
        kind = 'randn' if decided['noise'] == 'gaussian' else 'poisson'
        make = torch.randn if kind == 'randn' else lambda *shape: rates * torch.rand(shape)
        found[f'stage{number}_{kind}_color'] = make(3, 3, *size)
        if any(decided['gray']):
            found[f'stage{number}_{kind}_gray'] = make(*size) if kind == 'randn' else make(3, 1, *size)
    return found


@pytest.mark.parametrize('published', ['realesrgan_pipeline_0', 's3diff_pipeline_0'])
@pytest.mark.parametrize(
    ('first', 'second', 'noises', 'blur', 'order', 'scale'),
    [
        ('up', 'down', ('gaussian', 'poisson'), True, 'jpeg_then_resize_sinc', 2),
        ('down', 'keep', ('poisson', 'gaussian'), False, 'resize_sinc_then_jpeg', 3),
        ('keep', 'up', ('gaussian', 'gaussian'), True, 'resize_sinc_then_jpeg', 1),
        ('up', 'up', ('poisson', 'poisson'), False, 'jpeg_then_resize_sinc', 4),
    ],
)
def test_second_order_with_other_plans(published, first, second, noises, blur, order, scale):
    torch.manual_seed(1)
    is_s3diff, (h, w), size = published.startswith('s3'), (72, 60), 36
    plan = {
        'stage1': stage(first, noises[0]),
        'stage2': stage(second, noises[1], blur),
        'final': {'order': order, 'mode': 'bicubic', 'jpeg_quality': [91.0, 45.0, 99.0]},
        'crop_lq': {'top': 5, 'left': 3},
    }
    factor = plan['stage2']['scale']
    sides = [(int(h * plan['stage1']['scale']), int(w * plan['stage1']['scale']))]
    sides.append((int(h / scale * factor), int(w / scale * factor)))
    noise, rng = draws(sides, plan, 128), np.random.default_rng(2)
    kernels = [torch.from_numpy(some_kernels(rng, 3)) for _ in range(3)]
    gt = photo(9, 3, h, w)
    x = torch.from_numpy(gt).permute(0, 3, 1, 2).float() / 255
    inputs = {'gt_u8': gt, 'kernel1': kernels[0], 'sinc_kernel': kernels[2], **noise}
    if blur:
        inputs['kernel2'] = kernels[1]
    options = {**load_case('data', published).args['options'], 'gt_size': size, 'queue_size': 180, 'l1_gt_usm': True}
    args = {'plan': plan, 'options': options, 'resize1_size': list(sides[0])}
    if is_s3diff:
        large, small, target = second_order.s3diff(x, kernels, plan, scale, size, noise)
        outputs = {'lq': 2 * large - 1, 'lq_small': small, 'gt': 2 * target - 1}
        passes(other(published, outputs, inputs, {**args, 'sf': scale}))
        passes(
            other(published, {**outputs, 'lq': 2 * target - 1}, inputs, {**args, 'sf': scale, 'replaced_by_gt': True})
        )
        return
    options['scale'] = scale
    lq, sharp = second_order.real_esrgan(x, kernels, plan, scale, size, noise)
    blurred = plain.filter2d(plain.usm_sharpened(x), kernels[0])
    passes(other(published, {'lq': lq, 'gt': sharp, 'after_blur1': blurred[..., :9, :13]}, inputs, args))
    _, plain_gt = second_order.cropped(lq, x, plan, scale, size)
    outputs = {'lq': lq, 'gt': plain_gt, 'gt_usm': plain.usm_sharpened(plain_gt)}
    passes(other(published, outputs, inputs, args))  # Real-ESRGAN's own training keeps the plain gt


@pytest.mark.parametrize(('batch', 'queue'), [(1, 4), (4, 12)])
def test_a_pool_of_another_size(batch, queue):
    rng, pool, out, inputs = np.random.default_rng(0), [], [], {}
    for t in range(9):
        new = list(range(t * batch, (t + 1) * batch))
        if len(pool) < queue:
            pool += new
            out.append(new)
            continue
        inputs[f'perm_{t}'] = rng.permutation(queue)
        pool = [pool[n] for n in inputs[f'perm_{t}']]
        out.append(pool[:batch])
        pool[:batch] = new
    outputs = {'out_lq': np.float32(out), 'out_gt': 1000 + np.float32(out)}
    passes(other('train_pair_pool', outputs, inputs, {'batch': batch, 'queue_size': queue, 'batches': 9}))


def test_kernels_of_bsrgan_with_other_numbers():
    args = {
        'aniso': [{'size': 14, 'theta': 0.1, 'l1': 0.3, 'l2': 2.0}, {'size': 9, 'theta': 2.9, 'l1': 7.0, 'l2': 0.01}],
        'gauss': [{'size': 25, 'sigma': 0.1}],
        'shift': [{'size': 25, 'sigma': 2.2, 'sf': 4}],
    }
    pixels, outputs = photo(4, 1, 22, 31)[0], {}
    for k, drawn in enumerate(args['aniso']):
        outputs[f'aniso_{k}'] = bsrgan.anisotropic_gaussian(**drawn)
        outputs[f'conv_{k}'] = bsrgan.convolved(np.float32(pixels / 255), outputs[f'aniso_{k}'])
    outputs['gauss_0'] = bsrgan.isotropic_gaussian(25, 0.1)
    outputs['shifted_0'] = bsrgan.shifted(bsrgan.isotropic_gaussian(25, 2.2), 4)
    passes(other('bsrgan_kernels', outputs, {'image_u8': pixels}, args))


@pytest.mark.parametrize(
    ('published', 'size', 'scale'),
    [
        ('bsrgan_pipeline_x4', (48, 64), 4),
        ('bsrgan_pipeline_x2', (43, 41), 2),
        ('bsrgan_light_pipeline_x2', (40, 40), 2),
    ],
)
@pytest.mark.parametrize('all_stored', [True, False])
def test_bsrgan_with_other_steps(published, size, scale, all_stored):
    rng, (h, w) = np.random.default_rng(3), size
    pixels = photo(6, 1, h, w)[0]
    lq = np.float32(pixels / 255)[: w - w % scale, : h - h % scale]  # as published
    steps = [
        {'op': 'jpeg', 'quality': 31},
        {'op': 'blur', 'kernel': 'kernel_1'},
        {'op': 'shift_down', 'kernel': 'kernel_2', 'sf': scale},
        {'op': 'noise', 'kind': 'gray', 'draw': 'draw_3'},
        {'op': 'resize', 'size': [12, 17], 'interp': 1},
        {'op': 'blur', 'kernel': 'kernel_5'},
        {'op': 'noise', 'kind': 'covariance', 'draw': 'draw_6'},
        {'op': 'jpeg', 'quality': 95},
    ]
    inputs, outputs = {'image_u8': pixels}, {}
    for k, step in enumerate(steps):
        if step['op'] == 'jpeg':
            lq = bsrgan.jpeg(lq, step['quality'])
        elif step['op'] == 'resize':
            lq = bsrgan.resized(lq, *step['size'], 'linear')
        elif step['op'] == 'noise':
            inputs[step['draw']] = np.float32(rng.normal(0, 0.05, (*lq.shape[:2], 1 if k == 3 else 3)))
            lq = np.clip(lq + inputs[step['draw']], 0, 1)
        else:
            inputs[step['kernel']] = np.float32(bsrgan.anisotropic_gaussian(6 + k, 0.4, 2.0, 0.5))
            lq = bsrgan.convolved(lq, inputs[step['kernel']])
            lq = np.clip(lq[::scale, ::scale], 0, 1) if step['op'] == 'shift_down' else lq
        if all_stored or k % 2:
            outputs[f'after_{k}'] = lq
    passes(other(published, {**outputs, 'lq': lq}, inputs, {'sf': scale, 'steps': steps}))


def test_a_database_listed_in_another_order():
    names, rng = ['sub/b', 'a c', 'a'], np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape) for shape in ((4, 5, 3), (6, 3), (3, 3, 3))]
    lines = [
        f'{name}.png ({",".join(map(str, (*array.shape, 1)[:3]))}) 1\n'
        for name, array in zip(names, arrays, strict=True)
    ]
    case = other(
        'lmdb_layout',
        {f'read_bgr_{k}': np.atleast_3d(a)[..., ::-1].repeat(3 if a.ndim == 2 else 1, 2) for k, a in enumerate(arrays)},
        {f'image_{k}': array for k, array in enumerate(arrays)},
        **{'meta_info.txt': ''.join(lines), 'keys_in_database': sorted(names), 'keys_from_meta_info': names},
    )
    passes(case)
