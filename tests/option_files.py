"""Option files for tests, with a fault put in."""

import copy
from typing import Any

import pytest

from basicsr.utils.options import load_options
from basicsr.utils.registry import OptionError

TRAIN = """\
name: tiny
model_type: SRModel
scale: 2
datasets:
  train:
    name: T
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    io_backend:
      type: disk
    gt_size: 32
    use_hflip: true
    batch_size_per_gpu: 2
  val:
    name: V
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
network_g:
  type: ATD
  upscale: 2
  depths: [2]
  num_heads: [2]
path:
  pretrain_network_g: first.pth
  strict_load_g: true
train:
  total_iter: 10
  ema_decay: 0.9
  optim_g:
    type: AdamW
    lr: 1e-4
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [5]
  pixel_opt:
    type: L1Loss
    loss_weight: 1
val:
  val_freq: 5e3
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: 2
      better: higher
  restorer:
    tile: 64
logger:
  print_freq: 2
  wandb:
    project: ~
"""

# Written as the publishers' files are: BasicSR's keys, comments and spellings of numbers.
PUBLISHED = """\
# general settings
name: 103_ATD_light_SRx4_finetune
model_type: ATDModel
scale: 4
num_gpu: auto
manual_seed: 0
find_unused_parameters: False

# dataset and data loader settings
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub
    dataroot_lq: ~/datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub
    meta_info_file: basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt
    # (for lmdb)
    filename_tmpl: '{}'
    io_backend:
      type: disk

    gt_size: 256
    use_hflip: true
    use_rot: true

    # data loader
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: cuda
    num_prefetch_queue: 1
    pin_memory: true
    persistent_workers: true

  val_1:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx4
    filename_tmpl: '{}x4'
    io_backend:
      type: disk

# network structures
network_g:
  type: ATD
  upscale: 4
  in_chans: 3
  img_size: 64
  embed_dim: 48
  depths: [6, 6, 6, 6, ]
  num_heads: [4, 4, 4, 4, ]
  window_size: 16
  category_size: 128
  num_tokens: 64
  reducted_dim: 8
  convffn_kernel_size: 7
  img_range: 1.
  mlp_ratio: 1
  upsampler: 'pixelshuffledirect'
  resi_connection: '1conv'
  use_checkpoint: False

# path
path:
  pretrain_network_g: experiments/pretrained_models/101_ATD_light_SRx2_scratch.pth
  strict_load_g: false
  resume_state: ~

# training settings
train:
  ema_decay: 0.999
  optim_g:
    type: AdamW
    lr: !!float 2e-4
    weight_decay: 0
    betas: [0.9, 0.99]

  scheduler:
    type: MultiStepLR
    milestones: [150000, 200000, 225000, 240000]
    gamma: 0.5

  total_iter: 250000
  warmup_iter: 10000  # no warm up

  # losses
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
  perceptual_opt: ~

# validation settings
val:
  val_freq: !!float 5e3
  save_img: False
  pbar: False
  suffix: ~

  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: True
      better: higher  # the higher, the better. Default: higher

# logging settings
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~

# dist training settings
dist_params:
  backend: nccl
  port: 29500
"""


def load(tmp_path, text, is_train=True, overrides=(), check_files=False):
    path = tmp_path / 'file.yml'
    path.write_text(text, encoding='utf-8')
    return load_options(path, is_train, overrides, check_files)


def fault(tmp_path, text, **settings) -> str:
    with pytest.raises(OptionError) as caught:
        load(tmp_path, text, **settings)
    message = str(caught.value).replace(f'{tmp_path}/', '')
    assert '\n' not in message and 'pydantic' not in message and 'Input' not in message
    return message


def changed(old: str, new: str) -> str:
    """The training file with one line changed."""
    text = f'\n{TRAIN}'
    assert text.count(f'\n{old}\n') == 1, old
    return text.replace(f'\n{old}\n', f'\n{new}\n')[1:]


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def with_changes(tree: dict, *changes: dict[str, Any]) -> dict:
    """A copy of a tree of options with changes such as {'train:optim_d': None}, which leaves that section out."""
    tree = copy.deepcopy(tree)
    for key, value in (item for part in changes for item in part.items()):
        *sections, last = key.split(':')
        section = tree
        for part in sections:
            section = section[part]
        section[last] = copy.deepcopy(value)
        if value is None:
            del section[last]
    return tree
