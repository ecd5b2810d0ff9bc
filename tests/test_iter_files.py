"""ITER in its published form: written from ours, and read as the published files are."""

import sys

import pytest
import torch
import yaml
from iter_fixture import NETWORK, options, tiny_model
from training_fixture import ROOT

from basicsr.models import build_model
from basicsr.utils.registry import UserError

sys.path.insert(0, str(ROOT / 'scripts'))
import convert_checkpoint

TREE = {'name': 'tiny', 'model_type': 'ITERModel', 'scale': 4, 'network_g': NETWORK}


def convert(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
    assert convert_checkpoint.main() == 0


@pytest.fixture
def files(tmp_path):
    """Our file of a network, and the option file that describes it."""
    net = tiny_model().nets['g']
    torch.save({'params': net.state_dict()}, tmp_path / 'ours.pth')
    (tmp_path / 'tiny.yml').write_text(yaml.safe_dump(TREE))
    return tmp_path, net


def test_the_published_form_has_masks_and_copies_and_loads_as_it_was(files, monkeypatch):
    folder, net = files
    convert(monkeypatch, folder / 'ours.pth', folder / 'published.pth', '--opt', folder / 'tiny.yml')
    written = torch.load(folder / 'published.pth', weights_only=True)['params']
    extra = written.keys() - net.state_dict().keys()
    assert {name.rpartition('.')[2] for name in extra if 'generator' not in name} == {
        'attn_mask',
        'relative_position_index',
    }
    copies = [name for name in extra if '.generator.' in f'.{name}']
    assert copies and all(torch.equal(written[n], written[n.replace('generator', 'decoder')]) for n in copies)
    again = build_model(options(path={'pretrain_network_g': str(folder / 'published.pth')})).nets['g'].state_dict()
    assert all(torch.equal(again[name], value) for name, value in net.state_dict().items())


def test_an_option_file_is_for_the_published_form_and_has_to_fit(files, monkeypatch):
    folder, _ = files
    with pytest.raises(UserError, match='needs --opt'):
        convert(monkeypatch, folder / 'ours.pth', folder / 'published.pth')
    with pytest.raises(UserError, match='needs --opt, and nothing else does'):
        convert(monkeypatch, folder / 'ours.pth', folder / 'x.safetensors', '--opt', folder / 'tiny.yml')
    other = ROOT / 'options/test/ATD/ATD-demo_x4.yml'
    with pytest.raises(UserError, match='published form of ITER'):
        convert(monkeypatch, folder / 'ours.pth', folder / 'published.pth', '--opt', other)
    (folder / 'tiny.yml').write_text(yaml.safe_dump(TREE | {'network_g': {**NETWORK, 'refine': False}}))
    with pytest.raises(UserError, match='belongs to another network'):
        convert(monkeypatch, folder / 'ours.pth', folder / 'published.pth', '--opt', folder / 'tiny.yml')
    assert not (folder / 'published.pth').exists()
