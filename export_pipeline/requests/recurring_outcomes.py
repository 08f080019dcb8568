"""Updates of a recurring export when one of its requests ends, in the same transaction.

Here and not in ``recurring/``, because ``transitions`` calls it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, RequestStatus, WindowKind
from export_pipeline.database.tables import export_requests, recurring_exports
from export_pipeline.database.types import current_instant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.scheduling.windows import Window, advance_high_water_mark

_rows = recurring_exports.c
_requests = export_requests.c
PAUSE_AT_ONCE = frozenset(
    {
        FailureCode.INVALID_REQUEST,
        FailureCode.INVALID_OPTION,
        FailureCode.INVALID_SCHEDULE,
        FailureCode.INVALID_RECIPIENT,
        FailureCode.TOO_MANY_RECIPIENTS,
        FailureCode.RECIPIENT_OUTSIDE,
        FailureCode.NO_RECIPIENT_LEFT,
        FailureCode.PERMISSION_DENIED,
        FailureCode.SENDER_CONFLICT,
        FailureCode.INVALID_SENDER,
        FailureCode.SENDER_DOMAIN_UNKNOWN,
        FailureCode.SENDER_DOMAIN_UNVERIFIED,
        FailureCode.SENDER_UNKNOWN,
    }
)
"""Failures of permission, recipients, sender or content, which recur at every fire time until they are corrected."""


def note_completed(connection: sa.Connection, request_id: int) -> None:
    """Advance the high-water mark past the window of a completed request, and reset the failure count."""
    read = (_rows.window_kind, _rows.high_water_mark, _requests.window_from, _requests.window_before)
    recurring = _locked(connection, request_id, *read, _requests.created_at.label("requested_at"))
    if recurring is None:
        return
    changed: dict[str, Any] = {"failures_in_a_row": 0}
    if recurring.window_kind == WindowKind.SINCE_LAST_SUCCESS:
        # Rows that were created after the request are not in its files, wherever its window ends.
        end = min(recurring.window_before, recurring.requested_at) if recurring.window_before else None
        covered = Window(recurring.window_from, end)
        changed["high_water_mark"] = advance_high_water_mark(recurring.high_water_mark, covered)
    change_recurring(connection, _rows.id == recurring.id, **changed)


def note_failed(connection: sa.Connection, request_id: int, failure: ExportFailure) -> None:
    """Count a failure; pause the recurring export after too many, or if only a person can correct the cause."""
    paused = _rows.paused_at.is_not(None).label("paused")
    recurring = _locked(connection, request_id, _rows.failures_in_a_row, _rows.max_failures, paused)
    if recurring is None:
        return
    failures = recurring.failures_in_a_row + 1
    changed: dict[str, Any] = {"failures_in_a_row": failures}
    at_once = failure.code in PAUSE_AT_ONCE
    if not recurring.paused and (at_once or failures >= recurring.max_failures):
        reason = f"{failure.code}: {failure.requester_message}"
        changed |= {
            "paused_at": current_instant(),
            "pause_reason": reason if at_once else f"{failures} failures in a row, the last one: {reason}",
            "paused_over": request_id,
        }
    change_recurring(connection, _rows.id == recurring.id, **changed)


def covered_by(connection: sa.Connection, request_id: int) -> str | None:
    """The ``uid`` of a later request that delivers rows of a failed one, which a retry would deliver twice; or None.

    Only for ``since_last_success``, where the next window begins at the end of the last completed one.
    """
    later = export_requests.alias()
    its = later.c
    return connection.execute(
        sa.select(its.uid)
        .join_from(export_requests, recurring_exports, _rows.id == _requests.recurring_export_id)
        .join(later, its.recurring_export_id == _requests.recurring_export_id)
        .where(
            _requests.id == request_id,
            _requests.status.in_((RequestStatus.FAILED, RequestStatus.CANCELED)),
            _rows.window_kind == WindowKind.SINCE_LAST_SUCCESS,
            its.organization_id == _requests.organization_id,
            its.id > _requests.id,
            its.status.in_((*UNFINISHED, RequestStatus.COMPLETED, RequestStatus.EXPIRED)),
            sa.or_(
                its.window_from.is_(None), _requests.window_before.is_(None), its.window_from < _requests.window_before
            ),
            sa.or_(
                its.window_before.is_(None), _requests.window_from.is_(None), its.window_before > _requests.window_from
            ),
        )
        .order_by(its.id)
        .limit(1)
    ).scalar()


def _locked(connection: sa.Connection, request_id: int, *read: sa.ColumnElement[Any]) -> sa.Row[Any] | None:
    """The recurring export of a request, locked, if its organization has it: ``id`` and what is read.

    No more is read: an instant such as ``infinity``, which an application may write, has no value in Python.
    """
    own = sa.and_(_requests.recurring_export_id == _rows.id, _requests.organization_id == _rows.organization_id)
    return connection.execute(
        sa.select(_rows.id, *read)
        .join_from(recurring_exports, export_requests, own)
        .where(_requests.id == request_id)
        .with_for_update(of=recurring_exports)
    ).first()


def change_recurring(connection: sa.Connection, condition: sa.ColumnElement[bool], **values: Any) -> bool:
    """Change the recurring export that meets the condition; False if there is none."""
    change = recurring_exports.update().where(condition).values(**values, updated_at=current_instant())
    return connection.execute(change).rowcount == 1
