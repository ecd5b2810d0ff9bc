"""SR3Model: any size whatever the batch, tiles in every step, images from noise, training, published files."""

import contextlib
import logging
import re
from unittest import mock

import pytest
import sr3_fixture
import torch
from sr3_fixture import DDPM, LINEAR, SR3, images, tiny_model
from torch import Tensor, nn
from training_fixture import Workplace, differences

from basicsr.dry_run import dry_run
from basicsr.launch import launched
from basicsr.models.diffusion import GaussianDiffusion
from basicsr.models.diffusion_sampling import ImageNoise, Sampler, sample
from basicsr.models.restorer import Restorer, pad_to_multiple
from basicsr.models.sr3_model import SR3Model, enlarged
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.options import load_options
from basicsr.utils.registry import ARCH_REGISTRY, OptionError, UserError
from basicsr.utils.resize import pillow_resize

UNCONDITIONAL = {**SR3, 'in_channel': 3}
FAST = {'type': 'ddim', 'steps': 3, 'eta': 0.5}
PUBLISHED_SR3 = {'schedule': 'linear', 'n_timestep': 2000, 'linear_start': 1e-6, 'linear_end': 1e-2}


@ARCH_REGISTRY.register()
class LocalDenoiser(nn.Module):
    """Looks one pixel around; notes the shapes that it is given."""

    takes_steps = False

    def __init__(self, in_channel: int = 6, out_channel: int = 3, image_size: int = 8, channel_mults: tuple = (1, 2)):
        super().__init__()
        self.conv, self.shapes = nn.Conv2d(in_channel, out_channel, 3, padding=1), []

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        assert level.shape == (len(x),)
        self.shapes.append(tuple(x.shape))
        return torch.tanh(self.conv(x) + level.view(-1, 1, 1, 1))


def local_model(**sections) -> SR3Model:
    return tiny_model({'type': 'LocalDenoiser'}, model={'sampler': FAST}, **sections)


@pytest.fixture(params=[SR3, DDPM], ids=['sr3', 'ddpm'])
def model(request) -> SR3Model:
    return tiny_model(request.param, model={'sampler': FAST})


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (4, 6)])
def test_any_size_is_restored(model, size):
    lq = images(2, *size)
    with torch.no_grad():
        sr = model.restore(lq)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1]) and sr.min() >= 0 and sr.max() <= 1


def test_restoring_is_sampling_with_the_padded_enlargement_in_front(model):
    """Scale 3 makes sides that the network does not take."""
    model.scale, lq = 3, images(1, 5, 3)
    with torch.no_grad():
        sr = model.restore(lq)
        condition = pad_to_multiple(2 * enlarged(lq, 3) - 1, 2)
        assert condition.shape == (1, 3, 16, 10)
        net, seen = model.eval_net('g'), []

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            seen.append(level)
            return net(torch.cat([condition, x], 1), level)

        sampler = Sampler(**FAST)
        steps = sampler.steps_of(GaussianDiffusion(**LINEAR), model.continuous)
        draw = ImageNoise(model.context(lq)['seeds'].tolist(), (3, 16, 10))
        expected = sample(denoise, sampler, steps, draw(), draw, model.continuous)
    torch.testing.assert_close(sr, (expected[..., :15, :9] + 1) / 2, atol=1e-4, rtol=0)  # its weights are packed
    assert seen[0].dtype == (torch.float32 if model.continuous else torch.int64)


def test_what_follows_from_the_weights_is_computed_once_for_all_steps(model, monkeypatch):
    net, calls = model.eval_net('g'), []
    packed = type(net).constant_weights
    monkeypatch.setattr(type(net), 'constant_weights', lambda net: calls.append(len(calls)) or packed(net))
    with torch.no_grad():
        model.restore(images(2))
    assert calls == [0] and all('forward' not in vars(module) for module in net.modules())


@pytest.mark.parametrize('size', [(9, 6), (5, 3)])
def test_a_consistent_result_is_lq_when_reduced_by_pillow(size, model):
    """Of a network that knows nothing; lq is so smooth, and so gray, that its enlargement hardly leaves [0, 1]."""
    model.scale, lq = 3, 0.4 + 0.2 * torch.nn.functional.avg_pool2d(images(2, *size), 3, 1, 1)
    model.sampler = Sampler('ancestral')
    distances = []
    for consistency in (False, True):
        model.consistency = consistency
        pixels = (Restorer(model)(lq) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        small = [torch.from_numpy(pillow_resize(image, size[1], size[0]).copy()) for image in pixels]
        distances.append((torch.stack(small).permute(0, 3, 1, 2) / 255 - lq).abs().mean().item())
    assert distances[0] > 0.2 and distances[1] < 0.02


def test_consistency_is_for_networks_that_see_lq():
    with pytest.raises(OptionError, match='sees no lq') as caught:
        tiny_model(UNCONDITIONAL, model={'consistency': True})
    assert caught.value.key == ('consistency',)


def test_the_condition_is_pillows_enlargement_of_eight_bits():
    lq = images(2, 5, 3)
    for image, large in zip(lq, enlarged(lq, 4), strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        expected = torch.from_numpy(pillow_resize(pixels, 12, 20).copy()).permute(2, 0, 1) / 255
        assert torch.equal(large, expected)


def test_an_image_is_the_same_in_every_batch_order_and_process(model):
    lq, restorer = images(3), Restorer(model)
    together = restorer(lq)
    for index in (2, 0, 1):
        assert torch.equal(restorer(lq[index : index + 1])[0], together[index])
    assert torch.equal(restorer(lq[[1, 2, 0]]), together[[1, 2, 0]])
    assert torch.equal(Restorer(tiny_model(SR3 if model.continuous else DDPM, model={'sampler': FAST}))(lq), together)


def test_another_seed_or_another_image_begins_with_other_noise():
    lq = images(1)
    seeds = [tiny_model(model={'seed': seed}).context(lq)['seeds'].item() for seed in (0, 1)]
    assert seeds[1] == seeds[0] + 1
    changed = lq.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    assert tiny_model().context(changed)['seeds'].item() != seeds[0]


def test_random_state_outside_neither_matters_nor_changes(model):
    before = torch.get_rng_state()
    one = Restorer(model)(images())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(Restorer(model)(images()), one)


def test_tiles_are_blended_in_every_step_into_one_image():
    """Where the network looks less far than the tiles overlap, the result is that of the whole image."""
    model, lq = local_model(), images(2, 10, 7)
    whole = Restorer(model)(lq)
    net = model.nets['g']
    assert net.shapes == 6 * [(1, 6, 40, 28)]
    net.shapes.clear()
    done = []
    tiled = Restorer(model, tile=4, overlap=2, tile_batch=3)(lq, lambda *counts: done.append(counts))
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)
    assert set(net.shapes) == {(1, 6, 16, 16)}
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_tiles_are_multiples_that_the_network_takes():
    model = local_model(scale=1)
    Restorer(model, tile=5, overlap=2)(images(1, 13, 9))
    assert {shape[-2:] for shape in model.nets['g'].shapes} == {(6, 6)}


def test_out_of_memory_goes_on_in_tiles():
    model, room = local_model(scale=1), 1100

    def guard(_, inputs):
        if inputs[0].shape[-1] * inputs[0].shape[-2] > room:
            raise torch.OutOfMemoryError('CUDA out of memory')

    whole = Restorer(model)(images(1, 40, 40))
    hook = model.nets['g'].register_forward_pre_hook(guard)
    restorer = Restorer(model, overlap=8)
    torch.testing.assert_close(restorer(images(1, 40, 40)), whole, atol=1e-6, rtol=0)
    hook.remove()
    assert restorer.tile == 20


def test_half_precision_restores_nearly_the_same():
    for network in (SR3, DDPM):
        model = tiny_model(network, model={'sampler': {'type': 'dpmpp_2m', 'steps': 5}})
        for parameter in model.nets['g'].parameters():
            parameter.data *= 0.3
        exact, half = (Restorer(model, dtype=dtype)(images(2)) for dtype in ('fp32', 'bf16'))
        assert not torch.equal(exact, half) and (exact - half).abs().mean() < 1e-3


def test_restoring_may_be_compiled_with_a_graph_for_each_shape():
    with mock.patch.object(nn.Module, 'compile') as compiled:
        tiny_model(model={'compile': 'reduce-overhead'})
        tiny_model()
    compiled.assert_called_once_with(mode='reduce-overhead', dynamic=False)


def test_the_process_begins_with_the_condition_and_ends_with_the_image(model):
    lq = images(1)
    maps = Restorer(model, maps=True)(lq)
    assert maps.shape[1] == 3 + 3 * (1 + 3)
    frames = maps[0].unflatten(0, (-1, 3))
    assert torch.equal(frames[0], frames[-1]) and torch.equal(frames[0], Restorer(model)(lq)[0])
    torch.testing.assert_close(frames[1], enlarged(lq, 4)[0])


def test_images_are_made_from_noise_and_their_seeds_alone():
    model = tiny_model(UNCONDITIONAL, model={'sampler': FAST, 'seed': 7})
    three = model.sample(3)
    assert three.shape == (3, 3, 8, 8) and three.min() >= 0 and three.max() <= 1
    assert torch.equal(model.sample(1, seed=9)[0], three[2]) and not torch.equal(three[0], three[1])
    assert model.sample(1, size=(5, 7)).shape == (1, 3, 5, 7)
    frames = model.sample(2, snapshots=True)
    assert frames.shape == (1 + 3, 2, 3, 8, 8) and torch.equal(frames[-1], three[:2])


def test_a_network_does_what_it_was_made_for():
    with pytest.raises(UserError, match='this network makes images from noise alone and restores none'):
        Restorer(tiny_model(UNCONDITIONAL))(images())
    with pytest.raises(UserError, match='it samples none by itself'):
        tiny_model().sample(1)
    with pytest.raises(OptionError, match='should be out_channel or twice out_channel, got 5'):
        tiny_model({**SR3, 'in_channel': 5})
    with pytest.raises(OptionError, match='ATD has no channel_mults, image_size, in_channel, out_channel'):
        tiny_model({'type': 'ATD', 'upscale': 4})


@pytest.mark.parametrize(
    ('model', 'place', 'text'),
    [
        ({'sampler': {'type': 'dim'}}, 'model:sampler:type', "'ancestral', 'ddim' or 'dpmpp_2m'"),
        ({'sampler': {'steps': 21}}, '', 'takes 1 to 20 steps, got 21'),
        ({'sampler': {'eta': 0.5}}, 'model:sampler:eta', "belongs to the sampler 'ddim'"),
        ({'sampler': {'stepps': 5}}, 'model:sampler:stepps', "did you mean 'steps'"),
        ({'schedule': {**LINEAR, 'schedule': 'cosin'}}, 'model:schedule:schedule', "'cosine'"),
        ({'schedule': {'schedule': 'linear'}}, 'model:schedule:n_timestep', 'missing'),
        ({'uniform_in': 'beta'}, 'model:uniform_in', "'level' or 'alpha_bar'"),
    ],
)
def test_mistakes_in_the_option_file_are_said_with_their_place(model, place, text):
    with pytest.raises(OptionError) as error:
        tiny_model(model=model)
    assert place in str(error.value) and text in str(error.value)


def test_a_chain_that_ends_before_the_noise_is_warned_of(caplog):
    """The published way to fewer steps: the same end points, too few to reach noise."""
    with caplog.at_level(logging.WARNING):
        tiny_model(model={'val_schedule': {**PUBLISHED_SR3, 'n_timestep': 100}})
    assert 'still 0.778' in caplog.text and 'give the sampler `steps`' in caplog.text
    caplog.clear()
    tiny_model()
    assert caplog.text == ''


def test_the_schedule_for_sampling_may_be_another_one():
    other = {**LINEAR, 'n_timestep': 12, 'linear_end': 0.8}
    model = tiny_model({'type': 'LocalDenoiser'}, model={'val_schedule': other})
    model.restore(images())
    assert len(model.nets['g'].shapes) == 12 and len(model.diffusion) == 20


def published_file(path, schedule: dict, net: nn.Module) -> str:
    """What the published code saves: the tables of its schedule, then the network."""
    state = GaussianDiffusion(**schedule).buffers()
    torch.save(state | {f'denoise_fn.{name}': value for name, value in net.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize('network', [SR3, DDPM], ids=['sr3', 'ddpm'])
def test_published_files_load_and_their_schedule_must_be_that_of_the_option_file(network, tmp_path):
    first = tiny_model(network)
    path = {'pretrain_network_g': published_file(tmp_path / 'I1_E1_gen.pth', LINEAR, first.nets['g'])}
    loaded = SR3Model(sr3_fixture.options(network, path=path), LINEAR)
    assert differences(loaded.nets['g'].state_dict(), first.nets['g'].state_dict()) == []
    with pytest.raises(CheckpointError) as error:
        SR3Model(sr3_fixture.options(network, path=path), {**LINEAR, 'linear_end': 0.4})
    text = str(error.value)
    assert re.search(r'I1_E1_gen.pth: its noise schedule is not that of model:schedule: betas\[1\] is', text)
    assert 'schedule: linear, n_timestep: 20, linear_start: 0.0001, linear_end: 0.5' in text
    with pytest.raises(CheckpointError, match='betas has 20 steps, the configured schedule 2000'):
        SR3Model(sr3_fixture.options(network, path=path), PUBLISHED_SR3)


CHANGES = {
    'model_type': 'SR3Model',
    'model': {'schedule': LINEAR, 'sampler': FAST, 'ema_start': 3, 'ema_every': 2},
    'network_g': {**SR3, 'dropout': 0.2},
    'train:pixel_opt': None,
    'train:noise_opt': {'type': 'L1Loss'},
    'train:optim_g': {'type': 'Adam', 'lr': 1e-3},
    'val': {'val_freq': 4, 'protocol': 'sr_rgb'},
}


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace(tmp_path)


def trained(place: Workplace, name: str, changes: dict, **more) -> None:
    changes = {**CHANGES, **changes}
    assert place.train(name, {**changes, 'train:noise_opt': changes['train:noise_opt']}, **more) == 0


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'network_g': {**DDPM, 'dropout': 0.2}, 'train:noise_opt': {'type': 'MSELoss'}},
        {'network_g': UNCONDITIONAL, 'val': {}, 'model': {'schedule': LINEAR, 'share_timestep': False}},
    ],
    ids=['sr3', 'ddpm', 'unconditional'],
)
def test_a_resumed_run_equals_the_unbroken_one(changes, place):
    """Weights, average and moments bit for bit, through validations and dropout."""
    trained(place, 'unbroken', changes)
    trained(place, 'run', {**changes, 'train:total_iter': 4})
    trained(place, 'run', changes, resume=True)
    saved = place.saved('run')
    assert saved['net_g_8.pth'].keys() == {'params', 'params_ema'}
    assert differences(saved, place.saved('unbroken')) == []


