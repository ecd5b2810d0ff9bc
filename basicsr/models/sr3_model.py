"""SR3 and DDPM: a network learns to name the noise in an image; images are restored, or made, by sampling."""

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from basicsr.models.agreement import lacking
from basicsr.models.base_model import BaseModel
from basicsr.models.diffusion import GaussianDiffusion
from basicsr.models.diffusion_sampling import ImageNoise, Sampler, sample, snapshot_steps
from basicsr.models.image_seeds import eight_bit, image_seeds
from basicsr.models.restorer import pad_to_multiple
from basicsr.utils.checkpoint import CheckpointError, network_state, read_checkpoint
from basicsr.utils.nested_options import OptionsOf, nested
from basicsr.utils.options import Options
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY, OptionError, UserError
from basicsr.utils.resize import pillow_resize
from basicsr.utils.tiling import tiled

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
NEARLY_NOISE = 0.1  # the image's part in what sampling starts from: with more of it, pure noise is another thing
checked_schedule = OptionsOf(GaussianDiffusion, 'a noise schedule', tried=True)
checked_sampler = OptionsOf(Sampler, 'a sampler', tried=True)


@MODEL_REGISTRY.register()
class SR3Model(BaseModel):
    """SR3 (Saharia et al., arXiv:2104.07636) with a network that is told the level of noise, or, as DDPM, the step.

    network_g sees the enlarged lq beside the noisy image (its in_channel is then twice its out_channel), or the noisy
    image alone: then the model makes images by `sample` and restores none. lq is enlarged by Pillow's bicubic in 8
    bits, as the published data are, unless a batch brings lq_up.

    Args:
        schedule: of the noise that the network is trained with: schedule, n_timestep, linear_start, linear_end.
        val_schedule: sample this chain in place of the trained one (published files have `beta_schedule.val`).
        sampler: type, steps, eta, spacing, see Sampler; without it, all steps as published.
        seed: of the noise that restoring begins with: an image's own follows from it and from the image's pixels alone.
        share_timestep: one pair of neighbouring steps for a whole batch (of a process), as published; false draws one
            for each image. Networks that are told the step draw one for each image in any case.
        uniform_in: whether the level between two steps is drawn uniformly, as published, or its square (the paper).
        clip_denoised: clamp the image seen in each state to [-1, 1].
        consistency: in each step, give the image seen in the state what its bicubic reduction lacks to be lq (as the
            null-space method, arXiv:2212.00490). It cures the false colours that short trainings are known for. Not as
            published, and for lq that was made so: it puts back what noise and compression did to others.
        ema_start, ema_every: the average of train:ema_decay is a copy before iteration ema_start, and then follows in
            every ema_every-th iteration.
        compile: for restoring, torch.compile in this mode, one graph for each shape; 'reduce-overhead' and
            'max-autotune' replay CUDA graphs on such a device. Training has train:compile.
    """

    loss_names = ('noise',)
    tiles_itself = True
    maps = ('process',)

    def __init__(
        self,
        opt: Options,
        schedule: nested(checked_schedule),
        val_schedule: nested(checked_schedule) | None = None,
        sampler: nested(checked_sampler) | None = None,
        seed: NonNegativeInt = 0,
        share_timestep: bool = True,
        uniform_in: Literal['level', 'alpha_bar'] = 'level',
        clip_denoised: bool = True,
        consistency: bool = False,
        ema_start: NonNegativeInt = 0,
        ema_every: PositiveInt = 1,
        compile: Literal['default', 'reduce-overhead', 'max-autotune'] | None = None,
    ):
        self.diffusion, self.seed = GaussianDiffusion(**schedule), seed
        self.sampled = self.diffusion if val_schedule is None else GaussianDiffusion(**val_schedule)
        self.sampler, self.clip, self.consistency = Sampler(**(sampler or {})), clip_denoised, consistency
        self.share_timestep, self.uniform_in = share_timestep, uniform_in
        self.ema_start, self.ema_every = ema_start, ema_every
        self._read_network(opt.networks['g'])
        if consistency and not self.conditional:
            raise OptionError('this network sees no lq that images could agree with', ('consistency',))
        super().__init__(opt)
        if opt.is_train and 'noise' not in opt.train.losses:
            raise OptionError("option 'noise_opt' is missing", ('train',))
        if opt.val.val_freq or not opt.is_train:
            self._check_sampling()
        if compile and not opt.is_train:
            self.nets['g'].compile(mode=compile, dynamic=False)

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        gt = 2 * batch['gt'] - 1
        if any(side % self.multiple for side in gt.shape[-2:]):
            raise UserError(f'network_g trains on sides that {self.multiple} divides, gt is {tuple(gt.shape[-2:])}')
        if self.continuous:
            level = self.diffusion.random_levels(len(gt), self.share_timestep, self.uniform_in)
        else:
            level = self.diffusion.random_steps(len(gt))
        noise = torch.randn_like(gt)
        noisy = self.diffusion.add_noise(gt, noise, level)
        if self.conditional:
            condition = batch['lq_up'] if 'lq_up' in batch else enlarged(batch['lq'], self.scale)
            noisy = torch.cat([2 * condition - 1, noisy], 1)
        named = self.nets['g'](noisy, level.to(gt.device))
        loss = self.losses['noise'](named.float(), noise)
        self.update('g', loss)
        return {'l_noise': loss}

    def after_step(self, iteration: int) -> None:
        if iteration % self.ema_every == 0:
            for label, average in self.averages.items():
                average.update(self.bare(label), 0 if iteration < self.ema_start else None)

    def published_training(self, path: Path, state: dict) -> tuple[dict, dict | None]:
        """A published X_opt.pth as a state of ours, and the networks of the X_gen.pth beside it; else (state, None)."""
        if not path.name.endswith('_opt.pth') or not {'iter', 'optimizer'} <= state.keys():
            return state, None
        file = path.with_name(f'{path.name.removesuffix("_opt.pth")}_gen.pth')
        weights = network_state(read_checkpoint(file), None, str(file))
        self._check_schedule(weights, str(file))
        (published,), (own,) = state['optimizer']['param_groups'], self.optimizers['g'].param_groups
        if len(published['params']) != len(own['params']):
            raise CheckpointError(f'{path}: belongs to {len(published["params"])} weights, not {len(own["params"])}')
        group = {name: value for name, value in own.items() if name != 'params'}
        group |= {name: value for name, value in published.items() if name in ('lr', 'betas', 'eps', 'params')}
        optimizer = {'state': state['optimizer']['state'], 'param_groups': [{**group, 'initial_lr': group['lr']}]}
        ours = {'iter': state['iter'], 'epoch': state.get('epoch', 0), 'optimizers': [optimizer], 'schedulers': []}
        return ours, {'g': {'params': weights}}

    def context(self, lq: Tensor) -> dict:
        """The seeds of the images' noise. Raises UserError if the network restores none."""
        if not self.conditional:
            raise UserError('this network makes images from noise alone and restores none: use scripts/sample.py')
        return {'seeds': image_seeds(lq, self.seed)}

    def restore(
        self,
        lq: Tensor,
        seeds: Tensor | None = None,
        tile: int = 0,
        overlap: int = 0,
        tile_batch: int = 1,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images of any size by sampling: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale).

        Args:
            seeds: of each image's noise; None: those that `context` gives.
            tile, overlap, tile_batch: the network sees tiles of so many lq pixels; the noise that it names in them is
                blended in every step, so that all tiles make one image.
            progress: called with (steps done, steps in all).
        """
        return self._restored(lq, seeds, (tile, overlap, tile_batch), progress, None)

    def restore_with_maps(
        self,
        lq: Tensor,
        seeds: Tensor | None = None,
        tile: int = 0,
        overlap: int = 0,
        tile_batch: int = 1,
        progress: Progress | None = None,
    ) -> Tensor:
        """What `restore` gives, and as further channels the enlarged lq and about ten states on the way, 3 for each."""
        frames: list[Tensor] = []
        sr = self._restored(lq, seeds, (tile, overlap, tile_batch), progress, frames)
        return torch.cat([sr, *(frame.to(sr.device) for frame in frames)], 1)

    @torch.inference_mode()
    def sample(
        self,
        count: int,
        seed: int | None = None,
        size: tuple[int, int] | None = None,
        snapshots: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images from noise alone, of a network that sees nothing else.

        Args:
            seed: of the first image, that of each next one is one more; None: of the option file.
            size: height and width; None: the network's image_size.
            snapshots: also the start and about ten states on the way, on the CPU.
        Shape: (count, 3, h, w) in [0, 1]; with snapshots (1 + states, count, 3, h, w), the last ones are the images.
        """
        if self.conditional:
            raise UserError('this network restores images (in_channel is twice out_channel): it samples none by itself')
        first, size = self.seed if seed is None else seed, size or (self.image_size, self.image_size)
        frames: list[Tensor] | None = [] if snapshots else None
        images = self._sampled(None, range(first, first + count), size, (0, 0, 1), progress, frames)
        return torch.stack(frames) if snapshots else _unit(images, size)

    def _restored(
        self, lq: Tensor, seeds: Tensor | None, tiling: tuple, progress: Progress | None, frames: list[Tensor] | None
    ) -> Tensor:
        size = tuple(side * self.scale for side in lq.shape[-2:])
        condition = pad_to_multiple(2 * enlarged(lq, self.scale) - 1, self.multiple) if self.conditional else None
        seeds = image_seeds(lq, self.seed) if seeds is None else seeds
        correct = agreement(lq, self.scale, self.multiple) if self.consistency else None
        return _unit(self._sampled(condition, seeds.tolist(), size, tiling, progress, frames, correct), size)

    def _sampled(
        self,
        condition: Tensor | None,
        seeds: Sequence[int],
        size: tuple[int, int],
        tiling: tuple[int, int, int],
        progress: Progress | None,
        frames: list[Tensor] | None,
        correct: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Padded images in [-1, 1]; what is watched on the way is appended to `frames`, unpadded, in [0, 1]."""
        steps = self.sampler.steps_of(self.sampled, self.continuous)
        padded = [-(-side // self.multiple) * self.multiple for side in size]
        draw = ImageNoise(seeds, (self.channels, *padded), self.device)
        start = draw()
        shown = snapshot_steps(len(steps.alphas)) if frames is not None else []
        if frames is not None:
            frames.append(_unit(start if condition is None else condition, size).cpu())

        def watch(number: int, state: Tensor) -> None:
            if number in shown:
                frames.append(_unit(state, size).cpu())
            if progress:
                progress(number + 1, len(steps.alphas))

        denoise = self._denoiser(condition, *tiling)
        with getattr(self.eval_net('g'), 'constant_weights', nullcontext)():
            return sample(denoise, self.sampler, steps, start, draw, self.continuous, self.clip, watch, correct)

    def _denoiser(self, condition: Tensor | None, tile: int, overlap: int, batch: int) -> Callable:
        """(x, level) -> the noise in x, named in tiles of lq pixels where `tile` is not 0."""
        net, side = self.eval_net('g'), -(-tile * self.scale // self.multiple) * self.multiple

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            def named(images: Tensor) -> Tensor:
                # For another size of batch, kernels round otherwise. A CPU, which gains nothing by batches, never does.
                parts = images.split(1 if x.device.type == 'cpu' else len(images))
                return torch.cat([net(part, level[:1].expand(len(part))) for part in parts])

            seen = x if condition is None else torch.cat([condition, x], 1)
            if side == 0 or max(x.shape[-2:]) <= side:
                return named(seen)
            return tiled(named, seen, 1, side, overlap * self.scale, batch).to(x.device)

        return denoise

    def _read_network(self, section: dict) -> None:
        """What the model must know of network_g, from its options. Raises OptionError for another kind of network."""
        entry = ARCH_REGISTRY.get(section['type'])
        options = {name: argument.default for name, argument in inspect.signature(entry).parameters.items()} | section
        if missing := {'in_channel', 'out_channel', 'image_size', 'channel_mults'} - options.keys():
            raise OptionError(
                f'SR3Model works with SR3UNet and DDPMUNet; {entry.__name__} has no {", ".join(sorted(missing))}',
                ('network_g', 'type'),
            )
        self.channels = options['out_channel'] or options['in_channel']
        self.conditional = options['in_channel'] == 2 * self.channels
        if options['in_channel'] not in (self.channels, 2 * self.channels):
            raise OptionError(
                f'should be out_channel or twice out_channel, got {options["in_channel"]}', ('network_g', 'in_channel')
            )
        self.image_size, self.multiple = options['image_size'], 2 ** (len(options['channel_mults']) - 1)
        self.continuous = not getattr(entry, 'takes_steps', False)

    def _check_sampling(self) -> None:
        """Raise OptionError for a sampler or a schedule that cannot be; warn of a chain that ends before the noise."""
        self.sampler.steps_of(self.sampled, self.continuous)
        if self.sampled.levels[-1] > NEARLY_NOISE:
            logger.warning(
                'the schedule to sample ends where sqrt(abar) is still %.3g: pure noise, which sampling starts from, '
                'is another thing. For fewer steps keep the trained schedule and give the sampler `steps`',
                self.sampled.levels[-1],
            )

    def _load_pretrained(self) -> None:
        from basicsr.utils.download import local_path

        source = self.opt.path.pretrained.get('g')
        if source:
            content = read_checkpoint(local_path(source.path))
            self._check_schedule(network_state(content, source.param_key, source.path), source.path)
        super()._load_pretrained()

    def _check_schedule(self, state: dict[str, Tensor], name: str) -> None:
        """Raise CheckpointError for a published file that was trained with another schedule."""
        if difference := self.diffusion.difference(state):
            raise CheckpointError(f'{name}: its noise schedule is not that of model:schedule: {difference}')


def agreement(lq: Tensor, scale: int, multiple: int) -> Callable[[Tensor], Tensor]:
    """A function that gives padded images in [-1, 1] what their bicubic reduction lacks to be lq (b, 3, h, w)."""
    wanted, size = 2 * lq.float() - 1, [side * scale for side in lq.shape[-2:]]

    def correct(seen: Tensor) -> Tensor:
        return seen + pad_to_multiple(lacking(seen[..., : size[0], : size[1]], wanted), multiple)

    return correct


def enlarged(lq: Tensor, scale: int) -> Tensor:
    """Pillow's bicubic enlargement in 8 bits, as SR3's data are prepared: (b, 3, h, w) in [0, 1], `scale` times."""
    if lq.is_meta:
        return lq.new_empty(*lq.shape[:2], *(side * scale for side in lq.shape[-2:]))
    height, width = lq.shape[-2:]
    large = np.stack([pillow_resize(image, width * scale, height * scale) for image in eight_bit(lq)])
    return torch.from_numpy(large).to(lq.device).permute(0, 3, 1, 2).float() / 255


def _unit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """From [-1, 1] to [0, 1], without padding."""
    return (image[..., : size[0], : size[1]] + 1) / 2
