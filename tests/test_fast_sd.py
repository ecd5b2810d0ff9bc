"""The faster layers of S3Diff's networks compute what the plain transcription does."""

import copy
import sys
from contextlib import nullcontext

import pytest
import torch
from golden_case import GOLDEN, load_case
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip('diffusers')
sys.path.insert(0, str(GOLDEN.parent / 'oracles'))
from s3diff_reference import S3DiffReference, Step

from basicsr.archs.blocks import fast_sd, winograd
from basicsr.archs.s3diff_arch import S3Diff

CASE = load_case('s3diff', 'onestep_cfg')
SIZES = {'unet': CASE.args['unet'], 'vae': CASE.args['vae'], 'rank_unet': 8, 'rank_vae': 4}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def everywhere(monkeypatch):
    """Faster ways also for the few pixels and channels of tests."""
    monkeypatch.setattr(winograd, 'WORTHWHILE', 1)
    monkeypatch.setattr(winograd, 'LEAST_CHANNELS', 1)
    monkeypatch.setattr(fast_sd, 'FOLDED_FROM', {'cpu': 1})
    monkeypatch.setattr(fast_sd, 'LONG', 1)
    monkeypatch.setattr(fast_sd, 'CHUNK', 7)


@pytest.fixture(scope='module')
def plain() -> S3DiffReference:
    net = S3DiffReference(**SIZES)
    net.load_state_dict(CASE.weights)
    return net


def fast(dtype: torch.dtype = torch.float32) -> S3Diff:
    net = S3Diff(**SIZES)
    net.load_state_dict(CASE.weights)
    return net.to(dtype)


def given(count: int) -> tuple[Tensor, ...]:
    """x, scores, both prompts and noise of some images."""
    prompts = (torch.as_tensor(CASE.inputs[name])[None] for name in ('pos', 'neg'))
    x, score, noise = (torch.as_tensor(CASE.inputs[name])[:count] for name in ('x', 'deg_score', 'noise'))
    return 2 * x - 1, score, *prompts, noise


@torch.no_grad()
def step(net: S3Diff, count: int = 1, merged: bool = False, guidance: float = 1.07) -> Step:
    x, score, positive, negative, noise = given(count)
    with net.modulated(net.modulation(score)):
        moments = net.encode(x)
        z = net.latent(moments, noise)
        prompts = torch.cat([positive, negative]).repeat_interleave(count, 0)
        with fast_sd.merged(net.unet_layers) if merged else nullcontext():
            found = net.denoise(torch.cat([z, z]), prompts)
        of_positive, of_negative = found.chunk(2)
        eps = of_negative + guidance * (of_positive - of_negative)
        x0 = net.clean(z, eps)
        decoded = net.decode(x0)
    return Step(moments, z, eps, x0, decoded, decoded.clamp(-1, 1))


@torch.no_grad()
def expected(plain: S3DiffReference, count: int = 1) -> Step:
    return plain.step(*given(count), 1.07)


def distance(found: Step, wanted: Step) -> dict[str, float]:
    """Root mean square of what differs, as a part of that of the values."""
    pairs = zip(found._fields, found, wanted, strict=True)
    return {name: float((one.float() - other).square().mean().sqrt() / other.std()) for name, one, other in pairs}


@pytest.mark.parametrize('merged_from', [0, 1.5, 1e9])
@pytest.mark.parametrize('count', [1, 2])
def test_a_step_is_that_of_the_transcription(merged_from, count, plain, everywhere, monkeypatch):
    monkeypatch.setattr(fast_sd, 'MERGED_FROM', merged_from)
    for name, far in distance(step(fast(), count), expected(plain, count)).items():
        assert far < 1e-4, name


def test_the_usual_thresholds_give_the_same(plain):
    assert max(distance(step(fast(), 2), expected(plain, 2)).values()) < 1e-4


def test_winograds_method_is_used_and_additions_go_into_weights(everywhere, monkeypatch):
    monkeypatch.setattr(fast_sd, 'MERGED_FROM', 0)
    calls = []
    for name in ('winograd', 'merged_kernel'):
        fn = getattr(fast_sd, name)
        monkeypatch.setattr(fast_sd, name, lambda *a, fn=fn, name=name, **k: calls.append(name) or fn(*a, **k))
    net = fast()
    step(net)
    assert calls.count('merged_kernel') == len(net.vae_layers) + len(net.unet_layers)
    assert calls.count('winograd') > 40


def test_merged_weights_give_the_same_and_leave_the_network_as_it_was(plain, everywhere):
    net = fast()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert max(distance(step(net, merged=True), expected(plain)).values()) < 1e-4
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(layer.forward.merged is None for layer in net.unet_layers)
    assert max(distance(step(net), expected(plain)).values()) < 1e-4


def test_weights_of_two_images_cannot_be_merged():
    net = fast()
    refused = pytest.raises(ValueError, match='of one image, got those of 2')
    with net.modulated(net.modulation(given(2)[1])), refused, fast_sd.merged(net.unet_layers):
        pass
    assert all(layer.forward.merged is None for layer in net.unet_layers)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('merged', [False, True])
def test_bfloat16_is_as_close_as_the_usual_path(autocast, merged, plain, everywhere):
    net, far = fast(torch.float32 if autocast else torch.bfloat16), []
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16) if autocast else nullcontext():
            far.append(distance(step(net, merged=merged and not far), expected(plain)))
        for module in net.modules():
            vars(module).pop('forward', None)
    for name, usual in far[1].items():
        assert far[0][name] < 2 * usual, name


def test_packed_weights_follow_the_weights(everywhere):
    net = fast(torch.bfloat16)
    before = step(net)
    with torch.no_grad():
        for parameter in net.vae.decoder.parameters():
            parameter.mul_(1.1)
    other = fast(torch.bfloat16)
    other.load_state_dict(net.state_dict())
    after = step(net)
    assert torch.equal(after.moments, before.moments) and not torch.equal(after.decoded, before.decoded)
    assert torch.equal(after.decoded, step(other).decoded)


def test_a_copy_computes_with_its_own_weights(everywhere):
    net = fast()
    copied = copy.deepcopy(net)
    before = step(net)
    nn.init.zeros_(copied.vae.decoder.conv_out.weight)
    assert torch.equal(step(net).decoded, before.decoded)
    assert step(copied).decoded.std() < before.decoded.std()


def test_gradients_are_those_of_the_transcription(plain, everywhere):
    x, score, positive, _, noise = given(2)
    net, name = fast(), 'unet.mid_block.resnets.0.conv1.lora_A.default.weight'
    gradients = []
    for found in (net(x, score, positive, noise), plain.step(x, score, positive, None, noise, 1.0).y):
        module = net if not gradients else plain
        module.zero_grad()
        found.square().mean().backward()
        gradients.append(module.get_parameter(name).grad)
    torch.testing.assert_close(*gradients, atol=1e-3 * float(gradients[1].abs().max()), rtol=0)


def test_attention_in_parts_is_attention(everywhere):
    q, k, v = (torch.randn(2, 3, n, 8) for n in (20, 11, 11))
    torch.testing.assert_close(fast_sd.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
