"""scripts/benchmark.py sr3-steps on a tiny network: its rows are what restoring gives; times are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sr3_fixture import LINEAR, SR3, tiny_model
from training_fixture import make_images

from basicsr.metrics.evaluate import build_metrics, score
from basicsr.models.diffusion_sampling import Sampler
from basicsr.models.restorer import Restorer
from basicsr.models.sr3_model import enlarged
from basicsr.utils.image import read_image, to_tensor

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts' / 'benchmark.py'
METRICS = {name: {'type': name, 'crop_border': 0, 'test_y_channel': False} for name in ('psnr', 'ssim')}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in with a tiny network and three pairs."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, count=3, scale=4, size=(6, 7))
    torch.save(tiny_model().networks()['g'], 'net.pth')
    options = {'name': 'tiny', 'model_type': 'SR3Model', 'scale': 4, 'model': {'schedule': LINEAR}, 'network_g': SR3}
    pairs = {'name': 'pairs', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'}
    options |= {'datasets': {'test': pairs}, 'path': {'pretrain_network_g': 'net.pth'}}
    Path('tiny.yml').write_text(yaml.safe_dump(options))
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), 'sr3-steps', '--opt', 'tiny.yml', '--device', 'cpu', '--threads', '1']
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_rows_are_the_scores_of_restoring(folder):
    status, text = run('--steps', '2000,4', '--images', '2', '--crop', '5', '--plot', 'plots/a.png', '--json', 'a.json')
    assert status == 0, text
    report = json.loads(Path('a.json').read_text())
    assert [(row['sampler'], row['steps']) for row in report['rows']] == [
        (kind, count) for kind in ('ancestral', 'ddim', 'dpmpp_2m') for count in (20, 4)
    ], 'no more steps than the chain has'
    model, metrics = tiny_model(), build_metrics(METRICS)
    pairs = []
    for number in range(2):
        lq, gt = (to_tensor(read_image(f'{kind}/{number}.png'))[None] for kind in ('lq', 'gt'))
        pairs.append((lq[..., :5, 1:6], gt[..., :20, 4:24]))
    means = np.mean([score(metrics, enlarged(lq, 4), gt)['psnr'] for lq, gt in pairs])
    assert report['bicubic']['psnr'] == pytest.approx(means)
    for row in report['rows']:
        model.sampler = Sampler(row['sampler'], row['steps'], spacing=row['spacing'])
        scores = [score(metrics, Restorer(model)(lq), gt) for lq, gt in pairs]
        assert row['psnr'] == pytest.approx(np.mean([one['psnr'] for one in scores]))
        assert row['ssim'] == pytest.approx(np.mean([one['ssim'] for one in scores]))
        assert row['seconds'] > 0 and row['cpu_seconds'] > 0
    assert text.count('\n| ') == 1 + 1 + 6 and '| ancestral | 20 |' in text and '+0.00 | 1 |' in text
    assert read_image('plots/a.png').shape == (480, 600 * len(report['bicubic']), 3)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (('--crop', '7'), 'is smaller than the crop of 7'),
        (('--samplers', 'ddim,euler'), 'should be some of ancestral,ddim,dpmpp_2m'),
        (('--steps', '5,x'), 'should be whole numbers'),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, text, folder):
    status, said = run(*arguments)
    assert status == 2 and text in said and 'Traceback' not in said
