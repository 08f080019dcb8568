"""gu1's dialect: the bulk entity export by e-mail."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from export_pipeline.database.enums import RequestStatus
from export_pipeline.gateway.auth import caller, organization_of
from export_pipeline.gateway.bodies import Body, described, parsed, query_of
from export_pipeline.gateway.dialect import ApiError, Dialect, build_app, strip_default_errors
from export_pipeline.gateway.downloads import downloads, visible
from export_pipeline.gateway.row_pages import listed, read_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.gateway.submit import IdempotencyKey, submit
from export_pipeline.requests.api_keys import ApiKey
from export_pipeline.requests.models import RequestInput, RequestState, RequestTemplate, overall_progress
from export_pipeline.requests.validation.request import preflight

# What gu1's endpoints share: the dialect, camelCase, who may call for which organization.


BASE = "/entities"
DATASET = "entities"


class Model(BaseModel):
    """camelCase in JSON; snake_case is for column keys alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Gu1Error(BaseModel):
    """Every error of this API; `code` is ours, stable, beside gu1's sentence."""

    success: Literal[False]
    error: str
    code: str


DIALECT = Dialect(
    name="gu1",
    title="Bulk entity export, as gu1 speaks",
    description="Each key belongs to the organization that `X-Organization-ID` names.",
    shape=lambda refusal: {"success": False, "error": refusal.message, "code": refusal.code},
    error=Gu1Error,
    invalid_status=400,
    unauthenticated="Not authenticated",
    forbidden="Missing permission: entities:export",
    too_many="Too many requests; wait as long as Retry-After says.",
    not_found="Not found",
    names={name: to_camel(name) for name in RequestTemplate.model_fields},
)
_let_in = caller(DATASET)


def gu1_caller(
    key: Annotated[ApiKey, Depends(_let_in)],
    x_organization_id: Annotated[str | None, Header(description="Required: the key's organization.")] = None,
) -> ApiKey:
    """A caller who names the organization that the key is of; it is the key's in any case."""
    if not x_organization_id:
        raise ApiError(400, "X-Organization-ID header is required")
    if x_organization_id.strip().lower() != key.organization_id.lower():
        raise ApiError(403, "This API key does not belong to the organization that X-Organization-ID names")
    return key


Gu1Caller = Annotated[ApiKey, Depends(gu1_caller)]
# gu1's list of entities, with its documented filters.


LIMIT = 100
"""Up to 100 a request, no pages (list entities)."""
FILTERS = ("type", "country", "taxId", "externalId")


class Entities(BaseModel):
    """The entities, their fields in camelCase."""

    entities: list[dict[str, Any]]


def entity_routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["entities"])
    described = [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": "Exact."}
        for name in FILTERS
    ]
    router.get(
        BASE,
        response_model=Entities,
        responses=DIALECT.documented(400, 403),
        openapi_extra={"parameters": described},
        summary="List entities",
    )(entities)
    return router


def entities(request: Request, key: Gu1Caller, services: Serves) -> Entities:
    """The first hundred that the filters select; another parameter is refused, as it would be ignored."""
    filters = query_of(request, FILTERS)
    organization = organization_of(services, key)
    rows = RequestInput(
        organization_id=key.organization_id, dataset=DATASET, format="ndjson", recipient_emails=[], filters=filters
    )
    selection = listed(preflight(rows, services.catalog, organization), key.organization_id)
    headers = [to_camel(column.name) for column in selection.columns]
    return Entities(entities=read_page(services.source, selection, limit=LIMIT, headers=headers))


PATH = f"{BASE}/export/jobs"
MESSAGE = "The export was queued. Every recipient is mailed when it is ready."
_NOT_YET = "The files of this export are not available yet."
_GONE = "The files of this export have expired. Ask for a new export."


class JobInput(Model):
    """A bulk export by e-mail."""

    model_config = ConfigDict(extra="forbid")

    recipient_emails: list[str] = Field(min_length=1, description="At most 26 different addresses.")
    format: Literal["csv", "xlsx", "json"]
    filters: dict[str, Any] = Field(default={}, description="As the list of entities has them; {} is everything.")
    email_locale: str | None = Field(default=None, description="en, es, pt; anything else is en.")
    columns: list[str] | None = Field(default=None, description="snake_case keys in order; none: all.")
    from_sender_id: str | None = None
    from_email: str | None = None


class JobQueued(Model):
    """The job."""

    job_id: str
    message: str


