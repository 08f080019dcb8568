"""Subject, text and HTML of the mails "your export is ready" and "your export failed"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import jinja2
from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time, get_timezone_location, get_timezone_name
from babel.numbers import format_decimal
from markupsafe import Markup, escape

from export_pipeline.catalog.model import Dataset
from export_pipeline.failures import Fault
from export_pipeline.messaging.mime import one_line
from export_pipeline.messaging.texts import CATALOG, DEFAULT_LANGUAGE, Texts, language_of

_BABEL_LOCALES = {"en": "en_US", "es": "es", "pt": "pt_BR"}
_LONGEST_DETAILS = 2000
MAX_LISTED = 10
"""Most files that the mail itself lists: Gmail cuts a message after 102 kB, and a signed link may have 2 kB."""
# Counters of the formats that matter to a reader; each is also the name of its phrase.
_NOTED_COUNTERS = ("cut_cells", "replaced_characters", "guarded_cells", "non_finite_numbers")


@dataclass(frozen=True)
class ReadyFile:
    """One file of a finished export; ``url`` is None for one that is attached."""

    name: str
    bytes: int
    url: str | None


@dataclass(frozen=True, kw_only=True)
class _Mail:
    """The facts of both mails."""

    time_zone: str
    """The organization's IANA zone, in which instants are shown; an unknown one is UTC."""
    dataset_titles: Mapping[str, str] = field(default_factory=dict)
    """The dataset's title by language; empty for an unknown dataset."""
    organization_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReadyMail(_Mail):
    """The facts of the mail of a finished export."""

    rows: int
    files: tuple[ReadyFile, ...]
    snapshot_at: datetime
    """Aware: the files show the data as of this instant."""
    expires_at: datetime | None
    """Aware: when the first of the links expires; None if no link expires, or without links."""
    counters: Mapping[str, int] = field(default_factory=dict)
    unsubscribe_url: str | None = None
    """Where the recipient unsubscribes from a recurring export."""
    link_list: str | None = None
    """Name of the attached file with the links of all files, if there are more than the mail lists."""


@dataclass(frozen=True, kw_only=True)
class FailureMail(_Mail):
    """The facts of the mail of a failed export, without links and recipients."""

    fault: Fault
    error_code: str
    details: str | None
    """The row's ``message``, in English: what is wrong and what to do. None if the requester cannot do it."""
    reference: str
    """The request's ``uid``."""
    asked_at: datetime | None
    """Aware; None if it is not known."""
    paused_recurring: int | None = None
    """The recurring export that was paused because of this failure."""


@dataclass(frozen=True)
class _Writing:
    """How to write numbers and instants in one language and zone."""

    language: str
    texts: Texts
    locale: Locale
    zone: ZoneInfo

    @classmethod
    def of(cls, locale: str | None, time_zone: str) -> _Writing:
        language = language_of(locale)
        return cls(language, CATALOG[language], _babel_locale(locale, language), _zone(time_zone))

    def number(self, value: float) -> str:
        return str(format_decimal(value, locale=self.locale))

    def size(self, count: int) -> str:
        """Bytes in the largest unit that keeps a digit before the mark; MB = 10^6, as in the size limit."""
        value, unit = float(count), "B"
        for larger in ("kB", "MB", "GB", "TB"):
            # Rounded first: 999,960 bytes are 1 MB, not 1,000 kB.
            if round(value, 1) < 1000:
                break
            value, unit = value / 1000, larger
        return f"{self.number(round(value, 1))} {unit}"

    def instant(self, value: datetime) -> str:
        """Date, time to the minute (rounded down: an expiry is never shown too late), zone and offset."""
        local = value.astimezone(self.zone)
        day = format_date(local, format="long", locale=self.locale)
        time = format_time(local, format="short", tzinfo=self.zone, locale=self.locale)
        # Some mail clients show CLDR's narrow no-break space as a box.
        return f"{day}, {time} ({self._zone_name(local)})".replace("\u202f", " ")

    def _zone_name(self, local: datetime) -> str:
        offset = _offset(local.utcoffset() or timedelta())
        if "/" not in self.zone.key or self.zone.key.startswith("Etc/"):
            return offset
        name = get_timezone_name(self.zone, locale=self.locale)
        if name == get_timezone_location(self.zone, locale=self.locale):
            # CLDR has no name for the zone in this language, and Babel invents one: "summer time of Argentina" all year
            # in American Spanish, "Argentina (Argentina/Buenos Aires) Time" in English.
            name = get_timezone_location(self.zone, locale=self.locale, return_city=True).rpartition("/")[2]
        return f"{name}, {offset}"


