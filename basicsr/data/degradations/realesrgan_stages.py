"""The second-order degradation (Real-ESRGAN, arXiv:2107.10833): a plan applied to a batch, on its device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.data.degradations.filters import filter2d
from basicsr.data.degradations.jpeg import DiffJPEG
from basicsr.data.degradations.noise import PoissonRates, add_noise, gaussian_noise, poisson_noise, poisson_rates
from basicsr.data.degradations.pair_pool import on_device
from basicsr.data.degradations.realesrgan_plan import Decisions, SamplePlan, StageDecisions


class NoiseDraws(Protocol):
    """Where noise comes from: see SeededNoise."""

    def normal(self, image: Tensor, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor | None]: ...

    def counts(self, rates: PoissonRates, stage: int, plans: Sequence[SamplePlan]) -> tuple[Tensor, Tensor]: ...


class SecondOrder(nn.Module):
    """Blur, resize, noise and JPEG, twice: (b, 3, h, w) -> (b, 3, h / scale, w / scale), not clamped at the end.

    Samples of equal decisions are computed together. Nothing waits for the device.

    Args:
        scale: of the network that is trained.
    """

    def __init__(self, scale: int):
        super().__init__()
        self.scale, self.jpeg = scale, DiffJPEG(differentiable=False)

    def forward(
        self, gt: Tensor, kernels: tuple[Tensor, Tensor, Tensor], plan: Sequence[SamplePlan], noise: NoiseDraws
    ) -> Tensor:
        """Apply a plan: the result depends on the arguments and nothing else.

        Args:
            gt: sides are multiples of scale.
            kernels: of the first and the second blur and the sinc filter, each (b, k, k).
        Raises ValueError for images that are too small for the kernels.
        """
        self._check_sizes(gt, kernels, plan)
        image = filter2d(gt, kernels[0])
        groups = grouped(plan)
        if len(groups) == 1:
            return self._group(image, kernels[1:], plan, noise)
        parts = []
        for positions in groups.values():
            rows = on_device(np.array(positions), gt.device)
            blurs = [kernel[rows] for kernel in kernels[1:]]
            parts.append(self._group(image[rows], blurs, [plan[n] for n in positions], noise))
        order = np.argsort(np.concatenate([*groups.values()]))
        return torch.cat(parts)[on_device(order, gt.device)]

    def _group(
        self, image: Tensor, kernels: Sequence[Tensor], plans: Sequence[SamplePlan], noise: NoiseDraws
    ) -> Tensor:
        """What follows the first blur, for samples of equal decisions."""
        decided, (height, width) = plans[0].decisions, (side // self.scale for side in image.shape[-2:])
        own = [[s.noise, s.gray, s.quality] for plan in plans for s in (plan.first, plan.second)]
        own = on_device(np.array(own, np.float32).reshape(len(plans), 2, 3).transpose(1, 2, 0), image.device)
        second, size = decided.second, tuple(int(side * decided.second.scale) for side in (height, width))

        image = resized_by(image, decided.first.scale, decided.first.mode)
        image = noisy(image, decided.first, own[0], plans, 0, noise)
        image = self.jpeg(image, own[0, 2])
        if second.blur:
            image = filter2d(image, kernels[0])
        image = resized_to(image, size, second.mode)
        image = noisy(image, second, own[1], plans, 1, noise)
        if decided.jpeg_first:
            image = self.jpeg(image, own[1, 2])
        image = filter2d(resized_to(image, (height, width), decided.final_mode), kernels[1])
        return image if decided.jpeg_first else self.jpeg(image.clamp(0, 1), own[1, 2])

    def _check_sizes(self, gt: Tensor, kernels: Sequence[Tensor], plan: Sequence[SamplePlan]) -> None:
        """Reflection at the border needs images that are larger than half the kernel."""
        sides = gt.shape[-2:]
        if any(side % self.scale for side in sides):
            raise ValueError(f'gt of {sides[1]}x{sides[0]} does not divide by the scale {self.scale}')
        short, half = min(sides), kernels[0].shape[-1] // 2
        sizes = [(short // self.scale, half)]
        for decided in {sample.decisions: None for sample in plan}:
            sizes.append((int(short * decided.first.scale), half if decided.second.blur else 0))
            sizes.append((int(short // self.scale * decided.second.scale), 0))
        for pixels, above in sizes:
            if pixels <= above:
                raise ValueError(
                    f'gt of {sides[1]}x{sides[0]} is too small: it shrinks to {pixels} pixels on the way, where more '
                    f'than {above} are needed; use larger crops or resize ranges that begin higher'
                )


def grouped(plan: Sequence[SamplePlan]) -> dict[Decisions, list[int]]:
    """The positions of the samples that share their decisions."""
    groups: dict[Decisions, list[int]] = {}
    for position, sample in enumerate(plan):
        groups.setdefault(sample.decisions, []).append(position)
    return groups


def resized_by(image: Tensor, scale: float, mode: str) -> Tensor:
    """Resize by a factor, which bilinear and bicubic use for the coordinates instead of the ratio of the sizes."""
    if scale == 1:
        return image
    return F.interpolate(image, scale_factor=scale, mode=mode)


def resized_to(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize to (height, width), without antialiasing."""
    return image if image.shape[-2:] == size else F.interpolate(image, size=size, mode=mode)


def noisy(
    image: Tensor, decided: StageDecisions, own: Tensor, plans: Sequence[SamplePlan], stage: int, noise: NoiseDraws
) -> Tensor:
    """The image with the noise of a stage, clipped; `own` holds (strength, gray flag, quality), each (b,)."""
    if decided.noise == 'gaussian':
        return add_noise(image, gaussian_noise(image, own[0], own[1], *noise.normal(image, stage, plans)))
    rates = poisson_rates(image)
    return add_noise(image, poisson_noise(image, rates, own[0], own[1], *noise.counts(rates, stage, plans)))


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Matrix products in full float32, whatever training allows: in TF32, JPEG would round other coefficients."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = 'ieee'
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision
