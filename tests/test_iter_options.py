"""ITER's option files: as published to the number, in the published spelling too, and each of them trains."""

import inspect
import logging
import re
from pathlib import Path

import pytest
import torch
from iter_training_fixture import DDCONFIG
from training_fixture import ROOT, Workplace, differences, train_here

from basicsr.archs.iter_arch import ITER
from basicsr.utils.options import Options, load_options, parse_options
from basicsr.utils.registry import ARCH_REGISTRY, OptionError
from basicsr.utils.yaml_loader import parse_yaml

FILES = {file.stem: file for file in sorted((ROOT / 'options/train/ITER').glob('*.yml'))}
# What the files of the repository say, spelled as they do (iter.md 4.6).
HEAD = """
name: {name}
model_type: {model}
scale: &upscale {scale}
bsz: &bsz 4
num_gpu: 1
manual_seed: 0
datasets:
  train:
    name: SynPairedData
    type: PairedImageDataset
    dataroot_gt: datasets/HQ_sub_samename
    dataroot_lq: datasets/{lq}
    io_backend:
      type: disk
    gt_size: 320
    use_resize_crop: {resized}
    use_flip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: {workers}
    batch_size_per_gpu: *bsz
    dataset_enlarge_ratio: 1
    prefetch_mode: cpu
    num_prefetch_queue: 128
  val:
    name: div2k_valid
    type: PairedImageDataset
    dataroot_gt: datasets/test_datasets/div2k_valid/gt_mod16
    dataroot_lq: datasets/test_datasets/div2k_valid/{val_lq}
    io_backend:
      type: disk
    max_num: 10
network_d:
  type: UNetDiscriminatorSN
  num_in_ch: 3
gradient_accumulation_steps: 4
train:
  optim_g:
    type: Adam
    lr: !!float 1e-4
    betas: [0.9, 0.99]
  optim_d:
    type: Adam
    lr: !!float 4e-4
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [50000, 100000, 150000, 200000, 250000, 300000, 350000]
    gamma: 1
  total_iter: 1600000
  warmup_iter: -1
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
  perceptual_opt:
    type: LPIPSLoss
    loss_weight: 1.0
  gan_opt:
    type: GANLoss
    gan_type: hinge
    real_label_val: 1.0
    fake_label_val: 0.0
    loss_weight: !!float 0.1
  codebook_opt:
    loss_weight: 1.0
  net_d_iters: 1
  net_d_init_iters: {d_from}
{more_losses}
val:
  val_freq: !!float 2e3
  save_img: true
  key_metric: lpips
  metrics:
    psnr:
      type: psnr
      crop_border: 4
      test_y_channel: true
    ssim:
      type: ssim
      crop_border: 4
      test_y_channel: true
    lpips:
      type: lpips
      better: lower
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 1e9
  save_latest_freq: !!float 5e2
  show_tf_imgs_freq: !!float 1e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~
dist_params:
  backend: nccl
  port: 16500
find_unused_parameters: true
"""
VQGAN = (
    '{n_embed: 512, embed_dim: 128, ddconfig: {in_channels: 3, emb_dim: 128, resolution: [256, 256], nf: 128, '
    'ch_mult: [1, 2, 2, 4], global_blks: swin, swin_dim: 256, swin_window: 8, swin_blk_depth: 6, swin_blk_num: 1}'
)
LQ = """
network_g:
  type: ITER
  gt_resolution: 256
  norm_type: gn
  act_type: silu
  scale_factor: *upscale
  codebook_params: [[32, 1024, 512]]
  LQ_stage: true
  LQ_train_phase: refine
  vqgan_opt: {vqgan}, ckpt_path: {url}/ITER_swinvqgan.pth}}
path:
  pretrain_network_hq: {url}/ITER_swinvqgan.pth
  pretrain_network_g: {url}/ITER_x2.pth
  strict_load: false
"""
URL = 'https://github.com/chaofengc/ITER/releases/download/v0.1.0'


def published(name: str) -> dict:
    """The tree of a file of the repository."""
    if name == '001_ITER_HQ_stage':
        text = HEAD.format(
            name=name, model='SwinVQGANModel', scale=1, lq='HQ_sub_samename', val_lq='gt_mod16', resized='false',
            workers=4, d_from=0, more_losses='  struct_opt:\n    type: ssimc\n    loss_weight: 1.0\n',
        )  # fmt: skip
        return parse_yaml(text + f'network_g: {VQGAN}, type: VQModel}}\n')[0]
    scale = int(name[5])
    text = HEAD.format(
        name=name, model='ITERModel', scale=scale, lq=f'LQ_sub_samename_X{scale}', val_lq=f'lrx{scale}',
        resized='true', workers=2, d_from='!!float 1e9', more_losses='',
    )  # fmt: skip
    return parse_yaml(text + LQ.format(vqgan=VQGAN, url=URL))[0]


def ours(name: str, *overrides: str) -> Options:
    return load_options(FILES[name], True, overrides, check_files=False)


def complete(section: dict) -> dict:
    """With the defaults of what it configures."""
    parameters = inspect.signature(ARCH_REGISTRY.get(section['type'])).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return defaults | section


JOINT = ['001_ITER_HQ_stage', '001_x2_ITER_LQ_stage', '001_x4_ITER_LQ_stage']


@pytest.mark.parametrize('name', JOINT)
def test_a_file_says_the_same_in_the_published_spelling(name, caplog):
    """Where it says nothing of our own: iterations, states, an io_backend that is the default."""
    with caplog.at_level(logging.INFO):
        theirs, mine = parse_options(published(name), is_train=True), ours(name)
    for label in ('g', 'd'):
        assert complete(theirs.networks[label]) == complete(mine.networks[label])
    assert theirs.train.losses == mine.train.losses and theirs.train.scheduler == mine.train.scheduler
    for label, optimizer in mine.train.optims.items():
        assert {'weight_decay': 0, **theirs.train.optims[label]} == {'weight_decay': 0, **optimizer}
    names = ('total_iter', 'gradient_accumulation_steps', 'warmup_iter', 'ema_decay', 'grad_clip')
    assert all(getattr(theirs.train, name) == getattr(mine.train, name) for name in names)
    assert (theirs.val.val_freq, theirs.val.metrics) == (mine.val.val_freq, mine.val.metrics)
    assert theirs.logger.print_freq == mine.logger.print_freq
    assert theirs.logger.save_checkpoint_freq == mine.logger.save_checkpoint_freq
    assert {k: (v.path, v.strict) for k, v in theirs.path.pretrained.items() if k == 'g'} == {
        k: (v.path, v.strict) for k, v in mine.path.pretrained.items() if k == 'g'
    }
    for label, dataset in mine.datasets.items():
        their_options = {k: v for k, v in theirs.datasets[label].options.items() if k != 'io_backend'}
        assert their_options == dataset.options
        assert theirs.datasets[label].batch_size_per_gpu == dataset.batch_size_per_gpu
        assert theirs.datasets[label].num_worker_per_gpu == dataset.num_worker_per_gpu
    if name != '001_ITER_HQ_stage':
        assert theirs.model['net_d_init_iters'] >= theirs.train.total_iter
        assert theirs.model['refinement'] == {'schedule': 'cosine', 'threshold': 0.5}
        assert theirs.model['refinement'].items() <= mine.model['refinement'].items()
        assert 'network_g:codebook_params is not used: it has no effect in the published code' in caplog.text
    assert 'all counts of batches are divided by 4' in caplog.text
    assert 'no state would be saved before the end; it is set to 5000' in caplog.text
    assert 'logger:save_latest_freq is not used' in caplog.text and 'show_tf_imgs_freq is not used' in caplog.text


