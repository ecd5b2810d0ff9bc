"""Pairs of a low-quality and a ground-truth image on disk or in an LMDB."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from pydantic import PositiveInt
from torch.utils.data import Dataset

from basicsr.data.paths import PairOrder, listed_pairs, paired_names, read_meta_info
from basicsr.data.storage import DISK, IoBackend, open_storage
from basicsr.data.transforms import augment, draw_flips, paired_random_crop, paired_random_resize
from basicsr.utils.color import rgb_to_ycbcr
from basicsr.utils.image import scaled_to_float, to_tensor
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.seeding import derived_seed


@DATASET_REGISTRY.register()
class PairedImageDataset(Dataset):
    """lq and gt images under matching names (BasicSR's class of that name).

    In the phase `train` a random square is cut out of both, flipped and transposed; otherwise images come whole, gt cut
    to the size of lq times scale. Item: lq (c, h, w), gt (c, h * scale, w * scale), RGB in [0, 1]; lq_path, gt_path.

    Args:
        dataroot_gt, dataroot_lq: folders, read with their sub-folders, or what `io_backend` reads: `{type: lmdb}`
            NAME.lmdb as BasicSR writes it, `{type: sr3_lmdb}` ROOT/hr_128 and ROOT/sr_16_128 of an LMDB as SR3 writes
            it, `{type: packed}` NAME.packed as scripts/pack_dataset.py writes it.
        filename_tmpl: how the lq's stem is made of the gt's, such as '{}x4'.
        meta_info_file: a list of the gt names to use.
        pair_list: a file with the two paths of a pair in each line, seen from the dataroots unless absolute; in
            place of filename_tmpl and meta_info_file. It implies trim_gt.
        pair_order: what comes first in a line: 'lq gt' (D2C-SR), 'gt lq' (S3Diff) or 'gt, lq' (Real-ESRGAN).
        trim_gt: gt may exceed lq times scale by less than once more lq, and is cut to it at the right and the bottom.
            Without, training refuses a surplus, and validation cuts any.
        gt_size: side of the square in gt pixels, a multiple of scale (training only).
        use_resize_crop: shrink both first, to a random height that leaves room for the square (ITER; training only).
        published_crop: draw its place as D2C-SR's code does, never the last one along either side (training only).
        color: 'y' gives the BT.601 luma as one channel.
        mean, std: subtracted and divided, per channel.
        max_num: use only the first images, sorted by name.
        filter_key: pass over images whose names, below the dataroots, hold this text (training only; ITER's published
            data set leaves out what holds 'full').
        crop_eval_size: validate on a square of so many gt pixels, at one random place for each image.
    """

    def __init__(
        self,
        dataroot_gt: str,
        dataroot_lq: str,
        scale: int,
        phase: str = 'val',
        io_backend: IoBackend = DISK,
        filename_tmpl: str = '{}',
        meta_info_file: str | None = None,
        pair_list: str | None = None,
        pair_order: PairOrder = 'lq gt',
        trim_gt: bool = False,
        gt_size: PositiveInt | None = None,
        use_resize_crop: bool = False,
        published_crop: bool = False,
        use_hflip: bool = False,
        use_rot: bool = False,
        color: Literal['rgb', 'y'] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        max_num: PositiveInt | None = None,
        filter_key: str | None = None,
        crop_eval_size: PositiveInt | None = None,
    ):
        without = filter_key if phase == 'train' else None
        self.gt, self.lq = open_storage(dataroot_gt, io_backend), open_storage(dataroot_lq, io_backend)
        if pair_list:
            if meta_info_file or filename_tmpl != '{}':
                raise OptionError('pair_list takes the place of meta_info_file and filename_tmpl', ('pair_list',))
            pairs, self.unpaired, self.places = listed_pairs(self.gt, self.lq, pair_list, pair_order)
            pairs = [pair for pair in pairs if without is None or not any(without in name for name in pair)]
        else:
            listed = read_meta_info(meta_info_file) if meta_info_file else None
            pairs, self.unpaired = paired_names(self.gt, self.lq, filename_tmpl, listed, without)
            self.places = {}
        if without is not None and not pairs:
            raise OptionError(f'every image of {dataroot_gt} has {without!r} in its name', ('filter_key',))
        self.pairs = pairs[:max_num]
        self.trim_gt, self.published_crop = trim_gt or pair_list is not None, published_crop
        self.scale, self.phase, self.gt_size, self.color = scale, phase, gt_size, color
        self.use_hflip, self.use_rot, self.mean, self.std = use_hflip, use_rot, mean, std
        check_normalisation(color, mean, std)
        self.use_resize_crop = use_resize_crop
        self.cropped = gt_size if phase == 'train' else crop_eval_size  # side of the square in gt; None: whole images
        if phase == 'train' and (not gt_size or gt_size % scale):
            raise OptionError(
                f'training needs a gt_size that is a multiple of the scale {scale}, got {gt_size}', ('gt_size',)
            )
        if use_resize_crop and published_crop:
            raise OptionError('use_resize_crop and published_crop exclude each other', ('use_resize_crop',))
        if crop_eval_size and crop_eval_size % scale:
            raise OptionError(f'should be a multiple of the scale {scale}, got {crop_eval_size}', ('crop_eval_size',))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        gt_name, lq_name = self.pairs[index]
        gt_path, lq_path = self.gt.path(gt_name), self.lq.path(lq_name)
        gt = self.gt.pixels(gt_name)
        lq = gt if lq_path == gt_path else self.lq.pixels(lq_name)  # ITER's first stage trains on gt alone
        if mismatch := self._mismatch(gt_name, lq_name, gt.shape[1::-1], lq.shape[1::-1]):
            raise ValueError(mismatch)
        gt = gt[: lq.shape[0] * self.scale, : lq.shape[1] * self.scale]
        if self.phase == 'train':
            if self.use_resize_crop:
                lq, gt = paired_random_resize(lq, gt, self.gt_size, self.scale, random)
            lq, gt = paired_random_crop(lq, gt, self.gt_size, self.scale, random, self.published_crop)
            flips = draw_flips(self.use_hflip, self.use_rot, random)
            lq, gt = augment(lq, *flips), augment(gt, *flips)
        elif self.cropped:
            lq, gt = paired_random_crop(lq, gt, self.cropped, self.scale, random.Random(derived_seed(index)))
        return {'lq': self._tensor(lq), 'gt': self._tensor(gt), 'lq_path': lq_path, 'gt_path': gt_path}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with each image that cannot be used; `thorough` decodes whole images, else headers are read."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda pair: self._fault(*pair, thorough), self.pairs)
            return [*self.unpaired, *(fault for fault in found if fault)]

    def _fault(self, gt_name: str, lq_name: str, thorough: bool) -> str:
        try:
            gt, lq = self.gt.size(gt_name, thorough), self.lq.size(lq_name, thorough)
        except ValueError as error:
            return self._placed(gt_name, lq_name, str(error))
        return self._mismatch(gt_name, lq_name, gt, lq)

    def _placed(self, gt_name: str, lq_name: str, fault: str) -> str:
        """A fault of a pair, with the line of the list that names the pair."""
        place = self.places.get((gt_name, lq_name))
        return fault if place is None else f'{place}: {fault}'

    def _mismatch(self, gt_name: str, lq_name: str, gt: tuple[int, ...], lq: tuple[int, ...]) -> str:
        """Why images of these sizes (width, height) are no pair, or too small to be cropped."""
        gt_path, wanted = self.gt.path(gt_name), (lq[0] * self.scale, lq[1] * self.scale)
        most = [side - 1 for side in lq] if self.trim_gt else (0, 0) if self.phase == 'train' else gt
        if not all(0 <= side - full <= surplus for side, full, surplus in zip(gt, wanted, most)):
            return self._placed(
                gt_name,
                lq_name,
                f'{gt_path} is {gt[0]}x{gt[1]}; {self.scale} times {self.lq.path(lq_name)} ({lq[0]}x{lq[1]}) '
                f'would be {wanted[0]}x{wanted[1]}',
            )
        strict = self.phase == 'train' and self.published_crop
        if self.cropped and min(wanted) < self.cropped + strict:
            option = 'gt_size' if self.phase == 'train' else 'crop_eval_size'
            small = 'no larger' if strict else 'smaller'
            fault = f'{gt_path} is {gt[0]}x{gt[1]}, {small} than the crop of {option} {self.cropped}'
            return self._placed(gt_name, lq_name, fault)
        return ''

    def _tensor(self, pixels: np.ndarray):
        return finished_tensor(pixels, self.color, self.mean, self.std)


def check_normalisation(color: str | None, mean: list[float] | None, std: list[float] | None) -> None:
    """Raise OptionError unless mean and std have a value for each channel, and std no 0."""
    channels = 1 if color == 'y' else 3
    for key, values in (('mean', mean), ('std', std)):
        if values is not None and len(values) != channels:
            raise OptionError(f'{key} needs {channels} values, one for each channel, got {values}', (key,))
    if std is not None and 0 in std:
        raise OptionError(f'std divides: it cannot be 0, got {std}', ('std',))


def finished_tensor(pixels: np.ndarray, color: str | None, mean: list[float] | None, std: list[float] | None):
    """(h, w, 3) integer pixels -> (c, h, w) float32 tensor in [0, 1], as luma and normalised if asked."""
    image = scaled_to_float(pixels)
    if color == 'y':
        image = rgb_to_ycbcr(image, y_only=True)[..., None]
    if mean is not None or std is not None:
        channels = image.shape[2]
        image = (image - np.float32(mean or [0] * channels)) / np.float32(std or [1] * channels)
    return to_tensor(image)
