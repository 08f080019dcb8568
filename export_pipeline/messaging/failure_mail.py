"""The mail of a failed export: only to its requester, from the platform's sender, at most once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from export_pipeline.requests.models import status_of
from export_pipeline.requests.organizations import find_member, read_organization
from export_pipeline.settings import Settings

_rows = export_requests.c
_READ = ("id", "uid", "organization_id", "requested_by", "dataset", "error_code", "message", "email_locale",
         "created_at")  # fmt: skip


def has_failed(database: sa.Engine, request_id: int) -> bool:
    """Whether the request says ``failed`` now."""
    with reading(database) as connection:
        return status_of(connection, request_id) == RequestStatus.FAILED


def mail_failure(
    database: sa.Engine, provider: MailProvider, settings: Settings, datasets: Mapping[str, Dataset], request_id: int
) -> Mapping[NotificationStatus, int]:
    """Mail the requester of a failed request why there is no export and what to do, unless that mail was sent already.

    ``export_notifications`` says who gets it. The request's row does not change. Returns how many of the request's
    failure mails are in each state; empty if there are none, or if it is no longer ``failed`` (it was re-executed).

    Raises ``MailPostponed``: it was not accepted; a later call tries again.
    """
    with database.begin() as connection:
        # Only these columns: the row may have failed because the rest of it cannot be read.
        columns = sa.select(*(_rows[name] for name in _READ))
        failed = sa.and_(_rows.id == request_id, _rows.status == RequestStatus.FAILED)
        row = connection.execute(columns.where(failed)).first()
        if row is None:
            return {}
        notifications.close_interrupted(connection, request_id, kind=NotificationKind.FAILED)
        waiting = notifications.pending(connection, request_id, kind=NotificationKind.FAILED)
        mail, locale = _mail(connection, datasets, row)
    sender, (subject, text, html) = default_sender(settings), failure_message(mail, locale)
    about = f"{mail.reference}.failed"
    messages = [
        (notification_id, Message(sender, address, subject, text, html, message_id(about, address)))
        for notification_id, address in waiting
    ]
    result = send_all(database, provider, request_id, messages, kind=NotificationKind.FAILED, check=lambda: None)
    if result.pending:
        raise result.postponed("The mail about the failure could not be sent to the requester")
    return result.counts


def _mail(
    connection: sa.Connection, datasets: Mapping[str, Dataset], row: sa.Row[Any]
) -> tuple[FailureMail, str | None]:
    """The mail's facts and its locale: the requester's own if it is known, else the request's."""
    organization = read_organization(connection, row.organization_id)
    member = find_member(connection, row.organization_id, row.requested_by or "")
    dataset = datasets.get(row.dataset)
    fault = next((code.fault for code in FailureCode if code == row.error_code), Fault.OURS)
    paused = recurring_exports.c
    mail = FailureMail(
        fault=fault,
        error_code=str(row.error_code),
        # For other faults the message is for operators (rows of older versions), or repeats what the mail says anyway.
        details=row.message if fault is Fault.REQUESTER else None,
        reference=row.uid,
        asked_at=row.created_at,
        time_zone=organization.time_zone,
        dataset_titles=titles_of(dataset) if dataset is not None else {},
        organization_name=organization.name,
        paused_recurring=connection.execute(
            sa.select(paused.id).where(paused.paused_over == row.id, paused.paused_at.is_not(None))
        ).scalar(),
    )
    return mail, (member.locale if member is not None else None) or row.email_locale
