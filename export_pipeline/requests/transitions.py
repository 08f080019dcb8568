"""How a request ends, each transition one conditional UPDATE.

``queued -> running -> completed | failed | canceled -> expired``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, EventKind, NotificationStatus, RequestStatus, WebhookEvent
from export_pipeline.database.tables import export_files, export_requests
from export_pipeline.database.types import current_instant, instant_after
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.requests import billing, notifications, webhooks
from export_pipeline.requests.audit import record, record_asked
from export_pipeline.requests.models import has_uid
from export_pipeline.requests.ownership import ownership_error
from export_pipeline.requests.queue import MOST_POSTPONEMENTS, wait_seconds, wake
from export_pipeline.requests.recurring_outcomes import covered_by, note_completed, note_failed

_rows = export_requests.c


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
    now = current_instant()
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
            postponed_at=None,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if done is None:
        raise ownership_error(connection, request_id)
    connection.execute(export_files.delete().where(export_files.c.request_id == request_id))
    connection.execute(export_files.insert(), [{"request_id": request_id, **vars(file)} for file in files])
    wake(connection)
    note_completed(connection, request_id)
    webhooks.enqueue(connection, request_id, WebhookEvent.COMPLETED)
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
    unfinished = _rows.status.in_(UNFINISHED)
    orphaned = sa.and_(unfinished, _rows.attempt == attempt, _rows.run_id.is_not_distinct_from(run_id))
    return _fail(connection, request_id, failure, orphaned)


def _fail(
    connection: sa.Connection, request_id: int, failure: ExportFailure, condition: sa.ColumnElement[bool]
) -> bool:
    """Write a failure; one whose text this database cannot hold (its encoding, a NUL) is written in plain ASCII."""
    try:
        with connection.begin_nested():
            return _write_failure(connection, request_id, failure, condition)
    except (sa.exc.DataError, sa.exc.NotSupportedError, UnicodeError):
        text = failure.message.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
        return _write_failure(connection, request_id, ExportFailure(failure.code, text), condition)


def _write_failure(
    connection: sa.Connection, request_id: int, failure: ExportFailure, condition: sa.ColumnElement[bool]
) -> bool:
    now = current_instant()
    failed = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, condition)
        .values(
            status=RequestStatus.FAILED,
            error_code=failure.code.value,
            message=failure.requester_message,
            completed_at=now,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if failed is not None:
        record_asked(connection, [request_id])  # one that was refused at its insert has no trail yet
        note_failed(connection, request_id, failure)
        billing.release(connection, failed.uid)
        notifications.enlist_failure(connection, request_id)
        webhooks.enqueue(connection, request_id, WebhookEvent.FAILED)
        detail = {"error_code": failure.code.value}
        if failure.fault is not Fault.REQUESTER:
            # For operators. A requester's message may repeat what was typed: it stays on the row.
            detail["message"] = failure.message
        record(connection, failed.uid, failed.organization_id, EventKind.FAILED, detail)
    return failed is not None


def postpone(connection: sa.Connection, request_id: int, failure: ExportFailure, *, run_id: str) -> bool:
    """What the run needs does not answer: put its request back in the queue, to be tried later; no attempt is used up.

    Returns:
        False if the request is not the run's any more, or was postponed for about a day: then it is to fail.
    """
    owned = sa.and_(
        _rows.id == request_id,
        _rows.run_id == run_id,
        _rows.status == RequestStatus.RUNNING,
        _rows.cancel_requested_at.is_(None),
        _rows.postponements < MOST_POSTPONEMENTS,
    )
    row = connection.execute(sa.select(_rows.postponements, current_instant().label("now")).where(owned)).first()
    if row is None:
        return False
    not_before = row.now + timedelta(seconds=wait_seconds(row.postponements))
    what = _NO_ANSWER.get(failure.code, "Something that the export needs does not answer")
    postponed = connection.execute(
        export_requests.update()
        .where(owned)
        .values(
            status=RequestStatus.QUEUED,
            stage=None,
            run_id=None,
            claimed_at=None,
            rows_done=0,
            uncounted_attempts=_rows.uncounted_attempts + 1,
            not_before=not_before,
            postponed_at=current_instant(),
            postponements=_rows.postponements + 1,
            error_code=failure.code.value,
            message=f"{what}. The export waits and is tried again, next at {not_before:%Y-%m-%d %H:%M:%S} UTC.",
            updated_at=current_instant(),
        )
        .returning(_rows.uid, _rows.organization_id, _rows.attempt)
    ).first()
    if postponed is not None:
        detail = {"attempt": postponed.attempt, "charged": False, "error_code": failure.code.value}
        record(connection, postponed.uid, postponed.organization_id, EventKind.REQUEUED, detail)
    return postponed is not None


_NO_ANSWER = {
    FailureCode.SOURCE_UNAVAILABLE: "The database that the rows are read from does not answer",
    FailureCode.STORE_UNAVAILABLE: "The place where the files are kept does not answer",
}


def retry(connection: sa.Connection, uid: str, *, actor: str) -> bool:
    """Put a failed or canceled request back in the queue, its attempts counted anew; False if it is neither.

    Raises:
        ExportFailure: ``invalid_request``, its rows were delivered by a later request of its recurring export.
    """
    ended = sa.and_(has_uid(uid), _rows.status.in_((RequestStatus.FAILED, RequestStatus.CANCELED)))
    row = connection.execute(sa.select(_rows.id, _rows.uid, _rows.organization_id).where(ended)).first()
    if row is None:
        return False
    if (later := covered_by(connection, row.id)) is not None:
        raise ExportFailure(
            FailureCode.INVALID_REQUEST,
            f"The later request {later} of the same recurring export delivers rows of this one, which would be "
            "delivered twice. To do that all the same: "
            f"export-pipeline recurring run-now ID --again {row.uid}.",
        )
    again = connection.execute(
        export_requests.update()
        .where(ended)
        .values(
            status=RequestStatus.QUEUED,
            claimed_at=None,
            run_id=None,
            cancel_requested_at=None,
            not_before=None,
            postponed_at=None,
            postponements=0,
            updated_at=current_instant(),
        )
    )
    if again.rowcount:
        record(connection, row.uid, row.organization_id, EventKind.REQUEUED, {"retried": True}, actor=actor)
    return bool(again.rowcount)


def request_cancel(connection: sa.Connection, uid: str) -> bool:
    """Ask for a request to be canceled; False if it is unknown or already finished."""
    now = current_instant()
    asked = connection.execute(
        export_requests.update()
        .where(
            has_uid(uid),
            _rows.status.in_(UNFINISHED),
        )
        .values(
            cancel_requested_at=sa.func.coalesce(_rows.cancel_requested_at, now),
            updated_at=now,
        )
    )
    return asked.rowcount == 1


def cancel(
    connection: sa.Connection,
    request_id: int,
    *,
    by_requester: str,
    by_operator: str,
    run_id: str | None = None,
    claim_id: str | None = None,
) -> bool:
    """Mark a queued or running request canceled. It stays so, whatever its run says later.

    The row tells who wished it: the requester set ``cancel_requested_at``, an operator did not. What an
    operator did to a run cancels the request only if it is still that run's (``run_id``), or waits for it to begin
    (``claim_id``).
    """
    now = current_instant()
    asked = _rows.cancel_requested_at
    canceled = connection.execute(
        export_requests.update()
        .where(
            _rows.id == request_id,
            _rows.status.in_(UNFINISHED),
            sa.true() if run_id is None else sa.or_(_rows.run_id == run_id, asked.is_not(None)),
            sa.true() if claim_id is None else sa.and_(_rows.claim_id == claim_id, _rows.run_id.is_(None)),
        )
        .values(
            status=RequestStatus.CANCELED,
            message=sa.case((asked.is_not(None), by_requester), else_=by_operator),
            cancel_requested_at=sa.func.coalesce(asked, now),
            completed_at=now,
            updated_at=now,
        )
        .returning(_rows.uid, _rows.organization_id)
    ).first()
    if canceled is not None:
        record_asked(connection, [request_id])  # one that was never claimed has no trail yet
        billing.release(connection, canceled.uid)
        webhooks.enqueue(connection, request_id, WebhookEvent.CANCELED)
        record(connection, canceled.uid, canceled.organization_id, EventKind.CANCELED)
    return canceled is not None


def cancel_requested(connection: sa.Connection) -> list[tuple[int, str]]:
    """Requests that are to be canceled and are not yet: (id, uid)."""
    asked = connection.execute(
        sa.select(_rows.id, _rows.uid).where(_rows.status.in_(UNFINISHED), _rows.cancel_requested_at.is_not(None))
    )
    return [(row.id, row.uid) for row in asked]


def owned(connection: sa.Connection) -> list[tuple[int, str, str]]:
    """Running requests: (id, uid, the run that owns it)."""
    found = connection.execute(
        sa.select(_rows.id, _rows.uid, _rows.run_id).where(
            _rows.status == RequestStatus.RUNNING, _rows.run_id.is_not(None)
        )
    )
    return [(row.id, row.uid, row.run_id) for row in found if isinstance(row.run_id, str)]


def note(connection: sa.Connection, request_id: int, message: str | None, *, run_id: str) -> None:
    """Say something of a completed request that its application should know (its mail did not go out)."""
    connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED, _rows.run_id == run_id)
        .values(message=message, updated_at=current_instant())
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
    "The export failed inside the pipeline: the failed step's metadata says where.",
)


# Expiry: completed requests whose files are past their time.


def expire(connection: sa.Connection, request_id: int) -> None:
    """The files of a completed request are about to be deleted: from now on nobody is promised them."""
    expired = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED)
        .values(status=RequestStatus.EXPIRED, updated_at=current_instant())
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
        .values(deleted_at=current_instant())
    ).rowcount
    row = connection.execute(sa.select(_rows.uid, _rows.organization_id).where(_rows.id == request_id)).first()
    if deleted and row is not None:
        record(connection, row.uid, row.organization_id, EventKind.DELETED, {"files": deleted})


def past_retention(connection: sa.Connection) -> list[tuple[int, str]]:
    """Requests whose files are due for deletion, or were when a janitor died: (id, uid)."""
    asked = sa.select(_rows.id, _rows.uid)
    # Two questions, each by an index on few rows, in its very words: what expired grows for ever.
    due = asked.where(_rows.status == sa.literal_column("'completed'"), _rows.expires_at < instant_after(0))
    undeleted = (
        asked.join(export_files, export_files.c.request_id == _rows.id)
        .where(_rows.status == RequestStatus.EXPIRED, export_files.c.deleted_at.is_(None))
        .distinct()
    )
    found = [row for question in (due, undeleted) for row in connection.execute(question)]
    return [(row.id, row.uid) for row in found]
