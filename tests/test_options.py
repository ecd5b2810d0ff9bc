"""Option files are checked whole before anything is built; the published ones load as they are written."""

import logging
import re
from pathlib import Path

import pytest
from option_files import PUBLISHED, TRAIN, changed, fault, line_of, load

from basicsr.utils import option_sections
from basicsr.utils.option_sections import Section
from basicsr.utils.options import load_options

ROOT = Path(__file__).parents[1]


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
        'datasets:train:persistent_workers',
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


SECTIONS = [kind for kind in vars(option_sections).values() if isinstance(kind, type) and issubclass(kind, Section)]


@pytest.mark.parametrize('section', SECTIONS)
def test_every_option_of_the_framework_is_read_somewhere(section):
    package = Path(option_sections.__file__).parents[1]
    code = '\n'.join(path.read_text() for path in package.rglob('*.py') if path.name != 'option_sections.py')
    passed_on_whole = section.__name__ == 'RestorerOptions'  # as the arguments of Restorer
    assert passed_on_whole or [name for name in section.model_fields if not re.search(rf'\.{name}\b', code)] == []
