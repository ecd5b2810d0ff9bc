"""ITER's first stage: an autoencoder whose images are maps of tokens."""

import logging

import torch
from einops import rearrange
from pydantic import NonNegativeInt
from torch import Tensor

from basicsr.models.adversary import Adversary
from basicsr.models.base_model import BaseModel
from basicsr.models.iter_training import check_losses, image_losses
from basicsr.utils.options import Options
from basicsr.utils.padding import extend_symmetric
from basicsr.utils.registry import MODEL_REGISTRY, OptionError

logger = logging.getLogger(__name__)


@MODEL_REGISTRY.register()
class SwinVQGANModel(BaseModel):
    """g codes gt in tokens and makes it again of them (arXiv:2312.05616, stage I). Restoring is that, at scale 1.

    The log has the share of the codebook that a batch of one process uses, and its perplexity: how many codes would be
    used if all were used alike.

    Args:
        net_d_init_iters: d takes part after so many iterations; g learns without it until then.
        restart_dead_codes: every so many iterations, codes that no token of any process chose since the last time
            begin anew, as features of the latest batch; 0 is never, as published.
    """

    loss_names = ('pixel', 'struct', 'perceptual', 'codebook', 'gan')

    def __init__(
        self,
        opt: Options,
        net_d_init_iters: NonNegativeInt = 0,
        restart_dead_codes: NonNegativeInt = 0,
    ):
        if opt.scale != 1:
            raise OptionError(
                f'the first stage of ITER makes images of their own size: scale 1, got {opt.scale}', ('scale',)
            )
        super().__init__(opt)
        self.net_d_init_iters, self.iteration = net_d_init_iters, 0
        self.adversary = Adversary(self) if 'd' in self.nets else None
        self.restart_every, self.latest = restart_dead_codes, None
        self.chosen = torch.zeros(self.nets['g'].n_embed, dtype=torch.int64)  # tokens of each code since the last time
        if opt.is_train:
            check_losses(opt)

    def before_step(self, iteration: int) -> None:
        super().before_step(iteration)
        self.iteration = iteration

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        gt = self.latest = batch['gt']
        image, distance, tokens = self.nets['g'](gt)
        losses = {'l_g_codebook': self.losses['codebook'](distance)}
        losses |= {f'l_g_{name}': loss for name, loss in image_losses(self.losses, image, gt).items()}
        judged = self.adversary is not None and self.iteration > self.net_d_init_iters
        if judged:
            losses['l_g_gan'] = self.adversary.fool(image, gt)
        self.update('g', sum(losses.values()))
        if judged:
            losses |= self.adversary.learn(gt, image)
        return losses | codebook_use(self._counted(tokens))

    def after_step(self, iteration: int) -> None:
        if self.restart_every and iteration % self.restart_every == 0:
            self._restart_dead_codes(iteration)
        super().after_step(iteration)

    def restore(self, lq: Tensor) -> Tensor:
        """What the tokens of an image of any size hold of it; padded as published."""
        net = self.eval_net('g')
        return net(extend_symmetric(lq, net.size_multiple))[0][..., : lq.shape[-2], : lq.shape[-1]]

    def training_state(self) -> dict:
        return super().training_state() | ({'codes_chosen': self.chosen.cpu()} if self.restart_every else {})

    def load_training_state(self, state: dict) -> None:
        super().load_training_state(state)
        self.chosen = state.get('codes_chosen', self.chosen).to(self.device)

    def _counted(self, tokens: Tensor) -> Tensor:
        """How many of the tokens (b, h, w) each code has: (n_embed,) int64."""
        tokens = tokens.flatten()
        counts = tokens.new_zeros(len(self.chosen)).scatter_add_(0, tokens, torch.ones_like(tokens))
        if self.restart_every:
            self.chosen = self.chosen.to(counts.device) + self.accelerator.reduce(counts.clone(), reduction='sum')
        return counts

    @torch.no_grad()
    def _restart_dead_codes(self, iteration: int) -> None:
        """Dead codes become features of the first process's latest batch, each of another pixel, without momentum."""
        net, optimizer = self.bare('g'), self.optimizers['g']
        with self.accelerator.autocast():
            features = rearrange(net.features(self.latest), 'b c h w -> (b h w) c').float()
        dead = (self.chosen == 0).nonzero().flatten()[: len(features)]
        fresh = features[torch.randperm(len(features))[: len(dead)].to(features.device)]
        if not self.accelerator.is_main_process:
            fresh = torch.zeros_like(fresh)
        entries = net.quantize.embedding.weight
        entries[dead] = self.accelerator.reduce(fresh, reduction='sum').to(entries.dtype)
        for moment in optimizer.state[entries].values():
            if isinstance(moment, Tensor) and moment.shape == entries.shape:
                moment[dead] = 0
        self.chosen.zero_()
        logger.info('iteration %d: %d of %d codes were dead and begin anew', iteration, len(dead), len(entries))


def codebook_use(counts: Tensor) -> dict[str, Tensor]:
    """By their names in the log: the share of codes that have tokens; exp of the entropy of the codes' shares."""
    shares = counts / counts.sum()
    return {
        'codebook_used': (counts > 0).float().mean(),
        'codebook_perplexity': torch.special.entr(shares).sum().exp(),
    }
