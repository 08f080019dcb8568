"""Whose fault an SMTP refusal is, by its enhanced status code (RFC 3463), else by its text.

Not by the command that it answers: servers say at RCPT, or after the message, what they hold against the client or the
sender (Postfix: ``554 5.7.1 Relay access denied``).
"""

from __future__ import annotations

import re

from export_pipeline.delivery.mail import Blame, MailNotAccepted

# RFC 3463 and its registry at IANA. The longest prefix counts; what is not listed is decided by the text.
_BY_CODE: dict[str, Blame] = {
    "1.1": Blame.RECIPIENT,  # no such mailbox
    "1.2": Blame.RECIPIENT,  # no such domain
    "1.3": Blame.RECIPIENT,  # no address
    "1.6": Blame.RECIPIENT,  # the mailbox has moved
    "1.7": Blame.INSTALLATION,  # the sender's address is none
    "1.8": Blame.INSTALLATION,  # the sender's domain does not exist
    "1.10": Blame.RECIPIENT,  # the domain takes no mail (null MX)
    "2": Blame.RECIPIENT,  # the mailbox: disabled, full
    "2.3": Blame.UNCLEAR,  # too long for this mailbox
    "3.4": Blame.INSTALLATION,  # too long for the server
    "3.5": Blame.INSTALLATION,  # the server is not configured
    "4.5": Blame.INSTALLATION,  # the sending limit is reached
    "5": Blame.INSTALLATION,  # the protocol
    "5.0": Blame.UNCLEAR,  # Outlook.com says it of unknown mailboxes
    "5.3": Blame.UNCLEAR,  # too many recipients
    "6": Blame.INSTALLATION,  # the message's form
    "6.7": Blame.RECIPIENT,  # a local part that the way there does not carry
    "7": Blame.INSTALLATION,  # policy: relaying, SPF, DKIM, DMARC, reputation, login
    "7.17": Blame.RECIPIENT,  # the mailbox has another owner
    "7.18": Blame.RECIPIENT,  # the domain has another owner
}
_RECIPIENTS_WORDS = re.compile(
    r"(unknown|invalid|no such|non-?existent|nonexisting|no) (local )?(user|mailbox|recipient|account|address|person)"
    r"|(?<!sender )(?<!from )(user|mailbox|recipient|account|address|addressee)( \S+){0,3} "
    r"(unknown|not found|disabled|inactive|suspended|unavailable|full|over quota|not exist|invalid|rejected)"
    r"|does(n't| not) (exist|have an? .{0,20}account)|not a (valid|known) (user|mailbox|recipient)|quota exceeded"
    r"|exceeded storage"
)
_INSTALLATIONS_WORDS = re.compile(
    r"relay|denied|\bspf\b|dkim|dmarc|polic(y|ies)|sender|block|black ?list|black-list|listed|spam|unsolicited"
    r"|reputation|authenticat|authoriz|authoris|credential|login|client host|helo|ehlo|reverse dns|\bptr\b|rdns"
    r"|too (large|big)|maximum.{0,20}size|size limit|banned|prohibited|not (permitted|allowed)|\btls\b|encrypt"
)


def refused(code: int, text: bytes, *, blame: Blame | None = None) -> MailNotAccepted:
    """What a reply other than the wanted one means.

    Args:
        code: the reply's three digits.
        text: what stands behind them, lines joined by a line break.
        blame: whose fault a permanent refusal is where the command leaves no doubt (nobody was named yet).
    """
    words = text.decode("ascii", "replace").lower()
    enhanced = re.match(r"\s*([245]\.\d{1,3}\.\d{1,3})\b", words)
    # The text may repeat addresses: of a reply nothing but numbers is kept.
    reason = f"smtp {code} {enhanced[1]}" if enhanced else f"smtp {code}"
    if not 500 <= code < 600:
        return MailNotAccepted(reason, permanent=False)
    found = blame or _blame(enhanced[1].partition(".")[2] if enhanced else "", words)
    return MailNotAccepted(reason, permanent=True, blame=found)


def _blame(detail: str, words: str) -> Blame:
    by_code = _BY_CODE.get(detail) or _BY_CODE.get(detail.partition(".")[0])
    if by_code in (Blame.RECIPIENT, Blame.INSTALLATION):
        return by_code
    said = re.sub(r"\S*@\S*", " ", words)  # an address proves nothing: relay@example.com
    recipients, installations = _RECIPIENTS_WORDS.search(said), _INSTALLATIONS_WORDS.search(said)
    if bool(recipients) == bool(installations):
        return Blame.UNCLEAR
    return Blame.RECIPIENT if recipients else Blame.INSTALLATION
