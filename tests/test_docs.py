"""The documentation: it builds, its commands run or say what they need, and what it quotes is in the code."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from training_fixture import ROOT

sys.path.insert(0, str(ROOT / 'scripts'))
import make_option_reference

from basicsr.utils.options import load_options
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    UserError,
)

DOCS = ROOT / 'docs'
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md'))
TEXTS = {page: (DOCS / page).read_text(encoding='utf-8') for page in PAGES}
FENCE = re.compile(r'^```([^\n]*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SHELL = {
    page: [(head, text) for head, text in FENCE.findall(TEXTS[page]) if head.startswith(('sh', 'bash'))]
    for page in PAGES
}
FREE = {page: [text for head, text in blocks if head == 'sh'] for page, blocks in SHELL.items()}
LINES = [
    (page, line)
    for page, blocks in SHELL.items()
    for _, text in blocks
    for line in text.splitlines()
    if line[:1] != '#'
]
SCRIPT = re.compile(r'(?:^|\s)((?:scripts/|basicsr/)?\w+\.py)(?=\s|$)(.*)')
README = (ROOT / 'README.md').read_text(encoding='utf-8')
SYSTEMS = ('atd.md', 'd2c.md', 'sr3.md', 'iter.md', 's3diff.md')


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith('|') and not re.match(r'\|[\s:|-]+\|$', line)]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]


def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip('material', reason="needs pip install -e '.[docs]'")
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.relative_to(tmp_path).with_suffix('.md').as_posix() for path in tmp_path.rglob('*.html')} >= set(PAGES)


def test_a_block_of_commands_runs_or_says_what_it_needs():
    heads = {head for blocks in SHELL.values() for head, _ in blocks}
    assert all(head == 'sh' or re.fullmatch(r'sh title="needs [^"]+"', head) for head in heads), heads


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder that looks like a fresh checkout, with the plug-in that the page on extending shows."""
    for name in ('basicsr', 'options', 'testset', 'scripts', 'inference.py'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'my_project').mkdir()
    for name, text in re.findall(
        r'^`(my_project/\w+\.\w+)`[^\n]*:\n\n```\w+\n(.*?)^```$', TEXTS['extending.md'], re.S | re.M
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def run_commands(page: str, folder: Path) -> None:
    """What the page's blocks without a title say, line by line, in a folder; nothing may fail."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'BASICSR_OFFLINE': '1', 'PATH': path}
    for line in '\n'.join(FREE[page]).splitlines():
        done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr}'


@pytest.mark.parametrize('page', [page for page in PAGES if FREE[page] and page != 'extending.md'])
def test_the_commands_of_a_page_run(page, checkout):
    run_commands(page, checkout)


def test_the_shown_plugin_is_trained_measured_and_used(checkout):
    run_commands('extending.md', checkout)
    log = next((checkout / 'experiments/tiny').glob('train_*.log')).read_text()
    assert 'TinySR with' in log
    assert re.search(r'# worst: \d', log)
    assert list((checkout / 'results/inference').rglob('astronaut_flag*.png'))


@pytest.mark.parametrize(('page', 'line'), LINES)
def test_a_command_has_a_script_with_such_arguments(page, line):
    found = SCRIPT.search(line)
    if not found:
        assert line.split()[0] in ('python3', 'source', 'pip', 'mkdocs') or '-m basicsr info' in line, line
        return
    script, arguments = (ROOT / found[1]).read_text(), found[2]
    shared = {'preparing': 'scripts', 'exporting': 'scripts', 'basicsr.utils.cli': '.'}
    imported = [name for name in shared if f'from {name} ' in script]
    files = [ROOT / shared[name] / f'{name.replace(".", "/")}.py' for name in imported]
    sources = [script, *(file.read_text() for file in files)]
    for flag in re.findall(r'(?<!\S)--?[a-z][\w-]*', arguments):
        assert any(f"'{flag}'" in source for source in sources), f'{found[1]} has no {flag}'
    for pattern in re.findall(r'options/\S+', line):
        assert list(ROOT.glob(pattern.removeprefix('-opt='))), pattern


TRAINS = [line for _, line in LINES if re.search(r'basicsr/(train|test)\.py -opt options/', line)]


@pytest.mark.parametrize('line', TRAINS)
def test_the_options_of_a_command_are_options(line):
    program, file, overrides = re.search(r'basicsr/(train|test)\.py -opt (\S+)(.*)', line).groups()
    overrides = [word for word in overrides.split() if not word.startswith('-')]
    assert load_options(ROOT / file, program == 'train', overrides, check_files=False).name


def test_the_pages_of_the_options_are_what_the_code_reads():
    # In a process of its own: other tests have registered parts that are none of ours.
    command = [sys.executable, 'scripts/make_option_reference.py', '--check']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_of_options_that_was_not_written_anew_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_option_reference, 'pages', lambda: {'losses.md': '# Losses\n'})
    monkeypatch.setattr(make_option_reference, 'FOLDER', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['make_option_reference.py'])
    assert make_option_reference.main() == 0
    monkeypatch.setattr(sys, 'argv', ['make_option_reference.py', '--check'])
    assert make_option_reference.main() == 0
    (tmp_path / 'losses.md').write_text('# Losses of old\n')
    with pytest.raises(UserError, match=r'losses\.md is not what the code reads'):
        make_option_reference.main()


@pytest.mark.parametrize(
    ('page', 'registry'),
    [
        ('networks.md', ARCH_REGISTRY),
        ('models.md', MODEL_REGISTRY),
        ('datasets.md', DATASET_REGISTRY),
        ('losses.md', LOSS_REGISTRY),
        ('metrics.md', METRIC_REGISTRY),
    ],
)
def test_every_argument_of_every_component_is_explained(page, registry):
    sections = dict(re.findall(r'^## (\w+)\n(.*?)(?=^## |\Z)', TEXTS[f'options/{page}'], re.S | re.M))
    given = {'opt', 'scale', 'phase'} if registry is not ARCH_REGISTRY and registry is not LOSS_REGISTRY else set()
    ours = [name for name in registry.names() if registry.get(name).__module__.startswith('basicsr.')]
    for name in ours:
        listed = {row[0].strip('`'): row[3] for row in rows(sections[name])[1:]}
        wanted = inspect.signature(registry.get(name)).parameters.keys() - given - {'sr', 'gt'}
        assert wanted <= listed.keys() and all(listed.values()), name


@pytest.mark.parametrize(('page', 'count'), [('networks.md', 5), ('models.md', 4), ('datasets.md', 5)])
def test_what_a_section_may_hold_is_listed_where_its_type_leads(page, count):
    text = TEXTS[f'options/{page}']
    sections = re.findall(r'^## (\w+)\n(.*?)(?=^## |\Z)', text, re.S | re.M)
    parts, places = {name.lower(): part for name, part in sections}, set(re.findall(r'\]\(#(\w+)\)', text))
    assert len(places) == count
    for place in places:
        listed = rows(parts[place])[1:]
        assert listed or 'No options.' in parts[place], place
        assert all(meaning for *_, meaning in listed), place


def constants(path: Path) -> list[str]:
    """Every text in a file of Python, as it is when the program runs; those with values inside in parts."""
    return [
        n.value
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def test_every_quoted_message_is_in_the_code():
    files = [*(ROOT / 'basicsr').rglob('*.py'), ROOT / 'inference.py']
    known = '\n'.join(text for path in files for text in constants(path))
    quoted = [text for row in rows(TEXTS['troubleshooting.md']) for text in re.findall(r'`([^`]+)`', row[0])]
    assert len(quoted) > 50
    assert not [text for text in quoted if text not in known]


def test_what_replaces_the_keys_of_other_repositories_exists():
    options = '\n'.join(path.read_text() for path in (ROOT / 'options').rglob('*.yml'))
    known = options + '\n'.join(TEXTS[page] for page in PAGES if page.startswith('options/'))
    for _, here in rows(TEXTS['moving.md']):
        for quoted in re.findall(r'`([^`]+)`', here):
            words = [] if '.py' in quoted or quoted.startswith(('accelerate', 'torchrun', '-', 'A:B')) else quoted
            for word in re.findall(r'[a-z]\w*_\w+', str(words)):
                assert word in known, f'{quoted}: {word}'


@pytest.mark.parametrize('path', sorted((ROOT / 'options/accelerate').glob('*.yaml')), ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration(path):
    args = launch_command_parser().parse_args(['--config_file', str(path), 'basicsr/train.py'])
    args, _, _ = _validate_launch_command(args)
    given = yaml.safe_load(path.read_text())
    assert (args.num_processes, args.num_machines) == (given['num_processes'], given['num_machines'])
    assert args.use_cpu == given['use_cpu']
    assert bool(args.multi_gpu) == (given['distributed_type'] == 'MULTI_GPU')
    assert bool(args.use_fsdp) == (given['distributed_type'] == 'FSDP')
    assert f'`{path.name}`' in TEXTS['scaling.md']


def test_own_results_are_those_of_the_readme():
    known = {row[0]: ' '.join(row) for row in rows(README)}
    own = [row for page in SYSTEMS for row in rows(TEXTS[page]) if re.fullmatch(r'[\w-]+-demo_x\d', row[0])]
    assert len(own) >= 5
    for name, *numbers in own:
        assert all(number in known[name] for number in numbers), name


@pytest.mark.parametrize('page', SYSTEMS)
def test_a_page_of_a_system_has_all_its_parts(page):
    parts = re.findall(r'^## (.*)$', TEXTS[page], re.M)
    assert parts == ['Restore', 'Test', 'Train', 'What differs from the published code']
    assert 'ublished results' in TEXTS[page]
