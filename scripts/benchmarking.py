"""What scripts/benchmark.py measures: two variants of one piece of work, in turn, on the same weights and images."""

import ctypes
import gc
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from reference.case import filled
from torch import Tensor, nn

from basicsr.models import build_model
from basicsr.models.restorer import DTYPES, Restorer
from basicsr.utils.checkpoint import load_network, network_state, read_checkpoint
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY, UserError, check_arguments

WARM_UP_SIDE = 16  # pixels: libraries load and allocate their own memory before peaks are measured


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Args:
        network: `type` and options as in an option file; without a type it is the calibration workload.
        source: FILE.py:CLASS of another implementation, which takes the same options and has the same parameter names.
        weights: a checkpoint; '' fills the parameters by their names, as the reference cases do.
        dtype: fp32, bf16 or fp16: of the weights in a forward pass, by autocast in training and restoring.
        constant_weights: forward passes inside the network's context of that name, as a sampler calls it.
        model: model_type and `model` section of the option file whose model restores with the network.
    """

    title: str
    network: dict = field(default_factory=dict)
    source: str = ''
    weights: str = ''
    dtype: str = 'fp32'
    compile: bool = False
    channels_last: bool = False
    constant_weights: bool = False
    model: dict = field(default_factory=lambda: {'model_type': 'SRModel'})


@dataclass(frozen=True)
class Row:
    """A line of a system's table, and the most time and memory allowed, as parts of the transcription's in fp32.

    Args:
        sources: FILE.py:CLASS of ours and of the transcription; '' for the registered network.
        side, width: of the image, which is square if there is no width.
        model: see Variant; ours alone has one, a transcription restores by itself.
    """

    title: str
    network: dict
    sources: tuple[str, str]
    scale: int
    side: int
    kind: str
    dtype: str
    most_time: float | None = None
    most_memory: float | None = None
    batch: int = 1
    channels: int = 3
    level: float | None = None
    constant_weights: bool = False
    width: int = 0
    model: dict | None = None


@dataclass(frozen=True)
class Work:
    """What to do: 'forward', 'train' (forward, backward, AdamW) or 'restore' (Restorer with its options).

    Args:
        channels: of the images.
        level: what a denoising network is told besides; None for the others.
    """

    kind: str
    height: int
    width: int
    batch: int = 1
    scale: int = 1
    device: str = 'cpu'
    threads: int = 0  # 0: torch's own choice
    restorer: dict = field(default_factory=dict)
    channels: int = 3
    level: float | None = None


class Calibration(nn.Module):
    """A fixed mix of convolution, matrix product and softmax, whatever the image: seconds that compare machines."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(48, 48, 3, padding=1), nn.Linear(384, 384)

    def forward(self, _: Tensor) -> Tensor:
        image = torch.ones(1, 48, 128, 128, device=self.linear.weight.device, dtype=self.linear.weight.dtype)
        tokens = self.conv(image).flatten().view(-1, 384)
        return F.softmax(self.linear(tokens), -1).sum()


def compare(ours: Variant, other: Variant, work: Work, repeats: int, memory: bool = True) -> dict:
    """Measure both; returns seconds, peak memory, their ratios (ours / other) and how far the results differ."""
    if work.threads:
        torch.set_num_threads(work.threads)
    variants = {'ours': ours, 'other': other}
    calls = {key: prepared(variant, work) for key, variant in variants.items()}
    results = {key: call() for key, call in calls.items()}
    wall: dict[str, list[float]] = {key: [] for key in calls}
    cpu: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            call()  # not counted: after the other variant it finds cold caches and memory that was given back
            started, started_cpu = time.perf_counter(), time.process_time()
            call()
            wall[key].append(time.perf_counter() - started)
            cpu[key].append(time.process_time() - started_cpu)
    report = {'work': asdict(work), 'machine': machine(work), 'repeats': repeats}
    for key, variant in variants.items():
        report[key] = {
            **asdict(variant),
            'seconds': statistics.median(wall[key]),
            'fastest_seconds': min(wall[key]),
            'cpu_seconds': statistics.median(cpu[key]),
            'peak_bytes': peak_in_fresh_process(variant, work) if memory else None,
        }
    report['ratio'] = {
        measure: report['ours'][measure] / report['other'][measure] if report['other'][measure] else None
        for measure in ('seconds', 'fastest_seconds', 'cpu_seconds', *(['peak_bytes'] if memory else []))
    }
    report['difference'] = difference(results['ours'], results['other']) if other.network else None
    return report


