"""Mail through an SMTP server.

What belongs here: one conversation a message, and what each way it can end means.
What does not: the message's form (``mime``).

The commands are given one by one, not by ``sendmail``: only so can a connection lost before the
message was handed over (certainly not sent) be told from one lost while waiting for the verdict.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import parse_qs, unquote, urlsplit

from export_pipeline.delivery.mail import MailNotAccepted, MailOutcomeUnknown, Message
from export_pipeline.delivery.mime import recipient_address, to_mime

_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class SmtpServer:
    """Where the server is and how it is spoken to."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    tls_from_start: bool = False
    starttls: bool = False

    @classmethod
    def from_url(cls, url: str) -> SmtpServer:
        """Read ``smtp://user:password@host:port?starttls=1`` or ``smtps://...``; default ports 25, 587, 465.

        Raises:
            ValueError: it is no such URL; the URL (it holds the password) is not repeated.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("expected smtp://user:password@host:port") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("expected smtp://user:password@host:port or smtps://...")
        starttls = parse_qs(parts.query).get("starttls", ["0"])[-1].lower() in ("1", "true", "yes")
        default_port = 465 if parts.scheme == "smtps" else 587 if starttls else 25
        return cls(
            host=parts.hostname,
            port=port or default_port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls_from_start=parts.scheme == "smtps",
            starttls=starttls,
        )


class SmtpMail:
    """Implements ``delivery.mail.MailProvider``."""

    def __init__(
        self, server: SmtpServer, *, timeout: float = _TIMEOUT_SECONDS, tls: ssl.SSLContext | None = None
    ) -> None:
        self._server = server
        self._timeout = timeout
        self._tls = tls

    def send(self, message: Message) -> None:
        """Send one message in a conversation of its own.

        Raises:
            MailNotAccepted: refused, or the connection was lost before the message was handed over.
            MailOutcomeUnknown: the connection was lost after that.
        """
        recipient, mime = recipient_address(message.recipient).addr_spec, to_mime(message)
        client = self._connect()
        try:
            _converse(client, message.sender.addr_spec, recipient, mime)
        finally:
            _hang_up(client)

    def check(self) -> None:
        """Connect, log in and say NOOP.

        Raises:
            MailNotAccepted: the server cannot be reached, or refuses.
        """
        client = self._connect()
        try:
            code, _ = client.noop()
        except (smtplib.SMTPException, OSError) as error:
            raise MailNotAccepted(f"smtp {type(error).__name__}", permanent=False) from None
        finally:
            _hang_up(client)
        if code != 250:
            raise MailNotAccepted(f"smtp {code}", permanent=False)

    def _connect(self) -> smtplib.SMTP:
        server = self._server
        client: smtplib.SMTP | None = None
        try:
            if server.tls_from_start:
                client = smtplib.SMTP_SSL(server.host, server.port, timeout=self._timeout, context=self._context())
            else:
                client = smtplib.SMTP(server.host, server.port, timeout=self._timeout)
            client.ehlo_or_helo_if_needed()
            if server.starttls:
                client.starttls(context=self._context())
            if server.user:
                client.login(server.user, server.password)
        except (smtplib.SMTPException, OSError) as error:
            _hang_up(client)
            cause = error.smtp_code if isinstance(error, smtplib.SMTPResponseException) else type(error).__name__
        else:
            return client
        # A wrong password is the installation's fault, not this recipient's: never permanent.
        raise MailNotAccepted(f"smtp connect {cause}", permanent=False)

    def _context(self) -> ssl.SSLContext:
        return self._tls or ssl.create_default_context()


def _converse(client: smtplib.SMTP, sender: str, recipient: str, mime: EmailMessage) -> None:
    try:
        content = _offer(client, sender, recipient, mime)
        # A failing send leaves the closing dot unsent: the server cannot have taken the message.
        client.send(content)
    except (smtplib.SMTPException, OSError, UnicodeError) as error:
        raise MailNotAccepted(f"smtp {type(error).__name__}", permanent=False) from None
    try:
        code, _ = client.getreply()
    except (smtplib.SMTPException, OSError) as error:
        raise MailOutcomeUnknown(f"smtp lost after DATA: {type(error).__name__}") from None
    _expect(code, 250)


def _offer(client: smtplib.SMTP, sender: str, recipient: str, mime: EmailMessage) -> bytes:
    """The envelope, up to the server's wish to get the message; returns what to send it."""
    options = []
    if not (sender.isascii() and recipient.isascii()):
        if not client.has_extn("smtputf8"):
            raise MailNotAccepted("smtp without smtputf8", permanent=True)
        options = ["SMTPUTF8", "BODY=8BITMIME"]
    content = mime.as_bytes()
    if client.has_extn("size"):
        options.append(f"SIZE={len(content)}")
    # A refused sender is the installation's to correct, and no recipient's fault: never permanent.
    _expect(client.mail(sender, options)[0], 250, lasting=False)
    _expect(client.rcpt(recipient)[0], 250, 251)
    _expect(client.docmd("DATA")[0], 354, lasting=False)
    # A line that is a dot would end the message: dots at a line's beginning are doubled.
    stuffed = re.sub(rb"(?m)^\.", b"..", content)
    return stuffed + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n")


def _expect(code: int, *wanted: int, lasting: bool = True) -> None:
    if code not in wanted:
        raise MailNotAccepted(f"smtp {code}", permanent=lasting and 500 <= code < 600)


def _hang_up(client: smtplib.SMTP | None) -> None:
    """Say goodbye; the verdict is in already, so nothing that goes wrong here matters."""
    if client is None:
        return
    try:
        if client.sock is not None:
            client.quit()
    except (smtplib.SMTPException, OSError):
        pass
    finally:
        client.close()
