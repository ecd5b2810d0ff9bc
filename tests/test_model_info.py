"""`basicsr info`: what a file of weights is, found out by its entries or by what it says itself."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_fixture import ROOT

from basicsr.__main__ import parsed_size
from basicsr.model_file import Description, write_model_file
from basicsr.model_info import about_file, about_model
from basicsr.restoring import load_model
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.registry import UserError
from basicsr.utils.zoo import find_model, known_models


def info(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'basicsr', 'info', *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize('name', known_models())
def test_every_model_with_a_name_has_a_system_a_size_a_cost_and_a_licence(name):
    lines = about_model(find_model(name), (64, 64))
    titles = [line.split()[0] for line in lines]
    assert {'model', 'system', 'network_g', 'FLOPs', 'weights', 'licence', 'from'} <= {*titles}
    counted = 'cannot be counted' not in '\n'.join(lines)
    assert counted or name == 'S3Diff_x4'  # SD-Turbo's prompts come under a licence that has to be accepted


def test_its_numbers_are_those_of_the_network():
    model = load_model('D2C-demo_x4', None, None, True)
    lines = '\n'.join(about_model(find_model('D2C-demo_x4'), (24, 32)))
    for label, net in model.nets.items():
        assert f'network_{label}    {type(net).__name__} with {sum(p.numel() for p in net.parameters()):,} ' in lines
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to('meta').restore(torch.zeros(1, 3, 24, 32, device='meta'))
    assert f'{counter.get_total_flops() / 1e9:,.2f} G to restore an lq of 32x24' in lines


def test_a_file_without_words_is_known_by_its_entries(tmp_path):
    path = tmp_path / 'net_g_latest.pth'
    model = load_model('ATD-demo_x2', None, None, True)
    torch.save({'params': model.nets['g'].state_dict()}, path)
    lines = '\n'.join(about_file(str(path), (64, 64)))
    assert 'fits         options/test/ATD/ATD-demo_x2.yml' in lines
    assert '_x4' not in lines


def test_a_model_file_says_it_itself(tmp_path):
    path = tmp_path / 'model.safetensors'
    network = '{type: RCAN, upscale: 2, num_feat: 16, num_group: 1, num_block: 1}'
    options = f'name: t\nmodel_type: SRModel\nscale: 2\nnetwork_g: {network}\n'
    about = Description(options, {'Set5': {'psnr': 30.123}}, 'CC0', 'me', 'tiny')
    write_model_file(path, {'g': {'weight': torch.zeros(3)}}, about)
    lines = '\n'.join(about_file(str(path), (16, 16)))
    for words in ('SRModel, x2', 'RCAN with', 'Set5: psnr 30.12', 'CC0', 'me', 'tiny', '1 tensors with 3 values'):
        assert words in lines


def test_a_stranger_is_described_as_far_as_it_goes(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'state_dict': {'weight': torch.zeros(2, 3)}, 'epoch': 3}, path)
    lines = '\n'.join(about_file(str(path), (64, 64)))
    assert '1 tensors with 6 values (float32)' in lines
    assert 'entries      state_dict, epoch' in lines
    assert 'none that an option file here describes' in lines


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('hello')
    with pytest.raises(CheckpointError, match=r'a\.pth'):
        about_file(str(path), (64, 64))


@pytest.mark.parametrize('size', ['64', '0x4', 'x', '4x-4', '4xfour'])
def test_a_size_is_width_and_height(size):
    assert parsed_size('12x34') == (34, 12)
    with pytest.raises(UserError, match='WIDTHxHEIGHT'):
        parsed_size(size)


def test_the_command_answers_in_lines_and_refuses_in_one():
    good = info('SR3-demo_x4', '--size', '16x16')
    assert good.returncode == 0 and 'SR3Model, x4' in good.stdout and 'lq of 16x16, in 20 steps' in good.stdout
    bad = info('ATD-dmo_x4')
    assert bad.returncode == 2 and bad.stderr.strip().count('\n') == 0
    assert "did you mean 'ATD-demo_x4'" in bad.stderr
