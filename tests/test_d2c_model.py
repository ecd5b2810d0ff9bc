"""How D2C-SR learns and restores: the steps of both networks, the schedule of the divergence, the two stages."""

import copy

import pytest
import torch
from d2c_fixture import batch, learn, options, parameters, prepared
from torch.nn import functional as F

from basicsr.models import build_model
from basicsr.models.d2c_model import DivergenceSchedule
from basicsr.models.restorer import Restorer
from basicsr.utils.registry import OptionError

PUBLISHED = {'start_epoch': 200, 'every': 1000, 'epochs': 200, 'decay_epoch': 2000, 'decay_rate': 0.5}


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize('reuse', [False, True])
def test_a_step_is_the_published_one_written_out(reuse):
    """Two plain torch optimizers: g on the sum of its errors and the divergence, then f on what the new g makes."""
    model = prepared({'model:reuse_d_outputs': reuse})
    g, f = copy.deepcopy(model.bare('g')), copy.deepcopy(model.bare('f'))
    adam_g, adam_f = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (g, f))
    divergence, images = model.losses['divergence'], batch()
    for _ in range(3):
        before = g(images['lq'])
        loss_g = 4 * F.mse_loss(before, images['gt'][:, None].expand_as(before)) + divergence(before, images['gt'])
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        made = before.detach() if reuse else g(images['lq']).detach()
        adam_f.zero_grad()
        F.mse_loss(f(made)[0], images['gt']).backward()
        adam_f.step()
    learn(model, 3)
    for net, label in ((g, 'g'), (f, 'f')):
        for ours, expected in zip(parameters(model, label), net.parameters(), strict=True):
            torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_fusion_never_trains_the_branches():
    """However large its loss and its steps are."""
    plain, wild = prepared(), prepared({'train:optim_f': {'type': 'SGD', 'lr': 10.0}})
    learn(plain, 3)
    learn(wild, 3)
    assert same(parameters(plain, 'g'), parameters(wild, 'g'))
    assert not same(parameters(plain, 'f'), parameters(wild, 'f'))
    assert all(p.grad is None or not p.grad.any() for p in wild.bare('g').parameters())


def test_the_published_divergence_is_logged_and_changes_nothing():
    without = prepared({'train:divergence_opt': None})
    published, paper = prepared({'model:divergence_grad': False}), prepared()
    logs = [learn(model, 4) for model in (without, published, paper)]
    for label in ('g', 'f'):
        assert same(parameters(without, label), parameters(published, label))
    assert not same(parameters(published, 'g'), parameters(paper, 'g'))
    assert 'l_g_div' not in logs[0][0]
    assert logs[1][0]['l_g_div'] == logs[2][0]['l_g_div'] > 0
    assert [log['l_g_pix'] for log in logs[0]] == [log['l_g_pix'] for log in logs[1]]


def test_a_published_divergence_that_is_not_a_number_does_no_harm(monkeypatch):
    model = prepared({'model:divergence_grad': False})
    monkeypatch.setattr(model.losses['divergence'], 'loss_weight', float('nan'))
    learn(model, 2)
    assert all(p.isfinite().all() for p in parameters(model, 'g'))


def test_the_divergence_counts_in_the_windows_of_the_published_schedule():
    """With 114 steps an epoch: 19 windows of 200 epochs, the first in epoch 1000, though it may start after 200."""
    schedule = DivergenceSchedule(steps_per_epoch=114, **PUBLISHED)
    factors = [schedule.factor(114 * epoch + 1) for epoch in range(20000)]
    active = [epoch for epoch, factor in enumerate(factors) if factor]
    assert len(active) == 3800 and active[0] == 1000 and active[199:201] == [1199, 2000]
    assert factors[1000] == 1 and factors[2000] == factors[3100] == 0.5 and factors[19199] == 0.5**9
    first = 1000 * 114
    assert schedule.factor(first) == 0 and schedule.factor(first + 1) == 1, 'the published step 0 is iteration 1'
    assert schedule.factor(1200 * 114) == 1 and schedule.factor(1200 * 114 + 1) == 0


def test_training_follows_the_schedule():
    schedule = {'steps_per_epoch': 2, 'start_epoch': 0, 'every': 2, 'epochs': 1, 'decay_epoch': 4, 'decay_rate': 0.25}
    model = prepared({'model:divergence_schedule': schedule, 'train:optim_g': {'type': 'SGD', 'lr': 0.0}})
    values = [log['l_g_div'] for log in learn(model, 10)]
    assert [value > 0 for value in values] == [False] * 4 + [True] * 2 + [False] * 2 + [True] * 2
    assert values[8] == pytest.approx(values[4] / 4), 'the decay begins with epoch 4'


def test_the_branches_diverge_more_with_the_loss_than_without():
    """From one start, on one batch: the images of the branches spread more where they are rewarded for it."""
    spread = {}
    for name, changes in (('with', {}), ('without', {'train:divergence_opt': None})):
        model = prepared({**changes, 'train:optim_g': {'type': 'Adam', 'lr': 1e-2}})
        learn(model, 150)
        images = batch()
        branches = model.nets['g'](images['lq']).detach()
        errors = (branches - images['gt'][:, None]).mean(2)
        spread[name] = restored_maps(model, images['lq'])[:, 3].mean().item()
        assert errors.abs().mean() < 0.3
    assert spread['with'] > 2 * spread['without']


def restored_maps(model, lq):
    return Restorer(model, maps=True)(lq)


def test_without_a_second_pass_g_runs_once_a_step():
    for changes, expected in (({}, 2), ({'model:reuse_d_outputs': True}, 1)):
        model, calls = prepared(changes), []
        model.bare('g').head.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        learn(model, 1)
        assert calls == [True, False][:expected], 'the second pass keeps no activations'


