"""3x3 convolutions with a quarter of the multiplications (Winograd's method; Lavin and Gray, arXiv:1509.09308).

Tiles of 6x6 pixels and the kernel are transformed so that 36 products of channels give the 4x4 pixels inside, where the
formula has 144. Of an image enlarged by 2, whose rows and columns come in pairs, 25 products are enough. Rounding is
about five times that of the formula, in float32 still a millionth of the values. For computing without gradients.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE = 4  # pixels of the result along a side
# Measured on a CPU for 64 to 512 channels: pixels of the result above which transforming the kernel is worth it.
WORTHWHILE = 1024
LEAST_CHANNELS = 64
BAND = 2**16  # numbers of one channel-wise product at a time: what follows one another then stays in the cache
KERNELS = 5 * 2**20  # numbers of transformed kernels at a time: larger blocks of memory cost a page fault for each page


class Algorithm(NamedTuple):
    """Matrices that make products of tiles (products, size^2), of kernels (products, 9), and of products pixels.

    size, step: of the tiles of the given image, which overlap.
    """

    size: int
    step: int
    tiles: Tensor
    kernels: Tensor
    pixels: Tensor


@lru_cache
def algorithm(enlarges: bool) -> Algorithm:
    """Derived by Toom and Cook's method from the points at which polynomials are multiplied, and infinity."""
    # Points of enlarged images make a row of zeros and two that are alike; the others were chosen for little rounding.
    points = (0.0, 1.0, -1.0, 1.75, -1.75) if enlarges else (0.0, 0.75, -0.75, 1.5, -1.5)
    with torch.inference_mode(False), torch.device('cpu'):
        tiles = torch.linalg.inv(powers(points, 6)).T
        kernels, pixels = powers(points, 3), powers(points, TILE).T
        if enlarges:
            doubling = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0)[1:-1]
            needed = [0, 1, 3, 4, 5]
            tiles, kernels, pixels = (tiles @ doubling)[needed], kernels[needed], pixels[:, needed]
        both = [torch.kron(matrix, matrix).float() for matrix in (tiles, kernels, pixels)]
    return Algorithm(4, 2, *both) if enlarges else Algorithm(6, 4, *both)


def powers(points: tuple[float, ...], count: int) -> Tensor:
    """(points + 1, count): 1, x, x^2, ... of each point, and of infinity the last alone."""
    finite = torch.tensor(points, dtype=torch.float64)[:, None] ** torch.arange(count)
    return torch.cat([finite, torch.eye(count, dtype=torch.float64)[-1:]])


def repays(x: Tensor, conv: nn.Conv2d, enlarges: bool = False) -> bool:
    """Whether `winograd` may and should compute conv(x), or that of x enlarged by 2."""
    height, width = (side * (2 if enlarges else 1) for side in x.shape[-2:])
    return (
        x.device.type == 'cpu'
        and x.dtype == conv.weight.dtype == torch.float32
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled('cpu') or torch.compiler.is_compiling())
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and height % TILE == width % TILE == 0
        and height * width >= WORTHWHILE
    )


