import copy
import pickle

import diffusers
import pytest
import torch
from s3diff_arch_fixture import EXACT, UNET, VAE, batch, randomised, small
from torch import Tensor, nn
from torch.testing import assert_close

from basicsr.archs.blocks.lora import LoRALayer
from basicsr.archs.blocks.s3diff_file import is_unet_target, is_vae_target, unet_row, vae_row
from basicsr.archs.s3diff_arch import S3Diff, cumulative_alphas, fourier_features
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

SCHEDULER = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'clip_sample': False}
MICRO = {  # for what takes long on every layer: a single level
    'unet': UNET
    | {
        'down_block_types': ['CrossAttnDownBlock2D'],
        'up_block_types': ['CrossAttnUpBlock2D'],
        'block_out_channels': [8],
        'attention_head_dim': 2,
        'mid_block_type': None,
    },
    'vae': VAE | {'mid_block_add_attention': False},
}


def agree(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, atol=1e-9, rtol=1e-9)


def learned(net: S3Diff, *given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What the network makes of a batch, and the gradients of a loss on it."""
    net.zero_grad()
    y = net(*given)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def alike(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    agree(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert_close(gradient, other[1][name], atol=1e-9, rtol=1e-6)


# ---- without additions: SD-Turbo as diffusers computes it


@pytest.fixture(scope='module')
def plain() -> tuple[nn.Module, nn.Module]:
    """diffusers' own networks of that size."""
    torch.manual_seed(3)
    return diffusers.UNet2DConditionModel(**UNET).to(EXACT).eval(), diffusers.AutoencoderKL(**VAE).to(EXACT).eval()


@torch.no_grad()
def test_with_the_weights_of_sd_turbo_and_fresh_additions_a_step_is_that_of_diffusers(plain):
    unet, vae = plain
    torch.manual_seed(0)
    net = S3Diff(UNET, VAE, 3, 2).to(EXACT)
    net.load_base('unet', unet.state_dict())
    net.load_base('vae', vae.state_dict())
    x, score, prompt, noise = batch()
    distribution = vae.encode(x).latent_dist
    z = (distribution.mean + distribution.std * noise) * vae.config.scaling_factor
    eps = unet(z, 999, encoder_hidden_states=prompt).sample
    scheduler = diffusers.DDPMScheduler(**SCHEDULER, timestep_spacing='trailing', steps_offset=1)
    x0 = scheduler.step(eps, 999, z).pred_original_sample
    expected = vae.decode(x0 / vae.config.scaling_factor).sample
    with net.modulated(net.modulation(score)):
        moments = net.encode(x)
        agree(moments, torch.cat([distribution.mean, distribution.logvar], 1))
        agree(net.latent(moments, noise), z)
        agree(net.latent(moments, None), distribution.mean * vae.config.scaling_factor)
        agree(net.denoise(z, prompt), eps)
    assert_close(net.clean(z, eps), x0, atol=1e-5, rtol=1e-5)  # the schedule is of float32
    agree(net.decode(x0), expected)
    assert_close(net(x, score, prompt, noise), expected.clamp(-1, 1), atol=1e-4, rtol=0)


def test_old_names_of_the_attention_of_the_autoencoder_are_understood(plain):
    _, vae = plain
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    state = {}
    for name, value in vae.state_dict().items():
        for new, before in old.items():
            name = name.replace(f'.attentions.0.{new}.', f'.attentions.0.{before}.')
        state[name] = value
    assert any('proj_attn' in name for name in state)
    net = small()
    net.load_base('vae', state)
    z = torch.linspace(-1, 1, 64, dtype=EXACT).view(1, 4, 4, 4)
    agree(net.decode(z), vae.decode(z / vae.config.scaling_factor).sample)


def test_a_base_of_another_kind_is_refused_in_one_line(plain):
    unet, _ = plain
    net, state = small(), unet.state_dict()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    name = 'mid_block.resnets.0.conv1.weight'
    for change, message in (
        ({name: None}, f'this is not the unet of this configuration: 1 missing: {name}'),
        ({'extra': torch.zeros(1)}, 'this is not the unet of this configuration: 1 unexpected: extra'),
        ({name: torch.zeros(2, 2)}, f'this is not the unet of this configuration: 1 of another shape: {name}'),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(ValueError, match=f'^{message}$'):
            net.load_base('unet', changed)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_weights_of_sd_turbo_stay_frozen_and_the_trained_part_of_it_is_a_copy(plain):
    unet, _ = plain
    net, state = small(), {name: value.clone() for name, value in unet.state_dict().items()}
    net.load_base('unet', state)
    with torch.no_grad():
        net.unet.conv_in.weight.zero_()
    assert state['conv_in.weight'].any()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == net.own_names() - {'W'}
    assert {'unet.conv_in.weight', 'unet.conv_in.bias', 'vae_fuse_mlp.bias'} < trained
    assert not any('base_layer' in name or 'norm' in name for name in trained)


def test_a_base_of_half_precision_becomes_what_the_network_is(plain):
    _, vae = plain
    net = small().float()
    net.load_base('vae', {name: value.half() for name, value in vae.state_dict().items()})
    assert {p.dtype for p in net.parameters()} == {torch.float32}


# ---- modulation


def test_matrices_follow_the_scores_and_the_blocks_by_the_formula():
    net = small(block_embedding_dim=7)
    score = batch(3)[1]
    state = net.state_dict()
    angles = torch.stack([score[:, j, None] * state['W'] * 2 * torch.pi for j in (0, 1)])
    features = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()], 1)
    agree(fourier_features(score, net.W), features)
    for part, matrices, rows, rank in (
        ('vae', net.modulation(score).vae, 6, 2),
        ('unet', net.modulation(score).unet, 10, 3),
    ):
        assert matrices.shape == (3, rows, rank, rank)
        of_image = (features @ state[f'{part}_de_mlp.0.weight'].T + state[f'{part}_de_mlp.0.bias']).relu()
        table = state[f'{part}_block_embeddings.weight']
        of_block = (table @ state[f'{part}_block_mlp.0.weight'].T + state[f'{part}_block_mlp.0.bias']).relu()
        for i in range(3):
            for k in range(rows):
                both = torch.cat([of_image[i], of_block[k]])
                row = state[f'{part}_fuse_mlp.weight'] @ both + state[f'{part}_fuse_mlp.bias']
                agree(matrices[i, k], row.reshape(rank, rank))


