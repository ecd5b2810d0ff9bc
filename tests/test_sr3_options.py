"""SR3's option files: the published networks to the parameter, and each of them trains, shrunken, on tiny images."""

import contextlib
import re
import sys
from pathlib import Path

import pytest
import torch
from training_fixture import ROOT, make_images, train_here

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_sr3_data import Sizes, make_data

from basicsr.models import build_model
from basicsr.utils.options import Options, load_options

TRAIN, TEST = (sorted((ROOT / 'options' / kind / 'SR3').glob('*.yml')) for kind in ('train', 'test'))
# Parameters, levels, groups, first and last beta, loss, rate, images per iteration, iterations (sr3.md 2.4 and 4.6).
PUBLISHED = {
    'sr_sr3_16_128': (97_807_491, 5, 32, 1e-6, 1e-2, 1e-4, 4, 1_000_000),
    'sr_sr3_64_512': (155_334_339, 5, 16, 1e-6, 1e-2, 3e-6, 1, 1_000_000),
    'sr_ddpm_16_128': (26_451_587, 6, 32, 1e-4, 2e-2, 1e-4, 12, 1_000_000),
    'sample_sr3_128': (97_805_763, 5, 32, 1e-6, 1e-2, 1e-4, 4, 10_000_000),
    'sample_ddpm_128': (26_449_859, 6, 32, 1e-4, 2e-2, 1e-4, 12, 1_000_000),
}
SHRUNKEN = (
    'network_g:inner_channel=8', 'network_g:norm_groups=4', 'device=cpu', 'train:total_iter=2',
    'logger:use_tb_logger=false', 'logger:print_freq=1', 'datasets:train:batch_size_per_gpu=2',
    'datasets:train:num_worker_per_gpu=0',
)  # fmt: skip
VALIDATED = ('val:val_freq=2', 'model:sampler:steps=2', 'datasets:val:data_len=1')


def described(file: Path, overrides: tuple[str, ...] = ()) -> Options:
    return load_options(file, 'train' in file.parts, [*overrides, 'path:pretrain_network_g=~'], check_files=False)


def test_every_training_has_a_test_file():
    assert [file.name for file in TRAIN] == [file.name for file in TEST] and PUBLISHED.keys() <= {f.stem for f in TEST}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configurations_are_as_published(name):
    parameters, levels, groups, start, end, rate, batch, iterations = PUBLISHED[name]
    for file in (ROOT / 'options' / kind / 'SR3' / f'{name}.yml' for kind in ('train', 'test')):
        opt = described(file)
        with torch.device('meta'):
            model = build_model(opt)
        assert sum(p.numel() for p in model.nets['g'].parameters()) == parameters
        assert model.conditional == name.startswith('sr_') and model.continuous == ('ddpm' not in name)
        assert model.multiple == 2 ** (levels - 1) and opt.networks['g']['norm_groups'] == groups
        assert (len(model.diffusion), model.diffusion.betas[0]) == (2000, start)
        assert model.diffusion.betas[-1] == pytest.approx(end)
    train = described(ROOT / 'options/train/SR3' / f'{name}.yml').train
    assert train.optims['g'] == {'type': 'Adam', 'lr': rate, 'betas': [0.9, 0.999]} and train.total_iter == iterations
    assert train.losses == {'noise': {'type': 'L1Loss'}} and train.ema_decay == 0 and train.scheduler is None
    data = described(ROOT / 'options/train/SR3' / f'{name}.yml').datasets['train']
    assert data.batch_size_per_gpu == batch and data.options['use_hflip'] is True


@pytest.mark.parametrize('file', TRAIN, ids=lambda path: path.stem)
def test_training_and_testing_describe_one_network(file):
    ours, theirs = described(file), described(ROOT / 'options/test/SR3' / file.name)
    assert ours.networks == theirs.networks and ours.scale == theirs.scale
    assert ours.model['schedule'] == theirs.model['schedule']


@pytest.mark.parametrize('file', TRAIN, ids=lambda path: path.stem)
def test_the_file_trains(file, tmp_path):
    """The published ones on data of 4 -> 32 pixels in their layout, the others on pairs."""
    text, overrides = file.read_text(), list(SHRUNKEN)
    with contextlib.chdir(tmp_path):
        if file.stem in PUBLISHED:
            make_images(tmp_path, count=3, scale=1, size=(40, 36))
            layout = 'lmdb' if 'datatype: lmdb' in text else 'img'
            for name in ('ffhq', 'celebahq'):
                make_data(tmp_path / 'gt', tmp_path / 'datasets' / name, Sizes(4, 32), lmdb=layout == 'lmdb')
            labels = ['train', *(['val'] if '\n  val:\n' in text else [])]
            sizes = {'dataroot': '{}_4_32', 'l_resolution': '4', 'r_resolution': '32'}
            roots = {'train': 'datasets/ffhq', 'val': 'datasets/celebahq'}
            overrides += [f'datasets:{k}:{o}={v.format(roots[k])}' for k in labels for o, v in sizes.items()]
            overrides += VALIDATED if 'val' in labels else ()
        else:
            make_images(tmp_path, count=3, scale=4, size=(24, 24))
            overrides += [f'datasets:train:dataroot_gt={tmp_path}/gt', 'datasets:train:gt_size=32', 'val:val_freq=0']
            if 'dataroot_lq' in text.partition('network_g')[0].partition('  val:')[0]:
                overrides.append(f'datasets:train:dataroot_lq={tmp_path}/lq')
            if '\n  val:\n' in text:
                overrides += [f'datasets:val:dataroot_{k}={tmp_path}/{k}' for k in ('gt', 'lq')]
        assert train_here(load_options(file, True, overrides)) == 0
        assert Path('experiments', file.stem, 'models', 'net_g_2.pth').is_file()


@pytest.mark.parametrize('file', [*TRAIN, *TEST], ids=lambda path: f'{path.parts[-3]}-{path.stem}')
def test_comments_name_files_and_options_that_are_there(file):
    comment = ''.join(re.findall(r'^#(.*)\n', file.read_text(), re.MULTILINE)).replace('\\', '')
    for path in re.findall(r'\b(?:options|scripts|basicsr)/[\w/.-]+\.(?:yml|py)', comment):
        assert (ROOT / path).is_file(), path
    for override in re.findall(r'\b(?:train|model|path):\w+(?::\w+)*=\S+', comment):
        described(file, (override.rstrip('.'),))
