"""A message in its Internet form, for providers that take one (SMTP, the outbox).

What belongs here: headers that no value can break out of, and the two alternatives, text and HTML.
What does not: texts (``message``) and sending.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime

from export_pipeline.delivery.mail import MailNotAccepted, Message, parse_address


class _Policy(EmailPolicy):
    """How messages are written: URLs of headers as they are.

    The email package writes what does not fit its line as encoded words, and nobody decodes those in a URL.
    """

    def fold(self, name: str, value: str) -> str:
        """Write a header as text."""
        return f"{name}: {value}{self.linesep}" if name.startswith("List-") else super().fold(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        """Write a header as bytes."""
        return self.fold(name, value).encode() if name.startswith("List-") else super().fold_binary(name, value)


# 7bit: quoted-printable or base64 bodies pass servers that do not announce 8BITMIME.
_POLICY = _Policy(linesep="\r\n", cte_type="7bit")
_INTERNATIONAL = _Policy(linesep="\r\n", utf8=True)
_LONGEST_SUBJECT = 200
UNFIT = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Line breaks, control characters, and what turns the direction of the text behind it (Unicode TR 36, 2.2: with these
``gpj.exe`` reads ``exe.jpg``)."""


def to_mime(message: Message) -> EmailMessage:
    """The message with both alternatives, a Message-ID that is the same at every try, and a Date of now.

    Raises:
        MailNotAccepted: permanent, the recipient's address cannot stand in a header.
    """
    recipient = recipient_address(message.recipient)
    international = not (recipient.addr_spec.isascii() and message.sender.addr_spec.isascii())
    mime = EmailMessage(policy=_INTERNATIONAL if international else _POLICY)
    mime["From"] = message.sender
    mime["To"] = recipient
    mime["Subject"] = one_line(message.subject)
    mime["Date"] = format_datetime(datetime.now(UTC))
    mime["Message-ID"] = message_id_header(message)
    # RFC 3834: keeps vacation replies away.
    mime["Auto-Submitted"] = "auto-generated"
    for name, value in message.list_headers.items():
        mime[name] = value
    mime.set_content(message.text)
    mime.add_alternative(message.html, subtype="html")
    for attachment in message.attachments:
        main_type, _, sub_type = attachment.media_type.partition("/")
        mime.add_attachment(
            attachment.content,
            maintype=main_type,
            subtype=sub_type or "octet-stream",
            filename=one_line(attachment.name),
        )
    return mime


def recipient_address(recipient: str) -> Address:
    """The recipient as an address, its domain in the form that DNS knows.

    Raises:
        MailNotAccepted: permanent, it is no address.
    """
    try:
        return parse_address(recipient)
    except ValueError:
        raise MailNotAccepted("invalid recipient address", permanent=True) from None


def one_line(text: str, *, longest: int = _LONGEST_SUBJECT) -> str:
    """Text fit for a header: line breaks and control characters become single spaces; cut to ``longest`` characters."""
    return " ".join(re.sub(f"[{UNFIT}]", " ", text).split())[:longest]


def safe_message_id(message: Message) -> str:
    """The message's id in letters, digits and ``._-`` only."""
    local = message.message_id.strip("<>").partition("@")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", local).strip(".-")[:150] or "message"


def message_id_header(message: Message) -> str:
    """The Message-ID: ``<id@domain>``, the domain being the id's own or else the sender's."""
    domain = message.message_id.strip("<>").partition("@")[2] or message.sender.domain
    safe_domain = re.sub(r"[^A-Za-z0-9.-]+", "-", domain) or "localhost"
    return f"<{safe_message_id(message)}@{safe_domain}>"
