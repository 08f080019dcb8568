"""What a mail provider must do, whichever it is, and the message it is handed.

The three outcomes are kept apart because they decide whether a second try may mail twice:
returned = accepted, ``MailNotAccepted`` = certainly not sent, ``MailOutcomeUnknown`` = perhaps sent.
Who has to act after a refusal is ``Blame``: what is wrong with the installation must not be booked on a recipient.
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
    """One message to one recipient. ``message_id`` is the same however often it is tried."""

    sender: Address
    recipient: str
    subject: str
    text: str
    html: str
    message_id: str
    attachments: tuple[Attachment, ...] = ()
    unsubscribe_url: str | None = None
    """Where the recipient leaves with one POST (RFC 8058); None for a mail that was asked for by itself."""

    @property
    def list_headers(self) -> dict[str, str]:
        """The headers that let a mail client show a way out (RFC 2369, RFC 8058)."""
        if self.unsubscribe_url is None:
            return {}
        return {
            "List-Unsubscribe": f"<{self.unsubscribe_url}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }


def message_id(about: str, recipient: str) -> str:
    """The same for every try at one recipient's message about something; it holds no address."""
    return f"{about}.{hashlib.sha256(recipient.encode()).hexdigest()[:16]}"


class Blame(Enum):
    """Who has to change something before a refused message is taken, as far as the reply says."""

    RECIPIENT = "recipient"
    """Nobody here: this address takes no mail."""
    INSTALLATION = "installation"
    """The operators: the login, the sender, relaying, a policy, the message's size or form."""
    UNCLEAR = "unclear"


class MailNotAccepted(Exception):
    """The provider certainly did not take the message.

    ``permanent``: this message to this recipient is refused for good, trying again is useless.
    ``blame``: whose fault the refusal is. One of the installation is never permanent: once the operators have corrected
    what is wrong, the message is sent.
    ``reason`` is a code such as ``smtp 550 5.1.1``, with no address in it.
    ``retry_after``: seconds the provider asked to wait, if it did.
    ``reached``: False if there was no conversation at all, so that no other message would fare better now.
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
    """The message was handed over but the answer was lost: it may have been sent. Never tried again by itself."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MailProvider(Protocol):
    """Hands messages over, one at a time."""

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            MailNotAccepted: certainly not sent.
            MailOutcomeUnknown: perhaps sent.
        """
        ...

    def check(self) -> None:
        """Do all that comes before a message, and send none.

        Raises:
            MailNotAccepted: a message could not be handed over now.
        """
        ...


def parse_sender(text: str) -> Address:
    """A sender of a setting or a request: ``name@domain`` or ``Name <name@domain>``, any script in the name.

    Raises:
        ValueError: it is neither; the text is not repeated.
    """
    problem = "expected name@domain or Name <name@domain>"
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(problem)
    name, spec = parseaddr(text)
    return parse_address(spec, display_name=name)


def parse_address(spec: str, *, display_name: str = "") -> Address:
    """``name@domain`` with the domain in the form that DNS knows (``xn--...``); the name may be of any script.

    Raises:
        ValueError: it is no address; it is not repeated.
    """
    name, _, domain = spec.rpartition("@")
    try:
        # Python's own codec is of 2003 and makes strasse.de of straße.de, which is somebody else's.
        ascii_domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
        if name.isascii() or not re.fullmatch(r"[^\x00-\x20\x7f-\xa0@<>(),:;\"\\\[\]]+", name):
            return Address(display_name, addr_spec=f"{name}@{ascii_domain}")
        # The email package refuses such a name in ``addr_spec`` only.
        return Address(display_name, username=name, domain=ascii_domain)
    except Exception:  # noqa: BLE001 - the email package leaks IndexError and its own parse errors
        raise ValueError("expected name@domain or Name <name@domain>") from None
