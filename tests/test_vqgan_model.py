"""The first stage of ITER: what the autoencoder and its adversary learn from, dead codes, restoring, resuming."""

import copy
import math

import pytest
import torch
from iter_training_fixture import ADVERSARY, HQ, batch, changed, learn, options, parameters, prepared
from torch.nn import functional as F
from training_fixture import TORCHRUN, Workplace, differences

from basicsr.models import build_model
from basicsr.models.restorer import Restorer
from basicsr.models.vqgan_model import codebook_use
from basicsr.utils.registry import OptionError

DATA = {'datasets:train:gt_size': 8, 'datasets:train:dataroot_lq': 'gt', 'datasets:val:dataroot_lq': 'gt'}


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path, scale=1)


def run(*changes: dict) -> dict:
    """Of a whole run, with sections of its own."""
    return copy.deepcopy({key: value for part in (HQ, DATA, *changes) for key, value in part.items()})


def test_the_losses_fall():
    logged = learn(prepared(HQ, {'train:struct_opt': {'type': 'SSIMLoss'}, 'train:optim_g:lr': 5e-3}), 40)
    for name in ('l_g_pix', 'l_g_struct', 'l_g_codebook'):
        assert logged[-1][name] < 0.8 * max(log[name] for log in logged[:5]), name


def test_a_step_is_the_published_one_written_out():
    """Two plain optimizers; the spectral norm of d advances at each of its three calls (iter.md 4.2)."""
    descent = {'type': 'SGD', 'lr': 0.1}
    model = prepared(HQ, ADVERSARY, {'train:optim_g': descent, 'train:optim_d': descent})
    g, d, gt = copy.deepcopy(model.bare('g')), copy.deepcopy(model.bare('d')), batch()['gt']
    image, codebook, _ = g(gt)
    (codebook + F.l1_loss(image, gt) - 0.1 * d(image).mean()).backward()
    d.zero_grad()
    F.relu(1 - d(gt)).mean().backward()
    F.relu(1 + d(image.detach())).mean().backward()
    learn(model, 1)
    for net, label in ((g, 'g'), (d, 'd')):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
        ours = model.bare(label).state_dict()
        for name, expected in net.state_dict().items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6)


def test_the_adversary_reaches_all_of_g_and_g_does_not_reach_d():
    model = prepared(HQ, ADVERSARY)
    image, _, _ = model.nets['g'](batch()['gt'])
    model.adversary.fool(image, image).backward()
    names = {n for n, p in model.bare('g').named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split('.')[0] for name in names} == {'encoder', 'decoder'}
    assert len(names) > 0.9 * sum(not name.startswith('quantize') for name, _ in model.bare('g').named_parameters())
    assert all(p.grad is None for p in model.bare('d').parameters())


def test_the_adversary_waits_for_its_iteration():
    model = prepared(HQ, ADVERSARY, {'model:net_d_init_iters': 2})
    before = parameters(model, 'd')
    logged = learn(model, 2)
    assert not changed(before, parameters(model, 'd')) and 'l_g_gan' not in logged[1] and 'l_d_real' not in logged[1]
    logged = learn(model, 1, first=3)
    assert changed(before, parameters(model, 'd')) and {'l_g_gan', 'l_d_real', 'l_d_fake'} <= logged[0].keys()


