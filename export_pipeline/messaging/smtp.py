"""Mail through an SMTP server: one conversation per message, and what each outcome and each reply means.

The commands are sent one by one, not by ``sendmail``. Only so can a connection that was lost before the message was
handed over (certainly not sent) be distinguished from one that was lost while waiting for the reply to it.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from ipaddress import ip_address
from urllib.parse import parse_qs, unquote, urlsplit

from export_pipeline.messaging.message import Blame, MailNotAccepted, MailOutcomeUnknown, Message
from export_pipeline.messaging.mime import recipient_address, to_mime

_GOODBYE_SECONDS = 5.0
_BLOCK = 65_536
_FORM = "expected smtp://user:password@host:port or smtps://..., with starttls=1 or starttls=0 or neither"
# RFC 3463 and its registry at IANA. The longest prefix counts; for a code that is not listed the text decides.
_BY_CODE: dict[str, Blame] = {
    "1.1": Blame.RECIPIENT,  # no such mailbox
    "1.2": Blame.RECIPIENT,  # no such domain
    "1.3": Blame.RECIPIENT,  # not an address
    "1.6": Blame.RECIPIENT,  # the mailbox has moved
    "1.7": Blame.INSTALLATION,  # the sender is not an address
    "1.8": Blame.INSTALLATION,  # the sender's domain does not exist
    "1.10": Blame.RECIPIENT,  # the domain accepts no mail (null MX)
    "2": Blame.RECIPIENT,  # the mailbox: disabled, full
    "2.3": Blame.UNCLEAR,  # too long for this mailbox
    "3.4": Blame.INSTALLATION,  # too long for the server
    "3.5": Blame.INSTALLATION,  # the server is not configured
    "4.5": Blame.INSTALLATION,  # the sending limit is reached
    "5": Blame.INSTALLATION,  # the protocol
    "5.0": Blame.UNCLEAR,  # Outlook.com says it of unknown mailboxes
    "5.3": Blame.UNCLEAR,  # too many recipients
    "6": Blame.INSTALLATION,  # the message's form
    "6.7": Blame.RECIPIENT,  # a local part that a server on the way does not support
    "7": Blame.INSTALLATION,  # policy: relaying, SPF, DKIM, DMARC, reputation, login
    "7.17": Blame.RECIPIENT,  # the mailbox has another owner
    "7.18": Blame.RECIPIENT,  # the domain has another owner
}
_RECIPIENT_WORDS = re.compile(
    r"(unknown|invalid|no such|non-?existent|nonexisting|no) (local )?(user|mailbox|recipient|account|address|person)"
    r"|(?<!sender )(?<!from )(user|mailbox|recipient|account|address|addressee)( \S+){0,3} "
    r"(unknown|not found|disabled|inactive|suspended|unavailable|full|over quota|not exist|invalid|rejected)"
    r"|does(n't| not) (exist|have an? .{0,20}account)|not a (valid|known) (user|mailbox|recipient)|quota exceeded"
    r"|exceeded storage"
)
_INSTALLATION_WORDS = re.compile(
    r"relay|denied|\bspf\b|dkim|dmarc|polic(y|ies)|sender|block|black ?list|black-list|listed|spam|unsolicited"
    r"|reputation|authenticat|authoriz|authoris|credential|login|client host|helo|ehlo|reverse dns|\bptr\b|rdns"
    r"|too (large|big)|maximum.{0,20}size|size limit|banned|prohibited|not (permitted|allowed)|\btls\b|encrypt"
)


@dataclass(frozen=True)
class SmtpServer:
    """Where the server is, and how to log in and encrypt."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    tls_from_start: bool = False
    starttls: bool | None = None
    """None: if the server offers it."""

    @classmethod
    def from_url(cls, url: str) -> SmtpServer:
        """Read ``smtp://user:password@host:port?starttls=1`` or ``smtps://...``; default ports 25, 587, 465.

        The ``ValueError`` for any other text does not repeat it, because it holds the password.
        """
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        try:
            parts = urlsplit(url)
            port = parts.port
            values = parse_qs(parts.query).get("starttls")
            starttls = None if values is None else words[values[-1].lower()]
        except (ValueError, KeyError):
            raise ValueError(_FORM) from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError(_FORM)
        default_port = 465 if parts.scheme == "smtps" else 587 if starttls else 25
        return cls(
            host=parts.hostname,
            port=port or default_port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls_from_start=parts.scheme == "smtps",
            starttls=starttls,
        )


