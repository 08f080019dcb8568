"""The models of one request, and the statements that insert and read it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from export_pipeline.database.enums import UNFINISHED, EmptyResult, RequestStatus, Stage
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB, export_requests
from export_pipeline.database.types import UnreadableJson, current_instant
from export_pipeline.failures import ExportFailure, FailureCode

_Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]


class RequestTemplate(BaseModel, frozen=True, strict=True, extra="forbid", hide_input_in_errors=True):
    """The input columns that every request of a recurring export repeats; the defaults are those of the table."""

    dataset: str
    format: str
    recipient_emails: list[str]
    compression: str | None = None
    layout: str = "default"
    columns: list[str] | None = None
    filters: dict[str, Any] = {}
    list_ids: list[str] | None = None
    segment_ids: list[str] | None = None
    include: list[str] | None = None
    options: dict[str, Any] = {}
    max_file_size_mb: _Int32 = DEFAULT_MAX_FILE_SIZE_MB
    notify_email: bool = True
    empty_result: Annotated[EmptyResult, Field(strict=False)] = EmptyResult.SEND
    email_locale: str | None = None
    from_email: str | None = None
    from_sender_id: str | None = None
    webhook_url: str | None = None
    priority: _Int32 = 0

    def given(self) -> dict[str, Any]:
        """The columns that it sets, without the defaults."""
        return self.model_dump(exclude_unset=True)


class RequestInput(RequestTemplate):
    """The input columns of a request: what an application writes. It can be validated before there is a row."""

    organization_id: str
    requested_by: str | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    window_from: datetime | None = None
    window_before: datetime | None = None
    idempotency_key: str | None = None
    recurring_export_id: int | None = None
    scheduled_for: datetime | None = None


class RequestState(BaseModel, frozen=True):
    """The state of a request, for clients that poll it."""

    id: int
    uid: str
    organization_id: str
    dataset: str
    format: str
    status: Annotated[RequestStatus, Field(strict=False)]
    stage: Annotated[Stage | None, Field(strict=False)]
    attempt: int
    run_id: str | None
    rows_done: int
    rows_total: int | None
    row_count: int | None
    byte_count: int | None
    file_count: int | None
    snapshot_at: datetime | None
    manifest_key: str | None
    error_code: str | None
    message: str | None
    heartbeat_at: datetime | None
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    updated_at: datetime


class ExportRequest(RequestInput, RequestState):
    """A row of ``export_requests``: its input and its state."""

    claimed_at: datetime | None
    claim_id: str | None
    uncounted_attempts: int
    not_before: datetime | None
    postponed_at: datetime | None
    postponements: int


def load_request(connection: sa.Connection, request_id: int) -> ExportRequest:
    """Read a whole row.

    Raises:
        LookupError: there is no such row.
        ExportFailure: ``invalid_request``, naming the column whose JSON has the wrong shape or cannot be read.
    """
    row = connection.execute(sa.select(export_requests).where(export_requests.c.id == request_id)).mappings().first()
    if row is None:
        raise LookupError(f"no row {request_id} in export_requests")
    try:
        return ExportRequest(**row)
    except ValidationError as error:
        column = str(error.errors(include_input=False, include_url=False)[0]["loc"][0])
    problem = row[column]
    if not isinstance(problem, UnreadableJson):
        kind = str(export_requests.c[column].type).lower()
        problem = f"the value is not a {_JSON_SHAPES.get(column, f'value of type {kind}')}"
    raise ExportFailure(
        FailureCode.INVALID_REQUEST, f"{column}: {problem}. Correct it and send a new request.", field=column
    )


_JSON_SHAPES = {
    **dict.fromkeys(("recipient_emails", "columns", "list_ids", "segment_ids", "include"), "JSON array of strings"),
    **dict.fromkeys(("filters", "options"), "JSON object"),
}


def has_uid(uid: str) -> sa.ColumnElement[bool]:
    """The condition that finds a request by its ``uid``. Text that is not a UUID matches no request."""
    return export_requests.c.uid == str(UUID(uid)) if is_uuid(uid) else sa.false()


def is_uuid(text: str) -> bool:
    """Whether text is a UUID, in any of its spellings."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def is_canonical_uuid(text: str) -> bool:
    """Whether text is a UUID in the spelling of the database: in lower case, with hyphens."""
    return is_uuid(text) and str(UUID(text)) == text


