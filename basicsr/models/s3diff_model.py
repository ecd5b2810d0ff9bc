"""S3Diff: one step of SD-Turbo from the enlarged lq, led by two prompts, its weights made for how degraded lq is."""

import logging
from contextlib import nullcontext
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from basicsr.models.base_model import BaseModel
from basicsr.models.image_seeds import image_seeds
from basicsr.models.latent_tiles import guided, passes
from basicsr.models.prompts import NEGATIVE, POSITIVE, Prompts, prompts_of, read_prompts
from basicsr.models.s3diff_training import GeneratorSteps, S3DiffTraining, check_training
from basicsr.utils.checkpoint import CheckpointError, read_checkpoint
from basicsr.utils.color_fix import ColorFix, fix_color
from basicsr.utils.optional import optional
from basicsr.utils.options import Options
from basicsr.utils.padding import extend_reflect
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY, OptionError, UserError
from basicsr.utils.sd_folder import check_config, sd_folder, weights_file

logger = logging.getLogger(__name__)
Upsample = Literal['bilinear', 'bicubic']
Merge = Literal['auto', 'never', 'always']
MERGED_FROM = 4  # calls of the UNet with the weights of one image
ENCODER_UNIT = 32  # pixels: of other tiles of the encoder, the boxes would end between two latents


class OneStep(NamedTuple):
    """What the network makes of images on the way: moments, z, eps and x0 are latents, decoded is about [-1, 1]."""

    moments: Tensor
    z: Tensor
    eps: Tensor
    x0: Tensor
    decoded: Tensor


