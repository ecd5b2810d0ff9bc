"""S3Diff: one-step super-resolution with SD-Turbo (Zhang et al., arXiv:2409.17058).

Attribute names are those of the published code's module tree (ArcticHare105/S3Diff).
"""

import inspect
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange, repeat
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks import s3diff_file
from basicsr.archs.blocks.attention import exact_type, without_autocast
from basicsr.archs.blocks.fast_sd import merged, speed_up
from basicsr.archs.blocks.lora import LoRALayer, Projections, fold, inject
from basicsr.archs.blocks.tiled_vae import Statistics, decode_tiled, encode_tiled
from basicsr.utils.optional import optional
from basicsr.utils.registry import ARCH_REGISTRY, OptionError, reject_unknown

SD_TURBO_UNET = {
    'sample_size': 64,
    'in_channels': 4,
    'out_channels': 4,
    'down_block_types': ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
    'block_out_channels': [320, 640, 1280, 1280],
    'layers_per_block': 2,
    'cross_attention_dim': 1024,
    'attention_head_dim': [5, 10, 20, 20],  # numbers of heads, in spite of the name
    'use_linear_projection': True,
}
SD_TURBO_VAE = {
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [128, 256, 512, 512],
    'layers_per_block': 2,
    'sample_size': 768,
    'scaling_factor': 0.18215,
}
RANK_UNET, RANK_VAE = 32, 16  # of the published file
FREQUENCIES, HIDDEN = 64, 256  # of the Fourier features; of the layers that see them
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}  # of old files' VAE attention
BLOCK = re.compile(r'\.(resnets|attentions)\.\d+$')  # names of the parts that networks of diffusers consist of
STEP = 999  # the noisiest of the 1000 steps, and the only one that is made


class Modulation(NamedTuple):
    """The core matrices of the LoRA layers, for each of n images: vae (n, 6, r, r), unet (n, 10, r, r)."""

    vae: Tensor
    unet: Tensor


