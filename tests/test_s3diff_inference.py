"""inference.py with S3Diff as users run it, on a tiny SD-Turbo: pictures in, pictures out, one line for a fault."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from s3diff_fixture import options, randomise, sd_turbo, tree
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import encode_prompts

import inference
from basicsr.models import build_model
from basicsr.models.prompts import NEGATIVE, POSITIVE, encode
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, write_image
from basicsr.utils.messages import LOGGER
from basicsr.utils.options import load_options
from basicsr.utils.registry import MODEL_REGISTRY, argument_model

ROOT = Path(inference.__file__).parent
PUBLISHED = ROOT / 'options' / 'test' / 'S3Diff' / 'S3Diff_x4.yml'


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """A folder with tiny.yml, and the files of weights that it names."""
    folder = tmp_path_factory.mktemp('tiny')
    torch.manual_seed(0)
    model = build_model(options({'sd_path': str(sd_turbo())}))
    randomise(model)
    torch.save(model.nets['g'].to_published(model.networks()['g']['params']), folder / 's3diff.pkl')
    torch.save(model.nets['de'].state_dict(), folder / 'de_net.pth')
    path = {'pretrain_network_g': str(folder / 's3diff.pkl'), 'pretrain_network_de': str(folder / 'de_net.pth')}
    settings = {'sd_path': str(sd_turbo()), 'prompt_embeddings': None}
    (folder / 'tiny.yml').write_text(yaml.safe_dump(tree(settings, path=path)))
    for number, (height, width) in enumerate(((20, 14), (9, 40))):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
        write_image(folder / 'lq' / f'{number}.png', pixels)
    return folder


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Runs a command of ours in this process; gives its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ('BASICSR_OFFLINE', 'BASICSR_ACCEPT_LICENSE', 'HF_ENDPOINT'):
        monkeypatch.setenv(name, '')  # what a command sets is undone afterwards
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'other'))
    monkeypatch.setattr(sys, 'stdin', None)

    def run_it(*arguments, command=inference) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [command.__name__, *map(str, arguments)])
        monkeypatch.setattr(LOGGER, 'handlers', [])  # those of an earlier test write to its captured stderr
        with pytest.raises(SystemExit) as stopped:
            run(command.main)
        captured = capfd.readouterr()
        return stopped.value.code, captured.out + captured.err

    return run_it


def restored(files: Path, call, *arguments) -> list[np.ndarray]:
    status, said = call('-i', files / 'lq', '--opt', files / 'tiny.yml', '--device', 'cpu', '-o', 'out', *arguments)
    assert status == 0, said
    return [read_image(Path('out') / f'{number}.png') for number in range(2)]


def test_a_folder_is_restored_whole_in_tiles_and_in_bf16(files, call):
    whole = restored(files, call)
    assert [image.shape for image in whole] == [(80, 56, 3), (36, 160, 3)]
    near, tiled = restored(files, call, '--dtype', 'bf16'), restored(files, call, '--tile', 16, '--overlap', 4)
    assert [image.shape for image in tiled] == [image.shape for image in whole]
    for one, other, part in zip(whole, near, tiled, strict=True):
        assert 0 < np.abs(one - other).mean() < 0.03 and 0 < np.abs(one - part).mean() < 0.2
    again = restored(files, call, '--tile-batch', 4)
    assert all(np.array_equal(*pair) for pair in zip(whole, again, strict=True))


def test_a_file_of_embeddings_gives_the_same_without_a_text_encoder(files, call, monkeypatch):
    whole = restored(files, call)
    status, said = call('made/prompts.safetensors', '--sd-path', sd_turbo(), command=encode_prompts)
    assert status == 0 and 'two prompts of 77 tokens in 32 channels' in said
    expected = encode(sd_turbo(), (POSITIVE, NEGATIVE))
    for one, name in zip(expected, ('positive', 'negative'), strict=True):
        assert torch.equal(load_file('made/prompts.safetensors')[name], one)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    again = restored(files, call, '--force_yml', 'model:prompt_embeddings=made/prompts.safetensors')
    assert all(np.array_equal(*pair) for pair in zip(whole, again, strict=True))


@pytest.mark.parametrize(
    ('outscale', 'shapes'), [('2.5', [(50, 35, 3), (22, 100, 3)]), ('6', [(120, 84, 3), (54, 240, 3)])]
)
def test_results_may_have_any_size(files, call, outscale, shapes):
    images = restored(files, call, '--outscale', outscale)
    assert [image.shape for image in images] == shapes


def test_a_result_of_another_size_shows_the_same(files, call):
    large, small = restored(files, call), restored(files, call, '--outscale', '1')
    mean = large[0].reshape(20, 4, 14, 4, 3).mean((1, 3))
    assert np.abs(mean - small[0]).mean() < 0.05


def one_line(result: tuple[int, str]) -> str:
    """What was said besides log lines, of a command that stopped before it restored anything."""
    status, said = result
    lines = [line for line in said.splitlines() if not line.startswith('20')]
    assert status == 2 and len(lines) == 1, said
    return lines[0]


def test_what_is_missing_is_one_line(files, call, monkeypatch):
    arguments = '-i', files / 'lq', '--opt', files / 'tiny.yml', '--device', 'cpu'
    assert '/nowhere/sd: no such folder' in one_line(call(*arguments, '--force_yml', 'model:sd_path=/nowhere/sd'))
    hub = *arguments, '--force_yml', 'model:sd_path=stabilityai/sd-turbo'
    assert 'accept it by --accept-license' in one_line(call(*hub))
    assert 'downloads are off (offline)' in one_line(call(*hub, '--offline'))
    monkeypatch.setenv('BASICSR_OFFLINE', '')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert 'the hub cannot be reached' in one_line(call(*hub, '--accept-license'))
    gone = *arguments, '--force_yml', 'path:pretrain_network_de=/nowhere/de_net.pth'
    assert '/nowhere/de_net.pth' in one_line(call(*gone))
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    assert "needs the package diffusers: pip install -e '.[s3diff]' in the checkout" in one_line(call(*arguments))


def test_the_published_model_has_a_name_and_says_what_it_cannot_have(files, call):
    assert 'S3Diff_x4' in call('--list')[1]
    arguments = '-i', files / 'lq', '-m', 's3diff'
    said = one_line(call(*arguments, '--offline', '--force_yml', f'model:sd_path={sd_turbo()}'))
    assert said.startswith('Error: https://huggingface.co/zhangap/S3Diff/resolve/main/s3diff.pkl: not in the cache')
    assert one_line(call(*arguments, '--offline')).startswith('Error: stabilityai/sd-turbo: not in the cache')


def test_what_is_missing_is_said_before_weights_are_downloaded(files, call, monkeypatch):
    from basicsr.utils import zoo

    monkeypatch.setenv('BASICSR_OFFLINE', '')
    monkeypatch.setattr(zoo, 'local_path', lambda *_: pytest.fail('a download'))
    arguments = '-i', files / 'lq', '-m', 's3diff'
    assert 'accept it by --accept-license' in one_line(call(*arguments))
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    assert 'needs the package diffusers' in one_line(call(*arguments))


def test_outscale_excludes_ground_truth_and_other_numbers_are_refused(files, call):
    assert 'excludes --outscale' in one_line(call('-i', files / 'lq', '--gt', files / 'lq', '--outscale', '2'))
    assert 'more than 0 and at most 64' in one_line(call('-i', files / 'lq', '--outscale', '0'))


def test_the_published_option_file_has_the_published_values():
    """s3diff.md 3.5 and 4.2; what it says and what the model does without it are the same."""
    opt = load_options(PUBLISHED, is_train=False, check_files=False)
    fields = argument_model(MODEL_REGISTRY.get('S3DiffModel'), ('opt',)).model_fields
    assert all(fields[name].default == value for name, value in opt.model.items() if name != 'sd_path')
    assert opt.model['sd_path'] == 'stabilityai/sd-turbo' and opt.networks['g'] == {'type': 'S3Diff'}
    assert opt.path.pretrained['g'].path.endswith('zhangap/S3Diff/resolve/main/s3diff.pkl')