def winograd(x: Tensor, conv: nn.Conv2d, enlarges: bool = False, norm: nn.GroupNorm | None = None) -> Tensor:
    """conv(x), conv(x enlarged by 2), or conv(silu(norm(x))), in channels-last order.

    Args:
        conv: 3x3, padding 1, with bias.
        norm: that and SiLU are applied to a few rows at a time: the whole of it never is in memory.
    Shape: (b, c, h, w) -> (b, o, h, w) or (b, o, 2 h, 2 w), whose sides are multiples of 4.
    """
    how = algorithm(enlarges)
    (b, c, h, w), o = x.shape, conv.out_channels
    out = x.new_empty(b, h // how.step, TILE, w // how.step, TILE, o)
    scale, shift = (None, None) if norm is None else affine(x, norm)
    width = -(-o // -(-len(how.tiles) * c * o // KERNELS))
    for weight, bias, part in zip(conv.weight.split(width), conv.bias.split(width), out.split(width, -1)):
        kernels = (how.kernels @ weight.reshape(-1, 9).T).view(len(how.tiles), -1, c).transpose(1, 2)
        bands = Bands(how, kernels, bias, rows=min(BAND // (max(kernels.shape[1:]) * part.shape[3]), part.shape[1]))
        for number, image in enumerate(x.permute(0, 2, 3, 1)):
            bands(image, part[number], None if norm is None else (scale[number], shift[number]))
    return out.view(b, -1, out.shape[3] * TILE, o).permute(0, 3, 1, 2)


class Bands:
    """Computes images a few rows of tiles at a time, in memory that is allocated once.

    Args:
        kernels: (products, c, o); bias: (o,).
        rows: of tiles at a time.
    """

    def __init__(self, how: Algorithm, kernels: Tensor, bias: Tensor, rows: int):
        self.how, self.kernels, self.bias, self.rows = how, kernels, bias, max(1, rows)

    def __call__(self, image: Tensor, out: Tensor, affine: tuple[Tensor, Tensor] | None) -> None:
        """Fill out (rows of tiles, 4, tiles in a row, 4, o) from image (h, w, c), or silu(image * scale + shift)."""
        (_, w, c), (down, _, across, _, o), how = image.shape, out.shape, self.how
        products, rows = len(how.tiles), self.rows
        band = image.new_zeros((rows - 1) * how.step + how.size, w + 2, c)
        gathered = image.new_empty(how.size, how.size, across, c)
        pixels = image.new_empty(TILE, TILE, across, o)
        transformed, multiplied = (image.new_empty(products * rows * across * side) for side in (c, o))
        for top in range(0, down, rows):
            count = min(rows, down - top)
            # The image's rows that the tiles see: they begin one above. Around the image there are zeros.
            begin, end = top * how.step - 1, (top + count - 1) * how.step + how.size - 1
            seen, given = band[: end - begin], image[max(0, begin) : end]
            above, inner = max(0, -begin), seen[max(0, -begin) :][: len(given), 1:-1]
            if affine is None:
                inner.copy_(given)
            else:
                F.silu(torch.addcmul(affine[1], given, affine[0], out=inner), inplace=True)
            seen[:above].zero_()
            seen[above + len(given) :].zero_()
            tiles = seen.unfold(0, how.size, how.step).unfold(1, how.size, how.step).permute(0, 3, 4, 1, 2)
            places = count * across
            by_rows = transformed[: products * places * c].view(products, count, -1)
            for row in range(count):
                gathered.copy_(tiles[row])
                torch.mm(how.tiles, gathered.view(how.size**2, -1), out=by_rows[:, row])
            found = multiplied[: products * places * o].view(products, places, o)
            torch.bmm(by_rows.view(products, places, c), self.kernels, out=found)
            by_rows = found.view(products, count, -1)
            for row in range(count):
                torch.mm(how.pixels, by_rows[:, row], out=pixels.view(TILE**2, -1))
                torch.add(pixels.transpose(1, 2), self.bias, out=out[top + row])


def affine(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of each image's channels, (b, c), that are the normalisation of x (b, c, h, w)."""
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)
    sums = x.new_zeros(2, len(x), x.shape[1], dtype=torch.float64)
    for part in rows.split(512, 1):
        sums += torch.stack([part.sum(1), part.square().sum(1)])
    mean, square = sums.unflatten(2, (norm.num_groups, -1)).sum(3) / (rows[0].numel() / norm.num_groups)
    rstd = ((square - mean**2).clamp(min=0) + norm.eps).rsqrt()
    of_channel = torch.stack([rstd, mean]).repeat_interleave(x.shape[1] // norm.num_groups, 2)
    scale = of_channel[0] * norm.weight
    return scale.to(x.dtype), (norm.bias - of_channel[1] * scale).to(x.dtype)
