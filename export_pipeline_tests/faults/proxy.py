"""A proxy before a real HTTP server (S3, SendGrid) that makes things go wrong for chosen requests.

What belongs here: passing on, breaking, and counting what passed. What does not: what is broken when (the tests).

It hands the Host header on as the client sent it: S3's signatures include it. A call that a gate is closed to waits
until its client gives up.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_TIMEOUT_SECONDS = 60
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing throws away what is queued and sends RST."""


@dataclass(frozen=True)
class Call:
    """One HTTP request as the client sent it."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    at: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        """The path, decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def operation(self) -> str:
        """S3's name of the operation, as far as the pipeline uses it; else the method."""
        asked = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        if "uploadId" in asked:
            names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        elif "uploads" in asked:
            names = {"POST": "CreateMultipartUpload", "GET": "ListMultipartUploads"}
        elif "list-type" in asked:
            names = {"GET": "ListObjectsV2"}
        else:
            names = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
        return names.get(self.method, self.method)


@dataclass(frozen=True)
class Reply:
    """Answered by the proxy; the server never hears of the call."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """The connection is reset, before the call reaches the server or after the server has done it."""

    after_the_server: bool = False


@dataclass(frozen=True)
class Truncate:
    """The server's answer is announced in full and ends after so many bytes of its body."""

    after: int


Fault = Reply | Reset | Truncate
LOST_REPLY = Reset(after_the_server=True)


def s3_error(status: int, code: str, **headers: str) -> Reply:
    """An answer as S3 words it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml", **headers})


@dataclass
class _Rule:
    applies: Callable[[Call], bool]
    fault: Fault
    times: int


class HttpProxy:
    """What passed, and what is to go wrong."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.url = ""
        self.calls: list[Call] = []
        self.injected: list[Call] = []
        self.waiting: list[Call] = []
        """Every call that ever waited at a gate."""
        self._rules: list[_Rule] = []
        self._gates: list[re.Pattern[str]] = []
        self._lock = threading.Lock()

    def inject(self, fault: Fault, applies: Callable[[Call], bool], *, times: int = 1) -> None:
        """The next ``times`` calls that ``applies`` says yes to meet the fault; rules are asked in their order."""
        self._rules.append(_Rule(applies, fault, times))

    @contextmanager
    def closed(self, pattern: str) -> Iterator[None]:
        """Nobody passes whose ``METHOD /path?query`` matches; it opens when the context ends."""
        gate = re.compile(pattern)
        self._gates.append(gate)
        try:
            yield
        finally:
            self._gates.remove(gate)

    def is_closed_to(self, call: Call) -> bool:
        return any(gate.search(f"{call.method} {call.target}") for gate in self._gates)

    def calm(self) -> None:
        """Nothing goes wrong any more, and nothing was counted."""
        with self._lock:
            self._rules.clear()
            self.calls.clear()
            self.injected.clear()

    def count(self, operation: str) -> int:
        """Calls of an operation, whatever became of them."""
        return sum(call.operation == operation for call in self.calls)

    def fault_for(self, call: Call) -> Fault | None:
        """Note the call; what is to happen to it."""
        with self._lock:
            self.calls.append(call)
            for rule in self._rules:
                if rule.times > 0 and rule.applies(call):
                    rule.times -= 1
                    self.injected.append(call)
                    return rule.fault
        return None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = Call(self.command, self.path, dict(self.headers.items()), body)
        if not self._let_through(call):
            self.close_connection = True
            return
        fault = self.server.proxy.fault_for(call)
        if isinstance(fault, Reply):
            self._answer(fault.status, fault.headers, fault.body, len(fault.body))
        elif fault == Reset():
            self._reset()
        else:
            self._pass_on(call, fault)

    # http.server's names.
    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _let_through(self, call: Call) -> bool:
        """Wait while a gate is closed; False once the client has hung up."""
        proxy = self.server.proxy
        if proxy.is_closed_to(call):
            proxy.waiting.append(call)
        while proxy.is_closed_to(call):
            if select.select([self.connection], [], [], 0.1)[0]:
                return False
        return True

    def _pass_on(self, call: Call, fault: Fault | None) -> None:
        with contextlib.closing(HTTPConnection(self.server.proxy.upstream, timeout=_TIMEOUT_SECONDS)) as upstream:
            upstream.putrequest(call.method, call.target, skip_host=True, skip_accept_encoding=True)
            for name, value in call.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(call.body or None)
            reply = upstream.getresponse()
            body = reply.read()
            if fault == LOST_REPLY:
                self._reset()
            elif isinstance(fault, Truncate):
                self._answer(reply.status, _kept(reply), body[: fault.after], len(body))
                self.close_connection = True
            else:
                length = int(reply.headers.get("Content-Length", len(body))) if call.method == "HEAD" else len(body)
                self._answer(reply.status, _kept(reply), body, length)

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def _kept(reply: HTTPResponse) -> dict[str, str]:
    own = ("connection", "transfer-encoding", "content-length")
    return {name: value for name, value in reply.getheaders() if name.lower() not in own}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: HttpProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def shutdown_request(self, request: Any) -> None:
        # The default shuts the connection down politely first, which would turn a reset into an end.
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what these tests are about."""


@contextmanager
def http_proxy(upstream: str) -> Iterator[HttpProxy]:
    """A proxy before an ``http://host:port``."""
    proxy = HttpProxy(upstream)
    with _Server(proxy) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
