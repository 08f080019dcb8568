"""One recurring export as Python sees it, and reading it from its row."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.database.tables import LONGEST_LAG_SECONDS, recurring_exports
from export_pipeline.database.types import UnreadableJson, current_instant
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.models import RequestInput, RequestTemplate
from export_pipeline.scheduling.cron import checked_schedule
from export_pipeline.scheduling.windows import Rules

_rows = recurring_exports.c


class RecurringExport(BaseModel):
    """A row of ``recurring_exports``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    id: int
    organization_id: str
    owner: str | None
    cron: str
    time_zone: str
    request: Any
    window_kind: Annotated[WindowKind, Field(strict=False)]
    lag_seconds: Annotated[int, Field(ge=0, le=LONGEST_LAG_SECONDS)]
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
        """The last fire time that was done with; before the first, when the row was made."""
        return self.last_fired_for or self.created_at

    def rules(self) -> Rules:
        """What it was set to.

        Raises:
            ExportFailure: ``invalid_schedule``, ``invalid_option``.
        """
        return Rules(
            schedule=checked_schedule(self.cron, self.time_zone),
            window=self.window_kind,
            # Without a window there is nothing that a late row could miss.
            lag=timedelta(seconds=0 if self.window_kind is WindowKind.ALL else self.lag_seconds),
            overlap=self.overlap_policy,
            catch_up=self.catch_up_policy,
        )


def load_recurring(connection: sa.Connection, recurring_id: int) -> RecurringExport:
    """Read a whole row.

    Raises:
        LookupError: there is no such row.
        ExportFailure: ``invalid_schedule``, naming the column whose value cannot be read.
    """
    try:
        row = connection.execute(sa.select(recurring_exports).where(_rows.id == recurring_id)).mappings().first()
        if row is None:
            raise LookupError(f"no row {recurring_id} in recurring_exports")
        return RecurringExport(**row)
    except ValidationError as error:
        column = str(error.errors(include_input=False, include_url=False)[0]["loc"][0])
    except (ValueError, TypeError):
        column = "created_at, last_fired_for, high_water_mark, paused_at or request"  # SQLite holds any text there
    raise ExportFailure(
        FailureCode.INVALID_SCHEDULE, f"recurring_exports: {column} cannot be read; correct it.", field="cron"
    )


def recurring_ids(connection: sa.Connection, organization_id: str | None = None) -> list[int]:
    """All recurring exports, or those of one organization, in the order of their ids."""
    chosen = sa.select(_rows.id).order_by(_rows.id)
    if organization_id is not None:
        chosen = chosen.where(_rows.organization_id == organization_id)
    return list(connection.execute(chosen).scalars())


def pause(connection: sa.Connection, recurring_id: int, reason: str) -> bool:
    """Make no more requests from now on; False if it is unknown or paused already."""
    paused = connection.execute(
        recurring_exports.update()
        .where(_rows.id == recurring_id, _rows.paused_at.is_(None))
        .values(paused_at=current_instant(), pause_reason=reason, paused_over=None, updated_at=current_instant())
    )
    return paused.rowcount == 1


def resume(connection: sa.Connection, recurring_id: int) -> bool:
    """Make requests again, its failures forgotten; False if it is unknown or not paused.

    What becomes of the fire times in between is the catch-up policy's.
    """
    resumed = connection.execute(
        recurring_exports.update()
        .where(_rows.id == recurring_id, _rows.paused_at.is_not(None))
        .values(paused_at=None, pause_reason=None, paused_over=None, failures_in_a_row=0, updated_at=current_instant())
    )
    return resumed.rowcount == 1


# The request template of a recurring export: the asked columns that each of its requests repeats.


MANAGED = RequestInput.model_fields.keys() - RequestTemplate.model_fields.keys() | {
    "id",
    "uid",
    "cancel_requested_at",
    "created_at",
}
"""The asked columns that the recurring export itself sets, or leaves at their defaults."""


def parse_template(stored: Any) -> RequestTemplate:
    """Read a template.

    Raises:
        ExportFailure: ``invalid_request``, naming the first column that is wrong.
    """
    try:
        return RequestTemplate.model_validate(stored)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
    column = str(problem["loc"][0]) if problem["loc"] else ""
    if isinstance(stored, UnreadableJson):
        what = str(stored)
    elif problem["type"] == "missing":
        what = "is missing; every request needs it"
    elif problem["type"] == "extra_forbidden":
        managed = "is set by the recurring export itself" if column in MANAGED else "is no column of a request"
        what = f"{managed}; leave it out"
    else:
        what = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}; correct it"
    place = f"request.{column}" if column else "request"
    raise ExportFailure(FailureCode.INVALID_REQUEST, f"{place}: {what}.", field="request")
