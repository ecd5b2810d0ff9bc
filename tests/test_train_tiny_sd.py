"""The tiny networks in SD-Turbo's place learn to code images and to name noise."""

import sys
from itertools import repeat
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from golden_case import image
from torch import Tensor
from training_fixture import ROOT

from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.image import write_image
from basicsr.utils.registry import UserError

sys.path.insert(0, str(ROOT / 'scripts'))
import train_tiny_sd
from make_tiny_sd import TINY_UNET, TINY_VAE, write_tiny_sd

WEIGHTS = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(3):
        shade = np.linspace(10, 50 + 5 * number, 40 * 36 * 3).reshape(40, 36, 3).astype(np.uint8)
        write_image(tmp_path / 'images' / f'{number}.png', shade)
    return tmp_path / 'images'


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, 'argv', ['train_tiny_sd.py', *map(str, arguments)])
    return train_tiny_sd.main()


def test_replaces_the_weights_of_the_autoencoder_and_the_unet_alone(tmp_path, images, monkeypatch, capsys):
    folder = write_tiny_sd(tmp_path / 'sd')
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob('*.*')}
    assert run(monkeypatch, folder, images, '--iterations', 2, '--size', 16, '--batch', 2) == 0
    changed = {str(name) for name, content in before.items() if (folder / name).read_bytes() != content}
    assert {f'unet/{WEIGHTS}', f'vae/{WEIGHTS}'} <= changed <= {
        f'{part}/{file}' for part in ('unet', 'vae') for file in (WEIGHTS, 'config.json')
    }  # fmt: skip
    assert all(value.isfinite().all() for value in read_checkpoint(folder / 'unet' / WEIGHTS).values())
    assert capsys.readouterr().out.count('in the first 1 of 2 iterations') == 2


def test_both_networks_learn():
    torch.manual_seed(0)
    crops = repeat(2 * image(7, 2, 3, 32, 32) - 1)
    vae = diffusers.AutoencoderKL.from_config(TINY_VAE)
    unet = diffusers.UNet2DConditionModel.from_config(TINY_UNET)
    coded = train_tiny_sd.train_autoencoder(vae, crops, 20)
    named = train_tiny_sd.train_unet(unet, vae, crops, torch.randn(2, 5, 32), 20)
    for losses in (coded, named):
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_scaled_latents_have_sd_turbos_deviation_and_decode_to_the_same_images():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL.from_config(TINY_VAE).eval()
    x = torch.rand(4, 3, 32, 32) * 2 - 1

    def coded() -> tuple[Tensor, Tensor]:
        posterior = vae.encode(x).latent_dist
        torch.manual_seed(1)
        latent = posterior.sample()
        return latent, vae.decode(latent).sample

    with torch.no_grad():
        before = coded()
        torch.manual_seed(1)
        train_tiny_sd.scale_latents(vae, x)
        after = coded()
    torch.testing.assert_close(after[0].std() * vae.config.scaling_factor, torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(after[1], before[1], atol=1e-4, rtol=1e-3)


def test_crops_lie_in_the_images_and_follow_the_seed(images):
    one, same, other = (next(train_tiny_sd.random_crops(images, 24, 5, seed)) for seed in (3, 3, 4))
    assert one.shape == (5, 3, 24, 24) and one.min() >= -1 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_unusable_folders_are_said(images):
    with pytest.raises(UserError, match=r'\d\.png: smaller than crops of 64 x 64 pixels'):
        next(train_tiny_sd.random_crops(images, 64, 1, 0))
    with pytest.raises(UserError, match='no PNG image'):
        next(train_tiny_sd.random_crops(images.parent, 64, 1, 0))
