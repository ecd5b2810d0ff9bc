"""A path or a URL of published weights -> a file on this machine: cached, checked, resumable, never half a file."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock  # torch depends on it
from tqdm import tqdm

from basicsr.utils.registry import UserError

TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 20


class DownloadError(UserError):
    """A file could not be fetched, or is not the one that was asked for."""


def local_path(location: str | Path, offline: bool | None = None, cache: Path | None = None) -> Path:
    """The file that `location` names: a path, or `https://...` with an optional `#sha256=HEX`, downloaded once.

    Args:
        offline: use the cache only; None asks the environment variable BASICSR_OFFLINE.
        cache: where downloads stay; by default $BASICSR_CACHE or ~/.cache/basicsr.
    Raises DownloadError, in one line: no such file, no network, refused, broken off, wrong checksum.
    """
    location, _, checksum = str(location).partition('#sha256=')
    if checksum and not re.fullmatch('[0-9a-fA-F]{64}', checksum):
        raise DownloadError(f'{location}: {checksum!r} is not a SHA-256 checksum (64 hexadecimal digits)')
    scheme = urllib.parse.urlsplit(location).scheme if '://' in location else ''
    if not scheme:
        path = Path(location).expanduser()
        if not path.is_file():
            raise DownloadError(f'{location}: no such file')
        _verify(path, checksum, location)
        return path
    if scheme not in ('http', 'https'):
        raise DownloadError(f'{location}: only http and https can be downloaded')
    path = _cached(location, cache or cache_folder())
    if path.is_file():
        _verify(path, checksum, f'{location} in the cache ({path}; delete it to download it again)')
        return path
    if is_offline(offline):
        raise DownloadError(f'{location}: not in the cache ({path.parent.parent}) and downloads are off (offline)')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + '.lock')):  # of several processes one downloads, the others wait
            if not path.is_file():
                _fetch(location, path, checksum)
    except http.client.InvalidURL as error:
        raise DownloadError(f'{location}: {error}') from None
    except urllib.error.HTTPError as error:
        raise DownloadError(f'{location}: the server answers {error.code} {error.reason}') from None
    except urllib.error.URLError as error:
        raise DownloadError(f'{location}: cannot be reached ({error.reason})') from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise DownloadError(f'{location}: the download broke off ({reason}); run again to go on') from None
    return path


def is_offline(offline: bool | None = None) -> bool:
    """Whether downloads are off; None asks the environment variable BASICSR_OFFLINE."""
    return os.environ.get('BASICSR_OFFLINE', '0') not in ('', '0') if offline is None else offline


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get('BASICSR_CACHE') or Path.home() / '.cache' / 'basicsr')


def _fetch(url: str, path: Path, checksum: str) -> None:
    part = path.with_name(path.name + '.part')
    _download(url, part, bool(checksum))
    try:
        _verify(part, checksum, url)
    except DownloadError:
        part.unlink()
        raise
    part.replace(path)


def _cached(url: str, cache: Path) -> Path:
    """A name of its own for each URL, readable to people and safe as a file name."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    name = re.sub(r'[^\w.-]', '_', name).lstrip('.')[:100] or 'file'
    return cache / hashlib.sha256(url.encode()).hexdigest()[:12] / name


def _verify(path: Path, checksum: str, what: str) -> None:
    if not checksum:
        return
    with path.open('rb') as file:
        actual = hashlib.file_digest(file, 'sha256').hexdigest()
    if actual != checksum.lower():
        raise DownloadError(f'{what}: wrong file, its SHA-256 is {actual}, expected {checksum.lower()}')


def _download(url: str, part: Path, has_checksum: bool) -> None:
    """Fetch into `part`, going on where an earlier try broke off if the server still has the same file."""
    tag_file = part.with_name(part.name + '.tag')
    start = part.stat().st_size if part.is_file() else 0
    tag = tag_file.read_text() if tag_file.is_file() else ''
    if not tag and not has_checksum:
        start = 0  # nothing would show that the file has changed since
    headers = {'User-Agent': 'basicsr', 'Accept-Encoding': 'identity'}
    if start:
        headers |= {'Range': f'bytes={start}-'} | ({'If-Range': tag} if tag else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        part.unlink()  # longer than the file there is now
        return _download(url, part, has_checksum)
    with response:
        resumed = response.status == 206 and response.headers.get('Content-Range', '').startswith(f'bytes {start}-')
        start = start if resumed else 0
        length = response.headers.get('Content-Length')
        total = None if length is None else start + int(length)
        if response.headers.get_content_type() == 'text/html':
            raise DownloadError(f'{url}: the server sent a web page, not a file; download it by hand and give its path')
        tag_file.write_text(response.headers.get('ETag') or '')
        name = part.name.removesuffix('.part')
        bar = tqdm(desc=name, total=total, initial=start, unit='B', unit_scale=True, unit_divisor=1024)
        with part.open('ab' if resumed else 'wb') as file, bar:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    if total is not None and size != total:
        raise DownloadError(f'{url}: the download broke off after {size} of {total} bytes; run again to go on')
    tag_file.unlink()
    return None
