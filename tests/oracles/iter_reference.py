"""ITER written down plainly from shared/spec/iter.md: restoring (3.2 and 3.4) and what a training step computes (4.3).

Everything published is computed, also what nothing uses: both evaluations of the LQ tokens, the one after the last
step, and in training the one of sampled tokens. One image at a time is restored.
"""

import math
from typing import NamedTuple

import torch
from iter_token_reference import LQEncoder, SwinModel, TransformerModel, UNetModel
from iter_vqgan_reference import VQModel, mirrored
from torch import Tensor, nn
from torch.nn import functional as F

NETS = {'swin': (SwinModel, 256), 'unet': (UNetModel, 128), 'transformer': (TransformerModel, 512)}


class Rule(NamedTuple):
    """How tokens and masks are drawn; noise is (T, 1, n, h, w) and (T, 1, h * w), None is the greedy rule."""

    T: int = 8
    temp_token: float = 1.0
    temp_mask: float = 1.0
    threshold: float = 0.5
    gamma_type: str = 'cosine'
    token_noise: Tensor | None = None
    mask_noise: Tensor | None = None


class Restored(NamedTuple):
    image: Tensor
    lq_logits: Tensor
    lq_tokens: Tensor
    good_probability: Tensor
    executed: list[int]
    tokens: list[Tensor]
    masks: list[Tensor]
    last_logits: Tensor | None


class Draws(NamedTuple):
    """Of a training step: (b,), (b, h, w) uniform; (b, n, h, w) Gumbel for the LQ and the refined image."""

    rate_noise: Tensor
    mask_noise: Tensor
    gumbel_lq: Tensor
    gumbel_refined: Tensor


def gamma(r: Tensor, kind: str) -> Tensor:
    if kind == 'linear':
        return 1 - r
    if kind == 'cosine':
        return torch.cos(math.pi * r / 2)
    x = float(kind[3:])
    return 1 - r**x if 'pow' in kind else (x - 1) / x * (1 - x ** (r - 1))


def kept_count(step: int, steps: int, kind: str, h: int, w: int) -> int:
    return int((1 - gamma(torch.tensor(step / steps), kind)) * w * h)


def onehot(tokens: Tensor, n: int) -> Tensor:
    """(b, h, w) -> (b, n, h, w)."""
    return F.one_hot(tokens, n).permute(0, 3, 1, 2).float()


class TokenRefine(nn.Module):
    def __init__(self, n_e: int, demask_net: str = 'swin', demask_opt: dict | None = None):
        super().__init__()
        net, ch = NETS[demask_net]
        options = {'ch': ch, **(demask_opt or {})}
        self.token_crit_net = net(in_channels=n_e, out_ch=2, **options)
        self.token_refine_net = net(in_channels=n_e + 1, out_ch=n_e, **options)


