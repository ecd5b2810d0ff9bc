"""Cases of `sr3` about diffusion: schedules, mixing with noise, sampling, losses and training steps, metrics."""

from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from basicsr.metrics.psnr_ssim import psnr, ssim
from basicsr.models.diffusion import GaussianDiffusion
from basicsr.models.diffusion_sampling import Sampler, Steps, sample, snapshot_steps
from basicsr.models.sr3_model import SR3Model
from basicsr.utils.grid import image_grid
from basicsr.utils.image import to_uint8
from basicsr.utils.registry import ARCH_REGISTRY
from reference.case import Case, filled
from reference.checking import Within, checks, tensors
from reference.training import options, prepared

NETWORKS = {'sr3': 'SR3UNet', 'ddpm': 'DDPMUNet'}


@checks('sr3', 'noise schedule buffers')
def schedules(case: Case) -> Iterator[tuple]:
    for name, settings in case.args.items():
        diffusion = GaussianDiffusion(**settings)
        for buffer, table in diffusion.buffers().items():
            yield f'{name}.{buffer}', table
        yield f'{name}.sqrt_alphas_cumprod_prev', diffusion.levels


@checks('sr3', 'q_sample')
def mixing(case: Case) -> Iterator[tuple]:
    diffusion = GaussianDiffusion(**case.args['schedule'])
    image, noise = tensors(case, 'x_start', 'noise')
    if 'level' in case.inputs:
        yield 'out', diffusion.add_noise(image, noise, torch.as_tensor(case.inputs['level']))
        return
    step = torch.as_tensor(case.inputs['t'])
    yield 'out', diffusion.add_noise(image, noise, step)
    tables = {name: table[step].view(-1, 1, 1, 1) for name, table in diffusion.buffers().items()}
    yield 'mean', tables['sqrt_alphas_cumprod'] * image
    yield 'variance', 1 - tables['alphas_cumprod']
    yield 'log_variance', tables['log_one_minus_alphas_cumprod']


def network(case: Case) -> nn.Module:
    """The case's network in evaluation mode, read from its published layout."""
    net = ARCH_REGISTRY.build({'type': NETWORKS[case.args['which_model_G']], **case.args['unet']})
    net.load_state_dict(net.from_published(published_state(case)), strict=True)
    return net.eval()


def published_state(case: Case) -> dict[str, Tensor]:
    """The content of a published file: the schedule, what else is computed, and filled weights."""
    tables = GaussianDiffusion(**case.args['schedule']).buffers()
    size = case.args['unet']['inner_channel']
    tables['denoise_fn.time_mlp.0.inv_freq'] = torch.exp(torch.arange(0, size, 2) * (-np.log(10000) / size)).float()
    computed = case.spec['computed']
    return {k: tables[k] if k in computed else filled(k, shape) for k, shape in case.spec['layout'].items()}


