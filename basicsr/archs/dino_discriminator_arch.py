"""S3Diff's discriminator: heads on a frozen DINO's features (vision-aided GAN, Kumari et al., arXiv:2112.09130)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import PositiveInt
from torch import Tensor, nn

from basicsr.archs.blocks.diff_augment import diff_augment, random_draws
from basicsr.archs.blocks.spectral import SpectralConv2d, SpectralLinear
from basicsr.utils.checkpoint import load_network, network_state, read_checkpoint
from basicsr.utils.download import local_path
from basicsr.utils.optional import optional
from basicsr.utils.registry import ARCH_REGISTRY

DINO = 'https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth'
MEAN, STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.229, 0.224, 0.225),
)  # CLIP's mean, ImageNet's deviation: as published
LEVELS = (8, 4, 1)  # the blocks that are judged, counted from the last


@ARCH_REGISTRY.register()
class DinoDiscriminator(nn.Module):
    """Three judgements of an image: of two maps of DINO's features and of its class token.

    The backbone has no entries in `state_dict`: it is the same in every checkpoint. It stays frozen and in evaluation
    mode whatever is asked, and moves with the network.

    Args:
        pretrained: DINO's weights: true for those of ViT-B/16 that its authors publish (343 MB, downloaded once), a
            path or URL of others, false for random ones.
        embed_dim, depth, num_heads, patch_size, image_size: of the vision transformer; a depth of 8 or more.
        dim: channels of the heads.
        augment: DiffAugment in training mode, drawn anew for each image in each forward.
    Shape: (b, 3, h, w) in [-1, 1], any size -> logits (b, k, k), (b, k, k) and (b, 1); k is 3 for 14 x 14 patches.
    """

    def __init__(
        self,
        pretrained: bool | str = True,
        embed_dim: PositiveInt = 768,
        depth: PositiveInt = 12,
        num_heads: PositiveInt = 12,
        patch_size: PositiveInt = 16,
        image_size: PositiveInt = 224,
        dim: PositiveInt = 128,
        augment: bool = True,
    ):
        super().__init__()
        self.augment = augment
        self.backbone = DinoFeatures(embed_dim, depth, num_heads, patch_size, image_size)
        self.decoder = nn.ModuleList([MultiLevelHead(len(LEVELS), embed_dim, embed_dim, dim)])
        if pretrained:
            source = DINO if pretrained is True else pretrained
            load_network(self.backbone.vit, network_state(read_checkpoint(local_path(source)), None, source), source)
        self.requires_grad_(True)
        self.backbone.eval()
        self.register_state_dict_post_hook(_without_backbone)
        self.register_load_state_dict_post_hook(_missing_no_backbone)

    def requires_grad_(self, requires_grad: bool = True) -> 'DinoDiscriminator':
        """Freeze or thaw the heads."""
        super().requires_grad_(requires_grad)
        self.backbone.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> 'DinoDiscriminator':
        """Training or evaluation mode of the heads."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.augment and self.training:
            x = diff_augment(x, random_draws(x))
        return self.decoder[0](self.backbone(x))


class DinoFeatures(nn.Module):
    """Features of a vision transformer with DINO's entries (Caron et al., arXiv:2104.14294).

    Shape: (b, 3, h, w) in [-1, 1] -> two maps (b, embed_dim, k, k) and the class token (b, embed_dim), each after the
    final norm.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, patch_size: int, image_size: int):
        super().__init__()
        if depth < max(LEVELS):
            raise ValueError(f'depth {depth} is too small: the {max(LEVELS)}th block from the end is judged')
        if embed_dim % num_heads or image_size % patch_size:
            raise ValueError(
                f'embed_dim {embed_dim} should be a multiple of num_heads {num_heads}, and image_size {image_size} of '
                f'patch_size {patch_size}'
            )
        timm = optional('timm.models.vision_transformer', 's3diff')
        self.vit = timm.VisionTransformer(
            image_size, patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_classes=0
        )
        self.image_size, self.blocks = image_size, [depth - level for level in LEVELS]
        for name, values in (('mean', MEAN), ('std', STD)):
            self.register_buffer(name, rearrange(torch.tensor(values), 'c -> 1 c 1 1'))

    def prepared(self, x: Tensor) -> Tensor:
        """What the transformer sees: (b, 3, image_size, image_size), normalised."""
        x = F.interpolate(x * 0.5 + 0.5, (self.image_size, self.image_size), mode='area')
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = self.vit.get_intermediate_layers(self.prepared(x), self.blocks, return_prefix_tokens=True, norm=True)
        height, width = self.vit.patch_embed.grid_size
        maps = [rearrange(patches, 'b (h w) c -> b c h w', h=height, w=width) for patches, _ in levels[:-1]]
        return [*maps, levels[-1][1][:, 0]]


class MultiLevelHead(nn.Module):
    """Judgements of levels - 1 maps and of a token.

    Shape: maps (b, in_maps, h, w) and a token (b, in_token) -> logits (b, h', w') of each map, (b, 1) of the token.
    """

    def __init__(self, levels: int, in_maps: int, in_token: int, dim: int):
        super().__init__()
        of_maps = [
            nn.Sequential(
                Blur(in_maps, padding=2),
                SpectralConv2d(in_maps, dim, 3, stride=2),
                nn.LeakyReLU(0.2),
                Blur(dim, padding=1),
                SpectralConv2d(dim, 1, 1, stride=2),
            )
            for _ in range(levels - 1)
        ]
        self.decoder = nn.ModuleList([*of_maps, nn.Sequential(SpectralLinear(in_token, dim), nn.LeakyReLU(0.2))])
        self.out = SpectralLinear(dim, 1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        *maps, token = features
        *of_maps, of_token = self.decoder
        judged = [judge(each)[:, 0] for judge, each in zip(of_maps, maps, strict=True)]
        return (*judged, self.out(of_token(token)))


class Blur(nn.Module):
    """The 4 x 4 binomial filter on each channel, zeros outside."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.padding = padding
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer('filt', torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filt, padding=self.padding, groups=x.shape[1])


def _without_backbone(net: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f'{prefix}backbone.')]:
        del state[name]


def _missing_no_backbone(net: nn.Module, keys) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if 'backbone.' not in name]