def difference(ours: Tensor, other: Tensor) -> dict[str, float]:
    """Largest and mean absolute difference, and the largest absolute value of the other."""
    if ours.shape != other.shape:
        raise UserError(f'the variants give results of {tuple(ours.shape)} and {tuple(other.shape)}')
    gap = (ours.float() - other.float()).abs()
    return {'max': float(gap.max()), 'mean': float(gap.mean()), 'largest_value': float(other.float().abs().max())}


def machine(work: Work) -> dict:
    """What the numbers depend on besides the code."""
    on_cuda = torch.device(work.device).type == 'cuda'
    names = [line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    return {
        'device': torch.cuda.get_device_name(work.device) if on_cuda else (names or ['CPU'])[0],
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'allocator': {key: value for key, value in os.environ.items() if key.startswith(('MALLOC_', 'LD_PRELOAD'))},
    }


def prepared(variant: Variant, work: Work) -> Callable[[], Tensor]:
    """The work as a function without arguments; its first call does what happens only once."""
    device = torch.device(work.device)
    shape = work.batch, work.channels, work.height, work.width
    lq = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)
    if variant.channels_last:
        lq = lq.to(memory_format=torch.channels_last)
    net = built(variant).to(device)
    if variant.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if variant.compile:
        net.compile()
    make = {'forward': _forward, 'train': _training_step, 'restore': _restoring}[
        work.kind if variant.network else 'forward'
    ]
    call = make(net, lq, variant, work)

    def finished() -> Tensor:
        result = call()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return result

    return finished


def built(variant: Variant) -> nn.Module:
    """The network of a variant; its weights are those of the reference cases unless it names a checkpoint."""
    options = {key: value for key, value in variant.network.items() if key != 'type'}
    if not variant.network:
        net = Calibration()
    elif variant.source:
        entry = loaded(variant.source)
        check_arguments(entry, options)
        net = entry(**options)
    else:
        net = ARCH_REGISTRY.build(variant.network)
    if hasattr(net, 'fill'):  # networks for which this would take long
        net.fill()
    else:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(filled(name, parameter.shape))
    if variant.weights:
        state = network_state(read_checkpoint(variant.weights), 'params_ema', variant.weights)
        left = load_network(net, state, variant.weights, strict=not variant.source)
        if left & dict(net.named_parameters()).keys():
            raise UserError(f'{variant.weights} does not fit {variant.title}: it lacks {", ".join(sorted(left)[:5])}')
    return net


def loaded(source: str) -> type[nn.Module]:
    """The class of `FILE.py:CLASS`. Raises UserError if there is none."""
    file, _, name = source.rpartition(':')
    if not Path(file).is_file():
        raise UserError(f'--against {source}: should be `calibration`, `plain` or FILE.py:CLASS; {file!r} is no file')
    module = executed(file)
    if not hasattr(module, name):
        raise UserError(f'--against {source}: {file} has no {name!r}')
    return getattr(module, name)


@cache
def executed(file: str) -> ModuleType:
    """The module in a file; once, so that two of its classes can share what it keeps."""
    spec = importlib.util.spec_from_file_location(f'against_{Path(file).stem}', file)
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(Path(file).resolve().parent))  # for the modules that lie beside it
    spec.loader.exec_module(module)
    return module


