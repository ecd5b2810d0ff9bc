"""Degradations of batches, as Real-ESRGAN (arXiv:2107.10833) and S3Diff (2024) train with them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.data.degradations.filters import USMSharpener
from basicsr.data.degradations.pair_pool import PairPool
from basicsr.data.degradations.realesrgan_plan import PlanSource, SamplePlan, SeededNoise, StageOptions, parameters
from basicsr.data.degradations.realesrgan_stages import NoiseDraws, SecondOrder, exact_arithmetic
from basicsr.data.transforms import mod_crop
from basicsr.utils.image import to_tensor
from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed

KERNELS = ('kernel1', 'kernel2', 'sinc_kernel')
SEEDED_NOISE = SeededNoise()
POOL = 3  # what a seed is for; plans have 1 and 2

Range = tuple[float, float]
Kernels = tuple[Tensor, Tensor, Tensor]


class BatchDegradation(nn.Module):
    """What the degradations of batches have in common; they add `finished` and `forward`.

    Args:
        gt_size: side of the square that is cut out of gt after degrading it.
    """

    def __init__(self, scale: int, gt_size: int, plans: PlanSource):
        super().__init__()
        if gt_size < 1 or gt_size % scale:
            raise OptionError(f'gt_size should be a multiple of the scale {scale}, got {gt_size}', ('gt_size',))
        self.scale, self.gt_size, self.plans, self.second_order = scale, gt_size, plans, SecondOrder(scale)

    def draw(self, numbers: Sequence[int]) -> tuple[SamplePlan, ...]:
        """The plan of each sample, by its number in the run's stream."""
        return self.plans.draw(numbers)

    def parameters(self, plan: SamplePlan) -> dict[str, float | str]:
        """What was decided for one sample, under flat names."""
        return parameters(plan)

    @exact_arithmetic()
    def apply(
        self, gt: Tensor, kernels: Kernels, plan: Sequence[SamplePlan], noise: NoiseDraws = SEEDED_NOISE
    ) -> Tensor:
        """The lq (b, 3, h / scale, w / scale) of gt (b, 3, h, w), a function of the arguments.

        Args:
            gt: in [0, 1], sharpened where that is part of the degradation; the scale divides its sides.
            kernels: of the first blur, the second blur and the sinc filter, (b, k, k) each.
            noise: where the noise comes from, by default the plan's seeds.
        Raises ValueError for images that are too small.
        """
        return self.finished(self.second_order(gt, kernels, plan, noise))

    @torch.no_grad()
    @exact_arithmetic()
    def degrade_image(
        self, gt: np.ndarray, kernels: Sequence[np.ndarray], number: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float | str]]:
        """(gt, lq, parameters) of one whole image: float32 RGB (h, w, 3) in [0, 1], no crop and no pool.

        gt is cut to multiples of the scale. Images of equal (seed, number) get equal decisions, and so do those of
        one step: give `groups: 0` for images that have nothing to do with one another.
        """
        device = next(self.buffers()).device
        image = to_tensor(np.ascontiguousarray(mod_crop(gt, self.scale)))[None].to(device)
        filters = tuple(torch.as_tensor(kernel, dtype=torch.float32, device=device)[None] for kernel in kernels)
        degraded, target = self.sources(image)
        plan = self.draw([number])
        lq = self.apply(degraded, filters, plan)
        gt, lq = (t[0].permute(1, 2, 0).contiguous().cpu().numpy() for t in (target, lq))
        return gt, lq, self.parameters(plan[0])

    def sources(self, gt: Tensor) -> tuple[Tensor, Tensor]:
        """(what is degraded, what the network should restore)."""
        return gt, gt

    def degraded_crops(self, batch: dict) -> tuple[dict, Tensor, Tensor, tuple[SamplePlan, ...]]:
        """The rest of a batch, its lq and gt cut to `gt_size`, and the plan."""
        numbers, gt = [int(number) for number in batch['number']], batch['gt']
        height, width = (side - side % self.scale for side in gt.shape[-2:])
        if min(height, width) < self.gt_size:
            raise ValueError(f'gt of {gt.shape[-1]}x{gt.shape[-2]} is smaller than the crop of gt_size {self.gt_size}')
        left, side = self.plans.smallest(min(height, width)), batch['kernel2'].shape[-1]
        if left <= side // 2:  # said of the first batch, not of the one that happens to shrink so far
            raise ValueError(
                f'gt of {gt.shape[-1]}x{gt.shape[-2]} is too small: resize_range may leave {left} pixels of it, and '
                f'kernels of {side}x{side} need {side // 2 + 1}; use a larger crop_size or a range that begins higher'
            )
        degraded, target = self.sources(gt[..., :height, :width])
        plan = self.draw(numbers)
        lq = self.apply(degraded, tuple(batch[name] for name in KERNELS), plan)
        lq, gt = self._cropped(lq, target, plan)
        return {k: v for k, v in batch.items() if k not in (*KERNELS, 'number')}, lq, gt, plan

    def _cropped(self, lq: Tensor, gt: Tensor, plan: Sequence[SamplePlan]) -> tuple[Tensor, Tensor]:
        """The same square of lq and gt, for each sample its own."""
        scale, size = self.scale, self.gt_size // self.scale
        offsets = [p.offset(lq.shape[-2] - size, lq.shape[-1] - size) for p in plan]
        small = [image[:, y : y + size, x : x + size] for image, (y, x) in zip(lq, offsets)]
        large = [
            image[:, y * scale : (y + size) * scale, x * scale : (x + size) * scale]
            for image, (y, x) in zip(gt, offsets)
        ]
        return torch.stack(small), torch.stack(large)

    def training_state(self) -> dict:
        """What the next batches depend on besides themselves."""
        return {}

    def load_training_state(self, state: dict) -> None:
        """Go on as the degradation that gave `state`."""