def test_matrices_are_of_float32_whatever_the_network_computes_in():
    net, score = small().float(), batch()[1].float()
    expected = net.modulation(score)
    with torch.autocast('cpu', torch.bfloat16):
        found = net.modulation(score)
    assert all(torch.equal(one, other) and one.dtype == torch.float32 for one, other in zip(found, expected))
    assert {m.dtype for m in net.to(torch.bfloat16).modulation(score)} == {torch.float32}


@pytest.mark.parametrize(
    ('name', 'row'),
    [
        ('down_blocks.0.resnets.0.conv1', 0),
        ('down_blocks.3.resnets.1.conv2', 3),
        ('mid_block.attentions.0.proj_in', 4),
        ('up_blocks.0.upsamplers.0.conv', 5),
        ('up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj', 8),
        ('conv_out', 9),
    ],
)
def test_the_unets_layers_have_the_row_of_their_block(name, row):
    assert is_unet_target(name) and unet_row(name) == row


@pytest.mark.parametrize(
    ('name', 'row'),
    [
        ('encoder.down_blocks.2.downsamplers.0.conv', 2),
        ('encoder.mid_block.attentions.0.to_out.0', 4),
        ('encoder.conv_in', 5),
        ('encoder.conv_out', 5),
    ],
)
def test_the_encoders_layers_have_the_row_of_their_block(name, row):
    assert is_vae_target(name) and vae_row(name) == row