def denoiser(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    net = network(case)
    condition = signed(case, 'SR') if 'SR' in case.inputs else None

    @torch.no_grad()
    def denoise(x: Tensor, level: Tensor) -> Tensor:
        return net(x if condition is None else torch.cat([condition, x], 1), level)

    return denoise


def signed(case: Case, name: str) -> Tensor:
    """An input image, which is stored in [0, 1], as the networks see it."""
    return 2 * case.inputs[name] - 1


@checks('sr3', 'GaussianDiffusion', ('p_sample',))
def single_steps(case: Case) -> Iterator[tuple]:
    """A step at t is the first one of a chain that begins there."""
    diffusion, denoise = GaussianDiffusion(**case.args['schedule']), denoiser(case)
    continuous, tables = case.args['which_model_G'] == 'sr3', diffusion.buffers()
    for t in (19, 7, 0):
        times = np.arange(t, -1, -1)
        steps = Steps(diffusion.alphas_cumprod[times], times)
        start, noise = tensors(case, f't{t}.x_t', f't{t}.noise')

        def after_a_step(draw: Tensor, clip: bool, start: Tensor = start, steps: Steps = steps) -> Tensor:
            states: list[Tensor] = []
            sample(denoise, Sampler(), steps, start, lambda: draw, continuous, clip, lambda _, x: states.append(x + 0))
            return states[0]

        yield f't{t}.eps', denoise(start, steps.conditions(continuous)[:1].expand(len(start)))
        yield f't{t}.mean', after_a_step(torch.zeros_like(start), True)
        yield f't{t}.mean_noclip', after_a_step(torch.zeros_like(start), False)
        yield f't{t}.log_variance', tables['posterior_log_variance_clipped'][t]
        yield f't{t}.out', after_a_step(noise, True)
        yield f't{t}.noise_level', steps.conditions(True)[0]


def sampled(case: Case, sampler: Sampler) -> tuple[list[Tensor], Steps]:
    """All states from the stored start and draws, beginning with the start; and the steps."""
    diffusion, continuous = GaussianDiffusion(**case.args['schedule']), case.args['which_model_G'] == 'sr3'
    start, draws = torch.as_tensor(case.inputs['init']), iter(case.inputs.get('noise', ()))
    steps, states = sampler.steps_of(diffusion, continuous), [start]

    def draw() -> Tensor:
        return torch.as_tensor(next(draws))

    sample(denoiser(case), sampler, steps, start, draw, continuous, True, lambda _, x: states.append(x + 0))
    return states, steps


@checks('sr3', 'GaussianDiffusion', ('sampling',))
def published_sampling(case: Case) -> Iterator[tuple]:
    states, steps = sampled(case, Sampler())
    count, conditional = len(steps.alphas), case.args['diffusion']['conditional']
    shown = snapshot_steps(count)
    yield 'frames_at', [count - 1 - number for number in shown], case.spec['frames_at']
    yield 'final', states[-1]
    process = torch.cat([signed(case, 'SR') if conditional else states[0], *(states[k + 1] for k in shown)])
    returns_the_batch = case.args['which_model_G'] == 'ddpm' and not conditional
    yield 'continous_true', states[-1] if returns_the_batch else process
    yield 'continous_false', states[-1] if returns_the_batch else process[-1]


@checks('sr3', 'GaussianDiffusion', ('ddim', 'dpmpp'))
def fast_sampling(case: Case) -> Iterator[tuple]:
    args = case.args
    states, steps = sampled(case, Sampler(args['sampler'], args['steps'], args['eta'], args['spacing']))
    if steps.times is not None:
        yield 'timesteps', steps.times
    yield 'levels', steps.conditions(True)
    yield 'first', states[1]
    yield 'mid', states[len(steps.alphas) // 2 + 1]
    yield 'out', states[-1]


def sr3_model(case: Case, optimizer: dict) -> SR3Model:
    """Our model with the case's network, ready to train."""
    args = case.args
    losses = {'l1': 'L1Loss', 'l2': 'MSELoss'}
    model = prepared(
        options(
            {'network_g': {'type': NETWORKS[args['which_model_G']], **args['unet']}},
            {'optim_g': optimizer, 'noise_opt': {'type': losses[args['loss_type']]}},
            scale=1,
            model_type='SR3Model',
            model={'schedule': args['schedule']},
        )
    )
    net = model.bare('g')
    net.load_state_dict(net.from_published(published_state(case)), strict=True)
    return model


@checks('sr3', 'GaussianDiffusion', ('loss',))
def loss_and_gradients(case: Case) -> Iterator[tuple]:
    """As the optimizer is handed them; the level follows from the stored fraction."""
    model, gradients = sr3_model(case, {'type': 'SGD', 'lr': 1e-3}), {}
    net = model.bare('g')

    def keep(*_) -> None:
        gradients.update({name: p.grad.clone() for name, p in net.named_parameters()})

    model.optimizers['g'].optimizer.register_step_pre_hook(keep)
    if 'u' in case.inputs:
        fractions = torch.as_tensor(case.inputs['u'])
        level = model.diffusion.level_between(torch.full(fractions.shape, case.spec['t']), fractions)
        yield 'level', level, torch.as_tensor(case.inputs['level'])
    else:
        level = torch.as_tensor(case.inputs['t'])
    loss = step_with(model, 1, case, '', level)
    yield 'loss', loss
    yield 'loss_sum', loss * case.inputs['HR'].numel()
    for name, gradient in gradients.items():
        yield f'grad.denoise_fn.{name}', gradient
    yield 'grad_norm', torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def step_with(model: SR3Model, iteration: int, case: Case, ending: str, level: Tensor) -> Tensor:
    """One iteration of our model with the stored images, noise and levels."""
    batch = {'gt': case.inputs[f'HR{ending}']}
    if f'SR{ending}' in case.inputs:
        batch['lq_up'] = case.inputs[f'SR{ending}']
    noise = torch.as_tensor(case.inputs[f'noise{ending}'])
    model.before_step(iteration)
    with (
        mock.patch.object(model.diffusion, 'random_levels', lambda *_: level),
        mock.patch.object(model.diffusion, 'random_steps', lambda *_: level),
        mock.patch('torch.randn_like', lambda _: noise),
    ):
        loss = model.training_step(batch)['l_noise']
    model.after_step(iteration)
    return loss.detach()


@checks('sr3', 'GaussianDiffusion', ('train',))
def training_steps(case: Case) -> Iterator[tuple]:
    """Single weights whose gradient is near zero may differ; their mean must agree closely."""
    model, losses = sr3_model(case, {'type': 'Adam', 'lr': case.args['lr']}), []
    for number in range(3):
        level = case.inputs.get(f'level{number}', case.inputs.get(f't{number}'))
        losses.append(step_with(model, number + 1, case, str(number), torch.as_tensor(level)))
    allowed = case.spec['tolerance']
    yield 'losses', Within(torch.stack(losses), **allowed['losses'])
    for name, value in model.bare('g').state_dict().items():
        stored = f'param.denoise_fn.{name}'
        if stored in case.arrays:
            yield stored, Within(value, allowed['param']['atol'])
            mean = np.abs(value.numpy() - case.arrays[stored]).mean()
            yield f'mean of {stored}', Within(mean, allowed['param']['mean_atol']), 0.0


@checks('sr3', 'calculate_psnr')
def metrics(case: Case) -> Iterator[tuple]:
    a, b = (image.permute(2, 0, 1)[None].double() / 255 for image in tensors(case, 'a', 'b'))
    allowed = case.spec['tolerance']['metrics']
    for name, value in (
        ('psnr_rgb', psnr(a, b)),
        ('ssim_rgb', ssim(a, b)),
        ('psnr_gray2d', psnr(a[:, :1], b[:, :1])),
        ('ssim_gray2d', ssim(a[:, :1], b[:, :1])),
        ('ssim_gray3d', ssim(a[:, 1:2], b[:, 1:2])),
        ('psnr_same', psnr(a, a)),
        ('ssim_same', ssim(a, a)),
    ):
        yield name, Within(value, **allowed)
    for name in ('t3', 't4', 't1', 'g2'):
        image = (next(tensors(case, name)).clamp(-1, 1) + 1) / 2
        pixels = to_uint8(image_grid(image) if image.ndim == 4 else image)
        yield f'img_{name}', Within(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
