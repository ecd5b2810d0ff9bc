"""Ground truth on disk; lq is made of each image by the worker that reads it."""

from collections.abc import Callable

import numpy as np
from pydantic import PositiveInt
from torch import nn
from torch.utils.data import Dataset

from basicsr.data.gt_images import GtImages
from basicsr.data.gt_transforms import GtCrop
from basicsr.data.storage import DISK, IoBackend
from basicsr.data.transforms import augment, draw_flips
from basicsr.utils.image import scaled_to_float, to_tensor
from basicsr.utils.nested_options import ComponentOf, nested
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed, sample_generator


def of_batches(entry: Callable) -> str:
    """Why a degradation cannot be that of a data set; '' for one of single images."""
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        return (
            f'{entry.__name__} degrades whole batches on the device: it belongs in the section `degradation:` beside '
            '`datasets:`, with a data set that gives gt only'
        )
    return ''


checked_degradation = ComponentOf(DEGRADATION_REGISTRY, ('scale',), of_batches)
Degradation = nested(checked_degradation)
LIGHT_BSRGAN = {'type': 'BSRGANLightDegradation'}


@DATASET_REGISTRY.register()
class DegradedImageDataset(Dataset):
    """gt images and the lq that a degradation makes of them, one by one.

    In the phase `train` a random square of gt is degraded; otherwise the whole image, cut to multiples of the scale,
    always in the same way. Item: lq (3, h, w), gt (3, h * scale, w * scale), RGB in [0, 1]; gt_path, and lq_path,
    which is the same.

    Args:
        dataroot_gt: a folder, read with its sub-folders, or several; or what `io_backend` reads.
        degradation: `type` and options of a degradation of single images, such as BSRGANDegradation.
        meta_info_file: a list of the names to use, of a single root.
        gt_size: side of the square in gt pixels, a multiple of scale (training only).
        use_hflip, use_rot: flips of gt and lq together, after the degradation, as ITER does: what moves the image by
            part of a pixel, such as blur kernels of even size, does so in every direction.
        use_resize_crop: before the crop, shrink to a random size at which the square still fits.
        use_resize: before the crop, bring the shorter side to gt_size.
        max_num: use only the first images, sorted by name.
    """

    def __init__(
        self,
        dataroot_gt: str | list[str],
        scale: int,
        degradation: Degradation,
        phase: str = 'val',
        io_backend: IoBackend = DISK,
        meta_info_file: str | None = None,
        gt_size: PositiveInt | None = None,
        use_hflip: bool = False,
        use_rot: bool = False,
        use_resize_crop: bool = False,
        use_resize: bool = False,
        max_num: PositiveInt | None = None,
    ):
        try:
            self.degradation = DEGRADATION_REGISTRY.build(checked_degradation(degradation), scale=scale)
        except OptionError as error:
            raise OptionError(str(error), ('degradation', *error.key)) from None
        self.phase, self.crop, self.use_hflip, self.use_rot = phase, None, use_hflip, use_rot
        if phase == 'train':
            if not gt_size or gt_size % scale:
                raise OptionError(
                    f'training needs a gt_size that is a multiple of the scale {scale}, got {gt_size}', ('gt_size',)
                )
            self.crop = GtCrop(gt_size, use_resize_crop=use_resize_crop, use_resize=use_resize, scale=scale)
            try:
                self._check_degradable(gt_size, gt_size)
            except ValueError as error:
                raise OptionError(f'gt_size {error}', ('gt_size',)) from None
        self.images = GtImages(dataroot_gt, io_backend, meta_info_file, max_num)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        pixels, path = self.images.pixels(index), self.images.path(index)
        rng = sample_generator() if self.crop else np.random.default_rng(derived_seed(0, index))
        try:
            gt = self.crop(pixels, rng) if self.crop else np.ascontiguousarray(scaled_to_float(pixels))
            gt, lq = self.degradation.apply(gt, self.degradation.draw(*gt.shape[:2], rng))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
        if self.crop:
            flips = draw_flips(self.use_hflip, self.use_rot, rng)
            gt, lq = augment(gt, *flips), augment(lq, *flips)
        return {'lq': to_tensor(lq), 'gt': to_tensor(gt), 'lq_path': path, 'gt_path': path}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with each image that cannot be used; `thorough` decodes whole images, else headers are read."""
        return self.images.faults(thorough, self.crop.check_size if self.crop else self._check_degradable)

    def _check_degradable(self, width: int, height: int) -> None:
        self.degradation.draw(height, width, np.random.default_rng(0))


@DATASET_REGISTRY.register()
class BSRGANTrainDataset(DegradedImageDataset):
    """ITER's data set of that name: DegradedImageDataset with BSRGAN's light degradation unless another is named.

    Unlike ITER's, an image that cannot be read is an error, not replaced by another one.

    Args:
        use_flip: ITER's name for use_hflip.
        others: as of DegradedImageDataset.
    """

    def __init__(
        self,
        dataroot_gt: str | list[str],
        scale: int,
        degradation: Degradation = LIGHT_BSRGAN,
        phase: str = 'val',
        io_backend: IoBackend = DISK,
        meta_info_file: str | None = None,
        gt_size: PositiveInt | None = None,
        use_flip: bool = False,
        use_hflip: bool = False,
        use_rot: bool = False,
        use_resize_crop: bool = False,
        use_resize: bool = False,
        max_num: PositiveInt | None = None,
    ):
        super().__init__(
            dataroot_gt,
            scale,
            degradation,
            phase,
            io_backend,
            meta_info_file,
            gt_size,
            use_flip or use_hflip,
            use_rot,
            use_resize_crop,
            use_resize,
            max_num,
        )
