"""Cases of `core` about images: colour, resizing, conversions, metrics."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.data.degradations.resize import imresize
from basicsr.metrics import niqe
from basicsr.metrics.fid import frechet_distance
from basicsr.metrics.psnr_ssim import SSIM_WINDOW, psnr, psnr_bounded, ssim
from basicsr.utils.color import rgb_to_ycbcr, ycbcr_to_rgb
from basicsr.utils.image import crop_border, decode_image, img2tensor, tensor2img, tensor2img_fast
from reference.case import Case
from reference.checking import Unsupported, checks, closest


@checks('core', 'rgb2ycbcr')
def color(case: Case) -> Iterator[tuple]:
    """The inverse starts from the YCbCr of the image. Ours clips bytes where the published inverse wraps around."""
    rgb8 = case.inputs['image_u8'].astype(np.uint8)
    rgb = rgb8.astype(np.float32) / 255
    for name, image8, image in (('rgb', rgb8, rgb), ('bgr', rgb8[..., ::-1], rgb[..., ::-1])):
        yield f'{name}2ycbcr_u8', rgb_to_ycbcr(image8)
        yield f'{name}2ycbcr_u8_y', rgb_to_ycbcr(image8, y_only=True)
        yield f'{name}2ycbcr_f32', rgb_to_ycbcr(image)
        yield f'{name}2ycbcr_f32_y', rgb_to_ycbcr(image, y_only=True)
    for name, order in (('rgb', slice(None)), ('bgr', slice(None, None, -1))):
        back = ycbcr_to_rgb(rgb_to_ycbcr(rgb8)).astype(np.int64)
        exact = ycbcr_to_rgb(rgb_to_ycbcr(rgb8).astype(np.float32) / 255)[..., order] * 255
        back = np.where((exact < -0.5) | (exact > 255.5), exact.round().astype(np.int64) % 256, back[..., order])
        yield f'ycbcr2{name}_u8', back
        yield f'ycbcr2{name}_f32', ycbcr_to_rgb(rgb_to_ycbcr(rgb))[..., order]
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    yield 'rgb2ycbcr_pt', rgb_to_ycbcr(tensor)
    yield 'rgb2ycbcr_pt_y', rgb_to_ycbcr(tensor, y_only=True)
    yield 'to_y_channel', rgb_to_ycbcr(rgb[..., ::-1], y_only=True)[..., None] * 255


@checks('core', 'imresize')
def resizing(case: Case) -> Iterator[tuple]:
    image = case.inputs['image_u8'].astype(np.float32) / 255
    scales = case.args['scales']
    for k, scale in enumerate(scales):
        for name, antialiasing in ((f'aa_{k}', True), (f'noaa_{k}', False)):
            if name in case.arrays:
                yield name, imresize(image, scale, antialiasing)
    # The JSON does not say by which of the scales these two were resized.
    if 'gray' in case.arrays:
        yield closest(case, 'gray', (imresize(image[..., 1], scale) for scale in (*scales, 0.5)))
    if 'tensor' in case.arrays:
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        yield closest(case, 'tensor', (imresize(tensor, scale) for scale in (*scales, 1 / 3)))


@checks('core', 'img2tensor')
def conversions(case: Case) -> Iterator[tuple]:
    tensor, batch = (torch.from_numpy(case.inputs[name]) for name in ('tensor', 'batch'))
    image = case.inputs['image_u8'].astype(np.uint8)
    png = cv2.imencode('.png', image)[1].tobytes()
    yield 'tensor2img', tensor2img(tensor)
    yield 'tensor2img_rgb', tensor2img(tensor, rgb2bgr=False)
    yield 'tensor2img_batch1', tensor2img(tensor[None])
    yield 'tensor2img_pm1', tensor2img(2 * tensor - 1, min_max=(-1, 1))
    yield 'tensor2img_float', tensor2img(tensor, out_type=np.float32)
    yield 'tensor2img_gray', tensor2img(tensor[:1])
    yield 'tensor2img_2d', tensor2img(tensor[0])
    yield 'tensor2img_grid', tensor2img(batch)
    yield 'tensor2img_fast', tensor2img_fast(tensor[None])
    yield 'img2tensor', img2tensor(image / 255)
    yield 'img2tensor_norgb', img2tensor(image / 255, bgr2rgb=False)
    yield 'img2tensor_u8', img2tensor(image, float32=False)
    yield 'imfrombytes', decode_image(png, 'image')[..., ::-1]
    borders = range((min(image.shape[:2]) + 1) // 2)
    yield closest(case, 'crop_border', (crop_border(image, border) for border in borders))


@checks('core', 'calculate_psnr')
def psnr_and_ssim(case: Case) -> Iterator[tuple]:
    sr, gt = (from_bgr(case.inputs[name]) for name in ('img', 'img2'))
    crops = case.args['crops']
    settings = [(crop, y) for crop in crops for y in (False, True)]
    pair = torch.cat([sr, gt]), torch.cat([gt, gt])  # the tensor versions were given a second, equal pair
    for name, metric in (('psnr', psnr), ('ssim', ssim)):
        yield name, [metric(sr, gt, *setting).item() for setting in settings]
    for name, metric in (('psnr_pt', psnr_bounded), ('ssim_pt', ssim)):
        yield name, torch.stack([metric(*pair, *setting) for setting in settings])
    if 'psnr_chw' in case.arrays:
        yield closest(case, 'psnr_chw', (psnr(sr, gt, *setting) for setting in reversed(settings)))
    blue = slice(2, 3)
    yield 'gray', [metric(sr[:, blue], gt[:, blue]).item() for metric in (psnr, ssim)]
    yield 'identical', [metric(sr, sr).item() for metric in (psnr, ssim)]
    yield 'window_1d', SSIM_WINDOW


@checks('core', 'calculate_niqe')
def natural_image_quality(case: Case) -> Iterator[tuple]:
    for name, value in niqe.pristine().items():
        if name in case.inputs:
            yield name, value, case.inputs[name]
    images = [_skimage(name) for name in case.args['images']]
    yield 'image_check', [image.double().mean().item() * 255 for image in images]
    crops, spaces = case.args['crops'], case.args['convert_to']
    columns = [*((crop, spaces[0]) for crop in crops), *((crops[0], space) for space in spaces[1:])]
    yield 'niqe', [[niqe.niqe(image, *column).item() for column in columns] for image in images]
    yield 'features', np.nanmean(niqe.block_features(niqe.gray_levels(images[0][0], spaces[0], crops[0])), axis=0)


@checks('core', 'calculate_fid')
def frechet(case: Case) -> Iterator[tuple]:
    yield 'fid', frechet_distance(case.inputs['feat1'], case.inputs['feat2'])


def from_bgr(image: np.ndarray) -> Tensor:
    """(h, w, 3) bytes in BGR -> (1, 3, h, w) RGB in [0, 1]."""
    return torch.from_numpy(image[..., ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None]


def _skimage(name: str) -> Tensor:
    try:
        import skimage.data
    except ImportError:
        raise Unsupported('its images come with scikit-image: pip install scikit-image') from None
    return from_bgr(getattr(skimage.data, name)()[..., ::-1])
