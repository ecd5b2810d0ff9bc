"""docs/data.md names what exists, and its example of a degradation trains and is shown."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from training_fixture import ROOT, iterations_logged, train_here

sys.path.insert(0, str(ROOT / 'scripts'))
import show_degradations

from basicsr.utils.image import read_image
from basicsr.utils.options import load_options
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY

TEXT = (ROOT / 'docs/data.md').read_text(encoding='utf-8')
COMMANDS = re.findall(r'^python (scripts/\w+\.py) (.*)$', TEXT, re.MULTILINE)
BLOCKS = {kind: re.findall(rf'^```{kind}\n(.*?)^```$', TEXT, re.DOTALL | re.MULTILINE) for kind in ('python', 'yaml')}
SHRUNKEN = (
    'network_g:embed_dim=12', 'network_g:depths=[1]', 'network_g:num_heads=[2]', 'network_g:window_size=4',
    'network_g:category_size=16', 'network_g:num_tokens=8', 'train:total_iter=2', 'logger:use_tb_logger=false',
    'logger:print_freq=1', 'device=cpu', 'val:val_freq=0',
)  # fmt: skip


def test_every_option_file_of_a_degradation_is_named():
    files = {path.name for path in (ROOT / 'options/train/degradations').glob('*.yml')}
    assert files == set(re.findall(r'`(\w+_x\d\.yml)`', TEXT))


@pytest.mark.parametrize('path', sorted(set(re.findall(r'options/[\w/-]+(?:\*|\w+)\.yml', TEXT))))
def test_an_option_file_or_pattern_exists(path):
    assert list(ROOT.glob(path))


@pytest.mark.parametrize(('script', 'arguments'), COMMANDS)
def test_a_command_has_a_script_with_such_arguments(script, arguments):
    sources = [(ROOT / script).read_text(), (ROOT / 'scripts/preparing.py').read_text()]
    for flag in re.findall(r'(?<!\S)--?[a-z][\w-]*', arguments):
        assert any(f"'{flag}'" in source for source in sources), f'{script} has no {flag}'


def test_every_preparing_script_is_among_the_commands():
    scripts = {path.name for path in (ROOT / 'scripts').glob('*.py') if '    parser.add_workers()' in path.read_text()}
    own = {'make_demo_data.py', 'make_procedural_images.py'}  # of the bundled models
    assert scripts - own <= {Path(script).name for script, _ in COMMANDS}


@pytest.mark.parametrize('name', sorted(set(re.findall(r'`(\w+(?:Dataset|Degradation))`', TEXT))))
def test_a_class_is_registered(name):
    registry = DATASET_REGISTRY if name.endswith('Dataset') else DEGRADATION_REGISTRY
    assert registry.get(name)


@pytest.mark.parametrize('link', sorted(set(re.findall(r'\]\(([^)#:]+)\)', TEXT))))
def test_a_linked_file_exists_and_pictures_are_small(link):
    assert (ROOT / 'docs' / link).stat().st_size < 400_000


def test_links_within_the_page_lead_to_its_headings():
    headings = {
        re.sub(r'[^\w -]', '', line).lower().replace(' ', '-') for line in re.findall(r'^##+ (.*)$', TEXT, re.M)
    }
    assert set(re.findall(r'\]\(#([\w-]+)\)', TEXT)) <= headings


@pytest.fixture
def example(tmp_path, monkeypatch) -> Path:
    """An option file with the page's example in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path('my_degradations').mkdir()
    Path('my_degradations/motion.py').write_text(BLOCKS['python'][0])
    options = yaml.safe_load((ROOT / 'options/train/degradations/bicubic_x4.yml').read_text())
    given = yaml.safe_load(BLOCKS['yaml'][0])
    given['datasets']['train'] |= {'dataroot_gt': str(ROOT / 'testset/gt'), 'batch_size_per_gpu': 2}
    options |= given
    Path('motion.yml').write_text(yaml.safe_dump(options))
    return Path('motion.yml')


def test_the_example_trains(example):
    overrides = [*SHRUNKEN, 'datasets:train:num_worker_per_gpu=0']
    assert train_here(load_options(example, True, overrides)) == 0
    log = next(Path('experiments/bicubic_x4').glob('train_*.log')).read_text()
    assert iterations_logged(log) == [1, 2]


def test_the_example_is_shown_with_what_it_drew(example, capsys):

    show_degradations.main(
        ['-opt', str(example), '--rows', '2', '--count', '3', '--number-of-draws', '20', '-o', 'out']
    )
    assert capsys.readouterr().out.split() == ['out.png', 'out_histograms.png']
    height, width = read_image('out.png').shape[:2]
    assert width > 4 * 256 and height > 2 * 256, 'gt and three lq, enlarged to a legible size'
