"""Any network as the branches of D2C-SR: what is shared exists once, is computed once, and nothing else changes."""

import copy
import pickle

import pytest
import torch
from golden_case import image
from torch import nn
from torch.testing import assert_close

from basicsr.archs.d2c_backbone_arch import D2CBackboneBranches, Replay
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

RCAN = {'type': 'RCAN', 'upscale': 2, 'num_feat': 8, 'num_group': 3, 'num_block': 1, 'squeeze_factor': 4}
ATD = {
    'type': 'ATD',
    'upscale': 2,
    'embed_dim': 12,
    'depths': [2, 2, 2],
    'num_heads': [2, 2, 2],
    'window_size': 4,
    'category_size': 16,
    'num_tokens': 8,
    'reducted_dim': 4,
    'convffn_kernel_size': 3,
    'mlp_ratio': 1.0,
    'upsampler': 'pixelshuffledirect',
}
TREES = {
    'RCAN': {'backbone': RCAN, 'shared': ['head', 'body.0'], 'parents': ['body.1']},
    'ATD': {'backbone': ATD, 'shared': ['conv_first', 'patch_embed', 'layers.0'], 'parents': ['layers.1']},
    'alone': {'backbone': RCAN},
}


def tree(name: str, seed: int = 0, **changes) -> D2CBackboneBranches:
    torch.manual_seed(seed)
    return ARCH_REGISTRY.build({'type': 'D2CBackboneBranches', 'scale': 2, **TREES[name], **changes})


def unfolded(net: D2CBackboneBranches) -> list[nn.Module]:
    """Four whole backbones that hold the same weights."""
    state, wholes = net.state_dict(), []
    for branch in range(4):
        section = TREES['ATD' if hasattr(net.branches[0], 'layers') else 'RCAN']['backbone']
        whole = ARCH_REGISTRY.build(section)
        own = {}
        for name in whole.state_dict():
            owners = (branch, branch - branch % 2, 0)
            own[name] = next(state[f'branches.{o}.{name}'] for o in owners if f'branches.{o}.{name}' in state)
        whole.load_state_dict(own)
        wholes.append(whole)
    return wholes


@pytest.mark.parametrize('name', TREES)
def test_each_branch_is_a_whole_backbone_with_its_ancestors_weights(name):
    net = tree(name)
    x = image(1, 2, 3, 9, 10)
    with torch.no_grad():
        images = net(x)
        assert images.shape == (2, 4, 3, 18, 20)
        for found, whole in zip(images.unbind(1), unfolded(net), strict=True):
            assert_close(found, whole(x), atol=1e-5, rtol=1e-5)
        assert (images[:, 0] - images[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize('name', TREES)
def test_gradients_are_the_sums_over_the_branches(name):
    net, x = tree(name).double(), image(1, 1, 3, 8, 9).double()
    wholes = [whole.double() for whole in unfolded(net)]
    net(x).square().sum().backward()
    sum(whole(x).square().sum() for whole in wholes).backward()
    for key, parameter in net.named_parameters():
        _, branch, leaf = key.split('.', 2)
        users = [b for b in range(4) if _owner(net, leaf, b) == int(branch)]
        expected = sum(wholes[b].get_parameter(leaf).grad for b in users)
        assert_close(parameter.grad, expected, atol=1e-9, rtol=1e-7, msg=key)


def _owner(net: nn.Module, leaf: str, branch: int) -> int:
    keys = net.state_dict()
    return next(o for o in (branch, branch - branch % 2, 0) if f'branches.{o}.{leaf}' in keys)


def test_shared_modules_exist_once_and_run_once():
    net = tree('RCAN')
    calls = {name: 0 for name, _ in net.named_modules()}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    net(image(1, 1, 3, 8, 8))
    real = {name for name, module in net.named_modules() if not isinstance(module, Replay)}
    heads = [name for name in real if name.endswith('.head.0')]
    assert heads == ['branches.0.head.0'] and calls[heads[0]] == 1
    seconds = sorted(name for name in real if name.endswith('.body.1') and name.count('.') == 3)
    assert seconds == ['branches.0.body.1', 'branches.2.body.1'] and all(calls[s] == 1 for s in seconds)
    assert sum(name.endswith('.body.2') and name.count('.') == 3 for name in real) == 4
    alone = sum(p.numel() for p in tree('alone').parameters())
    assert sum(p.numel() for p in net.parameters()) < alone


@pytest.mark.parametrize('name', ['RCAN', 'ATD'])
@pytest.mark.parametrize('how', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['copy', 'pickle'])
def test_copies_share_among_themselves_only(name, how):
    net = tree(name)
    x = image(1, 1, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        other = how(net)
        for parameter in other.parameters():
            parameter.zero_()
        assert not torch.equal(other(x), before)
        assert torch.equal(net(x), before)
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(x), before)


def test_nothing_is_kept_after_a_forward_pass():
    net = tree('RCAN')
    net(image(1, 1, 3, 8, 8))
    assert not any(memo.calls for memo in net.memos)
    assert not any(module.calls for module in net.modules() if isinstance(module, Replay))


def test_recomputed_activations_change_no_number():
    plain, saving = tree('ATD'), tree('ATD', backbone=ATD | {'use_checkpoint': True})
    saving.load_state_dict(plain.state_dict())
    x, found = image(1, 1, 3, 8, 8), []
    for net in (plain, saving):
        net(x).square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert_close(*found, atol=0, rtol=0)
    assert not any(memo.calls for memo in saving.memos)


def test_a_network_that_failed_can_be_used_again():
    net = tree('RCAN')
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 2, 8, 8))
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 3, 16, 16)


