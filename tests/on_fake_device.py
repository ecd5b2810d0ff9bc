"""Run as a script: models restore and learn on a device that is no CPU and holds no data; prints a JSON line a case.

The device `fake` is of FakeTensors: an operation on tensors of two devices fails there, and so does reading a value
back, for which the host would wait. What the host is asked for on purpose is replaced, see `without_host`.
"""

import functools
import json
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F

from basicsr.models import build_model, iter_model, s3diff_model, sr3_model, token_refinement
from basicsr.models.base_model import BaseModel
from basicsr.restoring import load_model
from basicsr.utils.options import load_options
from basicsr.utils.registry import LOSS_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
FIXED_STEPS = 'model:refinement:adaptive=false'  # of ITER: else the host asks once how many steps an image takes
RESTORING = {
    'ATD-demo_x4': [],
    'D2C-demo_x4': [],
    'SR3-demo_x4': [],
    'ITER-demo_x4': [FIXED_STEPS],
    'S3Diff-tiny_x4': [],
}
SMALL_JUDGE = ['embed_dim=16', 'num_heads=2', 'image_size=64', 'dim=8']
TRAINING = {  # option file -> sides of gt and of lq, overrides
    'ATD/ATD-quick_x2': (64, 32, ['train:ema_decay=0.9']),
    'D2C/D2C-demo_x4': (64, 16, []),
    'D2C/D2C-demo_x4_fusion': (64, 16, []),
    'SR3/SR3-demo_x4': (64, 16, []),
    'ITER/ITER-demo_hq': (64, 64, []),
    'ITER/ITER-demo_x4_tokens': (128, 32, []),
    'ITER/ITER-demo_x4': (128, 32, []),
    'S3Diff/S3Diff-tiny_x4': (64, 16, ['model:sd_path=sd', *(f'network_d:{one}' for one in SMALL_JUDGE)]),
}


class Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


class Seeds(list):
    """Numbers that a model reads as it reads a tensor of them."""

    def tolist(self) -> list[int]:
        return self

    def split(self, count: int) -> list['Seeds']:
        return [Seeds(self[start : start + count]) for start in range(0, len(self), count)]


def make_device() -> tuple[Hooks, Guard]:
    """Register the device; the caller keeps what comes back alive."""
    answers = {
        'is_available': True, 'is_initialized': True, '_is_in_bad_fork': False, 'current_device': 0, 'device_count': 1,
        'get_amp_supported_dtype': [torch.bfloat16],
    }  # fmt: skip
    module = SimpleNamespace(**{name: lambda value=value: value for name, value in answers.items()})
    torch.utils.rename_privateuse1_backend('fake')
    torch._register_device_module('fake', module)
    hooks, guard = Hooks(), Guard()
    torch._C._acc.register_python_privateuseone_hook(hooks)
    torch._C._acc.register_python_privateuseone_device_guard(guard)
    return hooks, guard


def without_host() -> None:
    """Replace what asks the host on purpose: Pillow, checksums of pixels, files, whether a loss is finite."""
    for module in (sr3_model, iter_model, s3diff_model):
        module.image_seeds = lambda lq, first: Seeds(range(len(lq)))
    sr3_model.enlarged = lambda lq, scale: F.interpolate(lq, scale_factor=scale)
    counts = token_refinement.kept_counts

    @functools.wraps(counts)
    def kept_counts(*arguments):
        with unset_fake_temporarily():
            return counts(*arguments)

    token_refinement.kept_counts = kept_counts

    def update(self: BaseModel, label: str, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self.optimizers[label].step()
        self.optimizers[label].zero_grad()

    BaseModel.update = update
    for module in [one for name, one in sys.modules.items() if name.startswith('basicsr.')]:
        if hasattr(module, 'load_pretrained'):
            module.load_pretrained = lambda *_, **__: None


def moved(net: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The network on the device."""
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = mode.from_tensor(parameter.data).to('fake')
                module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to('fake')
    return net


def move_model(model: BaseModel, mode: FakeTensorMode) -> None:
    for net in (*model.nets.values(), *(average.net for average in model.averages.values())):
        moved(net, mode)
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            setattr(model, name, mode.from_tensor(value).to('fake'))
    if hasattr(model, 'embeddings'):
        model.embeddings = type(model.embeddings)(*(mode.from_tensor(one).to('fake') for one in model.embeddings))
    model.device = torch.device('fake')
    model.to = lambda *_: model


def restored(name: str, overrides: list[str]) -> dict:
    model = load_model(name, None, None, offline=True, overrides=overrides)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        move_model(model, mode)
        lq = torch.empty(1, 3, 32, 48, device='fake')
        sr = model.restore(lq, **model.context(lq))
        return {'size': list(sr.shape), 'devices': [sr.device.type]}


def learned(file: str, gt: int, lq: int, overrides: list[str]) -> dict:
    model = build_model(load_options(ROOT / f'options/train/{file}.yml', True, overrides, check_files=False))
    build = LOSS_REGISTRY.build
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move_model(model, mode)
        LOSS_REGISTRY.build = lambda section: SimpleNamespace(to=lambda _: moved(build(section), mode))
        model.prepare(
            SimpleNamespace(
                device=model.device, num_processes=1, sync_gradients=True, scaler=None, mixed_precision='no',
                prepare=lambda *both: both, unwrap_model=lambda net: net, reduce=lambda one, **_: one,
                backward=lambda loss: loss.backward(), no_sync=lambda *_: nullcontext(), autocast=nullcontext,
            )
        )  # fmt: skip
        LOSS_REGISTRY.build = build
        model.before_step(1)
        sides = {'gt': gt, 'lq': lq}
        losses = model.training_step({k: torch.rand(2, 3, side, side, device='fake') for k, side in sides.items()})
        model.after_step(1)
        state = [v for o in model.optimizers.values() for one in o.state.values() for v in one.values() if v.ndim]
        return {'losses': sorted(losses), 'devices': sorted({one.device.type for one in (*losses.values(), *state)})}


def main() -> None:
    torch.set_num_threads(1)
    kept = make_device()
    cases = [(name, restored, name, overrides) for name, overrides in RESTORING.items()]
    cases += [(file, learned, file, *rest) for file, rest in TRAINING.items()]
    without_host()
    for case, work, *arguments in cases:
        try:
            result = work(*arguments)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-12:]
            where = ' < '.join(f'{Path(frame.filename).name}:{frame.lineno}' for frame in reversed(frames))
            result = {'error': f'{type(error).__name__}: {str(error)[:300]} at {where}'}
        print(json.dumps({'case': case, **result}), flush=True)
    del kept


if __name__ == '__main__':
    main()
