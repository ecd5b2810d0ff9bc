"""The weight average: BasicSR's numbers, torch's own averages as a second opinion, buffers followed."""

import pytest
import torch
from golden_case import filled, load_case
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from basicsr.models.ema import WeightAverage


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)


def moved(net: nn.Module, amount: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += amount


def test_averages_equal_basicsr():
    case = load_case('core', 'ema')
    online = Net()
    average = WeightAverage(online, case.args['decay'], buffers=False)
    for prefix, net in (('online.', online), ('ema.', average.net)):
        net.load_state_dict(
            {
                name: filled(prefix + name, value.shape) if value.is_floating_point() else value
                for name, value in net.state_dict().items()
            }
        )
    average.update(online, decay=0)
    for step in range(1, case.args['steps'] + 1):
        moved(online, 0.01 * step)
        average.update(online)
    for name, value in average.net.state_dict().items():
        expected = torch.as_tensor(case.arrays[f'ema_{name}']).to(value.dtype).reshape(value.shape)
        torch.testing.assert_close(value, expected, **case.spec['tolerance'])


def test_averages_equal_torchs_own():
    online = Net()
    ours, theirs = (
        WeightAverage(online, 0.9),
        AveragedModel(online, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False),
    )
    theirs.update_parameters(online)  # the first call copies
    for step in range(5):
        moved(online, 0.1 * step)
        ours.update(online)
        theirs.update_parameters(online)
    for mine, other in zip(ours.net.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize('buffers', [True, False])
def test_running_statistics_are_followed_unless_published_behaviour_is_asked_for(buffers):
    online = Net()
    average = WeightAverage(online, 0.5, buffers)
    online.bn(torch.rand(4, 3, 5, 5))
    average.update(online)
    assert torch.equal(average.net.bn.running_mean, online.bn.running_mean) == buffers
    assert int(average.net.bn.num_batches_tracked) == int(buffers)


def test_the_average_is_a_frozen_copy_in_evaluation_mode():
    online = Net()
    average = WeightAverage(online, 0.5)
    assert not average.net.training and online.training
    assert not any(parameter.requires_grad for parameter in average.net.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    before = average.net.conv.weight.clone()
    moved(online, 1)
    assert torch.equal(average.net.conv.weight, before)
    average.update(online)
    torch.testing.assert_close(average.net.conv.weight, before + 0.5)
    average.update(online, decay=0)
    assert torch.equal(average.net.conv.weight, online.conv.weight)
