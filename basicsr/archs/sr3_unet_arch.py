"""UNets that name the noise in an image: SR3's (Saharia et al., arXiv:2104.07636), which is told the level of noise,
and DDPM's (Ho et al., arXiv:2006.11239), which is told the number of the step. Attribute names are those of the
published checkpoints (Janspiry/Image-Super-Resolution-via-Iterative-Refinement), without their `denoise_fn.`.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.attention import exact_type
from basicsr.archs.blocks.packing import packed_weights
from basicsr.archs.blocks.unet import EnlargingConv, SpatialAttention, fast_order, norm_silu
from basicsr.utils.registry import ARCH_REGISTRY

NETWORK = 'denoise_fn.'  # of published names: the rest of the file are tables of the noise schedule
TABLES = (
    'betas',
    'alphas_cumprod',
    'alphas_cumprod_prev',
    'sqrt_alphas_cumprod',
    'sqrt_one_minus_alphas_cumprod',
    'log_one_minus_alphas_cumprod',
    'sqrt_recip_alphas_cumprod',
    'sqrt_recipm1_alphas_cumprod',
    'posterior_variance',
    'posterior_log_variance_clipped',
    'posterior_mean_coef1',
    'posterior_mean_coef2',
)


class NoiseUNet(nn.Module):
    """What SR3UNet and DDPMUNet share; their docstrings describe it."""

    takes_steps: bool
    embedding_name: str  # of the layers that make the embedding

    def __init__(
        self,
        in_channel: int,
        out_channel: int | None,
        inner_channel: int,
        norm_groups: int | None,
        channel_mults: tuple[int, ...],
        attn_res: tuple[int, ...],
        res_blocks: int,
        dropout: float,
        image_size: int,
    ):
        super().__init__()
        groups = 32 if norm_groups is None else norm_groups
        if min(in_channel, inner_channel, groups, res_blocks, image_size, len(channel_mults), *channel_mults) < 1:
            raise ValueError('channels, groups, channel_mults, res_blocks and image_size are 1 or more')
        if inner_channel % 2:
            raise ValueError(f'inner_channel must be even, got {inner_channel}')
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout must be at least 0 and below 1, got {dropout}')
        plan = unet_plan(inner_channel, channel_mults, res_blocks, attn_res, image_size)
        check_plan(plan, groups, attn_res, image_size)
        self.size_multiple = 2 ** (len(channel_mults) - 1)

        def layer(part: Part) -> nn.Module:
            if part.kind == 'unit':
                return Unit(part, inner_channel, groups, dropout, self.takes_steps)
            return Downsample(part.out) if part.kind == 'down' else EnlargingConv(part.out)

        self.add_module(self.embedding_name, Embedding(inner_channel, self.takes_steps))
        first = nn.Conv2d(in_channel, inner_channel, 3, padding=1)
        self.downs = nn.ModuleList([first, *map(layer, plan['downs'])])
        self.mid = nn.ModuleList(map(layer, plan['mid']))
        self.ups = nn.ModuleList(map(layer, plan['ups']))
        self.final_conv = Block(plan['ups'][-1].out, out_channel or in_channel, groups)
        self.apply(initialise_orthogonal)

    @classmethod
    def from_published(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network of a published `*_gen.pth`: names without `denoise_fn.`, no tables of the schedule.

        Other states are returned as they are. Raises ValueError if it is the other kind of network.
        """
        names = {name.removeprefix(NETWORK): value for name, value in state.items() if name not in TABLES}
        for kind in (SR3UNet, DDPMUNet):
            if kind is not cls and f'{kind.embedding_name}.1.weight' in names:
                raise ValueError(f'it holds a {kind.__name__}, network_g is a {cls.__name__}')
        return names

    def constant_weights(self) -> AbstractContextManager[None]:
        """A context for many calls between which no weight changes, as a sampler's: see packed_weights."""
        compiled = self._compiled_call_impl is not None  # then torch.compile has the say
        return nullcontext() if compiled else packed_weights(self)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if h % self.size_multiple or w % self.size_multiple:
            raise ValueError(f'sides must be multiples of {self.size_multiple}, got {h}x{w}')
        level = level.flatten()
        if len(level) > 1 and level.stride(0) == 0:
            level = level[:1]  # one for all: what follows from it is computed once
        embedding = self.get_submodule(self.embedding_name)(level)
        x, skips = fast_order(x), []
        for layer in self.downs:
            x = layer(x, embedding) if isinstance(layer, Unit) else fast_order(layer(x))
            skips.append(x)
        for layer in self.mid:
            x = layer(x, embedding)
        for layer in self.ups:
            x = layer(torch.cat([x, skips.pop()], 1), embedding) if isinstance(layer, Unit) else layer(x)
        return self.final_conv(x)


