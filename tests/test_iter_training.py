"""ITER's second and third stage: who learns from what, one stage on the other, resuming, mistakes."""

import copy
from unittest import mock

import pytest
import torch
from iter_training_fixture import (
    ADVERSARY,
    HQ,
    LQ,
    REFINEMENT,
    STAGES,
    TOKENS,
    VQGAN,
    batch,
    changed,
    learn,
    parameters,
    prepared,
    write_tokens,
)
from torch import Tensor, nn
from training_fixture import TORCHRUN, Workplace, differences

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.options import parse_options
from basicsr.utils.registry import OptionError

PIXEL = {'train:pixel_opt': {'type': 'L1Loss'}}
TRAINED = {'tokens': {'lq_encoder'}, 'refinement': {'token_refine_net'}, 'joint': {'lq_encoder', 'token_refine_net'}}


class Brightness(nn.Module):
    """In the place of LPIPS, which needs weights: the difference of the images' brightness."""

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return (sr.mean((1, 2, 3)) - gt.mean((1, 2, 3))).square().mean()


def with_all_losses(*changes: dict) -> BaseModel:
    model = prepared(*changes, PIXEL)
    model.losses['perceptual'] = Brightness()
    return model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """With the files that the stages begin with."""
    monkeypatch.chdir(tmp_path)
    write_tokens(tmp_path)
    return tmp_path


@pytest.fixture
def place(folder) -> Workplace:
    return Workplace(folder, scale=4, size=(12, 9))


@pytest.mark.parametrize('stages', STAGES)
def test_the_losses_fall(stages):
    logged = learn(prepared(STAGES[stages], {'train:optim_g:lr': 5e-3}), 60)
    learned = {'l_token'} if stages == 'tokens' else {'l_critic_lq', 'l_critic_refined', 'l_refine'}
    learned |= {'l_token'} if stages == 'joint' else set()
    for name in learned:
        first, last = (sum(log[name] for log in part) / 10 for part in (logged[:10], logged[-10:]))
        assert last < 0.9 * first, name
    if stages == 'refinement':
        assert logged[0]['l_token'] == logged[-1]['l_token']
    else:
        assert logged[-1]['token_accuracy'] > logged[0]['token_accuracy']


@pytest.mark.parametrize('stages', STAGES)
def test_only_what_a_stage_trains_changes(stages):
    model = with_all_losses(STAGES[stages], {'train:ema_decay': 0.5})
    before, average = parameters(model, 'g'), copy.deepcopy(model.averages['g'].net.state_dict())
    learn(model, 2)
    after = parameters(model, 'g')
    assert {name.split('.')[0] for name in changed(before, after)} == TRAINED[stages]
    assert not any(name.startswith('vqgan.') for name in changed(average, model.averages['g'].net.state_dict()))
    assert not model.bare('g').vqgan.training and model.bare('g').lq_encoder.training
    optimized = {id(p) for group in model.optimizers['g'].param_groups for p in group['params']}
    names = {name for name, p in model.bare('g').named_parameters() if id(p) in optimized}
    assert {name.split('.')[0] for name in names} == TRAINED[stages]


def gradients_of(model: BaseModel, name: str) -> set[str]:
    """The parts of network_g that a logged loss alone reaches."""
    with mock.patch.object(model, 'update'):
        model.before_step(1)
        loss = model.training_step(batch())[name]
    if not loss.requires_grad:
        return set()
    loss.backward()
    reached = {n for n, p in model.bare('g').named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {'.'.join(n.split('.')[:2]) if n.startswith('token') else n.split('.')[0] for n in reached}


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        ('l_token', {'lq_encoder'}),
        ('l_critic_lq', {'token_refine_net.token_crit_net'}),
        ('l_critic_refined', {'token_refine_net.token_crit_net'}),
        ('l_refine', {'token_refine_net.token_refine_net'}),
        ('l_refined_percep', {'token_refine_net.token_refine_net'}),
        ('l_lq_pix', set()),
        ('l_lq_percep', set()),
    ],
)
def test_each_loss_reaches_the_published_part(name, parts):
    """iter.md 4.3: the image of lq's tokens has no gradient."""
    assert gradients_of(with_all_losses(LQ), name) == parts


