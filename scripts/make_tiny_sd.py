"""Makes a folder as SD-Turbo's, of tiny networks with random weights, to try S3Diff without a download.

    python scripts/make_tiny_sd.py tiny_sd --seed 1

What it restores is noise: only the layout is SD-Turbo's (unet/, vae/, text_encoder/, tokenizer/, scheduler/).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from basicsr.utils.cli import run
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError

TINY_UNET = {
    'sample_size': 8,
    'in_channels': 4,
    'out_channels': 4,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
    'block_out_channels': [32, 64],
    'layers_per_block': 1,
    'cross_attention_dim': 32,
    'attention_head_dim': [2, 4],
    'use_linear_projection': True,
    'norm_num_groups': 32,
    'norm_eps': 1e-5,
    'act_fn': 'silu',
    'flip_sin_to_cos': True,
    'freq_shift': 0,
}
TINY_VAE = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [32, 32, 64, 64],
    'layers_per_block': 2,
    'latent_channels': 4,
    'norm_num_groups': 32,
    'sample_size': 64,
    'scaling_factor': 0.18215,
    'act_fn': 'silu',
}
TINY_TEXT = {
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'max_position_embeddings': 77,
    'hidden_act': 'gelu',
    'projection_dim': 16,
}
SCHEDULER = {
    '_class_name': 'EulerDiscreteScheduler',
    'beta_start': 0.00085,
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'set_alpha_to_one': False,
    'steps_offset': 1,
    'timestep_spacing': 'trailing',
}
START, END = '<|startoftext|>', '<|endoftext|>'
MERGES = ('t h', 'th e</w>', 'i n', 'e r', 'a n', 'l i', 'o r', 'e s')  # a few, so that words are merged at all


def write_tiny_sd(out: Path, seed: int = 0, groups: int = 32) -> Path:
    """Write the folder `out`; returns it. The random state outside neither matters nor changes.

    Args:
        groups: of the group norms of the UNet and the autoencoder.
    Raises UserError if there is something else at `out`, or if diffusers or transformers are missing.
    """
    diffusers, transformers = (optional(name, 's3diff') for name in ('diffusers', 'transformers'))
    out = Path(out)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / 'model_index.json').is_file())):
        raise UserError(f'{out} is there and is no folder of this kind: name another one')
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = clip_vocabulary()
    ids = {f'{name}_token_id': vocabulary[token] for name, token in (('bos', START), ('eos', END), ('pad', '!'))}
    text = transformers.CLIPTextConfig(vocab_size=len(vocabulary), **TINY_TEXT, **ids)
    parts = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts['unet'] = diffusers.UNet2DConditionModel.from_config(TINY_UNET | {'norm_num_groups': groups})
        parts['vae'] = diffusers.AutoencoderKL.from_config(TINY_VAE | {'norm_num_groups': groups})
        parts['text_encoder'] = transformers.CLIPTextModel(text)
    for name, model in parts.items():
        shutil.rmtree(out / name, ignore_errors=True)  # files of another layout would be left beside the new ones
        model.save_pretrained(out / name)
    write_json(out / 'scheduler' / 'scheduler_config.json', SCHEDULER)
    write_tokenizer(out / 'tokenizer', vocabulary)
    index = {'_class_name': 'StableDiffusionPipeline'}
    index |= {name: [type(model).__module__.partition('.')[0], type(model).__name__] for name, model in parts.items()}
    index |= {'scheduler': ['diffusers', 'EulerDiscreteScheduler'], 'tokenizer': ['transformers', 'CLIPTokenizer']}
    write_json(out / 'model_index.json', index)
    return out


def clip_vocabulary() -> dict[str, int]:
    """token -> id as CLIP has them, with a few merges only: bytes (`!` is 0), bytes that end words, merges, markers."""
    shown = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    letters = [chr(byte) for byte in shown]
    letters += [chr(256 + number) for number in range(256 - len(shown))]  # for bytes that are no visible characters
    merged = [pair.replace(' ', '') for pair in MERGES]
    tokens = [*letters, *(f'{letter}</w>' for letter in letters), *merged, START, END]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    """The four files of SD-Turbo's tokenizer, two of which name different tokens for padding, as published."""
    marker = {'lstrip': False, 'normalized': True, 'rstrip': False, 'single_word': False}
    special = {f'{name}_token': marker | {'content': token} for name, token in (('bos', START), ('eos', END))}
    special['unk_token'] = special['eos_token']
    write_json(folder / 'vocab.json', vocabulary)
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *MERGES, '']), encoding='utf-8')
    write_json(folder / 'special_tokens_map.json', special | {'pad_token': '!'})
    config = {'bos_token': START, 'eos_token': END, 'unk_token': END, 'pad_token': END}
    config |= {'do_lower_case': True, 'model_max_length': 77, 'tokenizer_class': 'CLIPTokenizer'}
    write_json(folder / 'tokenizer_config.json', config)


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding='utf-8')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, metavar='FOLDER', help='the folder to write')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other weights (default 0)')
    norms = 'of the norms (32, as SD-Turbo has; with so few channels they leave little of brightness and contrast)'
    parser.add_argument('--groups', type=int, choices=(4, 8, 16, 32), default=32, help=norms)
    args = parser.parse_args()
    print(f'{write_tiny_sd(args.out, args.seed, args.groups)}: tiny networks with random weights, laid out as SD-Turbo')
    return 0


if __name__ == '__main__':
    run(main)
