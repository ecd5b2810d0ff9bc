"""Cases of `data`: the pieces of the second-order degradation (kernels, filters, noise, JPEG)."""

import random
from collections.abc import Iterator

import numpy as np
import torch

from basicsr.data.degradations import kernels
from basicsr.data.degradations.filters import USMSharpener, filter2d, usm_sharp
from basicsr.data.degradations.jpeg import DiffJPEG, quality_factor
from basicsr.data.degradations.noise import add_noise, gaussian_noise, poisson_noise, poisson_rates
from reference.case import Case
from reference.checking import checks, mostly

FLIPPED = 0.001  # share of pixels that may differ where a coefficient was rounded the other way, says the case
NAMES = {'gaussian': 'aniso', 'generalized': 'generalized_aniso', 'plateau': 'plateau_aniso'}


@checks('data', 'bivariate_Gaussian')
def blur_kernels(case: Case) -> Iterator[tuple]:
    for k, asked in enumerate(case.args['kernels']):
        one_width = asked['isotropic']
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
        yield f'sinc_{k}', kernels.padded(kernel, asked['pad_to'] or asked['size'])
    # The case does not say its arguments; they follow from the trace, the determinant and the ratio of its entries.
    x, y = (kernels.quadratic_form(3, 2.0, 0.5, 0.7)[row, column] for row, column in ((1, 2), (2, 1)))
    both = kernels.quadratic_form(3, 2.0, 0.5, 0.7)[2, 2]
    yield 'sigma_matrix', np.linalg.inv([[x, (both - x - y) / 2], [(both - x - y) / 2, y]])


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
        )
        yield f'kernel_{seed}', plan.kernel()


@checks('data', 'filter2D, USMSharp')
def filters(case: Case) -> Iterator[tuple]:
    image, taps, asked = case.inputs['x'], torch.from_numpy(case.inputs['kernels']), case.args
    yield 'filtered', filter2d(image, taps)
    yield 'filtered_shared', filter2d(image, taps[0])
    yield 'usm_tensor', USMSharpener(asked['radius'], asked['weight'], asked['threshold'])(image)
    yield 'usm_array', usm_sharp(image[0].permute(1, 2, 0).numpy(), **asked)


@checks('data', 'generate_gaussian_noise_pt')
def noise(case: Case) -> Iterator[tuple]:
    given = {name: torch.as_tensor(value) for name, value in case.inputs.items()}
    image, gray = given['x'], given['gray']
    added = gaussian_noise(image, given['sigma'], gray, given['gauss_color'], given['gauss_gray'])
    yield 'gauss_noise', added
    yield 'gauss_noise_color', gaussian_noise(image, given['sigma'], torch.zeros(3), given['gauss_color'])
    for clip in (0, 1):
        for rounds in (0, 1):
            yield f'gauss_added_clip{clip}_round{rounds}', add_noise(image, added, bool(clip), bool(rounds))
    rates = poisson_rates(image)
    counts = given['poisson_color'], given['poisson_gray']
    yield 'poisson_noise', poisson_noise(image, rates, given['scale'], gray, *counts)
    yield 'vals', rates.values.flatten()
    yield 'vals_gray', rates.gray_values.flatten()


@checks('data', 'DiffJPEG')
def jpeg(case: Case) -> Iterator[tuple]:
    image = torch.from_numpy(case.inputs['image_u8']).permute(2, 0, 1)[None].float() / 255
    qualities, hard = case.args['qualities'], DiffJPEG(differentiable=False)
    for k, quality in enumerate(qualities):
        yield mostly(case, f'hard_{k}', hard(image, quality), FLIPPED)
    given = torch.tensor(qualities)
    restored = hard(image.expand(len(given), -1, -1, -1), given)
    yield mostly(case, 'batch', restored[..., :24, :24], FLIPPED)  # what the case keeps
    yield 'quality afterwards', given.tolist(), torch.tensor(qualities).tolist()
    yield 'factor', quality_factor(given)
    image.requires_grad_()
    soft = DiffJPEG(differentiable=True)(image, qualities[1])
    (soft * case.inputs['weight']).sum().backward()
    yield 'soft', soft
    yield 'grad', image.grad
