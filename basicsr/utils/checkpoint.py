"""Checkpoints: read any of them without running code, say how keys differ, write them whole or not at all."""

import hashlib
import json
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from basicsr.utils.mge_checkpoint import Refused, is_plain_pickle, read_pickle
from basicsr.utils.options import PretrainedOptions
from basicsr.utils.registry import UserError

logger = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
NETWORK_KEYS = ('params_ema', 'params', 'state_dict', 'model_state_dict', 'model', 'net')


class CheckpointError(UserError):
    """A checkpoint cannot be read, is damaged, belongs to another network, or could not be written."""


def read_checkpoint(path: str | Path, verify: bool = True) -> dict:
    """The content of a .pth, .pt, .state, .safetensors or MegEngine .pkl file, on the CPU; nothing in it is executed.

    Args:
        verify: compare with the checksum in the folder's manifest.json, if that lists the file.
    Raises CheckpointError that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such checkpoint')
    if verify:
        fault = checksum_fault(path)
        if fault:
            raise CheckpointError(f'{path}: {fault}')
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with path.open('rb') as file:
            start = file.read(64)
        is_pickle = is_plain_pickle(start)
        content = read_pickle(path) if is_pickle else _read_torch(path)
    except CheckpointError:
        raise
    except (Refused, pickle.UnpicklingError) as error:
        lines = [line.strip() for line in str(error).splitlines() if 'Unsupported' in line or 'GLOBAL' in line]
        lines = [str(error)] if isinstance(error, Refused) else lines
        reason = lines[0][:160] if lines else 'not a checkpoint'
        if 'GLOBAL' not in reason and not start.startswith((b'PK', b'\x80')):  # as files of torch do
            raise CheckpointError(f'{path}: is no checkpoint (refused, nothing was executed)') from None
        raise CheckpointError(
            f'{path}: refused, nothing was executed: it holds more than tensors and plain values ({reason})'
        ) from None
    except PermissionError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
    except Exception as error:  # the readers raise a dozen types on damaged bytes; all of them mean this one thing
        if 'TorchScript' in str(error):
            raise CheckpointError(f'{path}: a TorchScript archive is a program and is not loaded') from None
        internal = isinstance(error, LookupError | TypeError | AttributeError | AssertionError) or not str(error)
        reason = 'not a checkpoint' if internal else str(error).splitlines()[0][:160]
        raise CheckpointError(f'{path}: damaged or truncated ({path.stat().st_size} bytes): {reason}') from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path}: holds a {type(content).__name__}, not a dictionary of tensors')
    return dict(content)


def has_part(content: Mapping, key: str | None) -> bool:
    """Whether a file of several parts has one under `key`: as a dictionary, or as flat names that begin with `key.`."""
    return key is not None and (isinstance(content.get(key), Mapping) or bool(_with_prefix(content, key)))


def network_state(content: Mapping, key: str | None, name: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under `key`, else under a usual key, else the content itself.

    Prefixes of wrappers (`module.`, `_orig_mod.`) are removed. Raises CheckpointError naming what the file has.
    """
    wanted = [k for k in (key, 'params', *NETWORK_KEYS) if k is not None and isinstance(content.get(k), Mapping)]
    state = content[wanted[0]] if wanted else content if key is None else _with_prefix(content, key) or content
    tensors = {_bare_name(k): v for k, v in state.items() if isinstance(v, Tensor) and isinstance(k, str)}
    if not tensors:
        raise CheckpointError(
            f'{name}: no network under {key!r}; the file has: {", ".join(map(str, list(content)[:10]))}'
        )
    return tensors


def load_network(
    net: nn.Module, state: Mapping[str, Tensor], name: str, strict: bool = True, published: bool = False
) -> set[str]:
    """Copy a state dict into a network, through its `from_published` if it has one; returns what was left as it was.

    Where a network's `published_keys` name the entries of a file that hold the publisher's layout, no other is
    converted: `published` says that this is one.
    Not strict: entries that are missing, unknown or of another shape are left out. The network's `optional_entries`
    are names that it takes but does not keep; where it has `own_names()`, files need not hold its other entries.
    Raises CheckpointError with the first ten missing, unexpected and mis-shaped names.
    """
    if hasattr(net, 'from_published') and (published or not hasattr(net, 'published_keys')):
        try:
            state = net.from_published(dict(state))
        except ValueError as error:
            raise CheckpointError(f'{name}: {error}') from None
    mine = net.state_dict()
    misshaped = [k for k in state if k in mine and state[k].shape != mine[k].shape]
    needed = net.own_names() if hasattr(net, 'own_names') else mine
    known = {*mine, *getattr(net, 'optional_entries', ())}
    missing, unexpected = [k for k in mine if k in needed and k not in state], [k for k in state if k not in known]
    if strict and (missing or unexpected or misshaped):
        shapes = [f'{k} {tuple(state[k].shape)} instead of {tuple(mine[k].shape)}' for k in misshaped]
        raise CheckpointError(
            f'{name}: belongs to another network than {type(net).__name__} as configured: '
            + '; '.join(
                _listed(*part)
                for part in (('missing', missing), ('unexpected', unexpected), ('of another shape', shapes))
                if part[1]
            )
        )
    usable = {k: v for k, v in state.items() if k not in unexpected and k not in misshaped}
    net.load_state_dict(usable, strict=False)
    return {*missing, *misshaped}


