"""What every mail provider does, and the message that it sends.

A provider has three outcomes, because they decide whether a second try may mail twice: it returned = accepted,
``MailNotAccepted`` = certainly not sent, ``MailOutcomeUnknown`` = perhaps sent. ``Blame`` says who has to act after a
refusal: a fault of the installation must not be recorded against a recipient.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.utils import parseaddr
from enum import Enum
from typing import Protocol

import idna


@dataclass(frozen=True)
class Attachment:
    """A file in the message itself."""

    name: str
    media_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Message:
    """One message to one recipient. ``message_id`` is the same at every try."""

    sender: Address
    recipient: str
    subject: str
    text: str
    html: str
    message_id: str
    attachments: tuple[Attachment, ...] = ()
    unsubscribe_url: str | None = None
    """Where the recipient unsubscribes with one POST (RFC 8058); None for a mail of a single export."""

    @property
    def list_headers(self) -> dict[str, str]:
        """The headers by which a mail client offers to unsubscribe (RFC 2369, RFC 8058)."""
        if self.unsubscribe_url is None:
            return {}
        return {"List-Unsubscribe": f"<{self.unsubscribe_url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def message_id(about: str, recipient: str) -> str:
    """An id that is the same at every try to send one recipient's message about something; it holds no address."""
    return f"{about}.{hashlib.sha256(recipient.encode()).hexdigest()[:16]}"


class Blame(Enum):
    """Who has to change something before a refused message is accepted, as far as the reply says."""

    RECIPIENT = "recipient"
    """The address accepts no mail; the operators cannot change that."""
    INSTALLATION = "installation"
    """The operators: the login, the sender, relaying, a policy, the message's size or form."""
    UNCLEAR = "unclear"


class MailNotAccepted(Exception):
    """The provider certainly did not accept the message.

    ``permanent``: this message to this recipient is refused permanently; another try is useless.
    ``blame``: whose fault the refusal is. A fault of the installation is never permanent: the message is sent once the
    operators have corrected it.
    ``reason``: a code such as ``smtp 550 5.1.1``, without an address.
    ``retry_after``: seconds that the provider wants us to wait, if it says so.
    ``reached``: False if there was no conversation at all, so that no other message would succeed now.
    """

    def __init__(
        self,
        reason: str,
        *,
        permanent: bool,
        blame: Blame = Blame.UNCLEAR,
        retry_after: float | None = None,
        reached: bool = True,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent and blame is not Blame.INSTALLATION
        self.blame = blame
        self.retry_after = retry_after
        self.reached = reached


class MailOutcomeUnknown(Exception):
    """The message was handed over but the answer was lost: it may have been sent. Never retried automatically."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MailProvider(Protocol):
    """Sends messages, one at a time."""

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            MailNotAccepted: certainly not sent.
            MailOutcomeUnknown: perhaps sent.
        """
        ...

    def check(self) -> None:
        """Do everything that precedes a message, and send none.

        Raises ``MailNotAccepted``: a message could not be sent now.
        """
        ...


def parse_sender(text: str) -> Address:
    """The sender in a setting or a request: ``name@domain`` or ``Name <name@domain>``, any script in the name.

    A ``ValueError`` does not repeat the text.
    """
    problem = "expected name@domain or Name <name@domain>"
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(problem)
    name, spec = parseaddr(text)
    return parse_address(spec, display_name=name)


def parse_address(spec: str, *, display_name: str = "") -> Address:
    """``name@domain`` with the domain in DNS form (``xn--...``); the name may be in any script.

    A ``ValueError`` does not repeat the text.
    """
    name, _, domain = spec.rpartition("@")
    try:
        # Python's own codec follows IDNA 2003 and turns straße.de into strasse.de, which belongs to somebody else.
        ascii_domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
        if name.isascii() or not re.fullmatch(r"[^\x00-\x20\x7f-\xa0@<>(),:;\"\\\[\]]+", name):
            return Address(display_name, addr_spec=f"{name}@{ascii_domain}")
        # Only in ``addr_spec`` does the email package refuse such a name.
        return Address(display_name, username=name, domain=ascii_domain)
    except Exception:  # noqa: BLE001 - the email package leaks IndexError and its own parse errors
        raise ValueError("expected name@domain or Name <name@domain>") from None
