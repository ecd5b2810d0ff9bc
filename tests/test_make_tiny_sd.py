"""make_tiny_sd.py: a folder with SD-Turbo's layout that the libraries load."""

import json
import sys
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from golden_case import GOLDEN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import make_tiny_sd
from make_tiny_sd import TINY_UNET, TINY_VAE, write_tiny_sd

from basicsr.utils.cli import run
from basicsr.utils.registry import UserError


def layout(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in layout(folder)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp('sd') / 'tiny')


def test_the_folder_has_the_files_of_sd_turbo(folder):
    """Those of the published repository that S3Diff reads."""
    assert layout(folder) == {
        'model_index.json',
        'scheduler/scheduler_config.json',
        'text_encoder/config.json',
        'text_encoder/model.safetensors',
        'tokenizer/merges.txt',
        'tokenizer/special_tokens_map.json',
        'tokenizer/tokenizer_config.json',
        'tokenizer/vocab.json',
        'unet/config.json',
        'unet/diffusion_pytorch_model.safetensors',
        'vae/config.json',
        'vae/diffusion_pytorch_model.safetensors',
    }


def test_the_libraries_load_it(folder):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / 'unet')
    vae = diffusers.AutoencoderKL.from_pretrained(folder / 'vae')
    text = transformers.CLIPTextModel.from_pretrained(folder / 'text_encoder')
    with torch.no_grad():
        latent = vae.encode(torch.rand(1, 3, 64, 64)).latent_dist.mean
        words = text(torch.zeros(1, 77, dtype=torch.int64)).last_hidden_state
        assert unet(latent, 999, words).sample.shape == (1, 4, 8, 8)


def test_the_tokenizer_is_clips_byte_pair_encoding_that_pads_with_an_exclamation_mark(folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / 'tokenizer')
    ids = tokenizer('The sky!', padding='max_length').input_ids
    vocabulary = json.loads((folder / 'tokenizer' / 'vocab.json').read_text())
    assert len(ids) == 77 and ids[7:] == [0] * 70 and vocabulary['!'] == 0
    names = {number: token for token, number in vocabulary.items()}
    assert [names[number] for number in ids[:7]] == [
        '<|startoftext|>',
        'the</w>',
        's',
        'k',
        'y</w>',
        '!',
        '<|endoftext|>',
    ]


def test_the_same_seed_writes_the_same_weights_and_random_state_outside_stays(folder, tmp_path):
    before = torch.get_rng_state()
    again, other = write_tiny_sd(tmp_path / 'again'), write_tiny_sd(tmp_path / 'other', seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert contents(again) == contents(folder)
    changed = {name for name, content in contents(other).items() if content != contents(folder)[name]}
    assert changed == {name for name in layout(folder) if name.endswith('.safetensors')}


def test_the_configuration_is_that_of_the_reference_cases():
    args = json.loads((GOLDEN / 's3diff' / 'tile_vae.json').read_text())['args']
    assert (args['unet'], args['vae']) == (TINY_UNET, TINY_VAE)


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / 'photo.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='is no folder of this kind'):
        write_tiny_sd(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['make_tiny_sd.py', str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run(make_tiny_sd.main)
    assert stopped.value.code == 2 and capsys.readouterr().err.count('\n') == 1
    assert contents(write_tiny_sd(folder)) == contents(folder)
