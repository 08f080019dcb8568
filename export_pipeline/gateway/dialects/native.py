"""Our own API: ``/v1/exports`` and the health of the process."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidatorFunctionWrapHandler, WrapValidator

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import RequestStatus, Stage
from export_pipeline.database.migrate import is_behind
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.gateway import pages
from export_pipeline.gateway.auth import caller, check_may_export
from export_pipeline.gateway.dialect import ApiError, Dialect
from export_pipeline.gateway.downloads import downloads, visible
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import MAX_INTEGER, Body, IdempotencyKey, described, parsed, submit
from export_pipeline.requests import transitions
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.download_links import revoke_links
from export_pipeline.requests.models import RequestState, RequestTemplate, eta_seconds, overall_progress
from export_pipeline.scheduling.wall_clock import read_end

PATH = "/v1/exports"
Caller = Annotated[ApiKey, Depends(caller())]


class Problem(BaseModel):
    """An error."""

    code: str
    message: str
    field: str | None


class ProblemAnswer(BaseModel):
    """Every error of this API."""

    error: Problem


class Health(BaseModel):
    """`ok`, or the problem."""

    status: str


DIALECT = Dialect(
    name="native",
    title="Exports",
    description="Create exports, follow them, cancel them; the links of the mails. Other dialects: "
    "[gu1](gu1/docs), [SendGrid](sendgrid/docs), [Cometly](cometly/docs).",
    shape=lambda error: {"error": {"code": error.code, "message": error.message, "field": error.field}},
    error=ProblemAnswer,
    invalid_status=422,
    unauthenticated="Send a valid key: Authorization: Bearer ek_...",
    forbidden="This key may not export this dataset.",
    too_many="Too many requests; wait as long as Retry-After says.",
    page=pages.page_for_people,
)
_exports = APIRouter(tags=["exports"])
_health = APIRouter(tags=["health"])
ROUTERS = (_exports, pages.router, _health)


def _end_date(value: Any, parse: ValidatorFunctionWrapHandler) -> datetime | None:
    parsed: datetime | None = parse(value)
    return parsed and read_end(parsed, value)


class ExportInput(RequestTemplate, strict=False):
    """Columns of `export_requests` that a caller may set; docs/requests.md describes each.

    `window_from` and `window_before` are only for recurring exports: a caller sends dates.
    """

    recipient_emails: list[str] = Field(default=[])
    start_date: datetime | None = Field(default=None, description="Wall clock of the organization, without an offset.")
    end_date: Annotated[datetime | None, WrapValidator(_end_date)] = Field(
        default=None, description="Wall clock of the organization, without an offset; a date means that whole day."
    )
    max_file_size_mb: int = Field(default=DEFAULT_MAX_FILE_SIZE_MB, ge=1, le=MAX_INTEGER)
    priority: int = Field(default=0, ge=-MAX_INTEGER, le=MAX_INTEGER)


class Progress(BaseModel):
    """Rows done and their total over all stages; `total` and the rest are null until the snapshot is taken."""

    done: int
    total: int | None
    percent: float | None
    eta_seconds: float | None


class FileView(BaseModel):
    """A delivered file; its URL needs no credentials and is fresh at each read."""

    name: str
    bytes: int
    rows: int
    url: str
    url_expires_at: datetime


class ExportView(BaseModel):
    """An export."""

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
    """How many links were revoked."""

    revoked: int


@_exports.post(
    PATH,
    status_code=202,
    responses=DIALECT.documented(400, 403, 413, 422),
    openapi_extra=described(ExportInput),
    summary="Create an export",
)
def create(
    request: Request, response: Response, key: Caller, body: Body, services: Serves,
    idempotency_key: IdempotencyKey = None,
) -> ExportView:  # fmt: skip
    """The export is queued; `Location` is where to follow it."""
    export = parsed(request, ExportInput, body)
    check_may_export(DIALECT, key, export.dataset)
    created = submit(services, key, _columns(export), idempotency_key, response)
    response.headers["Location"] = f"{services.settings.public_url}{PATH}/{created.uid}"
    return _view(services, request, created)


def _columns(export: ExportInput) -> dict[str, Any]:
    columns = export.model_dump()
    for name in ("start_date", "end_date"):
        if columns[name] is not None and columns[name].tzinfo is not None:
            raise ApiError(422, f"{name}: has an offset; send the wall-clock time of the organization.", field=name)
    return columns


def _view(services: Services, request: Request, state: RequestState) -> ExportView:
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


@_exports.get(PATH + "/{uid}", responses=DIALECT.documented(404), summary="Progress and files")
def read(request: Request, uid: str, key: Caller, services: Serves) -> ExportView:
    """Each file's URL is fresh."""
    return _view(services, request, visible(services, key, DIALECT, uid))


@_exports.delete(PATH + "/{uid}", status_code=202, responses=DIALECT.documented(404, 409), summary="Cancel an export")
def cancel(request: Request, uid: str, key: Caller, services: Serves) -> ExportView:
    """Its run ends within seconds."""
    visible(services, key, DIALECT, uid)
    with services.database.begin() as connection:
        is_requested = transitions.request_cancel(connection, uid)
    state = visible(services, key, DIALECT, uid)
    if not is_requested:
        raise ApiError(409, f"The export is {state.status} and cannot be canceled any more.", code="finished")
    return _view(services, request, state)


@_exports.delete(
    PATH + "/{uid}/links", responses=DIALECT.documented(404), summary="Revoke the download links of an export"
)
def revoke(uid: str, key: Caller, services: Serves) -> Revoked:
    """Those of mails and of this API."""
    visible(services, key, DIALECT, uid)
    with services.database.begin() as connection:
        return Revoked(revoked=revoke_links(connection, uid))


@_health.get("/healthz", summary="The process runs")
async def healthy() -> Health:
    """For the decision to restart the process: it depends on no other service, and on no free thread."""
    return Health(status="ok")


@_health.get(
    "/readyz",
    summary="The process can serve",
    response_model=Health,
    responses={503: {"model": Health, "description": "Not now."}},
)
def ready(services: Serves) -> Any:
    """For the decision to send requests here: the database answers and is migrated at least to this version."""
    try:
        behind = is_behind(services.database)
    except sa.exc.SQLAlchemyError:
        return JSONResponse({"status": "the request database cannot be reached"}, 503)
    if behind:
        return JSONResponse({"status": "the database is not up to date; run: export-pipeline db upgrade"}, 503)
    return Health(status="ok")
