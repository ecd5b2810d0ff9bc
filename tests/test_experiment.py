"""The folder of a run, in one process: what it keeps, and which foreign states it takes or refuses."""

import json
import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from basicsr.utils.checkpoint import CheckpointError, checksum_fault, read_checkpoint
from basicsr.utils.experiment import Experiment, archive
from basicsr.utils.options import parse_options


class Model:
    """A model with one network of one layer."""

    def __init__(self):
        self.nets = {'g': nn.Linear(2, 2)}
        self.loaded = None

    def networks(self) -> dict:
        return {'g': {'params': self.nets['g'].state_dict()}}

    def training_state(self) -> dict:
        return {'optimizers': [], 'schedulers': []}

    def load_networks(self, contents: dict, labels) -> None:
        self.loaded = {label: contents[label]['params'] for label in labels}

    def load_training_state(self, state: dict) -> None:
        if state['optimizers']:
            raise ValueError('the state has 1 optimizers, this option file 0')


ACCELERATOR = SimpleNamespace(
    is_main_process=True, num_processes=1, wait_for_everyone=lambda: None, log=lambda values, step: None
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger('basicsr')
    before, logger.handlers = logger.handlers, []
    yield tmp_path
    for handler in logger.handlers:
        handler.close()
    logger.handlers = before


def experiment(
    resume: bool = False, text: str = '', metrics: dict | None = None, path: dict | None = None, **settings
) -> Experiment:
    opt = parse_options(
        {
            'name': 'x',
            'model_type': 'SRModel',
            'network_g': {'type': 'ATD'},
            'logger': settings,
            'val': {'metrics': metrics or {}},
            'path': path or {},
            'datasets': {
                'train': {
                    'type': 'PairedImageDataset',
                    'dataroot_gt': 'gt',
                    'dataroot_lq': 'lq',
                    'gt_size': 8,
                    'batch_size_per_gpu': 1,
                }
            },
            'train': {'total_iter': 9, 'optim_g': {'type': 'Adam'}, 'pixel_opt': {'type': 'L1Loss'}},
        },
        True,
        'some/file.yml',
        text=text,
    )
    return Experiment(opt, ACCELERATOR, resume)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_keeps_its_option_file_with_the_time_and_the_command(place, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', 'a file.yml', 'scale=4'])
    one = experiment(text='name: x\n')
    time, command, empty, text = (one.folder / 'file.yml').read_text().split('\n', 3)
    assert time.startswith('# GENERATE TIME: ') and command == "# CMD: train.py -opt 'a file.yml' scale=4"
    assert (empty, text) == ('', 'name: x\n')
    assert {'models', 'training_states'} <= set(names(one.folder))


def test_an_older_run_is_put_aside_and_never_overwritten(place):
    for number in range(3):
        one = experiment()
        (one.folder / 'number').write_text(str(number))
    found = [path for path in (place / 'experiments').iterdir() if 'archived' in path.name]
    assert len(found) == 2 and {(path / 'number').read_text() for path in found} == {'0', '1'}
    assert (experiment(resume=True).folder / 'number').read_text() == '2'
    archive(place / 'nothing there')


def test_files_and_their_content_are_basicsrs(place):
    one = experiment(save_safetensors=True)
    one.best = {'V': {'psnr': {'better': 'higher', 'val': 30.0, 'iter': 4}}}
    one.save(Model(), 5, 20, 2)
    assert names(one.models) == ['manifest.json', 'net_g_5.pth', 'net_g_5.safetensors']
    assert names(one.states) == ['5.state', 'manifest.json']
    state = read_checkpoint(one.states / '5.state')
    assert {
        'epoch': 2,
        'iter': 5,
        'samples': 20,
        'networks': ['net_g_5.pth'],
        'best': one.best,
        'seed': 0,
    }.items() <= state.items()
    one.save_latest(Model())
    assert 'net_g_latest.pth' in names(one.models) and checksum_fault(one.models / 'net_g_latest.pth') == ''
    again = experiment(resume=True)
    assert again.resume(Model(), True, 4) == (5, 20) and again.best == one.best


def test_the_newest_complete_state_is_taken_and_the_others_are_named(place, caplog):
    one = experiment()
    for iteration in (2, 4, 6, 8, 10):
        one.save(Model(), iteration, iteration, 0)
    (one.states / '10.state').write_bytes(b'torn')
    (one.models / 'net_g_8.pth').unlink()
    data = bytearray((one.models / 'net_g_6.pth').read_bytes())
    data[len(data) // 2] ^= 1
    (one.models / 'net_g_6.pth').write_bytes(data)
    (one.states / '12.state').write_bytes((one.states / '4.state').read_bytes())
    again = experiment(resume=True)
    logging.getLogger('basicsr').addHandler(caplog.handler)
    assert again.latest_state().name == '4.state'
    said = [record.getMessage() for record in caplog.records if 'not used to resume' in record.getMessage()]
    assert [line.split(' is not used')[0].rsplit('/', 1)[1] for line in said] == [
        '12.state',
        '10.state',
        '8.state',
        '6.state',
    ]
    for line, reason in zip(
        said,
        (
            'it was not finished',
            'damaged: 4 bytes instead of',
            'net_g_8.pth is missing',
            'net_g_6.pth is damaged: its sha256',
        ),
        strict=True,
    ):
        assert reason in line


def test_only_the_last_checkpoints_stay(place):
    one = experiment(keep_last=2)
    for iteration in (9, 10, 100):
        one.save(Model(), iteration, iteration, 0)
    assert names(one.states) == ['10.state', '100.state', 'manifest.json']
    assert names(one.models) == ['manifest.json', 'net_g_10.pth', 'net_g_100.pth']


def test_the_best_is_kept_by_the_first_metric_of_the_first_set_whatever_nan_came_first(place):
    one = experiment(metrics={'error': {'type': 'psnr', 'better': 'lower'}, 'psnr': {'type': 'psnr'}})
    model = Model()
    for iteration, (error, psnr) in enumerate(
        [(math.nan, 1.0), (3.0, 2.0), (4.0, 3.0), (2.0, 0.0), (math.nan, 9.0)], 1
    ):
        with torch.no_grad():
            model.nets['g'].weight.fill_(iteration)
        one.report(model, iteration, 'V', {'error': error, 'psnr': psnr})
    assert one.best['V'] == {
        'error': {'better': 'lower', 'val': 2.0, 'iter': 4},
        'psnr': {'better': 'higher', 'val': 9.0, 'iter': 5},
    }
    assert read_checkpoint(one.models / 'net_g_best.pth')['params']['weight'][0, 0] == 4
    one.report(model, 6, 'W', {'error': 0.0, 'psnr': 99.0})
    assert read_checkpoint(one.models / 'net_g_best.pth')['params']['weight'][0, 0] == 4


def test_weights_that_are_not_finite_are_not_saved(place):
    one, model = experiment(), Model()
    with torch.no_grad():
        model.nets['g'].bias[0] = math.inf
    with pytest.raises(CheckpointError, match='network_g is not saved: params is not finite in bias'):
        one.save(model, 1, 1, 0)
    assert names(one.models) == names(one.states) == []


def test_records_behind_the_state_are_forgotten(place):
    one = experiment()
    for iteration in (1, 2, 3):
        one.record({'iter': iteration})
    one.save(Model(), 2, 2, 0)
    with (one.folder / 'metrics.jsonl').open('a') as file:
        file.write('{"iter": 4, "torn')
    experiment(resume=True).resume(Model(), True, 1)
    assert [json.loads(line)['iter'] for line in (one.folder / 'metrics.jsonl').read_text().splitlines()] == [1, 2]


def test_a_state_of_basicsr_is_gone_on_from(place):
    one, weights = experiment(), nn.Linear(2, 2).state_dict()
    torch.save({'params': {f'module.{k}': v for k, v in weights.items()}}, one.models / 'net_g_7.pth')
    torch.save({'epoch': 2, 'iter': 7, 'optimizers': [], 'schedulers': []}, one.states / '7.state')
    again = experiment(resume=True, path={'resume_state': str(one.states / '7.state')})
    model = Model()
    assert again.resume(model, False, 32) == (7, 224)
    assert model.loaded['g'].keys() == weights.keys() and torch.equal(model.loaded['g']['weight'], weights['weight'])


@pytest.mark.parametrize(
    ('state', 'network', 'message'),
    [
        ({'params': {}}, None, "7.state: not a training state, it has no 'iter'"),
        ({'iter': 7, 'optimizers': [], 'schedulers': []}, None, 'net_g_7.pth: no such checkpoint'),
        ({'iter': 7, 'optimizers': [], 'schedulers': []}, {'iter': 3}, "net_g_7.pth: no network under 'params'"),
        (
            {'iter': 7, 'optimizers': [{}], 'schedulers': []},
            {'w': torch.ones(1)},
            '7.state: the state has 1 optimizers',
        ),
    ],
)
def test_states_that_do_not_belong_here_are_refused(state, network, message, place):
    one = experiment(path={'resume_state': 'experiments/x/training_states/7.state'})
    torch.save(state, one.states / '7.state')
    if network is not None:
        torch.save(network, one.models / 'net_g_7.pth')
    with pytest.raises(CheckpointError) as caught:
        one.resume(Model(), False, 1)
    assert message in str(caught.value)