def test_a_published_training_goes_on(place):
    """Weights, moments and position of X_gen.pth and X_opt.pth: as if the run had been ours from the beginning."""
    plain = {'model': {'schedule': LINEAR}, 'val': {}, 'train:ema_decay': 0, 'train:warmup_iter': -1}
    plain |= {'train:scheduler': None, 'path': {}}
    trained(place, 'unbroken', plain)
    trained(place, 'first', {**plain, 'train:total_iter': 4})
    saved = place.saved('first', 4)
    tables = GaussianDiffusion(**LINEAR).buffers()
    weights = {f'denoise_fn.{name}': value for name, value in saved['net_g_4.pth']['params'].items()}
    torch.save(tables | weights, place.folder / 'I4_E1_gen.pth')
    optimizer = saved['state']['optimizers'][0]
    kept = ('lr', 'betas', 'eps', 'weight_decay', 'amsgrad', 'params')  # what files of 2021 have
    optimizer['param_groups'] = [{name: group[name] for name in kept} for group in optimizer['param_groups']]
    state = {'epoch': 1, 'iter': 4, 'scheduler': None, 'optimizer': optimizer}
    torch.save(state, place.folder / 'I4_E1_opt.pth')
    trained(place, 'run', {**plain, 'path': {'resume_state': 'I4_E1_opt.pth'}})
    ours, theirs = place.saved('run'), place.saved('unbroken')
    assert differences(ours['net_g_8.pth'], theirs['net_g_8.pth']) == []
    assert differences(ours['state']['optimizers'], theirs['state']['optimizers']) == []
    other = {'schedule': {**LINEAR, 'linear_end': 0.4}}
    with pytest.raises(CheckpointError, match=r'I4_E1_gen.pth: its noise schedule is not'):
        trained(place, 'wrong', {**plain, 'path': {'resume_state': 'I4_E1_opt.pth'}, 'model': other})
    state['optimizer']['param_groups'][0]['params'].pop()
    torch.save(state, place.folder / 'I4_E1_opt.pth')
    with pytest.raises(CheckpointError, match=r'I4_E1_opt.pth: belongs to'):
        trained(place, 'short', {**plain, 'path': {'resume_state': 'I4_E1_opt.pth'}})


