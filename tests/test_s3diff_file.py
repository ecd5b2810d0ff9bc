"""The published s3diff.pkl: read, written, converted, and what is said of one that is damaged or of something else."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_case import load_case
from s3diff_arch_fixture import UNET, VAE, batch, randomised, small
from safetensors.torch import load_file

from basicsr.archs.blocks.s3diff_file import UNET_TARGETS, VAE_TARGETS
from basicsr.archs.s3diff_arch import S3Diff
from basicsr.utils.checkpoint import CheckpointError, load_network, load_pretrained, network_state, read_checkpoint
from basicsr.utils.options import PretrainedOptions
from basicsr.utils.registry import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))

import convert_checkpoint


def load(net: S3Diff, path: Path, strict: bool = True) -> set[str]:
    return load_pretrained(net, PretrainedOptions(path=str(path), strict=strict), 'params_ema')


def own(net: S3Diff) -> dict[str, torch.Tensor]:
    names = net.own_names()
    return {name: value for name, value in net.state_dict().items() if name in names}


def published(net: S3Diff) -> dict:
    """The content of s3diff.pkl for a network, put together by its entries and not by our code."""
    state = net.state_dict()

    def part(start: str, *marks: str) -> dict:
        chosen = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        return {k: v.clone() for k, v in chosen.items() if not marks or any(mark in k for mark in marks)}

    mlps = {
        f'state_dict_{name}_mlp': part(f'{name}_mlp.')
        for kind in ('de', 'block', 'fuse')
        for name in (f'vae_{kind}', f'unet_{kind}')
    }
    return {
        'unet_lora_target_modules': load_case('s3diff', 'layout_pkl').spec['layout']['unet_lora_target_modules'],
        'vae_lora_target_modules': load_case('s3diff', 'layout_pkl').spec['layout']['vae_lora_target_modules'],
        'rank_unet': 3,
        'rank_vae': 2,
        'state_dict_unet': part('unet.', 'conv_in.', '.lora_'),
        'state_dict_vae': part('vae.', '.lora_'),
        **mlps,
        'w': torch.nn.Parameter(state['W'].clone(), requires_grad=False),
        'state_embeddings': {
            'state_dict_vae_block': part('vae_block_embeddings.'),
            'state_dict_unet_block': part('unet_block_embeddings.'),
        },
    }


@pytest.fixture
def net() -> S3Diff:
    return small().float()


@pytest.fixture
def pkl(net, tmp_path) -> Path:
    torch.save(published(net), tmp_path / 's3diff.pkl')
    return tmp_path / 's3diff.pkl'


def other(**changes) -> S3Diff:
    """A network with other weights, whose base is that of `net`."""
    torch.manual_seed(0)
    made = randomised(S3Diff(UNET, VAE, **changes), seed=9)
    ours = made.own_names()
    made.load_state_dict({k: v for k, v in small().float().state_dict().items() if k not in ours}, strict=False)
    return made


# ---- reading


def test_the_published_file_makes_the_network_whose_it_is(net, pkl):
    found, given = other(), [part.float() for part in batch()]
    assert not torch.equal(found(*given), net(*given))
    assert load(found, pkl) == set()
    assert found.ranks == {'unet': 3, 'vae': 2}
    assert torch.equal(found(*given), net(*given))


def test_ranks_that_are_asked_for_must_be_those_of_the_file(pkl):
    load(other(rank_unet=3, rank_vae=2), pkl)
    message = r's3diff.pkl: rank_vae is 2 in the file and 4 here; leave it out to take any$'
    with pytest.raises(CheckpointError, match=message):
        load(other(rank_unet=3, rank_vae=4), pkl)


def test_a_network_that_trains_keeps_its_ranks(pkl):
    net = other().train()
    matrices = net.vae_layers[0].lora_A['vae_skip'].weight
    with pytest.raises(CheckpointError, match='rank_unet is 3 in the file and 32 here'):
        load(net, pkl)
    assert net.vae_layers[0].lora_A['vae_skip'].weight is matrices


def test_our_own_files_hold_only_what_is_ours_and_bring_their_ranks(net, tmp_path):
    torch.save({'params': own(net)}, tmp_path / 'net_g_5.pth')
    found, given = other(), [part.float() for part in batch()]
    assert load(found, tmp_path / 'net_g_5.pth') == set()
    assert found.ranks == {'unet': 3, 'vae': 2} and torch.equal(found(*given), net(*given))
    state = network_state(read_checkpoint(tmp_path / 'net_g_5.pth'), 'params', 'net_g_5.pth')
    state.pop('W')
    with pytest.raises(CheckpointError, match=r'1 missing: W$'):
        load_network(other(), state, 'net_g_5.pth')


def test_a_file_with_the_base_in_it_is_taken_whole(net, tmp_path):
    torch.save({'params': net.state_dict()}, tmp_path / 'whole.pth')
    torch.manual_seed(7)
    found = S3Diff(UNET, VAE)
    load(found, tmp_path / 'whole.pth')
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.state_dict().items())


LORA = 'down_blocks.0.resnets.0.conv1.lora_A.default.weight'


def without(*path: str) -> Callable[[dict], object]:
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def with_value(value: object, *path: str) -> Callable[[dict], object]:
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without('state_dict_unet', LORA), f'1 missing: unet.{LORA}'),
        (without('state_dict_vae_de_mlp', '0.bias'), '1 missing: vae_de_mlp.0.bias'),
        (without('w'), 's3diff.pkl lacks: w'),
        (without('state_dict_unet_fuse_mlp'), 's3diff.pkl lacks: state_dict_unet_fuse_mlp'),
        (without('state_embeddings', 'state_dict_unet_block'), 'state_embeddings lacks: state_dict_unet_block'),
        (with_value(torch.zeros(1), 'state_dict_unet', 'skip_conv_1'), '1 unexpected: unet.skip_conv_1'),
        (with_value({}, 'state_dict_d'), 's3diff.pkl has besides: state_dict_d'),
        (with_value(torch.zeros(3, 8, 1, 1), 'state_dict_unet', LORA), f'1 of another shape: unet.{LORA}'),
        (with_value(5, 'rank_unet'), 'rank_unet is 5, but its matrices are of rank 3'),
        (with_value('^decoder$', 'vae_lora_target_modules'), r'vae_lora_target_modules should be .*, got \^decoder\$'),
        (with_value(['to_k'], 'unet_lora_target_modules'), r"unet_lora_target_modules should be .*, got \['to_k'\]"),
        (with_value(7, 'unet_lora_target_modules'), 'unet_lora_target_modules should be .*, got 7'),
        (with_value(7, 'state_dict_vae'), 'vae. should be a dictionary, got a int'),
        (with_value(7, 'state_dict_vae', 'a'), 'something else than tensors: vae.a'),
        (with_value({}, 'state_dict_vae'), 'there are no low-rank matrices of its vae'),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(net, pkl, change, message):
    content = published(net)
    change(content)
    torch.save(content, pkl)
    found = other(rank_unet=3, rank_vae=2)
    before = copy.deepcopy(found.state_dict())
    with pytest.raises(CheckpointError, match=f's3diff.pkl: .*{message}') as caught:
        load(found, pkl)
    assert '\n' not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_the_order_of_the_target_list_is_free(net, pkl):
    torch.save(published(net) | {'unet_lora_target_modules': [*reversed(UNET_TARGETS)]}, pkl)
    load(other(), pkl)


def test_files_of_other_systems_are_refused(tmp_path):
    torch.save({'params': {'conv_first.weight': torch.zeros(1)}}, tmp_path / 'net_g.pth')
    with pytest.raises(CheckpointError, match=r'net_g.pth: this is no S3Diff'):
        load(other(), tmp_path / 'net_g.pth')


# ---- writing


def equal(one: object, other: object) -> None:
    """The same entries at any depth; the order of a dictionary of tensors counts too."""
    if isinstance(one, dict):
        assert one.keys() == other.keys() and ([*one] == [*other] or 'w' in one)
        for key, value in one.items():
            equal(value, other[key])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_what_is_written_is_the_published_layout(net, pkl):
    content, expected = net.to_published(own(net)), published(net)
    assert [*content] == [*load_case('s3diff', 'layout_pkl').spec['layout']]
    torch.save(content, pkl)
    read = torch.load(pkl, weights_only=True)
    equal(read, expected)
    assert isinstance(read['w'], torch.nn.Parameter) and not read['w'].requires_grad
    assert read['vae_lora_target_modules'] == VAE_TARGETS


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('W'), 'lacks W'),
        (lambda state: state.update(extra=torch.zeros(1)), 'has besides extra'),
        (
            lambda state: state.update({'unet.a.base_layer.weight': torch.zeros(1)}),
            'has besides unet.a.base_layer.weight',
        ),
    ],
)
def test_what_such_a_file_cannot_hold_is_refused(net, change, message):
    state = own(net)
    change(state)
    with pytest.raises(ValueError, match=message):
        net.to_published(state)


# ---- converting


def converted(*arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, arguments)])
        assert convert_checkpoint.main() == 0


def test_conversion_there_and_back_gives_the_published_file_again(net, pkl, tmp_path):
    flat, back = tmp_path / 's3diff.safetensors', tmp_path / 'back.pkl'
    converted(pkl, flat)
    state = load_file(flat)
    assert state.keys() == net.own_names()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    converted(flat, back)
    for path in (flat, back):
        found, given = other(), [part.float() for part in batch()]
        load(found, path)
        assert torch.equal(found(*given), net(*given))
    content = torch.load(back, weights_only=True)
    assert content.keys() == published(net).keys() and content['rank_unet'] == 3


def test_a_file_of_a_training_run_becomes_a_published_one(net, tmp_path):
    torch.save({'params': own(net)}, tmp_path / 'net_g_5.pth')
    converted(tmp_path / 'net_g_5.pth', tmp_path / 's3diff.pkl')
    found = other()
    load(found, tmp_path / 's3diff.pkl')
    assert all(torch.equal(value, own(net)[name]) for name, value in own(found).items())


def test_half_precision_is_written_to_a_published_file_as_float32(net, pkl, tmp_path):
    converted(pkl, tmp_path / 'half.safetensors', '--half')
    assert {value.dtype for value in load_file(tmp_path / 'half.safetensors').values()} == {torch.float16}
    converted(tmp_path / 'half.safetensors', tmp_path / 'back.pkl')
    content = torch.load(tmp_path / 'back.pkl', weights_only=True)
    assert content['w'].dtype == content['state_dict_unet']['conv_in.weight'].dtype == torch.float32
    assert torch.equal(content['w'], net.W.half().float())


def test_files_that_are_not_whole_are_not_converted(net, pkl, tmp_path):
    torch.save({k: v for k, v in published(net).items() if k != 'rank_vae'}, pkl)
    with pytest.raises(UserError, match=r's3diff.pkl: s3diff.pkl lacks: rank_vae'):
        converted(pkl, tmp_path / 'x.safetensors')
    torch.save({'params': {k: v for k, v in own(net).items() if k != 'W'}}, tmp_path / 'net_g.pth')
    with pytest.raises(UserError, match=r'net_g.pth: this is not what is kept of an S3Diff: it lacks W'):
        converted(tmp_path / 'net_g.pth', tmp_path / 'x.pkl')