@pytest.mark.parametrize('name', ['l_lq_pix', 'l_lq_percep', 'l_lq_gan'])
@pytest.mark.parametrize('stages', ['tokens', 'joint'])
def test_with_lq_pixel_grad_the_image_of_its_tokens_teaches_the_lq_encoder(stages, name):
    model = with_all_losses(STAGES[stages], ADVERSARY, {'model:lq_pixel_grad': True})
    assert gradients_of(model, name) == {'lq_encoder'}
    before = parameters(model, 'd')
    learn(model, 1)
    assert changed(before, parameters(model, 'd'))


def test_the_perceptual_loss_is_a_mean_over_both_kinds_of_images():
    """Half its weight for each in the joint stage; all of it where there is one kind."""
    joint, alone = with_all_losses(LQ), with_all_losses(TOKENS)
    for model, factor in ((joint, 0.5), (alone, 1)):
        images, make = [], model.training._lq_image
        model.training._lq_image = lambda logits, images=images, make=make: images.append(make(logits)) or images[0]
        (log,) = learn(model, 1)
        expected = factor * Brightness()(images[0], batch()['gt']).item()
        assert log['l_lq_percep'] == pytest.approx(expected, rel=1e-5)
    assert 'l_refined_percep' in learn(joint, 1)[0] and 'l_refined_percep' not in learn(alone, 1)[0]


def calls(model: BaseModel, iteration: int) -> dict[str, int]:
    """How often each network works in a step of that iteration."""
    net, counts = model.bare('g'), {}
    parts = {'encoder': net.vqgan.encoder, 'decoder': net.vqgan.decoder, 'lq_encoder': net.lq_encoder}
    if net.token_refine_net is not None:
        parts |= {'critic': net.token_refine_net.token_crit_net, 'refiner': net.token_refine_net.token_refine_net}

    def counted(name: str):
        return lambda *_: counts.update({name: counts.get(name, 0) + 1})

    handles = [part.register_forward_hook(counted(name)) for name, part in parts.items()]
    learn(model, 1, first=iteration)
    for handle in handles:
        handle.remove()
    return counts


def test_a_step_does_nothing_twice_and_makes_no_image_that_nobody_sees():
    """The published one calls the critic four times and decodes three images, of which one is learned from."""
    joint, tokens = (with_all_losses(STAGES[stages], {'logger:print_freq': 2}) for stages in ('joint', 'tokens'))
    once = {'encoder': 1, 'lq_encoder': 1}
    refining = {'critic': 2, 'refiner': 1}
    assert calls(joint, 1) == {**once, **refining, 'decoder': 1} and calls(joint, 2) == calls(joint, 1) | {'decoder': 2}
    assert calls(tokens, 1) == once and calls(tokens, 2) == {**once, 'decoder': 1}
    del joint.losses['perceptual']
    assert calls(joint, 1) == {**once, **refining}


@pytest.mark.parametrize('stages', STAGES)
def test_bf16_trains_alike(stages):
    """Up to near ties among tokens and what bf16 rounds."""
    exact, coarse = (with_all_losses(STAGES[stages], {'train:mixed_precision': kind}) for kind in ('no', 'bf16'))
    ours, expected = learn(coarse, 2)[-1], learn(exact, 2)[-1]
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=0.1, abs=0.1), name
    assert all(value.dtype == torch.float32 for value in parameters(coarse, 'g').values())


