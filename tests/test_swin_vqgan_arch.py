import copy

import pytest
import torch
from golden_case import image, load_case
from iter_arch_fixture import EXACT, SMALL_VQGAN, agree, gradients, iter_vqgan_reference, randomised, twin
from reference.iter_network_cases import published
from torch.testing import assert_close

from basicsr.archs.blocks.codebook import VectorQuantizer
from basicsr.archs.swin_vqgan_arch import SwinVQGAN
from basicsr.utils.checkpoint import CheckpointError, load_network
from basicsr.utils.registry import ARCH_REGISTRY, OptionError


def small(**ddconfig) -> dict:
    return SMALL_VQGAN | {'ddconfig': SMALL_VQGAN['ddconfig'] | ddconfig}


def pair(seed: int = 0, **ddconfig) -> tuple[torch.nn.Module, SwinVQGAN]:
    options = small(**ddconfig)
    return twin(iter_vqgan_reference.VQModel(**copy.deepcopy(options)), SwinVQGAN(**options), seed)


# ---- the same function


@pytest.mark.parametrize(
    'ddconfig',
    [
        {},
        {'global_blks': 'mhsa', 'ch_mult': [1, 2]},
        {'resolution': [128, 192]},
        {'num_heads': 4, 'swin_window': 4},
        {'res_blocks': 2, 'swin_blk_num': 2},
    ],
)
def test_equals_the_plain_transcription(ddconfig):
    reference, net = pair(**ddconfig)
    x = image(1, 2, 3, 64, 128).to(EXACT) * 1.2 - 0.1  # also outside of [0, 1]
    with torch.no_grad():
        for found, expected in zip(net(x), reference(x), strict=True):
            agree(found.to(EXACT), expected.to(EXACT))
        assert torch.equal(net.indices(x), reference.indices(x))
        agree(net.decode_indices(net.indices(x)), reference.decode_indices(net.indices(x)))


def test_gradients_equal_those_of_the_plain_transcription():
    reference, net = pair()
    x = image(2, 1, 3, 64, 64).to(EXACT)
    expected = gradients(reference, sum(part.mean() for part in reference(x)[:2]))
    found = gradients(net, sum(part.mean() for part in net(x)[:2]))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        agree(found[name], gradient, name)


def test_images_of_a_batch_do_not_see_one_another():
    _, net = pair()
    x = image(3, 3, 3, 64, 64).to(EXACT)
    with torch.no_grad():
        assert_close(net(x)[0], torch.cat([net(one[None])[0] for one in x]))


def test_mixtures_of_entries_are_decoded_with_gradients_to_the_weights_only():
    _, net = pair()
    tokens = torch.randint(12, (1, 8, 8))
    weights = torch.nn.functional.one_hot(tokens, 12).movedim(-1, 1).to(EXACT).requires_grad_(True)
    out = net.decode_soft(weights)
    assert_close(out, net.decode_indices(tokens))
    out.square().mean().backward()
    assert net.quantize.embedding.weight.grad is None
    codes = net.quantize.entries(tokens).detach().requires_grad_(True)
    net.decode(codes).square().mean().backward()
    assert_close(weights.grad, torch.einsum('bchw,nc->bnhw', codes.grad, net.quantize.embedding.weight.detach()))


def test_tokens_do_not_depend_on_autocast():
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(64, 8), 0.01 * torch.randn(2, 8, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        codes, loss, indices = quantizer(z)
    assert torch.equal(indices, quantizer.indices(z)) and codes.dtype == loss.dtype == torch.float32
    nearest = torch.cdist(z.movedim(1, -1).flatten(0, 2), quantizer.embedding.weight).argmin(1)
    assert torch.equal(indices.flatten(), nearest)


def test_of_equal_entries_the_first_is_named():
    quantizer = VectorQuantizer(6, 4)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.eye(4).repeat(2, 1)[:6])
    assert quantizer.indices(torch.eye(4)[None, :, :2, None]).flatten().tolist() == [0, 1]


