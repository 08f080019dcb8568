"""Who is to be mailed.

What belongs here: reading the addresses of a request. What does not: who the mail is from (``senders``), who pays
(``billing``), who had it already (``ledger``).
"""

from __future__ import annotations

import re

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.enums import EmptyResult
from export_pipeline.requests.model import ExportRequest

MAX_RECIPIENTS = 26
"""After deduplication (gu1, bulk entity export by e-mail)."""


def recipients_of(request: ExportRequest) -> tuple[str, ...]:
    """Who is to be mailed: validated, trimmed, each person once, in their first spelling.

    The requester is not added (gu1); nobody, if ``notify_email`` is false (SendGrid).

    Raises:
        ExportFailure: ``invalid_recipient``, ``too_many_recipients``.
    """
    spelled = dict[str, int]()
    for index, address in enumerate(request.recipient_emails):
        spelled.setdefault(address.strip().lower(), index)
    found = dict[str, str]()
    for index in spelled.values():
        valid = _validated(request.recipient_emails[index], f"recipient_emails[{index}]")
        found.setdefault(valid.lower(), valid)
        if len(found) > MAX_RECIPIENTS:  # asked at each, as validating is slow and a body may hold very many
            raise ExportFailure(
                FailureCode.TOO_MANY_RECIPIENTS,
                f"recipient_emails: {len(spelled)} different addresses; at most {MAX_RECIPIENTS} are allowed.",
                field="recipient_emails",
            )
    return tuple(found.values()) if request.notify_email else ()


def person_of(address: str) -> str:
    """One text for every spelling of an address: the case of either part, and a domain's two forms, do not count.

    Case is lowered, not folded: ``straße.de`` and ``strasse.de`` are two domains.
    """
    try:
        return validate_email(address.strip(), check_deliverability=False).normalized.lower()
    except EmailNotValidError:
        return address.strip().lower()


def _validated(address: str, field: str) -> str:
    try:
        return validate_email(address.strip(), check_deliverability=False).normalized
    except EmailNotValidError:
        problem = "is not an e-mail address. Correct or remove it."
    reserved = [
        name for name in SPECIAL_USE_DOMAIN_NAMES if re.search(rf"[@.]{re.escape(name)}$", address.strip().lower())
    ]
    if reserved and address.count("@") == 1:
        problem = (
            f"is at a domain that no mail can be sent to: {reserved[0]} is reserved for private networks, tests "
            "and the like. Use another address, or remove it."
        )
    raise ExportFailure(FailureCode.INVALID_RECIPIENT, f"{field}: {problem}", field=field)


def recipients_of_files(request: ExportRequest) -> tuple[str, ...]:
    """Who is to be mailed of a completed request: nobody, if no row matched and it asked to be silent then.

    Raises:
        ExportFailure: as ``recipients_of``.
    """
    return () if is_silent(request) else recipients_of(request)


def is_silent(request: ExportRequest) -> bool:
    """Whether nobody is mailed of a completed request because no row matched."""
    return request.empty_result is EmptyResult.SKIP and request.row_count == 0
