"""One request as Python sees it, and reading it from its row."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, cast
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from export_pipeline.database.enums import UNFINISHED, EmptyResult, RequestStatus, Stage
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB, export_requests
from export_pipeline.database.types import RepeatedKey
from export_pipeline.failures import ExportFailure, FailureCode


class RequestState(BaseModel):
    """What a poller wants to know of a request: the told columns."""

    model_config = ConfigDict(frozen=True)

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


class ExportRequest(RequestState):
    """A row of ``export_requests``: what was asked, then what the pipeline tells."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    requested_by: str | None
    compression: str | None
    layout: str
    columns: list[str] | None
    filters: dict[str, Any]
    list_ids: list[str] | None
    segment_ids: list[str] | None
    start_date: datetime | None
    end_date: datetime | None
    window_from: datetime | None
    window_before: datetime | None
    include: list[str] | None
    options: dict[str, Any]
    max_file_size_mb: int
    notify_email: bool
    recipient_emails: list[str]
    empty_result: Annotated[EmptyResult, Field(strict=False)]
    email_locale: str | None
    from_email: str | None
    from_sender_id: str | None
    webhook_url: str | None
    idempotency_key: str | None
    priority: int
    recurring_export_id: int | None
    scheduled_for: datetime | None
    claimed_at: datetime | None
    claim_id: str | None
    uncounted_attempts: int
    not_before: datetime | None
    postponed_at: datetime | None
    postponements: int


def draft_request(**asked: Any) -> ExportRequest:
    """A request that is no row and never will be: to ask the rules what a list endpoint would select."""
    nothing = dict.fromkeys(ExportRequest.model_fields)
    defaults: dict[str, Any] = {
        "uid": str(UUID(int=0)),
        "layout": "default",
        "filters": {},
        "options": {},
        "max_file_size_mb": DEFAULT_MAX_FILE_SIZE_MB,
        "recipient_emails": [],
        "notify_email": False,
    }
    return ExportRequest.model_construct(**{**nothing, **defaults, **asked})


def load_request(connection: sa.Connection, request_id: int) -> ExportRequest:
    """Read a whole row.

    Raises:
        LookupError: there is no such row.
        ExportFailure: ``invalid_request``, naming the column whose value cannot be read.
    """
    by_id = export_requests.c.id == request_id
    try:
        row = connection.execute(sa.select(*map(_as_stored, export_requests.c)).where(by_id)).first()
        if row is None:
            raise LookupError(f"no row {request_id} in export_requests")
        return ExportRequest(
            **{name: _value(name, value) for name, value in zip(export_requests.c.keys(), row, strict=True)}
        )
    except (ValueError, TypeError, RecursionError):
        # SQLite stores anything anywhere, JSON may be nested for ever, and the failure has to name the column.
        raise _unreadable(connection, by_id) from None


def _unreadable(connection: sa.Connection, by_id: sa.ColumnElement[bool]) -> ExportFailure:
    for column in export_requests.c:
        stored = None
        try:
            stored = connection.execute(sa.select(_as_stored(column)).where(by_id)).scalar_one()
            _value(column.name, stored)
        except (ValueError, TypeError, RecursionError):
            break
    problem = stored if isinstance(stored, RepeatedKey) else f"the value is not a {_expected(column.name)}"
    return ExportFailure(
        FailureCode.INVALID_REQUEST,
        f"{column.name}: {problem}. Ask again with a correct one.",
        field=column.name,
    )


def _value(name: str, value: Any) -> Any:
    if isinstance(export_requests.c[name].type, sa.Boolean) and value in (0, 1):
        value = bool(value)
    return _ADAPTERS[name].validate_python(value)


def _as_stored(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    # SQLAlchemy takes whatever SQLite holds for true or false: 'false' would be true.
    return sa.type_coerce(column, sa.Integer()) if isinstance(column.type, sa.Boolean) else column


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(cast("Any", Annotated[field.annotation, field]), config=ConfigDict(strict=True))
    for name, field in ExportRequest.model_fields.items()
}


