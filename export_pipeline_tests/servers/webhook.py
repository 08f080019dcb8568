"""A local stand-in for Slack's incoming webhooks: it takes ``{"text": …}`` and answers as it is told to."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

SECRET_PATH = "/services/T00/B00/s3cret"


@dataclass
class WebhookSink:
    """What was taken, and what the next calls get instead of 200: a status, or the text is taken and the reply lost."""

    url: str = ""
    texts: list[str] = field(default_factory=list)
    answers: deque[int | Literal["take_then_reset"]] = field(default_factory=deque)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        sink = self.server.sink
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = sink.answers.popleft() if sink.answers else 200
        if self.path != SECRET_PATH or set(body) != {"text"} or self.headers["Content-Type"] != "application/json":
            answer = 400
        if answer in (200, "take_then_reset"):
            sink.texts.append(body["text"])
        if answer == "take_then_reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        self.send_response(int(answer))
        if answer == 302:
            self.send_header("Location", self.server.sink.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, sink: WebhookSink) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sink = sink

    def shutdown_request(self, request: Any) -> None:
        # The default shuts the connection down politely first, which would turn a reset into an end.
        self.close_request(request)


@contextmanager
def serve_webhook() -> Iterator[WebhookSink]:
    sink = WebhookSink()
    with _Server(sink) as server:
        sink.url = f"http://127.0.0.1:{server.server_address[1]}{SECRET_PATH}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield sink
        finally:
            server.shutdown()
            thread.join()
