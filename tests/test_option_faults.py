"""A fault in an option file says in which file, line and key it is and what would be right."""

import pytest
from option_files import TRAIN, changed, fault, line_of, load


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
