"""Cases of `s3diff` about restoring: input preparation, tiles, colours, the text encoder."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from basicsr.archs.blocks.tiled_vae import DECODER_PADDING, ENCODER_PADDING, REDUCTION, tiles_of
from basicsr.models import build_model
from basicsr.models.prompts import NEGATIVE, POSITIVE, Prompts, text_encoder, write_prompts
from basicsr.models.s3diff_model import S3DiffModel, enlarge, padded
from basicsr.utils.color_fix import adain_fix, lowest_band, wavelet_fix
from basicsr.utils.options import parse_options
from basicsr.utils.tiling import gaussian, tile_starts
from reference.case import Case
from reference.checking import Within, checks

SHOWN = 4  # decoded images are stored each so many rows and columns
UNIT = 64  # of the full-size network
NEAR = 1e-4  # of an integer: a value that published truncation may take to either side


@checks('s3diff', 'tile geometry')
def geometry(case: Case) -> Iterator[tuple]:
    for name in case.outputs:
        length = int(name.removeprefix('gauss'))
        yield name, gaussian(length, length / 2)[:, None] * gaussian(length, (length - 1) / 2)
    for number, one in enumerate(case.spec.get('latent', [])):
        rows, columns = tile_starts(one['h'], one['w'], one['tile'], one['overlap'], 'gaussian')
        boxes = [[x, x + columns[1], y, y + rows[1]] for x in columns[0] for y in rows[0]]
        yield f'latent {number}', [columns[1], boxes], [one['used'], one['boxes']]
    for number, one in enumerate(case.spec.get('vae', [])):
        padding = DECODER_PADDING if one['decoder'] else ENCODER_PADDING
        tiles = tiles_of(one['h'], one['w'], one['tile'], padding)
        seen = [[*tile.columns.seen, *tile.rows.seen] for tile in tiles]
        given = [[*tile.columns.given, *tile.rows.given] for tile in tiles]
        out = [[p * REDUCTION if one['decoder'] else p // REDUCTION for p in box] for box in given]
        yield f'vae {number}', [seen, out], [one['inp'], one['out']]


@checks('s3diff', 'tiled inference')
def tiles(case: Case) -> Iterator[tuple]:
    """The published tiles, and the same with tiles that are larger than the image."""
    whole = {'latent_tile': 4096, 'vae_encoder_tile': 0, 'vae_decoder_tile': 0}
    for prefix, changes in (('', {}), ('whole_', whole)):
        model = restoring_model(case, **changes)
        noise, score = (torch.as_tensor(case.inputs[name]) for name in ('noise', 'deg_score'))
        with torch.no_grad():
            step = model.one_step(mapped(case, 'x'), score, noise)
        decoded, shown = step.decoded, (..., slice(None, None, SHOWN), slice(None, None, SHOWN))
        found = {'moments': step.moments, 'latent': step.z, 'model_pred': step.eps, 'x0': step.x0}
        found |= {'decoded': decoded[shown], 'y': decoded.clamp(-1, 1)[shown]}
        found |= {'decoded_mean': decoded.mean((2, 3)), 'decoded_std': decoded.std((2, 3), correction=0)}
        for name, value in found.items():
            yield within(case, prefix + name, value)
    if case.spec.get('latent_boxes'):
        args, (height, width) = case.args, case.inputs['noise'].shape[-2:]
        how = args['latent_tiled_size'], args['latent_tiled_overlap'], 'gaussian'
        rows, columns = tile_starts(height, width, *how)
        boxes = [[x, x + columns[1], y, y + rows[1]] for x in columns[0] for y in rows[0]]
        yield 'latent_boxes', [columns[1], boxes], [case.spec['latent_tile'], case.spec['latent_boxes']]


def restoring_model(case: Case, **changes) -> S3DiffModel:
    """Our model with the case's network, prompts and settings, and with other settings where there are `changes`."""
    args = case.args
    network = {'type': 'S3Diff', 'unet': args['unet'], 'vae': args['vae']}
    network |= {f'rank_{part}': args[f'lora_rank_{part}'] for part in ('unet', 'vae')}
    settings = {'guidance_scale': args['guidance_scale'], 'latent_tile_batch': 2}
    settings |= {f'latent_{ours}': args[f'latent_tiled_{name}'] for ours, name in (('tile', 'size'), ('overlap',) * 2)}
    settings |= {f'vae_{part}_tile': args[f'vae_{part}_tiled_size'] for part in ('encoder', 'decoder')}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'prompts.safetensors'
        prompts = Prompts(*(torch.as_tensor(case.inputs[name])[None] for name in ('pos', 'neg')))
        write_prompts(file, prompts, POSITIVE, NEGATIVE)
        model = build_model(
            parse_options(
                {
                    'name': 'case',
                    'model_type': 'S3DiffModel',
                    'scale': 4,
                    'model': {'prompt_embeddings': str(file)} | settings | changes,
                    'network_g': network,
                    'network_de': {'type': 'DEResNet', 'num_feats': [8], 'num_blocks': [1], 'downscales': [1]},
                },
                is_train=False,
            )
        )
    case.fill(model.nets['g'])
    return model


