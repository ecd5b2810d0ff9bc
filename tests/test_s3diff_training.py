"""S3Diff's training step on plain networks: the order of its steps, negative prompts, accumulation, mistakes."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from s3diff_training_fixture import ADVERSARY, batch, learn, parts, plain_model, plain_options, weights
from torch import Tensor, nn
from training_fixture import differences

from basicsr.models.base_model import NonFiniteLoss
from basicsr.models.s3diff_training import mixed_target, negative_samples
from basicsr.utils.registry import MODEL_REGISTRY, OptionError

STEPS = ('two', 'one')


def cross_entropy(levels: tuple[Tensor, ...], label: float) -> Tensor:
    return sum(F.binary_cross_entropy_with_logits(level, torch.full_like(level, label)) for level in levels)


def plain_iteration(g: nn.Module, d: nn.Module, model, given: dict[str, Tensor], steps: str) -> dict[str, Tensor]:
    """s3diff.md 4.3 with its corrections, by SGD, under the positive prompt."""
    x, gt = (2 * image - 1 for image in (model.enlarged(given['lq']), given['gt']))
    score, prompt = model.scores(given['lq']), model.prompts[0]
    losses = {}

    def descend(net: nn.Module, loss: Tensor) -> None:
        parameters = list(net.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.05 * gradient

    losses['l_g_pix'] = 2 * (g(x, score, prompt, None) - gt).square().mean()
    if steps == 'two':
        descend(g, losses['l_g_pix'])
    y = g(x, score, prompt, None)
    losses['l_g_gan'] = 0.5 * cross_entropy(d(y), 0.8)
    losses['l_d_real'], losses['l_d_fake'] = 0.5 * cross_entropy(d(gt), 0.8), 0.5 * cross_entropy(d(y.detach()), 0)
    descend(g, losses['l_g_gan'] + (losses['l_g_pix'] if steps == 'one' else 0))
    descend(d, losses['l_d_real'] + losses['l_d_fake'])
    return losses


@pytest.mark.parametrize('steps', STEPS)
def test_equals_the_iteration_written_down_plainly(steps):
    model = plain_model(ADVERSARY, {'model:generator_steps': steps})
    g, d = copy.deepcopy(model.nets['g']), copy.deepcopy(model.nets['d'])
    for iteration in (1, 2, 3):
        expected = plain_iteration(g, d, model, batch(seed=iteration), steps)
        (logged,) = learn(model, batch(seed=iteration), first=iteration)
        assert differences({name: logged[name] for name in expected}, expected, tolerance=1e-6) == []
    assert differences(dict(model.nets['g'].state_dict()), dict(g.state_dict()), tolerance=1e-6) == []
    assert differences(dict(model.nets['d'].state_dict()), dict(d.state_dict()), tolerance=1e-6) == []


@pytest.mark.parametrize('changes', [{}, ADVERSARY, ADVERSARY | {'model:generator_steps': 'one'}])
@pytest.mark.parametrize('count', [2, 4])
def test_accumulating_equals_the_large_batch(changes, count):
    whole = [batch(4, seed=seed) for seed in (1, 2)]
    one = plain_model(changes)
    logged = learn(one, *whole)
    several = plain_model(changes, {'train:gradient_accumulation_steps': count})  # now: accelerate shares its counts
    accumulated = learn(several, *(part for each in whole for part in parts(each, count)))
    assert differences(weights(one), weights(several), tolerance=1e-6) == []
    assert differences(logged, accumulated, tolerance=1e-5) == []


def test_each_step_has_the_gradients_of_its_own_loss_alone():
    model = plain_model(ADVERSARY, {'train:gradient_accumulation_steps': 2})
    seen = {'g': [], 'd': []}
    for label, norms in seen.items():

        def note(*_, label=label, norms=norms) -> None:
            norms.append([p.grad.clone() for p in model.nets[label].parameters() if p.grad is not None])

        model.optimizers[label].optimizer.register_step_pre_hook(note)
    net = copy.deepcopy(model.nets['g'])
    whole = batch(4)
    learn(model, *parts(whole, 2))
    assert {label: len(steps) for label, steps in seen.items()} == {'g': 2, 'd': 1}
    x, gt = (2 * image - 1 for image in (model.enlarged(whole['lq']), whole['gt']))
    (2 * (net(x, model.scores(whole['lq']), model.prompts[0], None) - gt).square().mean()).backward()
    expected = [p.grad for p in net.parameters() if p.grad is not None]
    assert differences(seen['g'][0], expected, tolerance=1e-6) == []


def test_negative_samples_are_drawn_one_by_one_and_aim_at_the_enlarged_lq():
    draws = torch.tensor([0.0, 0.049, 0.05, 0.9])
    negative = negative_samples(draws, 0.05)
    assert negative.tolist() == [True, True, False, False]
    lq_up, gt = torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)
    assert mixed_target(negative, lq_up, gt).mean((1, 2, 3)).tolist() == [0, 0, 1, 1]


def test_negative_samples_take_part_in_reconstruction_only():
    model, given = plain_model(ADVERSARY, {'model:neg_prob': 0.5}), batch()
    with mock.patch('torch.rand', return_value=torch.tensor([0.2, 0.7])):
        (logged,) = learn(model, given)
    positive, negative = model.prompts
    mixed, judged = model.nets['g'].prompts
    assert torch.equal(mixed, torch.cat([negative, positive])) and torch.equal(judged, positive)
    fresh = plain_model(ADVERSARY)
    x, gt = (2 * image - 1 for image in (model.enlarged(given['lq']), given['gt']))
    y = fresh.nets['g'](x, model.scores(given['lq']), mixed, None)
    target = torch.cat([x[:1], gt[1:]])
    torch.testing.assert_close(logged['l_g_pix'], (2 * (y - target).square().mean()).detach())


@pytest.mark.parametrize(('probability', 'number'), [(0, 0), (1, 1)])
def test_the_ends_of_the_probability_are_never_and_always(probability, number):
    model = plain_model({'model:neg_prob': probability})
    learn(model, *[batch(8)] * 3)
    assert all(torch.equal(seen, model.prompts[number].expand(8, -1, -1)) for seen in model.nets['g'].prompts)


def test_an_undegraded_image_is_given_and_scored_as_it_is():
    model, given = plain_model(), batch(3)
    up = F.interpolate(given['lq'], scale_factor=4, mode='bicubic').clamp(0, 1)
    up[1] = given['gt'][1]
    lq = given['lq'].clone()
    given['lq'][1] = 0.1  # degraded beyond recognition
    seen = model.training._given(given | {'lq_up': up})
    torch.testing.assert_close(seen.x[1], 2 * given['gt'][1] - 1)
    torch.testing.assert_close(seen.x[0], 2 * model.enlarged(lq)[0] - 1)
    torch.testing.assert_close(seen.score, model.scores(lq))


@pytest.mark.parametrize('drawn', [True, False])
def test_latents_are_drawn_anew_for_each_image_and_step(drawn):
    model = plain_model(ADVERSARY, {'model:sample_posterior': drawn})
    noises = []
    model.nets['g'].register_forward_pre_hook(lambda _, arguments: noises.append(arguments[3]))
    learn(model, batch(2, side=32))
    if not drawn:
        assert noises == [None, None]
        return
    assert [tuple(noise.shape) for noise in noises] == [(2, 4, 4, 4)] * 2
    first, second = noises
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_network_g_is_asked_to_checkpoint():
    assert plain_model().nets['g'].checkpointed


def test_both_losses_of_reconstruction_are_used():
    class Brightness(nn.Module):
        def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
            assert min(sr.min(), gt.min()) >= 0  # LPIPSLoss takes [0, 1]
            return (sr.mean() - gt.mean()).abs()

    model = plain_model()
    model.losses['perceptual'] = Brightness()
    before = weights(model)
    (logged,) = learn(model, batch())
    assert logged['l_g_percep'] > 0
    both = weights(model)
    assert differences(before, both)
    other = plain_model()
    learn(other, batch())
    assert differences(both, weights(other))


def test_a_step_that_was_given_up_leaves_nothing_behind():
    model = plain_model(ADVERSARY, {'train:gradient_accumulation_steps': 2})
    before, broken = weights(model), batch()
    broken['gt'] = broken['gt'] * torch.nan
    with pytest.raises(NonFiniteLoss):
        learn(model, batch(), broken)
    assert differences(before, weights(model)) == [] and not model.training.waiting
    learn(model, batch(seed=1), batch(seed=2))
    fresh = plain_model(ADVERSARY, {'train:gradient_accumulation_steps': 2})
    learn(fresh, batch(seed=1), batch(seed=2))
    assert differences(weights(fresh), weights(model)) == []


@pytest.mark.parametrize('steps', STEPS)
def test_bfloat16_keeps_float32_weights_gradients_and_moments(steps):
    adam = {'type': 'AdamW', 'lr': 1e-3}
    changes = {'train:mixed_precision': 'bf16', 'model:generator_steps': steps, 'train:optim_g': adam}
    model = plain_model(ADVERSARY, changes)
    learn(model, *[batch(4)] * 3)
    plain = plain_model(ADVERSARY, {**changes, 'train:mixed_precision': None})
    learn(plain, *[batch(4)] * 3)
    found = [*model.nets['g'].parameters(), *model.nets['d'].parameters()]
    found += [v for state in model.optimizers['g'].state.values() for v in state.values() if v.ndim]
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert (
        differences(weights(model), weights(plain))
        and differences(weights(model), weights(plain), tolerance=1e-2) == []
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train:pixel_opt': None}, "'pixel_opt' or 'perceptual_opt'"),
        ({'train:gan_opt': ADVERSARY['train:gan_opt']}, 'network_d, optim_d and gan_opt, all or none'),
        ({**ADVERSARY, 'train:gan_opt': None}, 'network_d, optim_d and gan_opt, all or none'),
        ({'train:ema_decay': 0.9}, 'keeps no average'),
        ({'model:neg_prob': 1.5}, 'is a probability, got 1.5'),
        ({'train:perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv1_1': 1}}}, 'LPIPSLoss'),
    ],
)
def test_mistakes_are_said(change, message):
    opt = plain_options(change)
    with pytest.raises(OptionError, match=message):
        MODEL_REGISTRY.build({'type': opt.model_type, **opt.model}, opt=opt)


def test_sizes_that_the_network_does_not_take_are_said():
    with pytest.raises(OptionError, match='gt of 24 x 24 pixels: network_g learns from multiples of 16'):
        learn(plain_model(), batch(side=24))