def load_pretrained(
    net: nn.Module,
    source: PretrainedOptions,
    key: str | None,
    like: nn.Module | None = None,
    verify: bool = True,
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> set[str]:
    """Load the file that an option file names into `net`; returns the names that it left as they were.

    Args:
        key: the entry of the file to take, such as 'params_ema'; if it is not there, the one that `source` names, then
            the network's `published_keys`, then the usual ones. A file that the network's `is_published` recognises is
            given to its `from_published` as it is.
        like: where to copy entries from that the file lacks; only of use when the loading is not strict.
        complete: adds the entries that the file leaves to others.
    """
    from basicsr.utils.download import local_path

    content = read_checkpoint(local_path(source.path), verify)
    published = getattr(net, 'published_keys', {})
    key = next((k for k in (key, source.param_key, *published) if has_part(content, k)), key)
    note = published.get(key) if key in content else None
    if note and like is None:
        logger.info('%s: %s: %s', source.path, key, note)
    whole = hasattr(net, 'is_published') and net.is_published(content)
    state = complete(content if whole else network_state(content, key, source.path))
    missing = load_network(net, state, source.path, source.strict, note is not None)
    if like is not None and missing:
        entries = like.state_dict()
        net.load_state_dict({k: entries[k] for k in missing if k in entries}, strict=False)
    return missing


def write_checkpoint(path: str | Path, content: dict) -> None:
    """Write a checkpoint whole or not at all, with its checksum in the folder's manifest.

    A .safetensors file takes a flat dictionary of tensors. Raises CheckpointError when the disk refuses; then the file
    that was there before stays, and so does its checksum.
    """
    path = Path(path)

    def write(file: BinaryIO) -> None:
        if path.suffix == '.safetensors':
            file.write(save({k: v.contiguous() for k, v in content.items()}))
        else:
            torch.save(content, file)

    def enter(finished: Path) -> None:
        # Before the rename, with what it replaces: at every moment the manifest vouches for the file that is there.
        replaced = _fingerprint(path) if path.is_file() else None
        replaced = replaced if replaced in _fingerprints(path) else None
        _enter(path, _fingerprint(finished) | ({'replaced': replaced} if replaced else {}))

    write_atomically(path, write, before=enter)


def remove_checkpoint(path: str | Path) -> None:
    """Delete a checkpoint and its manifest entry; a file that is not there is no fault."""
    path = Path(path)
    _enter(path, None)
    path.unlink(missing_ok=True)


def is_listed(path: str | Path) -> bool:
    """Whether the manifest beside a file vouches for it: a file without an entry was not finished."""
    return Path(path).name in _manifest(Path(path).parent)


def checksum_fault(path: str | Path) -> str:
    """What is wrong with a file according to the manifest beside it; '' if nothing is or none lists it."""
    path = Path(path)
    expected = _fingerprints(path)
    if not expected:
        return ''
    size = path.stat().st_size
    if all(size != one['bytes'] for one in expected):
        return f'damaged: {size} bytes instead of {expected[0]["bytes"]}'
    return '' if _fingerprint(path) in expected else f'damaged: its sha256 is not the one in {MANIFEST}'


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], before: Callable[[Path], Any] | None = None) -> None:
    """Write to a temporary file in the same folder, flush it to the disk, then rename.

    `before` is called with the finished temporary file just before the rename. Raises CheckpointError; what was there
    before stays.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with temporary.open('wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise CheckpointError(f'{path}: could not be written: {reason}') from None
    finally:
        with suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink(missing_ok=True)


def _enter(path: Path, entry: dict | None) -> None:
    """Set or remove the manifest's entry of a file."""
    entries = _manifest(path.parent)
    if entries.get(path.name) == entry:
        return
    entries = {name: e for name, e in entries.items() if name != path.name} | ({path.name: entry} if entry else {})
    write_atomically(path.parent / MANIFEST, lambda file: file.write(json.dumps(entries, indent=1).encode()))


def _manifest(folder: Path) -> dict[str, dict]:
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    whole = isinstance(entries, dict) and all(
        isinstance(e, dict) and {'sha256', 'bytes'} <= e.keys() for e in entries.values()
    )
    return entries if whole else {}


def _fingerprints(path: Path) -> list[dict]:
    """Of the files that may be at `path`: the latest, and the one that it was to replace when the process ended."""
    entry = _manifest(path.parent).get(path.name)
    latest = [] if entry is None else [{'sha256': entry['sha256'], 'bytes': entry['bytes']}]
    return latest + ([entry['replaced']] if entry and 'replaced' in entry else [])


def _fingerprint(path: Path) -> dict:
    with path.open('rb') as file:
        return {'sha256': hashlib.file_digest(file, 'sha256').hexdigest(), 'bytes': path.stat().st_size}


def _sync_folder(folder: Path) -> None:
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _with_prefix(content: Mapping, key: str) -> dict:
    """The entries of a flat file below `key`, without it. A usual key is no prefix: a network may have such a child."""
    prefix = f'{key.rstrip(".")}.'
    if key in NETWORK_KEYS:
        return {}
    return {k.removeprefix(prefix): v for k, v in content.items() if isinstance(k, str) and k.startswith(prefix)}


def _read_torch(path: Path) -> Any:
    _refuse_zip_bomb(path)
    with warnings.catch_warnings(action='ignore'):  # torch's, of what an exception says too
        return torch.load(path, map_location='cpu', weights_only=True)


def _refuse_zip_bomb(path: Path) -> None:
    """torch writes its archives uncompressed: one that unpacks to much more than its size is not a checkpoint."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2 * path.stat().st_size + (1 << 20):
            raise CheckpointError(f'{path}: refused: it would unpack to {unpacked} bytes')


def _bare_name(name: str) -> str:
    while name.startswith(('module.', '_orig_mod.')):
        name = name.partition('.')[2]
    return name


def _listed(what: str, names: Collection[str]) -> str:
    shown = ', '.join(list(names)[:10])
    return f'{len(names)} {what}: {shown}{", ..." if len(names) > 10 else ""}'
