"""Every transition of a request, each one conditional UPDATE.

``queued -> running -> completed | failed | canceled -> expired``

What belongs here: who may move a row from where to where, and the audit event of each move.
What does not: why (orchestration decides), and how the work is done.

Ownership: a row belongs to the run in ``run_id``. A run that is re-executed in the Dagster UI
takes the row over from its parent or root run; from then on the parent no longer owns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode, OwnershipLost
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.events import record
from export_pipeline.requests.model import has_uid
from export_pipeline.requests.tables import (
    EventKind,
    NotificationStatus,
    RequestStatus,
    Stage,
    export_files,
    export_requests,
)

_rows = export_requests.c


@dataclass(frozen=True)
class Ownership:
    """The request that a run owns now, and the attempt that it counts."""

    uid: str
    attempt: int
    manifest_key: str | None = None
    """Of a request that is completed already."""


def begin(
    connection: sa.Connection, request_id: int, *, run_id: str, lineage: Sequence[str], attempt: int | None
) -> Ownership:
    """The first op takes the row for its run.

    Args:
        connection: an open transaction.
        request_id: the row.
        run_id: this run.
        lineage: the runs that this one re-executes.
        attempt: the attempt that this run was launched for; None when an operator launched it by hand.

    Raises:
        ExportCanceled: the requester canceled before it began.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    fresh = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
    if attempt is not None:
        fresh = sa.and_(fresh, _rows.attempt == attempt)
    else:
        _charge_by_hand(connection, request_id)
    return _take(connection, request_id, sa.or_(fresh, _owned(run_id, lineage)), run_id=run_id, stage=Stage.PLAN)


def _charge_by_hand(connection: sa.Connection, request_id: int) -> None:
    """An operator launched the run from the UI: it counts as an attempt like any other."""
    connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
        .values(attempt=_rows.attempt + 1, claimed_at=utc_now())
    )


def _owned(run_id: str, lineage: Sequence[str]) -> sa.ColumnElement[bool]:
    """The row is this run's, or one's that it re-executes.

    Only a re-execution revives a failed row: Dagster goes on with the other shards of a run after one has failed.
    """
    return sa.or_(
        sa.and_(_rows.status == RequestStatus.RUNNING, _rows.run_id.in_([run_id, *lineage])),
        sa.and_(_rows.status == RequestStatus.FAILED, _rows.run_id.in_(list(lineage))),
    )


