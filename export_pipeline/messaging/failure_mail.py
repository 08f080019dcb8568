"""The mail of a failed export: to its requester alone, from the platform's sender, at most once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.database.engine import reading
from export_pipeline.database.enums import NotificationKind, NotificationStatus, RequestStatus
from export_pipeline.database.tables import export_requests, recurring_exports
from export_pipeline.failures import FailureCode, Fault
from export_pipeline.messaging.content import FailureMail, failure_message, titles_of
from export_pipeline.messaging.message import MailProvider, Message, message_id
from export_pipeline.messaging.providers import default_sender
from export_pipeline.messaging.sending import send_all
from export_pipeline.requests import notifications
from export_pipeline.requests.organizations import Organizations
from export_pipeline.settings import Settings

_rows = export_requests.c


@dataclass(frozen=True)
class _Failed:
    """A failed request, as far as its row can be read: it may have failed for not being readable."""

    uid: str
    organization_id: str
    requested_by: str | None
    dataset: str
    error_code: str
    message: str
    locale: str | None
    asked_at: datetime | None
    paused_recurring: int | None
    """The recurring export that is paused over it."""

    @property
    def fault(self) -> Fault:
        """Whose fault it is; a code that is not known is ours."""
        try:
            return FailureCode(self.error_code).fault
        except ValueError:
            return Fault.OURS


def has_failed(database: sa.Engine, request_id: int) -> bool:
    """Whether the request says ``failed`` now."""
    with reading(database) as connection:
        status = connection.execute(sa.select(_rows.status).where(_rows.id == request_id)).scalar()
    return bool(status == RequestStatus.FAILED)


def mail_failure(
    database: sa.Engine,
    provider: MailProvider,
    settings: Settings,
    organizations: Organizations,
    datasets: Mapping[str, Dataset],
    request_id: int,
) -> Mapping[NotificationStatus, int]:
    """Tell the requester of a failed request why there is no export and what to do, unless they were told already.

    Who is to be told is in the ledger. The row itself is not touched.

    Returns:
        How many of the request's failure mails are in each state; none if nobody is to be told, or if the request is
        no longer ``failed`` (it was re-executed).

    Raises:
        MailPostponed: it was not accepted; a later call tries again.
    """
    with database.begin() as connection:
        failed = _read_failed(connection, request_id)
        if failed is None:
            return {}
        notifications.close_interrupted(connection, request_id, kind=NotificationKind.FAILED)
        waiting = notifications.pending(connection, request_id, kind=NotificationKind.FAILED)
        mail, locale = _mail(connection, organizations, datasets, failed)
    subject, text, html = failure_message(mail, locale)
    messages = [
        (
            notification_id,
            Message(
                default_sender(settings), address, subject, text, html, message_id(f"{failed.uid}.failed", address)
            ),
        )
        for notification_id, address in waiting
    ]
    handed = send_all(database, provider, request_id, messages, kind=NotificationKind.FAILED, check=lambda: None)
    if handed.pending:
        raise handed.postponed("The requester could not be told of the failure")
    return handed.counts


def _read_failed(connection: sa.Connection, request_id: int) -> _Failed | None:
    by_id = sa.and_(_rows.id == request_id, _rows.status == RequestStatus.FAILED)
    row = connection.execute(
        sa.select(
            _rows.uid,
            _rows.organization_id,
            _rows.requested_by,
            _rows.dataset,
            _rows.error_code,
            _rows.message,
            _rows.email_locale,
        ).where(by_id)
    ).first()
    if row is None:
        return None
    try:
        asked_at = connection.execute(sa.select(_rows.created_at).where(by_id)).scalar()
    except (ValueError, TypeError):
        asked_at = None  # SQLite may hold any text there
    return _Failed(
        uid=str(row.uid),
        organization_id=str(row.organization_id),
        requested_by=None if row.requested_by is None else str(row.requested_by),
        dataset=str(row.dataset),
        error_code=str(row.error_code),
        message=str(row.message),
        locale=None if row.email_locale is None else str(row.email_locale),
        asked_at=asked_at,
        paused_recurring=connection.execute(_paused_over(request_id)).scalar(),
    )


def _paused_over(request_id: int) -> sa.Select[int]:
    columns = recurring_exports.c
    return sa.select(columns.id).where(columns.paused_over == request_id, columns.paused_at.is_not(None))


def _mail(
    connection: sa.Connection, organizations: Organizations, datasets: Mapping[str, Dataset], failed: _Failed
) -> tuple[FailureMail, str | None]:
    """What the mail says, and the locale that it says it in: the requester's own before the request's."""
    organization = organizations.get(connection, failed.organization_id)
    member = organizations.member(connection, failed.organization_id, failed.requested_by or "")
    dataset = datasets.get(failed.dataset)
    mail = FailureMail(
        fault=failed.fault,
        error_code=failed.error_code,
        # Of any other fault the message is the operators' (rows of older versions), or says what the mail says anyway.
        details=failed.message if failed.fault is Fault.REQUESTER else None,
        reference=failed.uid,
        asked_at=failed.asked_at,
        time_zone=organization.time_zone,
        dataset_titles=titles_of(dataset) if dataset is not None else {},
        organization_name=organization.name,
        paused_recurring=failed.paused_recurring,
    )
    return mail, (member.locale if member is not None else None) or failed.locale