@pytest.mark.parametrize('stages', STAGES)
def test_showing_the_losses_of_an_image_changes_nothing_else(stages):
    """They are made for the log only, and come and go with it."""
    often, rarely = (prepared(STAGES[stages], PIXEL, {'logger:print_freq': k}) for k in (1, 3))
    logs = [learn(model, 4) for model in (often, rarely)]
    assert ['l_lq_pix' in log for log in logs[0]] == [True] * 4
    assert ['l_lq_pix' in log for log in logs[1]] == [False, False, True, False]
    assert not changed(parameters(often, 'g'), parameters(rarely, 'g'))


def test_the_third_stage_begins_with_a_file_of_the_second_and_refuses_another(folder):
    first = torch.load(folder / 'tokens.pth')['params']
    model = prepared(REFINEMENT, {'train:ema_decay': 0.9})
    state = parameters(model, 'g')
    assert all(torch.equal(state[name], value) for name, value in first.items())
    assert not changed(state, model.averages['g'].net.state_dict())
    learn(model, 1)
    torch.save(model.networks()['g'], folder / 'refined.pth')
    again = prepared(REFINEMENT, {'path:pretrain_network_g': 'refined.pth'})
    assert not changed(parameters(model, 'g'), parameters(again, 'g')), 'a file with token nets gives those too'
    narrow = {key: value for key, value in first.items() if 'lq_encoder.model.1' not in key}
    torch.save({'params': narrow}, folder / 'tokens.pth')
    with pytest.raises(CheckpointError, match=r'missing: lq_encoder\.model\.1\.weight'):
        prepared(REFINEMENT)


def test_restoring_needs_token_nets_in_the_file(folder):
    names = ('model_type', 'scale', 'model', 'network_g', 'path')
    restoring = {'name': 'tiny', 'device': 'cpu', **{name: REFINEMENT[name] for name in names}}
    with pytest.raises(CheckpointError, match=r'missing: token_refine_net\.'):
        build_model(parse_options(restoring, is_train=False))


def test_a_vqgan_with_another_codebook_is_refused(folder):
    with pytest.raises(
        CheckpointError, match=r'vqgan\.pth.*quantize\.embedding\.weight \(12, 8\) instead of \(16, 8\)'
    ):
        prepared(TOKENS, {'network_g:vqgan_opt': {**VQGAN, 'n_embed': 16}})
    tokens = torch.load(folder / 'tokens.pth')
    tokens['params']['vqgan.quantize.embedding.weight'] += 1
    torch.save(tokens, folder / 'tokens.pth')
    with pytest.raises(CheckpointError, match=r'was made with another VQGAN than vqgan\.pth'):
        prepared(REFINEMENT, {'path:pretrain_network_hq': 'vqgan.pth'})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model:stages': 'joint'}, "'stages: joint' needs network_g with 'refine: true'"),
        ({'path': {}}, "ITER learns the tokens of a trained VQGAN: name its file with 'pretrain_network_hq'"),
        ({'train:codebook_opt': None}, "option 'codebook_opt' is missing"),
        ({'model:lq_pixel_grad': True}, 'needs a loss of images, such as pixel_opt'),
        (ADVERSARY, "nothing is learned without 'lq_pixel_grad: true'"),
        ({'network_d': ADVERSARY['network_d']}, 'network_d, optim_d and gan_opt, all or none'),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(OptionError, match=message):
        prepared(TOKENS, changes)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'network_g:refine': False}, "'stages: refinement' needs network_g with 'refine: true'"),
        ({'path': {'pretrain_network_hq': 'vqgan.pth'}}, 'needs a trained LQ encoder: name its file'),
        ({'model:lq_pixel_grad': True}, "'stages: refinement' leaves the LQ encoder as it is"),
    ],
)
def test_a_mistake_of_the_third_stage_is_named(changes, message):
    with pytest.raises(OptionError, match=message):
        prepared(REFINEMENT, changes)


def test_a_discriminator_that_never_takes_part_is_no_mistake():
    model = prepared(LQ, ADVERSARY, {'model:net_d_init_iters': 10**9})
    before = parameters(model, 'd')
    learn(model, 2)
    assert not changed(before, parameters(model, 'd'))