def cumulative_alphas(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """abar of each step in float32, for betas whose roots are equally spaced from those of start to end."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32, device='cpu').square()
    return (1 - betas).cumprod(0)


def clean_latent(z: Tensor, eps: Tensor, abar: float) -> Tensor:
    """What is left of z without the noise eps that it holds at a step of this abar."""
    return (z - math.sqrt(1 - abar) * eps) / math.sqrt(abar)


def fourier_features(score: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines of the scores (n, k) at f frequencies, score by score: (n, 2 * k * f)."""
    angles = score[:, :, None] * frequencies * 2 * math.pi
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


@ARCH_REGISTRY.register()
class S3Diff(nn.Module):
    """SD-Turbo's autoencoder and UNet, whose LoRA layers depend on how degraded the image is, and one step of it.

    Args:
        unet, vae: options of diffusers' UNet2DConditionModel and AutoencoderKL; SD-Turbo's where there are none.
        rank_unet, rank_vae: of the LoRA matrices; those of the file that is loaded, at first 32 and 16, where there
            are none.
        block_embedding_dim: length of what is learned of each block.
    Shape: x (n, 3, h, w) in [-1, 1], the enlarged lq, sides multiples of `size_multiple`; score (n, 2) in [0, 1];
        prompt (1 or n, tokens, channels); noise (n, 4, h / 8, w / 8) of N(0, 1), or None for the mean ->
        (n, 3, h, w) in [-1, 1].
    SD-Turbo's own weights are drawn at random, until `load_base` is given them, and frozen but for the UNet's conv_in.
    """

    def __init__(
        self,
        unet: dict | None = None,
        vae: dict | None = None,
        rank_unet: PositiveInt | None = None,
        rank_vae: PositiveInt | None = None,
        block_embedding_dim: PositiveInt = 64,
    ):
        super().__init__()
        self.given_ranks = {'unet': rank_unet, 'vae': rank_vae}
        ranks = {'unet': rank_unet or RANK_UNET, 'vae': rank_vae or RANK_VAE}
        self.W = nn.Parameter(torch.randn(FREQUENCIES), requires_grad=False)
        for part in ('vae', 'unet'):
            self.add_module(f'{part}_de_mlp', nn.Sequential(nn.Linear(4 * FREQUENCIES, HIDDEN), nn.ReLU()))
        for part in ('vae', 'unet'):
            self.add_module(f'{part}_block_mlp', nn.Sequential(nn.Linear(block_embedding_dim, 64), nn.ReLU()))
        for part in ('vae', 'unet'):
            self.add_module(f'{part}_fuse_mlp', nn.Linear(HIDDEN + 64, ranks[part] ** 2))
        self.vae_block_embeddings = nn.Embedding(s3diff_file.VAE_ROWS, block_embedding_dim)
        self.unet_block_embeddings = nn.Embedding(s3diff_file.UNET_ROWS, block_embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _start_small(module)
        self.unet = _diffusers('UNet2DConditionModel', unet or SD_TURBO_UNET, 'unet')
        self.vae = _diffusers('AutoencoderKL', vae or SD_TURBO_VAE, 'vae')
        self.unet.conv_in.requires_grad_(True)
        self.downscale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.size_multiple = self.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.abar = cumulative_alphas()[STEP].item()
        self.projections = Projections()
        of_vae = s3diff_file.is_vae_target, s3diff_file.vae_row, ranks['vae'], 'vae_skip', self.projections
        of_unet = s3diff_file.is_unet_target, s3diff_file.unet_row, ranks['unet'], 'default', self.projections
        self.vae_layers: list[LoRALayer] = inject(self.vae, *of_vae)
        self.unet_layers: list[LoRALayer] = inject(self.unet, *of_unet, start=len(self.vae_layers))
        for net in (self.unet, self.vae):
            speed_up(net)

    def train(self, mode: bool = True) -> 'S3Diff':
        """As any module's. Optimizers know the LoRA matrices from then on: files of other ranks are refused."""
        self.given_ranks = self.ranks if mode else self.given_ranks
        return super().train(mode)

    def forward(self, x: Tensor, score: Tensor, prompt: Tensor, noise: Tensor | None) -> Tensor:
        with self.modulated(self.modulation(score)):
            z = self.latent(self.encode(x), noise)
            return self.decode(self.clean(z, self.denoise(z, prompt))).clamp(-1, 1)

    def modulation(self, score: Tensor) -> Modulation:
        """The matrices of images with these scores (n, 2), in float32 at least."""
        dtype = exact_type(self.W.dtype)
        with without_autocast(score.device):
            features = fourier_features(score.to(dtype), self.W.to(dtype))
            return Modulation(self._matrices('vae', features), self._matrices('unet', features))

    def _matrices(self, part: str, features: Tensor) -> Tensor:
        degradation, block = self.get_submodule(f'{part}_de_mlp.0'), self.get_submodule(f'{part}_block_mlp.0')
        table = self.get_submodule(f'{part}_block_embeddings').weight.to(features.dtype)
        of_image, of_block = exact_linear(degradation, features).relu(), exact_linear(block, table).relu()
        both = torch.cat(
            [repeat(of_image, 'n c -> n k c', k=len(table)), repeat(of_block, 'k c -> n k c', n=len(features))], 2
        )
        return rearrange(
            exact_linear(self.get_submodule(f'{part}_fuse_mlp'), both), 'n k (i j) -> n k i j', i=self.ranks[part]
        )

    @property
    def ranks(self) -> dict[str, int]:
        """The ranks of the LoRA matrices by the part that has them."""
        return {part: math.isqrt(self.get_submodule(f'{part}_fuse_mlp').out_features) for part in ('unet', 'vae')}

    def modulated(self, modulation: Modulation) -> AbstractContextManager[None]:
        """A context in which the LoRA layers add what these matrices say; made anew after the weights have changed."""
        vae, unet = modulation
        with without_autocast(vae.device):
            return self.projections.using([*fold(self.vae_layers, vae), *fold(self.unet_layers, unet)])

    def merged(self) -> AbstractContextManager[None]:
        """A context, in `modulated` of one image, in which the UNet's weights hold what is added: for many calls."""
        return merged(self.unet_layers)

    def encode(self, x: Tensor, tile: int = 0, statistics: Statistics = 'published') -> Tensor:
        """The moments of the latent of x, mean and logarithm of the variance: (n, 8, h / 8, w / 8); in `modulated`.

        Images larger than a tile of so many pixels are encoded in such, see encode_tiled.
        """
        vae = self.vae
        x = x.to(vae.quant_conv.weight.dtype)
        return _exact(vae.quant_conv(encode_tiled(vae.encoder, x, tile, statistics)))

    def latent(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """The latent that the noise picks, or the mean: (n, 4, h / 8, w / 8), as the UNet takes it."""
        mean, log_variance = moments.chunk(2, 1)
        if noise is not None:
            mean = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        return mean * self.vae.config.scaling_factor

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        """The noise that the UNet sees in z; in `modulated`. z may be several times the images, see LoRALayer."""
        dtype = self.unet.conv_in.weight.dtype
        step = torch.full((1,), STEP, device=z.device)
        prompt = prompt.to(dtype).expand(len(z), -1, -1)
        return _exact(self.unet(z.to(dtype), step, encoder_hidden_states=prompt, return_dict=False)[0])

    def clean(self, z: Tensor, eps: Tensor) -> Tensor:
        """The latent without its noise; an error of eps becomes 14.6 times as large."""
        return clean_latent(z, eps, self.abar)

    def decode(self, x0: Tensor, tile: int = 0, statistics: Statistics = 'published') -> Tensor:
        """(n, 4, h, w) -> (n, 3, h * 8, w * 8) about [-1, 1], not clamped; large ones in tiles of so many latents."""
        vae = self.vae
        x0 = (x0 / vae.config.scaling_factor).to(vae.post_quant_conv.weight.dtype)
        return _exact(decode_tiled(vae.decoder, vae.post_quant_conv(x0), tile, statistics))

    def gradient_checkpointing(self, on: bool) -> None:
        """Whether the backward pass computes the blocks of the UNet and of the autoencoder again to save memory."""
        for net in (self.unet, self.vae):
            if on:
                net.enable_gradient_checkpointing(self.projections.checkpointed)
            else:
                net.disable_gradient_checkpointing()

    def frozen_blocks(self) -> list[nn.Module]:
        """The parts that hold nearly all of SD-Turbo's weights and work one after another."""
        return [module for name, module in self.named_modules() if BLOCK.search(name)]

    def own_names(self) -> set[str]:
        """The entries that are not SD-Turbo's, which checkpoints keep: what is trained, and W."""
        return {name for name in self.state_dict() if s3diff_file.is_own(name)}

    def set_ranks(self, unet: int, vae: int) -> None:
        """Fresh LoRA matrices, of other ranks; before optimizers know the old ones."""
        for part, rank, layers in (('unet', unet, self.unet_layers), ('vae', vae, self.vae_layers)):
            if rank == self.ranks[part]:
                continue
            for layer in layers:
                layer.set_rank(rank)
            fuse = self.get_submodule(f'{part}_fuse_mlp')
            fresh = nn.Linear(fuse.in_features, rank**2, device=fuse.weight.device, dtype=fuse.weight.dtype)
            self.add_module(f'{part}_fuse_mlp', _start_small(fresh))

    def load_base(self, part: Literal['unet', 'vae'], state: Mapping[str, Tensor]) -> None:
        """Take SD-Turbo's weights of a part, by diffusers' names; before the file that has the trained conv_in.

        The tensors become the network's own where their type and device are, but for conv_in.
        Raises ValueError with the first names that are missing, unexpected or of another shape.
        """
        net = self.get_submodule(part)
        adapted = {name for name, module in net.named_modules() if isinstance(module, LoRALayer)}
        entries = {_name_in_base(name, adapted): value for name, value in state.items()}
        mine = {name: value for name, value in net.state_dict().items() if '.lora_' not in name}
        faults = {
            'missing': mine.keys() - entries.keys(),
            'unexpected': entries.keys() - mine.keys(),
            'of another shape': {k for k in mine.keys() & entries.keys() if mine[k].shape != entries[k].shape},
        }
        if any(faults.values()):
            shown = {what: sorted(name.replace('.base_layer.', '.') for name in f) for what, f in faults.items() if f}
            listed = '; '.join(f'{len(names)} {what}: {", ".join(names[:10])}' for what, names in shown.items())
            raise ValueError(f'this is not the {part} of this configuration: {listed}')
        for name, value in entries.items():
            entries[name] = value.to(mine[name]) if mine[name].device.type != 'meta' else value.to(mine[name].dtype)
            if name.startswith('conv_in.'):  # it is trained
                entries[name] = entries[name].clone()
        net.load_state_dict(entries, strict=False, assign=True)

    def from_published(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """The entries of s3diff.pkl, or of a file of ours, by our names; LoRA matrices of its ranks are made for them.

        Raises ValueError for another file, and for one of other ranks than those that the network was asked to have.
        """
        flat = s3diff_file.flattened(state) if s3diff_file.is_published(state) else dict(state)
        ranks = s3diff_file.ranks_of(flat)
        for part, rank in self.given_ranks.items():
            if rank not in (None, ranks[part]):
                raise ValueError(f'rank_{part} is {ranks[part]} in the file and {rank} here; leave it out to take any')
        self.set_ranks(**ranks)
        return flat

    @staticmethod
    def is_published(content: Mapping) -> bool:
        """Whether this is the content of an s3diff.pkl, which from_published reads as a whole."""
        return s3diff_file.is_published(content)

    @staticmethod
    def to_published(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The inverse, for torch.save: the content of an s3diff.pkl."""
        return s3diff_file.nested(state)


def exact_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the type of x, in which more digits may be than in its weights."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _exact(x: Tensor) -> Tensor:
    return x.to(exact_type(x.dtype))


def _start_small(layer: nn.Linear) -> nn.Linear:
    """Kaiming's normal times 1e-5, so that training starts with matrices of almost nothing."""
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(1e-5)
    return layer


def _name_in_base(name: str, adapted: set[str]) -> str:
    """An entry of SD-Turbo's files as it is called inside an adapted network."""
    for old, new in OLD_NAMES.items():
        name = re.sub(rf'(\.attentions\.\d+)\.{old}\.', rf'\1.{new}.', name)
    module, _, leaf = name.rpartition('.')
    return f'{module}.base_layer.{leaf}' if module in adapted else name


def _diffusers(kind: str, section: dict, option: str) -> nn.Module:
    """A frozen network of diffusers. Raises OptionError for options that it does not have or that do not fit."""
    entry = getattr(optional('diffusers', 's3diff'), kind)
    options = {name: value for name, value in section.items() if not name.startswith('_')}  # of a config.json
    try:
        reject_unknown(options, inspect.signature(entry.__init__).parameters.keys() - {'self'}, f'option of {kind}')
        levels = len(options['block_out_channels']) if 'block_out_channels' in options else 0
        if levels > s3diff_file.LEVELS:
            raise OptionError(
                f'S3Diff has matrices for {s3diff_file.LEVELS} levels, got {levels}', ('block_out_channels',)
            )
        return entry(**options).requires_grad_(False)
    except OptionError as error:
        raise OptionError(str(error), (option, *error.key)) from None
    except (ValueError, TypeError) as error:
        raise OptionError(f'{kind}: {str(error).splitlines()[0]}', (option,)) from None
