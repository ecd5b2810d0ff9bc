"""Cases of `s3diff` about the networks: the estimator, modulated layers, the whole network, its gradients, layouts."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from basicsr.archs.blocks.lora import LoRALayer, Projections, fold
from basicsr.archs.blocks.s3diff_file import flattened
from basicsr.archs.degradation_estimator_arch import DEResNet
from basicsr.archs.lpips_arch import LPIPS
from basicsr.archs.s3diff_arch import S3Diff, clean_latent, cumulative_alphas, exact_linear, fourier_features
from basicsr.utils.checkpoint import load_network
from basicsr.utils.optional import optional
from reference.case import Case
from reference.checking import Unsupported, Within, checks, tensors
from reference.s3diff_inference_cases import mapped
from reference.s3diff_training_cases import filled_lpips


@checks('s3diff', 'DEResNet')
@torch.no_grad()
def estimator(case: Case) -> Iterator[tuple]:
    net = DEResNet(**case.args)
    yield from layout(net.state_dict(), case.spec['layout'])
    if 'parameters' in case.spec:
        yield 'parameters', sum(p.numel() for p in net.parameters()), case.spec['parameters']
    case.fill(net)
    x = mapped(case, 'x')
    yield 'score', net(x)
    yield 'pooled', net.features(x)


# ---- parts of the network


@checks('s3diff', 'degradation/block embedding')
@torch.no_grad()
def embedding(case: Case) -> Iterator[tuple]:
    net = tiny(case.args)
    score, frequencies = tensors(case, 'deg_score', 'W')
    own = {name: value for name, value in net.state_dict().items() if not name.startswith(('unet.', 'vae.'))}
    yield from layout({name: value for name, value in own.items() if name != 'W'}, case.spec['layout'])
    net.load_state_dict(case.weights | {'W': frequencies}, strict=False)
    features = fourier_features(score, net.W)
    yield 'fourier', features
    for part, matrices in net.modulation(score)._asdict().items():
        yield f'{part}_de', exact_linear(net.get_submodule(f'{part}_de_mlp.0'), features).relu()
        yield f'{part}_embeds', matrices.flatten(2)
    yield from rows(net, case.spec.get('block_ids', {}))


@checks('s3diff', 'modulated LoRA layer')
@torch.no_grad()
def modulated_layer(case: Case) -> Iterator[tuple]:
    for number, spec in enumerate(case.spec['layers']):
        kind = {'linear': nn.Linear, 'conv': nn.Conv2d}[spec['kind']]
        projections = Projections()
        layer = LoRALayer(kind(**spec['layer']), spec['rank'], spec['adapter'], 0, projections, 0)
        prefix = next(iter(spec['layout'])).split('.base_layer.')[0]
        state = {f'{prefix}.{name}': value for name, value in layer.state_dict().items()}
        yield from layout(state, spec['layout'], f' of layer {number}')
        yield f'scaling of layer {number}', layer.scaling, spec['scaling']
        part = Case(case.spec | {'layout': spec['layout']}, case.arrays)
        layer.load_state_dict({name.removeprefix(f'{prefix}.'): value for name, value in part.weights.items()})
        x, matrices = tensors(case, spec['x'], spec['mod'])
        with projections.using(fold([layer], matrices[:, None])):
            yield spec['y'], layer(x)
        yield spec['base'], layer.base_layer(x)


@checks('s3diff', 'one-step scheduler')
def scheduler(case: Case) -> Iterator[tuple]:
    args = case.args
    asked = {
        'beta_schedule': 'scaled_linear',
        'prediction_type': 'epsilon',
        'clip_sample': False,
        'trained_betas': None,
    }
    for name, value in asked.items():
        if args.get(name, value) != value:
            raise Unsupported(f'{name} is always {value}, not {args[name]}')
    steps = args['num_train_timesteps']
    abar = cumulative_alphas(args['beta_start'], args['beta_end'], steps)
    latent, eps = tensors(case, 'latent', 'eps')
    yield 'abar', abar[[0, 1, steps // 2 - 1, steps - 2, steps - 1]]
    yield 'x0', clean_latent(latent, eps, abar[-1].item())


# ---- the whole network


@checks('s3diff', 'S3Diff')
@torch.no_grad()
def one_step(case: Case) -> Iterator[tuple]:
    """As restoring does it, both prompts in one batch; and, where there is one prompt, as training does."""
    net = filled_network(case)
    yield from layout(net.state_dict(), case.spec['layout'])
    x, (score, noise, positive) = mapped(case, 'x'), tensors(case, 'deg_score', 'noise', 'pos')
    with net.modulated(net.modulation(score)):
        moments = net.encode(x)
        latent = net.latent(moments, noise)
        eps = guided(case, net, latent, positive)
        clean = net.clean(latent, eps)
        decoded = net.decode(clean)
    whole = decoded.clamp(-1, 1) if case.args.get('guidance_scale') else net(x, score, positive[None], noise)
    named = {'moments': moments, 'latent': latent, 'model_pred': eps, 'x0': clean, 'decoded': decoded, 'y': whole}
    tolerance = case.spec['tolerance']
    for name, value in named.items():
        yield name, Within(value, tolerance.get('per_output', {}).get(name, tolerance['atol']), tolerance['rtol'])


def guided(case: Case, net: S3Diff, latent: Tensor, positive: Tensor) -> Tensor:
    scale, n = case.args.get('guidance_scale'), len(latent)
    if scale is None:
        return net.denoise(latent, positive[None])
    (negative,) = tensors(case, 'neg')
    prompts = torch.stack([negative] * n + [positive] * n)
    away, towards = net.denoise(torch.cat([latent, latent]), prompts).chunk(2)
    return away + scale * (towards - away)


@checks('s3diff', 'S3Diff (training forward)')
def gradients(case: Case) -> Iterator[tuple]:
    net, args = filled_network(case).train(), case.args
    yield from layout(net.state_dict(), case.spec['layout'])
    x, gt = mapped(case, 'x'), mapped(case, 'gt')
    score, noise, positive, negative, negative_samples = tensors(case, 'deg_score', 'noise', 'pos', 'neg', 'negs')
    chosen = negative_samples.bool()[:, None, None]
    sr = net(x, score, torch.where(chosen, negative, positive), noise)
    target = torch.where(chosen[..., None], x, gt)
    lpips = filled_lpips(lpips_layout(case))
    pixel = args['lambda_l2'] * (sr - target).square().mean()
    perceptual = args['lambda_lpips'] * lpips((sr + 1) / 2, (target + 1) / 2).mean()
    (pixel + perceptual).backward()
    tolerance, trained = case.spec['tolerance'], {k: p for k, p in net.named_parameters() if p.requires_grad}
    yield 'loss_l2', Within(pixel, tolerance['atol'])
    yield 'loss_lpips', Within(perceptual, tolerance['atol'])
    norms = {name: parameter.grad.norm() for name, parameter in trained.items() if parameter.grad is not None}
    yield 'trained', sorted(trained), sorted(case.spec['grad_norms'])
    yield 'frozen tensors', len(net.state_dict()) - len(trained), case.spec['frozen_tensors']
    yield 'trained without gradient', sorted(trained.keys() - norms), case.spec['trainable_without_gradient']
    for name, norm in norms.items():
        yield f'norm of {name}', Within(norm, 1e-12, tolerance['rtol']), case.spec['grad_norms'][name]
    yield 'grad_norm', Within(torch.stack([*norms.values()]).norm(), 0, tolerance['rtol'])
    stored = {'W_unet_fuse': 'unet_fuse_mlp.weight', 'vae_block': 'vae_block_embeddings.weight'}
    for short, name in (stored | {'conv_in': 'unet.conv_in.weight'}).items():
        largest = abs(case.arrays[f'grad_{short}']).max()
        yield f'grad_{short}', Within(trained[name].grad, float(tolerance['of_max'] * largest))


def lpips_layout(case: Case) -> dict[str, list[int]]:
    """The entries of LPIPS on VGG16 by the names of its package, which this case leaves to another."""
    state = LPIPS('vgg', pretrained=False).distance.state_dict()
    return {name: [*value.shape] for name, value in state.items() if not name.startswith(('scaling_layer', 'lins.'))}


# ---- layouts


@checks('s3diff', 'UNet2DConditionModel')
def unet_layout(case: Case) -> Iterator[tuple]:
    return base_layout(case, 'unet')


@checks('s3diff', 'AutoencoderKL')
def vae_layout(case: Case) -> Iterator[tuple]:
    return base_layout(case, 'vae')


def base_layout(case: Case, part: str) -> Iterator[tuple]:
    """SD-Turbo's files: what is left of the network without the adapted layers, and that it takes such a file."""
    with torch.device('meta'):
        net = S3Diff(**{part: case.args})
        file = {name: torch.empty(shape) for name, shape in case.spec['layout'].items()}
    state = net.get_submodule(part).state_dict()
    base = {name.replace('.base_layer.', '.'): value for name, value in state.items() if '.lora_' not in name}
    yield from layout(base, case.spec['layout'])
    yield 'parameters', sum(value.numel() for value in base.values()), case.spec['parameters']
    net.load_base(part, file)


