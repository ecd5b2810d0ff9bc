"""Noise schedules, mixing and sampling: closed forms, exact relations between samplers, draws by image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from basicsr.models.diffusion import GaussianDiffusion, recognised_schedule
from basicsr.models.diffusion_sampling import (
    ImageNoise,
    Sampler,
    ancestral_table,
    ddim_table,
    dpmpp_2m_table,
    sample,
    snapshot_steps,
    spaced_steps,
)
from basicsr.utils.registry import OptionError

SR3 = GaussianDiffusion('linear', 2000, 1e-6, 1e-2)
DDPM = GaussianDiffusion('linear', 2000, 1e-4, 2e-2)
SHORT = GaussianDiffusion('linear', 50, 1e-4, 0.12)
SCHEDULES = ('linear', 'quad', 'warmup10', 'warmup50', 'const', 'jsd', 'cosine')


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def any_denoiser(x: Tensor, condition: Tensor) -> Tensor:
    """Looks at the whole image and at the condition, and is wrong enough that x0 is clamped."""
    return torch.tanh(x.roll(1, -1) + x.mean((1, 2, 3), keepdim=True)) + condition.float().view(-1, 1, 1, 1) * 0.01


def run(sampler: Sampler, diffusion: GaussianDiffusion = SHORT, denoise=any_denoiser, continuous=True, seed=0, **kw):
    """A sample of a batch of two, and all of its states."""
    draw, states = ImageNoise([seed, seed + 1], (3, 4, 5)), []
    steps = sampler.steps_of(diffusion, continuous)
    result = sample(
        denoise, sampler, steps, draw(), draw, continuous, watch=lambda _, x: states.append(x.clone()), **kw
    )
    return result, states


def test_schedules_with_closed_forms():
    steps = np.arange(1, 31)
    np.testing.assert_allclose(GaussianDiffusion('const', 30, 0, 0.1).alphas_cumprod, 0.9**steps, rtol=1e-12)
    np.testing.assert_allclose(GaussianDiffusion('jsd', 30, 0, 0).alphas_cumprod, (30 - steps) / 30, atol=1e-12)
    angles = (np.arange(31) / 30 + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(angles) ** 2 / np.cos(angles[0]) ** 2
    np.testing.assert_allclose(GaussianDiffusion('cosine', 30, 0, 0).alphas_cumprod[:-1], expected[1:-1], rtol=1e-9)


def test_products_are_double_precision():
    assert 1 - SR3.alphas_cumprod[0] == pytest.approx(1e-6, rel=1e-9)
    assert SR3.alphas_cumprod[-1] == pytest.approx(4.386e-5, rel=1e-3) and SR3.levels[2000] == pytest.approx(
        0.0066227, rel=1e-5
    )
    assert DDPM.buffers()['sqrt_recip_alphas_cumprod'][-1] == pytest.approx(24777.6, rel=1e-5)
    assert SR3.levels[0] == 1 and SR3.levels[1] == np.sqrt(SR3.alphas_cumprod[0]) and len(SR3.levels) == 2001


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_schedule_is_recognised_by_its_stored_betas(schedule):
    diffusion = GaussianDiffusion(schedule, 40, 1e-4, 0.03)
    found = recognised_schedule(diffusion.buffers()['betas'].double().numpy())
    assert found['schedule'] == schedule and found['n_timestep'] == 40
    assert GaussianDiffusion(**found).difference(diffusion.buffers()) == ''
    if schedule in ('linear', 'quad', 'warmup10', 'warmup50'):
        assert (found['linear_start'], found['linear_end']) == (1e-4, 0.03)


def test_no_name_is_invented_for_other_betas():
    assert recognised_schedule(np.linspace(1e-4, 0.02, 40) + 1e-4 * np.sin(np.arange(40))) is None


def test_a_difference_names_the_buffer_and_the_schedule_of_the_file():
    stored = DDPM.buffers()
    assert DDPM.difference({**stored, 'denoise_fn.x': torch.zeros(2)}) == '' and SR3.difference({}) == ''
    text = SR3.difference(stored)
    assert text.startswith('betas[0] is 0.0001, of the configured schedule 1e-06; the file was trained with')
    assert 'schedule: linear, n_timestep: 2000, linear_start: 0.0001, linear_end: 0.02' in text
    assert 'betas has 2000 steps, the configured schedule 50' in SHORT.difference(stored)
    damaged = {**SR3.buffers(), 'posterior_mean_coef1': SR3.buffers()['posterior_mean_coef1'] * 1.01}
    assert SR3.difference(damaged).startswith('posterior_mean_coef1[0]')


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'schedule': 'line'}, "'line' is not a known noise schedule"),
        ({'linear_start': 0.0}, 'betas are above 0'),
        ({'linear_end': 1.5}, 'betas are above 0 and at most 1, got 0.0001 to 1.5'),
    ],
)
def test_impossible_schedules_are_refused(options, text):
    with pytest.raises(OptionError, match=text):
        GaussianDiffusion(**{'schedule': 'linear', 'n_timestep': 9, 'linear_start': 1e-4, 'linear_end': 0.1, **options})


def test_levels_and_steps_mix_alike():
    image, noise = torch.randn(2, 4, 3, 6, 5, generator=generator())
    step = torch.tensor([0, 7, 31, 49])
    level = torch.from_numpy(SHORT.levels[1:][step]).float()
    by_level, by_step = SHORT.add_noise(image, noise, level), SHORT.add_noise(image, noise, step)
    torch.testing.assert_close(by_level, by_step, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(by_step[1], level[1] * image[1] + (1 - level[1] ** 2) ** 0.5 * noise[1])
    assert torch.equal(SHORT.add_noise(image, noise, torch.ones(4)), image)


def test_shared_levels_lie_between_two_neighbouring_steps():
    for seed in range(20):
        levels = SR3.random_levels(64, True, generator=generator(seed)).double().numpy()
        upper = SR3.levels[:-1][np.searchsorted(-SR3.levels, -levels.max(), side='right') - 1]
        lower = SR3.levels[np.searchsorted(-SR3.levels, -levels.max(), side='right')]
        assert levels.min() >= lower - 1e-6 and levels.max() <= upper + 1e-6 and len(set(levels)) > 1
    assert torch.equal(SR3.random_levels(8, generator=generator(3)), SR3.random_levels(8, generator=generator(3)))


def test_levels_of_their_own_cover_the_chain():
    levels = SR3.random_levels(4000, False, generator=generator())
    assert levels.min() < 0.01 and levels.max() > 0.999
    steps = np.searchsorted(-SR3.levels, -levels.double().numpy())
    assert np.histogram(steps, 4, (0, 2000))[0].min() > 900, 'each step alike'
    counts = torch.bincount(SHORT.random_steps(5000, generator()), minlength=50)
    assert len(counts) == 50 and counts.min() > 50


def test_the_paper_draws_the_square_uniformly():
    step, part = torch.tensor([2000, 1, 700]), torch.tensor([0.25, 0.5, 1.0])
    level = SR3.level_between(step, part, 'alpha_bar').double().numpy()
    ends = SR3.levels**2
    expected = np.sqrt(ends[step - 1] + (ends[step] - ends[step - 1]) * part.numpy())
    np.testing.assert_allclose(level, expected, rtol=1e-6)
    assert level[0] != float(SR3.level_between(step, part)[0])


def test_spacings_of_the_specification():
    alphas, times = SHORT.alphas_cumprod, {}
    for spacing in ('trailing', 'linspace', 'leading', 'logsnr'):
        steps = spaced_steps(alphas, 8, spacing, continuous=False)
        times[spacing] = steps.times.tolist()
        np.testing.assert_array_equal(steps.alphas, alphas[steps.times])
    assert times['trailing'] == [49, 43, 37, 30, 24, 18, 11, 5]  # halves go to the even number
    assert times['linspace'] == [49, 42, 35, 28, 21, 14, 7, 0]
    assert times['leading'] == [42, 36, 30, 24, 18, 12, 6, 0]
    assert times['logsnr'][0] == 49 and times['logsnr'][-1] == 0
    for spacing in ('trailing', 'linspace', 'leading'):
        assert spaced_steps(alphas, 50, spacing, continuous=True).times.tolist() == list(range(49, -1, -1))
    for spacing in ('trailing', 'linspace', 'logsnr'):
        assert spaced_steps(alphas, 1, spacing, continuous=True).alphas.tolist() == [alphas[-1]]


def test_levels_of_equal_log_snr_lie_between_the_steps_or_at_the_nearest_ones():
    def half_log_snr(a):
        return 0.5 * np.log(a / (1 - a))

    steps = spaced_steps(SR3.alphas_cumprod, 20, 'logsnr', continuous=True)
    assert steps.times is None and steps.alphas[[0, -1]].tolist() == SR3.alphas_cumprod[[-1, 0]].tolist()
    np.testing.assert_allclose(np.diff(half_log_snr(steps.alphas), 2), 0, atol=1e-8)
    near = spaced_steps(SR3.alphas_cumprod, 20, 'logsnr', continuous=False)
    gaps = np.abs(half_log_snr(SR3.alphas_cumprod)[:, None] - half_log_snr(steps.alphas)).argmin(0)
    assert near.times.tolist() == list(dict.fromkeys(gaps.tolist()))
    few = spaced_steps(SHORT.alphas_cumprod, 45, 'logsnr', continuous=False).times
    assert len(few) < 45 and len(set(few)) == len(few) and (np.diff(few) < 0).all()


def test_conditions_are_those_of_the_state():
    steps = Sampler('ddim', 5).steps_of(DDPM, False)
    assert steps.conditions(False).tolist() == [1999, 1599, 1199, 799, 399]
    level = steps.conditions(True)
    assert level.dtype == torch.float32
    np.testing.assert_allclose(level, DDPM.levels[1:][steps.times].astype(np.float32), rtol=0)


def test_the_ancestral_table_is_the_published_posterior():
    for diffusion in (SR3, DDPM, SHORT):
        table, buffers = ancestral_table(diffusion.alphas_cumprod[::-1])[::-1], diffusion.buffers()
        np.testing.assert_allclose(table[:, 1], buffers['posterior_mean_coef1'], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(table[:, 0], buffers['posterior_mean_coef2'], rtol=1e-6, atol=1e-9)
        spread = np.exp(0.5 * buffers['posterior_log_variance_clipped'].double().numpy())
        np.testing.assert_allclose(table[1:, 3], spread[1:], rtol=1e-6)
        assert table[0].tolist() == [0, 1, 0, 0], 'the last step gives the image itself'


@pytest.mark.parametrize('continuous', [True, False])
@pytest.mark.parametrize('steps', [None, 7])
def test_ddim_with_eta_one_is_ancestral_sampling(steps, continuous):
    ancestral, states = run(Sampler('ancestral', steps), continuous=continuous)
    ddim, others = run(Sampler('ddim', steps, eta=1.0), continuous=continuous)
    for ours, theirs in zip(states, others, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(ancestral, ddim, atol=2e-6, rtol=0)
    assert len(states) == (steps or 50)


def test_fewer_ancestral_steps_are_all_steps_of_the_shorter_chain():
    alphas = Sampler(steps=7).steps_of(SHORT, True).alphas
    betas = 1 - alphas / np.append(alphas[1:], 1)
    chain, signal, before = betas[::-1], alphas[::-1], np.append(1, alphas[::-1][:-1])
    np.testing.assert_allclose(np.cumprod(1 - chain), signal, rtol=1e-12)
    np.testing.assert_allclose(
        ancestral_table(alphas)[::-1, 3] ** 2, chain * (1 - before) / (1 - signal), rtol=1e-9, atol=1e-15
    )


def test_first_order_steps_of_dpm_solver_are_ddim():
    alphas = Sampler(steps=9, spacing='logsnr').steps_of(SR3, True).alphas
    np.testing.assert_allclose(dpmpp_2m_table(alphas)[[0, -1]], ddim_table(alphas, 0)[[0, -1]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dpmpp_2m_table(alphas[:1]), [[0, 1, 0, 0]])
    one, _ = run(Sampler('dpmpp_2m', 1))
    torch.testing.assert_close(one, run(Sampler('ddim', 1))[0], rtol=0, atol=0)
    assert one.abs().max() <= 1


def exact(diffusion: GaussianDiffusion, mean: float, spread: float):
    """The noise in x where images are normal with this mean and spread, told the level."""

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        level = level.double().view(-1, 1, 1, 1)
        variance = level**2 * spread**2 + 1 - level**2
        return ((1 - level**2).sqrt() * (x - level * mean) / variance).to(x.dtype)

    return denoise


def test_deterministic_samplers_approach_the_flow_of_normal_data():
    """Its solution is known: the same quantile of the data's distribution."""
    mean, spread, chain = 0.3, 0.2, GaussianDiffusion('linear', 1000, 1e-6, 2e-2)
    start = ImageNoise([0, 1], (3, 4, 5))().double()
    a = chain.alphas_cumprod[-1]
    wanted = mean + spread * (start - np.sqrt(a) * mean) / np.sqrt(a * spread**2 + 1 - a)
    errors = {}
    for kind, count in (('ddim', 25), ('ddim', 400), ('dpmpp_2m', 25), ('dpmpp_2m', 100)):
        sampler = Sampler(kind, count, spacing='logsnr')
        steps = sampler.steps_of(chain, True)
        result = sample(exact(chain, mean, spread), sampler, steps, start, lambda: None, True, clip=False)
        errors[kind, count] = float((result - wanted).abs().max())
    assert errors['ddim', 400] < 0.15 * errors['ddim', 25], 'first order'
    assert errors['dpmpp_2m', 100] < 0.15 * errors['dpmpp_2m', 25], 'second order'
    assert errors['dpmpp_2m', 25] < 0.2 * errors['ddim', 25] and errors['dpmpp_2m', 100] < 1e-3


