"""Who is to be mailed.

What belongs here: reading the addresses of a request. What does not: who the mail is from (``senders``), who pays
(``billing``), who had it already (``ledger``).
"""

from __future__ import annotations

from email_validator import EmailNotValidError, validate_email

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.enums import EmptyResult
from export_pipeline.requests.model import ExportRequest

MAX_RECIPIENTS = 26
"""After deduplication (gu1, bulk entity export by e-mail)."""


def recipients_of(request: ExportRequest) -> tuple[str, ...]:
    """Who is to be mailed: validated, trimmed, deduplicated with a case-insensitive domain.

    The requester is not added (gu1); nobody, if ``notify_email`` is false (SendGrid).

    Raises:
        ExportFailure: ``invalid_recipient``, ``too_many_recipients``.
    """
    unique: dict[str, str] = {}
    for index, address in enumerate(request.recipient_emails):
        try:
            valid = validate_email(address.strip(), check_deliverability=False).normalized
        except EmailNotValidError:
            field = f"recipient_emails[{index}]"
            raise ExportFailure(
                FailureCode.INVALID_RECIPIENT, f"{field}: is not an e-mail address. Correct or remove it.", field=field
            ) from None
        unique.setdefault(valid, valid)
    if len(unique) > MAX_RECIPIENTS:
        raise ExportFailure(
            FailureCode.TOO_MANY_RECIPIENTS,
            f"recipient_emails: {len(unique)} different addresses; at most {MAX_RECIPIENTS} are allowed.",
            field="recipient_emails",
        )
    return tuple(unique) if request.notify_email else ()


def recipients_of_files(request: ExportRequest) -> tuple[str, ...]:
    """Who is to be mailed of a completed request: nobody, if no row matched and it asked to be silent then.

    Raises:
        ExportFailure: as ``recipients_of``.
    """
    return () if is_silent(request) else recipients_of(request)


def is_silent(request: ExportRequest) -> bool:
    """Whether nobody is mailed of a completed request because no row matched."""
    return request.empty_result is EmptyResult.SKIP and request.row_count == 0
