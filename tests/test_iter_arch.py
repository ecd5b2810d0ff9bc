import math

import pytest
import torch
from iter_arch_fixture import EXACT, SMALL_VQGAN, agree, image, iter_token_reference, randomised, twin
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.iter_arch import ITER, LQEncoder, TrainingDraws, random_mask
from basicsr.utils.checkpoint import CheckpointError, load_network
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

SMALL = {'vqgan_opt': SMALL_VQGAN, 'demask_opt': {'ch': 16, 'swin_blk_num': 1, 'swin_blk_depth': 2}}
NARROW = {
    'swin': SMALL['demask_opt'],
    'unet': {'ch': 32, 'ch_mult': (1, 1), 'num_res_blocks': 1},
    'transformer': {'ch': 16},
}


def small(seed: int = 0, **changes) -> ITER:
    return randomised(ITER(**SMALL | changes).to(EXACT), seed)


def batch(b: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, TrainingDraws]:
    """lq, the tokens of gt and the draws of a training step at x4."""
    draw = torch.Generator().manual_seed(seed)
    lq = image(seed, b, 3, 16, 32).to(EXACT)
    tokens = torch.randint(12, (b, 8, 16), generator=draw)
    gumbel = -torch.empty(b, 12, 8, 16).exponential_(generator=draw).log().to(EXACT)
    return lq, tokens, TrainingDraws(torch.rand(b, generator=draw), torch.rand(b, 8, 16, generator=draw), gumbel)


# ---- what training sees


@pytest.mark.parametrize('kind', NARROW)
def test_training_evaluates_and_refines_as_published(kind):
    net = small(demask_net=kind, demask_opt=NARROW[kind])
    lq, gt, draws = batch()
    out = net(lq, gt, draws)
    agree(out.lq_logits, net.lq_encoder(lq))
    assert torch.equal(out.lq_tokens, out.lq_logits.argmax(1))
    crit, refiner = net.token_refine_net.children()
    condition = crit.embed(out.lq_tokens, 1)
    agree(out.critic_lq, crit(crit.embed(out.lq_tokens, 0) + condition))
    bad, kept = 1 - out.critic_lq.argmax(1), 1 - out.mask
    known = refiner.embed(out.lq_tokens, 0, marked=bad) + refiner.embed(gt, 1, kept=kept, marked=out.mask)
    agree(out.refined_logits, refiner(known))
    assert torch.equal(out.refined_tokens, out.refined_logits.argmax(1))
    agree(out.critic_refined, crit(crit.embed(out.refined_tokens, 0) + condition))
    drawn = (out.refined_logits + draws.gumbel).argmax(1)
    agree(out.refined_image, net.vqgan.decode_indices(drawn))


def test_images_of_a_batch_do_not_see_one_another():
    net = small()
    lq, gt, draws = batch(3)
    together = net(lq, gt, draws)
    for i in range(3):
        alone = net(lq[i : i + 1], gt[i : i + 1], TrainingDraws(*(part[i : i + 1] for part in draws)))
        for one, other in zip(alone, together, strict=True):
            agree(one, other[i : i + 1])


def test_the_gradient_of_a_drawn_image_passes_straight():
    """It is that of the mixture of entries by softmax(logits + noise), taken where the image of the drawn ones is."""
    net = small()
    _, _, draws = batch(1)
    logits = torch.randn(1, 12, 8, 16, dtype=EXACT, requires_grad=True)
    (found,) = torch.autograd.grad(net.decode_drawn(logits, draws.gumbel).square().mean(), logits)
    soft = (logits + draws.gumbel).softmax(1)
    codes = net.vqgan.quantize.entries(soft.argmax(1)).requires_grad_(True)
    (of_codes,) = torch.autograd.grad(net.vqgan.decode(codes).square().mean(), codes)
    mixture = torch.einsum('bnhw,nc->bchw', soft, net.vqgan.quantize.embedding.weight)
    (expected,) = torch.autograd.grad(mixture, logits, of_codes)
    agree(found, expected)


def test_only_what_is_not_frozen_learns():
    net = small().train()
    out = net(*batch())
    parts = [out.lq_logits, out.critic_lq, out.critic_refined, out.refined_logits, out.refined_image]
    sum(part.square().mean() for part in parts).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith('vqgan.'), name
    assert net.lq_encoder.training and not net.vqgan.training and not any(m.training for m in net.vqgan.modules())


