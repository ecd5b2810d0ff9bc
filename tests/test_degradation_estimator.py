import pytest
import torch
from golden_case import load_case
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.degradation_estimator_arch import DEResNet
from basicsr.utils.checkpoint import CheckpointError, load_pretrained
from basicsr.utils.options import PretrainedOptions
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

EXACT = torch.float64
SMALL = {'num_feats': (4, 4, 6), 'num_blocks': (1, 2, 1), 'downscales': (1, 2, 2)}


def small(seed: int = 0, **changes) -> DEResNet:
    torch.manual_seed(seed)
    net = DEResNet(**SMALL | changes).to(EXACT)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def by_formula(state: dict[str, Tensor], x: Tensor, branch: int) -> Tensor:
    """One score of such a network, from the entries of its file."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'], stride, padding=1)

    x = conv(f'conv_first.{branch}', x)
    for number, stride in enumerate((None, None, None, 2, None, 2)):
        name = f'body.{branch}.{number}'
        x = conv(name, x, stride) if stride else x + conv(f'{name}.conv2', F.relu(conv(f'{name}.conv1', x)))
    x = x.mean((2, 3))
    x = F.relu(x @ state[f'fc_degree.{branch}.0.weight'].T + state[f'fc_degree.{branch}.0.bias'])
    return (x @ state[f'fc_degree.{branch}.2.weight'].T + state[f'fc_degree.{branch}.2.bias']).squeeze(1)


@pytest.mark.parametrize(('kind', 'limit'), [('sigmoid', torch.sigmoid), ('tanh', torch.tanh)])
@pytest.mark.parametrize('size', [(9, 12), (1, 1), (16, 5)])
def test_scores_are_those_of_the_formula_for_images_of_any_size(kind, limit, size):
    net = small(degradation_degree_actv=kind, num_degradation=3)
    # Stage 0 and 1 are alike and need no layer between; 1 and 2 halve, the last too, without other features.
    state, x = net.state_dict(), torch.rand(2, 3, *size, dtype=EXACT)
    found = net(x)
    assert found.shape == (2, 3)
    for branch in range(3):
        assert_close(found[:, branch], limit(by_formula(state, x, branch)))


def test_stages_are_joined_by_a_layer_only_where_something_changes():
    layers = DEResNet(num_feats=(4, 4, 6, 6), num_blocks=(1, 1, 1, 1), downscales=(1, 1, 1, 2)).body[0]
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ['ResidualBlock'] * 2 + ['Conv2d'] + ['ResidualBlock'] * 2 + ['Conv2d']
    assert [(c.stride, c.in_channels, c.out_channels) for c in (layers[2], layers[5])] == [
        ((1, 1), 4, 6),
        ((2, 2), 6, 6),
    ]


def test_degradations_have_nothing_in_common():
    net = small()
    x = torch.rand(1, 3, 6, 6, dtype=EXACT)
    net(x)[0, 1].backward()
    assert {name.split('.')[1] for name, p in net.named_parameters() if p.grad.any()} == {'1'}


def test_it_begins_a_tenth_as_strong_as_kaiming_does():
    net = DEResNet()
    assert_close(net.body[0][0].conv1.weight.std().item(), 0.1 * (2 / (64 * 9)) ** 0.5, rtol=0.02, atol=0)
    assert_close(net.fc_degree[1][0].weight.std().item(), 0.1 * (2 / 128) ** 0.5, rtol=0.02, atol=0)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith('bias'))


def test_a_bare_published_file_is_loaded_strictly(tmp_path):
    case = load_case('s3diff', 'de_net_small')
    torch.save(case.weights, tmp_path / 'de_net.pth')
    net = ARCH_REGISTRY.build({'type': 'DEResNet', **case.args})
    load_pretrained(net, PretrainedOptions(path=str(tmp_path / 'de_net.pth')), None)
    x = torch.as_tensor(case.inputs['x'])
    assert_close(net(x).detach(), torch.from_numpy(case.arrays['score']), atol=1e-5, rtol=1e-4)
    torch.save({k: v for k, v in case.weights.items() if k != 'body.1.0.conv1.bias'}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other.pth: .* 1 missing: body.1.0.conv1.bias'):
        load_pretrained(net, PretrainedOptions(path=str(tmp_path / 'other.pth')), None)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'downscales': [1, 3, 2, 1]}, 'should be 1'),
        ({'degradation_degree_actv': 'relu'}, "'sigmoid' or 'tanh'"),
        ({'num_block': [1]}, "did you mean 'num_blocks'"),
        ({'num_feats': [8, 8]}, 'one value for each stage, got 2, 4 and 4'),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises((OptionError, ValueError), match=message):
        ARCH_REGISTRY.build({'type': 'DEResNet', **options})
