"""SR3's prepared data: the small image, the same enlarged again, and the ground truth, as folders or as one LMDB."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt
from torch.utils.data import Dataset

from basicsr.data.paths import paired_names
from basicsr.data.storage import open_storage
from basicsr.data.transforms import augment, draw_flips
from basicsr.utils.image import scaled_to_float, to_tensor
from basicsr.utils.registry import DATASET_REGISTRY, OptionError
from basicsr.utils.resize import pillow_resize

BACKENDS = {'img': {'type': 'disk'}, 'lmdb': {'type': 'sr3_lmdb'}}


@DATASET_REGISTRY.register()
class SR3PairDataset(Dataset):
    """Images that scripts/make_sr3_data.py, or the published prepare_data.py, made (Saharia et al., arXiv:2104.07636).

    Images belong together by their names; in training one flip is drawn for all that belong together. Item: lq (3, l,
    l), lq_up and gt (3, r, r), RGB in [0, 1]; lq_path, gt_path.

    Args:
        dataroot: ROOT_l_r with lr_l, hr_r and sr_l_r, folders of images or parts of its LMDB.
        datatype: 'img' or 'lmdb'.
        l_resolution, r_resolution: sides of lq and gt.
        need_lr: false makes lq of gt, by Pillow, in place of reading lr_l: for data without it.
        use_hflip: flip left and right in training; published: always.
        data_len: use only the first images, sorted by name; 0 or less takes all.
    """

    def __init__(
        self,
        dataroot: str,
        l_resolution: PositiveInt,
        r_resolution: PositiveInt,
        scale: int,
        phase: str = 'val',
        datatype: Literal['img', 'lmdb'] = 'img',
        need_lr: bool = True,
        use_hflip: bool = False,
        data_len: int = -1,
    ):
        if r_resolution != l_resolution * scale:
            raise OptionError(
                f'should be l_resolution times the scale of the file, {l_resolution} * {scale}, got {r_resolution}',
                ('r_resolution',),
            )
        self.sides = {'gt': r_resolution, 'lq_up': r_resolution} | ({'lq': l_resolution} if need_lr else {})
        parts = {'gt': f'hr_{r_resolution}', 'lq_up': f'sr_{l_resolution}_{r_resolution}', 'lq': f'lr_{l_resolution}'}
        self.storages = {key: open_storage(str(Path(dataroot) / parts[key]), BACKENDS[datatype]) for key in self.sides}
        self.small, self.hflip = l_resolution, use_hflip and phase == 'train'
        self.items, self.unpaired = self._paired(datatype)
        if data_len > 0:
            self.items = self.items[:data_len]

    def _paired(self, datatype: str) -> tuple[list[dict[str, str]], list[str]]:
        """The names of each item's images, sorted, and what is wrong with those that lack a partner."""
        gt = self.storages['gt']
        if datatype == 'lmdb':  # one key for all; a partner that is missing is found when it is looked at
            return [dict.fromkeys(self.sides, name) for name in gt.names()], []
        partners, faults = {}, []
        for key in [key for key in self.sides if key != 'gt']:
            pairs, missing = paired_names(gt, self.storages[key], '{}')
            partners[key] = dict(pairs)
            faults += missing
        whole = sorted(set.intersection(*(set(found) for found in partners.values())))
        items = [{'gt': name, **{key: found[name] for key, found in partners.items()}} for name in whole]
        return items, list(dict.fromkeys(faults))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        names, images = self.items[index], {}
        for key, side in self.sides.items():
            images[key] = self.storages[key].pixels(names[key])
            if fault := self._misfit(key, names[key], images[key].shape[1::-1], side):
                raise ValueError(fault)
        if 'lq' not in images:
            images['lq'] = pillow_resize(images['gt'], self.small, self.small)
        flips = draw_flips(self.hflip, False, random)
        item = {key: to_tensor(scaled_to_float(augment(image, *flips))) for key, image in images.items()}
        paths = {f'{key}_path': self.storages[key].path(names[key]) for key in ('lq', 'gt') if key in names}
        return {'lq_path': paths['gt_path'], **item, **paths}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with each image that cannot be used; `thorough` decodes whole images, else headers are read."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda names: self._faults_of(names, thorough), self.items)
            return [*self.unpaired, *(fault for faults in found for fault in faults)]

    def _faults_of(self, names: dict[str, str], thorough: bool) -> list[str]:
        faults = []
        for key, side in self.sides.items():
            try:
                size = self.storages[key].size(names[key], thorough)
            except ValueError as error:
                faults.append(str(error))
            else:
                faults += filter(None, [self._misfit(key, names[key], size, side)])
        return faults

    def _misfit(self, key: str, name: str, size: tuple[int, ...], side: int) -> str:
        """Why an image of this (width, height) is none of this data set; '' if it is."""
        if tuple(size) == (side, side):
            return ''
        return f'{self.storages[key].path(name)} is {size[0]}x{size[1]} instead of {side}x{side}'