def change_request(connection: sa.Connection, *conditions: sa.ColumnElement[bool], **values: Any) -> sa.Row[Any] | None:
    """Change the request that meets the conditions; returns its identity, or None if there is none."""
    rows = export_requests.c
    return connection.execute(
        export_requests.update()
        .where(*conditions)
        .values(**values, updated_at=current_instant())
        .returning(rows.uid, rows.organization_id, rows.attempt, rows.claim_id, rows.rows_total, rows.manifest_key)
    ).first()


def read_state(connection: sa.Connection, uid: str) -> RequestState | None:
    """The state of a request by its ``uid``; None if there is no such request or the text is not a UUID."""
    return find_state(connection, has_uid(uid))


def status_of(connection: sa.Connection, request_id: int) -> str | None:
    """The current status of a request; None if there is no such request."""
    return connection.execute(sa.select(export_requests.c.status).where(export_requests.c.id == request_id)).scalar()


def find_state(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> RequestState | None:
    """The state of the first request that meets a condition; None if there is none."""
    columns = [export_requests.c[name] for name in RequestState.model_fields]
    row = connection.execute(sa.select(*columns).where(condition)).mappings().first()
    return RequestState(**row) if row else None


def insert_and_load(connection: sa.Connection, **values: Any) -> ExportRequest:
    """Insert a request, and read the whole row back as ``load_request`` does."""
    inserted = connection.execute(export_requests.insert().values(**values).returning(export_requests.c.id))
    return load_request(connection, inserted.scalar_one())


def insert_request(connection: sa.Connection, **values: Any) -> str:
    """Insert a request as an application does; columns that are not given get their defaults. Returns its ``uid``."""
    inserted = connection.execute(export_requests.insert().values(**values).returning(export_requests.c.uid))
    return str(inserted.scalar_one())


_COUNTED_STAGES = (Stage.FILTER_ENTITIES, Stage.SERIALIZE, Stage.UPLOAD)


def overall_progress(state: RequestState) -> tuple[int, int | None]:
    """Rows done over all three counted stages, and their total; the total is None before the snapshot.

    The two are equal only when the request is completed, because the link must work first.
    """
    if state.rows_total is None:
        return 0, None
    total = state.rows_total * len(_COUNTED_STAGES)
    if state.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED):
        return total, total
    if state.stage in _COUNTED_STAGES:
        return _COUNTED_STAGES.index(state.stage) * state.rows_total + min(state.rows_done, state.rows_total), total
    return (total, total + 1) if state.stage is Stage.PUBLISH else (0, total)


def eta_seconds(state: RequestState, now: datetime) -> float | None:
    """Estimate the seconds that a running request still takes, at its speed so far; None before it has a speed."""
    done, total = overall_progress(state)
    if state.status is not RequestStatus.RUNNING or state.started_at is None or not done or total is None:
        return None
    elapsed = (now - state.started_at).total_seconds()
    return max(0.0, elapsed * (total - done) / done)


LISTED = (*UNFINISHED, RequestStatus.COMPLETED, RequestStatus.FAILED)
"""Lists show these; a canceled or expired request has no news."""


def _texts(value: Any) -> list[str]:
    # The column may hold any JSON.
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


class RecentRequest(RequestState):
    """The state of a request, with its lists and segments."""

    requested_by: str | None
    list_ids: Annotated[list[str], BeforeValidator(_texts)]
    segment_ids: Annotated[list[str], BeforeValidator(_texts)]


def recent_requests(
    connection: sa.Connection, organization_id: str, dataset: str, *, limit: int
) -> list[RecentRequest]:
    """The newest requests of a dataset, in ascending order (SendGrid, list exports: the newest is the last)."""
    columns = export_requests.c
    found = connection.execute(
        sa.select(*[columns[name] for name in RecentRequest.model_fields])
        .where(columns.organization_id == organization_id, columns.dataset == dataset, columns.status.in_(list(LISTED)))
        .order_by(columns.id.desc())
        .limit(limit)
    ).mappings()
    return [RecentRequest(**row) for row in found][::-1]
