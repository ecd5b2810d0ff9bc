"""Degradations of single images, in the worker: BSRGAN (Zhang et al., ICCV 2021, arXiv:2103.14006) and bicubic.

Each draws a plan first, pure data from one generator, and then applies it, which is deterministic.
"""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from basicsr.data.degradations.bsrgan_steps import (
    AnisotropicBlur,
    Cut,
    FinalJpeg,
    Halve,
    Interpolation,
    IsotropicBlur,
    Jpeg,
    Noise,
    Patch,
    Poisson,
    Resize,
    ResizeToLq,
    Sharpen,
    ShiftDown,
    Speckle,
    Step,
    eight_bits,
)
from basicsr.data.degradations.resize import imresize
from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError

Plan = tuple[Step, ...]
Probability = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0)]  # of noise: a standard deviation on the scale 0..255
Quality = Annotated[int, Field(ge=1, le=100)]  # of JPEG
NAMES = {  # of steps in a description, where it is not the class's
    IsotropicBlur: 'blur',
    AnisotropicBlur: 'blur',
    ShiftDown: 'shift_down',
    ResizeToLq: 'resize_to_lq',
    FinalJpeg: 'final_jpeg',
}


@DEGRADATION_REGISTRY.register()
class BSRGANDegradation:
    """BSRGAN's shuffled chain: two blurs, two resizes, noise and JPEG in random order, and a JPEG at the end.

    Args:
        noise_range, jpeg_range: the levels (0..255) and the qualities that are drawn, both ends included.
        lq_patchsize: cut a random square of that many lq pixels out of the result, and its place out of gt.
    """

    divisor = 1  # of the blurs' widths
    noise_range, jpeg_range = (2, 25), (30, 95)

    def __init__(
        self,
        scale: int,
        noise_range: tuple[Level, Level] = noise_range,
        jpeg_range: tuple[Quality, Quality] = jpeg_range,
        lq_patchsize: PositiveInt | None = None,
    ):
        self.scale, self.lq_patchsize = scale, lq_patchsize
        self.noise_range, self.jpeg_range = ordered('noise_range', noise_range), ordered('jpeg_range', jpeg_range)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        """All decisions for an image of that size. Raises ValueError if it is too small."""
        cut, scale = cut_to_multiples(height, width, self.scale, self.lq_patchsize), self.scale
        lq_height, lq_width = cut.height // scale, cut.width // scale
        steps: list[Step] = [cut]
        if scale == 4 and rng.random() < 0.25:
            steps.append(Halve(any_interpolation(rng) if rng.random() < 0.5 else 'matlab'))
            scale = 2
        order = rng.permutation(6).tolist()  # the published seventh operation needs a camera model that nobody ships
        down, last = order.index(2), order.index(3)
        if down > last:  # to the size of lq comes after the resize by a factor
            order[down], order[last] = order[last], order[down]
        for operation in order:
            if operation in (0, 1):
                steps.append(self._blur(scale, rng))
            elif operation == 2:
                steps.append(self._down(lq_height, lq_width, scale, rng))
            elif operation == 3:
                steps.append(ResizeToLq(lq_width, lq_height, any_interpolation(rng)))
            elif operation == 4:
                steps.append(draw_noise(Noise, self.noise_range, rng))
            elif rng.random() < 0.9:
                steps.append(Jpeg(drawn_integer(self.jpeg_range, rng)))
        steps.append(FinalJpeg(drawn_integer(self.jpeg_range, rng)))
        return (*steps, *draw_patch(lq_height, lq_width, self.lq_patchsize, self.scale, rng))

    def apply(self, gt: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) float32 in [0, 1] -> gt, cut to multiples of the scale, and its lq; gt's memory is not written."""
        return applied(gt, plan)

    def parameters(self, plan: Plan) -> dict[str, float | str]:
        """What was drawn, flat: `blur_sigma`, of a second blur `blur2_sigma`; resizes as factors."""
        return described(plan)

    def _down(self, lq_height: int, lq_width: int, scale: int, rng: np.random.Generator) -> Step:
        if rng.random() >= 0.75:
            return ShiftDown(scale, float(rng.uniform(0.1, 0.6 * scale)))
        factor = rng.uniform(1, 2 * scale)
        return Resize(*(max(1, int(side * scale / factor)) for side in (lq_width, lq_height)), any_interpolation(rng))

    def _blur(self, scale: int, rng: np.random.Generator) -> Step:
        return draw_blur(scale, self.divisor, *self._blur_sizes(rng), rng)

    def _blur_sizes(self, rng: np.random.Generator) -> tuple[int, int]:
        """Of an anisotropic and of an isotropic kernel."""
        size = 2 * drawn_integer((2, 11), rng) + 3
        return size, size


