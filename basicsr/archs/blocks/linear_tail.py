"""A tail of convolutions and pixel shuffles has no nonlinearity: it is computed as one small convolution.

What RCAN, EDSR and D2C-SR end in costs 3.3 million multiplications a pixel at x8 and 0.8 at x4, and stores 64 channels
at the enlarged size. The one kernel that does the same costs a tenth of it, and stores the image. Only the outermost
pixels differ, because each convolution pads with zeros anew: those are computed step by step.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.blocks.attention import exact_type, without_autocast
from basicsr.archs.blocks.conv import pixel_shuffles

# Fewer pixels than this, the edges not counted, do not repay the composition of the kernel (measured, x2 to x4).
WORTHWHILE = 600


class LinearTail(nn.Sequential):
    """Upsampler and last convolution: (b, dim, h, w) -> (b, out_chans, h * scale, w * scale), any h and w.

    Raises ValueError for a scale that is neither 3 nor a power of 2. kernel_size is that of the last convolution, odd.
    """

    def __init__(self, dim: int, out_chans: int, scale: int, kernel_size: int = 3):
        last = nn.Conv2d(dim, out_chans, kernel_size, padding=kernel_size // 2)
        super().__init__(pixel_shuffles(dim, scale), last)
        self.scale = scale
        reach = kernel_size // 2
        for shuffle in reversed(self[0][1::2]):
            self.edge = max(1, -(-reach // shuffle.upscale_factor))  # pixels of the input that see beyond it
            reach = self.edge + 1

    def forward(self, x: Tensor, colors: nn.Conv2d | None = None) -> Tensor:
        """`colors` is a 1x1 convolution of the enlarged image."""
        # An exported network takes images of any size: it cannot choose by theirs.
        if torch.compiler.is_exporting() or len(self[0]) == 0 or not self._repays(len(x), *x.shape[-2:]):
            out = self[1](self[0](x))
            return out if colors is None else colors(out)
        weight, bias = self.composed(colors, x.device)
        margin = self.edge * self.scale
        top, bottom, left, right = (self._edge(x, axis, at_end, colors) for axis in (2, 3) for at_end in (False, True))
        left, right = left[:, :, margin:-margin], right[:, :, margin:-margin]
        inner = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=weight.shape[-1] // 2 - self.edge)
        inner = F.pixel_shuffle(inner, self.scale)
        return torch.cat([top, torch.cat([left, inner, right], 3), bottom], 2)

    def _repays(self, b: int, h: int, w: int) -> bool:
        """The edges cost about as much as a frame of five pixels in all for each side."""
        return min(h, w) >= 4 * self.edge + 4 and b * (h - 5) * (w - 5) > WORTHWHILE

    def composed(self, colors: nn.Conv2d | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """The convolution whose pixel shuffle is the tail, `edge` pixels and more from the edges.

        Shape: weight (out_chans * scale^2, dim, k, k), bias (out_chans * scale^2,), in float32 at least; gradients
        reach the parameters.
        """
        exact = exact_type(self[1].weight.dtype)
        with without_autocast(device):
            weight, bias = self[1].weight.to(exact), self[1].bias.to(exact)
            if colors is not None:
                mix = colors.weight[:, :, 0, 0].to(exact)
                weight = (mix @ weight.flatten(1)).view(-1, *weight.shape[1:])
                bias = mix @ bias + colors.bias.to(exact)
            weight, bias = weight[:, None, None], bias[:, None, None]  # (out_chans, phase y, phase x, ...)
            for conv, shuffle in reversed(list(zip(self[0][::2], self[0][1::2]))):
                weight = phases(weight, shuffle.upscale_factor)
                places = weight.shape[:3]
                flat = weight.flatten(0, 2)
                inner_bias = (flat.sum((2, 3)) @ conv.bias.to(exact)).view(places)
                bias = bias.repeat(1, shuffle.upscale_factor, shuffle.upscale_factor) + inner_bias
                kernel = conv.weight.to(exact).transpose(0, 1).flip(2, 3)
                flat = F.conv2d(flat, kernel, padding=kernel.shape[-1] - 1)
                weight = flat.view(*places, *flat.shape[1:])
        return weight.flatten(0, 2), bias.flatten()

    def _edge(self, x: Tensor, axis: int, at_end: bool, colors: nn.Conv2d | None) -> Tensor:
        """The outermost `edge` pixels along one side, enlarged, step by step with just the pixels that they need."""
        steps = [(conv, shuffle) for conv, shuffle in zip(self[0][::2], self[0][1::2])] + [(self[1], None)]
        wanted, plan = self.edge * self.scale, []
        for conv, shuffle in reversed(steps):
            kept = wanted if shuffle is None else -(-wanted // shuffle.upscale_factor)
            wanted = kept + conv.kernel_size[0] // 2
            plan.append((conv, shuffle, kept, wanted))
        for conv, shuffle, kept, needed in reversed(plan):
            x = outermost(conv(outermost(x, needed, axis, at_end)), kept, axis, at_end)
            if shuffle is not None:
                x = shuffle(x)
        return x if colors is None else colors(x)


def phases(weight: Tensor, factor: int) -> Tensor:
    """A kernel on an enlarged image as one on the small image whose pixel shuffle the enlarged one is.

    Shape: (o, p, p, c, k, k) -> (o, factor * p, factor * p, c * factor^2, k', k'), k' odd.
    """
    pad = weight.shape[-1] // 2
    reach = -(-pad // factor)
    size = (2 * reach + 1) * factor
    placed = []
    for y in range(factor):
        for x in range(factor):
            top, left = reach * factor + y - pad, reach * factor + x - pad
            margins = (left, size - left - weight.shape[-1], top, size - top - weight.shape[-1])
            placed.append(F.pixel_unshuffle(F.pad(weight, margins), factor))
    return rearrange(torch.stack(placed), '(y x) o py px c h w -> o (y py) (x px) c h w', y=factor)


def outermost(x: Tensor, count: int, axis: int, at_end: bool) -> Tensor:
    """The first or last `count` rows (axis 2) or columns (axis 3)."""
    return x.narrow(axis, x.shape[axis] - count if at_end else 0, count)
