"""The links that a person opens from a mail, and their pages: friendly, in the reader's language, without scripts."""

from __future__ import annotations

from html import escape
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.gateway.dialect import ApiError
from export_pipeline.gateway.downloads import URL_LIFETIME, is_head
from export_pipeline.gateway.services import Serves
from export_pipeline.messaging.texts import CATALOG, language_of
from export_pipeline.recurring.unsubscribe import leave, verify_token
from export_pipeline.requests.download_links import PATH, Closed, Opened, StoredFile, language_of_link, open_link
from export_pipeline.stages.upload import describe
from export_pipeline.storage.store import content_disposition

Language = Annotated[str | None, Header()]
UNSUBSCRIBE_PATH = "/unsubscribe/"
router = APIRouter(tags=["links"])
_PAGE: dict[str, Any] = {"content": {"text/html": {}}}
_UNSUBSCRIBE: dict[str, Any] = {
    "response_class": HTMLResponse,
    "responses": {404: {"description": "No such link.", **_PAGE}},
}
_CHUNK = 2**18
"""Bytes of a served file that are read at a time."""


def _page(name: str, locale: str | None, status: int = 200) -> HTMLResponse:
    """A page in the language of the mail, or of the reader's browser."""
    language = language_of((locale or "").split(",")[0].split(";")[0])
    texts = CATALOG[language]
    title, text = escape(texts[f"page_{name}_title"]), escape(texts[f"page_{name}_text"])
    form = f'<form method="post"><button>{escape(texts["page_ask_button"])}</button></form>' if name == "ask" else ""
    html = (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{title}</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;"
        "max-width:34rem;margin:15vh auto;padding:0 1.5rem}h1{font-size:1.5rem;line-height:1.25}</style></head>"
        f"<body><main><h1>{title}</h1><p>{text}</p>{form}</main></body></html>\n"
    )
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(html, status, headers)


def page_for_people(request: Request, error: ApiError) -> Response | None:
    """The error page for a person who opened a link of a mail; None for programs, which get JSON."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    if not path.startswith((PATH, UNSUBSCRIBE_PATH)):
        return None
    name = Closed.UNKNOWN.value if error.status == 404 else "failed"
    answer = _page(name, request.headers.get("accept-language"), error.status)
    answer.headers.update(error.headers)
    return answer


@router.get(
    PATH + "{token}",
    status_code=302,
    response_class=Response,
    summary="Open a download link",
    responses={
        200: {"description": "The file itself, where the store is a directory.", "content": {"*/*": {}}},
        302: {"description": "To a fresh URL of the file."},
        404: {"description": "Unknown.", **_PAGE},
        410: {"description": "Expired or revoked.", **_PAGE},
    },
)
def open_mailed_link(request: Request, token: str, services: Serves, accept_language: Language = None) -> Response:
    """Needs only the token: anyone with the mail can download the file, until it expires or is revoked.

    HEAD returns the file's size, name and type, and counts nothing.
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
        return _page(opened.value, locale or accept_language, 404 if opened is Closed.UNKNOWN else 410)
    if looks:
        length = {"Content-Length": str(opened.file.bytes)}
        return Response(None, 200, {**_headers(opened.file), **length}, opened.file.media_type)
    if services.serves_files:
        path = url2pathname(urlsplit(services.store.object_url(opened.file.key)).path)
        answer = FileResponse(path, 200, _headers(opened.file), opened.file.media_type)
        answer.chunk_size = _CHUNK
        return answer
    lifetime = min(URL_LIFETIME, opened.expires_at - utc_now())
    link = services.store.link(describe(opened.file), lifetime)
    return RedirectResponse(link.url, 302, {"Referrer-Policy": "no-referrer"})


def _headers(file: StoredFile) -> dict[str, str]:
    encoding = {"Content-Encoding": file.content_encoding} if file.content_encoding else {}
    return {"Content-Disposition": content_disposition(file.name), "Accept-Ranges": "bytes", **encoding}


@router.get(UNSUBSCRIBE_PATH + "{token}", summary="Page to leave a recurring export", **_UNSUBSCRIBE)
def ask(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """Changes nothing."""
    key = services.settings.signing_key.get_secret_value()
    is_valid = bool(key) and verify_token(key, token) is not None
    return _page("ask", accept_language) if is_valid else _page("unknown", accept_language, 404)


@router.post(UNSUBSCRIBE_PATH + "{token}", summary="Leave a recurring export", **_UNSUBSCRIBE)
def unsubscribe(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """May be repeated; the result is the same."""
    key = services.settings.signing_key.get_secret_value()
    with services.database.begin() as connection:
        left = bool(key) and leave(connection, key, token)
    return _page("left", accept_language) if left else _page("unknown", accept_language, 404)
