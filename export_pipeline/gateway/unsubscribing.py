"""The links by which recipients leave a recurring export.

What belongs here: the two ways in. What does not: tokens and who has left (requests.unsubscribe), words (``pages``).

GET only asks, for programs follow links in mails; POST leaves, from the page's button or from a mail client's own
(RFC 8058, one-click: the body says ``List-Unsubscribe=One-Click`` and is not looked at).
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import HTMLResponse

from export_pipeline.gateway.pages import closed_page, leaving_page
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.requests.sealed_links import Closed
from export_pipeline.requests.unsubscribe import leave, verify_token

Language = Annotated[str | None, Header()]

PATH = "/unsubscribe/"

router = APIRouter(tags=["links"])
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {404: {"description": "No such link.", "content": {"text/html": {}}}}


@router.get(
    PATH + "{token}",
    response_class=HTMLResponse,
    responses=_RESPONSES,
    summary="Ask whether to leave a recurring export",
)
def ask(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """Changes nothing."""
    key = _key(services)
    if not key or verify_token(key, token) is None:
        return _unknown(accept_language)
    return HTMLResponse(leaving_page("ask", accept_language), headers=_HEADERS)


@router.post(
    PATH + "{token}",
    response_class=HTMLResponse,
    responses=_RESPONSES,
    summary="Leave a recurring export",
)
def unsubscribe(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """Once or often, it is the same."""
    key = _key(services)
    with services.database.begin() as connection:
        left = bool(key) and leave(connection, key, token)
    return HTMLResponse(leaving_page("left", accept_language), headers=_HEADERS) if left else _unknown(accept_language)


def _key(services: Services) -> str:
    return services.settings.signing_key.get_secret_value()


def _unknown(locale: str | None) -> HTMLResponse:
    return HTMLResponse(closed_page(Closed.UNKNOWN, locale), 404, _HEADERS)
