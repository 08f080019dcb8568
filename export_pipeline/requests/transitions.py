"""The transitions of a request, each of them one conditional UPDATE.

``queued -> running -> completed -> expired``; a queued or running request may become ``failed`` or ``canceled``, and
``queued`` again (``queue``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, EventKind, NotificationStatus, RequestStatus, WebhookEvent
from export_pipeline.database.tables import export_files, export_requests
from export_pipeline.database.types import current_instant, instant_after
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.requests import billing, notifications, webhooks
from export_pipeline.requests.audit import record, record_input
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.models import change_request, has_uid
from export_pipeline.requests.ownership import ownership_error
from export_pipeline.requests.queue import MOST_POSTPONEMENTS, requeue, wait_seconds, wake_postponed
from export_pipeline.requests.recurring_outcomes import covered_by, note_completed, note_failed

_rows = export_requests.c


def complete(
    connection: sa.Connection,
    request_id: int,
    *,
    run_id: str,
    files: Sequence[StoredFile],
    manifest_key: str,
    expires_at: datetime,
) -> None:
    """Complete a request whose manifest is written, and record its files.

    ``ExportCanceled`` if the requester canceled at the last moment: the caller deletes the files. ``OwnershipLost``.
    """
    now = current_instant()
    rows = sum(file.rows for file in files)
    done = change_request(
        connection,
        _is_working(request_id, run_id),
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
    )
    if done is None:
        raise ownership_error(connection, request_id)
    connection.execute(export_files.delete().where(export_files.c.request_id == request_id))
    connection.execute(export_files.insert(), [{"request_id": request_id, **vars(file)} for file in files])
    wake_postponed(connection)
    note_completed(connection, request_id)
    webhooks.enqueue(connection, request_id, WebhookEvent.COMPLETED)
    record(connection, done.uid, done.organization_id, EventKind.COMPLETED, {"rows": rows, "files": len(files)})


def _is_working(request_id: int, run_id: str) -> sa.ColumnElement[bool]:
    """The run owns the request and works on it, and no cancellation was requested."""
    return sa.and_(
        _rows.id == request_id,
        _rows.run_id == run_id,
        _rows.status == RequestStatus.RUNNING,
        _rows.cancel_requested_at.is_(None),
    )


def fail(connection: sa.Connection, request_id: int, failure: ExportFailure, *, run_id: str) -> bool:
    """Mark a running request failed, if ``run_id`` owns it."""
    owned = sa.and_(_rows.status == RequestStatus.RUNNING, _rows.run_id == run_id)
    return _fail(connection, request_id, failure, owned)


def give_up(
    connection: sa.Connection, request_id: int, failure: ExportFailure, *, attempt: int, run_id: str | None
) -> bool:
    """Mark a request failed whose last attempt died without reporting, if ``run_id`` still owns it."""
    unfinished = _rows.status.in_(UNFINISHED)
    unchanged = sa.and_(unfinished, _rows.attempt == attempt, _rows.run_id.is_not_distinct_from(run_id))
    return _fail(connection, request_id, failure, unchanged)


def _fail(
    connection: sa.Connection, request_id: int, failure: ExportFailure, condition: sa.ColumnElement[bool]
) -> bool:
    """Write a failure. Text that the database cannot store (its encoding, a NUL) is written in plain ASCII."""
    try:
        with connection.begin_nested():
            return _write_failure(connection, request_id, failure, condition)
    except (sa.exc.DataError, sa.exc.NotSupportedError, UnicodeError):
        text = failure.message.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
        return _write_failure(connection, request_id, ExportFailure(failure.code, text), condition)


def _write_failure(
    connection: sa.Connection, request_id: int, failure: ExportFailure, condition: sa.ColumnElement[bool]
) -> bool:
    failed = change_request(
        connection,
        sa.and_(_rows.id == request_id, condition),
        status=RequestStatus.FAILED,
        error_code=failure.code.value,
        message=failure.requester_message,
        completed_at=current_instant(),
    )
    if failed is not None:
        record_input(connection, [request_id])  # a request that was refused when it was made has no trail yet
        note_failed(connection, request_id, failure)
        billing.release(connection, failed.uid)
        notifications.enlist_failure(connection, request_id)
        webhooks.enqueue(connection, request_id, WebhookEvent.FAILED)
        detail = {"error_code": failure.code.value}
        if failure.fault is not Fault.REQUESTER:
            # For operators. A requester's message may repeat input, so it stays on the row.
            detail["message"] = failure.message
        record(connection, failed.uid, failed.organization_id, EventKind.FAILED, detail)
    return failed is not None


def postpone(connection: sa.Connection, request_id: int, failure: ExportFailure, *, run_id: str) -> bool:
    """Return a request to the queue because something that its run needs does not answer; no attempt is used up.

    False if the run no longer owns the request, or if it was postponed for about a day and has to fail.
    """
    owned = sa.and_(_is_working(request_id, run_id), _rows.postponements < MOST_POSTPONEMENTS)
    now = current_instant().label("now")
    row = connection.execute(sa.select(_rows.attempt, _rows.postponements, now).where(owned)).first()
    if row is None:
        return False
    not_before = row.now + timedelta(seconds=wait_seconds(row.postponements))
    what = _NO_ANSWER.get(failure.code, "Something that the export needs does not answer")
    return requeue(
        connection,
        owned,
        {"attempt": row.attempt, "charged": False, "error_code": failure.code.value},
        uncounted_attempts=_rows.uncounted_attempts + 1,
        not_before=not_before,
        postponed_at=current_instant(),
        postponements=_rows.postponements + 1,
        error_code=failure.code.value,
        message=f"{what}. The export waits and is tried again, next at {not_before:%Y-%m-%d %H:%M:%S} UTC.",
    )


_NO_ANSWER = {
    FailureCode.SOURCE_UNAVAILABLE: "The database that the rows are read from does not answer",
    FailureCode.STORE_UNAVAILABLE: "The place where the files are kept does not answer",
}


def retry(connection: sa.Connection, uid: str, *, actor: str) -> bool:
    """Return a failed or canceled request to the queue with new attempts; False if it is neither.

    ``invalid_request`` if a later request of its recurring export delivers its rows.
    """
    ended = sa.and_(has_uid(uid), _rows.status.in_((RequestStatus.FAILED, RequestStatus.CANCELED)))
    row = connection.execute(sa.select(_rows.id, _rows.uid, _rows.organization_id).where(ended)).first()
    if row is None:
        return False
    if (later := covered_by(connection, row.id)) is not None:
        raise ExportFailure(
            FailureCode.INVALID_REQUEST,
            f"The later request {later} of the same recurring export delivers rows of this one, which would be "
            f"delivered twice. To deliver them twice, run: export-pipeline recurring run-now ID --again {row.uid}.",
        )
    again = change_request(
        connection,
        ended,
        status=RequestStatus.QUEUED,
        claimed_at=None,
        run_id=None,
        cancel_requested_at=None,
        not_before=None,
        postponed_at=None,
        postponements=0,
    )
    if again is not None:
        record(connection, row.uid, row.organization_id, EventKind.REQUEUED, {"retried": True}, actor=actor)
    return again is not None


def request_cancel(connection: sa.Connection, uid: str) -> bool:
    """Request that a request is canceled; False if it is unknown or already finished."""
    requested_at = sa.func.coalesce(_rows.cancel_requested_at, current_instant())
    unfinished = sa.and_(has_uid(uid), _rows.status.in_(UNFINISHED))
    return change_request(connection, unfinished, cancel_requested_at=requested_at) is not None


def cancel(
    connection: sa.Connection,
    request_id: int,
    *,
    by_requester: str,
    by_operator: str,
    run_id: str | None = None,
    claim_id: str | None = None,
) -> bool:
    """Mark a queued or running request canceled. It stays canceled, whatever its run reports later.

    The requester canceled it if ``cancel_requested_at`` is set, otherwise an operator did. An operator who ends a run
    cancels the request only if that run still owns it (``run_id``), or if it waits for that run to begin
    (``claim_id``).
    """
    now = current_instant()
    requested = _rows.cancel_requested_at
    canceled = change_request(
        connection,
        _rows.id == request_id,
        _rows.status.in_(UNFINISHED),
        sa.true() if run_id is None else sa.or_(_rows.run_id == run_id, requested.is_not(None)),
        sa.true() if claim_id is None else sa.and_(_rows.claim_id == claim_id, _rows.run_id.is_(None)),
        status=RequestStatus.CANCELED,
        message=sa.case((requested.is_not(None), by_requester), else_=by_operator),
        cancel_requested_at=sa.func.coalesce(requested, now),
        completed_at=now,
    )
    if canceled is not None:
        record_input(connection, [request_id])  # a request that was never claimed has no trail yet
        billing.release(connection, canceled.uid)
        webhooks.enqueue(connection, request_id, WebhookEvent.CANCELED)
        record(connection, canceled.uid, canceled.organization_id, EventKind.CANCELED)
    return canceled is not None


def cancel_requested(connection: sa.Connection) -> list[tuple[int, str]]:
    """Requests with a cancellation that is not carried out yet: (id, uid)."""
    requested = sa.and_(_rows.status.in_(UNFINISHED), _rows.cancel_requested_at.is_not(None))
    return [tuple(row) for row in connection.execute(sa.select(_rows.id, _rows.uid).where(requested))]


def running_requests(connection: sa.Connection) -> list[tuple[int, str, str]]:
    """Running requests: (id, uid, id of the run that owns it)."""
    running = sa.and_(_rows.status == RequestStatus.RUNNING, _rows.run_id.is_not(None))
    return [tuple(row) for row in connection.execute(sa.select(_rows.id, _rows.uid, _rows.run_id).where(running))]


def note(connection: sa.Connection, request_id: int, message: str | None, *, run_id: str) -> None:
    """Write a message on a completed request for its application, such as that a mail was not sent."""
    change_request(
        connection,
        sa.and_(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED, _rows.run_id == run_id),
        message=message,
    )


def notified(connection: sa.Connection, request_id: int, counts: Mapping[NotificationStatus, int]) -> None:
    """Record in the audit trail how the notifications of a request ended."""
    row = connection.execute(sa.select(_rows.uid, _rows.organization_id).where(_rows.id == request_id)).one()
    detail = {status.value: number for status, number in counts.items()}
    record(connection, row.uid, row.organization_id, EventKind.NOTIFIED, detail)


INTERNAL = ExportFailure(
    FailureCode.INTERNAL_ERROR, "The export failed inside the pipeline: the failed step's metadata says where."
)


def expire(connection: sa.Connection, request_id: int) -> None:
    """Mark a completed request expired, before its files are deleted."""
    completed = sa.and_(_rows.id == request_id, _rows.status == RequestStatus.COMPLETED)
    expired = change_request(connection, completed, status=RequestStatus.EXPIRED)
    if expired is not None:
        billing.release(connection, expired.uid)  # a mail that is not sent by now never will be
        record(connection, expired.uid, expired.organization_id, EventKind.EXPIRED)


def files_deleted(connection: sa.Connection, request_id: int) -> None:
    """Record that the files of an expired request are deleted."""
    deleted = connection.execute(
        export_files.update()
        .where(export_files.c.request_id == request_id, export_files.c.deleted_at.is_(None))
        .values(deleted_at=current_instant())
    ).rowcount
    row = connection.execute(sa.select(_rows.uid, _rows.organization_id).where(_rows.id == request_id)).first()
    if deleted and row is not None:
        record(connection, row.uid, row.organization_id, EventKind.DELETED, {"files": deleted})


def past_retention(connection: sa.Connection) -> list[tuple[int, str]]:
    """Requests whose files are due for deletion, also those that a janitor left when it died: (id, uid)."""
    ids = sa.select(_rows.id, _rows.uid)
    # Two queries, each in the words of an index on few rows: the number of expired requests grows forever.
    due = ids.where(_rows.status == sa.literal_column("'completed'"), _rows.expires_at < instant_after(0))
    undeleted = (
        ids.join(export_files, export_files.c.request_id == _rows.id)
        .where(_rows.status == RequestStatus.EXPIRED, export_files.c.deleted_at.is_(None))
        .distinct()
    )
    return [tuple(row) for query in (due, undeleted) for row in connection.execute(query)]