class Writes(nn.Module):
    """Its second module writes into what the first one gives."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.second(self.first(x)), 2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'shared': ['body.1']}, "'body.1' cannot be shared: its input depends on modules that are not"),
        ({'shared': [], 'parents': ['tail']}, "'tail' cannot be shared: its input depends on modules that are not"),
        ({'shared': ['neck']}, "the backbone has no module 'neck' to share; its first modules: head, body, tail"),
        ({'shared': ['']}, "the backbone has no module '' to share"),
        ({'shared': ['head', 'head.0']}, "'head.0' is shared already"),
        ({'shared': ['head'], 'parents': ['head']}, "'head' is shared already, or a part of it is"),
        ({'shared': ['head.0'], 'parents': ['head']}, "'head' is shared already, or a part of it is"),
        ({'scale': 4}, 'scale is 4, but the backbone makes (3, 16, 16) of an image (3, 8, 8)'),
    ],
)
def test_impossible_trees_are_refused_in_one_line(changes, message):
    with pytest.raises(OptionError) as caught:
        tree('RCAN', **{'parents': []} | changes)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_module_whose_output_is_written_into_cannot_be_shared(monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._entries, 'Writes', Writes)
    with pytest.raises(OptionError, match="'first' cannot be shared: the module after it writes into its output"):
        tree('RCAN', backbone={'type': 'Writes'}, shared=['first'], parents=[])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'type': 'RCANN'}, "network_g:backbone:type: 'RCANN' is not a known arch"),
        (
            {'num_feet': 3},
            "network_g:backbone:num_feet: 'num_feet' is not a known option of RCAN; did you mean 'num_feat'?",
        ),
        ({'num_feat': 'x'}, 'network_g:backbone:num_feat: should be a whole number'),
    ],
)
def test_the_backbone_is_checked_like_any_network(changes, message):
    options = {'name': 'x', 'model_type': 'D2CModel', 'scale': 2, 'network_f': {'type': 'D2CFusion'}}
    section = {'type': 'D2CBackboneBranches', 'scale': 2, 'backbone': RCAN | changes}
    with pytest.raises(OptionError) as caught:
        parse_options(options | {'network_g': section}, is_train=False)
    assert message in str(caught.value)


def test_a_network_without_weights_can_be_made():
    with torch.device('meta'):
        net = D2CBackboneBranches(2, RCAN, shared=('head',))
    assert 'branches.0.head.0.weight' in net.state_dict() and 'branches.1.head.0.weight' not in net.state_dict()


def test_compiles():
    net = tree('RCAN')
    x = image(1, 1, 3, 8, 8)
    assert_close(torch.compile(net, backend='eager')(x), net(x))