def test_both_networks_have_averages_and_restore_with_them():
    model = prepared({'train:ema_decay': 0.5})
    start = {label: parameters(model, label) for label in ('g', 'f')}
    learn(model, 1)
    assert model.networks().keys() == {'g', 'f'}
    for label, content in model.networks().items():
        for before, after, average in zip(start[label], *(content[k].values() for k in ('params', 'params_ema'))):
            torch.testing.assert_close(average, (before + after) / 2)
    lq = batch()['lq']
    blend = model.averages['f'].net(model.averages['g'].net(lq))[0]
    torch.testing.assert_close(model.restore(lq), blend)


def test_the_maps_are_the_spread_and_the_weights_beside_the_same_image():
    model = prepared()
    lq = batch()['lq']
    with torch.no_grad():
        branches = model.nets['g'].eval()(lq)
        sr, weights = model.nets['f'].eval()(branches)
        found = model.restore_with_maps(lq)
    assert found.shape == (2, 8, 16, 16)
    torch.testing.assert_close(found[:, :3], sr)
    expected = branches.var(1, unbiased=False).sqrt().mean(1)
    torch.testing.assert_close(found[:, 3], expected)
    torch.testing.assert_close(found[:, 4:], weights)
    torch.testing.assert_close(found[:, 4:].sum(1), torch.ones(2, 16, 16))


@pytest.mark.parametrize('settings', [{}, {'tile': 24, 'overlap': 12, 'tile_batch': 2}, {'self_ensemble': True}])
def test_maps_go_through_tiles_and_ensembles_as_the_image_does(settings):
    """The tiny networks look three pixels around: a quarter of the overlap."""
    model, lq = prepared(), torch.rand(1, 3, 37, 29)
    result = Restorer(model, maps=True, **settings)(lq)
    torch.testing.assert_close(result[:, :3], Restorer(model, **settings)(lq))
    if 'self_ensemble' not in settings:
        with torch.no_grad():
            torch.testing.assert_close(result[:, 3:], model.restore_with_maps(lq)[:, 3:])
    assert result.shape == (1, 8, 74, 58)


def test_two_stages_train_the_branches_alone_and_then_the_fusion_on_them(tmp_path):
    first = prepared({'model:stages': 'branches', 'network_f': None, 'train:optim_f': None, 'train:ema_decay': 0.5})
    assert learn(first, 3)[0].keys() == {'l_g_pix', 'l_g_div'}
    lq = batch()['lq']
    torch.testing.assert_close(first.restore(lq), first.eval_net('g')(lq).mean(1))
    assert restored_maps(first, lq)[:, 4:].eq(0.25).all()
    torch.save(first.networks()['g'], tmp_path / 'g.pth')
    second = prepared(
        {
            'model:stages': 'fusion',
            'train:optim_g': None,
            'train:divergence_opt': None,
            'train:ema_decay': 0.5,
            'path:pretrain_network_g': str(tmp_path / 'g.pth'),
            'path:param_key_g': 'params_ema',
        },
        seed=1,
    )
    assert same(parameters(second, 'g'), first.averages['g'].net.parameters())
    before = parameters(second, 'f')
    assert learn(second, 3)[0].keys() == {'l_f_pix'}
    assert same(parameters(second, 'g'), first.averages['g'].net.parameters())
    assert not same(parameters(second, 'f'), before)
    assert second.networks()['g'].keys() == {'params'} and second.networks()['f'].keys() == {'params', 'params_ema'}


@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_the_fusion_sees_the_branches_in_the_precision_of_the_run(precision):
    model, seen = prepared({'train:mixed_precision': precision}), []
    model.bare('g').head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    losses = learn(model, 2)
    assert set(seen) == {torch.bfloat16 if precision == 'bf16' else torch.float32}
    assert all(value > 0 for value in losses[-1].values())


SCHEDULE = {'steps_per_epoch': 2, **PUBLISHED}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'train:optim_f': None}, "'stages: joint' needs optim_f"),
        ({'train:optim_g': None}, "'stages: joint' needs optim_g"),
        ({'network_f': None, 'train:optim_f': None}, "needs a 'network_f'"),
        ({'model:stages': 'branches'}, 'leave it and optim_f out'),
        ({'model:stages': 'fusion'}, "'stages: fusion' trains without optim_g"),
        ({'model:stages': 'fusion', 'train:optim_g': None}, 'pretrain_network_g'),
        (
            {'model:stages': 'fusion', 'train:optim_g': None, 'path:pretrain_network_g': 'g.pth'},
            'no divergence_opt',
        ),
        ({'train:pixel_opt': None}, "'pixel_opt' is missing"),
        ({'train:divergence_opt': None, 'model:divergence_schedule': SCHEDULE}, 'nothing to schedule'),
        (
            {'model:stages': 'branches', 'network_f': None, 'train:optim_f': None, 'model:reuse_d_outputs': True},
            "belongs to 'stages: joint'",
        ),
        ({'model:stages': 'both'}, "'joint', 'branches' or 'fusion'"),
        ({'model:divergence_schedule': {**SCHEDULE, 'epoch': 2}}, "'epoch' is not a known option"),
        ({'model:divergence_schedule': {**SCHEDULE, 'every': 0}}, 'greater than 0'),
        ({'model:divergence_schedule': PUBLISHED}, "'steps_per_epoch' is missing"),
        ({'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}}, 'not a known loss of D2CModel'),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, words):
    with pytest.raises(OptionError, match=words) as caught:
        build_model(options(changes))
    assert '\n' not in str(caught.value)