def ready_message(mail: ReadyMail, locale: str | None) -> tuple[str, str, str]:
    """Write the mail of a finished export: subject, text and HTML.

    The locale is ``en``, ``es``, ``pt`` or a regional form of one (``es-MX``); anything else is ``en``.
    """
    writing = _Writing.of(locale, mail.time_zone)
    texts = writing.texts
    title = _title(mail.dataset_titles, writing.language)
    linked = any(file.url for file in mail.files)
    one = "_one" if len(mail.files) == 1 else ""
    file_count = writing.number(len(mail.files))
    expires = None
    if mail.expires_at is not None:
        expires = texts[f"expires{one}"].format(instant=writing.instant(mail.expires_at))
    context: dict[str, Any] = {
        "heading": texts["heading"],
        "intro": texts["empty"] if mail.rows == 0 else texts["intro"],
        "facts": _facts(
            texts,
            title=title,
            organization=one_line(mail.organization_name or ""),
            rows=writing.number(mail.rows),
            files="" if len(mail.files) <= 1 else file_count,
            size=writing.size(sum(file.bytes for file in mail.files)),
            snapshot=writing.instant(mail.snapshot_at),
        ),
        "files": [
            {
                "part": "" if one else texts["part"].format(number=writing.number(number), count=file_count),
                "name": one_line(file.name),
                "size": writing.size(file.bytes),
                "url": file.url,
            }
            for number, file in enumerate(mail.files[:MAX_LISTED], start=1)
        ],
        "more": _more(mail, writing, linked=linked),
        "expires": expires,
        "about_files": texts[f"private{one}"] if linked else texts[f"attached_files{one}"],
        "notes": [
            texts[name].format(count=writing.number(mail.counters[name]))
            for name in _NOTED_COUNTERS
            if mail.counters.get(name)
        ],
        "unsubscribe_url": mail.unsubscribe_url,
    }
    return texts["subject"].format(title=title), *_render("ready", writing, context)


def _more(mail: ReadyMail, writing: _Writing, *, linked: bool) -> str | None:
    """The sentence about files that the mail does not list."""
    more = len(mail.files) - MAX_LISTED
    if more <= 0:
        return None
    how = "attached" if not linked else "listed" if mail.link_list else "unlisted"
    return writing.texts[f"more_{how}"].format(count=writing.number(more), name=mail.link_list)


def failure_message(mail: FailureMail, locale: str | None) -> tuple[str, str, str]:
    """As ``ready_message``, for a failed export: why there is no file, and what to do. The details stay English."""
    writing = _Writing.of(locale, mail.time_zone)
    texts = writing.texts
    title = _title(mail.dataset_titles, writing.language)
    if mail.paused_recurring is None:
        heading, intro = texts[f"failed_heading_{mail.fault.value}"], texts[f"failed_intro_{mail.fault.value}"]
    else:
        heading = texts["paused_heading"]
        intro = texts["paused_intro" if mail.fault is Fault.REQUESTER else "paused_intro_ours"]
    context: dict[str, Any] = {
        "heading": heading,
        "intro": intro,
        "facts": _facts(
            texts,
            title=title,
            organization=one_line(mail.organization_name or ""),
            recurring="" if mail.paused_recurring is None else str(mail.paused_recurring),
            asked="" if mail.asked_at is None else writing.instant(mail.asked_at),
            error_code=one_line(mail.error_code),
            reference=one_line(mail.reference),
        ),
        "details": one_line(mail.details or "", longest=_LONGEST_DETAILS),
    }
    return f"{heading}: {title}" if title else heading, *_render("failed", writing, context)


def titles_of(dataset: Dataset) -> dict[str, str]:
    """A dataset's title in every language that mails are sent in."""
    title = dataset.title
    return {"en": title.en, "es": title.localized("es"), "pt": title.localized("pt")}


def _render(template: str, writing: _Writing, context: Mapping[str, Any]) -> tuple[str, str]:
    """Render a template's text and HTML."""
    language = "pt-BR" if writing.language == "pt" else writing.language
    text, html = (
        _environment().get_template(f"{template}.{kind}.j2").render(t=writing.texts, language=language, **context)
        for kind in ("txt", "html")
    )
    return text, html


def _facts(texts: Texts, **values: str) -> list[tuple[str, str]]:
    """Phrases and values for the reader, without the empty ones."""
    return [(texts[name], value) for name, value in values.items() if value]


def _title(titles: Mapping[str, str], language: str) -> str:
    return one_line(titles.get(language) or titles.get(DEFAULT_LANGUAGE) or next(iter(titles.values()), ""))


def _babel_locale(locale: str | None, language: str) -> Locale:
    """The region's way of writing numbers and dates if the locale names one: ``es-MX`` is 1,234 and ``es`` 1.234."""
    with suppress(ValueError, UnknownLocaleError):
        regional = Locale.parse((locale or "").strip().replace("-", "_"))
        if regional.language == language and regional.territory:
            return regional
    return Locale.parse(_BABEL_LOCALES[language])


def _zone(name: str) -> ZoneInfo:
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo(name)
    return ZoneInfo("UTC")


def _offset(offset: timedelta) -> str:
    if not offset:
        return "UTC"
    hours, minutes = divmod(abs(int(offset.total_seconds())) // 60, 60)
    return f"UTC{'-' if offset < timedelta() else '+'}{hours:02d}:{minutes:02d}"


def _unbroken(value: str) -> Markup:
    """Text for HTML in which no line breaks inside an offset from UTC."""
    return Markup(re.sub(r"UTC[+-]\d\d:\d\d", r'<span style="white-space:nowrap">\g<0></span>', str(escape(value))))  # noqa: S704


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export_pipeline.messaging"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment
