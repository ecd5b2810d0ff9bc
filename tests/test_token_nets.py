import pytest
import torch
from iter_arch_fixture import EXACT, agree, gradients, iter_token_reference, randomised, twin
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.token_net_arch import TOKEN_NETS, TokenNet

KINDS = {'swin': (iter_token_reference.SwinModel, {'ch': 32, 'swin_blk_num': 1, 'swin_blk_depth': 2}),
         'unet': (iter_token_reference.UNetModel, {'ch': 32, 'ch_mult': (1, 2), 'num_res_blocks': 1}),
         'transformer': (iter_token_reference.TransformerModel, {'ch': 32})}  # fmt: skip
KINDS_OF_TOKEN = 7  # the last is the mark

every_kind = pytest.mark.parametrize('kind', KINDS)


def net_of(kind: str) -> TokenNet:
    return TOKEN_NETS[kind](KINDS_OF_TOKEN, 5, **KINDS[kind][1])


def pair(kind: str) -> tuple[torch.nn.Module, TokenNet]:
    reference, options = KINDS[kind]
    return twin(reference(in_channels=KINDS_OF_TOKEN, out_ch=5, **options), net_of(kind))


def maps(b: int = 2, h: int = 8, w: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two maps of tokens, which ones of the first are good, which ones of the second are kept."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(KINDS_OF_TOKEN - 1, (2, b, h, w), generator=draw)
    return *tokens, *torch.randint(2, (2, b, h, w), generator=draw)


def one_hot(tokens: torch.Tensor, marked: torch.Tensor, kept: torch.Tensor | int = 1) -> torch.Tensor:
    """The published input: tokens as an image of zeros and ones, times the mask, and the mark as its last channel."""
    image = F.one_hot(tokens, KINDS_OF_TOKEN - 1).movedim(-1, 1)
    kept = kept[:, None] if isinstance(kept, torch.Tensor) else kept
    return torch.cat([image * kept, marked[:, None]], 1).to(EXACT)


def embedded(net: TokenNet, condition, current, good, kept) -> torch.Tensor:
    return net.embed(condition, 0, marked=1 - good) + net.embed(current, 1, kept=kept, marked=1 - kept)


@every_kind
def test_equals_the_plain_transcription_of_one_hot_images(kind):
    reference, net = pair(kind)
    condition, current, good, kept = maps()
    with torch.no_grad():
        expected = reference([one_hot(condition, 1 - good), one_hot(current, 1 - kept, kept)])
        agree(net(embedded(net, condition, current, good, kept)), expected)
        agree(net(net.embed(current, kept=kept, marked=1 - kept)), reference(one_hot(current, 1 - kept, kept)))
        agree(net(net.embed(current)), reference(one_hot(current, 0 * kept)))


@every_kind
def test_gradients_equal_those_of_the_plain_transcription(kind):
    reference, net = pair(kind)
    condition, current, good, kept = maps(b=1)
    expected = gradients(reference, reference([one_hot(condition, 1 - good), one_hot(current, 1 - kept, kept)]))
    found = gradients(net, net(embedded(net, condition, current, good, kept)))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        agree(found[name], gradient, name)


def test_looking_up_equals_two_convolutions_of_one_hot_images():
    net = randomised(net_of('swin').to(EXACT))
    condition, current, good, kept = maps()
    first = F.conv2d(one_hot(condition, 1 - good), net.code_emb.weight)
    second = F.conv2d(one_hot(current, 1 - kept, kept), net.code_emb.weight)
    both = F.conv2d(torch.cat([first, second], 1), net.combine.weight)
    found = embedded(net, condition, current, good, kept)
    assert_close(found, both)
    grad = torch.randn_like(both)
    parameters = net.code_emb.weight, net.combine.weight
    expected = torch.autograd.grad(both, parameters, grad)
    for one, other in zip(torch.autograd.grad(found, parameters, grad), expected, strict=True):
        assert_close(one, other)


def test_masks_may_be_between_0_and_1():
    net = randomised(net_of('swin').to(EXACT))
    tokens, _, _, _ = maps()
    share = torch.rand(tokens.shape, dtype=EXACT)
    expected = F.conv2d(one_hot(tokens, 1 - share, share), net.code_emb.weight)
    assert_close(net.embed(tokens, kept=share, marked=1 - share), expected)


@every_kind
def test_maps_of_a_batch_do_not_see_one_another(kind):
    net = randomised(net_of(kind).to(EXACT))
    with torch.no_grad():
        together = net(embedded(net, *maps(b=3)))
        alone = [net(embedded(net, *(part[i : i + 1] for part in maps(b=3)))) for i in range(3)]
        agree(together, torch.cat(alone))


@every_kind
def test_logits_are_exact_under_autocast(kind):
    net = randomised(net_of(kind))
    with torch.no_grad():
        exact = net(embedded(net, *maps()))
        with torch.autocast('cpu', torch.bfloat16):
            features = embedded(net, *maps())
            near = net(features)
    assert features.dtype == near.dtype == torch.float32
    assert (near - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert not torch.equal(near, near.bfloat16().float())


@every_kind
def test_all_that_is_trained_has_a_gradient(kind):
    """What published files hold and nothing uses is frozen, or distributed training would wait for it."""
    net = net_of(kind)
    found = gradients(net, net(embedded(net, *maps())))
    assert found.keys() == {name for name, p in net.named_parameters() if p.requires_grad}
    assert len(list(net.parameters())) - len(found) == {'swin': 0, 'unet': 2, 'transformer': 1}[kind]


@pytest.mark.parametrize(('kind', 'multiple'), [('swin', 8), ('unet', 2)])
def test_sizes_that_a_net_does_not_take_are_said(kind, multiple):
    net = net_of(kind)
    assert net.size_multiple == multiple
    with pytest.raises(ValueError, match=f'multiples of {multiple}, got 8x17'):
        net(net.embed(torch.zeros(1, 8, 17, dtype=torch.long)))


def test_a_transformer_takes_any_size():
    net = net_of('transformer')
    assert net(net.embed(torch.zeros(1, 3, 5, dtype=torch.long))).shape == (1, 5, 3, 5)
    with pytest.raises(ValueError, match='multiple of 16 channels, got 24'):
        TOKEN_NETS['transformer'](7, 5, ch=24)
