"""A stand-in for the Hugging Face hub on this machine: what is the same whatever a test asks of it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = 'c' * 40


class HubHandler(BaseHTTPRequestHandler):
    """Answers from a folder, notes what it was `asked`, or has another status than 200 for everything."""

    def __init__(self, *args, folder: Path, asked: list[str], status: int):
        self.folder, self.asked, self.status = folder, asked, status
        super().__init__(*args)

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    def answer(self, status: int, content: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {'Content-Length': str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving(kind: type[HubHandler], folder: Path, asked: list[str], status: int) -> Iterator[str]:
    """The address of a hub, as long as the context is open."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(kind, folder=folder, asked=asked, status=status))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
