"""What the end of a request means for the recurring export that made it, written in the transaction that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from export_pipeline.database.enums import UNFINISHED, RequestStatus, WindowKind
from export_pipeline.database.tables import export_requests, recurring_exports
from export_pipeline.database.types import current_instant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.scheduling.windows import Window, advance_high_water_mark

_rows = recurring_exports.c
_asked = export_requests.c
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
"""Who may ask, who is written to and from whom, or what is written is wrong: no fire time mends that."""


def note_completed(connection: sa.Connection, request_id: int) -> None:
    """The request is completed: its window is done with, and whatever failed before is past."""

    def values(recurring: sa.Row[Any], request: sa.Row[Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {"failures_in_a_row": 0}
        if recurring.window_kind == WindowKind.SINCE_LAST_SUCCESS:
            # What is created after the request was made is in no file of it, wherever its window ends.
            end = min(request.window_before, request.created_at) if request.window_before else None
            covered = Window(request.window_from, end)
            changed["high_water_mark"] = advance_high_water_mark(recurring.high_water_mark, covered)
        return changed

    read = (_rows.window_kind, _rows.high_water_mark)
    _update(connection, request_id, read, (_asked.window_from, _asked.window_before, _asked.created_at), values)


def note_failed(connection: sa.Connection, request_id: int, failure: ExportFailure) -> None:
    """The request failed: one failure more, and the last one if they are too many or nothing but a person mends it."""

    def values(recurring: sa.Row[Any], _request: sa.Row[Any]) -> dict[str, Any]:
        failures = recurring.failures_in_a_row + 1
        changed: dict[str, Any] = {"failures_in_a_row": failures}
        too_many = failures >= recurring.max_failures
        if not recurring.paused and (too_many or failure.code in PAUSE_AT_ONCE):
            reason = f"{failure.code}: {failure.requester_message}"
            counted = f"{failures} failures in a row, the last one: {reason}"
            changed |= {
                "paused_at": current_instant(),
                "pause_reason": reason if failure.code in PAUSE_AT_ONCE else counted,
                "paused_over": request_id,
            }
        return changed

    # Whether, not when: SQLite may hold any text there.
    read = (_rows.failures_in_a_row, _rows.max_failures, _rows.paused_at.is_not(None).label("paused"))
    _update(connection, request_id, read, (), values)


def covered_by(connection: sa.Connection, request_id: int) -> str | None:
    """The ``uid`` of a later request that delivers rows of a failed one, and would so deliver them twice; or None.

    Of ``since_last_success`` alone: there the next window begins where the last completed one ended.
    """
    later = export_requests.alias()
    its = later.c
    found = connection.execute(
        sa.select(its.uid)
        .join_from(export_requests, recurring_exports, _rows.id == _asked.recurring_export_id)
        .join(later, its.recurring_export_id == _asked.recurring_export_id)
        .where(
            _asked.id == request_id,
            _asked.status.in_((RequestStatus.FAILED, RequestStatus.CANCELED)),
            _rows.window_kind == WindowKind.SINCE_LAST_SUCCESS,
            its.organization_id == _asked.organization_id,
            its.id > _asked.id,
            its.status.in_((*UNFINISHED, RequestStatus.COMPLETED, RequestStatus.EXPIRED)),
            sa.or_(its.window_from.is_(None), _asked.window_before.is_(None), its.window_from < _asked.window_before),
            sa.or_(its.window_before.is_(None), _asked.window_from.is_(None), its.window_before > _asked.window_from),
        )
        .order_by(its.id)
        .limit(1)
    ).scalar()
    return None if found is None else str(found)


def _update(
    connection: sa.Connection,
    request_id: int,
    read: tuple[sa.ColumnElement[Any], ...],
    asked: tuple[sa.ColumnElement[Any], ...],
    values: Callable[[sa.Row[Any], sa.Row[Any]], dict[str, Any]],
) -> None:
    """Change the recurring export of a request, if it has one in its own organization, holding its row meanwhile."""
    request = connection.execute(
        sa.select(_asked.recurring_export_id, _asked.organization_id, *asked).where(_asked.id == request_id)
    ).one()
    if request.recurring_export_id is None:
        return
    own = sa.and_(_rows.id == request.recurring_export_id, _rows.organization_id == request.organization_id)
    recurring = connection.execute(sa.select(*read).where(own).with_for_update()).first()
    if recurring is not None:
        changed = values(recurring, request)
        connection.execute(recurring_exports.update().where(own).values(**changed, updated_at=current_instant()))
