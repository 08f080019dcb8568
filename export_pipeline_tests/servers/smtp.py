"""An SMTP server (aiosmtpd) that records messages and can refuse or hang up, per recipient."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Literal, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

Drop = Literal["drop_at_rcpt", "drop_at_data", "accept_then_drop"]


@dataclass(frozen=True)
class Received:
    """One message that the server took."""

    sender: str
    recipients: list[str]
    content: bytes

    @property
    def message(self) -> EmailMessage:
        return cast(EmailMessage, message_from_bytes(self.content, policy=policy.default))


@dataclass
class SmtpSink:
    """The handler: ``replies`` and ``data_replies`` map a recipient to what it gets instead of 250."""

    replies: dict[str, str] = field(default_factory=dict)
    data_replies: dict[str, str] = field(default_factory=dict)
    drops: dict[str, Drop] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def url(self) -> str:
        return f"smtp://{self.host}:{self.port}"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Any, envelope: Any, address: str, rcpt_options: list[str]
    ) -> str:
        if self.drops.get(address) == "drop_at_rcpt":
            server.transport.abort()
            return "421 gone"
        if address in self.replies:
            return self.replies[address]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(rcpt_options)
        return "250 ok"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        recipient = envelope.rcpt_tos[0]
        if self.drops.get(recipient) == "drop_at_data":
            server.transport.abort()
            return "421 gone"
        if recipient in self.data_replies:
            return self.data_replies[recipient]
        self.received.append(Received(envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        if self.drops.get(recipient) == "accept_then_drop":
            server.transport.abort()
        return "250 taken"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        user, password = data.login.decode(), data.password.decode()
        self.logins.append(user)
        return AuthResult(success=password == "right p@ss")


@contextmanager
def serve_smtp(**options: Any) -> Iterator[SmtpSink]:
    """Start a server on a free port; ``options`` go to aiosmtpd's ``SMTP``."""
    sink = SmtpSink()
    with socket.socket() as probe:
        probe.bind((sink.host, 0))
        sink.port = probe.getsockname()[1]
    controller = Controller(
        sink, hostname=sink.host, port=sink.port, authenticator=sink.authenticate, auth_require_tls=False, **options
    )
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()
