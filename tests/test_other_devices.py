"""No GPU is needed to see that models ask for none of a CPU's: see on_fake_device.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not hasattr(torch._C, '_acc'):
    pytest.skip('this torch cannot register a device in Python', allow_module_level=True)
from on_fake_device import RESTORING, ROOT, TRAINING

sys.path.insert(0, str(ROOT / 'scripts'))
from make_tiny_sd import write_tiny_sd


@pytest.fixture(scope='module')
def cases(tmp_path_factory) -> dict[str, dict]:
    """What the script says of each case; the device that it registers stays in its process."""
    folder = tmp_path_factory.mktemp('fake')
    write_tiny_sd(folder / 'sd', groups=4)
    script = Path(__file__).with_name('on_fake_device.py')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'BASICSR_CACHE': str(folder)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    return {line['case']: line for line in lines}


@pytest.mark.parametrize('name', RESTORING)
def test_a_bundled_model_restores_on_any_device(name, cases):
    case, scale = cases[name], int(name[-1])
    assert 'error' not in case, case['error']
    assert case['size'] == [1, 3, 32 * scale, 48 * scale] and case['devices'] == ['fake']


@pytest.mark.parametrize('file', TRAINING)
def test_a_training_step_stays_on_its_device(file, cases):
    case = cases[file]
    assert 'error' not in case, case['error']
    assert case['devices'] == ['fake'] and case['losses']