def _expected(name: str) -> str:
    annotation = str(export_requests.c[name].type).lower()
    shapes = {"recipient_emails": "JSON array of strings", "filters": "JSON object", "options": "JSON object"}
    lists = ("columns", "list_ids", "segment_ids", "include")
    return shapes.get(name) or ("JSON array of strings" if name in lists else f"value of type {annotation}")


def has_uid(uid: str) -> sa.ColumnElement[bool]:
    """The condition that finds a request by its ``uid``; text that is no UUID finds none."""
    return export_requests.c.uid == str(UUID(uid)) if is_uuid(uid) else sa.false()


def is_uuid(text: str) -> bool:
    """Whether text is a UUID, in any of its spellings."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def is_canonical_uuid(text: str) -> bool:
    """Whether text is a UUID as the database spells it: in lower case, with hyphens."""
    return is_uuid(text) and str(UUID(text)) == text


def read_state(connection: sa.Connection, uid: str) -> RequestState | None:
    """The state of a request by its ``uid``; None if there is none or the text is no UUID."""
    return find_state(connection, has_uid(uid))


def find_state(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> RequestState | None:
    """The state of the first request that a condition holds for; None if there is none."""
    columns = [export_requests.c[name] for name in RequestState.model_fields]
    row = connection.execute(sa.select(*columns).where(condition)).mappings().first()
    return RequestState(**{name: _readable(value) for name, value in row.items()}) if row else None


def _readable(value: Any) -> Any:
    """SQLite takes bytes for text, and a row of them must still be shown as what it is: failed."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def insert_and_load(connection: sa.Connection, **asked: Any) -> ExportRequest:
    """Insert a request and read it back, with what the database made of it.

    Raises:
        ExportFailure: as ``load_request``.
    """
    inserted = connection.execute(export_requests.insert().values(**asked).returning(export_requests.c.id))
    return load_request(connection, inserted.scalar_one())


def insert_request(connection: sa.Connection, **asked: Any) -> str:
    """Insert a request as an application does, with the database's defaults for what is not given; returns its uid."""
    inserted = connection.execute(export_requests.insert().values(**asked).returning(export_requests.c.uid))
    return str(inserted.scalar_one())


# How far a request is, over all its stages.


_COUNTED_STAGES = (Stage.FILTER_ENTITIES, Stage.SERIALIZE, Stage.UPLOAD)


def overall_progress(state: RequestState) -> tuple[int, int | None]:
    """Rows done over all three counted stages, and their total; the total is unknown before the snapshot.

    Never the whole before the request is completed: the link must work first.
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
    """About how long a running request still takes, if it goes on as so far; None before that can be told."""
    done, total = overall_progress(state)
    if state.status is not RequestStatus.RUNNING or state.started_at is None or not done or total is None:
        return None
    elapsed = (now - state.started_at).total_seconds()
    return max(0.0, elapsed * (total - done) / done)


# An organization's requests of late, for lists of them.


LISTED = (*UNFINISHED, RequestStatus.COMPLETED, RequestStatus.FAILED)
"""In flight or ended lately; what was canceled or has expired has nothing more to tell."""


def _texts(value: Any) -> list[str]:
    # SQLite may hold any JSON there.
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


class RecentRequest(RequestState):
    """A request's state, and the lists and segments that it asked for."""

    requested_by: str | None
    list_ids: Annotated[list[str], BeforeValidator(_texts)]
    segment_ids: Annotated[list[str], BeforeValidator(_texts)]


def recent_requests(
    connection: sa.Connection, organization_id: str, dataset: str, *, limit: int
) -> list[RecentRequest]:
    """The newest requests of a dataset, oldest of them first (SendGrid, list exports: the newest is the last)."""
    columns = export_requests.c
    found = connection.execute(
        sa.select(*[columns[name] for name in RecentRequest.model_fields])
        .where(columns.organization_id == organization_id, columns.dataset == dataset, columns.status.in_(list(LISTED)))
        .order_by(columns.id.desc())
        .limit(limit)
    ).mappings()
    return [RecentRequest(**row) for row in found][::-1]