def within(case: Case, name: str, value: Tensor) -> tuple[str, Within]:
    """An output with its own tolerance, where the case has several."""
    tolerance = case.spec['tolerance']
    atol = tolerance.get('per_output', {}).get(name, tolerance['atol'])
    return name, Within(value, atol, tolerance['rtol'])


@checks('s3diff', 'input preparation')
def preparation(case: Case) -> Iterator[tuple]:
    lq, scale = case.inputs['lr'], case.args['sf']
    up = enlarge(lq, scale, 'bilinear')
    yield 'up', up
    yield 'padded', padded(up, UNIT)
    yield 'train_up', padded(enlarge(1.4 * lq - 0.2, scale, 'bicubic'), 1)


@checks('s3diff', 'colour alignment')
def colors(case: Case) -> Iterator[tuple]:
    content, levels = case.inputs['content'], case.args['levels']
    image, source = 1.3 * content - 0.15, mapped(case, 'style')
    yield 'wavelet', wavelet_fix(image, source, levels)
    yield 'adain', adain_fix(image, source)
    yield 'low', lowest_band(content, levels)
    stored = [torch.as_tensor(case.arrays[f'{name}8']) for name in ('target', 'source')]
    for name, one, published in zip(('target8', 'source8'), (content, source), stored, strict=True):
        yield name, truncated(one[0] * 255, published)
    target, source = (one[None].float() / 255 for one in stored)
    for name, fixed in (('wavelet8', wavelet_fix(target, source, levels)), ('adain8', adain_fix(target, source))):
        yield name, truncated(fixed[0].clamp(0, 1) * 255, torch.as_tensor(case.arrays[name]))


@checks('s3diff', 'CLIPTextModel')
def text(case: Case) -> Iterator[tuple]:
    """Weights by the names of the published file, through a folder as users have it."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / 'text_encoder'
        place.mkdir()
        transformers.CLIPTextConfig(**case.args).save_pretrained(place)
        save_file(case.weights, place / 'model.safetensors', {'format': 'pt'})
        with torch.no_grad():
            yield 'last_hidden', text_encoder(place)(torch.as_tensor(case.inputs['ids'])).last_hidden_state


def mapped(case: Case, name: str) -> Tensor:
    """An input with the line that its JSON asks for applied, such as '2*x-1'."""
    value = torch.as_tensor(case.inputs[name])
    how = case.spec['inputs'][name]
    line = how.get('map') if isinstance(how, dict) else None
    if line is None:
        return value
    factor, shift = re.fullmatch(r'([\d.]+)\*x([+-][\d.]+)?', line).groups()
    return float(factor) * value + float(shift or 0)


def truncated(values: Tensor, published: Tensor) -> np.ndarray:
    """Whole numbers by truncation; where a value is nearly whole, the published neighbour."""
    down = values.floor()
    nearly = ((values - values.round()).abs() < NEAR) & ((down - published).abs() <= 1)
    return torch.where(nearly, published, down).long().numpy()