def _forward(net: nn.Module, lq: Tensor, variant: Variant, work: Work) -> Callable[[], Tensor]:
    dtype = DTYPES[variant.dtype]
    net, lq = net.to(dtype).eval(), lq.to(dtype)
    inputs = inputs_of(lq, variant, work)
    kept = ExitStack()
    if variant.constant_weights:
        kept.enter_context(net.constant_weights())

    def call(kept: ExitStack = kept) -> Tensor:  # which is open as long as the function lives
        with torch.inference_mode():
            return net(*inputs)

    return call


def inputs_of(lq: Tensor, variant: Variant, work: Work) -> tuple[Tensor, ...]:
    """The images, and the level of each where the network takes one."""
    if work.level is None or not variant.network:
        return (lq,)
    return lq, torch.full((len(lq),), work.level, device=lq.device)


def _training_step(net: nn.Module, lq: Tensor, variant: Variant, work: Work) -> Callable[[], Tensor]:
    """The result is the loss; L1 against gray, so that any output has gradients of usual size."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-5, fused=True)
    mixed = torch.autocast(lq.device.type, DTYPES[variant.dtype]) if variant.dtype != 'fp32' else nullcontext()
    inputs = inputs_of(lq, variant, work)

    def call() -> Tensor:
        with mixed:
            sr = net(*inputs)
        loss = (sr.float() - 0.5).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return call


def _restoring(net: nn.Module, lq: Tensor, variant: Variant, work: Work) -> Callable[[], Tensor]:
    # Any registered network makes a valid option file; the one to measure then takes its place.
    tree = {'name': 'benchmark', 'scale': work.scale, 'network_g': variant.network, **variant.model}
    model = build_model(parse_options(tree, is_train=False))
    model.nets['g'] = net.eval()
    model.to(lq.device)
    restorer = Restorer(model, dtype=variant.dtype, **work.restorer)
    return lambda: restorer(lq)


def peak_in_fresh_process(variant: Variant, work: Work) -> int:
    """Bytes that the work needs on top of the network and the libraries, in a process that does nothing else."""
    spec = json.dumps({'variant': asdict(variant), 'work': asdict(work)})
    done = subprocess.run([sys.executable, str(Path(__file__).resolve().with_name('benchmark.py')), 'peak', spec],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise UserError(
            f'measuring the memory of {variant.title} failed: {(done.stderr.strip() or "?").splitlines()[-1]}'
        )
    return int(done.stdout.split()[-1])


def peak(spec: str) -> int:
    """The measurement of `peak_in_fresh_process`, in that process."""
    given = json.loads(spec)
    variant, work = Variant(**given['variant']), Work(**given['work'])
    if work.threads:
        torch.set_num_threads(work.threads)
    if work.device.startswith('cuda'):
        call = prepared(variant, work)
        torch.cuda.reset_peak_memory_stats(work.device)
        before = torch.cuda.memory_allocated(work.device)
        call()
        return torch.cuda.max_memory_allocated(work.device) - before
    side = WARM_UP_SIDE if work.level is None else 4 * WARM_UP_SIDE  # UNets halve it up to five times
    prepared(variant, replace(work, height=side, width=side, batch=1))()
    call = prepared(variant, work)
    before = _resident_bytes()
    call()
    return max(0, _most_resident_bytes() - before)


def _resident_bytes() -> int:
    """Memory in use now; forgets the peak so far where the system lets us.

    What the allocator holds free, such as the networks of the warm-up, would hide what comes: it is given back first.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path('/proc/self/clear_refs').write_text('5')
        return _status('VmRSS')
    except OSError:
        return _most_resident_bytes()


def _most_resident_bytes() -> int:
    try:
        return _status('VmHWM')
    except StopIteration:  # no such line: not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def _status(key: str) -> int:
    return next(
        int(line.split()[1]) * 1024
        for line in Path('/proc/self/status').read_text().splitlines()
        if line.startswith(key)
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