def enter(
    connection: sa.Connection,
    request_id: int,
    stage: Stage,
    *,
    run_id: str,
    lineage: Sequence[str],
    attempt: int | None = None,
) -> Ownership:
    """A later op enters its stage, if its run (or one that it re-executes) owns the row.

    ``publish`` may find the row completed by an earlier try of its own ``attempt``, which died before Dagster knew.

    Raises:
        ExportCanceled: the requester canceled.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    if stage is Stage.PUBLISH and _is_completed(connection, request_id):
        return enter_completed(connection, request_id, stage, run_id=run_id, lineage=lineage, attempt=attempt)
    return _take(connection, request_id, _owned(run_id, lineage), run_id=run_id, stage=stage)


def _is_completed(connection: sa.Connection, request_id: int) -> bool:
    status = connection.execute(sa.select(_rows.status).where(_rows.id == request_id)).scalar()
    return bool(status == RequestStatus.COMPLETED)


def enter_completed(
    connection: sa.Connection,
    request_id: int,
    stage: Stage,
    *,
    run_id: str,
    lineage: Sequence[str] | None,
    attempt: int | None = None,
) -> Ownership:
    """An op works on a completed request: the stage moves, the status stays.

    Args:
        connection: an open transaction.
        request_id: the row.
        stage: ``notify_recipients``, or ``publish`` tried again after it had completed the row.
        run_id: this run.
        lineage: the runs that this one re-executes; None to take the row from whatever run has it (mails: the
            ledger alone says who gets one).
        attempt: the attempt that this run was launched for; the row is then also its own if it counts the same.

    Raises:
        ExportCanceled, OwnershipLost: as ``enter``.
    """
    owned = _rows.status == RequestStatus.COMPLETED
    if lineage is not None:
        same_attempt = sa.false() if attempt is None else _rows.attempt == attempt
        owned = sa.and_(owned, sa.or_(_rows.run_id.in_([run_id, *lineage]), same_attempt))
    now = utc_now()
    taken = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, owned)
        .values(stage=stage, run_id=run_id, message=None, heartbeat_at=now, updated_at=now)
        .returning(_rows.uid, _rows.attempt, _rows.manifest_key)
    ).first()
    if taken is None:
        raise _why_not(connection, request_id)
    return Ownership(taken.uid, taken.attempt, taken.manifest_key)


def _take(
    connection: sa.Connection, request_id: int, condition: sa.ColumnElement[bool], *, run_id: str, stage: Stage
) -> Ownership:
    now = utc_now()
    taken = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, condition, _rows.cancel_requested_at.is_(None))
        .values(
            status=RequestStatus.RUNNING,
            stage=stage,
            run_id=run_id,
            rows_done=0,
            error_code=None,
            message=None,
            completed_at=None,
            heartbeat_at=now,
            started_at=sa.func.coalesce(_rows.started_at, sa.bindparam("started", now, _rows.started_at.type)),
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id, _rows.attempt)
    ).first()
    if taken is None:
        raise _why_not(connection, request_id)
    if stage is Stage.PLAN:
        record(
            connection,
            taken.uid,
            taken.organization_id,
            EventKind.STARTED,
            {"run_id": run_id, "attempt": taken.attempt},
        )
    return Ownership(taken.uid, taken.attempt)


def _why_not(connection: sa.Connection, request_id: int) -> Exception:
    row = connection.execute(
        # Whether, not when: SQLite may hold any text there.
        sa.select(_rows.status, _rows.run_id, _rows.cancel_requested_at.is_not(None).label("cancel")).where(
            _rows.id == request_id
        )
    ).first()
    if row is None:
        return OwnershipLost(f"request {request_id} no longer exists")
    if row.status == RequestStatus.CANCELED or (
        row.cancel and row.status in (RequestStatus.QUEUED, RequestStatus.RUNNING)
    ):
        return ExportCanceled(f"request {request_id} is canceled")
    return OwnershipLost(f"request {request_id} is {row.status} and belongs to run {row.run_id}")


def heartbeat(connection: sa.Connection, request_id: int, *, run_id: str, values: Mapping[str, Any]) -> None:
    """Say that the run lives, and write its progress (``rows_done``, ``rows_total``, ``snapshot_at``).

    Raises:
        ExportCanceled: the requester canceled.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    now = utc_now()
    alive = sa.or_(
        sa.and_(_rows.status == RequestStatus.RUNNING, _rows.cancel_requested_at.is_(None)),
        _rows.status == RequestStatus.COMPLETED,
    )
    found = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.run_id == run_id, alive)
        .values(heartbeat_at=now, updated_at=now, **values)
    )
    if found.rowcount != 1:
        raise _why_not(connection, request_id)


@dataclass(frozen=True)
class DeliveredFile:
    """A row of ``export_files`` to be."""

    ordinal: int
    key: str
    name: str
    bytes: int
    rows: int
    sha256: str
    media_type: str
    content_encoding: str | None


