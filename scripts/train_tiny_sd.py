"""Teaches the networks of make_tiny_sd.py's folder a little, so that S3Diff-tiny has something to start from.

    python scripts/make_tiny_sd.py datasets/tiny_sd --groups 4
    python scripts/train_tiny_sd.py datasets/tiny_sd datasets/ATD_demo/gt

The autoencoder learns to code images (L1, and a little KL to N(0, 1)); its latents are then scaled to the deviation
that SD-Turbo's have. The UNet learns the noise of latents at the last of the 1000 steps: of latents that are all but
noise, as SD-Turbo did, and of latents as they are, which S3Diff gives it. SD-Turbo's size brings the latter along; tiny
networks have to be taught. The weights in the folder are replaced, after about ten minutes of one core.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from tqdm import tqdm

from basicsr.models.prompts import NEGATIVE, POSITIVE, encode
from basicsr.utils.cli import run
from basicsr.utils.image import read_image, to_tensor
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import sd_folder

KL_WEIGHT, CLIP = 1e-6, 1.0  # as of the autoencoders of latent diffusion; limit of gradient norms
LAST_STEP, ABAR = 999, 0.00466009508818388  # of the schedule that the folder describes


def main() -> int:
    args = parse_arguments()
    diffusers, folder = optional('diffusers', 's3diff'), sd_folder(args.folder, ('unet', 'vae', 'text_encoder'))
    torch.manual_seed(args.seed)
    crops = random_crops(Path(args.images), args.size, args.batch, args.seed)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / 'vae')
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / 'unet')
    report('autoencoder: L1', train_autoencoder(vae, crops, args.iterations))
    scale_latents(vae, torch.cat([next(crops) for _ in range(8)]))
    prompts = encode(folder, (POSITIVE, NEGATIVE))
    report('unet: squared error of the noise', train_unet(unet, vae, crops, prompts, args.iterations))
    vae.save_pretrained(folder / 'vae')
    unet.save_pretrained(folder / 'unet')
    return 0


def train_autoencoder(vae: nn.Module, crops: Iterator[Tensor], iterations: int) -> list[float]:
    """Let it code crops; returns the L1 of each iteration, in [-1, 1]."""

    def loss() -> tuple[Tensor, Tensor]:
        x = next(crops)
        posterior = vae.encode(x).latent_dist
        difference = (vae.decode(posterior.sample()).sample - x).abs().mean()
        return difference, KL_WEIGHT * posterior.kl().mean()

    return descend(vae, loss, iterations, 2e-3)


@torch.no_grad()
def scale_latents(vae: nn.Module, x: Tensor) -> None:
    """Let the 1x1 convolutions about the latents of x give them the deviation 1 / scaling_factor; images stay."""
    channels = vae.config.latent_channels
    factor = 1 / (vae.config.scaling_factor * vae.encode(x).latent_dist.sample().std())
    outward, inward = vae.quant_conv, vae.post_quant_conv
    outward.weight[:channels] *= factor
    outward.bias[:channels] *= factor
    outward.bias[channels:] += 2 * factor.log()  # the logarithm of the variance
    inward.weight /= factor


def train_unet(
    unet: nn.Module, vae: nn.Module, crops: Iterator[Tensor], prompts: Tensor, iterations: int
) -> list[float]:
    """Let it name the noise at the last step, under either prompt; returns the squared error of each iteration."""
    vae.requires_grad_(False)

    def loss() -> tuple[Tensor, ...]:
        x = next(crops)
        clean = vae.encode(x).latent_dist.sample() * vae.config.scaling_factor
        mixed = ABAR**0.5 * clean + (1 - ABAR) ** 0.5 * torch.randn_like(clean)
        is_mixed = torch.rand(len(x), 1, 1, 1) < 0.5
        seen = torch.where(is_mixed, mixed, clean)
        noise = (seen - ABAR**0.5 * clean) / (1 - ABAR) ** 0.5
        prompt = prompts[torch.randint(len(prompts), (len(x),))]
        return ((unet(seen, LAST_STEP, prompt).sample - noise).square().mean(),)

    return descend(unet, loss, iterations, 2e-3)


def descend(net: nn.Module, loss: Callable[[], tuple[Tensor, ...]], iterations: int, rate: float) -> list[float]:
    """Adam on the sum of what `loss` returns, with a rate that falls to 0; returns the first of it, per iteration."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, iterations)
    logged = []
    with tqdm(range(iterations), unit='it', disable=not sys.stderr.isatty()) as bar:
        for _ in bar:
            parts = loss()
            optimizer.zero_grad()
            sum(parts).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            logged.append(parts[0].item())
            bar.set_postfix(loss=f'{logged[-1]:.4f}')
    return logged


def random_crops(folder: Path, size: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches (batch, 3, size, size) in [-1, 1] of the images in a folder, half of them mirrored.

    Raises UserError for images smaller than that, and where there are none.
    """
    paths, draw = sorted(folder.glob('*.png')), random.Random(seed)
    if not paths:
        raise UserError(f'{folder}: no PNG image')

    def crop() -> Tensor:
        path = draw.choice(paths)
        image = to_tensor(read_image(path))
        if min(image.shape[1:]) < size:
            raise UserError(f'{path}: smaller than crops of {size} x {size} pixels')
        top, left = (draw.randint(0, side - size) for side in image.shape[1:])
        cut = 2 * image[:, top : top + size, left : left + size] - 1
        return cut.flip(2) if draw.random() < 0.5 else cut

    while True:
        yield torch.stack([crop() for _ in range(batch)])


def report(what: str, losses: list[float]) -> None:
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f'{what}: {first:.4f} in the first {tenth} of {len(losses)} iterations, {last:.4f} in the last', flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('folder', metavar='FOLDER', help='made by make_tiny_sd.py')
    add('images', metavar='IMAGES', help='folder of PNG images')
    add('--iterations', type=int, default=1000, help='of each network (1000)')
    add('--size', type=int, default=64, help='side of the crops, a multiple of 16 (64)')
    add('--batch', type=int, default=4, help='crops in an iteration (4)')
    add('--seed', type=int, default=0, help='of crops and noise (0)')
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
