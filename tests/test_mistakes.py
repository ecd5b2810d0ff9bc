"""Users' mistakes, through train.py and test.py: one clear line, exit status 2, nothing written."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from data_files import make_pairs, pixels

import basicsr.test
import basicsr.train
from basicsr.utils.cli import run
from basicsr.utils.image import write_image

ROOT = Path(__file__).parents[1]
NETWORK = {
    'type': 'ATD',
    'upscale': 2,
    'embed_dim': 12,
    'depths': [2],
    'num_heads': [2],
    'window_size': 4,
    'category_size': 16,
    'num_tokens': 8,
    'upsampler': 'pixelshuffledirect',
}


def tree() -> dict:
    roots = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'}
    return {
        'name': 'x',
        'model_type': 'SRModel',
        'scale': 2,
        'num_gpu': 0,
        'datasets': {
            'train': {'name': 'T', **roots, 'gt_size': 16, 'batch_size_per_gpu': 1},
            'val': {'name': 'V', **roots},
        },
        'network_g': NETWORK,
        'path': {},
        'train': {'total_iter': 2, 'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'pixel_opt': {'type': 'L1Loss'}},
        'val': {'val_freq': 2, 'protocol': 'sr_y'},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2},
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with two pairs; log handlers and accelerate's state as they were afterwards."""
    make_pairs(tmp_path, ['a.png', 'b.png'], height=8, width=8)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger('basicsr')
    before = logger.handlers
    logger.handlers = []
    yield tmp_path
    logger.handlers = before
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def said(place: Path, monkeypatch, capsys, changed: dict, program=basicsr.train, arguments=()) -> str:
    """The message of a command that must fail; checks all that holds for every mistake."""
    (place / 'x.yml').write_text(yaml.safe_dump(changed))
    files = sorted(place.rglob('*'))
    monkeypatch.setattr(sys, 'argv', ['program', '-opt', 'x.yml', *arguments])
    with pytest.raises(SystemExit) as caught:
        run(program.main)
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if ' INFO: ' not in line and ' WARNING: ' not in line]
    assert caught.value.code == 2 and output.out == ''
    assert sorted(place.rglob('*')) == files, 'nothing is written'
    assert lines[0].startswith('Error: ')
    text = '\n'.join(lines)
    assert not any(word in text for word in ('Traceback', 'pydantic', 'Input should', 'validation error'))
    assert len(lines) == 1 or 'items of the data sets cannot be used:' in lines[0]
    return text.removeprefix('Error: ')


def test_a_typo_is_answered(place, monkeypatch, capsys):
    options = tree()
    options['train']['optim_g']['lrr'] = 1
    text = said(place, monkeypatch, capsys, options)
    assert text.startswith('x.yml:') and text.endswith(
        "train:optim_g:lrr: 'lrr' is not a known option of Adam; did you mean 'lr'?"
    )
    assert 'did you mean' in said(place, monkeypatch, capsys, options, basicsr.test, ['network_g:upscal=2'])


@pytest.mark.parametrize('program', [basicsr.train, basicsr.test], ids=['train', 'test'])
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['scale=two'], "command line: scale: should be a whole number, got 'two'"),
        (['--force_yml', 'datasets:val:dataroot_lq=nowhere'], "datasets:val:dataroot_lq: 'nowhere' does not exist"),
        (['network_g:depths=2'], 'command line: network_g:depths: should be a list, got 2'),
        (['name=../x'], "command line: name: '../x' cannot be the name of an experiment"),
        (['noequals'], "command line, 'noequals': an override is written section:key=value"),
        (['path:pretrain_network_g=first.pth'], "'first.pth' does not exist"),
        (['manual_seed=-3'], 'command line: manual_seed: should be greater than or equal to 0, got -3'),
    ],
)
def test_mistakes_on_the_command_line_are_answered(program, arguments, message, place, monkeypatch, capsys):
    assert message in said(place, monkeypatch, capsys, tree(), program, arguments)


def test_a_loss_is_needed(place, monkeypatch, capsys):
    options = tree()
    del options['train']['pixel_opt']
    assert 'pixel_opt' in said(place, monkeypatch, capsys, options)


@pytest.mark.parametrize('program', [basicsr.train, basicsr.test], ids=['train', 'test'])
def test_faults_of_the_data_are_listed_at_once(program, place, monkeypatch, capsys):
    (place / 'lq/a.png').unlink()
    write_image(place / 'gt/b.png', pixels(0, 15, 16))
    text = said(place, monkeypatch, capsys, tree(), program)
    assert 'gt/a.png: without a partner' in text and 'gt/b.png is 16x15; 2 times lq/b.png (8x8) would be 16x16' in text


def test_a_crop_larger_than_an_image_is_answered(place, monkeypatch, capsys):
    text = said(place, monkeypatch, capsys, tree(), arguments=['datasets:train:gt_size=32'])
    assert 'gt/a.png is 16x16, smaller than the crop of gt_size 32' in text


@pytest.mark.parametrize('program', [basicsr.train, basicsr.test], ids=['train', 'test'])
def test_an_empty_folder_is_answered(program, place, monkeypatch, capsys):
    (place / 'empty').mkdir()
    text = said(
        place,
        monkeypatch,
        capsys,
        tree(),
        program,
        ['datasets:val:dataroot_lq=empty', 'datasets:train:dataroot_lq=empty'],
    )
    assert 'empty: holds no images' in text


@pytest.mark.parametrize('program', [basicsr.train, basicsr.test], ids=['train', 'test'])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'params': {'conv_first.weight': torch.zeros(12, 3, 3, 3)}}, 'first.pth: belongs to another network than ATD'),
        (
            {'params': {'conv_first.weight': torch.zeros(8, 3, 3, 3)}},
            '1 of another shape: conv_first.weight (8, 3, 3, 3)',
        ),
        ({'iter': 3}, "first.pth: no network under 'params'; the file has: iter"),
        (b'text', 'first.pth: damaged or truncated (4 bytes): not a checkpoint'),
        (b'PK\x03\x04 torn', 'first.pth: damaged or truncated (9 bytes)'),
    ],
)
def test_checkpoints_that_do_not_fit_are_answered(program, content, message, place, monkeypatch, capsys):
    if isinstance(content, bytes):
        (place / 'first.pth').write_bytes(content)
    else:
        torch.save(content, place / 'first.pth')
    text = said(place, monkeypatch, capsys, tree(), program, ['path:pretrain_network_g=first.pth'])
    assert message in text


def command(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''}
    return subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True)


def test_a_shell_sees_one_line_and_the_status(place):
    options = tree()
    options['netwrok_g'] = options.pop('network_g')
    (place / 'x.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    done = command(place, str(ROOT / 'basicsr/train.py'), '-opt', 'x.yml')
    lines = [line for line in done.stderr.splitlines() if ' INFO: ' not in line]
    assert (done.returncode, done.stdout, len(lines)) == (2, '', 1)
    assert lines[0].startswith('Error: x.yml:') and lines[0].endswith("did you mean 'network_g'?")
    done = command(place, str(ROOT / 'basicsr/test.py'), '-opt', 'nothing.yml')
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'Error: nothing.yml: no such option file\n')


@pytest.mark.parametrize('program', [basicsr.train, basicsr.test], ids=['train', 'test'])
def test_a_command_without_an_option_file_says_what_is_required(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['program'])
    with pytest.raises(SystemExit) as caught:
        run(program.main)
    assert caught.value.code == 2 and 'required: -opt' in capsys.readouterr().err
