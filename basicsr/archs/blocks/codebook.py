"""Vector quantisation (van den Oord et al., arXiv:1711.00937) as VQGAN trains it (Esser et al., arXiv:2012.09841)."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type, without_autocast


class VectorQuantizer(nn.Module):
    """The nearest entry of a learned codebook in the place of each pixel's features.

    Args:
        n_e, e_dim: entries and their channels.
        beta: weight of one of the loss's two terms: of the codebook's if `legacy`, as published, else of the features'.
    Shape: (b, e_dim, h, w) -> the entries (b, e_dim, h, w), through which gradients pass unchanged; the loss, a scalar;
        the indices (b, h, w). All computed in float32 at least, whatever autocast says.
    """

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25, legacy: bool = True):
        super().__init__()
        self.beta, self.legacy = beta, legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(z.device):
            z = z.to(exact_type(z.dtype))
            indices = self.indices(z)
            entries = self.entries(indices)
            of_features = F.mse_loss(z, entries.detach())
            of_codebook = F.mse_loss(entries, z.detach())
            weights = (1, self.beta) if self.legacy else (self.beta, 1)
            loss = weights[0] * of_features + weights[1] * of_codebook
            return z + (entries - z).detach(), loss, indices

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """(b, e_dim, h, w) -> (b, h, w) int64: the nearest entry of each pixel, the first of equals."""
        b, _, h, w = z.shape
        return rearrange(self._relative_distances(z).argmin(1), '(b h w) -> b h w', b=b, h=h, w=w)

    def distances(self, z: Tensor) -> Tensor:
        """(b, e_dim, h, w) -> (b * h * w, n_e): squared distances, pixels in raster order."""
        lengths = rearrange(z.to(exact_type(z.dtype)).square().sum(1), 'b h w -> (b h w) 1')
        return self._relative_distances(z) + lengths

    def _relative_distances(self, z: Tensor) -> Tensor:
        """Squared distances less the squared length of the pixel, which is the same for all entries."""
        with without_autocast(z.device):
            exact = exact_type(z.dtype)
            rows, entries = rearrange(z.to(exact), 'b c h w -> (b h w) c'), self.embedding.weight.to(exact)
            return torch.addmm(entries.square().sum(1), rows, entries.t(), alpha=-2)

    def entries(self, indices: Tensor) -> Tensor:
        """(b, h, w) int64 -> (b, e_dim, h, w)."""
        return rearrange(self.embedding(indices), 'b h w c -> b c h w')
