"""The published file s3diff.pkl: one dictionary of dictionaries, which we keep as flat names (s3diff.md, section 5)."""

import re
from collections.abc import Mapping
from typing import Any

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
MARK = 'state_dict_unet_fuse_mlp'  # an entry that no other file has


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
    return MARK in content


def flattened(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of s3diff.pkl by our names. Raises ValueError if it lacks a part, or has another, or other layers."""
    known = ('unet_lora_target_modules', 'vae_lora_target_modules', 'rank_unet', 'rank_vae')
    _expect(content, (*known, *PARTS, 'w', 'state_embeddings'), 's3diff.pkl')
    _expect(content['state_embeddings'], TABLES, 'state_embeddings')
    if {*content['unet_lora_target_modules']} != {*UNET_TARGETS}:
        ours, theirs = {*UNET_TARGETS}, {*content['unet_lora_target_modules']}
        raise ValueError(f'unet_lora_target_modules: layers of another kind are adapted: {_listed(ours ^ theirs)}')
    if content['vae_lora_target_modules'] != VAE_TARGETS:
        raise ValueError(f'vae_lora_target_modules should be {VAE_TARGETS}, got {content["vae_lora_target_modules"]}')
    parts = [(start, content[part]) for part, start in PARTS.items()]
    parts += [(start, content['state_embeddings'][table]) for table, start in TABLES.items()]
    state = {'W': content['w'].detach()}
    for start, part in parts:
        state |= {f'{start}{name}': value.detach() for name, value in part.items()}
    for part, rank in ranks_of(state).items():
        if content[f'rank_{part}'] != rank:
            raise ValueError(f'rank_{part} is {content[f"rank_{part}"]}, but its matrices are of rank {rank}')
    return state


def nested(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of flattened, for torch.save. Raises ValueError for entries that s3diff.pkl cannot hold."""
    ranks = ranks_of(state)
    content: dict[str, Any] = {
        'unet_lora_target_modules': [*UNET_TARGETS],
        'vae_lora_target_modules': VAE_TARGETS,
        'rank_unet': ranks['unet'],
        'rank_vae': ranks['vae'],
    }
    taken, parts = {'W'}, {}
    for part, start in (*PARTS.items(), *TABLES.items()):
        names = [name for name in state if name.startswith(start)]
        parts[part] = {name.removeprefix(start): state[name].clone() for name in names}
        taken |= {*names}
    absent = [part for part, entries in parts.items() if not entries] + ['W'] * ('W' not in state)
    if absent or state.keys() - taken:
        fault = f'no entries of {_listed(absent)}' if absent else f'unexpected {_listed(state.keys() - taken)}'
        raise ValueError(f'this is not the state of an S3Diff: {fault}')
    content |= {part: parts[part] for part in PARTS}
    content['w'] = nn.Parameter(state['W'].clone(), requires_grad=False)
    return content | {'state_embeddings': {table: parts[table] for table in TABLES}}


def ranks_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The ranks of the UNet's and the autoencoder's matrices by our names. Raises ValueError where there are none."""
    found = {}
    for part in ('unet', 'vae'):
        downs = (v for k, v in state.items() if k.startswith(f'{part}.') and '.lora_A.' in k)
        first = next(downs, None)
        if first is None:
            raise ValueError(f'this is not the state of an S3Diff: no low-rank matrices of its {part}')
        found[part] = len(first)
    return found


def _expect(content: Mapping, names: tuple | Mapping, what: str) -> None:
    faults = (
        ('lacks', names - content.keys() if isinstance(names, dict) else {*names} - content.keys()),
        (
            'has besides',
            content.keys() - {*names},
        ),
    )
    for fault, found in faults:
        if found:
            raise ValueError(f'{what} {fault}: {_listed(found)}')


def _listed(names) -> str:
    names = sorted(map(str, names))
    return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
