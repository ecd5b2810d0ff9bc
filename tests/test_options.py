"""Option files are checked whole before anything is built, and a fault says where it is and what would be right."""

import logging
from pathlib import Path

import pytest

from basicsr.utils.options import load_options
from basicsr.utils.registry import OptionError

ROOT = Path(__file__).parents[1]

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


def test_a_training_file_becomes_frozen_options(tmp_path):
    opt = load(tmp_path, TRAIN)
    assert (opt.name, opt.scale, opt.is_train, opt.device, opt.text) == ('tiny', 2, True, 'auto', TRAIN)
    assert opt.networks == {'g': {'type': 'ATD', 'upscale': 2, 'depths': [2], 'num_heads': [2]}}
    assert opt.train.optims['g'] == {'type': 'AdamW', 'lr': 1e-4, 'betas': [0.9, 0.99]}
    assert opt.train.losses == {'pixel': {'type': 'L1Loss', 'loss_weight': 1}}
    assert opt.val.val_freq == 5000 and isinstance(opt.val.val_freq, int)
    assert opt.path.pretrained['g'].path == 'first.pth' and opt.datasets['train'].batch_size_per_gpu == 2
    with pytest.raises(ValueError, match='frozen'):
        opt.name = 'other'


def test_a_published_file_loads_and_says_in_a_line_each_what_replaced_a_key(tmp_path, caplog):
    with caplog.at_level(logging.INFO, 'basicsr'):
        logging.getLogger('basicsr').addHandler(caplog.handler)
        try:
            opt = load(tmp_path, PUBLISHED)
        finally:
            logging.getLogger('basicsr').removeHandler(caplog.handler)
    notices = {record.getMessage().partition(' is not used: ')[0]: record.getMessage() for record in caplog.records}
    assert notices.keys() == {
        'num_gpu',
        'dist_params',
        'datasets:train:prefetch_mode',
        'datasets:train:num_prefetch_queue',
    }
    assert 'accelerate launch' in notices['num_gpu'] and all('\n' not in notice for notice in notices.values())
    assert (opt.model_type, opt.val.val_freq, opt.logger.save_checkpoint_freq) == ('SRModel', 5000, 5000)
    assert opt.train.optims['g']['lr'] == 2e-4 and opt.train.losses.keys() == {'pixel'}
    assert opt.datasets['train'].options['dataroot_lq'] == str(
        Path('~').expanduser() / 'datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub'
    )
    assert opt.path.pretrained['g'].strict is False and opt.logger.wandb.project is None


def test_a_published_file_serves_as_a_test_file_too(tmp_path):
    opt = load(tmp_path, PUBLISHED, is_train=False)
    assert opt.train is None and opt.datasets.keys() == {'train', 'val_1'}


@pytest.mark.parametrize('path', sorted(ROOT.glob('options/*/*/*.yml')), ids=lambda path: '/'.join(path.parts[-3:]))
def test_every_option_file_of_this_project_loads(path):
    is_train = path.parts[-3] == 'train'
    opt = load_options(path, is_train, check_files=False)
    assert opt.is_train == is_train and opt.name == path.stem.split('+')[0]


@pytest.mark.parametrize(
    ('published', 'ours', 'extra'),
    [
        ('ATDModel', 'SRModel', {}),
        ('SwinIRModel', 'SRModel', {}),
        ('SRGANModel', 'SRModel', {}),
        ('ESRGANModel', 'SRModel', {'relativistic': True}),
    ],
)
def test_published_models_have_a_counterpart(published, ours, extra, tmp_path):
    opt = load(tmp_path, changed('model_type: SRModel', f'model_type: {published}'))
    assert (opt.model_type, opt.model) == (ours, extra)


def test_no_gpus_means_the_cpu(tmp_path):
    assert load(tmp_path, TRAIN + 'num_gpu: 0\n').device == 'cpu'
    assert load(tmp_path, TRAIN + 'num_gpu: 4\n').device == 'auto'


def test_an_empty_key_is_an_absent_one(tmp_path):
    text = changed('scale: 2', 'scale: 2\nmanual_seed: ~\nmodel:').replace('ema_decay: 0.9', 'ema_decay: ~')
    opt = load(tmp_path, text.replace('    use_hflip: true', '    num_worker_per_gpu: ~\n    mean: ~'))
    assert (opt.manual_seed, opt.model, opt.train.ema_decay, opt.datasets['train'].num_worker_per_gpu) == (0, {}, 0, 0)


@pytest.mark.parametrize(
    ('old', 'new', 'where', 'hint'),
    [
        ('scale: 2', 'scael: 2', 'scael', 'scale'),
        ('name: tiny', 'nmae: tiny', 'nmae', 'name'),
        ('datasets:', 'datasest:', 'datasest', 'datasets'),
        ('network_g:', 'netwrok_g:', 'netwrok_g', 'network_g'),
        ('train:\n  total_iter: 10', 'trian:\n  total_iter: 10', 'trian', 'train'),
        ('logger:', 'loger:', 'loger', 'logger'),
        ('    use_hflip: true', '    use_hflp: true', 'datasets:train:use_hflp', 'use_hflip'),
        (
            '    batch_size_per_gpu: 2',
            '    batch_size_per_gpu: 2\n    num_workers_per_gpu: 1',
            'datasets:train:num_workers_per_gpu',
            'num_worker_per_gpu',
        ),
        ('      type: disk', '      typ: disk', 'datasets:train:io_backend:typ', 'type'),
        ('  depths: [2]', '  depth: [2]', 'network_g:depth', 'depths'),
        ('  type: ATD', '  typ: ATD', 'network_g:typ', 'type'),
        ('  strict_load_g: true', '  strict_laod_g: true', 'path:strict_laod_g', 'strict_load_g'),
        ('  strict_load_g: true', '  pretrain_netwrok_g: x', 'path:pretrain_netwrok_g', 'pretrain_network_g'),
        ('  ema_decay: 0.9', '  ema_dacay: 0.9', 'train:ema_dacay', 'ema_decay'),
        ('    lr: 1e-4', '    lrr: 1e-4', 'train:optim_g:lrr', 'lr'),
        ('  optim_g:', '  optm_g:', 'train:optm_g', 'optim_g'),
        ('  optim_g:', '  optim_gg:', 'train:optim_gg', 'optim_g'),
        ('  pixel_opt:', '  pixl_opt:', 'train:pixl_opt', 'pixel_opt'),
        ('    loss_weight: 1', '    los_weight: 1', 'train:pixel_opt:los_weight', 'loss_weight'),
        ('    milestones: [5]', '    milestone: [5]', 'train:scheduler:milestone', 'milestones'),
        ('  val_freq: 5e3', '  val_frq: 5e3', 'val:val_frq', 'val_freq'),
        ('      crop_border: 2', '      crop_boder: 2', 'val:metrics:psnr:crop_boder', 'crop_border'),
        ('    tile: 64', '    tiel: 64', 'val:restorer:tiel', 'tile'),
        ('  print_freq: 2', '  print_frq: 2', 'logger:print_frq', 'print_freq'),
        ('    project: ~', '    projct: x', 'logger:wandb:projct', 'project'),
    ],
)
def test_a_typo_in_a_key_gives_file_line_key_and_suggestion(old, new, where, hint, tmp_path):
    text = changed(old, new)
    line = line_of(text, f'{where.split(":")[-1]}:')
    message = fault(tmp_path, text)
    assert message.startswith(f'file.yml:{line}: {where}: ') and f'did you mean {hint!r}?' in message


@pytest.mark.parametrize(
    ('old', 'new', 'where', 'hint'),
    [
        ('model_type: SRModel', 'model_type: SRModle', 'model_type', 'SRModel'),
        (
            '    name: V\n    type: PairedImageDataset',
            '    name: V\n    type: PairdImageDataset',
            'datasets:val:type',
            'PairedImageDataset',
        ),
        ('  type: ATD', '  type: ADT', 'network_g:type', 'ATD'),
        ('    type: AdamW', '    type: AdmaW', 'train:optim_g:type', 'AdamW'),
        ('    type: MultiStepLR', '    type: MultistepLR', 'train:scheduler:type', 'MultiStepLR'),
        ('    type: L1Loss', '    type: L1Lss', 'train:pixel_opt:type', 'L1Loss'),
        ('      type: calculate_psnr', '      type: calculate_pnsr', 'val:metrics:psnr:type', 'calculate_psnr'),
        ('      type: disk', '      type: disc', 'datasets:train:io_backend:type', 'disk'),
        ('  val_freq: 5e3', '  val_freq: 5e3\n  key_metric: pnsr', 'val:key_metric', 'psnr'),
        ('  strict_load_g: true', '  ignore_resume_networks: [netwrok_g]', 'path:ignore_resume_networks', 'network_g'),
    ],
)
def test_a_typo_in_a_name_gives_file_line_key_and_suggestion(old, new, where, hint, tmp_path):
    text = changed(old, new)
    line = line_of(text, new.splitlines()[-1])
    message = fault(tmp_path, text)
    assert message.startswith(f'file.yml:{line}: {where}: ') and f'did you mean {hint!r}?' in message


@pytest.mark.parametrize(
    ('old', 'new', 'where', 'reason'),
    [
        ('scale: 2', 'scale: two', 'scale', "should be a whole number, got 'two'"),
        ('scale: 2', 'scale: 0', 'scale', 'should be greater than or equal to 1, got 0'),
        ('scale: 2', 'scale: 2\nmanual_seed: -1', 'manual_seed', 'should be greater than or equal to 0, got -1'),
        ('scale: 2', 'scale: 2\ndevice: gpu', 'device', "should be 'auto' or 'cpu', got 'gpu'"),
        ('model_type: SRModel', 'model_type: 3', 'model_type', 'should be the name of a model, got 3'),
        ('    gt_size: 32', '    gt_size: 32.5', 'datasets:train:gt_size', 'multiple of the scale 2, got 32.5'),
        ('    gt_size: 32', '    gt_size: 33', 'datasets:train:gt_size', 'multiple of the scale 2, got 33'),
        ('    gt_size: 32', '    gt_size: -32', 'datasets:train:gt_size', 'multiple of the scale 2, got -32'),
        (
            '    use_hflip: true',
            '    use_hflip: "true"',
            'datasets:train:use_hflip',
            "should be true or false, got 'true'",
        ),
        (
            '    batch_size_per_gpu: 2',
            '    batch_size_per_gpu: 0',
            'datasets:train:batch_size_per_gpu',
            'should be greater than or equal to 1, got 0',
        ),
        (
            '    batch_size_per_gpu: 2',
            '    batch_size_per_gpu: [2]',
            'datasets:train:batch_size_per_gpu',
            'should be a whole number, got [2]',
        ),
        (
            '    io_backend:\n      type: disk',
            '    io_backend: disk',
            'datasets:train:io_backend',
            "should be a section of `key: value` lines, got 'disk'",
        ),
        ('  depths: [2]', '  depths: 2', 'network_g:depths', 'should be a list, got 2'),
        ('  depths: [2]', '  depths: [two]', 'network_g:depths', "should be a whole number, got 'two'"),
        ('    lr: 1e-4', '    lr: 1e', 'train:optim_g:lr', "should be a number, got '1e'"),
        (
            '    betas: [0.9, 0.99]',
            '    betas: [0.9]',
            'train:optim_g:betas',
            'the list has too many or too few values',
        ),
        ('  total_iter: 10', '  total_iter: many', 'train:total_iter', "should be a whole number, got 'many'"),
        ('  ema_decay: 0.9', '  ema_decay: 1.5', 'train:ema_decay', 'should be less than 1, got 1.5'),
        ('  ema_decay: 0.9', '  net_d_iters: often', 'train:net_d_iters', "should be a whole number, got 'often'"),
        ('  strict_load_g: true', '  strict_load_g: 1', 'path:strict_load_g', 'should be true or false, got 1'),
        ('  strict_load_g: true', '  param_key_g: 1', 'path:param_key_g', 'should be text, got 1'),
        (
            '  pretrain_network_g: first.pth',
            '  pretrain_network_g: [x]',
            'path:pretrain_network_g',
            "should be text, got ['x']",
        ),
        (
            '      better: higher',
            '      better: hihger',
            'val:metrics:psnr:better',
            "should be 'higher' or 'lower', got 'hihger'",
        ),
        ('    tile: 64', '    tile: -1', 'val:restorer:tile', 'should be greater than or equal to 0, got -1'),
        ('  print_freq: 2', '  print_freq: 2.5', 'logger:print_freq', 'should be a whole number, got 2.5'),
    ],
)
def test_a_value_of_the_wrong_type_gives_file_line_key_and_reason(old, new, where, reason, tmp_path):
    text = changed(old, new)
    line = line_of(text, new.splitlines()[-1] if 'io_backend' not in new else new)
    message = fault(tmp_path, text)
    assert message.startswith(f'file.yml:{line}: {where}: ') and reason in message


@pytest.mark.parametrize(
    'key',
    [
        'datasets',
        'network_g',
        'path',
        'train',
        'val',
        'logger',
        'model',
        'datasets:train',
        'train:optim_g',
        'train:pixel_opt',
        'train:scheduler',
        'val:metrics',
        'val:metrics:psnr',
        'val:restorer',
        'logger:wandb',
    ],
)
@pytest.mark.parametrize('value', ['3', '[1, 2]'])
def test_a_value_in_place_of_a_section_is_named(key, value, tmp_path):
    message = fault(tmp_path, TRAIN, overrides=[f'{key}={value}'])
    assert message.startswith(f'command line: {key}: should be a section of `key: value` lines, got {value}')


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('name: tiny', "file.yml: option 'name' is missing"),
        ('model_type: SRModel', "file.yml: option 'model_type' is missing"),
        (
            '    dataroot_gt: gt\n    dataroot_lq: lq\n    io_backend:',
            "datasets:train:dataroot_gt: option 'dataroot_gt' is missing",
        ),
        ('    batch_size_per_gpu: 2', "datasets:train: option 'batch_size_per_gpu' is missing"),
        (
            '    gt_size: 32',
            'datasets:train:gt_size: training needs a gt_size that is a multiple of the scale 2, got None',
        ),
        (
            '    name: V\n    type: PairedImageDataset',
            "datasets:val:type: option 'type' is missing: the name of the dataset",
        ),
        ('  type: ATD', "network_g:type: option 'type' is missing: the name of the arch; known: ATD"),
        ('  total_iter: 10', "file.yml:28: train:total_iter: option 'total_iter' is missing"),
        ('    type: AdamW', 'train:optim_g:type: None is not a known optimizer'),
        ('    type: L1Loss', "train:pixel_opt:type: option 'type' is missing: the name of the loss"),
        ('    milestones: [5]', "train:scheduler:milestones: option 'milestones' is missing (MultiStepLR)"),
    ],
)
def test_a_missing_option_is_named(line, reason, tmp_path):
    text = TRAIN.replace(f'{line}\n', '    io_backend:\n' if line.endswith('io_backend:') else '', 1)
    assert reason in fault(tmp_path, text)


def test_missing_sections_are_named(tmp_path):
    head, _, tail = TRAIN.partition('train:\n  total_iter')
    without = head + 'val:' + tail.partition('\nval:')[2]
    assert "section 'train' is missing" in fault(tmp_path, without)
    assert load(tmp_path, without, is_train=False).train is None
    assert "training needs one entry 'train', got val" in fault(tmp_path, TRAIN.replace('  train:\n', '  val_2:\n'))
    assert "training needs one entry 'train', got train, train_2" in fault(
        tmp_path, TRAIN.replace('  val:\n    name: V', '  train_2:\n    gt_size: 2\n    batch_size_per_gpu: 1')
    )
    assert "option 'optim_g' is missing" in fault(
        tmp_path,
        TRAIN.replace('  optim_g:', '  optim_d:').replace(
            '\nnetwork_g:', '\nnetwork_d: {type: UNetDiscriminatorSN, num_in_ch: 3}\nnetwork_g:'
        ),
    )


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('train:optim_g:lr=-1', 'train:optim_g: Invalid learning rate: -1 (AdamW)'),
        ('train:optim_g:betas=[2, 0.9]', 'train:optim_g: Invalid beta parameter at index 0: 2 (AdamW)'),
        ('train:scheduler={}', 'train:scheduler: should be a section'),
        ('train:scheduler:restarts=[0, 1]', 'train:scheduler: 2 restarts need as many restart_weights, got 1'),
        ('network_g:upscale=4', 'network_g:upscale: should be the scale of the file, 2, got 4'),
    ],
)
def test_values_that_do_not_fit_one_another_are_found_before_anything_is_built(override, message, tmp_path):
    text = changed('    type: MultiStepLR', '    type: MultiStepRestartLR')
    assert message in fault(tmp_path, text, overrides=[override])


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path):
    message = fault(tmp_path, changed('    lr: 1e-4', '    lr: 1e-4\n    lr: 2e-4'))
    assert message == 'file.yml:34: train:optim_g:lr: the key is already given in line 33'


