"""ITER's networks beside their plain transcriptions, with equal weights."""

import math
import sys

import torch
from golden_case import GOLDEN, image
from torch import nn

sys.path.insert(0, str(GOLDEN.parent / 'oracles'))  # its files import one another
import iter_reference
import iter_token_reference
import iter_vqgan_reference

__all__ = ['EXACT', 'SMALL_VQGAN', 'agree', 'gradients', 'image', 'iter_reference', 'iter_token_reference',
           'iter_vqgan_reference', 'randomised', 'twin']  # fmt: skip

EXACT = torch.float64  # but for the exponentials of fused attention, which are those of float32
SMALL_VQGAN = {
    'n_embed': 12,
    'embed_dim': 16,
    'ddconfig': {
        'in_channels': 3,
        'emb_dim': 16,
        'resolution': [64, 64],
        'nf': 4,
        'ch_mult': [1, 1, 2, 2],
        'swin_dim': 16,
        'swin_blk_depth': 2,
        'num_res_blocks': 1,
        'res_blocks': 1,
    },
}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of which every one matters, and that keep the size of what they are given."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn_like(parameter)
            is_norm = name.endswith('weight') and parameter.dim() == 1
            scaled = noise / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1 * noise
            parameter.copy_(1 + scaled if is_norm else noise if 'bias_table' in name else scaled)
    return net


def twin(reference: nn.Module, net: nn.Module, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Both with the same random weights in double precision: reference, net."""
    reference = randomised(reference.to(EXACT), seed)
    net.load_state_dict(reference.state_dict(), strict=True)
    return reference, net.to(EXACT)


def gradients(net: nn.Module, out: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the mean square of an output, by the names of the parameters that have one."""
    net.zero_grad()
    out.square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def agree(found: torch.Tensor, expected: torch.Tensor, what: str = '') -> None:
    """Equal but for 1e-5 of the largest value; what is rounding alone is zero."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1e-10), what
