"""Our own API: ``/v1/exports``, the sealed links of the mails, health."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.database.enums import EmptyResult, RequestStatus, Stage
from export_pipeline.database.migrate import is_behind
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.gateway import pages
from export_pipeline.gateway.auth import caller, check_may_export
from export_pipeline.gateway.bodies import MAX_INTEGER, Body, described, parsed
from export_pipeline.gateway.dialect import ApiError, Dialect, build_app, strip_default_errors
from export_pipeline.gateway.downloads import URL_LIFETIME, downloads, is_head, visible
from export_pipeline.gateway.pages import STATUSES, closed_page, failed_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests import transitions
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.download_links import (
    PATH,
    Closed,
    Opened,
    StoredFile,
    language_of_link,
    open_link,
    revoke_links,
)
from export_pipeline.requests.models import RequestState, eta_seconds, overall_progress
from export_pipeline.scheduling.wall_clock import read_end
from export_pipeline.stages.upload import describe
from export_pipeline.storage.store import content_disposition

# The endpoints of ``/v1/exports``: a request's columns, progress with ETA, cancel.


Caller = Annotated[ApiKey, Depends(caller())]


def _end_date(value: Any, parse: ValidatorFunctionWrapHandler) -> datetime | None:
    parsed: datetime | None = parse(value)
    return parsed and read_end(parsed, value)


class ExportInput(BaseModel):
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
        openapi_extra=described(ExportInput),
        summary="Ask for an export",
    )
    def create(
        request: Request, response: Response, key: Caller, body: Body, services: Serves,
        idempotency_key: IdempotencyKey = None,
    ) -> ExportView:  # fmt: skip
        asked = parsed(request, ExportInput, body)
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
            asked = transitions.request_cancel(connection, uid)
        state = _visible(services, key, uid)
        if not asked:
            raise ApiError(409, f"The export is {state.status} and cannot be canceled any more.", code="finished")
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
            raise ApiError(404, dialect.not_found)
        return state

    return router


def _columns(asked: ExportInput) -> dict[str, Any]:
    columns = asked.model_dump()
    for name in ("start_date", "end_date"):
        if columns[name] is not None and columns[name].tzinfo is not None:
            raise ApiError(422, f"{name}: has an offset; give the wall clock of the organization.", field=name)
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


_CHUNK = 2**18


class Problem(BaseModel):
    """What went wrong."""

    code: str
    message: str
    field: str | None


class ProblemAnswer(BaseModel):
    """Every error of this API."""

    error: Problem


class Health(BaseModel):
    """`ok`, or what is missing."""

    status: str


def _page_for_people(request: Request, refusal: ApiError) -> Response | None:
    """What somebody sees who clicked a link of a mail, whatever went wrong; programs get JSON."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if not path.startswith((PATH, pages.PATH)):
        return None
    locale = request.headers.get("accept-language")
    page = closed_page(Closed.UNKNOWN, locale) if refusal.status == 404 else failed_page(locale)
    answer = _page(page, refusal.status)
    answer.headers.update(refusal.headers)
    return answer


DIALECT = Dialect(
    name="ours",
    title="Exports",
    description="Ask for exports, follow them, cancel them; the links of the mails. Other dialects: "
    "[gu1](gu1/docs), [SendGrid](sendgrid/docs), [Cometly](cometly/docs).",
    shape=lambda refusal: {"error": {"code": refusal.code, "message": refusal.message, "field": refusal.field}},
    error=ProblemAnswer,
    invalid_status=422,
    unauthenticated="Send a valid key: Authorization: Bearer ek_...",
    forbidden="This key may not export this dataset.",
    too_many="Too many requests; wait as long as Retry-After says.",
    page=_page_for_people,
)


def build(services: Services, **options: Any) -> FastAPI:
    """The app."""
    app = build_app(DIALECT, services, **options)
    app.include_router(routes(DIALECT))
    app.include_router(_links)
    app.include_router(pages.router)
    app.include_router(_health)
    strip_default_errors(app)
    return app


_links = APIRouter(tags=["links"])
_health = APIRouter(tags=["health"])
_PAGE: dict[str, Any] = {"content": {"text/html": {}}}


@_links.get(
    PATH + "{token}",
    status_code=302,
    response_class=Response,
    summary="Open a sealed link",
    responses={
        200: {"description": "The file itself, where the store is a directory.", "content": {"*/*": {}}},
        302: {"description": "To a fresh URL of the file."},
        404: {"description": "Unknown.", **_PAGE},
        410: {"description": "Expired or revoked.", **_PAGE},
    },
)
def open_mailed_link(
    request: Request, token: str, services: Serves, accept_language: Annotated[str | None, Header()] = None
) -> Response:
    """The token is all that is needed: whoever has the mail can download the file, until it expires or is revoked.

    HEAD tells the file's size, name and type, and counts nothing.
    """
    looks = is_head(request)
    with services.database.connect() as connection, connection.begin() as transaction:
        opened = open_link(connection, token, look=looks)
        if isinstance(opened, Opened) and services.serves_files and services.store.size(opened.file.key) is None:
            transaction.rollback()
            opened = Closed.EXPIRED
    if isinstance(opened, Closed):
        with reading(services.database) as connection:
            locale = language_of_link(connection, token)
        return _page(closed_page(opened, locale or accept_language), STATUSES[opened])
    if looks:
        length = {"Content-Length": str(opened.file.bytes)}
        return Response(None, 200, {**_headers(opened.file), **length}, opened.file.media_type)
    if services.serves_files:
        return _served(services, opened.file)
    return _redirected(services, opened)


def _page(html: str, status: int) -> HTMLResponse:
    return HTMLResponse(html, status, {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _redirected(services: Services, opened: Opened) -> Response:
    lifetime = min(URL_LIFETIME, opened.expires_at - utc_now())
    link = services.store.link(describe(opened.file), lifetime)
    return RedirectResponse(link.url, 302, {"Referrer-Policy": "no-referrer"})


def _served(services: Services, file: StoredFile) -> Response:
    path = url2pathname(urlsplit(services.store.object_url(file.key)).path)
    answer = FileResponse(path, 200, _headers(file), file.media_type)
    answer.chunk_size = _CHUNK
    return answer


def _headers(file: StoredFile) -> dict[str, str]:
    encoding = {"Content-Encoding": file.content_encoding} if file.content_encoding else {}
    return {"Content-Disposition": content_disposition(file.name), "Accept-Ranges": "bytes", **encoding}


@_health.get("/healthz", summary="The process lives", response_model=Health)
async def healthy() -> Health:
    """Whether to restart the process: never because of what it depends on, nor because all threads wait for that."""
    return Health(status="ok")


@_health.get(
    "/readyz",
    summary="It can serve",
    response_model=Health,
    responses={503: {"model": Health, "description": "Not now."}},
)
def ready(services: Serves) -> Any:
    """Whether to send requests here: the database answers and is migrated, at least as far as this version."""
    try:
        behind = is_behind(services.database)
    except sa.exc.SQLAlchemyError:
        return JSONResponse({"status": "the database of the requests cannot be reached"}, 503)
    if behind:
        return JSONResponse({"status": "the database is not up to date; run: export-pipeline db upgrade"}, 503)
    return Health(status="ok")