def test_ancestral_sampling_gives_the_distribution_of_normal_data():
    mean, spread, chain = -0.2, 0.25, GaussianDiffusion('linear', 200, 1e-5, 0.08)
    draw = ImageNoise(range(4), (1, 48, 48))
    sampler = Sampler()
    steps = sampler.steps_of(chain, True)
    images = sample(exact(chain, mean, spread), sampler, steps, draw(), draw, True, clip=False)
    assert abs(images.mean() - mean) < 0.02 and abs(images.std() - spread) < 0.02


def test_noise_is_drawn_only_where_it_is_added():
    for sampler, wanted in (
        (Sampler(), 49),
        (Sampler('ddim', 8, 0.5), 7),
        (Sampler('ddim', 8), 0),
        (Sampler('dpmpp_2m', 8), 0),
    ):
        drawn = []
        start = torch.randn(1, 3, 4, 4, generator=generator())

        def draw(drawn=drawn, start=start) -> Tensor:
            drawn.append(1)
            return torch.zeros_like(start)

        sample(any_denoiser, sampler, sampler.steps_of(SHORT, True), start, draw, True)
        assert len(drawn) == wanted


@pytest.mark.parametrize('kind', ['ancestral', 'ddim', 'dpmpp_2m'])
def test_images_end_inside_the_range_and_do_not_know_their_batch(kind):
    sampler = Sampler(kind, 6, spacing='linspace')
    both, _ = run(sampler)
    assert both.abs().max() <= 1 and both.shape == (2, 3, 4, 5)
    steps = sampler.steps_of(SHORT, True)
    for seed in (1, 0):
        draw = ImageNoise([seed], (3, 4, 5))
        alone = sample(any_denoiser, sampler, steps, draw(), draw, True)
        assert torch.equal(alone[0], both[seed])


