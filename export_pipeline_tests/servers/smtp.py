"""An SMTP server (aiosmtpd) that records messages and can refuse or hang up, per recipient."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Drop = Literal["drop_at_rcpt", "drop_at_data", "accept_then_drop"]


@dataclass(frozen=True)
class Received:
    """One message that the server took."""

    sender: str
    recipients: list[str]
    content: bytes

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.content, policy=policy.default)


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
            _abort(server)
            return "421 gone"
        if address in self.replies:
            return self.replies[address]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(rcpt_options)
        return "250 ok"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        recipient = envelope.rcpt_tos[0]
        if self.drops.get(recipient) == "drop_at_data":
            _abort(server)
            return "421 gone"
        if recipient in self.data_replies:
            return self.data_replies[recipient]
        self.received.append(Received(envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        if self.drops.get(recipient) == "accept_then_drop":
            _abort(server)
        return "250 taken"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        user, password = data.login.decode(), data.password.decode()
        self.logins.append(user)
        # Not handled: aiosmtpd is to give the reply itself.
        return AuthResult(success=password == "right p@ss", handled=False)


def _abort(server: SMTP) -> None:
    """Hang up with RST, whatever is still to be said."""
    cast(asyncio.Transport, server.transport).abort()


@contextmanager
def serve_smtp(handler: SmtpSink | None = None, *, tls_from_start: bool = False, **options: Any) -> Iterator[SmtpSink]:
    """Start a server on a free port; ``options`` go to aiosmtpd's ``SMTP`` (``tls_context`` means STARTTLS)."""
    sink = SmtpSink() if handler is None else handler
    with socket.socket() as probe:
        probe.bind((sink.host, 0))
        sink.port = probe.getsockname()[1]
    if tls_from_start:
        options["ssl_context"] = options.pop("tls_context")
    controller = Controller(sink, hostname=sink.host, port=sink.port, authenticator=sink.authenticate, **options)
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()


def self_signed(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for the server, and for a client that trusts it: a certificate of 127.0.0.1 made now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=certificate.public_bytes(Encoding.PEM).decode())
