"""Which run owns a request: taking the row, entering a stage, and sending heartbeats.

The run in ``run_id`` owns the row. A re-execution in the Dagster UI takes the row over from its parent or root run,
which then no longer owns it: ``lineage`` names the runs that a run re-executes.

A run that may not go on gets ``ExportCanceled`` if the requester canceled, and ``OwnershipLost`` if the row belongs to
another run or is finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, EventKind, RequestStatus, Stage
from export_pipeline.database.tables import export_requests
from export_pipeline.database.types import current_instant, generated_uuid
from export_pipeline.failures import ExportCanceled, FailureCode, Fault, OwnershipLost
from export_pipeline.requests.audit import record, record_input
from export_pipeline.requests.models import change_request, status_of
from export_pipeline.requests.queue import OVER_ONCE_READ, wake_postponed
from export_pipeline.requests.recurring_outcomes import covered_by

_rows = export_requests.c
_OF_ONE_SHARD = (Stage.SERIALIZE, Stage.UPLOAD)
_REQUESTERS = [code.value for code in FailureCode if code.fault is Fault.REQUESTER]


@dataclass(frozen=True)
class Ownership:
    """The request that a run owns, and its attempt."""

    uid: str
    attempt: int
    manifest_key: str | None = None
    """Set if the request is already completed."""
    rows_total: int | None = None
    """Rows of its snapshot; None before there is one."""
    claim_id: str | None = None
    """The claim that the run was requested for."""
    failed: bool = False
    """Another shard of the same run failed the request. This shard works on, for the re-execution that resumes it."""


def begin(
    connection: sa.Connection,
    request_id: int,
    *,
    run_id: str,
    lineage: Sequence[str],
    attempt: int | None,
    claim_id: str | None = None,
) -> Ownership:
    """Take the row for its run, in the first op.

    ``attempt`` and ``claim_id`` are those that this run was launched for; None if an operator launched it by hand.
    """
    _check_not_covered(connection, request_id, lineage)
    fresh = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
    claimed = sa.and_(_rows.attempt == attempt, sa.true() if claim_id is None else _rows.claim_id == claim_id)
    if attempt is not None:
        fresh = sa.and_(fresh, claimed)
    else:
        _charge_by_hand(connection, request_id)
    if attempt is not None and lineage:
        # Every process of the claim died before it took the row, so no run owned it; it can be re-executed too.
        fresh = sa.or_(fresh, sa.and_(_rows.status == RequestStatus.FAILED, _rows.run_id.is_(None), claimed))
    return _take(connection, request_id, sa.or_(fresh, _owned(run_id, lineage)), run_id=run_id, stage=Stage.PLAN)


def _charge_by_hand(connection: sa.Connection, request_id: int) -> None:
    """Charge an attempt for a run that an operator launched from the UI; it may be the first."""
    charged = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
        .values(attempt=_rows.attempt + 1, claimed_at=current_instant(), claim_id=generated_uuid())
    )
    if charged.rowcount:
        record_input(connection, [request_id])


def _owned(run_id: str, lineage: Sequence[str]) -> sa.ColumnElement[bool]:
    """This run owns the row, or a run that it re-executes does.

    Only a re-execution revives a failed row, because Dagster continues with the other shards after one has failed.
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
    """Enter the stage of a later op, if its run (or one that it re-executes) owns the row.

    ``publish`` may find the row completed by an earlier try of the same ``attempt`` that died before Dagster knew.
    The other shards of a run continue after one has failed, so that a re-execution has to repeat only that one.
    """
    if stage is Stage.PUBLISH and status_of(connection, request_id) == RequestStatus.COMPLETED:
        return enter_completed(connection, request_id, stage, run_id=run_id, lineage=lineage, attempt=attempt)
    if stage in _OF_ONE_SHARD and (beside := _beside_a_failed_shard(connection, request_id, run_id)) is not None:
        return beside
    _check_not_covered(connection, request_id, lineage)
    return _take(connection, request_id, _owned(run_id, lineage), run_id=run_id, stage=stage)


def _check_not_covered(connection: sa.Connection, request_id: int, lineage: Sequence[str]) -> None:
    """Refuse to re-execute a failed request whose rows a later request delivers; they would be delivered twice."""
    later = covered_by(connection, request_id) if lineage else None
    if later is not None:
        raise OwnershipLost(
            f"the later request {later} of the same recurring export delivers rows of this one; to deliver them twice, "
            "run: export-pipeline recurring run-now ID --again UID"
        )


def _beside_a_failed_shard(connection: sa.Connection, request_id: int, run_id: str) -> Ownership | None:
    """Continue beside a shard of the same run that failed; the row stays as that shard left it."""
    row = connection.execute(
        sa.select(_rows.uid, _rows.attempt, _rows.rows_total, _rows.claim_id).where(
            _rows.id == request_id, _rows.run_id == run_id, _failed_and_may_be_resumed()
        )
    ).first()
    if row is None:
        return None
    return Ownership(row.uid, row.attempt, rows_total=row.rows_total, claim_id=row.claim_id, failed=True)


