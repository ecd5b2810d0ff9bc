"""Learning rates: the published numbers at every iteration, and the same ones after a resume."""

import math

import pytest
import torch
from golden_case import load_case
from torch import nn

from basicsr.models.optimizers import LearningRates, build_optimizer
from basicsr.utils.registry import SCHEDULER_REGISTRY, OptionError

CASE = load_case('core', 'lr_schedules')

pytestmark = pytest.mark.filterwarnings('ignore:Detected call of `lr_scheduler.step')


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{'params': [nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in lrs])


def rates(section: dict | None, *lrs: float, warmup: int = -1) -> LearningRates:
    return LearningRates(section, {'g': optimizer(*lrs)}, warmup)


def curve(schedule: LearningRates, iterations: range) -> list[list[float]]:
    found = []
    for iteration in iterations:
        schedule.set(iteration)
        found.append(schedule.current())
        schedule.optimizers[0].step()
    return found


@pytest.mark.parametrize('number', range(len(CASE.args['schedules'])))
def test_every_rate_equals_basicsr(number):
    section = dict(CASE.args['schedules'][number])
    schedule = rates(section, *CASE.args['lrs'], warmup=section.pop('warmup_iter', -1))
    found = curve(schedule, range(1, CASE.args['iterations'] + 1))
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.from_numpy(CASE.arrays[f'out_{number}']).double(),
        **CASE.spec['tolerance'],
    )


def test_a_whole_published_run_has_the_published_rates():
    case = load_case('atd', 'lr_schedule')
    name = '003_ATD_SRx4_finetune'
    settings = case.args[name]
    section = {'type': 'MultiStepLR', 'milestones': settings['milestones'], 'gamma': settings['gamma']}
    schedule = rates(section, settings['lr'], warmup=settings['warmup_iter'])
    recorded = case.arrays[f'{name}.iter'].tolist()
    found = {}
    for iteration in range(1, max(recorded) + 1):
        schedule.set(iteration)
        found[iteration] = schedule.current()[0]
    torch.testing.assert_close(
        torch.tensor([found[i] for i in recorded], dtype=torch.float64),
        torch.from_numpy(case.arrays[f'{name}.lr']),
        **case.spec['tolerance'],
    )


@pytest.mark.parametrize('number', range(len(CASE.args['schedules'])))
@pytest.mark.parametrize('stop', [1, 4, 7, 8, 20, 21])
def test_a_resumed_schedule_goes_on_as_the_unbroken_one(number, stop):
    section = dict(CASE.args['schedules'][number])
    warmup = section.pop('warmup_iter', -1)
    whole = curve(rates(section, 2e-4, 1e-3, warmup=warmup), range(1, 46))
    first = rates(section, 2e-4, 1e-3, warmup=warmup)
    curve(first, range(1, stop + 1))
    second = rates(section, 2e-4, 1e-3, warmup=warmup)
    second.optimizers[0].load_state_dict(first.optimizers[0].state_dict())
    second.schedulers[0].load_state_dict(first.schedulers[0].state_dict())
    assert curve(second, range(stop + 1, 46)) == whole[stop:]


def test_setting_an_iteration_twice_changes_nothing():
    section = {'type': 'MultiStepLR', 'milestones': [3, 3, 5], 'gamma': 0.5}
    once, twice = rates(section, 1.0, warmup=2), rates(section, 1.0, warmup=2)
    for iteration in range(1, 9):
        once.set(iteration)
        twice.set(iteration)
        twice.set(iteration)
        assert once.current() == twice.current()


def test_closed_forms():
    cosine = curve(
        rates(
            {'type': 'CosineAnnealingRestartLR', 'periods': [10, 5], 'restart_weights': [1, 0.5], 'eta_min': 0.1}, 1.0
        ),
        range(1, 22),
    )
    for e, (rate,) in enumerate(cosine):
        start, period, weight = (0, 10, 1) if e <= 10 else (10, 5, 0.5)
        position = min(e - start, period) / period
        assert rate == pytest.approx(0.1 + weight * 0.5 * 0.9 * (1 + math.cos(math.pi * position)))
    assert cosine[-1] == cosine[15] == [pytest.approx(0.1)], 'published code fails behind the last period'
    steps = curve(rates({'type': 'MultiStepLR', 'milestones': [2, 4], 'gamma': 0.1}, 1.0), range(1, 8))
    assert [rate for (rate,) in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_warm_up_is_linear_and_leaves_the_published_remainder():
    found = [rate for (rate,) in curve(rates({'type': 'MultiStepLR', 'milestones': [10]}, 1.0, warmup=4), range(1, 13))]
    assert found == pytest.approx([0.25, 0.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.075, 0.075])
    plain = [rate for (rate,) in curve(rates(None, 1.0, warmup=4), range(1, 7))]
    assert plain == pytest.approx([0.25, 0.5, 0.75, 0.75, 0.75, 0.75])


def test_every_optimizer_has_a_schedule_of_its_own():
    pair = {'g': optimizer(1.0), 'd': optimizer(0.1)}
    schedule = LearningRates({'type': 'MultiStepLR', 'milestones': [1], 'gamma': 0.5}, pair, -1)
    schedule.set(2)
    assert [o.param_groups[0]['lr'] for o in pair.values()] == [0.5, 0.05] and schedule.current() == [0.5]


@pytest.mark.parametrize(
    'section',
    [
        {'type': 'CosineAnnealingRestartLR', 'periods': [1, 2]},
        {'type': 'MultiStepRestartLR', 'milestones': [1], 'restarts': [0, 5]},
    ],
)
def test_lists_that_belong_together_have_one_length(section):
    with pytest.raises(OptionError, match='restart_weights'):
        SCHEDULER_REGISTRY.build(section, optimizer=optimizer(1.0))


def test_optimizers_are_fused_where_torch_can_and_leave_out_what_is_frozen():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    adam = build_optimizer({'type': 'AdamW', 'lr': 1e-3, 'betas': [0.9, 0.9]}, net.parameters(), torch.device('cpu'))
    assert adam.param_groups[0]['params'] == [net.weight] and adam.param_groups[0]['betas'] == (0.9, 0.9)
    assert adam.param_groups[0]['fused'] is True
    plain = build_optimizer({'type': 'AdamW', 'lr': 1e-3, 'foreach': False}, net.parameters(), torch.device('cpu'))
    assert not plain.param_groups[0]['fused']
    with pytest.raises(OptionError, match='nothing to train'):
        build_optimizer({'type': 'AdamW'}, nn.Linear(2, 2).requires_grad_(False).parameters(), torch.device('cpu'))


@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'Adamax', 'SGD', 'ASGD', 'RMSprop', 'Rprop', 'NAdam', 'RAdam'])
def test_optimizers_of_basicsr_and_torch_make_steps(name):
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    one = build_optimizer({'type': name, 'lr': 1e-2}, net.parameters(), torch.device('cpu'))
    net(torch.ones(1, 2)).sum().backward()
    one.step()
    assert not torch.equal(net.weight, before)
