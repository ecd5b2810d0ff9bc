"""Texts as Stable Diffusion's networks see them: encoded once by its CLIP text encoder, then read from a file."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from basicsr.utils.checkpoint import CheckpointError, write_atomically
from basicsr.utils.download import cache_folder, local_path
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import weights_file

logger = logging.getLogger(__name__)

# S3Diff's, as published.
POSITIVE = 'A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting.'
NEGATIVE = 'oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth'
PADDING = '!'


class Prompts(NamedTuple):
    """Embeddings of two texts, each (1, tokens, channels) in float32."""

    positive: Tensor
    negative: Tensor


def prompts_of(folder: Path, positive: str, negative: str) -> Prompts:
    """The embeddings of two texts by the text encoder of an SD-Turbo folder; those computed before are in the cache."""
    file = cache_folder() / 'prompts' / f'{_identity(folder, positive, negative)}.safetensors'
    if file.is_file():
        return read_prompts(file, positive, negative)
    prompts = Prompts(*encode(folder, (positive, negative)).split(1))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_prompts(file, prompts, positive, negative)
    except (OSError, CheckpointError) as error:
        logger.warning('prompts are encoded anew by each run: %s', error)
    return prompts


@torch.no_grad()
def encode(folder: Path, texts: Sequence[str]) -> Tensor:
    """The text encoder's last states, after its final norm, of texts padded to its whole length: (n, tokens, channels).

    Padding takes part, as it did in training. Neither tokenizer nor text encoder is kept.
    """
    ids = token_ids(folder / 'tokenizer', texts)
    return text_encoder(folder / 'text_encoder')(ids).last_hidden_state


def token_ids(folder: Path, texts: Sequence[str]) -> Tensor:
    """CLIP's tokens, cut or padded to the length that the tokenizer's configuration says: (n, tokens) int64."""
    tokenizer = optional('transformers', 's3diff').CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # The files name two tokens for padding, and releases of transformers differ in which they take; it was this one.
    padding, length, rows = tokenizer.convert_tokens_to_ids(PADDING), tokenizer.model_max_length, []
    if tokenizer.convert_ids_to_tokens(padding) != PADDING:
        raise UserError(f'{folder}: is no tokenizer of CLIP: it knows no {PADDING!r}, the token for padding')
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length).input_ids
        whole = len(tokenizer(text, verbose=False).input_ids)
        if whole > length:
            logger.warning('a prompt of %d tokens is cut to %d: %s', whole, length, text)
        rows.append(ids + [padding] * (length - len(ids)))
    return torch.tensor(rows)


def text_encoder(folder: Path) -> nn.Module:
    """CLIP's text encoder in float32. Raises UserError unless the folder's file has all its weights."""
    transformers, file = optional('transformers', 's3diff'), weights_file(folder.parent, folder.name)
    variant = 'fp16' if '.fp16.' in file.name else None
    try:
        with _quiet(transformers), _whole_weights():
            net, report = transformers.CLIPTextModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, variant=variant
            )
    except Exception as error:  # the library raises a dozen types on damaged or other files
        raise CheckpointError(f'{file}: is no CLIP text encoder: {" ".join(str(error).split())[:200]}') from None
    missing = sorted(report['missing_keys'])
    if missing:
        raise CheckpointError(f'{file}: is no CLIP text encoder: {len(missing)} missing: {", ".join(missing[:10])}')
    return net.eval()


@contextlib.contextmanager
def _whole_weights() -> Iterator[None]:
    """Inside, transformers reads weights on each process; under FSDP it would do so on the first alone."""
    with_fsdp = os.environ.pop('ACCELERATE_USE_FSDP', None)
    try:
        yield
    finally:
        if with_fsdp is not None:
            os.environ['ACCELERATE_USE_FSDP'] = with_fsdp


def write_prompts(file: Path, prompts: Prompts, positive: str, negative: str) -> None:
    """Write embeddings with the texts that they stand for."""
    contents = {name: value[0].contiguous() for name, value in prompts._asdict().items()}
    metadata = {'positive_prompt': positive, 'negative_prompt': negative}
    write_atomically(file, lambda stream: stream.write(save(contents, metadata)))


def read_prompts(location: str | Path, positive: str, negative: str) -> Prompts:
    """Embeddings of a .safetensors file, `positive` and `negative` (tokens, channels), made by encode_prompts.py.

    Raises UserError unless they stand for these texts; a file that does not say for which is believed.
    """
    file = local_path(location)
    try:
        with safe_open(file, 'pt') as content:
            metadata, names = content.metadata() or {}, set(content.keys())
            if not names >= {'positive', 'negative'}:
                raise UserError(
                    f'{file}: holds {", ".join(sorted(names)[:5]) or "nothing"}, not `positive`, `negative`'
                )
            tensors = [content.get_tensor(name).float() for name in Prompts._fields]
    except (SafetensorError, OSError) as error:
        raise UserError(f'{file}: is no .safetensors file: {str(error).splitlines()[0]}') from None
    for name, text in (('positive_prompt', positive), ('negative_prompt', negative)):
        if metadata.get(name, text) != text:
            raise UserError(f'{file}: its {name} is {metadata[name]!r}, the option file asks for {text!r}')
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise UserError(f'{file}: `positive` and `negative` are both (tokens, channels), got {shapes[0]}, {shapes[1]}')
    return Prompts(*(tensor[None] for tensor in tensors))


def _identity(folder: Path, *texts: str) -> str:
    """A name for what a folder's text encoder makes of texts: of another file, or of a changed one, it is another."""
    weights = weights_file(folder, 'text_encoder').resolve()
    seen = [str(weights), weights.stat().st_size, weights.stat().st_mtime_ns, *texts]
    digest = hashlib.sha256(json.dumps(seen).encode())
    for file in (folder / 'text_encoder' / 'config.json', *sorted((folder / 'tokenizer').iterdir())):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def _quiet(transformers) -> Iterator[None]:
    """No progress bar of a library for what takes a second."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
