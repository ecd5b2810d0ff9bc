"""ITER's losses on tokens and on structure, against torch, the metric, and sums written out."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.losses.structural_loss import SSIMLoss, rounded
from basicsr.losses.token_loss import TokenLoss, balanced_cross_entropy
from basicsr.metrics.psnr_ssim import ssim
from basicsr.utils.registry import LOSS_REGISTRY, OptionError

CODES = 5


def answer(mask: Tensor, seed: int = 0) -> tuple[SimpleNamespace, Tensor]:
    """What a network of five codes might say of two maps, and the tokens of gt."""
    generator = torch.Generator().manual_seed(seed)
    size = mask.shape

    def logits(channels: int) -> Tensor:
        return torch.randn(size[0], channels, *size[1:], generator=generator).requires_grad_()

    found = SimpleNamespace(
        lq_logits=logits(CODES), critic_lq=logits(2), refined_logits=logits(CODES), critic_refined=logits(2), mask=mask
    )
    found.lq_tokens, found.refined_tokens = found.lq_logits.argmax(1), found.refined_logits.argmax(1)
    return found, torch.randint(CODES, size, generator=generator)


def mean_by_hand(logits: Tensor, labels: Tensor, weight: Tensor) -> float:
    """sum of weight * -log softmax at the label / sum of weight, one position at a time."""
    rows, labels = logits.movedim(1, -1).reshape(-1, logits.shape[1]).double(), labels.flatten()
    total = sum(w * (row.exp().sum().log() - row[k]) for row, k, w in zip(rows, labels, weight.flatten()))
    return (total / weight.sum()).item()


def test_the_four_parts_equal_sums_written_out():
    mask = torch.zeros(2, 4, 3)
    mask[0, :2], mask[1, 0, 0] = 1, 1
    found, gt = answer(mask)
    losses = TokenLoss(loss_weight=0.5)(found, gt)
    ones = torch.ones(2, 4, 3)
    assert losses['l_token'].item() == pytest.approx(0.5 * mean_by_hand(found.lq_logits, gt, ones), rel=1e-5)
    good = (found.refined_tokens == gt).long()
    expected = 0.5 * mean_by_hand(found.critic_refined, good, ones)
    assert losses['l_critic_refined'].item() == pytest.approx(expected, rel=1e-5)
    shares = [6 / 12, 1 / 12]
    parts = [mean_by_hand(found.refined_logits[k : k + 1], gt[k : k + 1], ones[:1]) for k in (0, 1)]
    expected = 0.5 * sum(share * part for share, part in zip(shares, parts)) / 2
    assert losses['l_refine'].item() == pytest.approx(expected, rel=1e-5)
    good = (found.lq_tokens == gt).long()
    assert 0 < good.sum() < good.numel() / 2
    per_class = torch.tensor([(1 - 0.9999) / (1 - 0.9999 ** (good == k).sum().item()) for k in (0, 1)]).double()
    expected = 0.5 * mean_by_hand(found.critic_lq, good, per_class[good])
    assert losses['l_critic_lq'].item() == pytest.approx(expected, rel=1e-4)


def test_each_part_teaches_its_own_network():
    found, gt = answer(torch.ones(2, 4, 3))
    leaves = [found.lq_logits, found.critic_lq, found.critic_refined, found.refined_logits]
    for loss, own in zip(TokenLoss()(found, gt).values(), leaves, strict=True):
        for leaf in leaves:
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, retain_graph=True)
            assert (gradient is not None and gradient.abs().max() > 0) == (leaf is own)


def test_the_lq_encoder_alone_has_one_part():
    found, gt = answer(torch.ones(2, 4, 3))
    found.refined_logits = None
    losses = TokenLoss()(found, gt)
    assert losses.keys() == {'l_token'}
    torch.testing.assert_close(losses['l_token'], F.cross_entropy(found.lq_logits, gt))


@pytest.mark.parametrize('count', [0, 1, 7])
def test_with_few_samples_the_classes_weigh_by_the_inverse_of_their_counts(count):
    """beta^n is 1 - n (1 - beta) where n is small; a class without samples changes nothing."""
    logits, labels = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(20, dtype=torch.int64)
    labels[:count] = 1
    parts = F.cross_entropy(logits, labels, reduction='none')
    means = [part.mean() for part in (parts[:count], parts[count:]) if len(part)]
    expected = sum(means) / len(means)
    assert balanced_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_beta_that_weighs_nothing_is_refused():
    with pytest.raises(OptionError, match='beta should be above 0 and below 1, got 1'):
        LOSS_REGISTRY.build({'type': 'TokenLoss', 'beta': 1.0})


def levels(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, 3, 20, 24, generator=generator)
    return ((noise + noise.roll(1, 3)) * 127.5).round() / 255


def test_the_structural_loss_is_one_less_the_metric():
    """Where the contrast is positive everywhere the clipping changes nothing, nor does rounding of 8-bit values."""
    gt = levels(0)
    sr = ((0.9 * gt + 0.05) * 255).round() / 255
    expected = 1 - ssim(sr, gt).mean().item()
    assert expected > 0.001 and SSIMLoss(0.5)(sr, gt).item() == pytest.approx(0.5 * expected, rel=1e-5)
    assert SSIMLoss()(gt, gt).item() == 0


def test_the_structural_loss_counts_an_inverted_image_as_unrelated():
    gt = levels(0)
    assert ssim(1 - gt, gt).mean() < -0.1 and SSIMLoss()(1 - gt, gt).item() == pytest.approx(1, abs=0.05)


def test_rounding_has_the_gradient_of_the_identity():
    values = torch.tensor([0.4, 1.6, -2.2], dtype=torch.float64, requires_grad=True)
    result = rounded(values)
    result.sum().backward()
    assert result.tolist() == [0, 2, -2] and values.grad.tolist() == [1, 1, 1]


def test_the_structural_loss_is_exact_under_autocast():
    sr, gt = levels(0), levels(1)
    expected = SSIMLoss()(sr, gt)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(SSIMLoss()(sr, gt), expected)


def test_images_too_small_for_a_window_are_refused():
    with pytest.raises(ValueError, match='at least 11 pixels a side'):
        SSIMLoss()(torch.rand(1, 3, 10, 20), torch.rand(1, 3, 10, 20))
