"""The README's commands run as written, those of its third `bash` block made shorter by overrides."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```bash\n(.*?)^```$', README, re.DOTALL | re.MULTILINE)
SHORT = {
    'basicsr/train.py': ' train:total_iter=2 val:val_freq=0 datasets:train:num_worker_per_gpu=0',
    'basicsr/test.py': ' datasets:test:max_num=1',
    'inference.py': ' --tile 64 --overlap 8',
}


def test_the_first_two_blocks_are_one_command_each():
    assert [block.count('\n') for block in BLOCKS[:2]] == [1, 1]
    assert 'inference.py' in BLOCKS[0]
    assert 'pytest' in BLOCKS[1]


def test_a_network_is_trained_tested_and_used_by_the_readmes_commands(tmp_path):
    for name in ('basicsr', 'options', 'testset', 'inference.py'):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': path}
    for line in BLOCKS[2].splitlines():
        shorter = next(more for script, more in SHORT.items() if script in line)
        done = subprocess.run(line + shorter, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr}'
    assert (tmp_path / 'results/ATD-quick_x2/scores.csv').is_file()
    assert len(list((tmp_path / 'results/quick').glob('*.png'))) == 8


@pytest.mark.parametrize('link', re.findall(r'\]\(([^)#:]+)\)', README))
def test_a_file_that_the_readme_links_exists(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize('option_file', sorted(set(re.findall(r'options/\S+\.yml', README))))
def test_an_option_file_that_the_readme_names_exists(option_file):
    assert list(ROOT.glob(option_file))