@DEGRADATION_REGISTRY.register()
class RealESRGANDegradation(BatchDegradation):
    """Real-ESRGAN's degradation, rounded to 8 bits, with its pair pool; defaults are the published Real-ESRNet's.

    forward: a batch with gt (b, 3, h, w) in [0, 1], kernel1, kernel2, sinc_kernel (b, 21, 21) and number (b,), on the
    CPU -> the batch without kernels and number, but with lq (b, 3, gt_size / scale, ..) and the gt of that size.
    With a pool, other keys such as gt_path go on to name what was read, not what the pool gave for it.

    Args:
        scale, seed, global_batch: of the run; global_batch counts the samples of all processes in a step.
        gt_usm: what unsharp masking is for. true: the sharpened gt is degraded, and is the target (Real-ESRNet).
            'both': the sharpened gt is degraded, `gt` stays plain and `gt_usm` joins the batch (Real-ESRGAN, whose
            losses choose). false: nothing is sharpened.
        resize_prob, resize_prob2: of enlarging, shrinking and keeping the size.
        resize_range, resize_range2: smallest and largest factor.
        gaussian_noise_prob, gaussian_noise_prob2: of Gaussian instead of Poisson noise.
        noise_range, noise_range2: sigma of Gaussian noise, on the scale 0..255.
        poisson_scale_range, poisson_scale_range2: factor of Poisson noise.
        gray_noise_prob, gray_noise_prob2: of noise that is the same in all channels.
        jpeg_range, jpeg_range2: qualities.
        second_blur_prob: of the second blur.
        gt_size: side of the square that is cut out of the degraded pair, in gt pixels.
        queue_size: pairs in the pool of each process, at least a batch; 0 for no pool.
        groups: 1: the samples of a step share resizes, kinds of noise, order and the map of gray Gaussian noise, as
            published. N: a step is dealt into N groups with decisions of their own, by number % N. 0: each sample
            decides for itself, and its lq depends on (seed, number) alone.
    """

    def __init__(
        self,
        scale: int,
        seed: int,
        global_batch: int,
        gt_usm: bool | Literal['both'] = True,
        resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1),
        resize_range: Range = (0.15, 1.5),
        gaussian_noise_prob: float = 0.5,
        noise_range: Range = (1, 30),
        poisson_scale_range: Range = (0.05, 3),
        gray_noise_prob: float = 0.4,
        jpeg_range: Range = (30, 95),
        second_blur_prob: float = 0.8,
        resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3),
        resize_range2: Range = (0.3, 1.2),
        gaussian_noise_prob2: float = 0.5,
        noise_range2: Range = (1, 25),
        poisson_scale_range2: Range = (0.05, 2.5),
        gray_noise_prob2: float = 0.4,
        jpeg_range2: Range = (30, 95),
        gt_size: int = 256,
        queue_size: int = 180,
        groups: int = 1,
    ):
        first = StageOptions(
            '', 1, resize_prob, resize_range, gaussian_noise_prob, noise_range, poisson_scale_range, gray_noise_prob,
            jpeg_range,
        )  # fmt: skip
        second = StageOptions(
            '2', second_blur_prob, resize_prob2, resize_range2, gaussian_noise_prob2, noise_range2,
            poisson_scale_range2, gray_noise_prob2, jpeg_range2,
        )  # fmt: skip
        super().__init__(scale, gt_size, PlanSource(first, second, seed, global_batch, groups))
        if queue_size < 0:
            raise OptionError(f'queue_size is a number of pairs, 0 for no pool, got {queue_size}', ('queue_size',))
        self.gt_usm, self.usm = gt_usm, USMSharpener() if gt_usm else None
        self.pool = PairPool(queue_size) if queue_size else None

    @torch.no_grad()
    @exact_arithmetic()
    def forward(self, batch: dict) -> dict:
        rest, lq, gt, _ = self.degraded_crops(batch)
        if self.pool is not None:
            lq, gt = self.pool.exchange(lq, gt, derived_seed(self.plans.seed, int(batch['number'][0]), POOL, 0))
        result = {**rest, 'lq': lq, 'gt': gt}
        return {**result, 'gt_usm': self.usm(gt)} if self.gt_usm == 'both' else result

    def sources(self, gt: Tensor) -> tuple[Tensor, Tensor]:
        sharp = self.usm(gt) if self.gt_usm else gt
        return sharp, gt if self.gt_usm == 'both' else sharp

    def finished(self, lq: Tensor) -> Tensor:
        return (lq * 255).round().clamp(0, 255) / 255

    def training_state(self) -> dict:
        return {} if self.pool is None else {'pool': self.pool.state_dict()}

    def load_training_state(self, state: dict) -> None:
        if self.pool is not None and 'pool' in state:
            self.pool.load_state_dict(state['pool'])


