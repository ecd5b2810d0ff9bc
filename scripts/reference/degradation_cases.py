"""Cases of `data`: the pieces of the second-order degradation (kernels, filters, noise, JPEG)."""

import random
from collections.abc import Iterator
from itertools import product

import numpy as np
import torch

from basicsr.data.degradations import kernels
from basicsr.data.degradations.filters import USMSharpener, filter2d, usm_sharp
from basicsr.data.degradations.jpeg import DiffJPEG, quality_factor
from basicsr.data.degradations.noise import add_noise, gaussian_noise, poisson_noise, poisson_rates
from reference.case import Case
from reference.checking import checks, mostly, tensors

FLIPPED = 0.001  # share of pixels that may differ where a coefficient was rounded the other way, says the case
NAMES = {'gaussian': 'aniso', 'generalized': 'generalized_aniso', 'plateau': 'plateau_aniso'}


@checks('data', 'bivariate_Gaussian')
def blur_kernels(case: Case) -> Iterator[tuple]:
    for k, asked in enumerate(case.args['kernels']):
        one_width = asked.get('isotropic', False)
        plan = kernels.KernelPlan(
            NAMES[asked['kind']],
            asked['size'],
            sigma_x=asked['sig_x'],
            sigma_y=None if one_width else asked['sig_y'],
            theta=None if one_width else asked['theta'],
            beta=asked.get('beta'),
        )
        yield f'k_{k}', plan.kernel()
    for k, asked in enumerate(case.args['sinc']):
        kernel = kernels.sinc_kernel(asked['size'], asked['cutoff'])
        yield f'sinc_{k}', kernels.padded(kernel, asked.get('pad_to') or asked['size'])
    if 'sigma_matrix' in case.arrays:
        yield 'sigma_matrix', covariance(*widths_and_angle(case.arrays['sigma_matrix']))


def covariance(sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """The matrix Sigma whose inverse the quadratic form of kernels is made of."""
    form = kernels.quadratic_form(3, sigma_x, sigma_y, theta)
    x, y, both = form[1, 2], form[2, 1], form[2, 2]
    return np.linalg.inv([[x, (both - x - y) / 2], [(both - x - y) / 2, y]])


def widths_and_angle(matrix: np.ndarray) -> tuple[float, float, float]:
    """The arguments that give a covariance, which the case does not say: its axes' lengths and direction."""
    (narrow, wide), axes = np.linalg.eigh(matrix.astype(np.float64))
    return float(wide**0.5), float(narrow**0.5), float(np.arctan2(axes[1, 1], axes[0, 1]))


@checks('data', 'random_mixed_kernels')
def drawn_kernels(case: Case) -> Iterator[tuple]:
    asked = case.args
    for seed in asked['seeds']:
        plan = kernels.draw_mixed_kernel(
            asked['kernel_list'],
            asked['kernel_prob'],
            asked['kernel_size'],
            asked['sigma_x_range'],
            asked['betag_range'],
            asked['betap_range'],
            random.Random(seed),
            np.random.RandomState(seed),
            asked.get('sigma_y_range'),
            asked.get('rotation_range', (-np.pi, np.pi)),
        )
        yield f'kernel_{seed}', plan.kernel()


@checks('data', 'filter2D, USMSharp')
def filters(case: Case) -> Iterator[tuple]:
    (image, taps), asked = tensors(case, 'x', 'kernels'), case.args
    yield 'filtered', filter2d(image, taps)
    yield 'filtered_shared', filter2d(image, taps[0])
    mask = {name: asked[name] for name in ('radius', 'weight', 'threshold') if name in asked}
    yield 'usm_tensor', USMSharpener(**mask)(image)
    yield 'usm_array', usm_sharp(image[0].permute(1, 2, 0).numpy(), **mask)


@checks('data', 'generate_gaussian_noise_pt')
def noise(case: Case) -> Iterator[tuple]:
    """Of the two kinds, those whose draws are stored; without gray draws no sample is gray."""
    given = {name: torch.as_tensor(value) for name, value in case.inputs.items()}
    image = given['x']
    gray = given.get('gray', torch.zeros(len(image)))
    if 'gauss_color' in given:
        sigma, color = given['sigma'], given['gauss_color']
        added = gaussian_noise(image, sigma, gray, color, given.get('gauss_gray'))
        yield 'gauss_noise', added
        yield 'gauss_noise_color', gaussian_noise(image, sigma, 0 * gray, color)
        yield from _added('gauss', image, added)
    if 'poisson_color' in given:
        rates = poisson_rates(image)
        counts = given['poisson_color'], given.get('poisson_gray', rates.gray)
        added = poisson_noise(image, rates, given['scale'], gray, *counts)
        yield 'poisson_noise', added
        yield from _added('poisson', image, added)
        yield 'vals', rates.values.flatten()
        yield 'vals_gray', rates.gray_values.flatten()


def _added(kind: str, image: torch.Tensor, draws: torch.Tensor) -> Iterator[tuple]:
    for clip, rounds in product((0, 1), repeat=2):
        yield f'{kind}_added_clip{clip}_round{rounds}', add_noise(image, draws, bool(clip), bool(rounds))


@checks('data', 'DiffJPEG')
def jpeg(case: Case) -> Iterator[tuple]:
    image = torch.from_numpy(case.inputs['image_u8']).permute(2, 0, 1)[None].float() / 255
    qualities, hard = case.args['qualities'], DiffJPEG(differentiable=False)
    for k, quality in enumerate(qualities):
        yield mostly(case, f'hard_{k}', hard(image, quality), FLIPPED)
    given = torch.tensor(qualities, dtype=torch.float32)
    before = given.clone()
    if 'batch' in case.arrays:
        height, width = case.arrays['batch'].shape[-2:]  # of the top-left part that the case keeps
        restored = hard(image.expand(len(given), -1, -1, -1), given)
        yield mostly(case, 'batch', restored[..., :height, :width], FLIPPED)
        yield 'quality afterwards', given, before
    yield 'factor', quality_factor(given)
    if 'soft' in case.arrays:
        image.requires_grad_()
        soft = DiffJPEG(differentiable=True)(image, qualities[min(1, len(qualities) - 1)])
        yield 'soft', soft
        if 'weight' in case.inputs:
            (soft * torch.as_tensor(case.inputs['weight'])).sum().backward()
            yield 'grad', image.grad
