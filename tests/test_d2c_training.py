"""Whole trainings of D2C-SR: exact resumes, several processes, its option files and the commands in their comments."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixture import ROOT, TORCHRUN, Workplace, differences, train_here

from basicsr.utils.options import load_options

FILES = sorted((ROOT / 'options/train/D2C').glob('*.yml'))
TINY = {'n_feats': 8, 'n_resblocks': 1, 'reduction': 4}
ALWAYS = {'start_epoch': 0, 'every': 1, 'epochs': 1, 'decay_epoch': 2, 'decay_rate': 0.5}
ADAM = {'type': 'Adam', 'lr': 1e-3}
D2C = {
    'model_type': 'D2CModel',
    'model': {'divergence_schedule': {'steps_per_epoch': 2, **ALWAYS}},
    'network_g': {'type': 'D2CBranches', 'scale': 2, **TINY},
    'network_f': {'type': 'D2CFusion'},
    'train:optim_g': ADAM,
    'train:optim_f': ADAM,
    'train:pixel_opt': {'type': 'MSELoss'},
    'train:divergence_opt': {
        'type': 'TripletDivergenceLoss',
        'loss_weight': 0.1,
        'margin_same': 2e-5,
        'margin_diff': 5e-5,
    },
}


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


def records(place: Workplace, name: str = 'run') -> list[dict]:
    lines = (place.folder / 'experiments' / name / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('changes', [{}, {'model:reuse_d_outputs': True}, {'train:gradient_accumulation_steps': 2}])
def test_a_resumed_run_equals_the_unbroken_one(changes, place):
    """Both networks, their averages and optimizers, bit for bit, across a change of the divergence's weight."""
    changes = {**D2C, **changes}
    place.train('unbroken', changes)
    place.train('run', {**changes, 'train:total_iter': 4})
    place.train('run', changes, resume=True)
    saved = place.saved('run')
    assert saved.keys() == {'net_f_8.pth', 'net_g_8.pth', 'state'} and len(saved['state']['optimizers']) == 2
    assert all(saved[name].keys() == {'params', 'params_ema'} for name in ('net_f_8.pth', 'net_g_8.pth'))
    assert differences(saved, place.saved('unbroken')) == []
    active = [record['l_g_div'] > 0 for record in records(place)]
    assert active == [False] * 2 + [True] * 6


def test_a_killed_run_resumes_exactly_in_another_process(place):
    place.process('unbroken', D2C)
    place.process('run', D2C, env={'SIGNAL_AT': 'net_g_8.pth is complete', 'SIGNAL': '9'}, status=-9)
    place.process('run', flags=('--auto_resume',))
    assert differences(place.saved('run'), place.saved('unbroken')) == []


