"""Cases of `data` about BSRGAN: kernels, noise, and whole degradations of which every decision is recorded."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from basicsr.data.degradations.bsrgan_kernels import anisotropic_gaussian, convolve, gaussian_taps, shifted_taps
from basicsr.data.degradations.bsrgan_steps import (
    Halve,
    Jpeg,
    Resize,
    with_noise,
    with_poisson,
    with_speckle,
)
from basicsr.data.degradations.resize import imresize
from reference.case import Case
from reference.checking import checks, mostly

POISSON_VALUES = 10 ** (2 * 0.25 + 2)  # as the JSON's notes say
INTERPOLATIONS = {1: 'linear', 2: 'cubic', 3: 'area'}
FLIPPED_BY_JPEG = 0.01  # share of pixels that another build of the codec may decode otherwise


@checks('data', 'anisotropic_Gaussian')
def kernels_and_noise(case: Case) -> Iterator[tuple]:
    image = _image(case)
    for k, drawn in enumerate(case.args['aniso']):
        kernel = anisotropic_gaussian(drawn['size'], drawn['theta'], drawn['l1'], drawn['l2'])
        yield f'aniso_{k}', kernel
        yield f'conv_{k}', convolve(image, kernel)
    for k, drawn in enumerate(case.args['gauss']):
        taps = gaussian_taps(**drawn)
        yield f'gauss_{k}', np.outer(taps, taps)
    for k, drawn in enumerate(case.args['shift']):
        taps = shifted_taps(gaussian_taps(drawn['size'], drawn['sigma']), drawn['sf'])
        yield f'shifted_{k}', np.outer(taps, taps)
    yield 'imresize_half', imresize(image, 0.5)
    for kind in ('color', 'gray'):
        yield f'poisson_{kind}', with_poisson(image, case.inputs[f'poisson_{kind}_draw'], POISSON_VALUES)
        yield f'speckle_{kind}', with_speckle(image, case.inputs[f'speckle_{kind}_draw'])


@checks('data', 'degradation_bsrgan')
def recorded_steps(case: Case) -> Iterator[tuple]:
    """Each step starts from what the published one before it gave, so that differences of the codec do not add up."""
    steps = case.args['steps']
    before = [_image(case), *(case.arrays[f'after_{k}'] for k in range(len(steps)))]
    for k, (step, (image, _)) in enumerate(zip(steps, pairwise(before), strict=True)):
        ours = stepped(case, step, image)
        yield mostly(case, f'after_{k}', ours, FLIPPED_BY_JPEG) if step['op'] == 'jpeg' else (f'after_{k}', ours)
    yield mostly(case, 'lq', ours, FLIPPED_BY_JPEG)


def stepped(case: Case, step: dict, image: np.ndarray) -> np.ndarray:
    """The image after one recorded step."""
    if step['op'] == 'imresize':
        return Halve('matlab').applied_to(image)
    if step['op'] == 'resize':
        return Resize(*step['size'], INTERPOLATIONS[step['interp']]).applied_to(image)
    if step['op'] == 'jpeg':
        return Jpeg(step['quality']).applied_to(image)
    if step['op'] == 'noise':
        return with_noise(image, case.inputs[step['draw']])
    blurred = convolve(image, case.inputs[step['kernel']])
    return blurred[:: step['sf'], :: step['sf']].clip(0, 1) if step['op'] == 'shift_down' else blurred


def _image(case: Case) -> np.ndarray:
    return case.inputs['image_u8'].astype(np.float32) / np.float32(255)