@checks('s3diff', 'CLIPTextModel', ('layout',))
def text_encoder_layout(case: Case) -> Iterator[tuple]:
    """The text encoder's file, whose names have a part in front that the class has lost in transformers 5."""
    transformers = optional('transformers', 's3diff')
    with torch.device('meta'):
        net = transformers.CLIPTextModel(transformers.CLIPTextConfig(**case.args))
    state = {f'text_model.{name.removeprefix("text_model.")}': value for name, value in net.state_dict().items()}
    yield 'layout', {name: [*value.shape] for name, value in state.items()}, case.spec['layout']
    yield 'parameters', sum(p.numel() for p in net.parameters()), case.spec['parameters']


@checks('s3diff', 'checkpoint file s3diff.pkl')
def file_layout(case: Case) -> Iterator[tuple]:
    """Our network as that file, and that file read into our network."""
    published = case.spec['layout']
    args = case.args
    with torch.device('meta'):
        net = S3Diff(None, None, args['lora_rank_unet'], args['lora_rank_vae'], args['block_embedding_dim'])
        state = net.state_dict()
        content = net.to_published({name: state[name] for name in state if name in net.own_names()})
        file = with_tensors(published)
    yield 'layout', with_shapes(content), published
    yield 'order', [*map(str, content)], [*published]
    yield 'order of unet', [*content['state_dict_unet']], [*published['state_dict_unet']]
    yield 'parameters', sum(value.numel() for value in flattened(content).values()), case.spec['parameters']
    yield 'left as they were', sorted(load_network(net, file, case.name)), sorted([])
    yield from rows(net, {f'{part}.{k}': row for part, ids in case.spec['block_ids'].items() for k, row in ids.items()})


