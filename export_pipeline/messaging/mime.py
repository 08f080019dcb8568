"""A message as MIME, for the providers that need it (SMTP, the outbox)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.charset import Charset
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime

from export_pipeline.messaging.message import Blame, MailNotAccepted, Message, parse_address
from export_pipeline.storage.store import UNSAFE_CHARACTERS


class _Policy(EmailPolicy):
    """Writes the headers of ``_OURS`` itself, because the email package damages them.

    The package writes text that does not fit its line as encoded words, which no client decodes in a URL or an id. It
    drops the quotes of a name that it folds (``Acme, Inc. <a@b>`` are two mailboxes), and loses spaces of a subject.
    """

    def fold(self, name: str, value: str) -> str:
        """Write a header as text."""
        if name == "From":
            value = _mailbox(value.addresses[0])  # type: ignore[attr-defined]
        elif name == "Subject":
            value = _subject(one_line(value))  # the value is decoded text, which may hold any character again
        elif name not in _ON_ONE_LINE:
            return str(super().fold(name, value))
        return f"{name}: {value}{self.linesep}"

    def fold_binary(self, name: str, value: str) -> bytes:
        """Write a header as bytes."""
        return self.fold(name, value).encode() if name in _OURS else super().fold_binary(name, value)


_ON_ONE_LINE = frozenset({"To", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post"})
"""Never folded, as are ASCII names and subjects: RFC 5322 recommends 78 characters a line and allows at most 998."""
_OURS = _ON_ONE_LINE | {"From", "Subject"}


def _mailbox(address: Address) -> str:
    """A mailbox for a header: an ASCII name in quotes if necessary, any other name in encoded words."""
    spec, name = f"<{address.addr_spec}>", address.display_name
    if not name:
        return address.addr_spec
    if not _is_plain(name):
        return _on_lines([*_encoded(name), spec])
    quoted = re.sub(r'(["\\])', r"\\\1", name)
    return f'"{quoted}" {spec}' if re.search(r"[^A-Za-z0-9 ]", name) else f"{name} {spec}"


def _subject(text: str) -> str:
    return text if _is_plain(text) else _on_lines(_encoded(text))


def _is_plain(text: str) -> bool:
    """Whether text needs no encoding in a header: ASCII, and nothing that a reader would decode."""
    return text.isascii() and "=?" not in text


def _encoded(text: str) -> list[str]:
    """Text in encoded words (RFC 2047), whose readers drop the spaces between them.

    A word ends after a space of the text if possible: some readers, Python's among them, show a space there.
    """
    chunks = [""]
    for piece in re.findall(r"\S+ ?| ", text):
        if chunks[-1] and len(_UTF8.header_encode(chunks[-1] + piece)) > _LONGEST_WORD:
            chunks.append("")
        chunks[-1] += piece
    return [word for chunk in chunks for word in Header(chunk, _UTF8, maxlinelen=_LONGEST_WORD).encode().split("\n ")]


def _on_lines(parts: list[str]) -> str:
    """Encoded words, each on its own line if one line would exceed the 76 characters of RFC 2047."""
    line = " ".join(parts)
    return line if len(line) <= _LONGEST_WORD else "\r\n ".join(parts)


_UTF8 = Charset("utf-8")
_LONGEST_WORD = 76 - len("Subject: ")
# 7bit: quoted-printable or base64 bodies pass servers that do not announce 8BITMIME.
_POLICY = _Policy(linesep="\r\n", cte_type="7bit")
_INTERNATIONAL = _Policy(linesep="\r\n", utf8=True)
_LONGEST_SUBJECT = 200


def to_mime(message: Message) -> EmailMessage:
    """The message with text and HTML, a Message-ID that is the same at every try, and the current date."""
    recipient = recipient_address(message.recipient)
    international = not (recipient.addr_spec.isascii() and message.sender.addr_spec.isascii())
    mime = EmailMessage(policy=_INTERNATIONAL if international else _POLICY)
    sender = message.sender
    mime["From"] = Address(one_line(sender.display_name), sender.username, sender.domain)
    mime["To"] = recipient
    mime["Subject"] = _subject(one_line(message.subject)).replace("\r\n", "")
    mime["Date"] = format_datetime(datetime.now(UTC))
    mime["Message-ID"] = message_id_header(message)
    # RFC 3834: prevents vacation replies.
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
    """The recipient as an address, its domain in DNS form; ``MailNotAccepted`` (permanent) if it is none."""
    try:
        return parse_address(recipient)
    except ValueError:
        raise MailNotAccepted("invalid recipient address", permanent=True, blame=Blame.RECIPIENT) from None


def one_line(text: str, *, longest: int = _LONGEST_SUBJECT) -> str:
    """Text for a header: line breaks and control characters become single spaces; cut to ``longest`` characters."""
    return " ".join(re.sub(f"[{UNSAFE_CHARACTERS}]", " ", text).split())[:longest]


def safe_message_id(message: Message) -> str:
    """The message's id, reduced to letters, digits and ``._-``."""
    local = message.message_id.strip("<>").partition("@")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", local).strip(".-")[:150] or "message"


def message_id_header(message: Message) -> str:
    """The Message-ID ``<id@domain>``; the domain is the id's own, else the sender's."""
    domain = message.message_id.strip("<>").partition("@")[2] or message.sender.domain
    safe_domain = re.sub(r"[^A-Za-z0-9.-]+", "-", domain) or "localhost"
    return f"<{safe_message_id(message)}@{safe_domain}>"