def test_missing_files_are_named_with_the_folder_that_they_are_sought_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = line_of(TRAIN, 'dataroot_gt: gt')
    message = fault(tmp_path, TRAIN, check_files=True)
    assert message == f"file.yml:{line}: datasets:train:dataroot_gt: 'gt' does not exist (seen from {tmp_path})"
    (tmp_path / 'gt').mkdir()
    (tmp_path / 'lq').mkdir()
    assert "path:pretrain_network_g: 'first.pth' does not exist" in fault(tmp_path, TRAIN, check_files=True)
    (tmp_path / 'first.pth').touch()
    resume = changed('  strict_load_g: true', '  resume_state: 5.state')
    assert "path:resume_state: '5.state' does not exist" in fault(tmp_path, resume, check_files=True)
    listed = changed('    gt_size: 32', '    gt_size: 32\n    meta_info_file: list.txt')
    assert "datasets:train:meta_info_file: 'list.txt' does not exist" in fault(tmp_path, listed, check_files=True)
    assert load(tmp_path, TRAIN, check_files=True).name == 'tiny'


def test_the_path_may_be_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('gt', 'lq'):
        (tmp_path / name).mkdir()
    text = changed('  pretrain_network_g: first.pth', '  pretrain_network_g: https://example.org/first.pth')
    assert load(tmp_path, text, check_files=True).path.pretrained['g'].path == 'https://example.org/first.pth'


def test_overrides_replace_values_and_are_checked_like_them(tmp_path):
    opt = load(
        tmp_path,
        TRAIN,
        overrides=[
            'scale=4',
            'train:optim_g:lr=2e-4',
            'datasets.train.gt_size=64',
            'train:scheduler=~',
            'logger:wandb:project=p',
            'network_g:depths=[2,2]',
            'network_g:upscale=4',
        ],
    )
    assert (opt.scale, opt.train.optims['g']['lr'], opt.datasets['train'].options['gt_size']) == (4, 2e-4, 64)
    assert (opt.train.scheduler, opt.logger.wandb.project, opt.networks['g']['depths']) == (None, 'p', [2, 2])
    assert (
        fault(tmp_path, TRAIN, overrides=['train:optim_g:lrr=1'])
        == "command line: train:optim_g:lrr: 'lrr' is not a known option of AdamW; did you mean 'lr'?"
    )
    assert fault(tmp_path, TRAIN, overrides=['scale=x']) == "command line: scale: should be a whole number, got 'x'"
    assert "did you mean 'train'?" in fault(tmp_path, TRAIN, overrides=['trian:total_iter=3'])


@pytest.mark.parametrize(
    'name',
    [
        '../../x',
        '/tmp/x',
        'a/b',
        'a\\b',
        '..',
        '.',
        '.hidden',
        '"\\0"',
        '"a\\0b"',
        '"a\\nb"',
        '" "',
        f'{"x" * 300}',
        f'{"ü" * 150}',
        '""',
        '"\\ud800"',
        '12',
        'true',
        '[x]',
        '{a: b}',
    ],
)
def test_a_name_that_could_leave_its_folder_is_refused(name, tmp_path):
    experiment = fault(tmp_path, changed('name: tiny', f'name: {name}'))
    assert experiment.startswith('file.yml:1: name: ')
    dataset = fault(tmp_path, changed('    name: V', f'    name: {name}'))
    assert 'datasets:val:name: ' in dataset
    if name != '""':
        assert 'val:suffix: ' in fault(tmp_path, changed('  val_freq: 5e3', f'  suffix: {name}'))


@pytest.mark.parametrize('name', ['a b', 'ATD-light_x4+v1.2', 'ü' * 100, '~x', 'debug_1'])
def test_other_names_are_accepted(name, tmp_path):
    assert load(tmp_path, changed('name: tiny', f'name: "{name}"')).name == name


def test_two_validation_sets_of_one_name_are_refused(tmp_path):
    text = TRAIN.replace('\nnetwork_g:', '\n  val_2: {name: V, type: SingleImageDataset, dataroot_lq: lq}\nnetwork_g:')
    assert "datasets:val_2:name: val is called 'V' too" in fault(tmp_path, text)


def test_hostile_values_inside_components_are_faults_not_tracebacks(tmp_path):
    for value in ('2024-01-01', '.nan', '.inf', '[[[[]]]]', '{a: {b: c}}', '"\\u0001"', '9' * 400):
        assert 'network_g:depths' in fault(tmp_path, changed('  depths: [2]', f'  depths: {value}'))
