"""The models in the repository do what they are there for: restore better than bicubic enlargement, by their names."""

import pytest
import torch
from training_fixture import ROOT

from basicsr.data.degradations.resize import imresize
from basicsr.metrics.psnr_ssim import psnr
from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.image import read_image, to_tensor
from basicsr.utils.zoo import known_models

BUNDLED = [name for name, model in known_models().items() if model.state() == 'bundled']
TINY = 'S3Diff-tiny_x4'  # is there to see the path run, and claims no quality


@pytest.mark.parametrize('name', [name for name in BUNDLED if name != TINY])
def test_a_bundled_model_beats_bicubic(name):
    model = load_model(name, None, None, offline=True)
    lq, gt = (read_image(ROOT / f'testset/{folder}/astronaut_patch.png') for folder in (f'lq_x{model.scale}', 'gt'))
    top, left, side = 48 // model.scale, 48 // model.scale, 96 // model.scale  # cloth, and what is sewn on it
    lq = lq[top : top + side, left : left + side]
    gt = to_tensor(gt[48:144, 48:144])[None]
    sr = Restorer(model)(to_tensor(lq)[None])
    bicubic = to_tensor(imresize(lq, model.scale)).clamp(0, 1)[None]
    gain = psnr(sr, gt, model.scale, True) - psnr(bicubic, gt, model.scale, True)
    assert gain.item() > 0.3, f'{name}: {gain.item():+.2f} dB'


def test_the_tiny_s3diff_runs_its_whole_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path))
    model = load_model('s3diff-tiny', None, None, offline=True)
    lq, gt = (to_tensor(read_image(ROOT / f'testset/{f}/astronaut_patch.png'))[None] for f in ('lq_x4', 'gt'))
    lq, gt = lq[..., 12:36, 12:36], gt[..., 48:144, 48:144]
    sr = Restorer(model)(lq)
    assert psnr(sr, gt, 4, True) > psnr(sr.flip(-1), gt, 4, True) + 3  # that picture, and not another one
    assert not torch.equal(sr, Restorer(model)(1 - lq))


def test_the_bundled_weights_are_small():
    assert BUNDLED and all(known_models()[name].weights_file(True).stat().st_size < 8_000_000 for name in BUNDLED)


def test_the_bundled_diffusion_model_needs_no_more_than_its_few_steps():
    """20 steps are 1/100 of the chain that it was trained with; more of them make no better image."""
    model = load_model('sr3-demo', None, None, offline=True)
    lq, gt = (to_tensor(read_image(ROOT / f'testset/{f}/chelsea_right.png'))[None] for f in ('lq_x4', 'gt'))
    lq, gt, scores = lq[..., 16:32, 16:32], gt[..., 64:128, 64:128], []
    for steps in (None, 200):
        if steps:
            model.sampler = type(model.sampler)(model.sampler.type, steps, spacing=model.sampler.spacing)
        assert len(model.sampler.steps_of(model.sampled, True).alphas) == (steps or 20)
        with torch.inference_mode():
            scores.append(psnr(Restorer(model)(lq), gt).item())
    assert scores[0] > scores[1] - 0.3