def test_two_processes_train_as_one(tmp_path):
    """Without the divergence, whose statistics are those of each process."""
    place = Workplace(tmp_path, count=8)
    descent = {'type': 'SGD', 'lr': 0.01}
    changes = {
        **D2C,
        'model': {},
        'train:divergence_opt': None,
        'train:optim_g': descent,
        'train:optim_f': descent,
        'train:total_iter': 3,
        'logger:save_checkpoint_freq': 3,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    place.process('two', changes, launcher=TORCHRUN, env={'SAVE_EVERY_RANK': '1'})
    first, second = (torch.load(tmp_path / f'rank{rank}_3.pth') for rank in (0, 1))
    assert differences(first, second) == []
    assert place.train('one', {**changes, 'datasets:train:batch_size_per_gpu': 4}) == 0
    for name in ('net_g_3.pth', 'net_f_3.pth'):
        assert differences(place.saved('two', 3)[name], place.saved('one', 3)[name], tolerance=1e-6) == []


SMALL = {
    'device': 'cpu', 'train:total_iter': 2, 'val:val_freq': 1, 'logger:save_checkpoint_freq': 1,
    'logger:use_tb_logger': 'false', 'logger:print_freq': 1, 'datasets:train:batch_size_per_gpu': 1,
    'datasets:train:num_worker_per_gpu': 0,
}  # fmt: skip
SMALL_NETWORKS = {
    'D2CBranches': TINY,
    'RCAN': {'num_feat': 8, 'num_group': 3, 'num_block': 1, 'squeeze_factor': 4},
    'ATD': {
        'embed_dim': 12, 'depths': '[2, 2, 2]', 'num_heads': '[2, 2, 2]', 'window_size': 4, 'category_size': 16,
        'num_tokens': 8, 'reducted_dim': 4, 'img_size': 8,
    },
}  # fmt: skip


def small(file: Path, place: Workplace, extra: tuple[str, ...] = ()) -> Any:
    """The options of a file, on the images of `place`, for networks and runs that are small."""
    opt = load_options(file, True, extra, check_files=False)
    (place.folder / 'list.txt').write_text(''.join(f'lq/{n}.png gt/{n}.png\n' for n in range(3)))
    network, place_of_network = opt.networks['g'], 'network_g'
    if 'backbone' in network:
        network, place_of_network = network['backbone'], 'network_g:backbone'
    changes = {**SMALL, 'datasets:train:gt_size': 8 * opt.scale}
    changes |= {f'{place_of_network}:{key}': value for key, value in SMALL_NETWORKS[network['type']].items()}
    for label, dataset in opt.datasets.items():
        if 'pair_list' in dataset.options:
            changes |= {f'datasets:{label}:dataroot_{side}': '.' for side in ('gt', 'lq')}
            changes[f'datasets:{label}:pair_list'] = 'list.txt'
        else:
            changes |= {f'datasets:{label}:dataroot_{side}': side for side in ('gt', 'lq')}
    if opt.model.get('divergence_schedule'):
        values = {'steps_per_epoch': 1, **ALWAYS}
        changes |= {f'model:divergence_schedule:{key}': value for key, value in values.items()}
    overrides = [*extra, *(f'{key}={value}' for key, value in changes.items())]
    return load_options(file, True, overrides, check_files=False)


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_every_option_file_trains_resumes_and_equals_the_unbroken_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = load_options(file, True, check_files=False).scale
    place = Workplace(tmp_path, count=3, scale=scale)
    if second_stage := file.stem.endswith('_fusion'):
        assert train_here(small(file.with_stem(file.stem.removesuffix('_fusion')), place)) == 0
    opt = small(file, place, ('name=run',))
    assert train_here(opt) == 0
    unbroken = place.saved('run', 2)
    (tmp_path / 'experiments/run/training_states/2.state').unlink()
    assert train_here(opt, resume=True) == 0
    assert '1.state, iteration 1' in place.log('run')
    assert differences(place.saved('run', 2), unbroken) == []
    assert any('psnr' in record for record in records(place)) == (len(opt.datasets) > 1)
    assert [record['l_g_div'] > 0 for record in records(place) if 'l_g_div' in record][-1:] == [True] * (
        not second_stage
    )


@pytest.mark.parametrize('file', FILES, ids=lambda path: path.stem)
def test_the_numbers_of_a_published_schedule_follow_from_its_epochs(file):
    """Where the comment says how many pairs there are, the counts of iterations are those of 20000 epochs."""
    text = file.read_text()
    found = re.search(r'An epoch is floor\((\d+) / 4\) = (\d+) iterations; 20000 epochs are (\d+)', text)
    if not found:
        assert 'n_feats: 64' not in text, 'every file with the published network says it'
        return
    pairs, steps, total = map(int, found.groups())
    opt = load_options(file, True, check_files=False)
    assert steps == pairs // 4 == opt.model['divergence_schedule']['steps_per_epoch']
    assert total == 20000 * steps == opt.train.total_iter and opt.val.val_freq == 20 * steps
    assert opt.train.scheduler['milestones'] == [2000 * steps * k for k in range(1, 10)]
    assert opt.datasets['train'].options['gt_size'] == 96 * opt.scale
    assert opt.train.optims['g'] == opt.train.optims['f'] and opt.train.optims['g']['weight_decay'] == 1e-8


def test_the_two_stages_in_the_comment_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / 'options/train/D2C/D2C_RealSR_x4.yml'
    comment = re.sub(r'\n# +(?=model:)', ' ', file.read_text())
    commands = [tuple(line.split()) for line in re.findall(r'#   \.\.\. D2C_RealSR_x4\.yml (.*)', comment)]
    assert len(commands) == 2
    place = Workplace(tmp_path, count=3, scale=4)
    for command in commands:
        assert train_here(small(file, place, command)) == 0
    branches, fusion = (
        tmp_path / 'experiments' / f'D2C_RealSR_x4_{name}' / 'models' for name in ('branches', 'fusion')
    )
    assert not (branches / 'net_f_2.pth').exists()
    weights = [torch.load(folder / 'net_g_2.pth')['params'] for folder in (branches, fusion)]
    assert differences(*weights) == [], 'the second stage leaves the branches as they are'
    logged = [
        set(records(place, f'D2C_RealSR_x4_{name}')[0]) & {'l_g_pix', 'l_f_pix'} for name in ('branches', 'fusion')
    ]
    assert logged == [{'l_g_pix'}, {'l_f_pix'}]


def test_a_dry_run_prints_the_costs_of_both_networks(place):
    place.options('run', D2C)
    text = place.process('run', flags=('--dry-run',))
    for words in (
        'network_g',
        'D2CBranches',
        'network_f',
        'D2CFusion, 46,080 parameters',
        'FLOPs',
        'l_g_div',
        'l_f_pix',
    ):
        assert words in text, text