def test_autocast_stays_near():
    net = randomised(SwinVQGAN(**small()))
    tokens = torch.randint(12, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = net.decode_indices(tokens)
        with torch.autocast('cpu', torch.bfloat16):
            near = net.decode_indices(tokens)
    assert near.dtype == torch.float32 and (near - exact).abs().mean() < 0.02


# ---- published files


@pytest.mark.parametrize('lacks', [(), ('generator.',), ('attn_mask',), ('generator.', 'attn_mask', 'position_index')])
def test_published_files_are_read_with_and_without_what_is_repeated(lacks):
    net, other = (SwinVQGAN(**small(resolution=[128, 128])) for _ in range(2))
    state = published(randomised(net))
    assert all(any(part in name for name in state) for part in ('generator.', 'attn_mask', 'position_index'))
    load_network(other, {k: v for k, v in state.items() if not any(part in k for part in lacks)}, 'file')
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_what_is_written_for_others_has_the_published_layout():
    case = load_case('iter', 'vqgan_small')
    net = SwinVQGAN(**case.args['init'])
    state = net.to_published(net.state_dict())
    assert {name: [*value.shape] for name, value in state.items()} == case.spec['layout']
    assert list(state) == list(case.spec['layout'])
    assert state['generator.blocks.0.weight'].data_ptr() != state['decoder.blocks.0.weight'].data_ptr()


def test_a_generator_that_is_not_the_decoder_is_refused():
    net = SwinVQGAN(**small())
    state = published(net)
    state['generator.blocks.0.weight'] += 1
    with pytest.raises(CheckpointError, match=r'generator\.blocks\.0\.weight should be a copy of decoder\.blocks\.0'):
        load_network(net, state, 'file')


def test_the_file_of_another_codebook_is_refused():
    state = published(SwinVQGAN(**small() | {'n_embed': 13}))
    with pytest.raises(CheckpointError, match=r'quantize\.embedding\.weight \(13, 16\) instead of \(12, 16\)'):
        load_network(SwinVQGAN(**small()), state, 'file')


# ---- mistakes


@pytest.mark.parametrize(
    ('options', 'message', 'key'),
    [
        (small(swin_dimm=8), "'swin_dimm' .* of ddconfig; did you mean 'swin_dim'", ('ddconfig', 'swin_dimm')),
        (small(nf=0), 'greater than 0', ('ddconfig', 'nf')),
        (small(global_blks='conv'), "should be 'swin' or 'mhsa'", ('ddconfig', 'global_blks')),
        (SMALL_VQGAN | {'embed_dim': 12.5}, 'whole number', ('embed_dim',)),
    ],
)
def test_mistakes_in_options_are_found_before_anything_is_built(options, message, key):
    with pytest.raises(OptionError, match=message) as error:
        ARCH_REGISTRY.check({'type': 'SwinVQGAN', **options})
    assert error.value.key == key


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (SMALL_VQGAN | {'embed_dim': 8}, 'ddconfig:emb_dim is 16, but entries have embed_dim 8'),
        (small(nf=36), 'multiple of 32 channels, got 36'),
        (small(swin_dim=12), '8 heads do not divide the 12 channels'),
        (small(global_blks='mhsa', nf=6, ch_mult=[1]), 'multiple of 4 channels, got 6'),
    ],
)
def test_options_that_do_not_fit_one_another_are_said(options, message):
    with pytest.raises(OptionError, match=message):
        ARCH_REGISTRY.build({'type': 'SwinVQGAN', **options})


def test_sizes_that_windows_do_not_divide_are_said():
    net = SwinVQGAN(**small())
    assert (net.reduction, net.size_multiple) == (8, 64)
    with pytest.raises(ValueError, match='multiples of 64, got'):
        net(torch.rand(1, 3, 64, 72))
