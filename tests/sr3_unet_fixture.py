"""SR3's and DDPM's UNets beside their plain transcriptions, with equal weights."""

import math

import pytest
import torch
from golden_case import image
from oracles.sr3_unet_reference import DDPMReference, SR3Reference
from torch import nn

from basicsr.archs.sr3_unet_arch import DDPMUNet, SR3UNet

SMALL = {'in_channel': 6, 'inner_channel': 8, 'norm_groups': 4, 'channel_mults': (1, 2), 'attn_res': (8,),
         'res_blocks': 1, 'image_size': 16}  # fmt: skip
KINDS = {SR3UNet: SR3Reference, DDPMUNet: DDPMReference}
EXACT = torch.float64

both_kinds = pytest.mark.parametrize('kind', KINDS)


def randomised(net: nn.Module, seed: int) -> nn.Module:
    """Weights of which every one matters, and that keep the size of what they are given."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn_like(parameter)
            is_norm = name.endswith('weight') and parameter.dim() == 1
            scaled = noise / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1 * noise
            parameter.copy_(1 + scaled if is_norm else scaled)
    return net


def pair(kind: type = SR3UNet, seed: int = 0, **changes) -> tuple[nn.Module, nn.Module]:
    """The network and the plain transcription with the same weights, in evaluation mode."""
    reference = randomised(KINDS[kind](**SMALL | changes), seed)
    net = kind(**SMALL | changes)
    net.load_state_dict(reference.state_dict(), strict=True)
    return net.eval(), reference.eval()


def inputs(kind: type, b: int, h: int, w: int, channels: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.rand(b, generator=torch.Generator().manual_seed(seed))
    return 2 * image(seed, b, channels, h, w) - 1, draws if kind is SR3UNet else (draws * 1999).long()