def test_other_layers_are_not_adapted():
    unet = ('conv_in', 'time_embedding.linear_1', 'down_blocks.0.resnets.0.time_emb_proj', 'mid.xconv1', 'ff.net.1')
    vae = (
        'quant_conv',
        'decoder.conv_in',
        'decoder.mid_block.resnets.0.conv1',
        'encoder.down_blocks.0.resnets.0.norm1',
    )
    assert not any(map(is_unet_target, unet)) and not any(map(is_vae_target, vae))


# ---- the whole network


def test_forward_is_its_steps_and_images_do_not_see_one_another():
    net = small()
    x, score, prompt, noise = batch(3)
    together = net(x, score, prompt, noise)
    assert together.shape == x.shape and together.abs().max() <= 1
    for i in range(3):
        one = slice(i, i + 1)
        with net.modulated(net.modulation(score[one])):
            z = net.latent(net.encode(x[one]), noise[one])
            alone = net.decode(net.clean(z, net.denoise(z, prompt[one])))
        agree(alone.clamp(-1, 1), together[one])
    other = net(x, 1 - score, prompt, noise)
    assert (other - together).abs().max() > 1e-3


def test_prompts_and_tiles_in_one_batch_are_those_one_by_one():
    """Of two images: [0, 1] with one prompt, then [0, 1] with another; their matrices are repeated alike."""
    net = small()
    _, score, prompt, noise = batch(2)
    with torch.no_grad(), net.modulated(net.modulation(score)):
        one, other = prompt[:1], prompt[1:]
        both = net.denoise(torch.cat([noise, noise]), torch.cat([one, one, other, other]))
        agree(both, torch.cat([net.denoise(noise, one), net.denoise(noise, other)]))


def test_outside_of_the_context_only_the_decoder_works():
    net = small()
    x, _, prompt, noise = batch()
    assert net.decode(noise).shape == (2, 3, 16, 24)
    for part in (lambda: net.encode(x), lambda: net.denoise(noise, prompt)):
        with pytest.raises(RuntimeError, match='inside `modulated`'):
            part()


def test_a_fresh_network_is_finite_random_and_changes_little_with_the_score():
    torch.manual_seed(0)
    net = S3Diff(UNET, VAE)
    assert net.ranks == {'unet': 32, 'vae': 16}
    assert (net.downscale, net.size_multiple) == (2, 4)
    x, score, prompt, noise = (part.float() for part in batch())
    y = net(x, score, prompt, noise)
    assert y.isfinite().all() and y.std() > 0
    assert torch.equal(net(x, 1 - score, prompt, noise), y)  # B is 0
    torch.manual_seed(0)
    again = S3Diff(UNET, VAE).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())
    largest = net.unet_fuse_mlp.weight.abs().max()
    assert 0 < largest < 1e-4 and net.W.std() > 0.5


def test_everything_trained_is_reached_and_nothing_else():
    net = small()
    _, gradients = learned(net, *batch())
    assert gradients.keys() == net.own_names() - {'W'}
    assert all(gradient.any() for gradient in gradients.values())


def test_float32_is_kept_around_the_networks_under_autocast():
    net = small().float()
    given = [part.float() for part in batch()]
    with torch.autocast('cpu', torch.bfloat16):
        y = net(*given)
        with net.modulated(net.modulation(given[1])):
            assert net.encode(given[0]).dtype == net.denoise(given[3], given[2]).dtype == torch.float32
    assert y.dtype == torch.float32 and y.isfinite().all()


def test_a_network_of_half_precision_takes_and_gives_float32():
    net = small().float()
    for part in (net.unet, net.vae):
        part.to(torch.bfloat16)
    given = [part.float() for part in batch()]
    assert net(*given).dtype == torch.float32


def test_cumulative_alphas_are_those_of_diffusers():
    theirs = diffusers.DDPMScheduler(**SCHEDULER).alphas_cumprod
    assert torch.equal(cumulative_alphas(), theirs)
    assert small().abar == pytest.approx(0.00466009508818388, rel=1e-7)