class ITERReference(nn.Module):
    """The arguments are those of `ITER`; `forward` restores greedily with all evaluations, for benchmarks."""

    def __init__(
        self, vqgan_opt: dict, scale_factor: int = 4, demask_net: str = 'swin', demask_opt: dict | None = None
    ):
        super().__init__()
        self.n, self.scale = vqgan_opt['n_embed'], scale_factor
        self.vqgan = VQModel(**vqgan_opt)
        self.vqgan.requires_grad_(False)
        self.token_refine_net = TokenRefine(self.n, demask_net, demask_opt)
        self.lq_encoder = LQEncoder(3, vqgan_opt['embed_dim'], self.n, int(math.log2(8 / scale_factor)))

    def crit(self, tokens: Tensor, lq: Tensor) -> Tensor:
        return self.token_refine_net.token_crit_net([tokens, lq])

    def refine(self, lq: Tensor, good: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        return self.token_refine_net.token_refine_net(
            [torch.cat([lq, 1 - good], 1), torch.cat([tokens * kept, 1 - kept], 1)]
        )

    def restore(self, x: Tensor, rule: Rule) -> Restored:
        """Padded and cropped as published: (1, 3, h, w) -> (1, 3, h * scale, w * scale)."""
        height, width = x.shape[2:]
        unit = 8 // self.scale * 8
        found = self.restore_padded(mirrored(x, (height // unit + 1) * unit, (width // unit + 1) * unit), rule)
        return found._replace(image=found.image[:, :, : height * self.scale, : width * self.scale])

    def restore_padded(self, x: Tensor, rule: Rule) -> Restored:
        logits = self.lq_encoder(x)
        lq_tokens = logits.argmax(1)
        lq = onehot(lq_tokens, self.n)
        h, w = lq_tokens.shape[1:]
        self.crit(lq, lq)  # published: its result is not used
        probability = torch.softmax(self.crit(lq, lq), 1)[:, 1:]
        good = (probability >= rule.threshold).float()
        kept = previous = good
        current, tokens, evaluation, last = lq * good, lq_tokens, None, None
        history, masks, executed = [], [], []
        for i in range(rule.T):
            history.append(tokens)
            k = kept_count(i, rule.T, rule.gamma_type, h, w)
            if k < good.sum():
                masks.append(good)
                continue
            executed.append(i)
            if evaluation is not None:
                noise = None if rule.mask_noise is None else rule.mask_noise[i]
                kept = previous = draw(evaluation, k, previous, rule.temp_mask, noise)
            masks.append(kept)
            last = self.refine(lq, good, current, kept)
            tempered = last / rule.temp_token
            tokens = (tempered if rule.token_noise is None else tempered + rule.token_noise[i]).argmax(1)
            current = onehot(tokens, self.n)
            evaluation = self.crit(current, lq)  # also after the last step
        history.append(tokens)
        image = self.vqgan.decode_indices(tokens)
        return Restored(image, logits, lq_tokens, probability, executed, history[-rule.T :], masks, last)

    def forward(self, x: Tensor) -> Tensor:
        """No token is as good as the threshold wants, so all steps run, whatever the weights are."""
        return torch.cat([self.restore(one[None], Rule(threshold=1.1, gamma_type='linear')).image for one in x])

    def training_losses(self, x: Tensor, gt_indices: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Losses, their parts, masks and images of stages II and III; `out` has no gradient, as published."""
        logits, q = self.lq_encoder(x), gt_indices
        lq_tokens = logits.argmax(1)
        lq = onehot(lq_tokens, self.n)
        out = self.vqgan.decode_onehot(straight_through(logits, draws.gumbel_lq).int().float())
        token_cls = F.cross_entropy(logits, q)
        e0, right = self.crit(lq, lq), (lq_tokens == q).long()
        h, w = q.shape[1:]
        k = (torch.cos(math.pi * draws.rate_noise / 2) * h * w).int().clamp(min=1)
        rank = draws.mask_noise.flatten(1).argsort(1, descending=True).argsort(1).view(q.shape)
        masked = (rank < k[:, None, None]).float()[:, None]
        with torch.no_grad():
            good = self.crit(lq, lq).argmax(1, keepdim=True).float()
        z = self.refine(lq, good, onehot(q, self.n), 1 - masked)
        sampled = torch.distributions.Categorical(logits=z.detach().permute(0, 2, 3, 1)).sample()
        self.crit(onehot(sampled, self.n), lq)  # published: its result is not used
        refined_tokens = z.argmax(1)
        e1, refined_right = self.crit(onehot(refined_tokens, self.n), lq), (refined_tokens == q).long()
        refine = (k[:, None, None] / (h * w) * F.cross_entropy(z, q, reduction='none')).mean()
        losses = {
            'token_cls_loss': token_cls,
            'crit_init_loss': balanced_cross_entropy(e0, right),
            'crit_refined_loss': F.cross_entropy(e1, refined_right),
            'refine_loss': refine,
        }
        return losses | {
            'l_codebook': sum(losses.values()),
            'lq_tokens': lq_tokens[:, None],
            'num_masked': k,
            'masks': torch.stack([good[:, 0], right.float(), e1.argmax(1).float(), refined_right.float()]),
            'out_img': out,
            'refined_img': self.vqgan.decode_onehot(straight_through(z, draws.gumbel_refined)),
        }


def draw(evaluation: Tensor, k: int, previous: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
    """k kept positions of one image, (1, 1, h, w): those kept before and at least one more."""
    p = torch.softmax(evaluation / temperature, 1)[:, 1:] * (1 - previous)
    k = max(1, k - int(previous.sum()))
    weights = p.flatten() + 1e-8
    if noise is not None:
        weights = weights.log() + noise.flatten()
    chosen = weights.sort(descending=True, stable=True).indices[:k]
    drawn = torch.zeros_like(weights)
    drawn[chosen] = 1
    return previous + drawn.view(p.shape)


def straight_through(logits: Tensor, gumbel: Tensor) -> Tensor:
    """One-hot choices with the gradient of the softmax: hard Gumbel-softmax, tau 1."""
    soft = torch.softmax(logits + gumbel, 1)
    return onehot(soft.argmax(1), logits.shape[1]) - soft.detach() + soft


def balanced_cross_entropy(logits: Tensor, labels: Tensor, b: float = 0.9999) -> Tensor:
    counts = torch.bincount(labels.flatten(), minlength=logits.shape[1]).float()
    weight = (1 - b) / (1 - b**counts + 1e-8)
    return F.cross_entropy(logits, labels, weight * len(weight) / (weight.sum() + 1e-8))