def test_the_use_of_the_codebook_is_counted():
    used = codebook_use(torch.tensor([5, 5, 0, 5, 5]))
    assert used['codebook_used'].item() == pytest.approx(0.8)
    assert used['codebook_perplexity'].item() == pytest.approx(4)
    used = codebook_use(torch.tensor([1, 3]))
    assert used['codebook_perplexity'].item() == pytest.approx(math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    assert learn(prepared(HQ), 1)[0]['codebook_used'] * 12 == pytest.approx(
        len(prepared(HQ).bare('g').indices(batch()['gt']).unique())
    )


def with_dead_codes(*changes):
    """A model of 12 codes, of which all but the first three are too far away to be chosen."""
    model = prepared(HQ, {'train:optim_g': {'type': 'Adam', 'lr': 1e-6}, 'model:restart_dead_codes': 3}, *changes)
    with torch.no_grad():
        entries = model.bare('g').quantize.embedding.weight
        features = model.bare('g').features(batch()['gt']).movedim(1, -1).flatten(0, 2)
        entries.fill_(1e3)
        entries[:3] = features[:: len(features) // 3][:3]
    return model, entries


def test_codes_that_nothing_chose_in_all_of_the_iterations_begin_anew():
    model, entries = with_dead_codes()
    learn(model, 2)
    assert (entries[3:] > 900).all(), 'not before the third iteration'
    chosen = entries[:3].detach().clone()
    learn(model, 1, first=3)
    features = model.bare('g').features(batch()['gt']).movedim(1, -1).flatten(0, 2)
    assert torch.cdist(entries[3:], features).min(1).values.max() < 1e-3, 'they are features of the batch'
    assert len(entries[3:].unique(dim=0)) == 9, 'each of another pixel'
    torch.testing.assert_close(entries[:3], chosen, rtol=0, atol=1e-4)
    moments = model.optimizers['g'].state[entries]
    assert not moments['exp_avg'][3:].any() and moments['exp_avg'][:3].any() and not model.chosen.any()


def test_a_code_that_one_batch_chose_is_alive():
    model, entries = with_dead_codes()
    learn(model, 1)
    with torch.no_grad():  # from now on nothing chooses the first three
        entries[:3] = 2e3
        entries[5] = 0
    learn(model, 2, first=2)
    assert (entries[:3] > 1900).all() and entries[5].abs().max() < 1 and entries[6:].max() < 900


def test_dead_codes_stay_dead_without_the_option():
    model, entries = with_dead_codes({'model:restart_dead_codes': 0})
    learn(model, 4)
    assert (entries[3:] > 900).all() and 'codes_chosen' not in model.training_state()


@pytest.mark.parametrize('size', [(1, 1), (8, 16), (13, 5)])
def test_any_size_is_restored_by_the_published_padding(size):
    """Mirrored with the edge repeated, by a whole unit of 8 pixels where the size would do as it is."""
    model = build_model(options(HQ))
    assert model.nets['g'].size_multiple == 8
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    sides = [side // 8 * 8 + 8 for side in size]
    padded = image
    for dim, side in zip((2, 3), sides):
        while padded.shape[dim] < side:
            padded = torch.cat([padded, padded.flip(dim)], dim)
        padded = padded.narrow(dim, 0, side)
    with torch.no_grad():
        expected = model.nets['g'](padded)[0][..., : size[0], : size[1]]
    assert torch.equal(Restorer(model)(image), expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scale': 2}, 'images of their own size: scale 1, got 2'),
        ({'train:codebook_opt': None}, "option 'codebook_opt' is missing"),
        ({'network_d': ADVERSARY['network_d']}, 'network_d, optim_d and gan_opt, all or none'),
        (
            {'train:perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv1_1': 1}}},
            'should be LPIPSLoss',
        ),
    ],
)
def test_a_mistake_is_named(change, message):
    with pytest.raises(OptionError, match=message):
        build_model(options(HQ, change))


@pytest.mark.parametrize(
    'changes', [ADVERSARY, {'model:restart_dead_codes': 3}, {'train:gradient_accumulation_steps': 2}]
)
def test_a_resumed_run_equals_the_unbroken_one(changes, place):
    """Stopped between two restarts of dead codes: what was chosen until then is remembered."""
    place.train('unbroken', run(changes))
    place.train('run', run(changes, {'train:total_iter': 4}))
    place.train('run', run(changes), resume=True)
    saved = place.saved('run')
    assert ('codes_chosen' in saved['state']) == ('model:restart_dead_codes' in changes)
    assert differences(saved, place.saved('unbroken')) == []
    if 'codes_chosen' in saved['state']:
        assert place.log('run').count('codes were dead and begin anew') == 2
        assert saved['state']['codes_chosen'].sum() == 2 * 2 * 4


def test_two_batches_of_a_step_count_as_one_of_twice_the_size(place):
    descent = {'train:optim_g': {'type': 'SGD', 'lr': 0.1}, 'train:total_iter': 4}
    place.train('two', run(descent, {'train:gradient_accumulation_steps': 2}))
    place.train('one', run(descent, {'datasets:train:batch_size_per_gpu': 4}))
    networks = [place.saved(name, 4)['net_g_4.pth'] for name in ('two', 'one')]
    assert differences(*networks, tolerance=1e-5) == []


def test_two_processes_agree_on_the_codes_that_begin_anew(place):
    changes = {'model:restart_dead_codes': 2, 'train:total_iter': 4}
    text = place.process('run', run(changes), launcher=TORCHRUN, env={'SAVE_EVERY_RANK': '1'})
    assert 'codes were dead' in text
    first, second = (torch.load(place.folder / f'rank{rank}_4.pth') for rank in (0, 1))
    assert differences(first, second) == []
