"""A tiny S3Diff, on random weights or on those of a tiny SD-Turbo, for tests."""

import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_tiny_sd import TINY_UNET, TINY_VAE, write_tiny_sd

from basicsr.models import build_model
from basicsr.models.prompts import NEGATIVE, POSITIVE, Prompts, write_prompts
from basicsr.models.s3diff_model import S3DiffModel
from basicsr.utils.options import Options, parse_options

NETWORK = {'type': 'S3Diff', 'unet': TINY_UNET, 'vae': TINY_VAE, 'rank_unet': 4, 'rank_vae': 2}
ESTIMATOR = {'type': 'DEResNet', 'num_feats': [8, 8], 'num_blocks': [1, 1], 'downscales': [2, 1]}
_kept = tempfile.TemporaryDirectory()  # removed when the process ends


@cache
def prompts_file() -> Path:
    """Embeddings of the published prompts, in random numbers."""
    file = Path(_kept.name) / 'prompts.safetensors'
    draws = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    write_prompts(file, Prompts(*draws.split(1)), POSITIVE, NEGATIVE)
    return file


@cache
def sd_turbo() -> Path:
    """A tiny SD-Turbo's folder."""
    return write_tiny_sd(Path(_kept.name) / 'sd')


def tree(model: dict | None = None, scale: int = 4, **sections: dict) -> dict:
    """What an option file of the tiny S3Diff says."""
    settings = {'prompt_embeddings': str(prompts_file())} | (model or {})
    return {
        'name': 'tiny',
        'model_type': 'S3DiffModel',
        'scale': scale,
        'model': {key: value for key, value in settings.items() if value is not None},
        'network_g': NETWORK,
        'network_de': ESTIMATOR,
        **sections,
    }


def options(model: dict | None = None, **sections) -> Options:
    return parse_options(tree(model, **sections), is_train=False)


def tiny_model(model: dict | None = None, **sections) -> S3DiffModel:
    """A model whose LoRA layers add something, and whose scores depend on the image."""
    torch.manual_seed(0)
    built = build_model(options(model, **sections))
    randomise(built)
    return built


@torch.no_grad()
def randomise(model: S3DiffModel) -> None:
    """Numbers in the place of those that training starts with, which are nearly 0."""
    generator = torch.Generator().manual_seed(1)
    for label, net in model.nets.items():
        own = net.own_names() if label == 'g' else net.state_dict().keys()
        for name, value in net.state_dict().items():
            if name in own and value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)


def images(count: int = 1, height: int = 12, width: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
