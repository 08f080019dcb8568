"""The ledger of notifications: one row a request, recipient and kind, so that nobody is mailed twice.

What belongs here: the states of a notification, and the charge that each end of one causes.
What does not: mail itself (delivery), the balance (``billing``).

The order is what protects: ``sending`` is committed before the message is handed over. A process
that dies in between leaves ``sending``; the next one turns it into ``unknown`` and leaves it, because
a second mail is worse than a missing one that the operator can see.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from email_validator import EmailNotValidError, validate_email

from export_pipeline.requests import billing
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.enums import NotificationKind, NotificationStatus
from export_pipeline.requests.organizations import Organizations
from export_pipeline.requests.tables import export_notifications, export_requests

_rows = export_notifications.c
_ORGANIZATIONS = Organizations()


def enlist(
    connection: sa.Connection,
    request_id: int,
    recipients: Iterable[str],
    kind: NotificationKind = NotificationKind.READY,
) -> None:
    """Make sure that every recipient has a row; those that have one keep it."""
    known = set(connection.execute(sa.select(_rows.recipient).where(_of(request_id, kind))).scalars())
    missing = [address for address in recipients if address not in known]
    if missing:
        connection.execute(
            export_notifications.insert(),
            [{"request_id": request_id, "recipient": address, "kind": kind} for address in missing],
        )


def enlist_failure(connection: sa.Connection, request_id: int) -> None:
    """The request failed: its requester is to be told, if they are a member with an address. Never its recipients.

    Nobody is told if the request wants no mail (``notify_email``) or its organization sends none. The platform sends
    this mail and nobody pays for it. A second failure of the same request mails nobody twice.
    """
    asked = export_requests.c
    request = connection.execute(
        sa.select(
            asked.organization_id,
            asked.requested_by,
            # SQLAlchemy takes whatever SQLite holds for true or false: 'false' would be true.
            sa.type_coerce(asked.notify_email, sa.Integer()).label("notify_email"),
        ).where(asked.id == request_id)
    ).one()
    if request.notify_email != 1 or request.requested_by is None:
        return
    if not _ORGANIZATIONS.get(connection, request.organization_id).email_enabled:
        return
    member = _ORGANIZATIONS.member(connection, request.organization_id, request.requested_by)
    try:
        address = validate_email(((member and member.email) or "").strip(), check_deliverability=False).normalized
    except EmailNotValidError:
        return
    enlist(connection, request_id, [address], NotificationKind.FAILED)


def close_interrupted(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> int:
    """Turn what a dead process left ``sending`` into ``unknown``; returns how many."""
    interrupted = connection.execute(
        sa.select(_rows.id).where(_of(request_id, kind), _rows.status == NotificationStatus.SENDING).order_by(_rows.id)
    ).scalars()
    ids = list(interrupted)
    for notification_id in ids:
        settle(connection, notification_id, NotificationStatus.UNKNOWN, "interrupted while sending")
    return len(ids)


def pending(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> list[tuple[int, str]]:
    """The notifications that were certainly not sent yet: (id, recipient)."""
    found = connection.execute(
        sa.select(_rows.id, _rows.recipient)
        .where(_of(request_id, kind), _rows.status == NotificationStatus.PENDING)
        .order_by(_rows.id)
    )
    return [(row.id, row.recipient) for row in found]


def start_sending(connection: sa.Connection, notification_id: int) -> bool:
    """Claim one notification; False if another process has it."""
    claimed = connection.execute(
        export_notifications.update()
        .where(_rows.id == notification_id, _rows.status == NotificationStatus.PENDING)
        .values(status=NotificationStatus.SENDING, tries=_rows.tries + 1, updated_at=utc_now())
    )
    return claimed.rowcount == 1


def settle(
    connection: sa.Connection, notification_id: int, status: NotificationStatus, reason: str | None = None
) -> None:
    """Write how the sending ended, and in the same transaction what that means for the balance.

    ``sent`` and ``unknown`` are charged: the message was handed over. ``refused`` gives the execution back.
    ``pending`` (not taken for now) keeps it reserved.
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


def counts(
    connection: sa.Connection, request_id: int, kind: NotificationKind = NotificationKind.READY
) -> dict[NotificationStatus, int]:
    """How many notifications of a request are in each state; states with none are left out."""
    found = connection.execute(
        sa.select(_rows.status, sa.func.count()).where(_of(request_id, kind)).group_by(_rows.status)
    )
    return {NotificationStatus(status): count for status, count in found}


def _of(request_id: int, kind: NotificationKind) -> sa.ColumnElement[bool]:
    return sa.and_(_rows.request_id == request_id, _rows.kind == kind)
