"""The pages that a person sees who clicks a link of a mail: kind, in their language, no script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi.responses import HTMLResponse

from export_pipeline.gateway.services import Serves, Services
from export_pipeline.messaging.texts import language_of
from export_pipeline.recurring.unsubscribe import leave, verify_token
from export_pipeline.requests.download_links import Closed

_TEXTS: Mapping[str, Mapping[Closed, tuple[str, str]]] = {
    "en": {
        Closed.EXPIRED: (
            "These files are no longer here",
            (
                "The link worked for as long as the mail said, and the files are deleted now. "
                "Ask for a new export to get fresh ones."
            ),
        ),
        Closed.REVOKED: (
            "This link was switched off",
            "Somebody of the organization that made this export has revoked its links. Ask them for a new one.",
        ),
        Closed.UNKNOWN: (
            "This link leads nowhere",
            "Perhaps a part of it was lost on the way. Copy the whole link from the mail and try again.",
        ),
    },
    "es": {
        Closed.EXPIRED: (
            "Estos archivos ya no están aquí",
            (
                "El enlace funcionó hasta la fecha que indicaba el correo y los archivos ya se borraron. "
                "Pide una nueva exportación para obtenerlos de nuevo."
            ),
        ),
        Closed.REVOKED: (
            "Este enlace fue desactivado",
            "Alguien de la organización que hizo esta exportación revocó sus enlaces. Pídele uno nuevo.",
        ),
        Closed.UNKNOWN: (
            "Este enlace no lleva a ninguna parte",
            "Quizá se perdió una parte en el camino. Copia el enlace completo del correo e inténtalo de nuevo.",
        ),
    },
    "pt": {
        Closed.EXPIRED: (
            "Estes arquivos não estão mais aqui",
            (
                "O link funcionou até a data indicada no e-mail e os arquivos já foram apagados. "
                "Peça uma nova exportação para obtê-los de novo."
            ),
        ),
        Closed.REVOKED: (
            "Este link foi desativado",
            "Alguém da organização que fez esta exportação revogou os links. Peça um novo a essa pessoa.",
        ),
        Closed.UNKNOWN: (
            "Este link não leva a lugar nenhum",
            "Talvez uma parte tenha se perdido no caminho. Copie o link inteiro do e-mail e tente de novo.",
        ),
    },
}
_FAILED: Mapping[str, tuple[str, str]] = {
    "en": (
        "This did not work",
        "It cannot be opened right now. Try again in a few minutes. If it fails again, tell whoever sent you the mail.",
    ),
    "es": (
        "Esto no funcionó",
        "No se puede abrir ahora. Inténtalo de nuevo en unos minutos. Si falla otra vez, avisa a quien te escribió.",
    ),
    "pt": (
        "Isto não funcionou",
        "Não é possível abrir agora. Tente de novo em alguns minutos. Se falhar outra vez, avise quem enviou o e-mail.",
    ),
}
STATUSES: Mapping[Closed, int] = {Closed.UNKNOWN: 404, Closed.REVOKED: 410, Closed.EXPIRED: 410}


def closed_page(why: Closed, locale: str | None) -> str:
    """The page, in the language of the mail, or of the reader's browser."""
    language = _language(locale)
    title, text = _TEXTS[language][why]
    return _page(language, title, text)


def failed_page(locale: str | None) -> str:
    """The page for whatever failed on our side."""
    language = _language(locale)
    return _page(language, *_FAILED[language])


LEAVING: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "en": {
        "ask": ("Stop these mails?", "You will get no more mails of this recurring export."),
        "left": ("You are unsubscribed", "There will be no more mails of this recurring export."),
        "button": ("Unsubscribe", ""),
    },
    "es": {
        "ask": ("¿Dejar de recibir estos correos?", "No recibirás más correos de esta exportación periódica."),
        "left": ("Te has dado de baja", "No habrá más correos de esta exportación periódica."),
        "button": ("Darme de baja", ""),
    },
    "pt": {
        "ask": ("Parar de receber estes e-mails?", "Você não receberá mais e-mails desta exportação periódica."),
        "left": ("Você cancelou a inscrição", "Não haverá mais e-mails desta exportação periódica."),
        "button": ("Cancelar inscrição", ""),
    },
}


def leaving_page(step: Literal["ask", "left"], locale: str | None) -> str:
    """Asks whether to leave a recurring export, or says that it is done."""
    language = _language(locale)
    title, text = LEAVING[language][step]
    button = escape(LEAVING[language]["button"][0])
    form = f'<form method="post"><button>{button}</button></form>' if step == "ask" else ""
    return _page(language, title, text, form)


def _language(locale: str | None) -> str:
    return language_of((locale or "").split(",")[0].split(";")[0])


def _page(language: str, heading: str, told: str, form: str = "") -> str:
    title, text = escape(heading), escape(told)
    return (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{title}</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;"
        "max-width:34rem;margin:15vh auto;padding:0 1.5rem}h1{font-size:1.5rem;line-height:1.25}</style></head>"
        f"<body><main><h1>{title}</h1><p>{text}</p>{form}</main></body></html>\n"
    )


# The links by which recipients leave a recurring export.


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
