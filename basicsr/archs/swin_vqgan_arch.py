"""SwinVQGAN: the autoencoder of ITER (Chen et al., AAAI 2024, arXiv:2312.05616), image <-> map of tokens.

Attribute names are those of the published checkpoints (chaofengc/ITER, where it is called VQModel).
"""

from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from basicsr.archs.blocks.attention import exact_type
from basicsr.archs.blocks.autoencoder import HalvingConv, HeadsAttention, ResidualBlock, group_norm
from basicsr.archs.blocks.codebook import VectorQuantizer
from basicsr.archs.blocks.conv import conv3
from basicsr.archs.blocks.published import with_copies, without_copies
from basicsr.archs.blocks.swin import SwinLayers, with_computed, without_computed
from basicsr.archs.blocks.unet import EnlargingConv, fast_order
from basicsr.utils.nested_options import OptionsOf, nested
from basicsr.utils.registry import ARCH_REGISTRY

COPIES = {'.generator.': '.decoder.'}  # names of published files, and of what they repeat


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """`ddconfig` of published option files, all of whose values are the defaults.

    Args:
        in_channels: channels of the image.
        emb_dim: channels of the codes.
        resolution: (h, w) of the image that decides the windows of the Swin blocks, see SwinLayers.
        nf, ch_mult: features are nf * ch_mult[i] channels on level i; each level but the last is halved.
        global_blks: 'swin', or 'mhsa' for attention over the heads of each pixel; then nothing else of `swin` matters.
        swin_dim: channels of the Swin blocks.
        swin_window: side of the windows of the Swin blocks.
        swin_blk_num: groups of Swin blocks; swin_blk_depth: blocks in each group.
        num_heads: of the encoder's Swin blocks; the decoder's have 8.
        num_res_blocks: residual blocks on each level of the encoder.
        res_blocks: residual blocks on each level of the decoder.
    """

    in_channels: PositiveInt = 3
    emb_dim: PositiveInt = 128
    resolution: tuple[PositiveInt, PositiveInt] = (256, 256)
    nf: PositiveInt = 128
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    global_blks: Literal['swin', 'mhsa'] = 'swin'
    swin_dim: PositiveInt = 256
    swin_window: PositiveInt = 8
    swin_blk_depth: PositiveInt = 6
    swin_blk_num: PositiveInt = 1
    num_heads: PositiveInt = 8
    num_res_blocks: PositiveInt = 2
    res_blocks: PositiveInt = 2

    @property
    def reduction(self) -> int:
        """Pixels of the image along a side of a code."""
        return 2 ** (len(self.ch_mult) - 1)


