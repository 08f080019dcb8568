"""Gates between an installation and its store: a request that a gate is closed to waits until its client gives up.

What belongs here: the HTTP proxy and its gates. What does not: what is done to whoever waits (the tests).
Signatures stay valid: the Host header goes through as the client wrote it.
"""

from __future__ import annotations

import http.client
import re
import select
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Gates:
    """What waits: requests whose ``METHOD path`` matches a closed gate."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._closed: list[re.Pattern[str]] = []
        self.waiting: list[str] = []
        """Every request that ever waited."""

    @contextmanager
    def closed(self, pattern: str) -> Iterator[None]:
        gate = re.compile(pattern)
        self._closed.append(gate)
        try:
            yield
        finally:
            self._closed.remove(gate)

    def holds(self, request: str) -> bool:
        return any(gate.search(request) for gate in self._closed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._pass():
            self.close_connection = True
            return
        with closing(http.client.HTTPConnection(self.server.upstream, timeout=60)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        self._answer(answer, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - http.server's names

    def _answer(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    def _pass(self) -> bool:
        """Wait while a gate is closed; False once the client has hung up."""
        request, gates = f"{self.command} {self.path}", self.server.gates
        if gates.holds(request):
            gates.waiting.append(request)
        while gates.holds(request):
            if select.select([self.connection], [], [], 0.1)[0]:
                return False
        return True

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint).netloc
        self.gates = Gates(f"http://127.0.0.1:{self.server_port}")


@contextmanager
def open_gates(endpoint: str) -> Iterator[Gates]:
    """A proxy on a free port in front of ``endpoint``."""
    with _Proxy(endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.gates
        server.shutdown()