@dataclass(frozen=True)
class SmtpMail:
    """Implements ``MailProvider``; timeouts in seconds."""

    server: SmtpServer
    timeout: float = 30.0
    """For connecting, greeting, TLS and login, each."""
    command_timeout: float = 300.0
    """For the answer to a command, and without any progress while the message is written (RFC 5321, 4.5.3.2: for MAIL
    and RCPT; 3 minutes would do for a block of the message)."""
    verdict_timeout: float = 600.0
    """For the answer to the final dot (RFC 5321, 4.5.3.2.6). A client that hangs up earlier never knows whether the
    mail was accepted."""
    tls: ssl.SSLContext | None = None
    """How certificates are verified; None: the system's way."""

    def send(self, message: Message) -> None:
        """Send one message in its own conversation."""
        recipient, mime = recipient_address(message.recipient).addr_spec, to_mime(message)
        client = self._connect()
        try:
            self._converse(client, message.sender.addr_spec, recipient, mime)
        finally:
            _hang_up(client)

    def check(self) -> None:
        """Connect, log in and say NOOP."""
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
        server = self.server
        client: smtplib.SMTP | None = None
        try:
            if server.tls_from_start:
                client = smtplib.SMTP_SSL(server.host, server.port, timeout=self.timeout, context=self._verifying())
            else:
                client = smtplib.SMTP(server.host, server.port, timeout=self.timeout)
            client.ehlo_or_helo_if_needed()
            if not server.tls_from_start:
                self._encrypt(client)
            if server.user and not client.has_extn("auth"):
                hint = "; it may be after STARTTLS" if server.starttls is False else ""
                raise _misconfigured(f"no AUTH offered{hint}")
            if server.user:
                client.login(server.user, server.password)
        except (smtplib.SMTPException, OSError, MailNotAccepted) as error:
            _hang_up(client)
            raise error if isinstance(error, MailNotAccepted) else _not_connected(error) from None
        return client

    def _encrypt(self, client: smtplib.SMTP) -> None:
        """Start TLS if it is required or offered. A password is sent in clear only with ``starttls=0`` or locally."""
        server = self.server
        if server.starttls is False:
            return
        sends_password = bool(server.user) and not ip_address(_socket(client).getpeername()[0]).is_loopback
        offered = client.has_extn("starttls")
        if not offered and sends_password and server.starttls is None:
            raise _misconfigured("no STARTTLS for the password; starttls=0 sends it in clear")
        if not (offered or server.starttls):
            return
        # Encryption that is only offered protects against eavesdroppers only (RFC 7435), and must not fail mails that
        # would otherwise go in clear: many servers of private networks have a self-signed certificate.
        client.starttls(context=self._verifying() if server.starttls or sends_password else _unverifying())
        # The server forgets the first greeting (RFC 3207, 4.2), and smtplib what the server offers.
        client.ehlo()

    def _verifying(self) -> ssl.SSLContext:
        return self.tls or ssl.create_default_context()

    def _converse(self, client: smtplib.SMTP, sender: str, recipient: str, mime: EmailMessage) -> None:
        try:
            _socket(client).settimeout(self.command_timeout)
            # If sending fails, the final dot was not sent: the server cannot have accepted the message.
            _write(_socket(client), _offer(client, sender, recipient, mime))
        except (smtplib.SMTPException, OSError, UnicodeError) as error:
            raise MailNotAccepted(f"smtp {type(error).__name__}", permanent=False) from None
        try:
            _socket(client).settimeout(self.verdict_timeout)
            code, text = client.getreply()
        except (smtplib.SMTPException, OSError) as error:
            raise MailOutcomeUnknown(f"smtp lost after DATA: {type(error).__name__}") from None
        if code != 250:
            raise refused(code, text)


def _misconfigured(problem: str) -> MailNotAccepted:
    return MailNotAccepted(f"smtp connect: {problem}", permanent=False, blame=Blame.INSTALLATION, reached=False)