# ---- how it trains, is copied and compiled


def test_gradient_checkpointing_changes_nothing():
    net, given = small(), batch()
    plain = learned(net, *given)
    net.gradient_checkpointing(True)
    alike(learned(net, *given), plain)
    assert all(m.gradient_checkpointing for m in (net.vae.encoder, net.vae.decoder, net.unet.down_blocks[0]))
    net.gradient_checkpointing(False)
    assert not any(getattr(m, 'gradient_checkpointing', False) for m in (*net.unet.modules(), *net.vae.modules()))


def test_gradient_checkpointing_computes_every_pass_with_its_own_matrices():
    """Two passes with other scores come before the backward pass."""
    net, results = small(), []
    x, score, prompt, noise = batch()
    for on in (False, True):
        net.gradient_checkpointing(on)
        net.zero_grad()
        total = net(x, score, prompt, noise).square().sum() + net(x, 1 - score, prompt, noise).sum()
        total.backward()
        results.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    for name, gradient in results[0].items():
        assert_close(gradient, results[1][name], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_the_same_and_share_nothing(copied):
    net, given = small(), batch()
    net.gradient_checkpointing(True)
    expected = learned(net, *given)  # a copy is made after a pass too
    other = copied(net)
    alike(learned(other, *given), expected)
    layers = [module for module in other.modules() if isinstance(module, LoRALayer)]
    assert {id(layer) for layer in layers} == {id(layer) for layer in (*other.vae_layers, *other.unet_layers)}
    assert {id(layer.projections) for layer in layers} == {id(other.projections)} != {id(net.projections)}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    agree(other(*given), expected[0])


def test_the_compiled_network_computes_the_same_also_with_gradient_checkpointing():
    net, given = small(**MICRO), batch(size=(8, 8))
    expected = learned(net, *given)
    net.gradient_checkpointing(True)
    net.compile(backend='eager', fullgraph=True)  # which graphs there are, not what a compiler makes of them
    alike(learned(net, *given), expected)
    torch.compiler.reset()


# ---- options


@pytest.mark.parametrize(
    ('options', 'key', 'message'),
    [
        ({'unet': UNET | {'layer_per_block': 2}}, ('unet', 'layer_per_block'), "did you mean 'layers_per_block'"),
        ({'vae': VAE | {'down_block_types': ['Down']}}, ('vae',), 'AutoencoderKL: '),
        ({'unet': UNET | {'block_out_channels': [8] * 5}}, ('unet', 'block_out_channels'), 'for 4 levels, got 5'),
    ],
)
def test_options_of_diffusers_that_do_not_fit_are_named(options, key, message):
    with pytest.raises(OptionError, match=message) as caught:
        S3Diff(**{'unet': UNET, 'vae': VAE} | options)
    assert caught.value.key == key and '\n' not in str(caught.value)


def test_what_a_config_json_says_of_itself_is_left_out():
    about = {'_class_name': 'UNet2DConditionModel', '_diffusers_version': '0.20.0'}
    net = ARCH_REGISTRY.build({'type': 'S3Diff', 'unet': UNET | about, 'vae': VAE})
    assert [*net.state_dict()] == [*S3Diff(UNET, VAE).state_dict()]


def test_other_ranks_are_fresh_matrices_that_begin_with_nothing():
    net = randomised(S3Diff(UNET, VAE))
    table, unet = net.vae_block_embeddings.weight.clone(), net.unet_fuse_mlp.weight
    net.set_ranks(unet=32, vae=5)
    assert net.ranks == {'unet': 32, 'vae': 5} and net.unet_fuse_mlp.weight is unet
    assert torch.equal(net.vae_block_embeddings.weight, table)
    assert not any(layer.lora_B['vae_skip'].weight.any() for layer in net.vae_layers)
    expected = S3Diff(UNET, VAE, 32, 5).state_dict()
    assert [(k, v.shape) for k, v in net.state_dict().items()] == [(k, v.shape) for k, v in expected.items()]
