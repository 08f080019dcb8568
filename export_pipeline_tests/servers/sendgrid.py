"""A strict local stand-in for SendGrid's ``POST /v3/mail/send``.

It refuses what SendGrid refuses, and answers the next calls as it is told to: an error, a reset
before any answer, or the worst one, taking the mail and losing the reply.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

API_KEY = "SG.test-key"
_ALLOWED = frozenset({
    "personalizations", "from", "subject", "content", "attachments", "headers", "custom_args", "tracking_settings",
    "categories", "reply_to",
})  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What one call gets instead of the usual 202."""

    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    error_field: str | None = None
    kind: Literal["reply", "reset", "take_then_reset", "take_then_silence"] = "reply"


@dataclass
class SendGridSink:
    """What was accepted, and what the next calls are to be answered."""

    url: str = ""
    accepted: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    scopes: tuple[str, ...] = ("mail.send", "sender_verification_eligible")
    answers: deque[Answer] = field(default_factory=deque)
    released: threading.Event = field(default_factory=threading.Event)

    def next_answers(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    @property
    def recipients(self) -> list[str]:
        return [to["email"] for mail in self.accepted for part in mail["personalizations"] for to in part["to"]]


def problem_of(body: Any) -> str | None:
    """What SendGrid would refuse in a body, None if nothing."""
    if not isinstance(body, dict):
        return "body is no object"
    checks = {
        "unknown field": not (set(body) - _ALLOWED),
        "from": _is_address(body.get("from")),
        "subject": isinstance(body.get("subject"), str) and body["subject"] != "" and "\n" not in body["subject"],
        "personalizations": _good_personalizations(body.get("personalizations")),
        "content": _good_content(body.get("content")),
        "custom_args": all(isinstance(value, str) for value in body.get("custom_args", {}).values()),
    }
    return next((name for name, good in checks.items() if not good), None)


def _is_address(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("email"), str) and value["email"].count("@") == 1


def _good_personalizations(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    people = [to for part in value for to in part.get("to", [])]
    emails = [to.get("email") for to in people]
    return bool(people) and len(people) <= 1000 and all(map(_is_address, people)) and len(set(emails)) == len(emails)


def _good_content(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(part.get("value") for part in value):
        return False
    types = [part.get("type") for part in value]
    return types in (["text/plain"], ["text/html"], ["text/plain", "text/html"])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sink = self.server.sink
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = sink.answers.popleft() if sink.answers else None
        if answer is not None and answer.kind == "reset":
            self._reset()
        elif answer is not None and answer.kind == "reply":
            error = {"message": body.decode(), "field": answer.error_field}
            self._reply(answer.status, dict(answer.headers), {"errors": [error]})
        else:
            self._judge(body, answer)

    def do_GET(self) -> None:
        """What a key may do, which is the one thing that can be asked."""
        if self.path != "/v3/scopes":
            self._reply(404, {}, {"errors": [{"message": "not found"}]})
        elif self.headers["Authorization"] != f"Bearer {API_KEY}":
            self._reply(401, {}, {"errors": [{"message": "authorization required", "field": None}]})
        else:
            self._reply(200, {}, {"scopes": list(self.server.sink.scopes)})

    def _judge(self, body: bytes, answer: Answer | None) -> None:
        sink = self.server.sink
        if self.path != "/v3/mail/send":
            self._reply(404, {}, {"errors": [{"message": "not found"}]})
        elif self.headers["Authorization"] != f"Bearer {API_KEY}":
            self._reply(401, {}, {"errors": [{"message": "authorization required", "field": None}]})
        elif self.headers["Content-Type"] != "application/json":
            self._reply(415, {}, {"errors": [{"message": "content type"}]})
        elif (problem := problem_of(json.loads(body))) is not None:
            sink.refused.append(problem)
            self._reply(400, {}, {"errors": [{"message": problem}]})
        else:
            sink.accepted.append(json.loads(body))
            self._after_taking(answer)

    def _after_taking(self, answer: Answer | None) -> None:
        if answer is not None and answer.kind == "take_then_reset":
            self._reset()
        elif answer is not None:
            self.server.sink.released.wait(30)
            self._reset()
        else:
            self._reply(202, {"X-Message-Id": f"sink-{len(self.server.sink.accepted)}"}, None)

    def _reply(self, status: int, headers: dict[str, str], body: object) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def _reset(self) -> None:
        """Close with RST: linger 0 throws away what is queued."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, sink: SendGridSink) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sink = sink

    def shutdown_request(self, request: Any) -> None:
        # The default shuts the connection down politely first, which would turn a reset into an end.
        self.close_request(request)


@contextmanager
def serve_sendgrid() -> Iterator[SendGridSink]:
    sink = SendGridSink()
    with _Server(sink) as server:
        sink.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield sink
        finally:
            sink.released.set()
            server.shutdown()
            thread.join()