def with_shapes(content: Mapping) -> dict:
    """Tensors as lists of their sizes, at any depth."""
    return {
        name: with_shapes(value) if isinstance(value, dict) else [*value.shape] if isinstance(value, Tensor) else value
        for name, value in content.items()
    }


def with_tensors(published: Mapping) -> dict:
    """The inverse; the file's lists that are no sizes are those of the target layers."""
    return {
        name: with_tensors(value)
        if isinstance(value, dict)
        else torch.empty(value)
        if isinstance(value, list) and not any(isinstance(entry, str) for entry in value)
        else value
        for name, value in published.items()
    }


# ---- what the cases share


def tiny(args: Mapping) -> S3Diff:
    """The network of a case. Where it says nothing of SD-Turbo, the smallest of its kind."""
    unet = {'block_out_channels': [32, 64], 'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D']}
    unet |= {'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'], 'layers_per_block': 1, 'cross_attention_dim': 32}
    unet |= {'attention_head_dim': [2, 4], 'use_linear_projection': True}
    vae = {'block_out_channels': [32, 32, 64, 64], 'layers_per_block': 2, 'scaling_factor': 0.18215}
    vae |= {'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4}
    return S3Diff(
        args.get('unet', unet),
        args.get('vae', vae),
        args['lora_rank_unet'],
        args['lora_rank_vae'],
        args.get('block_embedding_dim', 64),
    )


def filled_network(case: Case) -> S3Diff:
    return case.fill(tiny(case.args))


def layout(state: Mapping[str, Tensor], published: Mapping[str, list[int]], of: str = '') -> Iterator[tuple]:
    """Names and shapes in order."""
    ours = [[name, [*value.shape]] for name, value in state.items()]
    yield f'layout{of}', ours, [*map(list, published.items())]


def rows(net: S3Diff, published: Mapping[str, int]) -> Iterator[tuple]:
    """Which matrix each adapted layer takes."""
    ours = {name: module.row for name, module in net.named_modules() if isinstance(module, LoRALayer)}
    yield 'block_ids', ours, dict(published)
