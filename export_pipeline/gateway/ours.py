"""Our own API: ``/v1/exports``, the sealed links of the mails, health.

What belongs here: its errors' shape, links and health. What does not: ``/v1/exports`` (``exports``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Header
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel

from export_pipeline.delivery.disposition import content_disposition
from export_pipeline.delivery.upload import describe
from export_pipeline.gateway import exports, unsubscribing
from export_pipeline.gateway.dialect import Dialect, build_app, strip_default_errors
from export_pipeline.gateway.downloads import URL_LIFETIME
from export_pipeline.gateway.pages import STATUSES, closed_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.requests.database import utc_now
from export_pipeline.requests.migrate import current_revision, head_revision
from export_pipeline.requests.sealed_links import PATH, Closed, Opened, StoredFile, language_of_link, open_link

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


DIALECT = Dialect(
    name="ours",
    title="Exports",
    description="Ask for exports, follow them, cancel them; the links of the mails. Other dialects: "
    "[gu1](/gu1/docs), [SendGrid](/sendgrid/docs), [Cometly](/cometly/docs).",
    shape=lambda refusal: {"error": {"code": refusal.code, "message": refusal.message, "field": refusal.field}},
    error=ProblemAnswer,
    invalid_status=422,
    unauthenticated="Send a valid key: Authorization: Bearer ek_...",
    forbidden="This key may not export this dataset.",
    too_many="Too many requests; wait as long as Retry-After says.",
)


def build(services: Services, **options: Any) -> FastAPI:
    """The app."""
    app = build_app(DIALECT, services, **options)
    app.include_router(exports.routes(DIALECT))
    app.include_router(_links)
    app.include_router(unsubscribing.router)
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
def open_sealed(token: str, services: Serves, accept_language: Annotated[str | None, Header()] = None) -> Response:
    """The token is all that is needed: whoever has the mail can download the file, until it expires or is revoked."""
    with services.database.begin() as connection:
        opened = open_link(connection, token)
        locale = language_of_link(connection, token) if isinstance(opened, Closed) else None
    if isinstance(opened, Closed):
        page = closed_page(opened, locale or accept_language)
        return HTMLResponse(
            page, STATUSES[opened], {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )
    if services.serves_files:
        return _served(services, opened.file)
    return _redirected(services, opened)


def _redirected(services: Services, opened: Opened) -> Response:
    lifetime = min(URL_LIFETIME, opened.expires_at - utc_now())
    link = services.store.link(describe(opened.file), lifetime)
    return RedirectResponse(link.url, 302, {"Referrer-Policy": "no-referrer"})


def _served(services: Services, file: StoredFile) -> Response:
    headers = {"Content-Disposition": content_disposition(file.name), "Content-Length": str(file.bytes)}
    if file.content_encoding:
        headers["Content-Encoding"] = file.content_encoding
    return StreamingResponse(_chunks(services.store.open(file.key)), 200, headers, media_type=file.media_type)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


@_health.get("/healthz", summary="The process lives", response_model=Health)
def healthy() -> Health:
    """Whether to restart the process: never because of what it depends on."""
    return Health(status="ok")


@_health.get(
    "/readyz",
    summary="It can serve",
    response_model=Health,
    responses={503: {"model": Health, "description": "Not now."}},
)
def ready(services: Serves) -> Any:
    """Whether to send requests here: the database answers and is migrated."""
    try:
        revision = current_revision(services.database)
    except sa.exc.SQLAlchemyError:
        return JSONResponse({"status": "the database of the requests cannot be reached"}, 503)
    if revision != head_revision():
        return JSONResponse({"status": "the database is not up to date; run: export-pipeline db upgrade"}, 503)
    return Health(status="ok")
