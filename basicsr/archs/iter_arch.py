"""ITER: iterative token evaluation and refinement (Chen et al., AAAI 2024, arXiv:2312.05616).

Attribute names are those of the published checkpoints (chaofengc/ITER).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.conv import conv3
from basicsr.archs.blocks.packing import packed_weights
from basicsr.archs.blocks.published import with_copies, without_copies
from basicsr.archs.blocks.swin import SwinLayers, with_computed, without_computed
from basicsr.archs.blocks.unet import fast_order
from basicsr.archs.swin_vqgan_arch import COPIES, SwinVQGAN
from basicsr.archs.token_net_arch import TOKEN_NETS, exact_conv
from basicsr.utils.nested_options import OptionsByOption, OptionsOf, nested
from basicsr.utils.registry import ARCH_REGISTRY

# The UNet of tokens goes through its middle twice, for which published files repeat it.
ALL_COPIES = COPIES | {'.mid_block.2.': '.mid_block.0.', '.mid_block.3.': '.mid_block.1.'}


class TrainingDraws(NamedTuple):
    """The randomness of a training step. rate_noise (b,) and mask_noise (b, h, w): uniform in [0, 1).

    gumbel (b, n_embed, h, w): Gumbel noise for the refined image; None if no image is wanted.
    """

    rate_noise: Tensor
    mask_noise: Tensor
    gumbel: Tensor | None


class TokenLogits(NamedTuple):
    """What a training step sees of the networks. Of a network without token nets only the first two are there.

    lq_logits: (b, n_embed, h, w), of the LQ encoder; lq_tokens: (b, h, w), their largest.
    critic_lq: (b, 2, h, w), whether lq's tokens are bad (0) or good (1).
    mask: (b, h, w), 1 where gt's token was hidden from the refiner.
    refined_logits: (b, n_embed, h, w); refined_tokens: (b, h, w), their largest.
    critic_refined: (b, 2, h, w), whether the refined tokens are bad or good.
    refined_image: (b, 3, h * 8, w * 8) in [0, 1], of tokens drawn from refined_logits, whose gradient passes straight.
    """

    lq_logits: Tensor
    lq_tokens: Tensor
    critic_lq: Tensor | None = None
    mask: Tensor | None = None
    refined_logits: Tensor | None = None
    refined_tokens: Tensor | None = None
    critic_refined: Tensor | None = None
    refined_image: Tensor | None = None


@ARCH_REGISTRY.register()
class ITER(nn.Module):
    """An LQ encoder that names the tokens of a frozen SwinVQGAN, and two token nets that judge and refine them.

    Args:
        vqgan_opt: options of the SwinVQGAN.
        scale_factor: a power of 2, at most the reduction of the SwinVQGAN.
        demask_net: kind of both token nets; demask_opt: options of that kind.
        refine: whether there are token nets; without them the network is trained for the LQ encoder alone.
    Shape: lq (b, 3, h, w) in [0, 1], sides multiples of `size_multiple`; maps of tokens (b, h * s, w * s) int64 with
        s = scale / reduction.
    """

    def __init__(
        self,
        vqgan_opt: nested(OptionsOf(SwinVQGAN, 'vqgan_opt')),
        scale_factor: PositiveInt = 4,
        demask_net: Literal['swin', 'unet', 'transformer'] = 'swin',
        demask_opt: nested(OptionsByOption('demask_net', TOKEN_NETS, ('in_channels', 'out_ch'))) | None = None,
        refine: bool = True,
    ):
        super().__init__()
        self.vqgan = SwinVQGAN(**vqgan_opt).requires_grad_(False)
        count, reduction = self.vqgan.n_embed, self.vqgan.reduction
        if scale_factor > reduction or reduction % scale_factor:
            raise ValueError(f'scale_factor is a power of 2 up to {reduction} for this vqgan_opt, got {scale_factor}')
        self.scale = scale_factor
        self.token_refine_net = TokenRefine(count, demask_net, demask_opt or {}) if refine else None
        self.lq_encoder = LQEncoder(3, self.vqgan.embed_dim, count, int(math.log2(reduction // scale_factor)))
        nets = self.token_refine_net.children() if refine else ()
        tokens = [self.lq_encoder.window_size, self.vqgan.size_multiple // reduction, *(n.size_multiple for n in nets)]
        self.size_multiple = math.lcm(*tokens) * (reduction // scale_factor)

    @staticmethod
    def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published ITER without the entries that are computed, and those that should be copies of others.

        It may lack `vqgan.*`, which then comes from a file of its own. Raises ValueError if a copy is none.
        """
        return without_computed(without_copies(state, ALL_COPIES))

    def to_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of such a network with all that a published file has, in its order."""
        return with_copies(with_computed(self, state), ALL_COPIES)

    def train(self, mode: bool = True) -> 'ITER':
        """As any module's; the SwinVQGAN stays in evaluation mode."""
        super().train(mode)
        self.vqgan.eval()
        return self

    def constant_weights(self) -> AbstractContextManager[None]:
        """A context for the many calls of the token nets that restore an image: see packed_weights."""
        return nullcontext() if self.token_refine_net is None else packed_weights(self.token_refine_net)

    def forward(self, lq: Tensor, gt_indices: Tensor, draws: TrainingDraws) -> TokenLogits:
        """What stages II and III are trained by, for the tokens (b, h, w) of gt. `draws` is for the token nets only."""
        lq_logits = self.lq_logits(lq)
        lq_tokens = lq_logits.argmax(1)
        if self.token_refine_net is None:
            return TokenLogits(lq_logits, lq_tokens)
        condition = self.critic_condition(lq_tokens)
        critic_lq = self.evaluate(lq_tokens, condition)
        mask = random_mask(draws.rate_noise, draws.mask_noise)
        known = self.refine_condition(lq_tokens, critic_lq.argmax(1))
        refined_logits = self.refine(known, gt_indices, 1 - mask)
        refined_tokens = refined_logits.argmax(1)
        critic_refined = self.evaluate(refined_tokens, condition)
        image = None if draws.gumbel is None else self.decode_drawn(refined_logits, draws.gumbel)
        of_refined = refined_logits, refined_tokens, critic_refined, image
        return TokenLogits(lq_logits, lq_tokens, critic_lq, mask, *of_refined)

    def lq_logits(self, lq: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, n_embed, h * s, w * s) in float32 at least: which token each place of gt has."""
        if any(side % self.size_multiple for side in lq.shape[-2:]):
            raise ValueError(f'sides of lq must be multiples of {self.size_multiple}, got {tuple(lq.shape[-2:])}')
        return self.lq_encoder(lq)

    def critic_condition(self, lq_tokens: Tensor) -> Tensor:
        """What `evaluate` needs of lq's tokens (b, h, w), the same for all candidates."""
        return self.token_refine_net.token_crit_net.embed(lq_tokens, 1)

    def evaluate(self, candidate: Tensor, condition: Tensor) -> Tensor:
        """Tokens (b, h, w) -> logits (b, 2, h, w): bad, good."""
        net = self.token_refine_net.token_crit_net
        return net(net.embed(candidate, 0) + condition)

    def refine_condition(self, lq_tokens: Tensor, good: Tensor) -> Tensor:
        """What `refine` needs of lq's tokens and of which are good (b, h, w, 0 or 1), the same in all steps."""
        return self.token_refine_net.token_refine_net.embed(lq_tokens, 0, marked=1 - good)

    def refine(self, condition: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """Logits (b, n_embed, h, w) of all places, from the tokens (b, h, w) at those where kept (b, h, w) is 1."""
        net = self.token_refine_net.token_refine_net
        return net(condition + net.embed(tokens, 1, kept=kept, marked=1 - kept))

    def decode_drawn(self, logits: Tensor, gumbel: Tensor) -> Tensor:
        """The image of tokens drawn by the Gumbel noise, all (b, n_embed, h, w); the gradient passes straight.

        For the backward pass a token is the mixture by softmax(logits + gumbel), as of arXiv:1611.01144.
        """
        soft = (logits + gumbel).softmax(1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).to(soft.dtype)
        return self.vqgan.decode_soft(hard + (soft - soft.detach()))


def random_mask(rate_noise: Tensor, mask_noise: Tensor) -> Tensor:
    """Which tokens are hidden in training: (b,) and (b, h, w) uniform in [0, 1) -> (b, h, w) of 0 and 1.

    The share of an image is cos(pi / 2 * rate_noise), one token at least; hidden are those of the largest mask_noise.
    """
    h, w = mask_noise.shape[1:]
    count = ((rate_noise * math.pi * 0.5).cos() * h * w).long().clamp(min=1)
    order = mask_noise.flatten(1).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(1) < count[:, None]).to(mask_noise.dtype).view_as(mask_noise)


