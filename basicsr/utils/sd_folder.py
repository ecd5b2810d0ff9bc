"""SD-Turbo, a folder in diffusers' layout: a local one, or one of the hub, whose licence is shown before a download."""

import inspect
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock  # torch depends on it
from torch import nn

from basicsr.utils.download import DownloadError, cache_folder, is_offline
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError

logger = logging.getLogger(__name__)

ACCEPTED = 'BASICSR_ACCEPT_LICENSE'  # environment variable: 1 accepts the licence of what is downloaded
LICENCES = {
    'stabilityai/sd-turbo': "Stability AI's Community License (non-commercial, and commercial on its conditions),"
    ' https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md'
}
_DIFFUSERS = ('diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.fp16.safetensors')
# Part -> files that it has, and names of which one must be there. Downloads have the first of them.
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    'unet': (('config.json',), (*_DIFFUSERS, 'diffusion_pytorch_model.bin')),
    'vae': (('config.json',), (*_DIFFUSERS, 'diffusion_pytorch_model.bin')),
    'text_encoder': (('config.json',), ('model.safetensors', 'model.fp16.safetensors', 'pytorch_model.bin')),
    'tokenizer': (('tokenizer_config.json',), ('vocab.json', 'tokenizer.json')),
}
FURTHER = ('tokenizer/merges.txt', 'tokenizer/special_tokens_map.json')  # downloaded too where parts have them
# Of a configuration, what changes neither the entries of a file nor, in the precision used here, what is computed.
WITHOUT_EFFECT = frozenset({'sample_size', 'force_upcast', 'upcast_attention'})


def sd_folder(location: str, parts: Iterable[str], offline: bool | None = None) -> Path:
    """The folder that `location` names, with all files of `parts`: a path, or OWNER/NAME on the hub, downloaded once.

    Args:
        parts: some of PARTS.
        offline: use the caches only; None asks the environment (BASICSR_OFFLINE, HF_HUB_OFFLINE).
    Raises UserError, in one line: no such folder, a file is missing, no network, offline, licence not accepted.
    """
    parts, folder = tuple(parts), Path(location).expanduser()
    if folder.is_dir():
        missing = _missing(folder, parts)
        if missing:
            raise UserError(f"{missing}: no such file; sd_path should name SD-Turbo, a folder in diffusers' layout")
        return folder
    owner, _, name = location.partition('/')
    if not is_hub_name(location):
        raise UserError(f'{location}: no such folder, and no name on the hub such as stabilityai/sd-turbo (sd_path)')
    hub, constants = (optional(name, 's3diff') for name in ('huggingface_hub', 'huggingface_hub.constants'))
    caches = (cache_folder() / 'hub', Path(constants.HF_HUB_CACHE))
    for cache in caches:
        found = _snapshot(hub, location, parts, cache, local_files_only=True)
        if found is not None and not _missing(found, parts):
            return found
    if hub_is_offline(offline):
        places = ' or '.join(map(str, caches))
        raise DownloadError(f'{location}: not in the cache ({places}) and downloads are off (offline)')
    caches[0].mkdir(parents=True, exist_ok=True)
    with FileLock(caches[0] / f'{owner}--{name}.lock'):  # of several processes one asks and downloads, the others wait
        folder = _snapshot(hub, location, parts, caches[0], local_files_only=True)
        if folder is None or _missing(folder, parts):
            accept_licence(location)
            folder = _snapshot(hub, location, parts, caches[0], local_files_only=False)
    missing = _missing(folder, parts)
    if missing:
        raise DownloadError(f'{location}: the hub has no {missing.relative_to(folder)}; is it SD-Turbo?')
    return folder


def weights_file(folder: Path, part: str) -> Path:
    """The file of weights of a part: whole precision before half, safetensors before others."""
    names = PARTS[part][1]
    return next((folder / part / name for name in names if (folder / part / name).is_file()), folder / part / names[0])


