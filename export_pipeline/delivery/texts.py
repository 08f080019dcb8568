"""The words of the mails, in every language they are sent in.

What belongs here: phrases, with ``{placeholders}``. What does not: markup (``templates``), numbers and
dates (``message``, by Babel). Numbers stand behind a colon, so that no phrase needs a plural.
"""

from __future__ import annotations

from collections.abc import Mapping

Texts = Mapping[str, str]

CATALOG: Mapping[str, Texts] = {
    "en": {
        "subject": "Your export is ready: {title}",
        "heading": "Your export is ready",
        "intro": "The export you asked for is finished.",
        "empty": "Nothing matched the filters of this export: the file holds no rows.",
        "title": "Export",
        "organization": "Organization",
        "rows": "Rows",
        "size": "Size",
        "files": "Files",
        "snapshot": "Data as of",
        "download": "Download",
        "attached": "attached",
        "expires": "The links work until {instant}. After that, ask for a new export.",
        "private": "The links need no password: anyone who has this message can download the files.",
        "cut_cells": "Cells cut because they were longer than the format allows: {count}",
        "replaced_characters": "Characters replaced because the format cannot hold them: {count}",
        "guarded_cells": "Cells marked with an apostrophe so that no spreadsheet runs them as formulas: {count}",
        "non_finite_numbers": "Numbers without a finite value, left empty: {count}",
        "automatic": "This message was sent automatically.",
    },
    "es": {
        "subject": "Tu exportación está lista: {title}",
        "heading": "Tu exportación está lista",
        "intro": "La exportación que pediste ha terminado.",
        "empty": "Ningún registro coincide con los filtros de esta exportación: el archivo no contiene filas.",
        "title": "Exportación",
        "organization": "Organización",
        "rows": "Filas",
        "size": "Tamaño",
        "files": "Archivos",
        "snapshot": "Datos al",
        "download": "Descargar",
        "attached": "adjunto",
        "expires": "Los enlaces funcionan hasta el {instant}. Después, pide una nueva exportación.",
        "private": "Los enlaces no piden contraseña: quien tenga este mensaje puede descargar los archivos.",
        "cut_cells": "Celdas cortadas por ser más largas de lo que permite el formato: {count}",
        "replaced_characters": "Caracteres reemplazados porque el formato no los admite: {count}",
        "guarded_cells": "Celdas marcadas con un apóstrofo para que ninguna hoja de cálculo "
        "las ejecute como fórmulas: {count}",
        "non_finite_numbers": "Números sin valor finito, dejados vacíos: {count}",
        "automatic": "Este mensaje se envió automáticamente.",
    },
    "pt": {
        "subject": "Sua exportação está pronta: {title}",
        "heading": "Sua exportação está pronta",
        "intro": "A exportação que você pediu terminou.",
        "empty": "Nenhum registro corresponde aos filtros desta exportação: o arquivo não contém linhas.",
        "title": "Exportação",
        "organization": "Organização",
        "rows": "Linhas",
        "size": "Tamanho",
        "files": "Arquivos",
        "snapshot": "Dados de",
        "download": "Baixar",
        "attached": "em anexo",
        "expires": "Os links funcionam até {instant}. Depois disso, peça uma nova exportação.",
        "private": "Os links não pedem senha: quem tiver esta mensagem pode baixar os arquivos.",
        "cut_cells": "Células cortadas por serem mais longas do que o formato permite: {count}",
        "replaced_characters": "Caracteres substituídos porque o formato não os aceita: {count}",
        "guarded_cells": "Células marcadas com um apóstrofo para que nenhuma planilha "
        "as execute como fórmulas: {count}",
        "non_finite_numbers": "Números sem valor finito, deixados vazios: {count}",
        "automatic": "Esta mensagem foi enviada automaticamente.",
    },
}
"""Phrases by language. ``pt`` is Brazilian Portuguese."""

DEFAULT_LANGUAGE = "en"


def language_of(locale: str | None) -> str:
    """The language of a mail: ``es-MX`` and ``es_MX`` are ``es``; unknown, empty or None is ``en``."""
    language = (locale or "").strip().replace("_", "-").partition("-")[0].lower()
    return language if language in CATALOG else DEFAULT_LANGUAGE
