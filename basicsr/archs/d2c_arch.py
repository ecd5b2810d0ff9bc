"""D2C-SR: A Divergence to Convergence Approach for Real-World Image Super-Resolution (Li et al., ECCV 2022,
arXiv:2103.14373). Attribute names are those of the published checkpoints (megvii-research/D2C-SR, MegEngine).
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.attention import exact_type
from basicsr.archs.blocks.conv import ResidualGroup, initialise_unit_gain
from basicsr.archs.blocks.linear_tail import LinearTail
from basicsr.utils.registry import ARCH_REGISTRY

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
BRANCHES = ('11', '12', '21', '22')
BGR_NOTE = 'trained on BGR images, its weights were folded to RGB'
FUSION_REACH = 3  # pixels to each side that a weight of D2CFusion depends on
BAND_PIXELS = {'cpu': 2**15, 'cuda': 2**21}  # of the enlarged image, whose 64 channels are in memory at a time


@ARCH_REGISTRY.register()
class D2CBranches(nn.Module):
    """Four different enlargements of one image: the leaves of a binary tree of residual channel-attention groups.

    The published D_Net. Its mean shifts are 1x1 convolutions like any other: the published code never set them.

    Args:
        scale: 3 or a power of 2.
        n_resblocks: channel-attention blocks in each of the twelve groups.
        n_feats, reduction: feature channels; by how much channel attention narrows them.
        kernel_size: of all convolutions but the upsamplers', odd.
        n_colors: 3; an option of the published network that has no other value.
        mean_shift_init: 'published' starts them at random; 'identity' subtracts and adds the mean colour of DIV2K.
    Shape: (b, 3, h, w) RGB in [0, 1] -> (b, 4, 3, h * scale, w * scale), not clamped: branches 11, 12, 21 and 22, of
        which 11 and 12 share one parent. Any h and w.
    """

    published_keys = {'state_dict_D': BGR_NOTE}  # entries of a file that hold from_published's layout

    def __init__(
        self,
        scale: int,
        n_resblocks: int = 4,
        n_feats: int = 64,
        kernel_size: int = 3,
        n_colors: Literal[3] = 3,
        reduction: int = 16,
        mean_shift_init: Literal['published', 'identity'] = 'published',
    ):
        super().__init__()
        if scale != 3 and (scale < 1 or scale & (scale - 1)):
            raise ValueError(f'scale must be 3 or a power of 2, got {scale}')
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}')
        if n_resblocks < 1 or reduction < 1 or n_feats < reduction:
            raise ValueError(
                f'n_resblocks and reduction are 1 or more and n_feats is at least reduction, got {n_resblocks}, '
                f'{reduction} and {n_feats}'
            )
        self.scale = scale

        def conv() -> nn.Conv2d:
            return nn.Conv2d(n_feats, n_feats, kernel_size, padding=kernel_size // 2)

        def body() -> nn.Sequential:
            groups = (ResidualGroup(n_feats, kernel_size, reduction, n_resblocks) for _ in range(2))
            return nn.Sequential(*groups, conv())

        self.sub_mean = nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Conv2d(n_colors, n_feats, kernel_size, padding=kernel_size // 2))
        for name in ('1', '2', *BRANCHES):
            self.add_module(f'body{name}', body())
        for number in range(1, 2 * len(BRANCHES) + 1):
            self.add_module(f'res_conv{number}', conv())
        for name in BRANCHES:
            self.add_module(f'tail{name}', LinearTail(n_feats, n_colors, scale, kernel_size))
        self.add_mean = nn.Conv2d(3, 3, 1)
        self.apply(initialise_unit_gain)
        if mean_shift_init == 'identity':
            self._shift_by_the_mean()

    def _shift_by_the_mean(self) -> None:
        with torch.no_grad():
            for shift, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
                shift.weight.copy_(torch.eye(3)[:, :, None, None])
                shift.bias.copy_(sign * torch.tensor(RGB_MEAN))

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """MegEngine's state dict for BGR images as ours for RGB: biases lose their axes of 1, the colours turn round.

        Biases may have PyTorch's shape already, as a third party's files have.
        """
        return _turned_colors({name: _without_axes(name, value) for name, value in state.items()})

    @staticmethod
    def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of from_published."""
        biased = {k: v[None, :, None, None] if k.endswith('.bias') else v for k, v in _turned_colors(state).items()}
        return _in_published_order(biased)

    @staticmethod
    def options_of(state: dict[str, Tensor]) -> dict[str, int]:
        """The constructor's arguments that fit a state dict, ours or a published one; reduction is one that would do.

        Raises ValueError if it is none of this network.
        """
        try:
            n_feats, _, kernel_size, _ = state['head.0.weight'].shape
            narrow = len(state['body1.0.body.0.body.3.conv_du.0.weight'])
        except (KeyError, ValueError):
            raise ValueError('no state dict of D2CBranches: it lacks head.0 or body1.0.body.0') from None
        blocks = sum(f'body1.0.body.{i}.body.0.weight' in state for i in range(len(state)))
        convs = [v for k, v in state.items() if k.startswith('tail11.0.') and k.endswith('.weight')]
        scale = 3 if len(convs) == 1 and len(convs[0]) == 9 * n_feats else 2 ** len(convs)
        return {
            'scale': scale,
            'n_resblocks': blocks,
            'n_feats': n_feats,
            'kernel_size': kernel_size,
            'reduction': n_feats // narrow,
        }

    def forward(self, lq: Tensor) -> Tensor:
        if lq.device.type == 'cpu':  # where convolutions in this order are faster, and the tail's shuffles too
            lq = lq.contiguous(memory_format=torch.channels_last)
        head = self.head(self.sub_mean(lq))
        images = []
        for parent_name in ('1', '2'):
            parent = self._part('body', parent_name)(head)
            for child in ('1', '2'):
                images.append(self._leaf(parent_name + child, parent, head))
        return torch.cat(images, 1).unflatten(1, (len(images), -1))  # in channels-last order if they were

    def _leaf(self, name: str, parent: Tensor, head: Tensor) -> Tensor:
        number = 2 * BRANCHES.index(name) + 1
        features = self._part('res_conv', number)(self._part('body', name)(parent)) + parent
        features = self._part('res_conv', number + 1)(features) + head
        return self._part('tail', name)(features, self.add_mean)

    def _part(self, kind: str, name: str | int) -> nn.Module:
        return getattr(self, f'{kind}{name}')


