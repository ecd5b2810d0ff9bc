"""Tiny denoisers of SR3 and DDPM for tests, and models of them without files."""

import torch
from torch import Tensor, nn

from basicsr.models import build_model
from basicsr.models.sr3_model import SR3Model
from basicsr.utils.options import parse_options

LINEAR = {'schedule': 'linear', 'n_timestep': 20, 'linear_start': 1e-4, 'linear_end': 0.5}
SMALL = {'inner_channel': 8, 'norm_groups': 4, 'channel_mults': [1, 2], 'attn_res': [4], 'res_blocks': 1}
SR3 = {'type': 'SR3UNet', 'in_channel': 6, 'image_size': 8, **SMALL}
DDPM = {**SR3, 'type': 'DDPMUNet'}


def options(network: dict | None = None, **sections):
    """Checked options of a file for testing."""
    model = {'schedule': LINEAR, **sections.pop('model', {})}
    tree = {'name': 'tiny', 'model_type': 'SR3Model', 'scale': 4, 'model': model, 'network_g': network or SR3}
    return parse_options({**tree, **sections}, is_train=False)


def tiny_model(network: dict | None = None, **sections) -> SR3Model:
    """A model with random weights, always the same."""
    torch.manual_seed(1)
    model = build_model(options(network, **sections))
    for parameter in model.nets['g'].parameters():  # whatever the network's own initialisation
        nn.init.normal_(parameter, std=0.3)
    return model


def images(count: int = 1, height: int = 5, width: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
