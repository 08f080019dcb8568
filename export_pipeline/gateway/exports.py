"""The endpoints of ``/v1/exports``: a request's columns, progress with ETA, cancel.

What belongs here: these endpoints. What does not: sealed links' pages and health (``ours``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from export_pipeline.gateway.auth import caller, check_may_export
from export_pipeline.gateway.bodies import MAX_INTEGER, Body, described, parsed
from export_pipeline.gateway.dialect import Dialect, Refusal
from export_pipeline.gateway.downloads import downloads, visible
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests import states
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.enums import EmptyResult, RequestStatus, Stage
from export_pipeline.requests.model import RequestState
from export_pipeline.requests.progress import eta_seconds, overall_progress
from export_pipeline.requests.sealed_links import revoke_links
from export_pipeline.requests.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.requests.wall_clock import read_end

Caller = Annotated[ApiKey, Depends(caller())]


def _end_date(value: Any, parse: ValidatorFunctionWrapHandler) -> datetime | None:
    parsed: datetime | None = parse(value)
    return parsed and read_end(parsed, value)


class ExportAsked(BaseModel):
    """What may be asked of `export_requests`; docs/requests.md says what each column means.

    `window_from` and `window_before`, which recurring exports set, are left out: a caller asks by dates.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str
    format: str
    recipient_emails: list[str] = []
    compression: str | None = None
    layout: str = "default"
    columns: list[str] | None = None
    filters: dict[str, Any] = {}
    list_ids: list[str] | None = None
    segment_ids: list[str] | None = None
    start_date: datetime | None = Field(default=None, description="Wall clock of the organization, without an offset.")
    end_date: Annotated[datetime | None, WrapValidator(_end_date)] = Field(
        default=None, description="Wall clock of the organization, without an offset; a date alone is that whole day."
    )
    include: list[str] | None = None
    options: dict[str, Any] = {}
    max_file_size_mb: int = Field(default=DEFAULT_MAX_FILE_SIZE_MB, ge=1, le=MAX_INTEGER)
    notify_email: bool = True
    empty_result: EmptyResult = EmptyResult.SEND
    email_locale: str | None = None
    from_email: str | None = None
    from_sender_id: str | None = None
    webhook_url: str | None = None
    priority: int = Field(default=0, ge=-MAX_INTEGER, le=MAX_INTEGER)


class Progress(BaseModel):
    """Rows done over all stages, of how many; the rest is null until the snapshot is taken."""

    done: int
    total: int | None
    percent: float | None
    eta_seconds: float | None


class FileView(BaseModel):
    """A delivered file; its URL needs no credentials and is made anew at each read."""

    name: str
    bytes: int
    rows: int
    url: str
    url_expires_at: datetime


class ExportView(BaseModel):
    """An export as its row tells."""

    uid: str
    id: int
    dataset: str
    format: str
    status: RequestStatus
    stage: Stage | None
    attempt: int
    progress: Progress
    row_count: int | None
    byte_count: int | None
    file_count: int | None
    snapshot_at: datetime | None
    error_code: str | None
    message: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    files: list[FileView]


class Revoked(BaseModel):
    """How many links were still open."""

    revoked: int


def routes(dialect: Dialect) -> APIRouter:
    """The router."""
    router = APIRouter(prefix="/v1/exports", tags=["exports"])
    errors = dialect.documented

    @router.post(
        "",
        status_code=202,
        response_model=ExportView,
        responses=errors(400, 403, 413, 422),
        openapi_extra=described(ExportAsked),
        summary="Ask for an export",
    )
    def create(
        request: Request, response: Response, key: Caller, body: Body, services: Serves,
        idempotency_key: IdempotencyKey = None,
    ) -> ExportView:  # fmt: skip
        asked = parsed(request, ExportAsked, body)
        check_may_export(dialect, key, asked.dataset)
        submitted = submit(services, key, _columns(asked), idempotency_key)
        uid = submitted.request.uid
        response.headers.update({"Location": f"{services.settings.public_url}/v1/exports/{uid}", **submitted.headers})
        return view(services, request, submitted.request)

    @router.get("/{uid}", response_model=ExportView, responses=errors(404), summary="How far it is, and its files")
    def read(request: Request, uid: str, key: Caller, services: Serves) -> ExportView:
        return view(services, request, _visible(services, key, uid))

    @router.delete("/{uid}", status_code=202, response_model=ExportView, responses=errors(404, 409), summary="Cancel")
    def cancel(request: Request, uid: str, key: Caller, services: Serves) -> ExportView:
        _visible(services, key, uid)
        with services.database.begin() as connection:
            asked = states.request_cancel(connection, uid)
        state = _visible(services, key, uid)
        if not asked:
            raise Refusal(409, f"The export is {state.status} and cannot be canceled any more.", code="finished")
        return view(services, request, state)

    @router.delete(
        "/{uid}/links", response_model=Revoked, responses=errors(404), summary="Revoke the links that were handed out"
    )
    def revoke(uid: str, key: Caller, services: Serves) -> Revoked:
        _visible(services, key, uid)
        with services.database.begin() as connection:
            return Revoked(revoked=revoke_links(connection, uid))

    def _visible(services: Services, key: ApiKey, uid: str) -> RequestState:
        state = visible(services, key, uid)
        if state is None:
            raise Refusal(404, dialect.not_found)
        return state

    return router


def _columns(asked: ExportAsked) -> dict[str, Any]:
    columns = asked.model_dump()
    for name in ("start_date", "end_date"):
        if columns[name] is not None and columns[name].tzinfo is not None:
            raise Refusal(422, f"{name}: has an offset; give the wall clock of the organization.", field=name)
    return columns


def view(services: Services, request: Request, state: RequestState) -> ExportView:
    """An export for its asker."""
    done, total = overall_progress(state)
    eta = eta_seconds(state, utc_now())
    return ExportView(
        **{name: getattr(state, name) for name in ExportView.model_fields if name in RequestState.model_fields},
        progress=Progress(
            done=done,
            total=total,
            percent=round(100 * done / total, 1) if total else None,
            eta_seconds=None if eta is None else round(eta, 1),
        ),
        files=[
            FileView(
                name=one.file.name, bytes=one.file.bytes, rows=one.file.rows, url=one.url, url_expires_at=one.expires_at
            )
            for one in downloads(services, request, state)
        ],
    )