@ARCH_REGISTRY.register()
class SwinVQGAN(nn.Module):
    """Image -> map of entries of a learned codebook -> image.

    Args:
        ddconfig: widths and depths of encoder and decoder, see AutoencoderOptions.
        n_embed, embed_dim: entries of the codebook, and their channels: those of ddconfig:emb_dim.
        beta: weight of the codebook's term in the codebook loss.
    Shape: (b, 3, h, w) in [0, 1] -> the image, in [0, 1]; the codebook loss; the tokens (b, h / r, w / r), with
        r = `reduction`; h and w are multiples of `size_multiple`.
    """

    def __init__(
        self,
        ddconfig: nested(OptionsOf(AutoencoderOptions, 'ddconfig')),
        n_embed: PositiveInt,
        embed_dim: PositiveInt,
        beta: PositiveFloat = 0.25,
    ):
        super().__init__()
        options = AutoencoderOptions(**ddconfig)
        if options.emb_dim != embed_dim:
            raise ValueError(f'ddconfig:emb_dim is {options.emb_dim}, but entries have embed_dim {embed_dim} channels')
        self.n_embed, self.embed_dim, self.reduction = n_embed, embed_dim, options.reduction
        self.encoder = Encoder(options)
        self.decoder = Decoder(options)
        self.quantize = VectorQuantizer(n_embed, embed_dim, beta)
        windows = [block.window_size for block in self.decoder.blocks if isinstance(block, SwinLayers)]
        self.size_multiple = self.reduction * (windows[0] if windows else 1)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published VQModel without the entries that are computed and without the copy `generator` of the decoder.

        Raises ValueError if that is no copy.
        """
        return without_computed(without_copies(state, COPIES))

    def to_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of such a network with all that a published file has, in its order."""
        return with_copies(with_computed(self, state), COPIES)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, loss, indices = self.quantize(self.features(image))
        return self.decode(codes), loss, indices

    def features(self, image: Tensor) -> Tensor:
        """What is quantised: (b, 3, h, w), clamped to [0, 1] -> (b, embed_dim, h / reduction, w / reduction)."""
        if any(side % self.size_multiple for side in image.shape[-2:]):
            raise ValueError(f'sides must be multiples of {self.size_multiple}, got {tuple(image.shape[-2:])}')
        return self.encoder(2 * image.clamp(0, 1) - 1)

    def indices(self, image: Tensor) -> Tensor:
        """The tokens of an image: (b, 3, h, w) -> (b, h / reduction, w / reduction) int64."""
        return self.quantize.indices(self.features(image))

    def decode(self, codes: Tensor) -> Tensor:
        """(b, embed_dim, h, w) -> (b, 3, h * reduction, w * reduction), clamped to [0, 1], in float32 at least."""
        image = self.decoder(codes)
        return ((image.to(exact_type(image.dtype)) + 1) / 2).clamp(0, 1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(b, h, w) int64 -> (b, 3, h * reduction, w * reduction)."""
        return self.decode(self.quantize.entries(indices))

    def decode_soft(self, weights: Tensor) -> Tensor:
        """decode of sums of entries: weights (b, n_embed, h, w), which gradients reach; the codebook they do not."""
        codes = rearrange(weights, 'b n h w -> b h w n') @ self.quantize.embedding.weight.detach()
        return self.decode(rearrange(codes, 'b h w c -> b c h w'))


class Encoder(nn.Module):
    """(b, in_channels, h, w) in [-1, 1] -> (b, emb_dim, h / reduction, w / reduction)."""

    def __init__(self, options: AutoencoderOptions):
        super().__init__()
        width, last = options.nf, len(options.ch_mult) - 1
        blocks = [conv3(options.in_channels, width)]
        for level, mult in enumerate(options.ch_mult):
            for _ in range(options.num_res_blocks):
                blocks.append(ResidualBlock(width, options.nf * mult))
                width = options.nf * mult
            if level < last:
                blocks.append(HalvingConv(width))
        blocks += global_blocks(options, width, options.num_heads)
        self.blocks = nn.ModuleList([*blocks, group_norm(width), conv3(width, options.emb_dim)])

    def forward(self, image: Tensor) -> Tensor:
        x = fast_order(image)
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """(b, emb_dim, h, w) -> (b, 3, h * reduction, w * reduction), about [-1, 1]."""

    def __init__(self, options: AutoencoderOptions):
        super().__init__()
        width = options.nf * options.ch_mult[-1]
        blocks = [conv3(options.emb_dim, width), *global_blocks(options, width, heads=8)]
        for level, mult in reversed([*enumerate(options.ch_mult)]):
            for _ in range(options.res_blocks):
                blocks.append(ResidualBlock(width, options.nf * mult))
                width = options.nf * mult
            if level > 0:
                blocks.append(EnlargingConv(width))
        self.blocks = nn.ModuleList([*blocks, group_norm(width), conv3(width, 3)])

    def forward(self, codes: Tensor) -> Tensor:
        x = fast_order(codes)
        for block in self.blocks:
            x = block(x)
        return x


def global_blocks(options: AutoencoderOptions, width: int, heads: int) -> list[nn.Module]:
    """The blocks at the lowest resolution, by which all pixels depend on one another."""
    if options.global_blks == 'mhsa':
        return [module for _ in range(2) for module in (ResidualBlock(width, width), HeadsAttention(width))]
    resolution = tuple(side // options.reduction for side in options.resolution)
    swin = SwinLayers(
        width,
        options.swin_dim,
        options.swin_blk_num,
        options.swin_blk_depth,
        options.swin_window,
        heads,
        resolution,
    )
    return [ResidualBlock(width, width), swin, ResidualBlock(width, width)]
