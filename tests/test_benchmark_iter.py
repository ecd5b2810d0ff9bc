"""scripts/benchmark.py iter-steps on a tiny network: its rows are what restoring gives; times are not tested."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from iter_fixture import NETWORK, tiny_model
from training_fixture import make_images

from basicsr.metrics.evaluate import build_metrics, score
from basicsr.models.restorer import Restorer
from basicsr.models.sr3_model import enlarged
from basicsr.utils.image import read_image, to_tensor

SCRIPT = Path(__file__).resolve().parents[1] / 'scripts' / 'benchmark.py'
METRICS = {name: {'type': name, 'crop_border': 4, 'test_y_channel': True} for name in ('psnr', 'ssim')}
REFINEMENT = {'threshold': 1.0, 'sampling': 'greedy'}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in with a tiny network and two pairs."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, count=2, scale=4, size=(9, 10))
    torch.save(tiny_model().networks()['g'], 'net.pth')
    options = {'name': 'tiny', 'model_type': 'ITERModel', 'scale': 4, 'model': {'refinement': REFINEMENT}}
    pairs = {'name': 'pairs', 'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'}
    options |= {'network_g': NETWORK, 'datasets': {'test': pairs}, 'path': {'pretrain_network_g': 'net.pth'}}
    Path('tiny.yml').write_text(yaml.safe_dump(options))
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), 'iter-steps', '--opt', 'tiny.yml', '--device', 'cpu', '--threads', '1']
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_rows_are_the_scores_of_restoring(folder):
    status, text = run('--steps', '1,3', '--plot', 'a.png', '--json', 'a.json')
    assert status == 0, text
    report = json.loads(Path('a.json').read_text())
    assert [(row['steps'], row['steps_taken']) for row in report['rows']] == [(3, 3), (1, 1)], 'no token is good'
    model, metrics = tiny_model(model={'refinement': REFINEMENT}), build_metrics(METRICS)
    pairs = [[to_tensor(read_image(f'{kind}/{number}.png'))[None] for kind in ('lq', 'gt')] for number in range(2)]
    means = np.mean([score(metrics, enlarged(lq, 4), gt)['psnr'] for lq, gt in pairs])
    assert report['bicubic']['psnr'] == pytest.approx(means)
    for row in report['rows']:
        model.refinement = replace(model.refinement, T=row['steps'])
        scores = [score(metrics, Restorer(model)(lq), gt) for lq, gt in pairs]
        for name in ('psnr', 'ssim'):
            assert row[name] == pytest.approx(np.mean([one[name] for one in scores]))
        assert row['seconds'] > 0 and row['cpu_seconds'] > 0
    assert text.count('\n| ') == 1 + 1 + 2 and '| 3 | 3.0 |' in text and '+0.00 | 1 |' in text
    assert read_image('a.png').shape == (480, 600 * len(report['bicubic']), 3)


def test_tokens_that_are_good_at_once_take_no_steps(folder):
    options = yaml.safe_load(Path('tiny.yml').read_text())
    options['model'] = {'refinement': {'threshold': 0.0}}
    Path('tiny.yml').write_text(yaml.safe_dump(options))
    status, text = run('--steps', '2', '--images', '1', '--json', 'a.json')
    assert status == 0, text
    assert json.loads(Path('a.json').read_text())['rows'][0]['steps_taken'] == 0


def test_a_model_of_another_kind_is_refused_in_one_line(folder):
    options = yaml.safe_load(Path('tiny.yml').read_text())
    options |= {'model_type': 'SRModel', 'model': {}}
    Path('tiny.yml').write_text(yaml.safe_dump(options))
    status, said = run()
    assert status == 2 and 'iter-steps needs an ITERModel' in said and 'Traceback' not in said