def run(*changes: dict) -> dict:
    """Of a whole run, with sections of its own."""
    return copy.deepcopy({key: v for part in ({'datasets:train:gt_size': 32}, *changes) for key, v in part.items()})


@pytest.mark.parametrize(
    ('stages', 'changes'),
    [
        ('tokens', PIXEL),
        ('refinement', {'logger:print_freq': 3, **PIXEL}),
        ('joint', {'train:gradient_accumulation_steps': 2}),
        ('joint', {**PIXEL, **ADVERSARY, 'model:lq_pixel_grad': True}),
    ],
)
def test_a_resumed_run_equals_the_unbroken_one(stages, changes, place):
    changes = run(STAGES[stages], {'train:total_iter': 4, 'logger:save_checkpoint_freq': 2}, changes)
    place.train('unbroken', changes)
    place.train('run', {**copy.deepcopy(changes), 'train:total_iter': 2})
    place.train('run', copy.deepcopy(changes), resume=True)
    assert differences(place.saved('run', 4), place.saved('unbroken', 4)) == []


def test_the_three_stages_run_one_after_the_other(place):
    images = {'datasets:train:dataroot_lq': 'gt', 'datasets:val:dataroot_lq': 'gt'}
    short = {'train:total_iter': 2, 'logger:save_checkpoint_freq': 0, 'train:ema_decay': 0.9}
    assert place.train('hq', run(HQ, images, short)) == 0
    latest = 'experiments/{}/models/net_g_latest.pth'
    assert place.train('tokens', run(TOKENS, short, {'path:pretrain_network_hq': latest.format('hq')})) == 0
    assert place.train('all', run(REFINEMENT, short, {'path:pretrain_network_g': latest.format('tokens')})) == 0
    files = [torch.load(latest.format(name)) for name in ('hq', 'tokens', 'all')]
    final = files[2]['params_ema']
    vqgan = {name: value for name, value in final.items() if name.startswith('vqgan.')}
    assert differences(vqgan, {f'vqgan.{name}': value for name, value in files[0]['params_ema'].items()}) == []
    encoder = {name: value for name, value in final.items() if name.startswith('lq_encoder.')}
    assert encoder and all(name in files[1]['params'] for name in encoder)


def test_two_batches_of_a_step_count_as_one_of_twice_the_size(place):
    """Of the second stage, whose loss is a plain mean; what else is drawn at random differs from batch to batch."""
    descent = {'train:optim_g': {'type': 'SGD', 'lr': 0.1}, 'train:total_iter': 4}
    place.train('two', run(TOKENS, descent, {'train:gradient_accumulation_steps': 2}))
    place.train('one', run(TOKENS, descent, {'datasets:train:batch_size_per_gpu': 4}))
    networks = [place.saved(name, 4)['net_g_4.pth'] for name in ('two', 'one')]
    assert differences(*networks, tolerance=1e-5) == []


def test_two_processes_train_as_one(place):
    descent = {'train:optim_g': {'type': 'SGD', 'lr': 0.1}, 'train:total_iter': 2, 'logger:save_checkpoint_freq': 2}
    env = {'SAVE_EVERY_RANK': '1'}
    place.process('two', run(TOKENS, descent), launcher=TORCHRUN, env=env)
    assert place.train('one', run(TOKENS, descent, {'datasets:train:batch_size_per_gpu': 4})) == 0
    networks = [place.saved(name, 2)['net_g_2.pth'] for name in ('two', 'one')]
    assert differences(*networks, tolerance=1e-5) == []
    place.process('joint', run(LQ, descent, PIXEL), launcher=TORCHRUN, env=env)
    first, second = (torch.load(place.folder / f'rank{rank}_2.pth') for rank in (0, 1))
    assert differences(first, second) == []
