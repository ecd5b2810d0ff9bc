"""Model files that describe themselves: written, read without anything else, refused where they ask for more."""

import json
import subprocess
import sys

import pytest
import spandrel
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_fixture import ROOT

from basicsr.model_file import FORMAT, Description, described_options, read_description, write_model_file
from basicsr.models import build_model
from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.image import read_image, to_tensor
from basicsr.utils.registry import OptionError, UserError
from basicsr.utils.zoo import FOLDER

sys.path.insert(0, str(ROOT / 'scripts'))
import export_model

NETWORK = '{type: RCAN, upscale: 2, num_feat: 16, num_group: 1, num_block: 1}'
OPTIONS = f'name: tiny\nmodel_type: SRModel\nscale: 2\nnetwork_g: {NETWORK}\n'


def exported(monkeypatch, tmp_path, *arguments):
    path = tmp_path / 'model.safetensors'
    monkeypatch.setattr(sys, 'argv', ['export_model.py', '-o', str(path), *arguments])
    assert export_model.main() == 0
    return path


@pytest.mark.parametrize('name', ['ATD-demo_x2', 'D2C-demo_x4', 'SR3-demo_x4'])
def test_an_exported_model_restores_what_its_model_restores(monkeypatch, tmp_path, name):
    path = exported(monkeypatch, tmp_path, '-m', name)
    one, other = load_model(name, None, None, True), load_model(None, None, str(path), True)
    lq = to_tensor(read_image(ROOT / f'testset/lq_x{one.scale}/coffee_left.png'))[None, :, :16, :16]
    assert torch.equal(Restorer(one)(lq), Restorer(other)(lq))


def test_options_results_and_licence_are_in_it_and_the_entries_keep_their_names(monkeypatch, tmp_path):
    scores = tmp_path / 'scores.csv'
    scores.write_text('dataset,image,psnr\nA,1,30\nA,2,31\nB,1,20\n')
    path = exported(monkeypatch, tmp_path, '-m', 'ATD-demo_x4', '--half', '--scores', str(scores), '--note', 'mine')
    about = read_description(path)
    assert about.card == {'A': {'psnr': 30.5}, 'B': {'psnr': 20}}
    assert (about.licence, about.source, about.note) == ('Apache-2.0', 'this project', 'mine')
    assert load_file(path).keys() == load_file(FOLDER / 'ATD-demo_x4.safetensors').keys()
    with safe_open(path, 'pt') as file:
        assert file.metadata()['format'] == FORMAT


def test_what_a_file_says_of_itself_is_passed_on(monkeypatch, tmp_path):
    bundled = read_description(FOLDER / 'ATD-demo_x4.safetensors')
    path = exported(monkeypatch, tmp_path, '-m', 'ATD-demo_x4')
    assert bundled.card and read_description(path).card == bundled.card
    other = tmp_path / 'other.safetensors'
    path.rename(other)
    again = read_description(exported(monkeypatch, tmp_path, '--weights', str(other), '--half'))
    assert (again.licence, again.source, again.note) == (bundled.licence, bundled.source, bundled.note)
    assert again.card == {}, 'half precision has other results'
    options = tmp_path / 'other.yml'
    options.write_text(bundled.options)
    given = '--opt', str(options), '--weights', str(other), '--overwrite'
    assert read_description(exported(monkeypatch, tmp_path, *given)).card == {}, 'other options have other results'


def test_spandrel_still_reads_atd(tmp_path):
    options = (
        'name: a\nmodel_type: SRModel\nscale: 4\n'
        'network_g: {type: ATD, upscale: 4, embed_dim: 48, depths: [6], num_heads: [4], window_size: 8, '
        'category_size: 128, num_tokens: 64, reducted_dim: 8, convffn_kernel_size: 7, mlp_ratio: 1, '
        'upsampler: pixelshuffledirect}\n'
    )
    source = tmp_path / 'a.safetensors'
    opt = described_options(Description(options), source, ['path:pretrain_network_g=~'])
    torch.manual_seed(0)
    model = build_model(opt)
    write_model_file(source, {'g': model.networks()['g']['params']}, Description(options))
    theirs = spandrel.ModelLoader().load_from_file(source)
    lq = torch.rand(1, 3, 8, 15)  # 128 tokens: one group, whose order does not matter
    with torch.inference_mode():
        assert torch.allclose(theirs.model(lq), model.restore(lq), atol=1e-4)


