"""Notifications: one row per request, recipient and kind, so that no mail is sent twice.

``sending`` is committed before the message is handed over. A process that dies in between leaves ``sending``. The next
one turns it into ``unknown`` and does not send it: a second mail is worse than a missing one that the operator can see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import EventKind, NotificationKind, NotificationStatus
from export_pipeline.database.tables import export_notifications, export_requests
from export_pipeline.requests import billing
from export_pipeline.requests.audit import COMMAND, record
from export_pipeline.requests.organizations import find_member, keeps_members, read_organization
from export_pipeline.requests.validation.mail import parse_email

_rows = export_notifications.c


def enqueue(
    connection: sa.Connection,
    request_id: int,
    recipients: Iterable[str],
    kind: NotificationKind = NotificationKind.READY,
) -> None:
    """Make sure that every recipient has a row; existing rows stay as they are."""
    known = set(connection.execute(sa.select(_rows.recipient).where(_of(request_id, kind))).scalars())
    missing = [address for address in recipients if address not in known]
    if missing:
        connection.execute(
            export_notifications.insert(),
            [{"request_id": request_id, "recipient": address, "kind": kind} for address in missing],
        )


def enlist_failure(connection: sa.Connection, request_id: int) -> None:
    """Add a mail to the requester of a failed request if their address is known, and to no other recipient.

    None is added if the request wants no mail (``notify_email``) or its organization sends none. The platform sends
    this mail and it is not billed. A second failure of the same request sends no second mail.
    """
    columns = export_requests.c
    request = connection.execute(
        sa.select(columns.organization_id, columns.requested_by, columns.notify_email, columns.recipient_emails).where(
            columns.id == request_id
        )
    ).one()
    if not request.notify_email or request.requested_by is None:
        return
    if read_organization(connection, request.organization_id).email_enabled:
        address = _requester_address(connection, request)
        enqueue(connection, request_id, [address] if address else [], NotificationKind.FAILED)


def _requester_address(connection: sa.Connection, request: Any) -> str | None:
    """The address of the member ``requested_by``.

    Where the application keeps no members: ``requested_by`` itself, if it is an address that the request mails anyway.
    """
    member = find_member(connection, request.organization_id, request.requested_by)
    if member is not None:
        return _address(member.email or "")
    if keeps_members(connection, request.organization_id):
        return None
    address = _address(request.requested_by)
    # The request may have failed because these are malformed.
    recipients = request.recipient_emails if isinstance(request.recipient_emails, list) else []
    mailed = {_canonical(recipient) for recipient in recipients if isinstance(recipient, str)}
    return address if address is not None and _canonical(address) in mailed else None


def _address(text: str) -> str | None:
    valid = parse_email(text)
    return valid.normalized if valid else None


def _canonical(address: str) -> str:
    return address.strip().casefold()


def close_interrupted(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> int:
    """Turn what a dead process left ``sending`` into ``unknown``. Returns how many."""
    interrupted = sa.and_(_of(request_id, kind), _rows.status == NotificationStatus.SENDING)
    ids = connection.execute(sa.select(_rows.id).where(interrupted).order_by(_rows.id)).scalars().all()
    for notification_id in ids:
        record_result(connection, notification_id, NotificationStatus.UNKNOWN, "interrupted while sending")
    return len(ids)


def pending(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> list[tuple[int, str]]:
    """The notifications that are certainly not sent yet: (id, recipient)."""
    found = connection.execute(
        sa.select(_rows.id, _rows.recipient)
        .where(_of(request_id, kind), _rows.status == NotificationStatus.PENDING)
        .order_by(_rows.id)
    )
    return [tuple(row) for row in found]


def start_sending(connection: sa.Connection, notification_id: int) -> bool:
    """Claim one notification; False if another process has it."""
    claimed = connection.execute(
        export_notifications.update()
        .where(_rows.id == notification_id, _rows.status == NotificationStatus.PENDING)
        .values(status=NotificationStatus.SENDING, tries=_rows.tries + 1, updated_at=utc_now())
    )
    return claimed.rowcount == 1


def record_result(
    connection: sa.Connection, notification_id: int, status: NotificationStatus, reason: str | None = None
) -> None:
    """Write the result of sending, and settle the charge in the same transaction.

    ``sent`` and ``unknown`` are charged, because the message was handed over. ``refused`` releases the execution.
    ``pending`` (refused for now) keeps it reserved.
    """
    settled = connection.execute(
        export_notifications.update()
        .where(_rows.id == notification_id)
        .values(status=status, reason=reason, updated_at=utc_now())
        .returning(_rows.request_id, _rows.recipient, _rows.kind)
    ).first()
    if settled is None or settled.kind != NotificationKind.READY:
        return
    uid = connection.execute(
        sa.select(export_requests.c.uid).where(export_requests.c.id == settled.request_id)
    ).scalar_one()
    if status in (NotificationStatus.SENT, NotificationStatus.UNKNOWN):
        billing.charge(connection, uid, settled.recipient)
    elif status is NotificationStatus.REFUSED:
        billing.release(connection, uid, settled.recipient)


def put_back(
    connection: sa.Connection,
    request_id: int,
    *,
    kind: NotificationKind,
    only: Iterable[str] = (),
    unknown: bool = False,
) -> dict[NotificationStatus, int]:
    """Make refused mails pending again, so that the next run sends them, and reserve their executions again.

    ``only`` names recipients; all if empty. ``unknown``: also mails that may have been sent; they were charged and are
    not charged again. Returns how many mails of the named recipients are in each state now.

    Raises:
        LookupError: a named recipient has no mail of this request.
        ExportFailure: ``insufficient_balance``; the caller has to roll back.
    """
    found = connection.execute(
        sa.select(_rows.id, _rows.recipient, _rows.status).where(_of(request_id, kind)).order_by(_rows.id)
    ).all()
    named = {_canonical(address) for address in only}
    if unknown_names := named - {_canonical(row.recipient) for row in found}:
        raise LookupError(f"{len(unknown_names)} of the named recipients")
    chosen = [row.id for row in found if not named or _canonical(row.recipient) in named]
    statuses = [NotificationStatus.REFUSED, *([NotificationStatus.UNKNOWN] if unknown else [])]
    changed = connection.execute(
        export_notifications.update()
        .where(_rows.id.in_(chosen), _rows.status.in_(statuses))
        .values(status=NotificationStatus.PENDING, reason=None, updated_at=utc_now())
        .returning(_rows.recipient)
    )
    recipients = list(changed.scalars())
    request = connection.execute(
        sa.select(export_requests.c.uid, export_requests.c.organization_id).where(export_requests.c.id == request_id)
    ).one()
    if kind == NotificationKind.READY:
        billing.reserve(connection, request.organization_id, request.uid, recipients)
    detail = {"put_back": len(recipients)}
    record(connection, request.uid, request.organization_id, EventKind.NOTIFIED, detail, actor=COMMAND)
    return _counts(connection, _rows.id.in_(chosen))


def reasons(connection: sa.Connection, request_id: int) -> list[tuple[str, str, str | None, int]]:
    """How many mails of a request are in each state for each reason: (kind, status, reason, number)."""
    grouped = (_rows.kind, _rows.status, _rows.reason)
    found = connection.execute(
        sa.select(*grouped, sa.func.count()).where(_rows.request_id == request_id).group_by(*grouped).order_by(*grouped)
    )
    return [tuple(row) for row in found]


def counts(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> dict[NotificationStatus, int]:
    """How many notifications of a request are in each state; states with none are left out."""
    return _counts(connection, _of(request_id, kind))


def _counts(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> dict[NotificationStatus, int]:
    found = connection.execute(sa.select(_rows.status, sa.func.count()).where(condition).group_by(_rows.status))
    return {NotificationStatus(status): count for status, count in found}


def _of(request_id: int, kind: NotificationKind) -> sa.ColumnElement[bool]:
    return sa.and_(_rows.request_id == request_id, _rows.kind == kind)
