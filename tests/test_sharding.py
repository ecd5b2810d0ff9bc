"""Frozen weights split by FSDP: the same training as with whole ones, what stays whole, what is refused."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from s3diff_arch_fixture import batch, small
from test_s3diff_runs import ROOT, TORCHRUN, differences, saved, without_draws
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from training_fixture import make_images

from basicsr import launch
from basicsr.archs.atd_arch import ATD
from basicsr.launch import asked_sharding
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
    tree['datasets']['val'] = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'max_num': 3}
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


def two_processes(name: str, *arguments: str, fsdp: bool = True, status: int = 0) -> str:
    command = [*TORCHRUN, str(ROOT / 'basicsr/train.py'), '-opt', 'with_val.yml', f'name={name}', *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTEST', 'PYTHONPATH'))}
    env = {**clean, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_FSDP': str(fsdp).lower()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_split_weights_train_validate_and_resume_as_whole_ones(place):
    text = two_processes('split', 'train:total_iter=1')
    assert re.search(r'FSDP: of network_g [\d,]+ frozen parameters are split among 2 processes', text)
    two_processes('split', '--auto_resume')
    two_processes('whole', fsdp=False)
    whole, split = saved('whole', 2), saved('split', 2)
    assert differences(whole, split, tolerance=1e-6) == []
    assert whole['state']['best']['val']['psnr'] == split['state']['best']['val']['psnr']


def test_a_dry_run_costs_what_it_costs_with_whole_weights(place):
    texts = [two_processes('dry', '--dry-run', fsdp=on) for on in (True, False)]
    flops, losses = (
        [next(line for line in text.splitlines() if line.startswith(word)) for text in texts]
        for word in ('FLOPs', 'losses')
    )
    assert flops[0] == flops[1] and losses[0] == losses[1]


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


def test_gradients_of_split_weights_are_those_of_whole_ones(one_process):
    def gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
        for _ in range(2):  # they add up
            net(*batch()).square().mean().backward()
        return {name.removeprefix('module.'): p.grad for name, p in net.named_parameters() if p.requires_grad}

    expected = gradients(small())
    for reshard in (True, False):
        net = small()
        Sharding(reshard).apply({'g': net}, 'cpu', 1)
        found = gradients(DistributedDataParallel(net))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


def test_networks_without_frozen_blocks_are_refused():
    net = ATD(upscale=2, embed_dim=8, depths=[1], num_heads=[2], window_size=4, num_tokens=4, reducted_dim=2)
    with pytest.raises(UserError, match=r'can split nothing of network_g \(ATD\): accelerate launch --config_file'):
        Sharding().apply({'g': net}, 'cpu', 1)


@pytest.mark.parametrize('option', ['compile', 'channels_last'])
def test_what_does_not_go_with_split_weights_is_refused(option):
    from basicsr.models import build_model

    opt = load_options(QUICK, True, [f'train:{option}=true'], check_files=False)
    with pytest.raises(OptionError, match=f'train:{option}: not with weights that FSDP splits'):
        build_model(opt).prepare(SimpleNamespace(num_processes=2), Sharding())


# ---- what accelerate's configuration asks for


@pytest.fixture
def configured(monkeypatch):
    def configure(**values: str) -> None:
        monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return configure


def test_without_fsdp_weights_are_whole(monkeypatch):
    monkeypatch.delenv('ACCELERATE_USE_FSDP', raising=False)
    assert asked_sharding() is None


def test_the_configuration_says_when_a_block_gives_its_weights_back(configured):
    configured()
    assert asked_sharding() == Sharding(reshard=True)
    configured(FSDP_RESHARD_AFTER_FORWARD='false')
    assert asked_sharding() == Sharding(reshard=False)


@pytest.mark.parametrize(
    ('name', 'value', 'fault'),
    [
        ('FSDP_VERSION', '1', 'fsdp_version: 1; fsdp_version: 2 is what splits weights here'),
        ('FSDP_OFFLOAD_PARAMS', 'true', 'fsdp_offload_params: true; weights stay on the devices'),
        ('FSDP_ACTIVATION_CHECKPOINTING', 'true', 'model:gradient_checkpointing=true of the option file does that'),
    ],
)
def test_a_configuration_that_means_something_else_is_refused(configured, name, value, fault):
    configured(**{name: value})
    with pytest.raises(UserError, match=fault):
        asked_sharding()


def test_accelerate_itself_does_not_split_what_is_trained(configured, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, 'Accelerator', lambda **_: seen.append(os.environ.get('ACCELERATE_USE_FSDP')))
    configured()
    with pytest.raises(AttributeError):  # of the None that stands for the accelerator
        launch.build_accelerator(load_options(QUICK, True, check_files=False))
    assert seen == [None] and os.environ['ACCELERATE_USE_FSDP'] == 'true'


@pytest.mark.parametrize('kind', [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_ways_to_split_networks_are_refused(kind, monkeypatch):
    monkeypatch.setattr(launch, 'Accelerator', lambda **_: SimpleNamespace(distributed_type=kind))
    with pytest.raises(UserError, match=f'{kind.value}, which is not supported'):
        launch.build_accelerator(load_options(QUICK, True, check_files=False))