def _failed_and_may_be_resumed() -> sa.ColumnElement[bool]:
    """Failed, but not by the requester's fault: such an attempt is cleaned up at once."""
    return sa.and_(_rows.status == RequestStatus.FAILED, _rows.error_code.not_in(_REQUESTERS))


def enter_completed(
    connection: sa.Connection,
    request_id: int,
    stage: Stage,
    *,
    run_id: str,
    lineage: Sequence[str] | None,
    attempt: int | None = None,
) -> Ownership:
    """Enter a stage of a completed request: the stage changes, the status stays.

    The stage is ``notify_recipients``, or ``publish`` tried again after it had completed the row. Without ``lineage``
    the row is taken from any run (for mails, because only ``export_notifications`` decides who gets one). A run also
    owns the row if it was launched for the same ``attempt``.
    """
    owned = _rows.status == RequestStatus.COMPLETED
    if lineage is not None:
        same_attempt = sa.false() if attempt is None else _rows.attempt == attempt
        owned = sa.and_(owned, sa.or_(_rows.run_id.in_([run_id, *lineage]), same_attempt))
    change = {"stage": stage, "run_id": run_id, "message": None, "heartbeat_at": current_instant()}
    taken = change_request(connection, _rows.id == request_id, owned, **change)
    if taken is None:
        raise ownership_error(connection, request_id)
    return Ownership(taken.uid, taken.attempt, taken.manifest_key, claim_id=taken.claim_id)


def _take(
    connection: sa.Connection, request_id: int, condition: sa.ColumnElement[bool], *, run_id: str, stage: Stage
) -> Ownership:
    now = current_instant()
    read = {"postponed_at": None} if stage is Stage.SERIALIZE else {}
    taken = change_request(
        connection,
        sa.and_(_rows.id == request_id, condition, _rows.cancel_requested_at.is_(None)),
        status=RequestStatus.RUNNING,
        stage=stage,
        run_id=run_id,
        rows_done=0,
        error_code=None,
        message=None,
        completed_at=None,
        heartbeat_at=now,
        started_at=sa.func.coalesce(_rows.started_at, now),
        **read,
    )
    if taken is None:
        raise ownership_error(connection, request_id)
    if read:
        wake_postponed(connection, OVER_ONCE_READ)
    if stage is Stage.PLAN:
        detail = {"run_id": run_id, "attempt": taken.attempt}
        record(connection, taken.uid, taken.organization_id, EventKind.STARTED, detail)
    return Ownership(taken.uid, taken.attempt, rows_total=taken.rows_total, claim_id=taken.claim_id)


def ownership_error(connection: sa.Connection, request_id: int) -> Exception:
    """The error to raise if a run cannot take the row: ``ExportCanceled`` or ``OwnershipLost``."""
    row = connection.execute(
        sa.select(_rows.status, _rows.run_id, _rows.cancel_requested_at.is_not(None).label("cancel")).where(
            _rows.id == request_id
        )
    ).first()
    if row is None:
        return OwnershipLost(f"request {request_id} no longer exists")
    if row.status == RequestStatus.CANCELED or (row.cancel and row.status in UNFINISHED):
        return ExportCanceled(f"request {request_id} is canceled")
    return OwnershipLost(f"request {request_id} is {row.status} and belongs to run {row.run_id}")


def heartbeat(connection: sa.Connection, request_id: int, *, run_id: str, values: Mapping[str, Any]) -> None:
    """Write a heartbeat and the progress of the run (``rows_done``, ``rows_total``, ``snapshot_at``)."""
    if change_request(connection, _is_active(request_id, run_id), heartbeat_at=current_instant(), **values) is None:
        raise ownership_error(connection, request_id)


def lock(connection: sa.Connection, request_id: int, *, run_id: str) -> None:
    """Prevent other transactions from ending the request until this one ends.

    For work that has to be undone if the request ends. A cancellation comes before, and this raises, or after the
    transaction, and finds the work. (SQLite ignores the lock; its write transactions exclude each other.)
    """
    if connection.execute(sa.select(_rows.id).where(_is_active(request_id, run_id)).with_for_update()).first() is None:
        raise ownership_error(connection, request_id)


def _is_active(request_id: int, run_id: str) -> sa.ColumnElement[bool]:
    """The run owns the row, and no cancellation was requested."""
    alive = sa.or_(
        sa.and_(_rows.status == RequestStatus.RUNNING, _rows.cancel_requested_at.is_(None)),
        _rows.status == RequestStatus.COMPLETED,
        _failed_and_may_be_resumed(),
    )
    return sa.and_(_rows.id == request_id, _rows.run_id == run_id, alive)
