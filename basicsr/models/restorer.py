"""The one path that restores: validation, test.py, inference.py and the demo end in Restorer."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.color_fix import FIXES, ColorFix, fix_color
from basicsr.utils.registry import UserError, suggestion
from basicsr.utils.tiling import tile_count, tiled

logger = logging.getLogger(__name__)
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
SMALLEST_TILE = 32


class Restorer:
    """Images in, restored images out, of a model that offers restore, context, scale, size_multiple and device.

    Args:
        tile: largest side that is restored at once; 0 takes the whole image. A network that looks at the whole image
            (ATD's categories and dictionary) computes something a little different on tiles.
        overlap: pixels that neighbouring tiles share and blend; at most half a tile is used.
        tile_batch: tiles restored at once.
        self_ensemble: the mean over the eight flips and transpositions of lq, for eight times the work.
        maps: the result has the model's maps (see its `restore_with_maps`) as further channels; values in [0, 1].
        color_fix, color_strength: give the result the colours of the input, see fix_color; of the whole image, whatever
            the tiles, and after what the model does of the kind itself (S3Diff).
        dtype: 'fp32', 'bf16' or 'fp16' (by autocast), or 'auto': bf16 on a CUDA device that has it, else fp32.
    Out of memory, it halves tile_batch, then tile, keeps what fits for the images that follow, and says so once.
    A model with `tiles_itself` is given whole images, and what it needs to know of tiles: restore(lq, tile=, overlap=,
    tile_batch=, progress=, **context).
    """

    def __init__(
        self,
        model,
        tile: int = 0,
        overlap: int = 32,
        tile_batch: int = 1,
        self_ensemble: bool = False,
        dtype: str = 'fp32',
        maps: bool = False,
        color_fix: ColorFix = 'none',
        color_strength: float = 1,
    ):
        if tile < 0 or overlap < 0 or tile_batch < 1:
            raise UserError(
                f'tile and overlap are 0 or more and tile_batch 1 or more, got {tile}, {overlap}, {tile_batch}'
            )
        if dtype not in ('auto', *DTYPES):
            raise UserError(f'{dtype!r} is not a known dtype; known: auto, {", ".join(DTYPES)}')
        if color_fix not in FIXES:
            raise UserError(f'{color_fix!r} is not a known colour fix; {suggestion(color_fix, FIXES)}')
        if not 0 <= color_strength <= 1:
            raise UserError(f'color_strength is from 0 to 1, got {color_strength}')
        if color_fix == 'none' and color_strength != 1:
            raise UserError(f'color_strength {color_strength} is of a color_fix, and there is none')
        if maps and not hasattr(model, 'restore_with_maps'):
            raise UserError(f'{type(model).__name__} has no maps beside the image')
        self.model, self.tile, self.overlap, self.tile_batch = model, tile, overlap, tile_batch
        self.self_ensemble, self.maps = self_ensemble, maps
        self.color_fix, self.color_strength = color_fix, color_strength
        self.dtype = automatic_dtype(model.device) if dtype == 'auto' else dtype

    @torch.inference_mode()
    def __call__(self, lq: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """(b, 3, h, w) in [0, 1] on any device -> (b, 3, h * scale, w * scale) in [0, 1], float32, on that device.

        progress is called with (steps done, steps in all). Raises MemoryError if not even the smallest tile fits, and
        FloatingPointError if the network gives NaN or infinity in fp32.
        """
        height, width = lq.shape[-2:]
        context = self.model.context(lq.to(self.model.device))  # once per image: what its tiles must agree on
        padded = pad_to_multiple(lq, self.model.size_multiple)
        transforms = range(8) if self.self_ensemble else range(1)
        while True:
            settings = self.tile, self.tile_batch
            try:
                sr = self._mean(padded, context, transforms, progress)
                break
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside the except block: there the traceback would keep the failed call's tensors alive.
            self._use_less_memory(max(padded.shape[-2:]), *settings)
        scale = self.model.scale
        return self._in_colors_of(lq, sr[..., : height * scale, : width * scale]).clamp(0, 1).to(lq.device)

    def _in_colors_of(self, lq: Tensor, sr: Tensor) -> Tensor:
        if self.color_fix == 'none':
            return sr
        try:
            enlarged = F.interpolate(lq.to(sr), sr.shape[-2:], mode='bilinear', align_corners=False)
            image, maps = sr[:, : lq.shape[1]], sr[:, lq.shape[1] :]
            return torch.cat([fix_color(image, enlarged, self.color_fix, self.color_strength), maps], 1)
        except RuntimeError as error:
            if sr.device.type == 'cpu' or not _is_out_of_memory(error):
                raise
        return self._in_colors_of(lq.cpu(), sr.cpu())  # the host has room for some more images of that size

    def _mean(self, lq: Tensor, context: dict, transforms: range, progress: Callable | None) -> Tensor:
        total = None
        for step, transform in enumerate(transforms):
            image = _transformed(lq, transform)
            tile, overlap = self._tile_for(image)
            if getattr(self.model, 'tiles_itself', False):
                report = partial(_report_part, progress, step, len(transforms)) if progress else None
                within = {'tile': tile, 'overlap': overlap, 'tile_batch': self.tile_batch, 'progress': report}
                sr = self._restore(image, context | within, len(lq))
            else:
                count = tile_count(*image.shape[-2:], tile, overlap)
                report = partial(_report, progress, step * count, len(transforms) * count) if progress else None
                restore = partial(self._restore, context=context, images=len(lq))
                sr = tiled(restore, image, self.model.scale, tile, overlap, self.tile_batch, report)
            sr = _restored(sr, transform)
            total = sr if total is None else total + sr
        return total / len(transforms)

    def _tile_for(self, image: Tensor) -> tuple[int, int]:
        """Tile and overlap for an image; tiles are multiples of size_multiple, as images are."""
        multiple = self.model.size_multiple
        tile = -(-self.tile // multiple) * multiple
        return tile, min(self.overlap, tile // 2)

    def _restore(self, lq: Tensor, context: dict, images: int) -> Tensor:
        """Tiles, image by image in turn -> their sr; in a wider dtype if this one overflows."""
        lq = lq.to(self.model.device)
        context = {name: _repeated(value, images, len(lq) // images) for name, value in context.items()}
        while True:
            kind = self.model.device.type
            with torch.autocast(kind, DTYPES[self.dtype], enabled=self.dtype != 'fp32'):
                restore = self.model.restore_with_maps if self.maps else self.model.restore
                sr = restore(lq, **context).float()
            if torch.isfinite(sr).all():
                return sr
            if self.dtype == 'fp32':
                raise FloatingPointError('the network gives NaN or infinity for this image; are its weights damaged?')
            wider = 'bf16' if self.dtype == 'fp16' and _has_bf16(self.model.device) else 'fp32'
            logger.warning('%s overflows in this network: going on in %s', self.dtype, wider)
            self.dtype = wider

    def _use_less_memory(self, longest: int, tile: int, tile_batch: int) -> None:
        """Halve the batch of tiles, or the tile if there is no batch. Raises MemoryError below the smallest tile."""
        if self.model.device.type == 'cuda':
            torch.cuda.empty_cache()
        if tile_batch > 1 and 0 < tile < longest:
            self.tile_batch = tile_batch // 2
            logger.warning('out of memory with %d tiles at once: going on with %d', tile_batch, self.tile_batch)
            return
        multiple = self.model.size_multiple
        largest = longest if tile == 0 else min(tile, longest)
        self.tile = -(-largest // (2 * multiple)) * multiple
        if largest <= max(SMALLEST_TILE, multiple) or self.tile >= largest:
            self.tile = tile
            raise MemoryError(
                f'out of memory even with tiles of {largest} pixels on {self.model.device}; '
                'free some memory or use another device or a smaller network'
            )
        what = f'tiles of {largest} pixels' if tile and tile < longest else f'a whole image of {longest} pixels a side'
        logger.warning('out of memory with %s: going on with tiles of %d', what, self.tile)


def automatic_dtype(device: torch.device) -> str:
    """bf16 on a CUDA device that computes in it, fp32 elsewhere."""
    return 'bf16' if device.type == 'cuda' and _has_bf16(device) else 'fp32'


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Mirror an image's lower and right side until both sides are multiples; repeats where one mirror is too short."""
    for dim in (-2, -1):
        side = image.shape[dim]
        if side % multiple:
            period = max(1, 2 * side - 2)
            index = torch.arange(-(-side // multiple) * multiple, device=image.device) % period
            image = image.index_select(dim, torch.minimum(index, period - index) if side > 1 else index)
    return image


def _has_bf16(device: torch.device) -> bool:
    if device.type != 'cuda':
        return device.type == 'cpu'
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return 'out of memory' in text or "can't allocate memory" in text


def _transformed(image: Tensor, transform: int) -> Tensor:
    """One of the eight symmetries of the square: bit 0 flips columns, bit 1 rows, bit 2 transposes afterwards."""
    image = image.flip([dim for bit, dim in ((1, -1), (2, -2)) if transform & bit])
    return image.transpose(-1, -2) if transform & 4 else image


def _restored(image: Tensor, transform: int) -> Tensor:
    """The inverse of _transformed."""
    image = image.transpose(-1, -2) if transform & 4 else image
    return image.flip([dim for bit, dim in ((1, -1), (2, -2)) if transform & bit])


def _repeated(value, images: int, times: int):
    """A value per image, for `times` tiles of each; what is no tensor holds for all."""
    if times == 1 or not isinstance(value, Tensor) or value.ndim == 0 or len(value) != images:
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))


def _report(progress: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _report_part(progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int) -> None:
    progress(part * total + done, parts * total)