@DEGRADATION_REGISTRY.register()
class BSRGANLightDegradation(BSRGANDegradation):
    """ITER's milder form: narrower blurs, less noise, better JPEG. Kernels of even size move the image by half a pixel.

    Args: as of BSRGANDegradation.
    """

    divisor = 4
    noise_range, jpeg_range = (2, 8), (80, 95)

    def __init__(
        self,
        scale: int,
        noise_range: tuple[Level, Level] = noise_range,
        jpeg_range: tuple[Quality, Quality] = jpeg_range,
        lq_patchsize: PositiveInt | None = None,
    ):
        super().__init__(scale, noise_range, jpeg_range, lq_patchsize)

    def _blur_sizes(self, rng: np.random.Generator) -> tuple[int, int]:
        return drawn_integer((2, 11), rng) + 3, drawn_integer((2, 4), rng) + 3


@DEGRADATION_REGISTRY.register()
class BSRGANPlusDegradation:
    """BSRGAN's wider form, which test sets were made by: every operation twice, two more kinds of noise, gt sharpened.

    Args:
        shuffle_prob: of a wholly random order; otherwise only each group of noises is shuffled.
        use_sharp: sharpen gt first, by unsharp masking.
        poisson_prob, speckle_prob: of each of their two occurrences.
        noise_range, jpeg_range, lq_patchsize: as of BSRGANDegradation.
    """

    def __init__(
        self,
        scale: int,
        shuffle_prob: Probability = 0.5,
        use_sharp: bool = True,
        poisson_prob: Probability = 0.1,
        speckle_prob: Probability = 0.1,
        noise_range: tuple[Level, Level] = (2, 25),
        jpeg_range: tuple[Quality, Quality] = (30, 95),
        lq_patchsize: PositiveInt | None = None,
    ):
        self.scale, self.shuffle_prob, self.use_sharp, self.lq_patchsize = scale, shuffle_prob, use_sharp, lq_patchsize
        self.poisson_prob, self.speckle_prob = poisson_prob, speckle_prob
        self.noise_range, self.jpeg_range = ordered('noise_range', noise_range), ordered('jpeg_range', jpeg_range)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        """All decisions for an image of that size. Raises ValueError if it is too small."""
        cut = cut_to_multiples(height, width, self.scale, self.lq_patchsize)
        lq_height, lq_width = cut.height // self.scale, cut.width // self.scale
        steps: list[Step] = [cut, *([Sharpen()] if self.use_sharp else [])]
        size = cut.height, cut.width
        for operation in self._order(rng):
            if operation == 'resize':
                size = self._resized(size, rng)
                steps.append(Resize(size[1], size[0], any_interpolation(rng)))
            elif operation == 'blur':
                kernel_size = 2 * drawn_integer((2, 11), rng) + 3
                steps.append(draw_blur(self.scale, 1, kernel_size, kernel_size, rng))
            elif operation == 'noise':
                steps.append(draw_noise(Noise, self.noise_range, rng))
            elif operation == 'speckle' and rng.random() < self.speckle_prob:
                steps.append(draw_noise(Speckle, self.noise_range, rng))
            elif operation == 'poisson' and rng.random() < self.poisson_prob:
                kind = 'color' if rng.random() < 0.5 else 'gray'
                steps.append(Poisson(float(10 ** (2 * rng.random() + 2)), kind, drawn_seed(rng)))
            elif operation == 'jpeg':
                steps.append(Jpeg(drawn_integer(self.jpeg_range, rng)))
        steps.append(ResizeToLq(lq_width, lq_height, any_interpolation(rng)))
        steps.append(FinalJpeg(drawn_integer(self.jpeg_range, rng)))
        return (*steps, *draw_patch(lq_height, lq_width, self.lq_patchsize, self.scale, rng))

    def apply(self, gt: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) float32 in [0, 1] -> gt, cut and sharpened, and its lq; the given memory is not written."""
        return applied(gt, plan)

    def parameters(self, plan: Plan) -> dict[str, float | str]:
        """As of BSRGANDegradation."""
        return described(plan)

    def _order(self, rng: np.random.Generator) -> list[str]:
        noises = ['noise', 'poisson', 'speckle']
        if rng.random() >= self.shuffle_prob:
            first, second = rng.permutation(noises).tolist(), rng.permutation(noises).tolist()
            return ['blur', 'resize', *first, 'jpeg', 'blur', 'resize', *second]
        return rng.permutation(['jpeg', *2 * ['blur', 'resize', *noises]]).tolist()

    def _resized(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        choice = rng.random()
        if choice > 0.8:
            factor = rng.uniform(1, 2)
        else:
            factor = rng.uniform(0.5 / self.scale, 1) if choice < 0.7 else 1.0
        return tuple(max(1, int(side * factor)) for side in size)


@DEGRADATION_REGISTRY.register()
class BicubicDegradation:
    """MATLAB's bicubic `imresize` of gt cut to multiples of the scale: the lq of classical super-resolution.

    Args:
        round_to_8_bit: lq as its image file would hold it, which is what is trained on elsewhere; else exact, clipped.
    """

    def __init__(self, scale: int, round_to_8_bit: bool = True):
        self.scale, self.round_to_8_bit = scale, round_to_8_bit

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Plan:
        """Where to cut; nothing is random. Raises ValueError if the image is too small."""
        return (cut_to_multiples(height, width, self.scale),)

    def apply(self, gt: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) float32 in [0, 1] -> gt, cut to multiples of the scale, and its lq."""
        gt = plan[0].applied_to(gt)
        lq = imresize(gt, 1 / self.scale)
        return gt, eight_bits(lq) if self.round_to_8_bit else np.clip(lq, 0, 1)

    def parameters(self, plan: Plan) -> dict[str, float | str]:
        """Empty: nothing is drawn."""
        return {}


