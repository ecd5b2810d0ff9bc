"""What `scripts/benchmark.py iter` and `iter-steps` measure: ITER and its parts, and what fewer steps cost and save."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from benchmarking import Row
from benchmarking_steps import Study, add_arguments
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.iter_arch import TrainingDraws
from basicsr.models.iter_model import ITERModel
from basicsr.utils.options import load_options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, UserError

ROOT = Path(__file__).resolve().parents[1]
ORACLES = ROOT / 'tests/oracles'
STEPS = (16, 8, 4, 2, 1)
# No token is that good: all steps run, in ours and in the transcription, whatever the weights are.
ALL_STEPS = {'T': 8, 'schedule': 'linear', 'threshold': 1.0, 'sampling': 'greedy'}
SHRUNKEN = {
    'vqgan_opt': {
        'n_embed': 12,
        'embed_dim': 16,
        'ddconfig': {'in_channels': 3, 'emb_dim': 16, 'resolution': [64, 64], 'nf': 4, 'ch_mult': [1, 1, 2, 2],
                     'swin_dim': 8, 'swin_blk_depth': 2, 'num_res_blocks': 1, 'res_blocks': 1},
    },
    'demask_opt': {'ch': 16, 'swin_blk_num': 1, 'swin_blk_depth': 2},
}  # fmt: skip


def iter_rows(shrink: bool) -> list[Row]:
    """Whole images as inference.py restores them, the parts of that, and what stages II and III learn by."""
    opt = load_options(ROOT / 'options/test/ITER/ITER_x4.yml', False, check_files=False)
    network = {**opt.networks['g'], **(SHRUNKEN if shrink else {})}
    rows = []
    for height, width, dtype, most_time, most_memory in (
        (31, 47, 'fp32', 0.65, 0.6),
        (31, 47, 'bf16', 0.4, None),
        (64, 64, 'fp32', 0.65, 0.6),
        (64, 64, 'bf16', 0.4, None),
    ):
        height, width = (9, 12) if shrink else (height, width)
        model = {'model_type': 'ITERModel', 'model': {'refinement': ALL_STEPS}}
        sources, limits = ('', f'{ORACLES / "iter_reference.py"}:ITERReference'), (most_time, most_memory)
        rows.append(Row('ITER_x4', network, sources, 4, height, 'restore', dtype, *limits, width=width, model=model))
    sources = f'{__file__}:ITERPart', f'{__file__}:ITERPartTranscription'
    for part in ('encode', 'decode', 'evaluate', 'refine', 'learn'):
        network = {**network, 'part': part}
        side, kind = (32, 'train') if part == 'learn' else (64, 'forward')
        side = 16 if shrink else side
        rows.append(Row(f'ITER_x4, {part}', network, sources, 4, side, kind, 'fp32', constant_weights=kind != 'train'))
    return rows


class ITERPart(nn.Module):
    """A part of ITER's work for an lq image that its networks take as it is; tokens and draws are always the same.

    Args:
        part: 'encode' is gt's features before their nearest codes are found, 'decode' an image of tokens; 'evaluate'
            and 'refine' are one call of a token net; 'learn' gives the losses of a training step.
    """

    def __init__(self, part: str, vqgan_opt: dict, scale_factor: int, demask_net: str, demask_opt: dict | None = None):
        super().__init__()
        self.part, self.scale, self.count = part, scale_factor, vqgan_opt['n_embed']
        self.g = self.network()(vqgan_opt, scale_factor, demask_net, demask_opt)

    def network(self) -> type[nn.Module]:
        return ARCH_REGISTRY.get('ITER')

    def constant_weights(self) -> AbstractContextManager:
        return getattr(self.g, 'constant_weights', nullcontext)()

    def forward(self, lq: Tensor) -> Tensor:
        gt = F.interpolate(lq, scale_factor=self.scale, mode='bilinear')
        if self.part == 'encode':
            return self.encode(gt)
        random = torch.Generator().manual_seed(1)
        shape = len(lq), lq.shape[2] * self.scale // 8, lq.shape[3] * self.scale // 8
        tokens, lq_tokens = (torch.randint(self.count, shape, generator=random).to(lq.device) for _ in range(2))
        kept, good, rate = (torch.rand(shape, generator=random).to(lq) for _ in range(3))
        if self.part != 'learn':
            return getattr(self, self.part)(tokens, lq_tokens, (kept > 0.5).to(lq), (good > 0.5).to(lq))
        gumbel = [-torch.empty(shape[0], self.count, *shape[1:]).exponential_(generator=random).log() for _ in range(2)]
        return 0.5 + self.learn(lq, gt, rate[:, 0, 0], kept, *(noise.to(lq) for noise in gumbel))  # L1 to 0.5 follows

    def encode(self, gt: Tensor) -> Tensor:
        return self.g.vqgan.features(gt)

    def decode(self, tokens: Tensor, *_) -> Tensor:
        return self.g.vqgan.decode_indices(tokens)

    def evaluate(self, tokens: Tensor, lq_tokens: Tensor, *_) -> Tensor:
        return self.g.evaluate(tokens, self.g.critic_condition(lq_tokens))

    def refine(self, tokens: Tensor, lq_tokens: Tensor, kept: Tensor, good: Tensor) -> Tensor:
        return self.g.refine(self.g.refine_condition(lq_tokens, good), tokens, kept)

    def learn(self, lq: Tensor, gt: Tensor, rate: Tensor, mask: Tensor, of_lq: Tensor, of_refined: Tensor) -> Tensor:
        """L1 stands for LPIPS, whose weights may not be here. The image of lq's tokens, `of_lq`, teaches nothing."""
        with torch.no_grad():
            gt_tokens = self.g.vqgan.indices(gt)
        found = self.g(lq, gt_tokens, TrainingDraws(rate, mask, of_refined))
        losses = LOSS_REGISTRY.build({'type': 'TokenLoss'})(found, gt_tokens)
        return sum(losses.values()) + (found.refined_image - gt).abs().mean()


