"""The published file s3diff.pkl: one dictionary of dictionaries, which we keep as flat names (s3diff.md, section 5)."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

UNET_TARGETS = (
    'to_k',
    'to_q',
    'to_v',
    'to_out.0',
    'conv',
    'conv1',
    'conv2',
    'conv_shortcut',
    'conv_out',
    'proj_in',
    'proj_out',
    'ff.net.2',
    'ff.net.0.proj',
)
VAE_TARGETS = r'^encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)$'
UNET_ROWS, VAE_ROWS = (
    10,
    6,
)  # four levels down, the middle, four levels up, the rest; four levels down, the middle, rest
LEVELS = 4

# The file's dictionaries and how their names begin in ours.
PARTS = {
    'state_dict_unet': 'unet.',
    'state_dict_vae': 'vae.',
    'state_dict_vae_de_mlp': 'vae_de_mlp.',
    'state_dict_unet_de_mlp': 'unet_de_mlp.',
    'state_dict_vae_block_mlp': 'vae_block_mlp.',
    'state_dict_unet_block_mlp': 'unet_block_mlp.',
    'state_dict_vae_fuse_mlp': 'vae_fuse_mlp.',
    'state_dict_unet_fuse_mlp': 'unet_fuse_mlp.',
}
TABLES = {'state_dict_vae_block': 'vae_block_embeddings.', 'state_dict_unet_block': 'unet_block_embeddings.'}


def is_unet_target(name: str) -> bool:
    """Whether the UNet's layer of this name has a low-rank addition."""
    return name.endswith(tuple(f'.{target}' for target in UNET_TARGETS)) or name in UNET_TARGETS


def is_vae_target(name: str) -> bool:
    """Whether the autoencoder's layer of this name has one."""
    return re.fullmatch(VAE_TARGETS, name) is not None


def unet_row(name: str) -> int:
    """Which of the matrices belongs to the UNet's layer of this name."""
    part, _, rest = name.partition('.')
    level = int(rest.partition('.')[0]) if part in ('down_blocks', 'up_blocks') else 0
    rows = {'down_blocks': level, 'mid_block': LEVELS, 'up_blocks': LEVELS + 1 + level}
    return rows.get(part, UNET_ROWS - 1)


def vae_row(name: str) -> int:
    """Which of the matrices belongs to the autoencoder's layer of this name."""
    _, part, rest = (*name.split('.', 2), '')[:3]
    return int(rest.partition('.')[0]) if part == 'down_blocks' else LEVELS if part == 'mid_block' else VAE_ROWS - 1


def is_published(content: Mapping) -> bool:
    """Whether the content of a file has the publisher's layout."""
    return any(part in content for part in PARTS)


def is_own(name: str) -> bool:
    """Whether an entry of the network is not SD-Turbo's: the trained ones, and W."""
    return not name.startswith(('unet.', 'vae.')) or '.lora_' in name or name.startswith('unet.conv_in.')


def flattened(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of s3diff.pkl by our names. Raises ValueError if it lacks a part, or has another, or other layers."""
    known = ('unet_lora_target_modules', 'vae_lora_target_modules', 'rank_unet', 'rank_vae')
    _expect(content, (*known, *PARTS, 'w', 'state_embeddings'), 's3diff.pkl')
    _expect(content['state_embeddings'], TABLES, 'state_embeddings')
    targets = content['unet_lora_target_modules']
    if not isinstance(targets, list | tuple) or {*map(str, targets)} != {*UNET_TARGETS}:
        raise ValueError(f'unet_lora_target_modules should be {_listed(UNET_TARGETS)}, got {targets}')
    if content['vae_lora_target_modules'] != VAE_TARGETS:
        raise ValueError(f'vae_lora_target_modules should be {VAE_TARGETS}, got {content["vae_lora_target_modules"]}')
    parts = {start: content[part] for part, start in PARTS.items()}
    parts |= {start: content['state_embeddings'][table] for table, start in TABLES.items()}
    state = {'W': content['w']}
    for start, part in parts.items():
        _expect(part, part, start)
        state |= {f'{start}{name}': value for name, value in part.items()}
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f's3diff.pkl holds something else than tensors: {_listed(others)}')
    for part, rank in ranks_of(state).items():
        if content[f'rank_{part}'] != rank:
            raise ValueError(f'rank_{part} is {content[f"rank_{part}"]}, but its matrices are of rank {rank}')
    return {name: value.detach() for name, value in state.items()}


def nested(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of flattened, for torch.save. Raises ValueError for entries that s3diff.pkl cannot hold."""
    parts = {
        part: {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        for part, start in (PARTS | TABLES).items()
    }
    absent = [start for part, start in (PARTS | TABLES).items() if not parts[part]] + ['W'] * ('W' not in state)
    others = {k for k in state if k != 'W' and not (is_own(k) and k.startswith((*PARTS.values(), *TABLES.values())))}
    for fault, found in (('lacks', absent), ('has besides', others)):
        if found:
            raise ValueError(f'this is not what is kept of an S3Diff: it {fault} {_listed(found)}')
    parts = {part: {k: v.detach().to(torch.float32, copy=True) for k, v in own.items()} for part, own in parts.items()}
    ranks = ranks_of(state)
    return {
        'unet_lora_target_modules': [*UNET_TARGETS],
        'vae_lora_target_modules': VAE_TARGETS,
        'rank_unet': ranks['unet'],
        'rank_vae': ranks['vae'],
        **{part: parts[part] for part in PARTS},
        'w': nn.Parameter(state['W'].detach().to(torch.float32, copy=True), requires_grad=False),
        'state_embeddings': {table: parts[table] for table in TABLES},
    }


def ranks_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The ranks of the UNet's and the autoencoder's matrices by our names. Raises ValueError where there are none."""
    found = {}
    for part in ('unet', 'vae'):
        first = next((v for k, v in state.items() if k.startswith(f'{part}.') and '.lora_A.' in k), None)
        if first is None:
            raise ValueError(f'this is no S3Diff: there are no low-rank matrices of its {part}')
        found[part] = len(first)
    return found


def _expect(content: Any, names: Collection[str], what: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f'{what} should be a dictionary, got a {type(content).__name__}')
    for fault, found in (('lacks', {*names} - content.keys()), ('has besides', content.keys() - {*names})):
        if found:
            raise ValueError(f'{what} {fault}: {_listed(found)}')


def _listed(names: Iterable[str]) -> str:
    names = sorted(map(str, names))
    return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