@MODEL_REGISTRY.register()
class S3DiffModel(BaseModel):
    """S3Diff (Zhang et al., arXiv:2409.17058): network_g restores the enlarged lq, network_de says how degraded lq is.

    network_de is never trained. Files of network_g have what S3Diff adds to SD-Turbo, whose own weights sd_path names.
    Tiles of latents and of the autoencoder are as published; Restorer's tiles need less memory, and see less of the
    image.

    Args:
        sd_path: SD-Turbo: a folder in diffusers' layout, or a name on the hub such as stabilityai/sd-turbo, which is
            downloaded once its licence is accepted. Without, its weights are random.
        prompt_embeddings: a file that scripts/encode_prompts.py wrote: no text encoder is needed then.
        positive_prompt, negative_prompt: what the image should look like, and what not.
        guidance_scale: how far to lead away from the negative prompt; 1 leaves it out, for half of the UNet's work.
        sample_posterior: draw the latent of lq, as published; false takes its mean.
        seed: of these draws: an image's own follows from it and from the image's pixels alone.
        upsample: how lq is enlarged: 'bilinear' as published for restoring, 'bicubic' as published for training.
        color_fix, color_strength: see fix_color; the colours are those of the enlarged lq.
        latent_tile, latent_overlap: of the tiles that the UNet sees of large latents; latent_tile_batch: at once.
        vae_encoder_tile, vae_decoder_tile: pixels and latents; larger images are encoded and decoded in tiles; 0 never.
        vae_statistics: see encode_tiled.
        merge: whether what the image's degradation adds to the UNet's weights is added up once for all of its tiles and
            both prompts: the same but for rounding. 'auto' does it for MERGED_FROM of them, but not on a CPU; 'always'
            takes images one by one.
        neg_prob, generator_steps, gradient_checkpointing: how it is trained, see S3DiffTraining.
    """

    loss_names = ('pixel', 'perceptual', 'gan')
    averaged = ()

    def __init__(
        self,
        opt: Options,
        sd_path: str | None = None,
        prompt_embeddings: str | None = None,
        positive_prompt: str = POSITIVE,
        negative_prompt: str = NEGATIVE,
        guidance_scale: float = 1.07,
        sample_posterior: bool = True,
        seed: NonNegativeInt = 0,
        upsample: Upsample = 'bilinear',
        color_fix: ColorFix = 'wavelet',
        color_strength: Annotated[float, Field(ge=0, le=1)] = 1.0,
        latent_tile: PositiveInt = 96,
        latent_overlap: NonNegativeInt = 32,
        latent_tile_batch: PositiveInt = 1,
        vae_encoder_tile: NonNegativeInt = 1024,
        vae_decoder_tile: NonNegativeInt = 224,
        vae_statistics: Literal['published', 'pooled'] = 'published',
        merge: Merge = 'auto',
        neg_prob: float = 0.05,
        generator_steps: GeneratorSteps = 'two',
        gradient_checkpointing: bool = False,
    ):
        if 'de' not in opt.networks:
            raise OptionError("section 'network_de' is missing: DEResNet")
        entry = ARCH_REGISTRY.get(opt.networks['g']['type'])
        if not hasattr(entry, 'modulation'):
            raise OptionError(f'S3DiffModel works with S3Diff, not with {entry.__name__}', ('network_g', 'type'))
        if latent_overlap >= latent_tile:
            raise OptionError(f'should be less than latent_tile, {latent_tile}', ('latent_overlap',))
        if vae_encoder_tile % ENCODER_UNIT:
            raise OptionError(f'should be a multiple of {ENCODER_UNIT}, got {vae_encoder_tile}', ('vae_encoder_tile',))
        if sd_path is None and prompt_embeddings is None:
            raise OptionError(
                "prompts need sd_path, or prompt_embeddings: name SD-Turbo's folder or stabilityai/sd-turbo by "
                'model:sd_path (on the command line: --force_yml model:sd_path=...)',
                ('sd_path',),
            )
        if opt.is_train:
            check_training(opt, neg_prob)
        self.texts, self.prompt_embeddings = (positive_prompt, negative_prompt), prompt_embeddings
        self.folder = None
        if sd_path is not None:
            self.folder = sd_folder(sd_path, needed_parts(prompt_embeddings))
        super().__init__(opt)
        self.unsaved = ('de',) if 'de' in opt.path.pretrained else ()  # a random one is nowhere else
        self.embeddings = self._embeddings()
        self.guidance, self.sample_posterior, self.seed = guidance_scale, sample_posterior, seed
        self.upsample, self.color_fix, self.color_strength = upsample, color_fix, color_strength
        self.latent_tiles = {'tile': latent_tile, 'overlap': latent_overlap, 'batch': latent_tile_batch}
        self.encoder_tile, self.decoder_tile, self.statistics = vae_encoder_tile, vae_decoder_tile, vae_statistics
        self.merge = merge
        self.training = None
        if opt.is_train:
            self.training = S3DiffTraining(self, neg_prob, generator_steps, gradient_checkpointing)

    @classmethod
    def check_needs(cls, opt: Options, offline: bool | None) -> None:
        optional('diffusers', 's3diff')
        if sd_path := opt.model.get('sd_path'):
            sd_folder(sd_path, needed_parts(opt.model.get('prompt_embeddings')), offline)

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        return self.training.step(batch)

    @property
    def prompts(self) -> Prompts:
        """The embeddings of the two prompts on the device, each (1, tokens, channels)."""
        if self.embeddings.positive.device != self.device:
            self.embeddings = Prompts(*(one.to(self.device) for one in self.embeddings))
        return self.embeddings

    @torch.no_grad()
    def scores(self, lq: Tensor) -> Tensor:
        """How blurred and how noisy images are: (b, 3, h, w) in [0, 1] -> (b, 2)."""
        net = self.eval_net('de')
        parts = lq.to(next(net.parameters()).dtype).split(together(lq))
        return torch.cat([net(part) for part in parts]).float()

    def enlarged(self, lq: Tensor) -> Tensor:
        """lq as network_g is given it, but in [0, 1]: (b, 3, h, w) -> (b, 3, h * scale, w * scale)."""
        return enlarge(lq, self.scale, self.upsample)

    def context(self, lq: Tensor) -> dict[str, Tensor]:
        return {'score': self.scores(lq), 'seeds': image_seeds(lq, self.seed)}

    @torch.no_grad()
    def restore(self, lq: Tensor, score: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
        """Images of any size: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clamped.

        Args:
            score, seeds: of each image; None: those that `context` gives.
        """
        score = self.scores(lq) if score is None else score
        seeds = image_seeds(lq, self.seed) if seeds is None else seeds
        parts = zip(*(one.split(self._together(lq)) for one in (lq, score, seeds)), strict=True)
        return torch.cat([self._restored(*part) for part in parts])

    def _restored(self, lq: Tensor, score: Tensor, seeds: Tensor) -> Tensor:
        up = self.enlarged(lq)
        x = padded(up, self.bare('g').size_multiple)
        sr = self.one_step(x, score, self.noise(x, seeds)).decoded.clamp(-1, 1)
        return fix_color((sr[..., : up.shape[-2], : up.shape[-1]] + 1) / 2, up, self.color_fix, self.color_strength)

    def noise(self, x: Tensor, seeds: Tensor) -> Tensor | None:
        """The draws that latents of images (b, 3, h, w) are made with; None for their means."""
        if not self.sample_posterior:
            return None
        net = self.bare('g')
        shape = net.vae.config.latent_channels, *(side // net.downscale for side in x.shape[-2:])
        # Drawn on the CPU, whose numbers are the same on each machine.
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
        return torch.stack(draws).to(x.device)

    def one_step(self, x: Tensor, score: Tensor, noise: Tensor | None) -> OneStep:
        """network_g with both prompts, in tiles where x (b, 3, h, w) in [-1, 1] is large."""
        net = self.eval_net('g')
        with net.modulated(net.modulation(score)):
            moments = net.encode(x, self.encoder_tile, self.statistics)
            z = net.latent(moments, noise)
            with net.merged() if self._merges(z) else nullcontext():
                eps = guided(net.denoise, z, self.prompts, self.guidance, **self.latent_tiles)
            x0 = net.clean(z, eps)
            return OneStep(moments, z, eps, x0, net.decode(x0, self.decoder_tile, self.statistics))

    def _merges(self, z: Tensor) -> bool:
        """Whether to merge for latents (n, 4, h, w); those of several images cannot share weights."""
        if len(z) > 1 or self.merge == 'never':
            return False
        tile, overlap = self.latent_tiles['tile'], self.latent_tiles['overlap']
        often = passes(z, self.guidance, tile, overlap) >= MERGED_FROM
        # On a CPU layers merge in each call where that repays, see FastLayer; merging all once took the time that 3
        # tiles of float32 save, and 15 of bfloat16, and the memory of the weights.
        return self.merge == 'always' or (often and z.device.type != 'cpu')

    def _together(self, lq: Tensor) -> int:
        """How many images of a batch are restored at once."""
        return 1 if self.merge == 'always' else together(lq)

    def _embeddings(self) -> Prompts:
        """Of the two prompts, from their file or by SD-Turbo's text encoder, which is not kept."""
        if self.prompt_embeddings:
            prompts, source = read_prompts(self.prompt_embeddings, *self.texts), self.prompt_embeddings
        else:
            prompts, source = prompts_of(self.folder, *self.texts), self.folder / 'text_encoder'
        channels, wanted = prompts.positive.shape[-1], self.nets['g'].unet.config.cross_attention_dim
        if channels != wanted:
            raise UserError(f'{source}: embeddings of {channels} channels, network_g: unet takes {wanted}')
        return prompts

    def _load_pretrained(self) -> None:
        """SD-Turbo's own weights, then those of the files, which hold another conv_in."""
        net = self.nets['g']
        if self.folder is None:
            logger.warning('no sd_path: what network_g has of SD-Turbo is random')
        for part in ('unet', 'vae') if self.folder else ():
            check_config(self.folder, part, net.get_submodule(part), f'network_g: {part}')
            file = weights_file(self.folder, part)
            try:
                net.load_base(part, read_checkpoint(file))
            except CheckpointError:
                raise
            except ValueError as error:
                raise CheckpointError(f'{file}: {error}') from None
        super()._load_pretrained()


def needed_parts(prompt_embeddings: str | None) -> tuple[str, ...]:
    """The parts of SD-Turbo that are read; no text encoder where there are embeddings."""
    return ('unet', 'vae') if prompt_embeddings else ('unet', 'vae', 'text_encoder', 'tokenizer')


def together(lq: Tensor) -> int:
    """How many images of a batch are computed at once.

    For another size of batch, kernels round otherwise. A CPU, which gains nothing by batches, never does.
    """
    return 1 if lq.device.type == 'cpu' else len(lq)


def enlarge(lq: Tensor, scale: int, upsample: Upsample) -> Tensor:
    """lq (b, c, h, w) `scale` times as large, with pixels that are squares, and in [0, 1]."""
    size = [side * scale for side in lq.shape[-2:]]
    return F.interpolate(lq.float(), size, mode=upsample, align_corners=False).clamp(0, 1)


def padded(up: Tensor, unit: int) -> Tensor:
    """An image of [0, 1] in [-1, 1], mirrored at the bottom and the right to sides that are multiples of `unit`."""
    return extend_reflect((2 * up - 1).clamp(-1, 1), unit)