def test_the_critic_does_not_train_the_encoder_nor_the_refiner():
    net = small()
    out = net(*batch())
    (out.critic_lq.mean() + out.critic_refined.square().mean()).backward()
    trained = {name.partition('.token_crit')[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {'token_refine_net'}


def test_no_image_is_decoded_where_none_is_wanted():
    lq, gt, draws = batch()
    assert small()(lq, gt, draws._replace(gumbel=None)).refined_image is None


def test_without_token_nets_there_are_the_encoders_logits_alone():
    net = small(refine=False)
    lq, gt, _ = batch()
    out = net(lq, gt, None)
    assert net.token_refine_net is None and not any('token' in name for name in net.state_dict())
    assert out.lq_logits.shape == (2, 12, 8, 16) and all(part is None for part in out[2:])


def test_as_many_tokens_are_hidden_as_the_rate_says_and_one_at_least():
    rates, noise = torch.tensor([0.0, 1 / 3, 0.999999]), torch.rand(3, 4, 5)
    mask = random_mask(rates, noise)
    expected = [max(1, int(math.cos(math.pi / 2 * rate) * 20)) for rate in (0, 1 / 3, 0.999999)]
    assert mask.sum((1, 2)).tolist() == expected == [20, 17, 1]
    assert all(noise[i][mask[i] == 1].min() > noise[i][mask[i] == 0].max() for i in (1, 2))


@pytest.mark.parametrize('kind', NARROW)
def test_token_nets_give_the_same_with_packed_weights(kind):
    net = randomised(ITER(**SMALL | {'demask_net': kind, 'demask_opt': NARROW[kind]}))
    tokens = batch()[1]
    with torch.no_grad():
        condition = net.critic_condition(tokens)
        expected = net.evaluate(tokens, condition)
        for precise in (True, False):
            with torch.autocast('cpu', torch.bfloat16, enabled=not precise), net.constant_weights():
                for _ in range(2):  # the first call packs
                    error = (net.evaluate(tokens, condition) - expected).abs().max() / expected.abs().max()
                    assert error < (1e-4 if precise else 0.1)
        assert torch.equal(net.evaluate(tokens, condition), expected)


def test_without_token_nets_there_is_nothing_to_pack():
    with ITER(**SMALL | {'refine': False}).constant_weights():
        pass


# ---- the LQ encoder


@pytest.mark.parametrize(('depth', 'size'), [(0, (8, 16)), (1, (32, 16)), (2, (32, 64))])
def test_the_encoder_equals_the_plain_transcription(depth, size):
    options = {'in_ch': 3, 'feat_dim': 8, 'out_dim': 5, 'depth': depth, 'chn': 32}
    reference, net = twin(iter_token_reference.LQEncoder(**options), LQEncoder(**options))
    x = image(0, 2, 3, *size).to(EXACT)
    with torch.no_grad():
        agree(net(x), reference(x))


def test_the_encoders_logits_are_exact_under_autocast():
    net = randomised(ITER(**SMALL))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        logits = net.lq_logits(image(0, 1, 3, 16, 16))
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


# ---- sizes and scales


@pytest.mark.parametrize(('scale', 'multiple', 'side'), [(1, 64, 64), (2, 32, 32), (4, 16, 16), (8, 8, 8)])
def test_sizes_are_the_published_ones(scale, multiple, side):
    net = ITER(**SMALL | {'scale_factor': scale})
    assert (net.scale, net.size_multiple) == (scale, multiple)
    assert net.lq_logits(torch.rand(1, 3, side, side)).shape == (1, 12, 8, 8)
    with pytest.raises(ValueError, match=f'multiples of {multiple}, got'):
        net.lq_logits(torch.rand(1, 3, side, side + 1))


# ---- published files


def test_published_files_are_read_with_and_without_what_is_repeated():
    options = SMALL | {'demask_net': 'unet', 'demask_opt': NARROW['unet']}
    net, other = randomised(ITER(**options)), ITER(**options)
    state = net.to_published(net.state_dict())
    repeated = ('vqgan.generator.', 'mid_block.2.', 'mid_block.3.', 'attn_mask', 'relative_position_index')
    assert all(any(part in name for name in state) for part in repeated)
    load_network(other, state, 'file')
    assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)
    assert list(net.from_published(state)) == list(net.state_dict())
    without = {name: value for name, value in state.items() if not any(part in name for part in repeated)}
    assert list(net.from_published(without)) == list(net.state_dict())


def test_a_file_may_lack_the_autoencoder_but_nothing_is_guessed_then():
    net = ITER(**SMALL)
    state = {k: v for k, v in net.to_published(net.state_dict()).items() if not k.startswith('vqgan.')}
    assert set(net.from_published(state)) == {k for k in net.state_dict() if not k.startswith('vqgan.')}
    with pytest.raises(CheckpointError, match=r'missing: vqgan\.'):
        load_network(net, state, 'file')


def test_blocks_that_should_be_equal_are_compared():
    net = ITER(**SMALL | {'demask_net': 'unet', 'demask_opt': NARROW['unet']})
    state = net.to_published(net.state_dict())
    state['token_refine_net.token_crit_net.mid_block.2.norm1.weight'] += 1
    with pytest.raises(CheckpointError, match=r'mid_block\.2\.norm1\.weight should be a copy of .*mid_block\.0\.norm1'):
        load_network(net, state, 'file')


# ---- mistakes


def refused(**changes) -> OptionError:
    with pytest.raises(OptionError) as error:
        ARCH_REGISTRY.build({'type': 'ITER', **SMALL, **changes})
    return error.value


def test_mistakes_in_options_are_said_with_their_place():
    error = refused(demask_opt={'chh': 16})
    assert "'chh' is not a known option of demask_net swin" in str(error) and error.key == ('demask_opt', 'chh')
    error = refused(vqgan_opt=SMALL_VQGAN | {'n_embedd': 3})
    assert "did you mean 'n_embed'" in str(error) and error.key == ('vqgan_opt', 'n_embedd')
    error = refused(vqgan_opt=SMALL_VQGAN | {'ddconfig': {'nff': 3}})
    assert "did you mean 'nf'" in str(error) and error.key == ('vqgan_opt', 'ddconfig', 'nff')
    assert "'swin', 'unet' or 'transformer'" in str(refused(demask_net='vit'))


@pytest.mark.parametrize('scale', [3, 16])
def test_scales_that_the_autoencoder_does_not_allow_are_said(scale):
    assert f'scale_factor is a power of 2 up to 8 for this vqgan_opt, got {scale}' in str(refused(scale_factor=scale))


def test_cross_entropy_of_all_logits_is_finite_at_the_start():
    net = ITER(**SMALL)
    lq, gt, draws = batch()
    out = net(lq.float(), gt, draws._replace(gumbel=draws.gumbel.float()))
    assert F.cross_entropy(out.refined_logits, gt).isfinite() and F.cross_entropy(out.lq_logits, gt).isfinite()
