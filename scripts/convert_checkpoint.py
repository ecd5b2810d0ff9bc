"""Write the network of any checkpoint as plain safetensors, which every tool reads and nothing can hide code in.

python scripts/convert_checkpoint.py experiments/ATD-quick_x2/models/net_g_latest.pth quick_x2.safetensors --half
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors.torch import save

from basicsr.utils.checkpoint import network_state, read_checkpoint, write_atomically
from basicsr.utils.cli import run
from basicsr.utils.registry import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='a .pth, .pt or .safetensors file')
    parser.add_argument('target', type=Path, help='the .safetensors file to write')
    parser.add_argument('--key', default='params_ema', help='which entry of the file to take (params_ema, else params)')
    parser.add_argument('--half', action='store_true', help='floating-point tensors in half precision')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing target')
    args = parser.parse_args()
    if args.target.suffix != '.safetensors':
        raise UserError(f'{args.target}: the target is a .safetensors file')
    if args.target.exists() and not args.overwrite:
        raise UserError(f'{args.target} exists; --overwrite replaces it')
    state = network_state(read_checkpoint(args.source), args.key, str(args.source))
    if args.half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    data = save({name: value.contiguous() for name, value in state.items()})
    write_atomically(args.target, lambda file: file.write(data))
    size = args.target.stat().st_size
    print(f'{args.target}: {len(state)} tensors, {sum(v.numel() for v in state.values()):,} values, {size:,} bytes')
    return 0


if __name__ == '__main__':
    run(main)