def complete(
    connection: sa.Connection,
    request_id: int,
    *,
    run_id: str,
    files: Sequence[DeliveredFile],
    manifest_key: str,
    expires_at: datetime,
) -> None:
    """The manifest is written: record the files and tell the application.

    Raises:
        ExportCanceled: the requester canceled in the last moment; the caller deletes the files.
        OwnershipLost: the row belongs to another run.
    """
    now = utc_now()
    rows = sum(file.rows for file in files)
    done = connection.execute(
        export_requests.update()
        .where(
            _rows.id == request_id,
            _rows.run_id == run_id,
            _rows.status == RequestStatus.RUNNING,
            _rows.cancel_requested_at.is_(None),
        )
        .values(
            status=RequestStatus.COMPLETED,
            rows_done=rows,
            row_count=rows,
            byte_count=sum(file.bytes for file in files),
            file_count=len(files),
            manifest_key=manifest_key,
            heartbeat_at=now,
            completed_at=now,
            expires_at=expires_at,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if done is None:
        raise _why_not(connection, request_id)
    connection.execute(export_files.delete().where(export_files.c.request_id == request_id))
    connection.execute(export_files.insert(), [{"request_id": request_id, **vars(file)} for file in files])
    record(connection, done.uid, done.organization_id, EventKind.COMPLETED, {"rows": rows, "files": len(files)})


def fail(connection: sa.Connection, request_id: int, failure: ExportFailure, *, run_id: str) -> bool:
    """Mark a running request failed, if ``run_id`` owns it."""
    return _fail(
        connection, request_id, failure, sa.and_(_rows.status == RequestStatus.RUNNING, _rows.run_id == run_id)
    )


def give_up(
    connection: sa.Connection, request_id: int, failure: ExportFailure, *, attempt: int, run_id: str | None
) -> bool:
    """Mark a request failed whose last attempt ended without a word, if it is still ``run_id``'s."""
    unfinished = _rows.status.in_([RequestStatus.QUEUED, RequestStatus.RUNNING])
    orphaned = sa.and_(unfinished, _rows.attempt == attempt, _rows.run_id.is_not_distinct_from(run_id))
    return _fail(connection, request_id, failure, orphaned)


def _fail(
    connection: sa.Connection, request_id: int, failure: ExportFailure, condition: sa.ColumnElement[bool]
) -> bool:
    now = utc_now()
    failed = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, condition)
        .values(
            status=RequestStatus.FAILED,
            error_code=failure.code.value,
            message=failure.message,
            completed_at=now,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if failed is not None:
        record(connection, failed.uid, failed.organization_id, EventKind.FAILED, {"error_code": failure.code.value})
    return failed is not None


def request_cancel(connection: sa.Connection, uid: str) -> bool:
    """Ask for a request to be canceled; False if it is unknown or already finished."""
    now = utc_now()
    asked = connection.execute(
        export_requests.update()
        .where(
            has_uid(uid),
            _rows.status.in_([RequestStatus.QUEUED, RequestStatus.RUNNING]),
        )
        .values(
            cancel_requested_at=sa.func.coalesce(
                _rows.cancel_requested_at, sa.bindparam("asked", now, _rows.cancel_requested_at.type)
            ),
            updated_at=now,
        )
    )
    return asked.rowcount == 1


def cancel(
    connection: sa.Connection, request_id: int, *, by_requester: str, by_operator: str, run_id: str | None = None
) -> bool:
    """Mark a queued or running request canceled. It stays so, whatever its run says later.

    The row tells who wished it: the requester set ``cancel_requested_at``, an operator did not. What an
    operator did to a run cancels the request only if it is still that run's (``run_id``).
    """
    now = utc_now()
    asked = _rows.cancel_requested_at
    canceled = connection.execute(
        export_requests.update()
        .where(
            _rows.id == request_id,
            _rows.status.in_([RequestStatus.QUEUED, RequestStatus.RUNNING]),
            sa.true() if run_id is None else sa.or_(_rows.run_id == run_id, asked.is_not(None)),
        )
        .values(
            status=RequestStatus.CANCELED,
            message=sa.case((asked.is_not(None), by_requester), else_=by_operator),
            cancel_requested_at=sa.func.coalesce(asked, sa.bindparam("asked", now, asked.type)),
            completed_at=now,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if canceled is not None:
        record(connection, canceled.uid, canceled.organization_id, EventKind.CANCELED)
    return canceled is not None


def cancel_requested(connection: sa.Connection) -> list[tuple[int, str]]:
    """Requests that are to be canceled and are not yet: (id, uid)."""
    asked = connection.execute(
        sa.select(_rows.id, _rows.uid).where(
            _rows.status.in_([RequestStatus.QUEUED, RequestStatus.RUNNING]), _rows.cancel_requested_at.is_not(None)
        )
    )
    return [(row.id, row.uid) for row in asked]


def note(connection: sa.Connection, request_id: int, message: str | None, *, run_id: str) -> None:
    """Say something of a completed request that its application should know (its mail did not go out)."""
    connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED, _rows.run_id == run_id)
        .values(message=message, updated_at=utc_now())
    )


def notified(connection: sa.Connection, request_id: int, counts: Mapping[NotificationStatus, int]) -> None:
    """Record in the audit trail how the notifications of a request ended."""
    row = connection.execute(sa.select(_rows.uid, _rows.organization_id).where(_rows.id == request_id)).one()
    record(
        connection,
        row.uid,
        row.organization_id,
        EventKind.NOTIFIED,
        {status.value: number for status, number in counts.items()},
    )


INTERNAL = ExportFailure(
    FailureCode.INTERNAL_ERROR,
    "The export failed inside the pipeline. The operators can see why; ask them to retry it.",
)