class TokenRefine(nn.Module):
    """The two token nets: one says of each place whether its token is good, the other which token it should have."""

    def __init__(self, n_e: int, demask_net: str, demask_opt: dict):
        super().__init__()
        net = TOKEN_NETS[demask_net]
        self.token_crit_net = net(n_e, 2, **demask_opt)
        self.token_refine_net = net(n_e + 1, n_e, **demask_opt)


class LQEncoder(nn.Module):
    """Halving convolutions and Swin blocks that name the token of each place.

    Args:
        in_ch: channels of the image; chn: of the features at its size; feat_dim: of the Swin blocks, which have 8
            heads; out_dim: kinds of tokens.
        depth: halvings; each doubles the features.
    Shape: (b, in_ch, h, w) in [0, 1] -> (b, out_dim, h / 2^depth, w / 2^depth) in float32 at least, whose sides are
        multiples of `window_size`.
    """

    def __init__(self, in_ch: int, feat_dim: int, out_dim: int, depth: int, chn: int = 64):
        super().__init__()
        layers = [conv3(in_ch, chn)]
        for _ in range(depth):
            half = nn.Conv2d(chn, 2 * chn, 3, stride=2, padding=1)
            chn = 2 * chn
            layers.append(nn.Sequential(half, LeakyBlock(chn), LeakyBlock(chn)))
        swin = SwinLayers(feat_dim, feat_dim, blk_num=2)
        self.window_size = swin.window_size
        self.model = nn.Sequential(*layers, nn.Conv2d(chn, feat_dim, 1), swin, nn.Conv2d(feat_dim, out_dim, 1))

    def forward(self, image: Tensor) -> Tensor:
        return exact_conv(self.model[-1], self.model[:-1](fast_order(image)))


class LeakyBlock(nn.Module):
    """Norm, leaky ReLU and convolution, twice, beside a shortcut; keeps the shape."""

    def __init__(self, dim: int):
        super().__init__()
        parts = [(PublishedNorm(dim), nn.LeakyReLU(0.2, inplace=True), conv3(dim, dim)) for _ in range(2)]
        self.conv = nn.Sequential(*parts[0], *parts[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x)  # no backward pass reads what a convolution gave


class PublishedNorm(nn.Module):
    """A group normalisation of 32 groups under a name of its own."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)