def _not_connected(error: Exception) -> MailNotAccepted:
    """Why there is no conversation: never the recipient's fault, and the same for all."""
    blame, cause = Blame.UNCLEAR, type(error).__name__
    if isinstance(error, smtplib.SMTPResponseException):
        cause = str(error.smtp_code)
        blame = Blame.INSTALLATION if 500 <= error.smtp_code < 600 else Blame.UNCLEAR
    elif isinstance(error, smtplib.SMTPNotSupportedError | ssl.SSLCertVerificationError):
        blame = Blame.INSTALLATION
    return MailNotAccepted(f"smtp connect {cause}", permanent=False, blame=blame, reached=False)


def _socket(client: smtplib.SMTP) -> socket.socket:
    if client.sock is None:
        raise smtplib.SMTPServerDisconnected("not connected")
    return client.sock


def _unverifying() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _write(sock: socket.socket, content: bytes) -> None:
    """Write everything. The timeout starts anew whenever the server took some; ``sendall`` counts it for the whole."""
    rest = memoryview(content)
    while rest:
        rest = rest[sock.send(rest[:_BLOCK]) :]


def _offer(client: smtplib.SMTP, sender: str, recipient: str, mime: EmailMessage) -> bytes:
    """Send the envelope until the server is ready for the message; returns the bytes to send it."""
    options = []
    if not (sender.isascii() and recipient.isascii()):
        if not client.has_extn("smtputf8"):
            blame = Blame.RECIPIENT if sender.isascii() else Blame.INSTALLATION
            raise MailNotAccepted("smtp without smtputf8", permanent=True, blame=blame)
        options = ["SMTPUTF8", "BODY=8BITMIME"]
    content = mime.as_bytes()
    if client.has_extn("size"):
        options.append(f"SIZE={len(content)}")
    # At MAIL no recipient is named yet, and at DATA it was accepted: these refusals are the same for every recipient.
    _expect(client.mail(sender, options), 250, blame=Blame.INSTALLATION)
    _expect(client.rcpt(recipient), 250, 251)
    _expect(client.docmd("DATA"), 354, blame=Blame.INSTALLATION)
    # A line that is a dot would end the message: dots at a line's beginning are doubled.
    stuffed = re.sub(rb"(?m)^\.", b"..", content)
    return stuffed + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n")


def _expect(reply: tuple[int, bytes], *wanted: int, blame: Blame | None = None) -> None:
    code, text = reply
    if code not in wanted:
        raise refused(code, text, blame=blame)


def _hang_up(client: smtplib.SMTP | None) -> None:
    """Say goodbye. The outcome is known already, so errors here do not matter."""
    if client is None:
        return
    with suppress(smtplib.SMTPException, OSError):
        if client.sock is not None:
            client.sock.settimeout(_GOODBYE_SECONDS)
            client.quit()
    client.close()


def refused(code: int, text: bytes, *, blame: Blame | None = None) -> MailNotAccepted:
    """What an unwanted reply means.

    Whose fault a permanent refusal is follows from its command (``blame``), else from its enhanced code (RFC 3463),
    else from its text.
    """
    words = text.decode("ascii", "replace").lower()
    enhanced = re.match(r"\s*([245]\.\d{1,3}\.\d{1,3})\b", words)
    # The text may repeat addresses: only numbers of a reply are kept.
    reason = f"smtp {code} {enhanced[1]}" if enhanced else f"smtp {code}"
    if not 500 <= code < 600:
        return MailNotAccepted(reason, permanent=False)
    found = blame or _blame(enhanced[1].partition(".")[2] if enhanced else "", words)
    return MailNotAccepted(reason, permanent=True, blame=found)


def _blame(detail: str, words: str) -> Blame:
    by_code = _BY_CODE.get(detail) or _BY_CODE.get(detail.partition(".")[0])
    if by_code in (Blame.RECIPIENT, Blame.INSTALLATION):
        return by_code
    words = re.sub(r"\S*@\S*", " ", words)  # an address proves nothing: relay@example.com
    recipient, installation = _RECIPIENT_WORDS.search(words), _INSTALLATION_WORDS.search(words)
    if bool(recipient) == bool(installation):
        return Blame.UNCLEAR
    return Blame.RECIPIENT if recipient else Blame.INSTALLATION
