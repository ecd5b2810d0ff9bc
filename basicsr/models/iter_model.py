"""ITER: the tokens of a sharp image, named from lq, then judged and refined step by step."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from basicsr.models.agreement import lacking
from basicsr.models.base_model import BaseModel
from basicsr.models.image_seeds import image_seeds
from basicsr.models.iter_training import Stages, TokenTraining, check_training, with_fresh_token_nets
from basicsr.models.token_refinement import Greedy, Refined, Refinement, SeededDraws, refine_tokens
from basicsr.models.token_tiles import TokenTiles
from basicsr.utils.checkpoint import CheckpointError, load_pretrained
from basicsr.utils.nested_options import OptionsOf, nested
from basicsr.utils.options import Options
from basicsr.utils.padding import extend_symmetric
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY, OptionError, UserError

Progress = Callable[[int, int], None]
TILE, OVERLAP = 256, 32  # lq pixels, where large images need tiles: as published, whose tiles see 16 more on each side
VQGAN = 'vqgan.'  # how the names of its entries begin in a file of network_g
checked_refinement = OptionsOf(Refinement, 'refinement', tried=True)


@MODEL_REGISTRY.register()
class ITERModel(BaseModel):
    """ITER (Chen et al., AAAI 2024, arXiv:2312.05616): network_g names tokens, and the frozen VQGAN in it decodes them.

    pretrain_network_hq is the file of the VQGAN, of which published files of network_g may have no copy. One that has
    another VQGAN than that file is refused.

    Args:
        refinement: how the tokens of lq are refined, see Refinement. A network without token nets (`refine: false`)
            decodes them as they are.
        seed: of the draws: an image's own follows from it and from the image's pixels alone.
        whole_unit: extend sides that the network takes as they are too, by a whole unit, as published. The token nets
            look at all of an image, so the result without is a little another one, for less work.
        max_size: images of so many pixels squared, or more, are restored in tiles if none are asked for; 0 is never.
        consistency: add to images what their bicubic reduction lacks to be lq, colours above all; for lq that was
            reduced so.
        stages, lq_pixel_grad, net_d_init_iters: how it is trained, see TokenTraining.
    """

    loss_names = ('codebook', 'pixel', 'struct', 'perceptual', 'gan')
    tiles_itself = True
    maps = ('intermediate',)

    def __init__(
        self,
        opt: Options,
        refinement: nested(checked_refinement) | None = None,
        seed: NonNegativeInt = 0,
        whole_unit: bool = True,
        max_size: NonNegativeInt = 720,
        consistency: bool = False,
        stages: Stages = 'joint',
        lq_pixel_grad: bool = False,
        net_d_init_iters: NonNegativeInt = 0,
    ):
        entry = ARCH_REGISTRY.get(opt.networks['g']['type'])
        if not hasattr(entry, 'refine_condition'):
            raise OptionError(f'ITERModel works with ITER, not with {entry.__name__}', ('network_g', 'type'))
        if opt.is_train:
            check_training(opt, stages, lq_pixel_grad, net_d_init_iters)
        super().__init__(opt)
        net = self.nets['g']
        if net.scale != opt.scale:
            raise OptionError(f'should be the scale of the file, {opt.scale}', ('network_g', 'scale_factor'))
        self.refinement, self.seed = Refinement(**(refinement or {})), seed
        self.whole_unit, self.max_size, self.consistency = whole_unit, max_size, consistency
        if net.token_refine_net is None:
            self.maps = ()
            if refinement is not None:
                raise OptionError('network_g has no token nets (refine: false): nothing is refined', ('refinement',))
        self.iteration = 0
        self.training = TokenTraining(self, stages, lq_pixel_grad, net_d_init_iters) if opt.is_train else None

    def before_step(self, iteration: int) -> None:
        super().before_step(iteration)
        self.iteration = iteration

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        return self.training.step(batch['lq'], batch['gt'], self.iteration)

    def context(self, lq: Tensor) -> dict:
        """The seeds of the images' draws."""
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
        """Images of any size: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale) in [0, 1].

        Args:
            seeds: of each image's draws; None: those that `context` gives.
            tile, overlap, tile_batch: the networks see tiles of so many lq pixels. Their logits are blended in every
                step, so that there is one map of tokens for the whole image.
            progress: called with (steps done, steps in all), steps that an image does not need included.
        """
        return self._restored(lq, seeds, (tile, overlap, tile_batch), progress, with_maps=False)

    def restore_with_maps(
        self,
        lq: Tensor,
        seeds: Tensor | None = None,
        tile: int = 0,
        overlap: int = 0,
        tile_batch: int = 1,
        progress: Progress | None = None,
    ) -> Tensor:
        """What `restore` gives, and as further channels the image after each of the T steps, 3 for each, then T masks.

        A mask is 1 where a token was kept for the step. Before an image's first step, it is that of lq's own tokens.
        """
        if not self.maps:
            raise UserError('network_g has no token nets (refine: false), so there are no steps to show')
        return self._restored(lq, seeds, (tile, overlap, tile_batch), progress, with_maps=True)

    @torch.no_grad()
    def _restored(
        self, lq: Tensor, seeds: Tensor | None, tiling: tuple, progress: Progress | None, with_maps: bool
    ) -> Tensor:
        seeds = image_seeds(lq, self.seed) if seeds is None else seeds
        if not tiling[0] and 0 < self.max_size**2 <= lq.shape[-2] * lq.shape[-1]:
            tiling = TILE, OVERLAP, tiling[2]
        # For another size of batch, kernels round otherwise. A CPU, which gains nothing by batches, never does.
        size = 1 if lq.device.type == 'cpu' else len(lq)
        parts = [*zip(lq.split(size), seeds.split(size), strict=True)]
        restored = []
        for number, (images, own_seeds) in enumerate(parts):
            report = Report(progress, self.refinement.T + 2, number, len(parts))
            restored.append(self._together(images, own_seeds.tolist(), tiling, report, with_maps))
        return torch.cat(restored)

    def _together(
        self, lq: Tensor, seeds: list[int], tiling: tuple[int, int, int], report: 'Report', with_maps: bool
    ) -> Tensor:
        nets, size = TokenTiles(self.eval_net('g'), *tiling), [side * self.scale for side in lq.shape[-2:]]
        lq = self.extended(lq)
        logits = nets.lq_logits(lq)
        tokens, sound = logits.argmax(1), torch.isfinite(logits).flatten(1).all(1)
        del logits
        report(1)
        refined = None
        if nets.refine_condition is not None:
            how, shape = self.refinement, (self.refinement.T, *tokens.shape[1:])
            draws = Greedy() if how.sampling == 'greedy' else SeededDraws(seeds, shape, lq.device)
            with getattr(nets.net, 'constant_weights', nullcontext)():
                refined = refine_tokens(nets, tokens, how, draws, with_maps, lambda done, _: report(1 + done))
            tokens, sound = refined.tokens, sound & refined.sound
        sr = self._decoded(nets, tokens, lq)
        if with_maps:
            sr = torch.cat([sr, *self._process(nets, refined, sr, lq)], 1)
        report(self.refinement.T + 2)
        # Tokens drawn from numbers that are none make an image all the same: it must not pass for a result.
        sr = torch.where(sound.view(-1, 1, 1, 1), sr, torch.nan)
        return sr[..., : size[0], : size[1]]

    def _decoded(self, nets: TokenTiles, tokens: Tensor, lq: Tensor) -> Tensor:
        sr = nets.decode(tokens)
        return sr + lacking(sr, lq) if self.consistency else sr

    def _process(self, nets: TokenTiles, refined: Refined, sr: Tensor, lq: Tensor) -> tuple[Tensor, Tensor]:
        """The image after each step, (b, 3 * T, h, w), and the masks of what was kept for it, (b, T, h, w).

        Maps before an image's first step are equal and decoded once; the last image is `sr`.
        """
        steps = len(refined.history)
        images = []
        for number, start in enumerate(refined.starts):
            maps, own = refined.history[:, number], lq[number : number + 1]
            decoded = {steps - 1: sr[number]}
            for step in range(max(start - 1, 0), steps - 1):
                decoded[step] = self._decoded(nets, maps[step : step + 1], own)[0]
            images.append(torch.cat([decoded[min(max(step, start - 1), steps - 1)] for step in range(steps)]))
        masks = refined.masks.transpose(0, 1).to(sr.dtype)
        return torch.stack(images), nn.functional.interpolate(masks, sr.shape[-2:], mode='nearest')

    def extended(self, lq: Tensor) -> Tensor:
        """Images with the sides that the network takes."""
        unit = self.eval_net('g').size_multiple
        extended = extend_symmetric(lq, unit)
        if self.whole_unit:
            return extended
        height, width = (-(-side // unit) * unit for side in lq.shape[-2:])
        return extended[..., :height, :width]

    def _load_pretrained(self) -> None:
        source, net = self.opt.path.pretrained.get('hq'), self.nets['g']
        if source:
            load_pretrained(net.vqgan, source.model_copy(update={'strict': True}), 'params_ema')
        super()._load_pretrained()

    def _completed(self, label: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file of network_g with the VQGAN, which it or the file that pretrain_network_hq names holds."""
        if label != 'g':
            return state
        state = with_fresh_token_nets(self.opt, state, self.nets['g'])
        sources, mine = self.opt.path.pretrained, self.nets['g'].vqgan.state_dict()
        path, vqgan = sources['g'].path, sources.get('hq')
        if not any(name.startswith(VQGAN) for name in state):
            if vqgan is None:
                raise CheckpointError(f'{path}: holds no VQGAN (vqgan.*): name its file by path:pretrain_network_hq')
            return state | {VQGAN + name: value for name, value in mine.items()}
        if vqgan is not None and (difference := _difference(state, mine)):
            raise CheckpointError(f'{path} was made with another VQGAN than {vqgan.path}: {difference}')
        return state


class Report:
    """Tells how many of `steps` are done, as the one of several equal parts that `number` says."""

    def __init__(self, progress: Progress | None, steps: int, number: int, parts: int):
        self.progress, self.before, self.total = progress, number * steps, parts * steps

    def __call__(self, done: int) -> None:
        if self.progress:
            self.progress(self.before + done, self.total)


def _difference(state: dict[str, Tensor], vqgan: dict[str, Tensor]) -> str:
    """An entry of a VQGAN that is another in a file of network_g; '' if all are the same but for rounding."""
    # What is missing there, strict loading says.
    pairs = {VQGAN + name: (state[VQGAN + name], value) for name, value in vqgan.items() if VQGAN + name in state}
    for name, (there, here) in pairs.items():
        if there.shape != here.shape:
            return f'{name} is {tuple(there.shape)} instead of {tuple(here.shape)}'
    for name, (there, here) in pairs.items():
        if not torch.equal(there.to(here.dtype), here) and not torch.equal(there, here.to(there.dtype)):
            return f'{name} differs by up to {(there.float() - here.float()).abs().max():.3g}'
    return ''