@ARCH_REGISTRY.register()
class D2CFusion(nn.Module):
    """The per-pixel blend of four images; the published C_Net, ReLU before its softmax included.

    Shape: (b, 4, 3, h, w) -> the blended image (b, 3, h, w) and the weights (b, 4, h, w), which add up to 1;
        both in float32 at least, whatever the mode.
    """

    published_keys = {'state_dict_C': BGR_NOTE}

    def __init__(self):
        super().__init__()
        widths = (3 * len(BRANCHES), 64, 64, len(BRANCHES))
        self.fusion_final = nn.Sequential(*[FusionBlock(i, o) for i, o in pairwise(widths)])
        self.apply(initialise_unit_gain)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict for images in BGR as that for RGB: the first convolution's inputs turn round."""
        return _turned_colors(state)

    @staticmethod
    def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of from_published."""
        return _in_published_order(_turned_colors(state))

    def forward(self, branches: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(branches.flatten(1, 2))
        weights = logits.to(exact_type(logits.dtype)).softmax(1)
        return (branches * weights[:, :, None]).sum(1), weights

    def logits(self, images: Tensor) -> Tensor:
        """(b, 12, h, w) -> (b, 4, h, w), none of them negative; bands of the image one by one if nothing learns."""
        if images.device.type == 'cpu':
            images = images.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_exporting():  # for images of any size: as many bands as this one has would be wrong
            return self.fusion_final(images)
        h, w = images.shape[-2:]
        rows = max(16 * FUSION_REACH, BAND_PIXELS.get(images.device.type, BAND_PIXELS['cuda']) // w)
        if torch.is_grad_enabled() or rows >= h:
            return self.fusion_final(images)
        bands = []
        for start in range(0, h, rows):
            top = max(0, start - FUSION_REACH)
            band = self.fusion_final(images[:, :, top : start + rows + FUSION_REACH])
            bands.append(band[:, :, start - top :][:, :, :rows])
        return torch.cat(bands, 2)


class FusionBlock(nn.Sequential):
    """A 3x3 convolution without bias, and ReLU."""

    def __init__(self, in_chans: int, out_chans: int):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)


def _without_axes(name: str, value: Tensor) -> Tensor:
    """A bias (1, c, 1, 1) of MegEngine as (c,); what has another shape is left for strict loading to refuse."""
    is_bias = name.endswith('.bias') and value.ndim == 4 and value.numel() == value.shape[1]
    return value.flatten() if is_bias else value


def _turned_colors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """RGB for BGR and back: the axes of colours of the first and the last convolutions turned round."""
    axes = {'sub_mean.weight': 1, 'add_mean.weight': 0, 'add_mean.bias': 0}
    turned = {name: value.flip(axes[name]) if name in axes else value for name, value in state.items()}
    name = 'fusion_final.0.conv.weight'
    if name in turned:
        turned[name] = turned[name].unflatten(1, (-1, 3)).flip(2).flatten(1, 2)
    return turned


def _in_published_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MegEngine sorts names at every level."""
    return dict(sorted(state.items(), key=lambda item: item[0].split('.')))