def test_the_average_is_a_copy_until_it_starts_and_then_follows(place):
    changes = {'model': {'schedule': LINEAR, 'ema_start': 3, 'ema_every': 2}, 'val': {}, 'train:total_iter': 4}
    trained(place, 'run', {**changes, 'logger:save_checkpoint_freq': 1})
    saved = {i: place.saved('run', i)[f'net_g_{i}.pth'] for i in (1, 2, 3, 4)}
    assert differences(saved[2]['params_ema'], saved[2]['params']) == []
    assert differences(saved[3]['params_ema'], saved[2]['params']) == [], 'every second iteration'
    for name, average in saved[4]['params_ema'].items():
        torch.testing.assert_close(average, 0.9 * saved[2]['params'][name] + 0.1 * saved[4]['params'][name])


def test_training_sees_lq_up_where_the_batch_has_it_and_the_level_of_its_noise():
    model, seen = local_model(), []
    model.losses['noise'] = nn.L1Loss()
    model.update = lambda label, loss: seen.append((label, loss))
    gt, lq = images(2, 16, 16), images(2, 4, 4, seed=1)
    inputs = []
    model.nets['g'].register_forward_pre_hook(lambda _, args: inputs.append(args))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with mock.patch('torch.randn_like', lambda _: noise):
        for batch in ({'gt': gt, 'lq': lq}, {'gt': gt, 'lq': lq, 'lq_up': gt.flip(-1)}):
            loss = model.training_step(batch)['l_noise']
            assert torch.isfinite(loss) and seen[-1] == ('g', loss)
    for (x, level), condition in zip(inputs, (enlarged(lq, 4), gt.flip(-1)), strict=True):
        torch.testing.assert_close(x[:, :3], 2 * condition - 1)
        level = level.view(-1, 1, 1, 1)
        torch.testing.assert_close(x[:, 3:], level * (2 * gt - 1) + (1 - level**2).sqrt() * noise)


def test_training_refuses_sides_that_the_network_does_not_take():
    model = local_model()
    with pytest.raises(UserError, match='sides that 2 divides, gt is \\(15, 16\\)'):
        model.training_step({'gt': images(1, 15, 16), 'lq': images(1, 4, 4)})


def test_a_training_without_the_loss_is_refused(place):
    with pytest.raises(OptionError, match="'noise_opt' is missing"):
        place.train('run', {**CHANGES, 'train:noise_opt': None} | {'train:pixel_opt': None})


def test_a_dry_run_measures_restoring(place, capsys):

    with contextlib.chdir(place.folder):
        opt = load_options(place.options('run', CHANGES), True)
        with launched(opt) as accelerator:
            assert dry_run(opt, accelerator) == 0
    assert 'FLOPs' in capsys.readouterr().out