@pytest.mark.parametrize('name', [name for name in FILES if name.startswith('00')])
def test_the_published_networks_have_the_published_parameters(name):
    """iter.md 1; 002 has no token nets."""
    opt = ours(name)
    with torch.device('meta'):
        net = ARCH_REGISTRY.build(opt.networks['g'])
    total = sum(p.numel() for p in net.parameters())
    if not isinstance(net, ITER):
        assert total == 71_103_843
        return
    expected = {2: 129_995_461, 4: 127_321_541}[opt.scale] - (
        0 if opt.networks['g'].get('refine', True) else 52_077_186
    )
    assert total == expected
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == total - 71_103_843


def test_the_stages_one_after_the_other_are_the_joint_one_but_for_what_they_begin_with():
    for scale in (2, 4):
        joint = ours(f'001_x{scale}_ITER_LQ_stage')
        for name in (f'002_x{scale}_ITER_tokens', f'003_x{scale}_ITER_refinement'):
            opt = ours(name)
            assert opt.datasets == joint.datasets and opt.val == joint.val and opt.logger == joint.logger
            assert opt.networks['g']['vqgan_opt'] == joint.networks['g']['vqgan_opt']
            assert opt.train.optims['g'] == joint.train.optims['g'] and opt.train.scheduler == joint.train.scheduler
            assert opt.train.losses.items() <= joint.train.losses.items()
            assert (opt.train.total_iter, opt.train.gradient_accumulation_steps) == (400_000, 4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'LQ_stage': False}, 'network_g:LQ_stage: false is the VQGAN alone'),
        ({'LQ_train_phase': 'all'}, "network_g:LQ_train_phase: should be 'refine' or 'token_pred', got 'all'"),
        ({'vqgan_opt': {'ckpt_path': 'mine.pth'}}, "is another file than the network's ckpt_path 'mine.pth'"),
    ],
)
def test_a_mistake_in_the_published_spelling_is_named(change, message):
    tree = published('001_x4_ITER_LQ_stage')
    tree['network_g'] |= change
    with pytest.raises(OptionError) as caught:
        parse_options(tree, is_train=True)
    assert message in str(caught.value)


def test_the_phase_of_the_tokens_alone_is_read_too():
    tree = published('001_x4_ITER_LQ_stage')
    tree['network_g']['LQ_train_phase'] = 'token_pred'
    tree['train'] |= {'struct_opt': 0.5, 'codebook_opt': 2}
    opt = parse_options(tree, is_train=True)
    assert opt.model['stages'] == 'tokens' and opt.networks['g']['refine'] is False and 'refinement' not in opt.model
    assert opt.train.losses['struct'] == {'type': 'SSIMLoss', 'loss_weight': 0.5}
    assert opt.train.losses['codebook'] == {'type': 'TokenLoss', 'loss_weight': 2}
    assert opt.path.pretrained['hq'].path == f'{URL}/ITER_swinvqgan.pth'


def test_the_bundled_network_fits_in_8_megabytes_of_half_precision():
    files = [FILES[name] for name in ('ITER-demo_hq', 'ITER-demo_x4_tokens', 'ITER-demo_x4')]
    hq, tokens, last = (load_options(file, True, check_files=False) for file in files)
    vqgan = {key: value for key, value in hq.networks['g'].items() if key != 'type'}
    assert vqgan == tokens.networks['g']['vqgan_opt'] == last.networks['g']['vqgan_opt']
    assert sum(p.numel() for p in ARCH_REGISTRY.build(last.networks['g']).parameters()) < 4e6


# ---- the files train, one after the other as their comments say

