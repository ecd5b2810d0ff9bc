"""S3Diff's trainings: the values of the published one; S3Diff-tiny run, resumed, on two processes, from its files."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from training_fixture import PLUGINS, ROOT, TORCHRUN, differences, make_images, train_here

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import ARCH_REGISTRY, UserError
from basicsr.utils.seeding import derived_seed, seed_all
from basicsr.utils.yaml_loader import apply_override, load_yaml

sys.path.insert(0, str(ROOT / 'scripts'))
from make_tiny_sd import write_tiny_sd

FULL, TINY = (ROOT / 'options' / 'train' / 'S3Diff' / f'{name}.yml' for name in ('S3Diff_x4', 'S3Diff-tiny_x4'))
SHRUNKEN = (
    'device=cpu', 'model:sd_path=sd', 'datasets:train:dataroot_gt=gt', 'datasets:train:crop_size=64',
    'datasets:val:dataroot_gt=gt', 'datasets:val:dataroot_lq=lq',
    'degradation:gt_size=32', 'network_d:embed_dim=16', 'network_d:num_heads=2', 'network_d:image_size=64',
    'network_d:dim=8', 'train:total_iter=2', 'val:val_freq=0', 'logger:print_freq=1', 'logger:save_checkpoint_freq=2',
)  # fmt: skip
UNTRAINED = (
    'network_d:pretrained=false', 'train:perceptual_opt:pretrained=false', 'path:pretrain_network_de=~',
    'datasets:train:max_num=~', 'datasets:train:num_worker_per_gpu=0', 'degradation:groups=0',
    'train:gradient_accumulation_steps=2', 'logger:use_tb_logger=false', 'model:gradient_checkpointing=true',
)  # fmt: skip
SGD = {'type': 'SGD', 'lr': 0.01}
PAIRS = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'gt_size': 32, 'batch_size_per_gpu': 2}


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('s3diff')
    make_images(folder, count=4, scale=4, size=(10, 12))
    write_tiny_sd(folder / 'sd', groups=4)
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv('BASICSR_CACHE', str(place / 'cache'))


def options(*changes: str, file: Path = TINY) -> Options:
    return load_options(file, True, [*(SHRUNKEN if file == TINY else ()), *changes])


def train(name: str, *changes: str, resume: bool = False, file: Path = TINY) -> None:
    assert train_here(options(f'name={name}', *changes, file=file), resume) == 0


def saved(name: str, iteration: int) -> dict:
    folder = Path('experiments', name)
    networks = {k: read_checkpoint(folder / 'models' / f'net_{k}_{iteration}.pth') for k in ('g', 'd', 'de')}
    return {**networks, 'state': read_checkpoint(folder / 'training_states' / f'{iteration}.state')}


def without_draws(place: Path) -> Path:
    """S3Diff-tiny by SGD and without anything that is drawn at random, so that a batch may be divided."""
    tree, _ = load_yaml(TINY)
    for entry in (*SHRUNKEN, 'model:sample_posterior=false', 'model:neg_prob=0', 'network_d:augment=false'):
        apply_override(tree, entry)
    tree['custom_imports'] = [str(PLUGINS)]
    tree['datasets'], tree['degradation'] = {'train': PAIRS}, None
    tree['train']['optim_g'] = tree['train']['optim_d'] = SGD
    (place / 'without_draws.yml').write_text(yaml.safe_dump(tree))
    return place / 'without_draws.yml'


# ---- the published training


def test_the_published_values_are_in_the_file():
    opt = load_options(FULL, True, check_files=False)
    train, data = opt.train, opt.datasets['train']
    adam = {'type': 'AdamW', 'lr': 2e-5, 'weight_decay': 1e-2, 'betas': [0.9, 0.999], 'eps': 1e-8}
    assert train.optims == {'g': adam, 'd': adam} and train.scheduler is None and train.grad_clip == 1
    assert train.gradient_accumulation_steps * data.batch_size_per_gpu * 4 == 64 and train.total_iter == 50_000
    weights = {name: (loss['type'], loss['loss_weight']) for name, loss in train.losses.items()}
    assert weights == {'pixel': ('MSELoss', 2), 'perceptual': ('LPIPSLoss', 5), 'gan': ('MultiLevelGANLoss', 0.5)}
    assert opt.model['neg_prob'] == 0.05 and opt.networks['d']['type'] == 'DinoDiscriminator'
    other = load_options(ROOT / 'options/train/degradations/s3diff_x4.yml', True, check_files=False)
    assert data == other.datasets['train'] and opt.degradation == other.degradation


def test_the_published_network_has_34_million_trained_parameters():
    with torch.device('meta'):
        net = ARCH_REGISTRY.build(load_options(FULL, True, check_files=False).networks['g'])
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 34_475_120


def test_the_published_training_runs_when_shrunken(place):
    tree, tiny = load_yaml(FULL)[0], load_yaml(TINY)[0]
    for entry in (*SHRUNKEN, *UNTRAINED):
        apply_override(tree, entry)
    tree['network_g'] = tiny['network_g']
    tree['network_d'] |= {'depth': 8}
    (place / 'full.yml').write_text(yaml.safe_dump(tree))
    train('full', 'datasets:train:batch_size_per_gpu=2', file=place / 'full.yml')
    assert saved('full', 2)['state']['iter'] == 2


# ---- runs


def test_a_resumed_run_equals_the_unbroken_one():
    train('unbroken', 'train:total_iter=4')
    train('run')
    train('run', 'train:total_iter=4', resume=True)
    assert differences(saved('run', 4), saved('unbroken', 4)) == []


def test_with_accumulation_in_one_step_and_bfloat16_too():
    changes = ('train:gradient_accumulation_steps=2', 'model:generator_steps=one', 'train:mixed_precision=bf16')
    train('unbroken_bf16', 'train:total_iter=2', 'logger:save_checkpoint_freq=1', *changes)
    train('bf16', 'train:total_iter=1', *changes)
    train('bf16', 'train:total_iter=2', *changes, resume=True)
    assert differences(saved('bf16', 2), saved('unbroken_bf16', 2)) == []
    assert {value.dtype for value in saved('bf16', 2)['g']['params'].values()} == {torch.float32}


def test_two_processes_train_as_one_with_twice_the_batch(place):
    file = without_draws(place)
    command = [*TORCHRUN, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(file), 'name=two']
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTEST', 'PYTHONPATH'))}
    env = {**clean, 'OMP_NUM_THREADS': '1', 'SAVE_EVERY_RANK': '1'}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(f'rank{rank}_2.pth') for rank in (0, 1))
    assert differences(first, second) == []
    train('one', 'datasets:train:batch_size_per_gpu=4', file=file)
    for label in 'gd':
        networks = [saved(name, 2)[label] for name in ('two', 'one')]
        assert differences(*networks, tolerance=1e-4) == [], label


# ---- checkpoints


def test_checkpoints_hold_what_is_trained_and_restore_the_same_images():
    train('kept')
    content = saved('kept', 2)
    seed_all(derived_seed(0))  # as train.py does before it builds
    model = build_model(options())
    assert content['g']['params'].keys() == model.nets['g'].own_names()
    assert all(torch.equal(content['de']['params'][n], v) for n, v in model.nets['de'].state_dict().items())
    assert all(name.startswith('decoder.') for name in content['d']['params'])
    base = {name: value for name, value in model.nets['g'].state_dict().items() if name not in content['g']['params']}
    again = build_model(options('path:pretrain_network_g=experiments/kept/models/net_g_2.pth'))
    state = again.nets['g'].state_dict()
    assert all(torch.equal(state[name], value) for name, value in (base | content['g']['params']).items())
    changed = {
        n for n, value in content['g']['params'].items() if not torch.equal(value, model.nets['g'].state_dict()[n])
    }
    assert 'W' not in changed and len(changed) > 0.9 * len(content['g']['params'])


def test_an_estimator_that_came_from_a_file_is_not_saved_again():
    train('first')
    train('second', 'path:pretrain_network_de=experiments/first/models/net_de_2.pth')
    assert sorted(file.name[:6] for file in Path('experiments/second/models').glob('*_2.pth')) == ['net_d_', 'net_g_']


def test_first_weights_of_another_rank_are_refused_or_taken():
    train('ranked')
    file = 'path:pretrain_network_g=experiments/ranked/models/net_g_2.pth'
    with pytest.raises(UserError, match='rank_unet is 8 in the file and 6 here'):
        build_model(options(file, 'network_g:rank_unet=6'))
    train('taken', file, 'network_g:rank_unet=~', 'network_g:rank_vae=~')


# ---- one step


def prepared(*changes: str, file: Path = TINY) -> BaseModel:
    from accelerate import Accelerator
    from training_fixture import forget_accelerate

    forget_accelerate()
    torch.manual_seed(0)
    return build_model(options(*changes, file=file)).prepare(Accelerator(cpu=True, mixed_precision='no'))


def stepped(model: BaseModel) -> tuple[dict, dict]:
    """The losses of a step, and the weights after it."""
    torch.manual_seed(1)
    gt = torch.rand(2, 3, 32, 32)
    model.before_step(1)
    losses = model.training_step({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
    return losses, {name: value.clone() for name, value in model.nets['g'].state_dict().items()}


def test_gradient_checkpointing_changes_nothing_but_the_memory(place):
    file = without_draws(place)
    plain, again = (stepped(prepared(f'model:gradient_checkpointing={on}', file=file)) for on in ('false', 'true'))
    assert differences(plain, again, tolerance=1e-6) == []


def test_prompts_are_encoded_once(monkeypatch):
    from basicsr.models import prompts

    with contextlib.suppress(FileNotFoundError):
        for file in (Path('cache') / 'prompts').glob('*'):
            file.unlink()
    calls = []
    encode = prompts.encode
    monkeypatch.setattr(prompts, 'encode', lambda *arguments: calls.append(arguments) or encode(*arguments))
    for _ in range(2):
        model = prepared()
        stepped(model)
        stepped(model)
    assert len(calls) == 1