def test_noise_belongs_to_an_image():
    first, again = ImageNoise([5, 6, 7], (3, 2, 2)), ImageNoise([7, 5], (3, 2, 2))
    for _ in range(3):
        one, other = first(), again()
        assert torch.equal(one[0], other[1]) and torch.equal(one[2], other[0])
        assert not torch.equal(one[0], one[1])


def test_snapshots_are_the_published_ones():
    published = [1809, 1608, 1407, 1206, 1005, 804, 603, 402, 201, 0]
    assert [1999 - number for number in snapshot_steps(2000)] == published
    assert [19 - number for number in snapshot_steps(20)] == [18, 15, 12, 9, 6, 3, 0]
    assert snapshot_steps(1) == [0]


def test_samplers_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="eta belongs to the sampler 'ddim'"):
        Sampler('dpmpp_2m', eta=0.5)
    with pytest.raises(OptionError, match='takes 1 to 50 steps, got 51'):
        Sampler('ddim', 51).steps_of(SHORT, True)
    with pytest.raises(OptionError, match='leaves nothing of the image'):
        Sampler().steps_of(GaussianDiffusion('jsd', 20, 1e-4, 0.02), True)
    with pytest.raises(OptionError, match='leaves nothing of the image'):
        Sampler().steps_of(GaussianDiffusion('linear', 20000, 1e-6, 0.02), True)


