"""Cases of `data` about BSRGAN: kernels, noise, and whole degradations of which every decision is recorded."""

from collections.abc import Iterator
from functools import partial
from itertools import product

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
    image = scaled(case.inputs['image_u8'])
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
    for kind, (noise, add) in product(
        ('color', 'gray'), (('poisson', partial(with_poisson, values=POISSON_VALUES)), ('speckle', with_speckle))
    ):
        if f'{noise}_{kind}_draw' in case.inputs:
            yield f'{noise}_{kind}', add(image, case.inputs[f'{noise}_{kind}_draw'])


@checks('data', 'degradation_bsrgan')
def recorded_steps(case: Case) -> Iterator[tuple]:
    """Each step starts from what the published one before it gave, so that differences of the codec do not add up."""
    image = published_crop(scaled(case.inputs['image_u8']), case.args['sf'])
    for k, step in enumerate(case.args['steps']):
        image = stepped(case, step, image)
        yield mostly(case, f'after_{k}', image, FLIPPED_BY_JPEG) if step['op'] == 'jpeg' else (f'after_{k}', image)
        last, image = image, case.arrays.get(f'after_{k}', image)
    yield mostly(case, 'lq', last, FLIPPED_BY_JPEG)


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


def published_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """To multiples of the scale, but height and width are exchanged; our own pipelines cut properly."""
    height, width = image.shape[:2]
    return image[: width - width % scale, : height - height % scale]


def scaled(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)
