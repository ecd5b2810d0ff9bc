"""Cases of `s3diff` about restoring: input preparation, tiles, colours, the text encoder."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from basicsr.models.prompts import text_encoder
from basicsr.utils.color_fix import adain_fix, lowest_band, wavelet_fix
from reference.case import Case
from reference.checking import checks

NEAR = 1e-4  # of an integer: a value that published truncation may take to either side


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