def ordered(key: str, limits: tuple[int, int]) -> tuple[int, int]:
    """The limits as they are. Raises OptionError unless the lower one comes first."""
    if limits[0] > limits[1]:
        raise OptionError(f'{key} goes from low to high, got {list(limits)}', (key,))
    return tuple(limits)


def cut_to_multiples(height: int, width: int, scale: int, patch: int | None = None) -> Cut:
    """The largest size that the scale divides. Raises ValueError if a patch of lq, one pixel at least, does not fit."""
    least = (patch or 1) * scale
    if min(height, width) < least:
        raise ValueError(f'{width}x{height} is smaller than {least}x{least}, which {patch or 1} lq pixels a side need')
    return Cut(height - height % scale, width - width % scale)


def applied(gt: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """gt and lq after all steps; those that change gt too come first or last."""
    lq = gt
    for step in plan:
        if isinstance(step, Patch):
            gt, lq = step.applied_to_gt(gt), step.applied_to(lq)
        elif isinstance(step, Cut | Sharpen):
            gt = lq = step.applied_to(gt)
        else:
            lq = step.applied_to(lq)
    return gt, lq


def described(plan: Plan) -> dict[str, float | str]:
    """The parameters of all steps as 'blur_sigma', and as 'blur2_sigma' where it is the second blur; their order."""
    found, seen, names = {}, Counter(), []
    height = width = None
    for step in plan:
        values = asdict(step)
        if isinstance(step, Cut):
            height, width = step.height, step.width
            continue
        name = NAMES.get(type(step), type(step).__name__.lower())
        names.append(name)
        seen[name] += 1
        label = name if seen[name] == 1 else f'{name}{seen[name]}'
        if isinstance(step, Resize):
            values = {'factor': (step.width * step.height / (width * height)) ** 0.5, **values}
            height, width = values.pop('height'), values.pop('width')
        elif isinstance(step, Halve):
            height, width = height // 2, width // 2
        elif isinstance(step, ShiftDown):
            height, width = -(-height // step.factor), -(-width // step.factor)
        elif name == 'blur':
            values = {'kind': 'isotropic' if isinstance(step, IsotropicBlur) else 'anisotropic', **values}
        found |= {f'{label}_{key}': value for key, value in values.items() if key not in ('seed', 'covariance')}
    return {'order': ' '.join(names), **found}


def draw_blur(
    scale: int, divisor: int, anisotropic_size: int, isotropic_size: int, rng: np.random.Generator
) -> IsotropicBlur | AnisotropicBlur:
    """Each of the two kinds with probability 1/2; `divisor` narrows both."""
    if rng.random() < 0.5:
        variances = (rng.random(2) * (4 + scale) / divisor).tolist()
        return AnisotropicBlur(anisotropic_size, float(np.pi * rng.random()), *variances)
    return IsotropicBlur(isotropic_size, float((2 + 0.2 * scale) / divisor * rng.random()))


def draw_noise(kind: type[Noise], levels: tuple[int, int], rng: np.random.Generator) -> Noise:
    """Colour noise with probability 0.4, gray with 0.4, correlated between the channels with 0.2.

    The correlated noise has the strength of the highest level whatever was drawn, as published.
    """
    level, choice, seed = drawn_integer(levels, rng), rng.random(), drawn_seed(rng)
    if choice > 0.6:
        return kind('color', level, seed)
    if choice < 0.4:
        return kind('gray', level, seed)
    spread, axes = np.diag(rng.random(3)), np.linalg.svd(rng.random((3, 3)))[0]
    covariance = np.abs((levels[1] / 255) ** 2 * axes.T @ spread @ axes)
    return kind('correlated', levels[1], seed, tuple(map(tuple, covariance.tolist())))


def draw_patch(
    lq_height: int, lq_width: int, size: int | None, scale: int, rng: np.random.Generator
) -> tuple[Patch, ...]:
    """The patch to cut out at the end, if one is."""
    if size is None:
        return ()
    top, left = drawn_integer((0, lq_height - size), rng), drawn_integer((0, lq_width - size), rng)
    return (Patch(top, left, size, scale),)


def any_interpolation(rng: np.random.Generator) -> Interpolation:
    return ('linear', 'cubic', 'area')[rng.integers(3)]


def drawn_integer(limits: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(*limits, endpoint=True))


def drawn_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