CHAINS = [
    ('001_ITER_HQ_stage', '002_x2_ITER_tokens', '003_x2_ITER_refinement'),
    ('001_ITER_HQ_stage', '002_x4_ITER_tokens', '003_x4_ITER_refinement'),
    ('001_ITER_HQ_stage', '001_x2_ITER_LQ_stage'),
    ('001_ITER_HQ_stage', '001_x4_ITER_LQ_stage'),
    ('ITER-demo_hq', 'ITER-demo_x4_tokens', 'ITER-demo_x4'),
]
SMALL = {
    'device': 'cpu', 'train:total_iter': 2, 'train:mixed_precision': 'no', 'logger:save_checkpoint_freq': 1,
    'logger:use_tb_logger': 'false', 'logger:print_freq': 1, 'datasets:train:batch_size_per_gpu': 1,
    'datasets:train:num_worker_per_gpu': 0, 'datasets:train:gt_size': 32,
}  # fmt: skip


def small(name: str, *overrides: str) -> Options:
    """The options of a file for the images of a Workplace, and for networks that are small."""
    opt = ours(name, *overrides)
    first = opt.model_type == 'SwinVQGANModel'
    changes, vqgan = dict(SMALL), 'network_g' if first else 'network_g:vqgan_opt'
    changes |= {f'{vqgan}:n_embed': 12, f'{vqgan}:embed_dim': 8}
    changes |= {f'{vqgan}:ddconfig:{key}': value for key, value in DDCONFIG.items()}
    for label in opt.datasets:
        changes |= {f'datasets:{label}:dataroot_gt': 'gt', f'datasets:{label}:dataroot_lq': 'gt' if first else 'lq'}
    if not first and opt.networks['g'].get('refine', True):
        changes |= {'network_g:demask_opt:ch': 8, 'network_g:demask_opt:swin_blk_num': 1}
        changes |= {'network_g:demask_opt:swin_blk_depth': 1}
    if 'd' in opt.networks:
        changes['network_d:num_feat'] = 4
    if 'perceptual' in opt.train.losses:  # with VGG, which takes its time, in one file
        changes |= {'train:perceptual_opt': '~'} if opt.scale != 4 else {'train:perceptual_opt:pretrained': 'false'}
    if 'val' in opt.datasets:
        changes |= {
            'val:val_freq': 2,
            'val:key_metric': 'psnr',
            'val:metrics:lpips:type': 'psnr',
            'datasets:val:max_num': 1,
        }
    return ours(name, *overrides, *(f'{key}={value}' for key, value in changes.items()))


@pytest.mark.parametrize('chain', CHAINS, ids='-'.join)
def test_the_files_train_one_after_the_other_and_resume(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = ours(chain[-1]).scale
    place = Workplace(tmp_path, count=3, scale=scale, size=(40 // scale, 36 // scale))
    own_vqgan = [
        'path:pretrain_network_hq=experiments/001_ITER_HQ_stage/models/net_g_latest.pth',
        'path:pretrain_network_g=~',
    ]
    for name in chain:
        overrides = own_vqgan if 'LQ_stage' in name else ()
        assert all(override in FILES[name].read_text() for override in overrides), 'as its comment says'
        opt = small(name, *overrides)
        assert train_here(opt) == 0
    unbroken = place.saved(name, 2)
    Path('experiments', name, 'training_states/2.state').unlink()
    assert train_here(opt, resume=True) == 0
    assert '1.state, iteration 1' in place.log(name)
    assert differences(place.saved(name, 2), unbroken) == []
    assert ('psnr' in place.log(name)) == ('val' in opt.datasets)


@pytest.mark.parametrize('name', FILES)
def test_comments_name_files_and_options_that_are_there(name):
    comment = ''.join(re.findall(r'^#(.*)\n', FILES[name].read_text(), re.MULTILINE)).replace('\\', '')
    for path in re.findall(r'\b(?:options|scripts|basicsr)/[\w/.-]+\.(?:yml|py)', comment):
        assert (ROOT / path).is_file(), path
    for other in re.findall(r'\b(00\w+)\.yml', comment):
        assert other in FILES
    for override in re.findall(r'\b(?:train|model|path):\w+(?::\w+)*=\S+', comment):
        ours(name, override.rstrip('.'))
