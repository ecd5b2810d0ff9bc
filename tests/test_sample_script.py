"""scripts/sample.py and inference.py --save-process: images by their numbers, grids and process pictures."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sr3_fixture import LINEAR, SR3, tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

import sample

import inference
from basicsr.models.diffusion_sampling import Sampler
from basicsr.utils.cli import run
from basicsr.utils.grid import image_grid
from basicsr.utils.image import read_image, to_tensor, to_uint8, write_image
from basicsr.utils.messages import LOGGER

FAST = {'type': 'ddim', 'steps': 4}
UNCONDITIONAL = {**SR3, 'in_channel': 3}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with tiny networks of both kinds and a picture in/a.png."""
    monkeypatch.chdir(tmp_path)
    for name, network in (('sample', UNCONDITIONAL), ('restore', SR3)):
        torch.save(tiny_model(network).networks()['g'], f'{name}.pth')
        options = {'name': name, 'model_type': 'SR3Model', 'scale': 4, 'model': {'schedule': LINEAR, 'sampler': FAST}}
        options |= {'network_g': network, 'path': {'pretrain_network_g': f'{name}.pth'}}
        Path(f'{name}.yml').write_text(yaml.safe_dump(options))
    write_image('in/a.png', np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8))
    return tmp_path


def call(monkeypatch, capfd, main, *arguments) -> tuple[int, str]:
    monkeypatch.setattr(sys, 'argv', ['script', *map(str, arguments)])
    monkeypatch.setattr(LOGGER, 'handlers', [])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    captured = capfd.readouterr()
    return stopped.value.code, captured.out + captured.err


def sampled(monkeypatch, capfd, *arguments) -> tuple[int, str]:
    return call(monkeypatch, capfd, sample.main, '--opt', 'sample.yml', '--device', 'cpu', *arguments)


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_images_are_written_by_their_numbers_and_as_a_grid(folder, monkeypatch, capfd):
    status, text = sampled(monkeypatch, capfd, '--count', 5, '--seed', 3, '--batch', 2, '-o', 'out')
    assert status == 0, text
    assert names('out') == {f'{number:05d}.png' for number in range(3, 8)} | {'grid.png'}
    expected = tiny_model(UNCONDITIONAL, model={'sampler': FAST}).sample(5, seed=3)
    for number, image in enumerate(expected, 3):
        assert np.array_equal(read_image(f'out/{number:05d}.png') * 255, to_uint8(image).astype(np.float32))
    grid = to_tensor(read_image('out/grid.png'))
    assert grid.shape == (3, 3 * 10 + 2, 2 * 10 + 2)
    assert torch.equal(grid[:, 2:10, 12:20], to_tensor(read_image('out/00004.png')))


def test_an_image_is_the_same_alone(folder, monkeypatch, capfd):
    assert sampled(monkeypatch, capfd, '--count', 3, '-o', 'all')[0] == 0
    assert sampled(monkeypatch, capfd, '--count', 1, '--seed', 2, '-o', 'one')[0] == 0
    assert names('one') == {'00002.png'}
    assert Path('one/00002.png').read_bytes() == Path('all/00002.png').read_bytes()


def test_the_sampler_and_the_size_may_be_given(folder, monkeypatch, capfd):
    given = ('--sampler', 'dpmpp_2m', '--steps', 3, '--spacing', 'logsnr', '--size', '5x12')
    status, text = sampled(monkeypatch, capfd, '--count', 1, *given, '--save-process', '-o', 'out')
    assert status == 0, text
    model = tiny_model(UNCONDITIONAL)
    model.sampler = Sampler('dpmpp_2m', 3, spacing='logsnr')
    frames = model.sample(1, seed=0, size=(5, 12), snapshots=True)[:, 0]
    assert len(frames) == 4 and names('out') == {'00000.png', '00000_process.png'}
    shown = read_image('out/00000_process.png') * 255
    assert np.array_equal(shown, to_uint8(image_grid(frames)).astype(np.float32))
    assert shown.shape == (2 * 7 + 2, 2 * 14 + 2, 3)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (('--opt', 'restore.yml'), 'Error: this network restores images'),
        (('--steps', 21), 'takes 1 to 20 steps, got 21'),
        (('--sampler', 'dpmpp_2m', '--eta', 0.5), "eta belongs to the sampler 'ddim'"),
        (('--eta', 1.5), 'less than or equal to 1'),
        (('--weights', 'no.pth'), 'no.pth'),
        (('--count', 0), "'0' should be a whole number, 1 or more"),
        (('--device', 'cuda:77'), 'Error: --device cuda:77'),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, text, folder, monkeypatch, capfd):
    status, said = sampled(monkeypatch, capfd, *arguments)
    assert status == 2 and text in said and 'Traceback' not in said
    assert not Path('results').exists()


def test_inference_shows_the_process(folder, monkeypatch, capfd):
    command = ('-i', 'in', '-o', 'out', '--opt', 'restore.yml', '--device', 'cpu')
    assert call(monkeypatch, capfd, inference.main, *command)[0] == 0
    plain = Path('out/a.png').read_bytes()
    status, text = call(monkeypatch, capfd, inference.main, *command, '--save-process')
    assert status == 0, text
    assert names('out') == {'a.png', 'a_process.png'} and Path('out/a.png').read_bytes() == plain
    process = to_tensor(read_image('out/a_process.png'))
    assert process.shape == (3, 3 * 22 + 2, 2 * 14 + 2), 'the input and four states, two in a row'
    assert torch.equal(process[:, 46:66, 2:14], to_tensor(read_image('out/a.png'))), 'the last state is the result'


def test_maps_that_a_model_does_not_have_are_refused(folder, monkeypatch, capfd):
    command = ('-i', 'in', '-o', 'out', '--opt', 'restore.yml', '--device', 'cpu')
    status, text = call(monkeypatch, capfd, inference.main, *command, '--save-uncertainty')
    assert status == 2 and 'SR3Model has no maps called uncertainty, weights: its maps are process' in text
    status, text = call(monkeypatch, capfd, inference.main, *command, '--save-uncertainty', '--save-process')
    assert status == 2 and 'argument --save-process: not allowed with argument --save-uncertainty' in text


def test_an_unconditional_network_restores_nothing_and_says_what_to_use(folder, monkeypatch, capfd):
    command = ('-i', 'in', '-o', 'out', '--opt', 'sample.yml', '--device', 'cpu')
    status, text = call(monkeypatch, capfd, inference.main, *command)
    assert status == 1 and 'in/a.png: this network makes images from noise alone' in text and '0 of 1' in text


def test_a_grid_has_black_lines_between_and_around():
    images = torch.stack([torch.full((3, 4, 5), value) for value in (0.2, 0.4, 0.6)])
    grid = image_grid(images, columns=2)
    assert grid.shape == (3, 14, 16) and torch.equal(image_grid(images[:1]), images[0])
    assert grid[0, 2, 2] == 0.2 and grid[0, 5, 13] == pytest.approx(0.4) and grid[0, 8, 2] == pytest.approx(0.6)
    covered = torch.zeros(14, 16, dtype=torch.bool)
    for top, left in ((2, 2), (2, 9), (8, 2)):
        covered[top : top + 4, left : left + 5] = True
    assert (grid[:, ~covered] == 0).all() and (grid[:, covered] > 0).all()