@ARCH_REGISTRY.register()
class SR3UNet(NoiseUNet):
    """Names the noise in an image, of which it is told the level.

    Nothing in a checkpoint tells `norm_groups` (and `dropout`): with a wrong one a file loads without complaint, and
    what is sampled is noise. Published are 16 for 64 -> 512 pixels, 32 for all others.

    Args:
        in_channel: 6 if x is the enlarged lq and the noisy image, 3 if it is the noisy image alone.
        out_channel: of the noise; null: in_channel.
        inner_channel: features at full size, even; channel_mults: times that on each level, large to small.
        norm_groups: of all group normalisations, see above; null: 32. It must divide every width that is normalised.
        attn_res: the resolutions of levels that have attention, when the image has image_size; the middle always has.
        res_blocks: on each level on the way down; one more on the way up.
        dropout: probability, in front of the second convolution of each block.
        image_size: only places attention; an odd level is halved downwards and doubled again on the way up, so that
            attn_res 7 of image_size 28 with four levels means the way down alone.
    Shape: x (b, in_channel, h, w) in [-1, 1], h and w multiples of `size_multiple` = 2^(levels - 1); level (b,) or
        (b, 1), sqrt(abar), the image's part in the mixture, in [0, 1] -> (b, out_channel, h, w).
    """

    takes_steps = False
    embedding_name = 'noise_level_mlp'

    def __init__(
        self,
        in_channel: int = 6,
        out_channel: int | None = 3,
        inner_channel: int = 32,
        norm_groups: int | None = 32,
        channel_mults: tuple[int, ...] = (1, 2, 4, 8, 8),
        attn_res: tuple[int, ...] = (8,),
        res_blocks: int = 3,
        dropout: float = 0,
        image_size: int = 128,
    ):
        channels = in_channel, out_channel, inner_channel, norm_groups, channel_mults
        super().__init__(*channels, attn_res, res_blocks, dropout, image_size)


@ARCH_REGISTRY.register()
class DDPMUNet(NoiseUNet):
    """Names the noise in an image, of which it is told the number of the step; arguments and traps are SR3UNet's.

    Shape: x (b, in_channel, h, w) in [-1, 1], h and w multiples of `size_multiple`; step (b,) or (b, 1), 0 to T - 1
        -> (b, out_channel, h, w).
    """

    takes_steps = True
    embedding_name = 'time_mlp'

    def __init__(
        self,
        in_channel: int = 6,
        out_channel: int | None = 3,
        inner_channel: int = 32,
        norm_groups: int | None = 32,
        channel_mults: tuple[int, ...] = (1, 2, 4, 8, 8),
        attn_res: tuple[int, ...] = (8,),
        res_blocks: int = 3,
        dropout: float = 0,
        image_size: int = 128,
    ):
        channels = in_channel, out_channel, inner_channel, norm_groups, channel_mults
        super().__init__(*channels, attn_res, res_blocks, dropout, image_size)


# ---- layout


@dataclass(frozen=True)
class Part:
    """A layer of the UNet: 'unit', 'down' or 'up', its widths, and for what resolution it is meant."""

    kind: str
    inputs: int
    out: int
    resolution: int
    attends: bool = False


def unet_plan(
    width: int, mults: tuple[int, ...], res_blocks: int, attn_res: tuple[int, ...], image_size: int
) -> dict[str, list[Part]]:
    """The layers after the first convolution, in the lists and the order of the published names."""
    downs, ups, skips, current, resolution = [], [], [width], width, image_size
    for level, mult in enumerate(mults):
        for _ in range(res_blocks):
            downs.append(Part('unit', current, width * mult, resolution, resolution in attn_res))
            current = width * mult
            skips.append(current)
        if level < len(mults) - 1:
            downs.append(Part('down', current, current, resolution))
            skips.append(current)
            resolution //= 2
    mid = [Part('unit', current, current, resolution, attends) for attends in (True, False)]
    for level, mult in reversed(list(enumerate(mults))):
        for _ in range(res_blocks + 1):
            ups.append(Part('unit', current + skips.pop(), width * mult, resolution, resolution in attn_res))
            current = width * mult
        if level > 0:
            ups.append(Part('up', current, current, resolution))
            resolution *= 2  # not always what it was on the way down
    return {'downs': downs, 'mid': mid, 'ups': ups}


