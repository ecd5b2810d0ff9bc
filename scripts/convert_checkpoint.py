"""Write the network of any checkpoint as plain safetensors, which every tool reads and nothing can hide code in.

python scripts/convert_checkpoint.py experiments/ATD-quick_x2/models/net_g_latest.pth quick_x2.safetensors --half

D2C-SR has two networks. One file holds both, as `g.NAME` and `f.NAME`, for RGB; inference.py --weights takes it. From
the published checkpoint.pkl (MegEngine, BGR), from our two files, and back to the published form:
python scripts/convert_checkpoint.py checkpoint.pkl d2c_x4.safetensors
python scripts/convert_checkpoint.py net_g_latest.pth d2c_x4.safetensors --fusion net_f_latest.pth
python scripts/convert_checkpoint.py d2c_x4.safetensors checkpoint.pkl

S3Diff's published s3diff.pkl becomes flat names, as in our own files, and either becomes an s3diff.pkl again:
python scripts/convert_checkpoint.py s3diff.pkl s3diff.safetensors
python scripts/convert_checkpoint.py net_g_latest.pth s3diff.pkl

ITER's published files also hold what is computed, and parts twice; ours become such by their option file:
python scripts/convert_checkpoint.py net_g_latest.pth ITER_x4.pth --opt options/test/ITER/ITER_x4.yml
"""

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save
from torch import Tensor

from basicsr.archs.blocks import s3diff_file
from basicsr.archs.d2c_arch import D2CBranches, D2CFusion
from basicsr.archs.iter_arch import ITER
from basicsr.archs.swin_vqgan_arch import SwinVQGAN
from basicsr.utils.checkpoint import has_part, load_network, network_state, read_checkpoint, write_atomically
from basicsr.utils.cli import run
from basicsr.utils.mge_export import megengine_pickle
from basicsr.utils.options import load_options
from basicsr.utils.registry import ARCH_REGISTRY, UserError

D2C = {'g': D2CBranches, 'f': D2CFusion}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='a .pth, .pt, .pkl or .safetensors file')
    parser.add_argument(
        'target', type=Path, help='the .safetensors file to write; as published: .pkl (D2C-SR, S3Diff), .pth (ITER)'
    )
    parser.add_argument('--key', default='params_ema', help='which entry of the file to take (params_ema, else params)')
    parser.add_argument('--fusion', type=Path, metavar='FILE', help="D2C-SR: network_f's file; source has network_g")
    parser.add_argument('--opt', type=Path, metavar='FILE', help='ITER, to .pth: the option file with its network_g')
    parser.add_argument('--half', action='store_true', help='floating-point tensors in half precision')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing target')
    args = parser.parse_args()
    if args.target.suffix not in ('.safetensors', '.pkl', '.pth'):
        raise UserError(f'{args.target}: the target is a .safetensors, a .pkl or a .pth file')
    if args.target.exists() and not args.overwrite:
        raise UserError(f'{args.target} exists; --overwrite replaces it')
    if (args.target.suffix == '.pth') != (args.opt is not None):
        raise UserError('a .pth file as ITER publishes it needs --opt, and nothing else does')
    if args.half and args.target.suffix != '.safetensors':
        raise UserError('--half is for .safetensors: the published form is float32')
    parts = read_parts(args.source, args.key, args.fusion)
    if args.target.suffix == '.pth':
        data = published_file(parts, args.source, args.opt)
    elif args.target.suffix == '.pkl':
        data = published_pickle(parts, args.source)
    else:
        state = {f'{label}.{k}' if label else k: v for label, part in parts.items() for k, v in part.items()}
        if args.half:
            state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        data = save({name: value.contiguous() for name, value in state.items()})
    write_atomically(args.target, lambda file: file.write(data))
    tensors = [value for part in parts.values() for value in part.values()]
    values, size = sum(value.numel() for value in tensors), args.target.stat().st_size
    print(f'{args.target}: {len(tensors)} tensors, {values:,} values, {size:,} bytes')
    if 'g' in parts:
        print(description(parts['g']))
    return 0


def read_parts(source: Path, key: str, fusion: Path | None) -> dict[str, Mapping[str, Tensor]]:
    """State dicts of ours by the label of their network; by '' where the file holds one of whatever system."""
    content = read_checkpoint(source)
    if s3diff_file.is_published(content):
        try:
            return {'': s3diff_file.flattened(content)}
        except ValueError as error:
            raise UserError(f'{source}: {error}') from None
    published = {label: next(iter(net.published_keys)) for label, net in D2C.items()}
    if fusion is not None:
        return {
            'g': network_state(content, key, str(source)),
            'f': network_state(read_checkpoint(fusion), key, str(fusion)),
        }
    if any(part in content for part in published.values()):
        states = {label: network_state(content, part, str(source)) for label, part in published.items()}
        return {label: D2C[label].from_published(state) for label, state in states.items()}
    if all(has_part(content, label) for label in D2C):
        return {label: network_state(content, label, str(source)) for label in D2C}
    return {'': network_state(content, key, str(source))}


def published_file(parts: dict[str, Mapping[str, Tensor]], source: Path, option_file: Path) -> bytes:
    """ITER's form of a network that an option file describes: with what is computed, and with copies."""
    section = load_options(option_file, is_train=False, check_files=False).networks['g']
    net = ARCH_REGISTRY.build(section)
    if not isinstance(net, (ITER, SwinVQGAN)) or '' not in parts:
        raise UserError(f'{option_file}: a .pth file is the published form of ITER and SwinVQGAN')
    load_network(net, parts[''], str(source))
    torch.save({'params': net.to_published(net.state_dict())}, written := io.BytesIO())
    return written.getvalue()


def published_pickle(parts: dict[str, Mapping[str, Tensor]], source: Path) -> bytes:
    """S3Diff's s3diff.pkl, or D2C-SR's checkpoint.pkl: two dictionaries for BGR, biases (1, c, 1, 1)."""
    if any('.lora_A.' in name for name in parts.get('', ())):
        try:
            content = s3diff_file.nested(parts[''])
        except ValueError as error:
            raise UserError(f'{source}: {error}') from None
        torch.save(content, written := io.BytesIO())
        return written.getvalue()
    if parts.keys() != D2C.keys():
        raise UserError(f'{source}: a .pkl file takes both networks of D2C-SR: name the other with --fusion; or S3Diff')
    return megengine_pickle({next(iter(net.published_keys)): net.to_published(parts[k]) for k, net in D2C.items()})


def description(branches: Mapping[str, Tensor]) -> str:
    """What an option file says of these weights, and how the published mean shifts look (d2c.md 6.2)."""
    options = ', '.join(f'{name}: {value}' for name, value in D2CBranches.options_of(branches).items())
    shifts = (f'{name} {[round(v, 4) for v in branches[f"{name}.bias"].tolist()]}' for name in ('sub_mean', 'add_mean'))
    return f'network_g: {{type: D2CBranches, {options}}}\nbiases of the mean shifts (RGB): {", ".join(shifts)}'


if __name__ == '__main__':
    run(main)
