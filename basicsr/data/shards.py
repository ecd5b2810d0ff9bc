"""WebDataset shards: tar files of images, by path or URL, with an index that says how many samples each of them holds.

Members of a shard that follow one another and agree up to the first dot of their file name are one sample, and that
much of their name is its key.
"""

import hashlib
import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np

from basicsr.utils.image import IMAGE_SUFFIXES, decode_pixels
from basicsr.utils.registry import OptionError, suggestion

INDEX_NAME = 'index.json'
# What webdataset opens, but for `pipe`, whose rest is a shell command: an option file must not run code.
REMOTE = ('http', 'https', 'ftps', 'sftp', 'scp', 'gs', 'hf', 'ais')
READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


class Package(NamedTuple):
    """What is used of webdataset: opening a URL, the members of an opened shard, key and suffix of a member."""

    opened: Callable[[str], Any]
    members: Callable[..., Iterator[dict]]
    key_and_suffix: Callable[[str], tuple[str | None, str | None]]


@cache
def webdataset() -> Package:
    """Raises OptionError if the package is not installed."""
    try:
        from webdataset.gopen import gopen
        from webdataset.tariterators import base_plus_ext, tar_file_expander
    except ImportError:
        raise OptionError('shards need the package webdataset: pip install webdataset') from None
    return Package(gopen, tar_file_expander, base_plus_ext)


@dataclass(frozen=True)
class Shard:
    """A shard by path or URL and the number of its samples; bytes and sha256 where its index has them."""

    url: str
    samples: int
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last part of the path: what stays when shards move to another place."""
        return file_name(self.url)


class Sample(NamedTuple):
    """The image file of a sample; `path` is SHARD/KEY.SUFFIX. A sample that has not one image has a fault instead."""

    key: str
    path: str
    data: bytes
    fault: str = ''

    def pixels(self) -> np.ndarray:
        """(h, w, 3) RGB, integer or float32, perhaps read-only. Raises ValueError that names the sample."""
        if self.fault:
            raise ValueError(f'{self.path}: {self.fault}')
        return decode_pixels(self.data, self.path)


def local_path(url: str) -> Path | None:
    """Where a shard lies on this machine; None for the others."""
    parts = urlparse(url)
    return Path(url) if not parts.scheme else Path(url2pathname(parts.path)) if parts.scheme == 'file' else None


def file_name(url: str) -> str:
    path = local_path(url)
    return path.name if path else urlparse(url).path.rpartition('/')[2]


def expanded(patterns: str | Sequence[str]) -> list[str]:
    """Every path or URL of patterns such as `data/train-{0000..0099}.tar`, in their order.

    Raises OptionError for an impossible pattern, for a kind of URL that is not read, for none and for repetitions.
    """
    webdataset()
    from braceexpand import UnbalancedBracesError, braceexpand  # webdataset brings it

    patterns = [patterns] if isinstance(patterns, str) else patterns
    try:
        urls = [url for pattern in patterns for url in braceexpand(pattern)]
        schemes = [urlparse(url).scheme for url in urls]
    except (UnbalancedBracesError, ValueError) as error:
        raise OptionError(f'{", ".join(patterns)}: {error}') from None
    for url, scheme in zip(urls, schemes):
        if scheme == 'pipe':
            raise OptionError(f'{url!r} would run a command; shards are named by paths and URLs')
        if scheme not in ('', 'file', *REMOTE):
            raise OptionError(f'{url!r}: {scheme!r} is not a known kind of URL; {suggestion(scheme, REMOTE)}')
    twice = [url for url, times in Counter(urls).items() if times > 1]
    if twice or not urls:
        raise OptionError(f'{twice[0]!r} is named more than once' if twice else 'no shards are named')
    return urls


def found_shards(patterns: str | Sequence[str], index: str | None = None) -> tuple[list[Shard], list[str]]:
    """The shards of the patterns with the numbers of their samples, and what is wrong with local ones.

    The numbers come from an index: a given one, or `index.json` beside a shard. A local shard without one is looked
    through: its headers, not its images. Raises OptionError for a given index that cannot be used, and for a URL
    without one.
    """
    urls = expanded(patterns)
    places = {url: index or _beside(url) for url in urls}
    indexes = {place: read_index(place, required=place == index) for place in dict.fromkeys(places.values())}
    entries = {url: indexes[place].get(url) or indexes[place].get(file_name(url)) for url, place in places.items()}
    for url, entry in entries.items():
        if entry is None and local_path(url) is None:
            raise OptionError(
                f'{url}: {places[url]} does not tell the number of its samples; make an index: '
                'python scripts/make_shards.py --count SHARDS --output FOLDER'
            )
    with ThreadPoolExecutor(8) as pool:  # waiting for a disk is most of it
        examined = list(pool.map(_examined, entries.keys(), entries.values()))
    return [shard for shard, _ in examined], [fault for _, faults in examined for fault in faults]


def read_index(place: str, required: bool) -> dict[str, dict]:
    """The entries of an index by the paths, URLs or names that it gives: nsamples; perhaps filesize and sha256.

    Raises OptionError for what is no index and, if it is required, for none.
    """
    try:
        with closing(_opened(place)) as file:
            text = file.read()
    except OSError as error:
        if required:
            raise OptionError(f'{place}: the index of the shards cannot be read: {reason(error)}') from None
        return {}
    try:
        entries = json.loads(text)['shardlist']
        found = {str(entry['url']): entry for entry in entries}
        sound = all(type(entry['nsamples']) is int and entry['nsamples'] >= 0 for entry in entries)
    except (ValueError, LookupError, TypeError):
        sound = False
    if not sound:
        raise OptionError(f'{place}: is no index of shards: JSON with `url` and `nsamples` in each of its `shardlist`')
    return found


def index_text(shards: Iterable[Shard]) -> str:
    """The index of shards, to lie beside them; its keys are those of WebDataset's `wids` indexes."""
    entries = []
    for shard in shards:
        known = {'filesize': shard.size, 'sha256': shard.sha256}
        known = {key: value for key, value in known.items() if value is not None}
        entries.append({'url': shard.name, 'nsamples': shard.samples, **known})
    return json.dumps({'__kind__': 'wids-shard-index-v1', 'wids_version': 1, 'shardlist': entries}, indent=1) + '\n'