def check_config(folder: Path, part: str, module: nn.Module, option: str) -> None:
    """Raise UserError with the first entry of a part's configuration that is another one in `module`, of diffusers.

    Args:
        option: where the user describes the module, for the message.
    """
    file, found = folder / part / 'config.json', read_config(folder / part / 'config.json')
    wanted, kind = json.loads(json.dumps(dict(module.config))), type(module).__name__
    if found.get('_class_name', kind) != kind:
        raise UserError(f'{file}: not SD-Turbo: _class_name is {found["_class_name"]!r} instead of {kind!r}')
    # Files leave out what was the default, or did not exist, when they were written.
    defaults = {name: one.default for name, one in inspect.signature(type(module).__init__).parameters.items()}
    for key, value in wanted.items():
        if key.startswith('_') or key in WITHOUT_EFFECT:
            continue
        there = found[key] if key in found else _plain(defaults.get(key))
        if there != value:
            raise UserError(f'{file}: {key} is {there!r}, {option} has {value!r} ({option} describes another base)')


def read_config(file: Path) -> dict:
    """A JSON file that holds one object. Raises UserError that names it."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{file}: cannot be read: {getattr(error, "strerror", None) or error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{file}: holds a {type(content).__name__}, not the entries of a configuration')
    return content


def accept_licence(name: str) -> None:
    """Show the licence of what is to be downloaded. Raises UserError unless the user accepts it.

    A terminal is asked; elsewhere the environment variable BASICSR_ACCEPT_LICENSE accepts.
    """
    licence = LICENCES.get(name, f'a licence of its own, see https://huggingface.co/{name}')
    if os.environ.get(ACCEPTED, '0') not in ('', '0'):
        logger.info('%s comes under %s; accepted by %s', name, licence, ACCEPTED)
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise UserError(
            f'{name}: no such folder, and on the hub it comes under {licence}: accept it by --accept-license or '
            f'{ACCEPTED}=1 to download it, or name a folder by sd_path'
        )
    if input(f'{name} comes under {licence}.\nAccept it, and download? [y/N] ').strip().lower() not in ('y', 'yes'):
        raise UserError(f'{name}: its licence was not accepted, and nothing was downloaded')


def is_hub_name(name: str) -> bool:
    """Whether this has the form OWNER/NAME, and is no path."""
    owner, _, rest = name.partition('/')
    return bool(owner and rest) and '/' not in rest and '\\' not in name and owner not in ('.', '..', '~')


def hub_is_offline(offline: bool | None) -> bool:
    """Whether the hub is not to be asked; None asks the environment, ours and that of its library."""
    if offline is not None:
        return offline
    return is_offline() or optional('huggingface_hub.constants', 'hub').HF_HUB_OFFLINE


def _snapshot(hub, name: str, parts: tuple[str, ...], cache: Path, local_files_only: bool) -> Path | None:
    """The hub's folder of that name; None if it is not in the cache and only that is asked."""
    patterns = [f'{part}/{file}' for part in parts for file in (*PARTS[part][0], PARTS[part][1][0])]
    patterns += [file for file in FURTHER if file.partition('/')[0] in parts]
    endpoint = os.environ.get('HF_ENDPOINT') or None
    try:
        return Path(
            hub.snapshot_download(
                name, cache_dir=cache, allow_patterns=patterns, local_files_only=local_files_only, endpoint=endpoint
            )
        )
    except Exception as error:  # the library and its client raise a dozen types; all mean that the files are not here
        if local_files_only:
            return None
        raise DownloadError(f'{name}: {_reason(error)}') from None


def _reason(error: Exception) -> str:
    """Why a download failed, in one line."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, 'response', None), 'status_code', None)
        if status in (401, 403):
            return f'the hub answers {status}: there is no such name, or it asks for a login (`hf auth login`)'
        if status is not None:
            return f'the hub answers {status}'
        if cause.__cause__ is None and cause is not error:
            return f'the hub cannot be reached ({_first_line(cause)})'
        cause = cause.__cause__
    return f'the download broke off ({_first_line(error)}); run again to go on'


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), '') or type(error).__name__


def _missing(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The first file of the parts that the folder lacks."""
    for part in parts:
        for file in (*(folder / part / name for name in PARTS[part][0]), weights_file(folder, part)):
            if not file.is_file():
                return file
    return None


def _plain(value):
    """A default as JSON would hold it."""
    return list(value) if isinstance(value, tuple) else value
