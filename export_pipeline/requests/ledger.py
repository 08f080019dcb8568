"""The ledger of notifications: one row a request and recipient, so that nobody is mailed twice.

What belongs here: the states of a notification. What does not: mail itself (delivery).

The order is what protects: ``sending`` is committed before the message is handed over. A process
that dies in between leaves ``sending``; the next one turns it into ``unknown`` and leaves it, because
a second mail is worse than a missing one that the operator can see.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from export_pipeline.requests.database import utc_now
from export_pipeline.requests.tables import NotificationStatus, export_notifications

_rows = export_notifications.c


def enlist(connection: sa.Connection, request_id: int, recipients: Iterable[str]) -> None:
    """Make sure that every recipient has a row; those that have one keep it."""
    known = set(connection.execute(sa.select(_rows.recipient).where(_rows.request_id == request_id)).scalars())
    missing = [address for address in recipients if address not in known]
    if missing:
        connection.execute(
            export_notifications.insert(), [{"request_id": request_id, "recipient": address} for address in missing]
        )


def close_interrupted(connection: sa.Connection, request_id: int) -> int:
    """Turn what a dead process left ``sending`` into ``unknown``; returns how many."""
    return connection.execute(
        export_notifications.update()
        .where(_rows.request_id == request_id, _rows.status == NotificationStatus.SENDING)
        .values(status=NotificationStatus.UNKNOWN, reason="interrupted while sending", updated_at=utc_now())
    ).rowcount


def pending(connection: sa.Connection, request_id: int) -> list[tuple[int, str]]:
    """The notifications that were certainly not sent yet: (id, recipient)."""
    found = connection.execute(
        sa.select(_rows.id, _rows.recipient)
        .where(_rows.request_id == request_id, _rows.status == NotificationStatus.PENDING)
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
    """Write how the sending ended."""
    connection.execute(
        export_notifications.update()
        .where(_rows.id == notification_id)
        .values(status=status, reason=reason, updated_at=utc_now())
    )


def counts(connection: sa.Connection, request_id: int) -> dict[NotificationStatus, int]:
    """How many notifications of a request are in each state; states with none are left out."""
    found = connection.execute(
        sa.select(_rows.status, sa.func.count()).where(_rows.request_id == request_id).group_by(_rows.status)
    )
    return {NotificationStatus(status): count for status, count in found}