def scheduler_of(kind: str, **options):
    """A scheduler of diffusers on SHORT, whose products it makes in float32, with ours put in their place."""
    diffusers = pytest.importorskip('diffusers', reason='an independent implementation, if it happens to be installed')
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=50,
        trained_betas=SHORT.betas.tolist(),
        prediction_type='epsilon',
        timestep_spacing='trailing',
        **options,
    )
    scheduler.alphas_cumprod = torch.from_numpy(SHORT.alphas_cumprod)
    return scheduler


@pytest.mark.parametrize('eta', [0.0, 0.5])
def test_ddim_equals_diffusers_where_its_steps_are_ours(eta):
    """The number of steps divides that of the chain: otherwise it goes to another step than the next one."""
    scheduler = scheduler_of('DDIMScheduler', clip_sample=True, clip_sample_range=1.0, set_alpha_to_one=True)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(10)
    draw = ImageNoise([0, 1], (3, 4, 5))
    state = draw()
    for step in scheduler.timesteps:
        level = SHORT.levels[1:][step].astype(np.float32)
        noise = any_denoiser(state, torch.full((2,), level))
        fresh = draw() if eta and step != scheduler.timesteps[-1] else torch.zeros_like(state)
        options = {'eta': eta, 'use_clipped_model_output': True, 'variance_noise': fresh if eta else None}
        state = scheduler.step(noise, step, state, **options).prev_sample.float()
    torch.testing.assert_close(run(Sampler('ddim', 10, eta))[0], state, atol=5e-6, rtol=0)


@pytest.mark.parametrize('count', [8, 10])
def test_dpm_solver_equals_diffusers(count):
    """It does not clamp: it is handed the noise that remains beside the clamped image."""
    options = {'algorithm_type': 'dpmsolver++', 'solver_order': 2, 'solver_type': 'midpoint'}
    scheduler = scheduler_of('DPMSolverMultistepScheduler', final_sigmas_type='zero', **options)
    scheduler.set_timesteps(count)
    state = ImageNoise([0, 1], (3, 4, 5))()
    assert scheduler.timesteps.tolist() == Sampler('dpmpp_2m', count).steps_of(SHORT, True).times.tolist()
    for step in scheduler.timesteps:
        a = SHORT.alphas_cumprod[step]
        noise = any_denoiser(state, torch.full((2,), float(np.float32(np.sqrt(a)))))
        seen = ((state - (1 - a) ** 0.5 * noise) / a**0.5).clamp(-1, 1)
        state = scheduler.step((state - a**0.5 * seen) / (1 - a) ** 0.5, step, state).prev_sample
    torch.testing.assert_close(run(Sampler('dpmpp_2m', count))[0], state, atol=1e-5, rtol=0)
