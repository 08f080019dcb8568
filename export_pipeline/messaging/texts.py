"""The phrases of mails and of the links' pages in every language, read from ``templates/texts.json``.

Phrases have ``{placeholders}``. Numbers follow a colon, so that no phrase needs a plural. A phrase ``..._one`` is for a
single file; the phrase without ``_one`` is for several.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files

Texts = Mapping[str, str]
CATALOG: Mapping[str, Texts] = json.loads(files(__package__).joinpath("templates/texts.json").read_text("utf-8"))
"""Phrases by language. ``pt`` is Brazilian Portuguese."""
DEFAULT_LANGUAGE = "en"


def language_of(locale: str | None) -> str:
    """The language of a mail: ``es-MX`` and ``es_MX`` are ``es``; unknown, empty or None is ``en``."""
    language = (locale or "").strip().replace("_", "-").partition("-")[0].lower()
    return language if language in CATALOG else DEFAULT_LANGUAGE
