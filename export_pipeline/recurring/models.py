"""Recurring exports: their rows, and the template from which their requests are made."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, Field, ValidationError

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.database.tables import recurring_exports
from export_pipeline.database.types import UnreadableJson, current_instant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.models import RequestInput, RequestTemplate
from export_pipeline.requests.recurring_outcomes import change_recurring
from export_pipeline.scheduling.cron import checked_schedule
from export_pipeline.scheduling.windows import Rules

_rows = recurring_exports.c
MANAGED = RequestInput.model_fields.keys() - RequestTemplate.model_fields.keys() | {
    "id",
    "uid",
    "cancel_requested_at",
    "created_at",
}
"""The input columns of a request that the recurring export sets itself, or leaves at their defaults."""


class RecurringExport(BaseModel, frozen=True, strict=True, extra="forbid", hide_input_in_errors=True):
    """A row of ``recurring_exports``."""

    id: int
    organization_id: str
    owner: str | None
    cron: str
    time_zone: str
    request: Any
    window_kind: Annotated[WindowKind, Field(strict=False)]
    lag_seconds: int
    overlap_policy: Annotated[OverlapPolicy, Field(strict=False)]
    catch_up_policy: Annotated[CatchUpPolicy, Field(strict=False)]
    max_failures: int
    failures_in_a_row: int
    paused_at: datetime | None
    pause_reason: str | None
    paused_over: int | None
    last_fired_for: datetime | None
    counted_by: str | None
    high_water_mark: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def last_done(self) -> datetime:
        """The last fire time that became a request or was skipped; before the first, the row's creation."""
        return self.last_fired_for or self.created_at

    def rules(self) -> Rules:
        """The schedule and the policies (``invalid_schedule``, ``invalid_option``)."""
        return Rules(
            schedule=checked_schedule(self.cron, self.time_zone),
            window=self.window_kind,
            # Without a window no late row can be missed.
            lag=timedelta(seconds=0 if self.window_kind is WindowKind.ALL else self.lag_seconds),
            overlap=self.overlap_policy,
            catch_up=self.catch_up_policy,
        )


def parse_template(stored: Any) -> RequestTemplate:
    """Parse a template; ``invalid_request``, naming the first wrong column."""
    try:
        return RequestTemplate.model_validate(stored)
    except ValidationError as error:
        detail = error.errors(include_input=False, include_url=False)[0]
    column = str(detail["loc"][0]) if detail["loc"] else ""
    if isinstance(stored, UnreadableJson):
        problem = str(stored)
    elif detail["type"] == "missing":
        problem = "is missing; every request needs it"
    elif detail["type"] == "extra_forbidden":
        managed = "is set by the recurring export itself" if column in MANAGED else "is not a column of a request"
        problem = f"{managed}; leave it out"
    else:
        problem = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}; correct it"
    place = f"request.{column}" if column else "request"
    raise ExportFailure(FailureCode.INVALID_REQUEST, f"{place}: {problem}.", field="request")


def load_recurring(connection: sa.Connection, recurring_id: int) -> RecurringExport:
    """Read a row; a ``LookupError`` if it does not exist."""
    row = connection.execute(sa.select(recurring_exports).where(_rows.id == recurring_id)).mappings().first()
    if row is None:
        raise LookupError(f"no row {recurring_id} in recurring_exports")
    return RecurringExport(**row)


def recurring_ids(connection: sa.Connection, organization_id: str | None = None) -> list[int]:
    """The ids of all recurring exports, or of one organization's, sorted."""
    wanted = sa.true() if organization_id is None else _rows.organization_id == organization_id
    return list(connection.execute(sa.select(_rows.id).where(wanted).order_by(_rows.id)).scalars())


def pause(connection: sa.Connection, recurring_id: int, reason: str) -> bool:
    """Make no more requests; False if the row does not exist or is already paused."""
    live = sa.and_(_rows.id == recurring_id, _rows.paused_at.is_(None))
    return change_recurring(connection, live, paused_at=current_instant(), pause_reason=reason, paused_over=None)


def resume(connection: sa.Connection, recurring_id: int) -> bool:
    """Make requests again and reset the count of failures; False if the row does not exist or is not paused.

    The catch-up policy decides about the fire times in between.
    """
    paused = sa.and_(_rows.id == recurring_id, _rows.paused_at.is_not(None))
    cleared = {"paused_at": None, "pause_reason": None, "paused_over": None, "failures_in_a_row": 0}
    return change_recurring(connection, paused, **cleared)
