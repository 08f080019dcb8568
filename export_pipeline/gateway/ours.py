"""Our own API: ``/v1/exports``, the sealed links of the mails, health.

What belongs here: its errors' shape, links and health. What does not: ``/v1/exports`` (``exports``).
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel

from export_pipeline.delivery.disposition import content_disposition
from export_pipeline.delivery.upload import describe
from export_pipeline.gateway import exports, unsubscribing
from export_pipeline.gateway.dialect import Dialect, Refusal, build_app, strip_default_errors
from export_pipeline.gateway.downloads import URL_LIFETIME, is_head
from export_pipeline.gateway.pages import STATUSES, closed_page, failed_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.requests.database import reading, utc_now
from export_pipeline.requests.migrate import is_behind
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


def _page_for_people(request: Request, refusal: Refusal) -> Response | None:
    """What somebody sees who clicked a link of a mail, whatever went wrong; programs get JSON."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if not path.startswith((PATH, unsubscribing.PATH)):
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
def open_sealed(
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
