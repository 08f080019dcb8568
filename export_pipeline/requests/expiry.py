"""Expiry: completed requests whose files are past their time.

What belongs here: finding and marking them. What does not: deleting files (delivery.retention).
"""

from __future__ import annotations

import sqlalchemy as sa

from export_pipeline.requests import billing
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.enums import EventKind, RequestStatus
from export_pipeline.requests.events import record
from export_pipeline.requests.tables import export_files, export_requests

_rows = export_requests.c


def expire(connection: sa.Connection, request_id: int) -> None:
    """The files of a completed request are about to be deleted: from now on nobody is promised them."""
    expired = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED)
        .values(status=RequestStatus.EXPIRED, updated_at=utc_now())
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if expired is not None:
        billing.release(connection, expired.uid)  # a mail that did not leave by now never will
        record(connection, expired.uid, expired.organization_id, EventKind.EXPIRED)


def files_deleted(connection: sa.Connection, request_id: int) -> None:
    """The files of an expired request are deleted."""
    deleted = connection.execute(
        export_files.update()
        .where(export_files.c.request_id == request_id, export_files.c.deleted_at.is_(None))
        .values(deleted_at=utc_now())
    ).rowcount
    row = connection.execute(sa.select(_rows.uid, _rows.organization_id).where(_rows.id == request_id)).first()
    if deleted and row is not None:
        record(connection, row.uid, row.organization_id, EventKind.DELETED, {"files": deleted})


def past_retention(connection: sa.Connection) -> list[tuple[int, str, int]]:
    """Requests whose files are due for deletion, or were when a janitor died: (id, uid, attempt)."""
    undeleted = sa.exists().where(export_files.c.request_id == _rows.id, export_files.c.deleted_at.is_(None))
    due = sa.or_(
        sa.and_(_rows.status == RequestStatus.COMPLETED, _rows.expires_at < utc_now()),
        sa.and_(_rows.status == RequestStatus.EXPIRED, undeleted),
    )
    found = connection.execute(sa.select(_rows.id, _rows.uid, _rows.attempt).where(due))
    return [(row.id, row.uid, row.attempt) for row in found]