class Job(Model):
    """A job as it stands."""

    job_id: str
    status: Literal["queued", "running", "completed", "failed"]
    format: str
    total_items: int | None
    processed_items: int | None
    progress: float | None = Field(description="Percent, over all steps.")
    file_count: int | None
    size_bytes: int | None
    error: str | None
    error_code: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None


class JobAnswer(Model):
    """The job."""

    success: Literal[True] = True
    job: Job


class File(Model):
    """A file, and a URL that needs no credentials."""

    url: str
    file_name: str
    size_bytes: int
    rows: int
    expires_at: datetime


class Download(File):
    """The first file's facts, and all files."""

    job_id: str
    files: list[File]


class DownloadAnswer(Model):
    """Where the files are."""

    success: Literal[True] = True
    download: Download


def build(services: Services) -> FastAPI:
    """The app."""
    app = build_app(DIALECT, services)
    app.include_router(_jobs)
    app.include_router(entity_routes())
    strip_default_errors(app)
    return app


_jobs = APIRouter(tags=["export jobs"])


@_jobs.post(
    PATH,
    status_code=202,
    response_model=JobQueued,
    responses=DIALECT.documented(400, 403, 413),
    openapi_extra=described(JobInput),
    summary="Export entities and mail them",
)
def create(
    request: Request, response: Response, key: Gu1Caller, body: Body, services: Serves,
    idempotency_key: IdempotencyKey = None,
) -> JobQueued:  # fmt: skip
    """What cannot be served or mailed is refused at once."""
    asked = parsed(request, JobInput, body)
    submitted = submit(services, key, {**asked.model_dump(), "dataset": DATASET, "notify_email": True}, idempotency_key)
    response.headers.update(submitted.headers)
    return JobQueued(job_id=submitted.request.uid, message=MESSAGE)


@_jobs.get(PATH + "/{jobId}", response_model=JobAnswer, responses=DIALECT.documented(400, 403, 404), summary="A job")
def read(jobId: str, key: Gu1Caller, services: Serves) -> JobAnswer:  # noqa: N803 - its documented name
    """Poll every few seconds until it is completed or failed."""
    return JobAnswer(job=_view(_found(services, key, jobId)))


@_jobs.get(
    PATH + "/{jobId}/download",
    response_model=DownloadAnswer,
    responses=DIALECT.documented(400, 403, 404),
    summary="Where the files are",
)
def download(request: Request, jobId: str, key: Gu1Caller, services: Serves) -> DownloadAnswer:  # noqa: N803
    """Metadata, once they are available; each URL is fresh."""
    state = _found(services, key, jobId)
    files = [
        File(
            url=one.url,
            file_name=one.file.name,
            size_bytes=one.file.bytes,
            rows=one.file.rows,
            expires_at=one.expires_at,
        )
        for one in downloads(services, request, state)
    ]
    if not files:
        raise ApiError(404, _GONE if state.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED) else _NOT_YET)
    return DownloadAnswer(download=Download(**files[0].model_dump(), job_id=state.uid, files=files))


def _found(services: Services, key: ApiKey, uid: str) -> RequestState:
    state = visible(services, key, uid)
    if state is None or state.dataset != DATASET:
        raise ApiError(404, DIALECT.not_found)
    return state


def _status(status: RequestStatus) -> Literal["queued", "running", "completed", "failed"]:
    """Four statuses: what was canceled has failed, what has expired was completed [?]."""
    match status:
        case RequestStatus.QUEUED:
            return "queued"
        case RequestStatus.RUNNING:
            return "running"
        case RequestStatus.COMPLETED | RequestStatus.EXPIRED:
            return "completed"
        case RequestStatus.FAILED | RequestStatus.CANCELED:
            return "failed"


def _view(state: RequestState) -> Job:
    done, total = overall_progress(state)
    ended_badly = state.status in (RequestStatus.FAILED, RequestStatus.CANCELED)
    return Job(
        job_id=state.uid,
        status=_status(state.status),
        format=state.format,
        total_items=state.rows_total,
        processed_items=state.row_count if state.row_count is not None else state.rows_done,
        progress=round(100 * done / total, 1) if total else None,
        file_count=state.file_count,
        size_bytes=state.byte_count,
        error=DIALECT.worded(state.message) if ended_badly and state.message else None,
        error_code=state.error_code if ended_badly else None,
        created_at=state.created_at,
        started_at=state.started_at,
        completed_at=state.completed_at,
        expires_at=state.expires_at,
    )
