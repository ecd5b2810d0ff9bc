"""inference.py --save-uncertainty: the spread of the branches and the fusion weights as pictures beside the result."""

import sys
from pathlib import Path

import d2c_fixture
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference
from basicsr.restoring import WHITE_SPREAD, load_model, map_pictures
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, to_tensor, write_image
from basicsr.utils.messages import LOGGER

OPTIONS = f"""
name: tiny
model_type: D2CModel
scale: 2
custom_imports: [{d2c_fixture.__file__}]
network_g: {{type: TinyBranches, scale: 2}}
network_f: {{type: TinyFusion}}
path: {{pretrain_network_g: g.pth, pretrain_network_f: f.pth}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a tiny model and a picture in/a.png."""
    monkeypatch.chdir(tmp_path)
    model = d2c_fixture.prepared()
    for label, content in model.networks().items():
        torch.save(content, f'{label}.pth')
    (tmp_path / 'tiny.yml').write_text(OPTIONS)
    write_image('in/a.png', np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8))
    return tmp_path


def call(monkeypatch, capfd, *arguments) -> tuple[int, str]:
    command = ['inference.py', '-i', 'in', '-o', 'out', '--opt', 'tiny.yml', '--device', 'cpu', *map(str, arguments)]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.setattr(LOGGER, 'handlers', [])
    with pytest.raises(SystemExit) as stopped:
        run(inference.main)
    captured = capfd.readouterr()
    return stopped.value.code, captured.out + captured.err


def gray(path: Path) -> np.ndarray:
    return read_image(path)[..., 0] * 255


@pytest.mark.parametrize('settings', [(), ('--tile', '8', '--overlap', '4')])
def test_both_maps_are_written_in_their_scales(settings, folder, monkeypatch, capfd):
    status, text = call(monkeypatch, capfd, '--save-uncertainty', *settings)
    assert status == 0, text
    assert {path.name for path in Path('out').iterdir()} == {'a.png', 'a_uncertainty.png', 'a_weights.png'}
    assert gray('out/a_uncertainty.png').shape == (26, 18) and gray('out/a_weights.png').shape == (52, 36)
    with torch.no_grad():
        branches = load_model(None, 'tiny.yml', None, offline=True).eval_net('g')(
            to_tensor(read_image('in/a.png'))[None]
        )
    spread = branches.std(1, correction=0).mean(1)[0].numpy()
    shown = np.minimum(255, 255 * spread / WHITE_SPREAD)
    if not settings:  # at their seams tiles lack some of their surroundings
        assert np.abs(gray('out/a_uncertainty.png') - shown).max() <= 1
    quarters = gray('out/a_weights.png').reshape(2, 26, 2, 18).sum((0, 2))
    assert np.abs(quarters - 255).max() <= 2, 'the weights of the four branches sum to one'


def test_the_result_itself_is_the_same_with_and_without_maps(folder, monkeypatch, capfd):
    assert call(monkeypatch, capfd)[0] == 0
    plain = Path('out/a.png').read_bytes()
    assert {path.name for path in Path('out').iterdir()} == {'a.png'}
    assert call(monkeypatch, capfd, '--save-uncertainty')[0] == 0
    assert Path('out/a.png').read_bytes() == plain


def test_a_picture_with_alpha_has_maps_too(folder, monkeypatch, capfd):
    write_image('in/a.png', np.random.default_rng(0).integers(0, 256, (13, 9, 4), dtype=np.uint8))
    status, text = call(monkeypatch, capfd, '--save-uncertainty', '--self-ensemble')
    assert status == 0, text
    assert gray('out/a_weights.png').shape == (52, 36)


def test_the_weights_are_laid_out_as_the_tree_is():
    maps = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4]).view(1, 5, 1, 1).expand(1, 5, 2, 3)
    spread, weights = map_pictures(maps)
    assert spread.dtype == np.uint8 and (spread == 128).all() and spread.shape == (2, 3)
    assert weights[0].tolist() == [26] * 3 + [51] * 3 and weights[3].tolist() == [76] * 3 + [102] * 3


def test_a_map_never_takes_the_place_of_a_picture(folder, monkeypatch, capfd):
    write_image('in/a_weights.png', np.zeros((8, 8, 3), np.uint8))
    status, text = call(monkeypatch, capfd, '--save-uncertainty')
    assert status == 2 and 'out/a_weights.png, a map of in/a.png, would overwrite another file' in text
    assert not Path('out').exists()


def test_models_without_maps_refuse_in_one_line(folder, monkeypatch, capfd):
    text = OPTIONS.replace('D2CModel', 'SRModel').replace('network_f: {type: TinyFusion}\n', '')
    Path('tiny.yml').write_text(text.replace(', pretrain_network_f: f.pth', ''))
    status, text = call(monkeypatch, capfd, '--save-uncertainty')
    assert status == 2 and 'Error: SRModel has no maps' in text and 'Traceback' not in text
