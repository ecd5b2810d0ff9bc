"""Downloads, against a server on this machine: cached, resumed, checked, never half a file."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from basicsr.utils.download import DownloadError, cache_folder, local_path

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` with ranges; breaks off after `server.break_after` bytes of an answer."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get('Range')))
        if self.path.endswith('missing.pth'):
            self.send_error(404)
            return
        content, start = server.content, 0
        wanted = self.headers.get('Range')
        if wanted and self.headers.get('If-Range', server.tag) == server.tag:
            start = int(wanted.removeprefix('bytes=').removesuffix('-'))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        if server.tag:
            self.send_header('ETag', server.tag)
        self.send_header('Content-Type', server.kind)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.break_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('BASICSR_OFFLINE', raising=False)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        running.content, running.break_after, running.tag = CONTENT, None, '"one"'
        running.kind, running.requests = 'application/octet-stream', []
        running.url = f'http://127.0.0.1:{running.server_port}'
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files_in_cache():
    return [path for path in cache_folder().rglob('*') if path.is_file() and path.suffix != '.lock']


def test_a_url_is_downloaded_once(server):
    path = local_path(f'{server.url}/weights.pth')
    assert path.name == 'weights.pth' and path.read_bytes() == CONTENT
    assert local_path(f'{server.url}/weights.pth') == path
    assert len(server.requests) == 1 and files_in_cache() == [path]


def test_two_urls_with_one_file_name_do_not_meet(server):
    first = local_path(f'{server.url}/a/weights.pth')
    server.content = b'other'
    second = local_path(f'{server.url}/b/weights.pth')
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b'other')


@pytest.mark.parametrize('with_checksum', [True, False])
def test_what_broke_off_goes_on_where_it_stopped(server, with_checksum):
    url = f'{server.url}/weights.pth' + f'#sha256={SHA256}' * with_checksum
    server.break_after = 100_000
    with pytest.raises(DownloadError, match=r'broke off after 100000 of 512000 bytes; run again'):
        local_path(url)
    assert not [path for path in files_in_cache() if path.name == 'weights.pth']
    server.break_after = None
    path = local_path(url)
    assert path.read_bytes() == CONTENT
    assert server.requests[1] == ('/weights.pth', 'bytes=100000-')
    assert files_in_cache() == [path]


def test_a_file_that_changed_meanwhile_starts_again(server):
    server.break_after = 100_000
    with pytest.raises(DownloadError):
        local_path(f'{server.url}/weights.pth')
    server.break_after, server.tag, server.content = None, '"two"', CONTENT[::-1]
    assert local_path(f'{server.url}/weights.pth').read_bytes() == CONTENT[::-1]


def test_a_file_without_tag_or_checksum_starts_again(server):
    server.tag, server.break_after = '', 100_000
    with pytest.raises(DownloadError):
        local_path(f'{server.url}/weights.pth')
    server.break_after, server.content = None, CONTENT[::-1]
    assert local_path(f'{server.url}/weights.pth').read_bytes() == CONTENT[::-1]
    assert server.requests[1] == ('/weights.pth', None)


def test_a_part_longer_than_the_file_starts_again(server):
    server.break_after = 100_000
    url = f'{server.url}/weights.pth#sha256={hashlib.sha256(b"short").hexdigest()}'
    with pytest.raises(DownloadError):
        local_path(url)
    server.break_after, server.content = None, b'short'
    assert local_path(url).read_bytes() == b'short'


def test_a_wrong_checksum_leaves_nothing_to_load(server):
    url = f'{server.url}/weights.pth#sha256={"0" * 64}'
    with pytest.raises(DownloadError, match=f'wrong file, its SHA-256 is {SHA256}, expected 0000'):
        local_path(url)
    assert not [path for path in files_in_cache() if path.suffix in ('.pth', '.part')]


def test_a_damaged_cache_is_noticed(server):
    url = f'{server.url}/weights.pth#sha256={SHA256}'
    path = local_path(url)
    path.write_bytes(b'damaged')
    with pytest.raises(DownloadError, match=r'in the cache .*delete it'):
        local_path(url)


def test_offline_uses_the_cache_or_says_so(server, monkeypatch):
    url = f'{server.url}/weights.pth'
    for switch_on in (lambda: None, lambda: monkeypatch.setenv('BASICSR_OFFLINE', '1')):
        switch_on()
        with pytest.raises(DownloadError, match=r'not in the cache .* downloads are off'):
            local_path(url, offline=True if not switch_on() else None)
    assert not server.requests
    path = local_path(url, offline=False)
    assert local_path(url) == path and len(server.requests) == 1


def test_what_the_server_refuses_is_said_in_one_line(server):
    with pytest.raises(DownloadError, match='answers 404') as caught:
        local_path(f'{server.url}/missing.pth')
    assert '\n' not in str(caught.value)
    server.kind = 'text/html'
    with pytest.raises(DownloadError, match='sent a web page'):
        local_path(f'{server.url}/weights.pth')


def test_no_network_is_said_in_one_line(server):
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match='cannot be reached') as caught:
        local_path(f'http://127.0.0.1:{port}/weights.pth')
    assert '\n' not in str(caught.value)


def test_a_path_is_itself_and_its_checksum_is_checked(tmp_path):
    (tmp_path / 'weights.pth').write_bytes(CONTENT)
    assert local_path(tmp_path / 'weights.pth') == tmp_path / 'weights.pth'
    assert local_path(f'{tmp_path}/weights.pth#sha256={SHA256.upper()}') == tmp_path / 'weights.pth'
    for location, reason in (
        (f'{tmp_path}/weights.pth#sha256={"0" * 64}', 'wrong file'),
        (f'{tmp_path}/weights.pth#sha256=12', 'not a SHA-256'),
        (tmp_path / 'none.pth', 'no such file'),
        ('http://127.0.0.1/a b.pth', 'control characters'),
        ('ftp://host/file.pth', 'only http and https'),
    ):
        with pytest.raises(DownloadError, match=reason):
            local_path(location)


def test_processes_that_want_the_same_file_download_it_once(server):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(local_path(f'{server.url}/weights.pth'))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and len(paths) == 4 and paths[0].read_bytes() == CONTENT


@pytest.mark.parametrize('name', ['..%2F..%2Fevil.pth', '.hidden', 'a%20b?.pth', '%00', ''])
def test_no_url_leaves_the_cache_folder(server, name):
    path = local_path(f'{server.url}/{name}')
    assert Path(path).resolve().is_relative_to(cache_folder().resolve())
    assert len(path.resolve().relative_to(cache_folder().resolve()).parts) == 2
