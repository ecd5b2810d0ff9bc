"""Prompts: encoded as published, once; read from a file without a text encoder."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_tiny_sd import write_tiny_sd

from basicsr.models import prompts
from basicsr.models.prompts import (
    NEGATIVE,
    POSITIVE,
    Prompts,
    encode,
    prompts_of,
    read_prompts,
    text_encoder,
    token_ids,
    write_prompts,
)
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.registry import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp('sd') / 'tiny')


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'prompts'


def random_prompts() -> Prompts:
    return Prompts(*torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0)).split(1))


def test_a_prompt_is_its_tokens_then_exclamation_marks(folder):
    vocabulary = json.loads((folder / 'tokenizer' / 'vocab.json').read_text())
    ids = token_ids(folder / 'tokenizer', ['The in'])
    words = [vocabulary[token] for token in ('<|startoftext|>', 'the</w>', 'i', 'n</w>', '<|endoftext|>')]
    assert ids.tolist() == [words + [0] * 72]


def test_padding_does_not_depend_on_which_file_of_the_tokenizer_the_library_believes(folder, tmp_path):
    ids = token_ids(folder / 'tokenizer', [POSITIVE])
    other = shutil.copytree(folder / 'tokenizer', tmp_path / 'tokenizer')
    (other / 'special_tokens_map.json').unlink()
    assert transformers.CLIPTokenizer.from_pretrained(other).pad_token_id != 0
    assert torch.equal(token_ids(other, [POSITIVE]), ids)


def test_a_prompt_that_is_too_long_is_cut_before_its_end_marker_and_that_is_said(folder, caplog):
    ids = token_ids(folder / 'tokenizer', ['the ' * 100])
    assert ids.shape == (1, 77) and ids[0, -1] == 521 and 'of 102 tokens is cut to 77' in caplog.text


def test_embeddings_are_the_text_encoders_states_after_its_last_norm(folder):
    """Computed layer by layer: causal attention, in which padding takes part."""
    net, ids = text_encoder(folder / 'text_encoder'), token_ids(folder / 'tokenizer', [POSITIVE, NEGATIVE])
    whole = transformers.CLIPTextModel.from_pretrained(folder / 'text_encoder')
    part = getattr(whole, 'text_model', whole)
    with torch.no_grad():
        x = part.embeddings(ids)
        mask = torch.full((77, 77), -torch.inf).triu(1)
        for layer in part.encoder.layers:
            attention, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = (
                getattr(attention, f'{name}_proj')(y).unflatten(-1, (4, 8)).transpose(1, 2) for name in ('q', 'k', 'v')
            )
            weights = (q @ k.transpose(-1, -2) / 8**0.5 + mask).softmax(-1)
            x = x + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + layer.mlp.fc2(torch.nn.functional.gelu(layer.mlp.fc1(layer.layer_norm2(x))))
        expected = part.final_layer_norm(x)
        torch.testing.assert_close(net(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encode(folder, (POSITIVE, NEGATIVE)), expected, atol=1e-5, rtol=1e-4)


def test_names_with_and_without_the_prefix_of_the_published_file_are_read(folder, tmp_path):
    state = load_file(folder / 'text_encoder' / 'model.safetensors')
    bare = {name.removeprefix('text_model.'): value for name, value in state.items()}
    for prefix in ('', 'text_model.'):
        other = shutil.copytree(folder, tmp_path / f'sd{prefix}')
        named = {prefix + name: value for name, value in bare.items()}
        save_file(named, other / 'text_encoder' / 'model.safetensors', {'format': 'pt'})
        assert torch.equal(encode(other, (POSITIVE,)), encode(folder, (POSITIVE,)))


def test_half_precision_is_read_where_there_is_nothing_else(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / 'sd')
    file = other / 'text_encoder' / 'model.safetensors'
    half = {name: value.half() for name, value in load_file(file).items()}
    file.unlink()
    save_file(half, file.with_name('model.fp16.safetensors'), {'format': 'pt'})
    made = encode(other, (POSITIVE,))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, encode(folder, (POSITIVE,)), atol=0.01, rtol=0.01)


def test_a_text_encoder_without_some_weights_or_of_other_bytes_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / 'sd')
    file = other / 'text_encoder' / 'model.safetensors'
    state = load_file(file)
    lost = next(name for name in state if 'final_layer_norm.weight' in name)
    save_file({name: value for name, value in state.items() if name != lost}, file, {'format': 'pt'})
    with pytest.raises(CheckpointError, match=f'{file}: is no CLIP text encoder: 1 missing: .*final_layer_norm.weight'):
        text_encoder(other / 'text_encoder')
    save_file(state | {lost: torch.zeros(5)}, file, {'format': 'pt'})
    with pytest.raises(CheckpointError, match=f'{file}: is no CLIP text encoder: '):
        text_encoder(other / 'text_encoder')
    file.write_bytes(b'nothing')
    with pytest.raises(CheckpointError, match=f'{file}: is no CLIP text encoder: '):
        text_encoder(other / 'text_encoder')


def test_prompts_are_encoded_once(folder, cache, monkeypatch):
    first = prompts_of(folder, 'sharp', 'dull')
    expected = encode(folder, ('sharp', 'dull'))
    monkeypatch.setattr(prompts, 'encode', None)
    for one, again, embedding in zip(first, prompts_of(folder, 'sharp', 'dull'), expected, strict=True):
        assert torch.equal(one, again) and one.shape == (1, 77, 32)
        torch.testing.assert_close(one[0], embedding)
    assert len(list(cache.iterdir())) == 1


def test_another_text_or_another_text_encoder_is_encoded_anew(folder, cache, tmp_path):
    one = prompts_of(folder, 'sharp', 'dull')
    assert not torch.equal(prompts_of(folder, 'soft', 'dull').positive, one.positive)
    other = write_tiny_sd(tmp_path / 'other', seed=1)
    assert not torch.equal(prompts_of(other, 'sharp', 'dull').positive, one.positive)
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_no_hindrance(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'file'))
    assert prompts_of(folder, 'sharp', 'dull').positive.shape == (1, 77, 32)
    assert 'encoded anew by each run' in caplog.text


def test_a_file_gives_what_was_written(tmp_path):
    written = random_prompts()
    write_prompts(tmp_path / 'p.safetensors', written, 'sharp', 'dull')
    for one, again in zip(written, read_prompts(tmp_path / 'p.safetensors', 'sharp', 'dull'), strict=True):
        assert torch.equal(one, again)


def test_a_file_of_other_prompts_is_refused_and_one_that_does_not_say_is_believed(tmp_path):
    file = tmp_path / 'p.safetensors'
    write_prompts(file, random_prompts(), 'sharp', 'dull')
    with pytest.raises(UserError, match="its negative_prompt is 'dull', the option file asks for 'blur'"):
        read_prompts(file, 'sharp', 'blur')
    save_file({'positive': torch.zeros(3, 4), 'negative': torch.ones(3, 4)}, file)
    assert read_prompts(file, 'sharp', 'blur').negative.shape == (1, 3, 4)


@pytest.mark.parametrize(
    ('contents', 'words'),
    [
        ({'positive': (3, 4)}, 'holds positive, not `positive`, `negative`'),
        ({'positive': (3, 4), 'negative': (3, 5)}, r'got \(3, 4\), \(3, 5\)'),
        ({'positive': (1, 3, 4), 'negative': (1, 3, 4)}, r'both \(tokens, channels\)'),
        (None, 'is no .safetensors file'),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, contents, words):
    file = tmp_path / 'p.safetensors'
    if contents is None:
        file.write_bytes(b'something else')
    else:
        save_file({name: torch.zeros(shape) for name, shape in contents.items()}, file)
    with pytest.raises(UserError, match=f'{file}: .*{words}'):
        read_prompts(file, 'sharp', 'dull')


def test_a_missing_file_and_a_missing_package_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match='no such file'):
        read_prompts(tmp_path / 'p.safetensors', 'sharp', 'dull')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(UserError, match=r"needs the package transformers: pip install -e '\.\[s3diff\]'"):
        encode(folder, ('sharp',))