@DEGRADATION_REGISTRY.register()
class S3DiffDegradation(BatchDegradation):
    """S3Diff's milder form, without sharpening, rounding and pool; defaults are the published ones.

    forward: a batch as RealESRGANDegradation takes it -> the same without kernels and number, but with lq
    (b, 3, gt_size / scale, ..), lq_up (b, 3, gt_size, gt_size), its bicubic enlargement, and gt, all in [0, 1].
    A sample whose lq is not finite becomes its gt, shrunk for lq.

    Args: as of RealESRGANDegradation, and
        no_degradation_prob: of a group whose lq_up is gt itself; its lq stays degraded, as published.
    """

    def __init__(
        self,
        scale: int,
        seed: int,
        global_batch: int,
        resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1),
        resize_range: Range = (0.3, 1.5),
        gaussian_noise_prob: float = 0.5,
        noise_range: Range = (1, 15),
        poisson_scale_range: Range = (0.05, 2),
        gray_noise_prob: float = 0.4,
        jpeg_range: Range = (60, 95),
        second_blur_prob: float = 0.5,
        resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3),
        resize_range2: Range = (0.6, 1.2),
        gaussian_noise_prob2: float = 0.5,
        noise_range2: Range = (1, 12),
        poisson_scale_range2: Range = (0.05, 1),
        gray_noise_prob2: float = 0.4,
        jpeg_range2: Range = (60, 100),
        gt_size: int = 512,
        no_degradation_prob: float = 0.01,
        groups: int = 1,
    ):
        first = StageOptions(
            '', 1, resize_prob, resize_range, gaussian_noise_prob, noise_range, poisson_scale_range, gray_noise_prob,
            jpeg_range,
        )  # fmt: skip
        second = StageOptions(
            '2', second_blur_prob, resize_prob2, resize_range2, gaussian_noise_prob2, noise_range2,
            poisson_scale_range2, gray_noise_prob2, jpeg_range2,
        )  # fmt: skip
        super().__init__(scale, gt_size, PlanSource(first, second, seed, global_batch, groups, no_degradation_prob))

    @torch.no_grad()
    @exact_arithmetic()
    def forward(self, batch: dict) -> dict:
        rest, lq, gt, plan = self.degraded_crops(batch)
        broken = ~lq.isfinite().flatten(1).all(1)[:, None, None, None]
        lq = torch.where(broken, F.interpolate(gt, size=lq.shape[-2:], mode='area'), lq)
        up = torch.where(broken, gt, enlarged(lq, gt.shape[-2:]))
        if any(p.decisions.untouched for p in plan):
            up = torch.stack([g if p.decisions.untouched else u for p, u, g in zip(plan, up, gt)])
        return {**rest, 'lq': lq, 'lq_up': up, 'gt': gt}

    def finished(self, lq: Tensor) -> Tensor:
        return lq.clamp(0, 1)


def enlarged(lq: Tensor, size: Sequence[int]) -> Tensor:
    """lq at the size (height, width) of gt: bicubic (a = -0.75, torch's), clamped to [0, 1]."""
    return F.interpolate(lq, size=tuple(size), mode='bicubic').clamp(0, 1)
