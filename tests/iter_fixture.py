"""A tiny ITER for tests, and models of it without files."""

import torch
from torch import Tensor, nn

from basicsr.models import build_model
from basicsr.models.iter_model import ITERModel
from basicsr.utils.options import parse_options

DDCONFIG = {'emb_dim': 16, 'resolution': [64, 64], 'nf': 4, 'ch_mult': [1, 1, 2, 2], 'swin_dim': 8}
DDCONFIG |= {'swin_blk_depth': 2, 'num_res_blocks': 1, 'res_blocks': 1}
VQGAN = {'n_embed': 12, 'embed_dim': 16, 'ddconfig': DDCONFIG}
NETWORK = {'type': 'ITER', 'scale_factor': 4, 'vqgan_opt': VQGAN}
NETWORK |= {'demask_opt': {'ch': 16, 'swin_blk_num': 1, 'swin_blk_depth': 2}}


def options(network: dict | None = None, **sections):
    """Checked options of a file for testing."""
    network = NETWORK | (network or {})
    tree = {'name': 'tiny', 'model_type': 'ITERModel', 'scale': network['scale_factor'], 'network_g': network}
    return parse_options({**tree, **sections}, is_train=False)


def tiny_model(network: dict | None = None, **sections) -> ITERModel:
    """A model with random weights, always the same, so large that images and steps differ."""
    torch.manual_seed(1)
    model = build_model(options(network, **sections))
    for parameter in model.nets['g'].parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def images(count: int = 1, height: int = 20, width: int = 13, seed: int = 0) -> Tensor:
    """Noise, in which each image has a brightness of its own."""
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(1, 0.2, count).view(-1, 1, 1, 1)
