"""Which run a request belongs to: taking the row, entering a stage, and saying that the run lives.

A row belongs to the run in ``run_id``. A run that is re-executed in the Dagster UI takes the row over from its parent
or root run; from then on the parent no longer owns it.
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
from export_pipeline.requests.audit import record, record_asked
from export_pipeline.requests.queue import READ, wake
from export_pipeline.requests.recurring_outcomes import covered_by

_rows = export_requests.c
_OF_ONE_SHARD = (Stage.SERIALIZE, Stage.UPLOAD)
_REQUESTERS = [code.value for code in FailureCode if code.fault is Fault.REQUESTER]


@dataclass(frozen=True)
class Ownership:
    """The request that a run owns now, and the attempt that it counts."""

    uid: str
    attempt: int
    manifest_key: str | None = None
    """Of a request that is completed already."""
    rows_total: int | None = None
    """Rows of its snapshot, once there is one."""
    claim_id: str | None = None
    """The claim that its run was requested for."""
    failed: bool = False
    """Another shard of the same run has failed it: this one's work is for the re-execution that goes on from there."""


def begin(
    connection: sa.Connection,
    request_id: int,
    *,
    run_id: str,
    lineage: Sequence[str],
    attempt: int | None,
    claim_id: str | None = None,
) -> Ownership:
    """The first op takes the row for its run.

    Args:
        connection: an open transaction.
        request_id: the row.
        run_id: this run.
        lineage: the runs that this one re-executes.
        attempt: the attempt that this run was launched for; None when an operator launched it by hand.
        claim_id: the claim that it was launched for.

    Raises:
        ExportCanceled: the requester canceled before it began.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    _check_not_covered(connection, request_id, lineage)
    fresh = sa.and_(_rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
    claimed = sa.and_(_rows.attempt == attempt, sa.true() if claim_id is None else _rows.claim_id == claim_id)
    if attempt is not None:
        fresh = sa.and_(fresh, claimed)
    else:
        _charge_by_hand(connection, request_id)
    if attempt is not None and lineage:
        # Every process of the claim died before it took the row: no run owned it, and it is re-executed all the same.
        fresh = sa.or_(fresh, sa.and_(_rows.status == RequestStatus.FAILED, _rows.run_id.is_(None), claimed))
    return _take(connection, request_id, sa.or_(fresh, _owned(run_id, lineage)), run_id=run_id, stage=Stage.PLAN)


def _charge_by_hand(connection: sa.Connection, request_id: int) -> None:
    """An operator launched the run from the UI: it counts as an attempt like any other, and may be the first."""
    charged = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, _rows.status == RequestStatus.QUEUED, _rows.run_id.is_(None))
        .values(attempt=_rows.attempt + 1, claimed_at=current_instant(), claim_id=generated_uuid())
    )
    if charged.rowcount:
        record_asked(connection, [request_id])


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
    The shards beside one that failed are worked on all the same, so that a re-execution has that one left to do.

    Raises:
        ExportCanceled: the requester canceled.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    if stage is Stage.PUBLISH and _is_completed(connection, request_id):
        return enter_completed(connection, request_id, stage, run_id=run_id, lineage=lineage, attempt=attempt)
    if stage in _OF_ONE_SHARD and (beside := _beside_a_failed_shard(connection, request_id, run_id)) is not None:
        return beside
    _check_not_covered(connection, request_id, lineage)
    return _take(connection, request_id, _owned(run_id, lineage), run_id=run_id, stage=stage)


def _check_not_covered(connection: sa.Connection, request_id: int, lineage: Sequence[str]) -> None:
    """A failed request whose rows a later one delivers is not re-executed: its rows would be delivered twice."""
    later = covered_by(connection, request_id) if lineage else None
    if later is not None:
        raise OwnershipLost(
            f"the later request {later} of the same recurring export delivers rows of this one; to deliver them twice "
            "all the same, run: export-pipeline recurring run-now ID --again UID"
        )


def _beside_a_failed_shard(connection: sa.Connection, request_id: int, run_id: str) -> Ownership | None:
    """Dagster goes on with the other shards of a run after one has failed; the row stays as that one left it."""
    row = connection.execute(
        sa.select(_rows.uid, _rows.attempt, _rows.rows_total, _rows.claim_id).where(
            _rows.id == request_id, _rows.run_id == run_id, _failed_and_may_be_resumed()
        )
    ).first()
    if row is None:
        return None
    return Ownership(row.uid, row.attempt, rows_total=row.rows_total, claim_id=row.claim_id, failed=True)


def _failed_and_may_be_resumed() -> sa.ColumnElement[bool]:
    """Failed, but not by the requester, whose attempt is cleared away at once."""
    return sa.and_(_rows.status == RequestStatus.FAILED, _rows.error_code.not_in(_REQUESTERS))


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
    now = current_instant()
    taken = connection.execute(
        export_requests.update()
        .where(_rows.id == request_id, owned)
        .values(stage=stage, run_id=run_id, message=None, heartbeat_at=now, updated_at=now)
        .returning(_rows.uid, _rows.attempt, _rows.manifest_key, _rows.claim_id)
    ).first()
    if taken is None:
        raise ownership_error(connection, request_id)
    return Ownership(taken.uid, taken.attempt, taken.manifest_key, claim_id=taken.claim_id)


def _take(
    connection: sa.Connection, request_id: int, condition: sa.ColumnElement[bool], *, run_id: str, stage: Stage
) -> Ownership:
    now = current_instant()
    read = {"postponed_at": None} if stage is Stage.SERIALIZE else {}
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
            started_at=sa.func.coalesce(_rows.started_at, now),
            updated_at=now,
            **read,
        )
        .returning(_rows.uid, _rows.organization_id, _rows.attempt, _rows.rows_total, _rows.claim_id)
    ).first()
    if taken is None:
        raise ownership_error(connection, request_id)
    if read:
        wake(connection, READ)
    if stage is Stage.PLAN:
        record(
            connection,
            taken.uid,
            taken.organization_id,
            EventKind.STARTED,
            {"run_id": run_id, "attempt": taken.attempt},
        )
    return Ownership(taken.uid, taken.attempt, rows_total=taken.rows_total, claim_id=taken.claim_id)


def ownership_error(connection: sa.Connection, request_id: int) -> Exception:
    """Why a run could not have the row: ``ExportCanceled`` or ``OwnershipLost``, to be raised."""
    row = connection.execute(
        # Whether, not when: SQLite may hold any text there.
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
    """Say that the run lives, and write its progress (``rows_done``, ``rows_total``, ``snapshot_at``).

    Raises:
        ExportCanceled: the requester canceled.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    now = current_instant()
    found = connection.execute(
        export_requests.update().where(_goes_on(request_id, run_id)).values(heartbeat_at=now, updated_at=now, **values)
    )
    if found.rowcount != 1:
        raise ownership_error(connection, request_id)


def lock(connection: sa.Connection, request_id: int, *, run_id: str) -> None:
    """Keep everybody else from ending the request until this transaction ends.

    For what has to be undone if the request ends: a cancel comes before this, which then raises, or after the
    transaction, and finds what it did. (SQLite ignores the lock: its write transactions exclude one another.)

    Raises:
        ExportCanceled: the requester canceled.
        OwnershipLost: the row belongs to another run, or is finished.
    """
    if connection.execute(sa.select(_rows.id).where(_goes_on(request_id, run_id)).with_for_update()).first() is None:
        raise ownership_error(connection, request_id)


def _goes_on(request_id: int, run_id: str) -> sa.ColumnElement[bool]:
    """The row is the run's, and nobody wishes it to stop."""
    alive = sa.or_(
        sa.and_(_rows.status == RequestStatus.RUNNING, _rows.cancel_requested_at.is_(None)),
        _rows.status == RequestStatus.COMPLETED,
        _failed_and_may_be_resumed(),
    )
    return sa.and_(_rows.id == request_id, _rows.run_id == run_id, alive)