def counted(path: Path) -> tuple[int, list[str]]:
    """The number of samples of a local shard and what is wrong with it, as far as its headers tell.

    Raises READ_ERRORS for what is no tar file.
    """
    key_and_suffix, images, faults, last = webdataset().key_and_suffix, [], [], None
    with tarfile.open(path) as archive:
        for member in archive:
            key, suffix = key_and_suffix(member.name) if member.isreg() and _is_data(member.name) else (None, None)
            if key is None:
                continue
            if key != last:
                last = key
                images.append((key, []))
            if _is_image(suffix):
                images[-1][1].append(suffix)
                if member.size == 0:
                    faults.append(f'{path}/{member.name} is empty (0 bytes)')
        archive.fileobj.seek(archive.offset)
        end = archive.fileobj.read(tarfile.BLOCKSIZE)
    faults += [f'{path}/{key}: {fault}' for key, suffixes in images if (fault := _fault(suffixes))]
    if end != tarfile.NUL * tarfile.BLOCKSIZE:  # readers of tar files take anything else for the end as well
        state = 'truncated' if len(end) < tarfile.BLOCKSIZE else 'damaged'
        faults.append(f'{path}: is {state} at byte {archive.offset}, there is no end mark')
    return len(images), faults


def checksum(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_samples(
    url: str, first: int = 0, end: int | None = None, wanted: Callable[[int], bool] = lambda number: True
) -> Iterator[tuple[int, Sample]]:
    """(number, sample) of the wanted samples of a shard from `first` to before `end`; others are passed over.

    Raises ValueError that names the shard if it cannot be read, and if it ends before `end`.
    """
    key_and_suffix = webdataset().key_and_suffix
    last, number = None, -1

    def selected(name: str) -> bool:
        nonlocal last, number
        key, _ = key_and_suffix(name)
        if key is not None and key != last:
            last, number = key, number + 1
        return key is not None and (number == end or (number >= first and wanted(number)))

    files: dict[str, bytes] = {}
    at, of = -1, ''
    for name, data in _members(url, selected):
        if at != number:
            if files:
                yield at, _sample(url, of, files)
            if number == end:
                return
            at, of, files = number, last, {}
        files[name] = data
    if files:
        yield at, _sample(url, of, files)
    if end is not None and number + 1 < end:
        raise ValueError(f'{url}: ends after {number + 1} samples of {end}: it is truncated or was changed')


def reason(error: Exception) -> str:
    """What was wrong, without the command line of a download, which may hold an access token."""
    if isinstance(error, OSError):
        status = re.search(r'exit (\d+)', str(error))
        return error.strerror or f'the download ended with status {status[1] if status else "unknown"}'
    text = str(error.args[0] if error.args else error).splitlines()[0].partition(' @ ')[0]
    return f'is no whole tar file: {text}' if text else 'is no whole tar file'


def _sample(url: str, key: str, files: dict[str, bytes]) -> Sample:
    images = [name for name in files if _is_image(name.rpartition('.')[2])]
    if fault := _fault(images):
        return Sample(key, f'{url}/{key}', b'', fault)
    return Sample(key, f'{url}/{images[0]}', files[images[0]])


def _members(url: str, selected: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        with closing(_opened(url)) as stream:
            for member in webdataset().members([{'url': url, 'stream': stream}], select_files=selected, eof_value=None):
                yield member['fname'], member['data']
    except READ_ERRORS as error:
        raise ValueError(f'{url}: {reason(error)}') from None


def _opened(url: str) -> Any:
    path = local_path(url)
    return webdataset().opened(url) if path is None else path.open('rb')


def _beside(url: str) -> str:
    """Where the index of a shard lies."""
    path = local_path(url)
    if path is not None:
        return str(path.with_name(INDEX_NAME))
    parts = urlparse(url)
    return parts._replace(path=f'{parts.path.rpartition("/")[0]}/{INDEX_NAME}', query='').geturl()


def _examined(url: str, entry: dict | None) -> tuple[Shard, list[str]]:
    """A shard as far as its index or else its headers tell, and what is wrong with it if it is local."""
    path = local_path(url)
    try:
        if entry is None:
            count, faults = counted(path)
            return Shard(url, count), faults
        shard = Shard(url, entry['nsamples'], entry.get('filesize'), entry.get('sha256'))
        if path is not None and shard.size not in (None, size := path.stat().st_size):
            return shard, [f'{url}: has {size} bytes, its index says {shard.size}: it is truncated or was changed']
    except READ_ERRORS as error:
        return Shard(url, 0), [f'{url}: {reason(error)}']
    return shard, []


def _is_data(name: str) -> bool:
    """Whether webdataset takes a member of that name for a part of a sample."""
    return re.match(r'__[^/]*__($|/)', name) is None


def _is_image(suffix: str) -> bool:
    return f'.{suffix.rpartition(".")[2].lower()}' in IMAGE_SUFFIXES


def _fault(images: Sequence[str]) -> str:
    if len(images) == 1:
        return ''
    return f'holds several images: {", ".join(images)}' if images else 'holds no image'
