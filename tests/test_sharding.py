"""Frozen weights split by FSDP: the same training as with whole ones, what stays whole, what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from s3diff_arch_fixture import batch, small
from test_s3diff_runs import FULL, ROOT, TORCHRUN, differences, saved, without_draws
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from training_fixture import make_images

from basicsr import launch
from basicsr.dry_run import flops
from basicsr.launch import asked_sharding
from basicsr.models import build_model
from basicsr.models.sharding import Sharding
from basicsr.utils.options import load_options
from basicsr.utils.registry import OptionError, UserError

sys.path.insert(0, str(ROOT / 'scripts'))
from make_tiny_sd import write_tiny_sd

QUICK = ROOT / 'options/train/ATD/ATD-quick_x2.yml'


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    make_images(tmp_path, count=4, scale=4, size=(10, 12))
    write_tiny_sd(tmp_path / 'sd', groups=4)
    tree = yaml.safe_load(without_draws(tmp_path).read_text())
    pairs = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq'}
    tree['datasets'] |= {'val': pairs | {'max_num': 3}, 'val_2': pairs | {'max_num': 1}}  # one process has none of it
    tree['val'] = {'val_freq': 1, 'metrics': {'psnr': {'type': 'calculate_psnr'}}}
    tree['model']['gradient_checkpointing'] = True
    (tmp_path / 'with_val.yml').write_text(yaml.safe_dump(tree))
    return tmp_path


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def two_processes(name: str, *arguments: str, fsdp: bool = True) -> str:
    command = [*TORCHRUN, str(ROOT / 'basicsr/train.py'), '-opt', 'with_val.yml', f'name={name}', *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTEST', 'PYTHONPATH'))}
    env = {**clean, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_FSDP': str(fsdp).lower(), 'FSDP_VERSION': '2'}
    env['FSDP_CPU_RAM_EFFICIENT_LOADING'] = 'true'  # as accelerate launch says it
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_split_weights_train_validate_and_resume_as_whole_ones(place):
    text = two_processes('split', 'train:total_iter=1')
    assert re.search(r'FSDP: [\d,]+ frozen parameters are split among 2 processes', text)
    two_processes('split', '--auto_resume')
    two_processes('whole', fsdp=False)
    whole, split = saved('whole', 2), saved('split', 2)
    assert differences(whole, split, tolerance=1e-6) == []


def test_other_ways_of_training_are_those_of_whole_weights_too(place):
    changes = (
        'train:gradient_accumulation_steps=2', 'train:mixed_precision=bf16', 'val:val_freq=0', 'train:total_iter=2',
    )  # fmt: skip
    two_processes('split', *changes)
    two_processes('whole', *changes, fsdp=False)
    assert differences(saved('whole', 2), saved('split', 2), tolerance=1e-3) == []


def test_a_dry_run_counts_what_whole_weights_cost(place):
    text = two_processes('dry', '--dry-run')
    model = build_model(load_options('with_val.yml', True))
    counted = flops(model, torch.zeros(1, 3, 8, 8)) / 1e9
    assert f'FLOPs           {counted:,.2f} G for one lq of 8x8' in text


def test_what_is_trained_stays_whole_and_what_is_frozen_is_split(one_process):
    net = small()
    expected = net(*batch())
    Sharding().apply({'g': net}, 'cpu', 1)
    frozen = {name: p for name, p in net.named_parameters() if not p.requires_grad}
    split = {name for name, p in net.named_parameters() if isinstance(p, DTensor)}
    assert split <= frozen.keys()
    assert sum(frozen[name].numel() for name in split) > 0.85 * sum(p.numel() for p in frozen.values())
    assert torch.equal(net(*batch()), expected)
    assert {name for name, p in net.named_parameters() if isinstance(p, DTensor)} == split, 'given back after the work'


def test_parts_of_a_network_work_by_themselves_while_it_is_whole(one_process):
    net, sharding = small(), Sharding()
    x, score, *_ = batch()
    with net.modulated(net.modulation(score)):
        expected = net.encode(x, tile=0)
    sharding.apply({'g': net}, 'cpu', 1)
    with sharding.whole([net]), net.modulated(net.modulation(score)):
        assert not any(isinstance(p, DTensor) for p in net.parameters())
        assert torch.equal(net.encode(x, tile=0), expected)
        assert not any(isinstance(p, DTensor) for p in net.parameters()), 'kept from one call to the next'
    assert any(isinstance(p, DTensor) for p in net.parameters())


class Stub:
    """An accelerator as Sharding sees it."""

    def __init__(self):
        self.calls, self.ddp_handler = [], SimpleNamespace(to_kwargs=lambda: {'find_unused_parameters': True})

    def prepare_model(self, net: torch.nn.Module, evaluation_mode: bool) -> torch.nn.Module:
        self.calls.append(evaluation_mode)
        return net


def test_a_network_with_split_weights_is_wrapped_as_accelerate_would(one_process):
    """On GPUs accelerate itself refuses to wrap it for training."""
    net, sharding, accelerator = small(), Sharding(), Stub()
    sharding.apply({'g': net}, 'cpu', 1)
    assert sharding.shared(net) == sum(p.numel() for p in net.parameters() if isinstance(p, DTensor)) > 0
    found = sharding.wrapped(net, accelerator)
    assert isinstance(found, DistributedDataParallel) and found.find_unused_parameters and accelerator.calls == [True]


def test_gradients_of_split_weights_are_those_of_whole_ones(one_process):
    def gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
        for _ in range(2):  # they add up
            net(*batch()).square().mean().backward()
        return {name.removeprefix('module.'): p.grad for name, p in net.named_parameters() if p.requires_grad}

    expected = gradients(small())
    for reshard in (True, False):
        net, sharding = small(), Sharding(reshard)
        sharding.apply({'g': net}, 'cpu', 1)
        found = gradients(sharding.wrapped(net, Stub()))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


# ---- what accelerate's configuration asks for


@pytest.fixture
def asked(monkeypatch):
    """What is asked for by variables, for a training on so many processes."""

    def ask(file: Path = QUICK, *changes: str, processes: int = 2, **values: str) -> Sharding | None:
        for name, value in ({'ACCELERATE_USE_FSDP': 'true', 'WORLD_SIZE': str(processes)} | values).items():
            monkeypatch.setenv(name, value)
        return asked_sharding(load_options(file, True, [*changes], check_files=False))

    return ask


def test_without_fsdp_weights_are_whole(asked):
    assert asked(ACCELERATE_USE_FSDP='false') is None


def test_the_configuration_says_when_a_block_gives_its_weights_back(asked):
    assert asked(FULL) == asked(FULL, FSDP_RESHARD_AFTER_FORWARD='FULL_SHARD') == Sharding(reshard=True)
    assert asked(FULL, FSDP_RESHARD_AFTER_FORWARD='false') == Sharding(reshard=False)


def test_one_process_has_nothing_to_split_and_says_so(asked, monkeypatch):
    said = []
    monkeypatch.setattr(launch.LOGGER, 'warning', said.append)
    assert asked(FULL, processes=1) is None
    assert said == ['accelerate is configured for FSDP: on one process there is nothing to split']


@pytest.mark.parametrize(
    ('name', 'value', 'fault'),
    [
        ('FSDP_VERSION', '1', 'fsdp_version: 1; fsdp_version: 2 is what splits weights here'),
        ('FSDP_RESHARD_AFTER_FORWARD', 'hybrid', 'fsdp_reshard_after_forward: hybrid; .* is true or false'),
        ('FSDP_OFFLOAD_PARAMS', 'true', 'fsdp_offload_params: true; weights stay on the devices'),
        ('FSDP_ACTIVATION_CHECKPOINTING', 'true', 'model:gradient_checkpointing=true of the option file does that'),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(asked, name, value, fault):
    with pytest.raises(UserError, match=fault):
        asked(FULL, **{name: value})


def test_networks_without_frozen_blocks_are_refused(asked):
    with pytest.raises(UserError, match=r'can split nothing of network_g \(ATD\): accelerate launch --config_file'):
        asked(QUICK)


@pytest.mark.parametrize('option', ['compile', 'channels_last'])
def test_what_does_not_go_with_split_weights_is_refused(asked, option):
    with pytest.raises(OptionError, match=f'train:{option}: not with weights that FSDP splits'):
        asked(FULL, f'train:{option}=true')


def test_accelerate_and_transformers_are_not_told(asked, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, 'Accelerator', lambda **_: seen.append(os.environ.get('ACCELERATE_USE_FSDP')))
    asked(FULL)
    with pytest.raises(AttributeError):  # of the None that stands for the accelerator
        launch.build_accelerator(load_options(QUICK, True, check_files=False))
    assert seen == [None]


@pytest.mark.parametrize('kind', [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_ways_to_split_networks_are_refused(kind, monkeypatch):
    monkeypatch.setattr(launch, 'Accelerator', lambda **_: SimpleNamespace(distributed_type=kind))
    with pytest.raises(UserError, match=f'{kind.value}, which is not supported'):
        launch.build_accelerator(load_options(QUICK, True, check_files=False))