def check_plan(plan: dict[str, list[Part]], groups: int, attn_res: tuple[int, ...], image_size: int) -> None:
    """Raise ValueError for widths that the groups do not divide, and for attention that would be nowhere."""
    units = [part for parts in plan.values() for part in parts if part.kind == 'unit']
    for unit in units:
        for width in (unit.inputs, unit.out):
            if width % groups:
                raise ValueError(f'norm_groups {groups} does not divide {width}, the width of a layer')
    resolutions = {unit.resolution for unit in units}
    for resolution in attn_res:
        if resolution not in resolutions:
            known = ', '.join(map(str, sorted(resolutions, reverse=True)))
            raise ValueError(f'attn_res {resolution} is no level of image_size {image_size}, which has {known}')


# ---- parts


class Embedding(nn.Sequential):
    """What the blocks are told of a level or a step: (b,) -> (b, dim)."""

    def __init__(self, dim: int, takes_steps: bool):
        code = StepCode(dim) if takes_steps else LevelCode(dim)
        super().__init__(code, nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, level: Tensor) -> Tensor:
        code, widen, activation, narrow = self
        return narrow(activation(widen(code(level).to(widen.weight.dtype))))


class LevelCode(nn.Module):
    """Sines and cosines of a level at falling frequencies: (b,) -> (b, dim), all sines first, in float32 at least."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, level: Tensor) -> Tensor:
        count = self.dim // 2
        level = level.to(exact_type(level.dtype))
        steps = torch.arange(count, dtype=level.dtype, device=level.device) / count
        angles = level[:, None] * torch.exp(-math.log(1e4) * steps)
        return torch.cat([angles.sin(), angles.cos()], 1)


class StepCode(nn.Module):
    """LevelCode of the number of a step, whose frequencies are stored."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer('inv_freq', torch.exp(torch.arange(0, dim, 2) * (-math.log(1e4) / dim)))

    def forward(self, step: Tensor) -> Tensor:
        frequencies = self.inv_freq
        if frequencies.dtype.itemsize < 4:  # rounded with the weights: 1999 times that is another angle
            exponents = torch.arange(0, 2 * len(frequencies), 2, device=step.device)
            frequencies = torch.exp(exponents * (-math.log(1e4) / (2 * len(frequencies))))
        angles = step.to(frequencies.dtype)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class Unit(nn.Module):
    """A residual block, and attention where the plan has it."""

    def __init__(self, part: Part, embedded: int, groups: int, dropout: float, takes_steps: bool):
        super().__init__()
        self.res_block = ResidualBlock(part.inputs, part.out, embedded, groups, dropout, takes_steps)
        self.attn = SpatialAttention(part.out, groups) if part.attends else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.res_block(x, embedding)
        return x if self.attn is None else self.attn(x)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; between them the embedding is added to every pixel."""

    def __init__(self, inputs: int, out: int, embedded: int, groups: int, dropout: float, takes_steps: bool):
        super().__init__()
        if takes_steps:
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedded, out))
        else:
            self.noise_func = nn.ModuleDict({'noise_func': nn.Sequential(nn.Linear(embedded, out))})
        self.block1 = Block(inputs, out, groups)
        self.block2 = Block(out, out, groups, dropout)
        self.res_conv = nn.Conv2d(inputs, out, 1) if inputs != out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift = self.mlp(embedding) if hasattr(self, 'mlp') else self.noise_func['noise_func'](embedding)
        h = self.block2(self.block1(x, shift))
        return h.add_(self.res_conv(x))  # no backward pass reads what a convolution gave


class Block(nn.Module):
    """Group normalisation, SiLU, dropout and a 3x3 convolution, to whose result a shift (1 or b, out) is added."""

    def __init__(self, inputs: int, out: int, groups: int, dropout: float = 0):
        super().__init__()
        conv = nn.Conv2d(inputs, out, 3, padding=1)
        self.block = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Dropout(dropout), conv)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        norm, _, dropout, conv = self.block
        x = dropout(norm_silu(x, norm))
        return conv(x) if shift is None else conv(x).add_(shift[:, :, None, None])


class Downsample(nn.Module):
    """A convolution that halves height and width."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def initialise_orthogonal(module: nn.Module) -> None:
    """The published start, for `apply`: weights of convolutions and linear layers orthogonal, no bias."""
    if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
