"""LPIPS, the learned perceptual distance (Zhang et al., arXiv:1801.03924), through the `lpips` package."""

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from basicsr.utils.registry import ARCH_REGISTRY, OptionError


@ARCH_REGISTRY.register()
class LPIPS(nn.Module):
    """Distance of two images in the features of a network trained for classification; lower is closer.

    Args:
        net: the network; 'alex' is usual for tables, 'vgg' for training.
        pretrained: load its published weights, which torchvision keeps in TORCH_HOME and downloads once.
    Shape: two (b, 3, h, w) in [0, 1] -> (b,). Frozen, and always in evaluation mode.
    """

    def __init__(self, net: Literal['alex', 'vgg', 'squeeze'] = 'alex', pretrained: bool = True):
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise OptionError('LPIPS needs the package lpips: pip install lpips') from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', UserWarning)  # the package calls torchvision by its old arguments
                distance = lpips.LPIPS(net=net, pnet_rand=not pretrained, verbose=False)
        except OSError as error:
            folder = Path(torch.hub.get_dir(), 'checkpoints')
            raise OptionError(
                f'LPIPS needs the ImageNet weights of {net!r}, which torchvision cannot get: {error}; '
                f'connect once, or put the file in {folder}'
            ) from None
        self.distance = distance.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'LPIPS':
        """The lpips package drops out features in training mode; here the distance is one function."""
        return super().train(False)

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return self.distance(2 * sr - 1, 2 * gt - 1).flatten()
