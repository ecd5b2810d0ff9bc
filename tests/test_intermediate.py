"""inference.py with ITER: the picture of all steps beside the result, and options given on the command line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from iter_fixture import NETWORK, tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference
from basicsr.models.restorer import Restorer
from basicsr.restoring import intermediate_picture
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, to_tensor, to_uint8, write_image
from basicsr.utils.messages import LOGGER

OPTIONS = {
    'name': 'tiny',
    'model_type': 'ITERModel',
    'scale': 4,
    'model': {'refinement': {'threshold': 0.4}},
    'network_g': NETWORK,
    'path': {'pretrain_network_g': 'g.pth', 'pretrain_network_hq': 'vqgan.pth'},
}


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs inference.py in a folder with a tiny ITER in two files and a picture in/a.png; status and words."""
    monkeypatch.chdir(tmp_path)
    net = tiny_model().nets['g']
    torch.save({'params': {k: v for k, v in net.state_dict().items() if not k.startswith('vqgan.')}}, 'g.pth')
    torch.save({'params': net.vqgan.state_dict()}, 'vqgan.pth')
    Path('tiny.yml').write_text(yaml.safe_dump(OPTIONS))
    write_image('in/a.png', np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8))

    def run_it(*arguments) -> tuple[int, str]:
        command = [
            'inference.py',
            '-i',
            'in',
            '-o',
            'out',
            '--opt',
            'tiny.yml',
            '--device',
            'cpu',
            *map(str, arguments),
        ]
        monkeypatch.setattr(sys, 'argv', command)
        monkeypatch.setattr(LOGGER, 'handlers', [])
        with pytest.raises(SystemExit) as stopped:
            run(inference.main)
        captured = capfd.readouterr()
        return stopped.value.code, captured.out + captured.err

    return run_it


def pixels(path: str) -> np.ndarray:
    return np.rint(255 * read_image(path)).astype(np.uint8)


@pytest.mark.parametrize(('steps', 'tiles'), [(8, ()), (3, ()), (8, ('--tile', '8', '--overlap', '4'))])
def test_all_steps_are_shown_above_their_masks(steps, tiles, call):
    status, text = call('--save-intermediate', '--force_yml', f'model:refinement:T={steps}', *tiles)
    assert status == 0, text
    assert {path.name for path in Path('out').iterdir()} == {'a.png', 'a_intermediate.png'}
    sheet = pixels('out/a_intermediate.png')
    assert sheet.shape == (2 * 52, steps * 76, 3)
    cells = sheet.reshape(2, 52, steps, 76, 3).transpose(0, 2, 1, 3, 4)
    assert np.array_equal(cells[0, -1], pixels('out/a.png')), 'the last picture is the result'
    masks = cells[1]
    assert set(np.unique(masks)) == {0, 255} and (masks[..., 0] == masks[..., 1]).all()
    whole = masks[:, :48, :72, 0].reshape(steps, 6, 8, 9, 8)
    assert (whole == whole[:, :, :1, :, :1]).all(), 'a token is a square of eight pixels'
    shares = masks.mean((1, 2, 3))
    assert (np.diff(shares) >= 0).all() and shares[-1] > shares[0]


def test_the_sheet_is_laid_out_as_the_publishers_have_it():
    images, masks = torch.rand(1, 3 * 5, 4, 6), torch.randint(0, 2, (1, 5, 4, 6)).float()
    (picture,) = intermediate_picture(torch.cat([images, masks], 1))
    rows = torch.cat(images[0].split(3), 2), torch.cat([mask.expand(3, -1, -1) for mask in masks[0].split(1)], 2)
    assert np.array_equal(picture, to_uint8(torch.cat(rows, 1)))


def test_the_result_itself_is_the_same_with_and_without_the_sheet(call):
    assert call()[0] == 0
    plain = Path('out/a.png').read_bytes()
    assert call('--save-intermediate')[0] == 0 and Path('out/a.png').read_bytes() == plain


def test_options_of_the_command_line_replace_those_of_the_file(call):
    model = tiny_model(model={'refinement': {'threshold': 0.4, 'T': 4, 'schedule': 'cosine', 'sampling': 'greedy'}})
    expected = to_uint8(Restorer(model)(to_tensor(read_image('in/a.png'))[None]))
    chosen = ['model:refinement:T=4', 'model:refinement:schedule=cosine', 'model:refinement:sampling=greedy']
    assert call('--force_yml', *chosen)[0] == 0
    assert np.array_equal(pixels('out/a.png'), expected)
    assert call('--force_yml', 'model:seed=1')[0] == 0
    first = Path('out/a.png').read_bytes()
    assert call('--force_yml', 'model:seed=2')[0] == 0 and Path('out/a.png').read_bytes() != first
    assert call('--force_yml', 'model:seed=1')[0] == 0 and Path('out/a.png').read_bytes() == first


@pytest.mark.parametrize(
    ('override', 'reason'),
    [
        ('model:refinement:TT=4', "command line: model:refinement:TT: 'TT' is not a known option of refinement"),
        ('model:refinement:schedule=cosin', "'cosin' is not a known schedule"),
        ('T4', 'an override is written section:key=value'),
        ('path:pretrain_network_hq=g.pth', 'g.pth: belongs to another network than SwinVQGAN as configured'),
        ('path:pretrain_network_hq=~', 'g.pth: holds no VQGAN (vqgan.*)'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(override, reason, call):
    status, text = call('--force_yml', override)
    assert status == 2 and reason in text and len(text.strip().splitlines()) == 1


def test_a_model_has_the_pictures_that_it_has(call):
    status, text = call('--save-process')
    assert status == 2 and 'ITERModel has no maps called process: its maps are intermediate' in text
    status, text = call('--save-process', '--save-intermediate')
    assert status == 2 and 'not allowed with argument' in text
    status, text = call('--save-intermediate', '--force_yml', 'network_g:refine=false', 'model:refinement=~')
    assert status == 2 and 'belongs to another network' in text


def test_a_picture_with_alpha_is_restored_with_its_sheet(call):
    write_image('in/a.png', np.random.default_rng(0).integers(0, 256, (13, 19, 4), dtype=np.uint8))
    status, text = call('--save-intermediate')
    assert status == 0, text
    assert pixels('out/a_intermediate.png').shape == (104, 608, 3)
