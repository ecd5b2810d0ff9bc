"""Write a feed-forward model (ATD and any other network of SRModel; D2C-SR's blended image) as ONNX.

python scripts/export_onnx.py -m ATD-demo_x4 -o atd_x4.onnx
python scripts/export_onnx.py --weights my.safetensors -o my.onnx
python scripts/export_onnx.py --opt options/test/ATD/ATD-quick_x2.yml --weights net_g_latest.pth -o my.onnx

Input `lq` (b, 3, h, w) and output `sr` (b, 3, h * scale, w * scale) are RGB in [0, 1], float32, of any size. What the
file computes in onnxruntime is compared with PyTorch for several sizes before it is written. Its metadata say the
scale, the options, the licence and the source, as those of scripts/export_model.py do.
"""

import contextlib
import io
import json
import logging
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from exporting import check_export, export_parser
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.model_file import Description, described
from basicsr.models.base_model import BaseModel
from basicsr.models.d2c_model import D2CModel
from basicsr.models.restorer import Restorer
from basicsr.models.sr_model import SRModel
from basicsr.restoring import about_weights, load_model, needed_networks
from basicsr.utils.checkpoint import write_atomically
from basicsr.utils.cli import run
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError

FORMAT = 'basicsr-onnx-1'
OPSET = 20
EXAMPLE = (2, 3, 24, 40)  # the image that is traced: no two sides alike, and none of them 1
# One pixel, less than a window, odd sides, upright, a multiple of windows, more than one image.
CHECKED = ((1, 3, 1, 1), (1, 3, 5, 7), (1, 3, 33, 19), (1, 3, 48, 16), (2, 3, 16, 24))
TOLERANCE = 1e-4  # of values in [0, 1]: a fortieth of what one step of 8 bits is


class Restoring(nn.Module):
    """What a model restores, as a module."""

    def __init__(self, model: BaseModel):
        super().__init__()
        self.restore = model.restore
        self.nets = nn.ModuleDict({label: model.nets[label] for label in needed_networks(model.opt)})

    def forward(self, lq: Tensor) -> Tensor:
        return self.restore(lq).clamp(0, 1)


def main() -> int:
    parser = export_parser(__doc__, '.onnx')
    args = parser.parse_args()
    check_export(args, '.onnx', 'an ONNX file')
    for module in ('onnx', 'onnxscript', 'onnxruntime'):
        optional(module, 'onnx')
    model = load_model(args.model, args.opt, args.weights, offline=False)
    print('exporting: seconds for a small network, minutes for one of many layers', file=sys.stderr)
    about = about_weights(args.model, args.weights)
    if args.opt or not about.options:
        about = replace(about, options=described(model.opt, tuple(needed_networks(model.opt))), card={})
    content = onnx_content(model, about)
    differences = compared(content, model)
    for shape, difference in differences.items():
        print(f'{"x".join(map(str, shape))}: differs from PyTorch by {difference:.1e} at most')
    worst = max(differences, key=differences.get)
    if not differences[worst] <= TOLERANCE:
        raise UserError(f'{args.output} is not written: it differs by {differences[worst]:.1e} for {worst}')
    write_atomically(args.output, lambda file: file.write(content))
    print(f'{args.output}: {len(content):,} bytes')
    return 0


def onnx_content(model: BaseModel, about: Description) -> bytes:
    """A model as an ONNX file. Raises UserError for one that is not feed-forward, or that torch cannot export."""
    if not isinstance(model, SRModel | D2CModel):
        raise UserError(
            f'{type(model).__name__} restores by a procedure around its networks, which ONNX has no place for; SRModel '
            '(ATD, RCAN, ...) and D2CModel can be exported'
        )
    module, size = Restoring(model).eval(), torch.export.Dim.DYNAMIC
    with torch.no_grad(), quiet(), in_one_line(model, 'torch cannot export it'):
        program = torch.export.export(
            module,
            (torch.rand(EXAMPLE),),
            dynamic_shapes=({0: size, 2: size, 3: size},),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        names = {'input_names': ['lq'], 'output_names': ['sr']}
        proto = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, **names).model_proto
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # places in the files of this machine
    for tensor, labels in ((graph.input[0], ('b', None, 'h', 'w')), (graph.output[0], ('b', None, 'sr_h', 'sr_w'))):
        for dim, label in zip(tensor.type.tensor_type.shape.dim, labels):
            if label:
                dim.dim_param = label
    texts = {'format': FORMAT, 'scale': str(model.scale), **asdict(about), 'card': json.dumps(about.card)}
    for key, value in texts.items():
        if value:
            proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def compared(content: bytes, model: BaseModel) -> dict[tuple[int, ...], float]:
    """The largest difference between onnxruntime and PyTorch for each shape of CHECKED."""
    runtime, restorer = optional('onnxruntime', 'onnx'), Restorer(model)
    with in_one_line(model, 'onnxruntime cannot load what torch exported'):
        session = runtime.InferenceSession(content, providers=['CPUExecutionProvider'])
    random, differences = torch.Generator().manual_seed(0), {}
    for shape in CHECKED:
        coarse = torch.rand(*shape[:2], *(-(-side // 4) for side in shape[2:]), generator=random)
        smooth = F.interpolate(coarse, shape[2:], mode='bilinear')  # like a picture: noise has no like in them
        lq = (smooth + 0.05 * torch.randn(shape, generator=random)).clamp(0, 1)
        wanted = restorer(lq).numpy()
        with in_one_line(model, f'onnxruntime cannot run what torch exported on an image {shape}'):
            (found,) = session.run(None, {'lq': lq.numpy()})
        differences[shape] = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float('inf')
    return differences


@contextlib.contextmanager
def in_one_line(model: BaseModel, what: str):
    """Whatever fails inside is a UserError that names the networks, says `what` and the first line of the cause."""
    try:
        yield
    except Exception as error:  # exporters raise errors of every kind, with pages of their own state
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        line = next((line.strip() for line in str(cause).splitlines() if line.strip()), '')
        networks = ' and '.join(model.opt.networks[label]['type'] for label in needed_networks(model.opt))
        raise UserError(f'{networks}: {what} ({type(cause).__name__}{": " if line else ""}{line[:200]})') from None


@contextlib.contextmanager
def quiet():
    """Without the exporter's steps and warnings; its errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


if __name__ == '__main__':
    run(main)
