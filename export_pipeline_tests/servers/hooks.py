"""A receiver of webhooks on 127.0.0.1: it keeps what it gets and answers as it is told.

What belongs here: the server. What does not: what must be sent (the tests).
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Hook:
    """One call."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class HookSink:
    """A running receiver; ``statuses`` are the next answers, 204 when they are used up."""

    url: str
    statuses: list[int] = field(default_factory=list)
    received: list[Hook] = field(default_factory=list)
    location: str = ""


@contextmanager
def serve_hooks(tls: ssl.SSLContext | None = None) -> Iterator[HookSink]:
    """Serve on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            sink.received.append(Hook(self.path, dict(self.headers.items()), self.rfile.read(length)))
            self.send_response(sink.statuses.pop(0) if sink.statuses else 204)
            if sink.location:
                self.send_header("Location", sink.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's own name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    sink = HookSink(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/hook?x=1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
