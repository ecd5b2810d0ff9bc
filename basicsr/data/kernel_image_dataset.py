"""Ground truth and blur kernels: lq is made of them by the batch, on the device."""

import numpy as np
import torch
from pydantic import PositiveInt
from torch.utils.data import Dataset

from basicsr.data.degradations.kernels import SIDE, KernelOptions
from basicsr.data.gt_images import GtImages
from basicsr.data.gt_transforms import GtCrop
from basicsr.data.storage import DISK, IoBackend
from basicsr.utils.image import to_tensor
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed, sample_generator

KERNELS = ('kernel1', 'kernel2', 'sinc_kernel')


@DATASET_REGISTRY.register('RealESRGANDataset')
@DATASET_REGISTRY.register()
class KernelImageDataset(Dataset):
    """gt squares and the kernels of Real-ESRGAN's second-order degradation, which the section `degradation:` applies.

    Item: gt (3, crop_size, crop_size), RGB in [0, 1]; kernel1, kernel2, sinc_kernel (21, 21); gt_path. Smaller images
    are continued to crop_size by their mirror image, as published. An image that cannot be used is an error with its
    path: none is replaced by another. Outside the phase `train` an index always gives the same item.

    S3Diff's keys say the same otherwise: `gt_path` and `face_gt_path` are a list in `dataroot_gt`, `num_pic` and
    `num_face` are `max_num`, one for each folder; `meta_num` is `max_num` with a `meta_info`; `mul_num` is
    dataset_enlarge_ratio; `image_type` is not needed. S3Diff leaves out images below 384x384 pixels and files below
    100 KiB: list those to use in a `meta_info`.

    Args:
        dataroot_gt: a folder, read with its sub-folders, or what io_backend reads; or several of them.
        meta_info: a list of the names to use, one for each root where there are several (null: all images).
        max_num: use only the first images, sorted by name unless listed; one number for each root, or one for all.
        gt_size: side of the square that is cut out after degrading (the option of `degradation:`); only checked here.
        crop_size: side of the square that is degraded: room for gt_size and the borders of the filters.
        others: as of KernelOptions in basicsr/data/degradations/kernels.py.
    """

    def __init__(
        self,
        dataroot_gt: str | list[str],
        scale: int,
        kernel_list: tuple[str, ...],
        kernel_prob: tuple[float, ...],
        sinc_prob: float,
        blur_sigma: tuple[float, float],
        betag_range: tuple[float, float],
        betap_range: tuple[float, float],
        kernel_list2: tuple[str, ...],
        kernel_prob2: tuple[float, ...],
        sinc_prob2: float,
        blur_sigma2: tuple[float, float],
        betag_range2: tuple[float, float],
        betap_range2: tuple[float, float],
        final_sinc_prob: float,
        blur_kernel_size: int = SIDE,
        blur_kernel_size2: int = SIDE,
        limit_kernel_size: bool = False,
        phase: str = 'val',
        io_backend: IoBackend = DISK,
        meta_info: str | list[str | None] | None = None,
        max_num: PositiveInt | list[PositiveInt | None] | None = None,
        gt_size: PositiveInt | None = None,
        crop_size: PositiveInt = 400,
        use_hflip: bool = False,
        use_rot: bool = False,
    ):
        if gt_size and (gt_size % scale or gt_size > crop_size):
            raise OptionError(
                f'gt_size should be a multiple of the scale {scale}, at most crop_size {crop_size}, got {gt_size}',
                ('gt_size',),
            )
        self.kernels = KernelOptions(
            kernel_list=kernel_list,
            kernel_prob=kernel_prob,
            sinc_prob=sinc_prob,
            blur_sigma=blur_sigma,
            betag_range=betag_range,
            betap_range=betap_range,
            kernel_list2=kernel_list2,
            kernel_prob2=kernel_prob2,
            sinc_prob2=sinc_prob2,
            blur_sigma2=blur_sigma2,
            betag_range2=betag_range2,
            betap_range2=betap_range2,
            final_sinc_prob=final_sinc_prob,
            blur_kernel_size=blur_kernel_size,
            blur_kernel_size2=blur_kernel_size2,
            limit_kernel_size=limit_kernel_size,
        )
        roots = [dataroot_gt] if isinstance(dataroot_gt, str) else dataroot_gt
        if not roots:
            raise OptionError('dataroot_gt names no folder', ('dataroot_gt',))
        lists, numbers = per_root('meta_info', meta_info, roots), per_root('max_num', max_num, roots)
        try:
            self.parts = [GtImages(root, io_backend, *which) for root, *which in zip(roots, lists, numbers)]
        except OptionError as error:  # `meta_info` is Real-ESRGAN's name
            raise OptionError(str(error), ('meta_info',) if error.key == ('meta_info_file',) else error.key) from None
        self.places = [(part, index) for part in self.parts for index in range(len(part))]
        self.phase, self.crop = phase, GtCrop(crop_size, use_hflip, use_rot, pad=True)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict:
        part, place = self.places[index]
        path, pixels = part.path(place), part.pixels(place)
        rng = sample_generator() if self.phase == 'train' else np.random.default_rng(derived_seed(0, index))
        try:
            gt = self.crop(pixels, rng)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
        kernels = {name: torch.from_numpy(kernel) for name, kernel in zip(KERNELS, self.kernels.draw(rng))}
        return {'gt': to_tensor(gt), **kernels, 'gt_path': path}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with each image that cannot be used; `thorough` decodes whole images, else headers are read."""
        return [fault for part in self.parts for fault in part.faults(thorough, self.crop.check_size)]


def per_root(name: str, value: str | int | list | None, roots: list[str]) -> list:
    """One value for each root. Raises OptionError if a list has another length."""
    if not isinstance(value, list):
        return [value] * len(roots)
    if len(value) != len(roots):
        raise OptionError(f'{name} needs one value for each dataroot_gt, {len(roots)}, got {len(value)}', (name,))
    return value