def test_inference_needs_the_file_and_a_picture_only(monkeypatch, tmp_path):
    path = exported(monkeypatch, tmp_path, '-m', 'ATD-demo_x2')
    command = [sys.executable, str(ROOT / 'inference.py'), str(path), str(ROOT / 'testset/lq_x2/rocket_towers.png')]
    result = subprocess.run([*command, '-o', str(tmp_path / 'out')], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lq, sr = (read_image(p / 'rocket_towers.png') for p in (ROOT / 'testset/lq_x2', tmp_path / 'out'))
    assert sr.shape[:2] == (2 * lq.shape[0], 2 * lq.shape[1])


@pytest.mark.parametrize(
    ('line', 'named'),
    [
        ('custom_imports: [evil.py]', 'custom_imports'),
        ('path: {pretrain_network_g: /etc/passwd}', 'path'),
        ('datasets: {}', 'datasets'),
    ],
)
def test_a_file_from_elsewhere_describes_networks_and_nothing_else(tmp_path, line, named):
    path = tmp_path / 'm.safetensors'
    with pytest.raises(OptionError, match=f'a model file describes networks, not {named!r}'):
        described_options(Description(OPTIONS + line), path, [])


@pytest.mark.parametrize(
    ('line', 'named'),
    [
        ('model: {sd_path: someone/huge}', 'model:sd_path'),
        ('model: {prompt_embeddings: https://127.0.0.1/p.safetensors}', 'model:prompt_embeddings'),
        ('network_f: {type: ATD, more: [{pretrained: https://127.0.0.1/w.pth}]}', 'network_f:more:0:pretrained'),
    ],
)
def test_a_file_from_elsewhere_names_no_other_files(tmp_path, line, named):
    with pytest.raises(OptionError, match=f'names no other files, but has {named}; name it by --force_yml'):
        described_options(Description(OPTIONS + line), tmp_path / 'm.safetensors', [])


def test_an_exported_s3diff_leaves_sd_turbo_to_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path))
    path = exported(monkeypatch, tmp_path, '-m', 'S3Diff-tiny_x4')
    with pytest.raises(UserError, match='prompts need sd_path, or prompt_embeddings'):
        load_model(None, None, str(path), True)
    named = load_model(None, None, str(path), True, [f'model:sd_path={FOLDER / "S3Diff-tiny_sd"}'])
    lq = to_tensor(read_image(ROOT / 'testset/lq_x4/coffee_left.png'))[None, :, :16, :16]
    assert torch.equal(Restorer(named)(lq), Restorer(load_model('s3diff-tiny', None, None, True))(lq))


def test_weights_without_their_options_beside_a_name_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match='either by -m or by --opt and --weights'):
        exported(monkeypatch, tmp_path, '-m', 'ATD-demo_x2', '--weights', 'mine.pth')


def test_weights_that_do_not_fit_what_the_file_says_are_refused(tmp_path):
    path = tmp_path / 'm.safetensors'
    write_model_file(path, {'g': {'weight': torch.zeros(1)}}, Description(OPTIONS))
    with pytest.raises(CheckpointError, match='belongs to another network than RCAN'):
        load_model(None, None, str(path), True)


def test_plain_safetensors_are_not_taken_for_a_model(tmp_path):
    path = tmp_path / 'm.safetensors'
    save_file({'weight': torch.zeros(1)}, path)
    assert read_description(path) is None
    with pytest.raises(UserError, match='does not describe its network: name an option file'):
        load_model(None, None, str(path), True)


def test_a_broken_one_says_so(tmp_path):
    path = tmp_path / 'm.safetensors'
    path.write_bytes(b'\x10\0\0\0\0\0\0\0{"a":1')
    with pytest.raises(CheckpointError, match='damaged or truncated'):
        read_description(path)
    save_file({'weight': torch.zeros(1)}, path, {'format': FORMAT, 'options': OPTIONS, 'card': '{'})
    with pytest.raises(CheckpointError, match='damaged or truncated'):
        read_description(path)


def test_a_card_that_is_none_is_left_out(tmp_path):
    path = tmp_path / 'm.safetensors'
    save_file({'w': torch.zeros(1)}, path, {'format': FORMAT, 'options': OPTIONS, 'card': json.dumps({'A': 'good'})})
    assert read_description(path).card == {}
