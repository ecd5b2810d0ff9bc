"""Ground truth streamed from WebDataset shards, for collections that no disk or no folder holds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from pydantic import PositiveInt
from torch.utils.data import IterableDataset

from basicsr.data.degradations.kernels import KernelOptions
from basicsr.data.degraded_image_dataset import Degradation, checked_degradation
from basicsr.data.gt_transforms import GtCrop
from basicsr.data.shards import Sample, Shard, checksum, found_shards, local_path, read_samples
from basicsr.data.transforms import augment, draw_flips
from basicsr.utils.image import to_tensor
from basicsr.utils.nested_options import OptionsOf, nested
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY, OptionError
from basicsr.utils.seeding import sample_generator

checked_kernels = OptionsOf(KernelOptions, 'kernels', tried=True)


@DATASET_REGISTRY.register()
class ShardedImageDataset(IterableDataset):
    """gt squares of the images in tar files, and either their lq or the kernels to make it of on the device.

    For training only; the loader streams it (basicsr/data/streams.py): each epoch holds each sample once. A sample is
    one image, PNG or JPEG or another that folders may hold; other members of the same key are not used.
    Item: gt (3, gt_size, gt_size), RGB in [0, 1]; with `degradation` lq (3, gt_size / scale, gt_size / scale); with
    `kernels` kernel1, kernel2, sinc_kernel (21, 21); gt_path, which is SHARD/KEY.SUFFIX.

    Args:
        shards: paths or URLs, such as `data/train-{0000..0099}.tar`. Numbers of samples come from the `index.json`
            that scripts/make_shards.py writes beside them; local shards without one are counted at every start.
        gt_size: side of the square.
        degradation: `type` and options of a degradation of single images, such as BSRGANDegradation.
        kernels: the options of Real-ESRGAN's kernels; the section `degradation:` of the file makes lq.
        index: path or URL of the index, if it does not lie beside the shards.
        shuffle_buffer: samples, as they are in the shards, that each worker holds in memory to draw the next from.
        use_hflip, use_rot: flips as of PairedImageDataset.
        pad: continue smaller images to gt_size by their mirror image; otherwise they are errors.
    """

    def __init__(
        self,
        shards: str | list[str],
        scale: int,
        gt_size: PositiveInt,
        degradation: Degradation | None = None,
        kernels: nested(checked_kernels) | None = None,
        phase: str = 'train',
        index: str | None = None,
        shuffle_buffer: PositiveInt = 256,
        use_hflip: bool = False,
        use_rot: bool = False,
        pad: bool = False,
    ):
        if phase != 'train':
            raise OptionError('shards are for training only: validate on a folder, which has an order', ('type',))
        if (degradation is None) == (kernels is None):
            raise OptionError(
                'give either `degradation`, which makes lq in the workers, or `kernels`', ('degradation',)
            )
        if gt_size % scale:
            raise OptionError(f'gt_size should be a multiple of the scale {scale}, got {gt_size}', ('gt_size',))
        # An lq that is made here is flipped with its gt, one that is made on the device is made of the flipped gt.
        self.flips, none = (use_hflip, use_rot), (False, False)
        self.crop = GtCrop(gt_size, *(none if degradation else self.flips), pad=pad)
        self.shuffle_buffer = shuffle_buffer
        self.kernels = kernels and KernelOptions(**checked_kernels(kernels))
        try:
            self.degradation = degradation and DEGRADATION_REGISTRY.build(checked_degradation(degradation), scale=scale)
            if self.degradation:
                self.degradation.draw(gt_size, gt_size, np.random.default_rng(0))
        except OptionError as error:
            raise OptionError(str(error), ('degradation', *error.key)) from None
        except ValueError as error:
            raise OptionError(f'gt_size {error}', ('gt_size',)) from None
        try:
            self.shards, self.shard_faults = found_shards(shards, index)
        except OptionError as error:
            raise OptionError(str(error), ('shards',)) from None

    def __len__(self) -> int:
        """Samples in an epoch, of all processes."""
        return sum(shard.samples for shard in self.shards)

    def __iter__(self) -> Iterator[dict]:
        """One pass in the order of the shards, for a look at the data; training streams instead."""
        for shard in self.shards:
            yield from (self.item(sample) for _, sample in read_samples(shard.url))

    def item(self, sample: Sample) -> dict:
        """What a sample becomes, with draws from `sample_generator`. Raises ValueError that names it."""
        rng, pixels = sample_generator(), sample.pixels()
        try:
            gt = self.crop(pixels, rng)
            if self.kernels is not None:
                kernels = zip(('kernel1', 'kernel2', 'sinc_kernel'), self.kernels.draw(rng))
                made = {name: torch.from_numpy(kernel) for name, kernel in kernels}
            else:
                gt, lq = self.degradation.apply(gt, self.degradation.draw(*gt.shape[:2], rng))
                flips = draw_flips(*self.flips, rng)
                gt, made = augment(gt, *flips), {'lq': to_tensor(augment(lq, *flips))}
        except ValueError as error:
            raise ValueError(f'{sample.path}: {error}') from None
        return {**made, 'gt': to_tensor(gt), 'gt_path': sample.path}

    def faults(self, thorough: bool) -> list[str]:
        """What is wrong with local shards: that they are missing, truncated, changed or not readable as tar files.

        Args:
            thorough: read every shard, compare its checksum with the index, decode every image.
        """
        found = list(self.shard_faults)
        if thorough:
            named = {fault.split(': ')[0] for fault in found}
            local = [shard for shard in self.shards if local_path(shard.url) and shard.url not in named]
            with ThreadPoolExecutor() as pool:
                found += [fault for faults in pool.map(self._shard_faults, local) for fault in faults]
        return list(dict.fromkeys(found)) or ([] if len(self) else ['the shards hold no samples'])

    def _shard_faults(self, shard: Shard) -> list[str]:
        faults = []
        try:
            if shard.sha256 and checksum(local_path(shard.url)) != shard.sha256:
                faults.append(f'{shard.url}: was changed, its checksum is not that of its index')
            for _, sample in read_samples(shard.url, end=shard.samples):
                faults += self._sample_faults(sample)
        except ValueError as error:
            faults.append(str(error))
        return faults

    def _sample_faults(self, sample: Sample) -> list[str]:
        try:
            height, width = sample.pixels().shape[:2]
        except ValueError as error:
            return [str(error)]
        try:
            self.crop.check_size(width, height)
        except ValueError as error:
            return [f'{sample.path}: {error}']
        return []