class ITERPartTranscription(ITERPart):
    """The same with the networks of the plain transcription and all that is published to be computed."""

    def network(self) -> type[nn.Module]:
        sys.path.insert(0, str(ORACLES))
        from iter_reference import ITERReference

        return ITERReference

    def encode(self, gt: Tensor) -> Tensor:
        return self.g.vqgan.prequant(gt)

    def onehot(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.count).movedim(-1, 1).to(self.g.lq_encoder.model[0].weight)

    def evaluate(self, tokens: Tensor, lq_tokens: Tensor, *_) -> Tensor:
        return self.g.crit(self.onehot(tokens), self.onehot(lq_tokens))

    def refine(self, tokens: Tensor, lq_tokens: Tensor, kept: Tensor, good: Tensor) -> Tensor:
        return self.g.refine(self.onehot(lq_tokens), good[:, None], self.onehot(tokens), kept[:, None])

    def learn(self, lq: Tensor, gt: Tensor, rate: Tensor, mask: Tensor, of_lq: Tensor, of_refined: Tensor) -> Tensor:
        from iter_reference import Draws

        with torch.no_grad():
            _, _, gt_tokens = self.g.vqgan(gt)  # published: gt is decoded, too, to be shown
        found = self.g.training_losses(lq, gt_tokens, Draws(rate, mask, of_lq, of_refined))
        return found['l_codebook'] + (found['refined_img'] - gt).abs().mean()


def add_steps_parser(commands) -> None:
    """The command iter-steps of benchmark.py."""
    parser = commands.add_parser('iter-steps', help='ITER: quality and seconds for numbers of steps')
    add_arguments(parser, STUDY, 'ITER', STEPS)


def rows(model: ITERModel, args: argparse.Namespace, images: int, measure: Callable[[], dict]) -> Iterator[dict]:
    """Every number of steps, the largest first; and how many of them an image took."""
    nets, calls = model.eval_net('g').token_refine_net, []
    if nets is None:
        raise UserError('network_g has no token nets (refine: false): there are no steps')
    nets.token_refine_net.register_forward_hook(lambda *_: calls.append(1))
    for steps in sorted(args.steps, reverse=True):
        model.refinement = replace(model.refinement, T=steps)
        calls.clear()
        found = measure()
        yield {'steps': steps, 'steps_taken': len(calls) / images, **found}


STUDY = Study(
    command='iter-steps',
    model_type=ITERModel,
    columns=('T', 'steps taken'),
    keys=('steps', 'steps_taken'),
    line='',
    compared_with='the largest T',
    is_reference=lambda model, row: True,
    metric={'crop_border': 4, 'test_y_channel': True},
    space='Y',
    rows=rows,
)
