"""What a mail provider must do, whichever it is, and the message it is handed.

What belongs here: the protocol, the message, the outcomes, and the choice of a provider by URL.
What does not: texts (``message``), who gets one and whether they had it already (requests.ledger).

The three outcomes are kept apart because they decide whether a second try may mail twice:
returned = accepted, ``MailNotAccepted`` = certainly not sent, ``MailOutcomeUnknown`` = perhaps sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.headerregistry import Address
from typing import Protocol


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


class MailNotAccepted(Exception):
    """The provider certainly did not take the message.

    ``permanent``: this recipient or message will never be taken (SMTP 5xx, HTTP 4xx), trying again is useless.
    ``reason`` is a code such as ``smtp 550``, with no address in it.
    ``retry_after``: seconds the provider asked to wait, if it did.
    """

    def __init__(self, reason: str, *, permanent: bool, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent
        self.retry_after = retry_after


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
