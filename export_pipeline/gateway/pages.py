"""The links that a person opens from a mail, and their pages: friendly, in the reader's language, without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from export_pipeline.database.engine import reading, utc_now
from export_pipeline.gateway.dialect import ApiError
from export_pipeline.gateway.downloads import URL_LIFETIME, is_head
from export_pipeline.gateway.services import Serves, Services
from export_pipeline.messaging.texts import language_of
from export_pipeline.recurring.unsubscribe import leave, verify_token
from export_pipeline.requests.download_links import (
    PATH,
    Closed,
    Opened,
    StoredFile,
    language_of_link,
    open_link,
)
from export_pipeline.stages.upload import describe
from export_pipeline.storage.store import content_disposition

Language = Annotated[str | None, Header()]
UNSUBSCRIBE_PATH = "/unsubscribe/"
router = APIRouter(tags=["links"])
_PAGE: dict[str, Any] = {"content": {"text/html": {}}}
_NO_SUCH_LINK: dict[int | str, dict[str, Any]] = {404: {"description": "No such link.", **_PAGE}}
_CHUNK = 2**18
"""Bytes of a served file that are read at a time."""
_TEXTS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "en": {
        "expired": (
            "These files are no longer here",
            (
                "The link worked for as long as the mail said, and the files are deleted now. Ask for a new "
                "export to get fresh ones."
            ),
        ),
        "revoked": (
            "This link was switched off",
            "Somebody of the organization that made this export has revoked its links. Ask them for a new one.",
        ),
        "unknown": (
            "This link leads nowhere",
            "Perhaps a part of it was lost on the way. Copy the whole link from the mail and try again.",
        ),
        "failed": (
            "This did not work",
            "It cannot be opened now. Try again in a few minutes. If it fails again, tell the sender of the mail.",
        ),
        "ask": ("Stop these mails?", "You will get no more mails of this recurring export."),
        "left": ("You are unsubscribed", "There will be no more mails of this recurring export."),
    },
    "es": {
        "expired": (
            "Estos archivos ya no están aquí",
            (
                "El enlace funcionó hasta la fecha que indicaba el correo y los archivos ya se borraron. Pide una "
                "nueva exportación para obtenerlos de nuevo."
            ),
        ),
        "revoked": (
            "Este enlace fue desactivado",
            "Alguien de la organización que hizo esta exportación revocó sus enlaces. Pídele uno nuevo.",
        ),
        "unknown": (
            "Este enlace no lleva a ninguna parte",
            "Quizá se perdió una parte en el camino. Copia el enlace completo del correo e inténtalo de nuevo.",
        ),
        "failed": (
            "Esto no funcionó",
            "No se puede abrir ahora. Inténtalo de nuevo en unos minutos. Si falla otra vez, avisa al remitente.",
        ),
        "ask": ("¿Dejar de recibir estos correos?", "No recibirás más correos de esta exportación periódica."),
        "left": ("Te has dado de baja", "No habrá más correos de esta exportación periódica."),
    },
    "pt": {
        "expired": (
            "Estes arquivos não estão mais aqui",
            (
                "O link funcionou até a data indicada no e-mail e os arquivos já foram apagados. Peça uma nova "
                "exportação para obtê-los de novo."
            ),
        ),
        "revoked": (
            "Este link foi desativado",
            "Alguém da organização que fez esta exportação revogou os links. Peça um novo a essa pessoa.",
        ),
        "unknown": (
            "Este link não leva a lugar nenhum",
            "Talvez uma parte tenha se perdido no caminho. Copie o link inteiro do e-mail e tente de novo.",
        ),
        "failed": (
            "Isto não funcionou",
            (
                "Não é possível abrir agora. Tente de novo em alguns minutos. Se falhar outra vez, avise quem "
                "enviou o e-mail."
            ),
        ),
        "ask": ("Parar de receber estes e-mails?", "Você não receberá mais e-mails desta exportação periódica."),
        "left": ("Você cancelou a inscrição", "Não haverá mais e-mails desta exportação periódica."),
    },
}
"""Title and text of each page, by language."""
_BUTTONS = {"en": "Unsubscribe", "es": "Darme de baja", "pt": "Cancelar inscrição"}


def _page(name: str, locale: str | None, status: int = 200) -> HTMLResponse:
    """A page in the language of the mail, or of the reader's browser."""
    language = language_of((locale or "").split(",")[0].split(";")[0])
    title, text = map(escape, _TEXTS[language][name])
    form = f'<form method="post"><button>{escape(_BUTTONS[language])}</button></form>' if name == "ask" else ""
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
        return _served(services, opened.file)
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


@router.get(
    UNSUBSCRIBE_PATH + "{token}",
    response_class=HTMLResponse,
    responses=_NO_SUCH_LINK,
    summary="Page to leave a recurring export",
)
def ask(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """Changes nothing."""
    key = services.settings.signing_key.get_secret_value()
    is_valid = bool(key) and verify_token(key, token) is not None
    return _page("ask", accept_language) if is_valid else _page("unknown", accept_language, 404)


@router.post(
    UNSUBSCRIBE_PATH + "{token}",
    response_class=HTMLResponse,
    responses=_NO_SUCH_LINK,
    summary="Leave a recurring export",
)
def unsubscribe(token: str, services: Serves, accept_language: Language = None) -> HTMLResponse:
    """May be repeated; the result is the same."""
    key = services.settings.signing_key.get_secret_value()
    with services.database.begin() as connection:
        left = bool(key) and leave(connection, key, token)
    return _page("left", accept_language) if left else _page("unknown", accept_language, 404)
