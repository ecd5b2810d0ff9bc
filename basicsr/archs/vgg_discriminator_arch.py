"""The discriminator of SRGAN and ESRGAN (Ledig et al., arXiv:1609.04802), which judges a whole crop."""

import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.registry import ARCH_REGISTRY, OptionError


@ARCH_REGISTRY.register()
class VGGStyleDiscriminator(nn.Module):
    """Stages of two convolutions, the second of which halves the size, down to 4 x 4; then two linear layers.

    Args:
        num_in_ch: channels of the image.
        num_feat: channels of the first stage; doubled at each halving, up to eight times.
        input_size: side of the square crops: 128 or 256.
    Shape: (b, num_in_ch, input_size, input_size) -> (b, 1) logits.
    """

    def __init__(self, num_in_ch: int, num_feat: int, input_size: int = 128):
        super().__init__()
        if input_size not in (128, 256):
            raise OptionError(f'input_size must be 128 or 256, got {input_size}', ('input_size',))
        self.input_size, self.stages = input_size, 5 if input_size == 128 else 6
        widths = [num_in_ch, *(num_feat * min(2**stage, 8) for stage in range(self.stages))]
        for stage in range(self.stages):
            before, width = widths[stage : stage + 2]
            # The first convolution of all is the only one with a bias and without normalisation.
            self.add_module(f'conv{stage}_0', nn.Conv2d(before, width, 3, padding=1, bias=stage == 0))
            if stage:
                self.add_module(f'bn{stage}_0', nn.BatchNorm2d(width))
            self.add_module(f'conv{stage}_1', nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            self.add_module(f'bn{stage}_1', nn.BatchNorm2d(width))
        self.linear1 = nn.Linear(widths[-1] * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(
                f'this VGGStyleDiscriminator judges {self.input_size}x{self.input_size} pixels, '
                f'got {x.shape[-2]}x{x.shape[-1]}'
            )
        for stage in range(self.stages):
            for part in range(2):
                x = self.get_submodule(f'conv{stage}_{part}')(x)
                if stage or part:
                    x = self.get_submodule(f'bn{stage}_{part}')(x)
                x = F.leaky_relu(x, 0.2)
        return self.linear2(F.leaky_relu(self.linear1(x.flatten(1)), 0.2))
