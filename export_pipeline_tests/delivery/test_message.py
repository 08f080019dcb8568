"""The mail: three languages from one pair of templates."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from zoneinfo import available_timezones

import pytest
from babel.numbers import format_decimal

from export_pipeline.catalog.types import FORMATS, ColumnType, OutputColumn
from export_pipeline.failures import Fault
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.messaging.content import (
    FailureMail,
    ReadyFile,
    ReadyMail,
    _Writing,
    failure_message,
    ready_message,
)
from export_pipeline.messaging.texts import CATALOG, language_of
from export_pipeline.stages.notify_recipients import link_list

MAIL = ReadyMail(
    dataset_titles={"en": "Contacts", "es": "Contactos", "pt": "Contatos"},
    rows=1_234_567,
    files=(ReadyFile("contacts.csv.gz", 12_345_678, "https://host/key?X-Amz-Date=1&X-Amz-Signature=2"),),
    snapshot_at=datetime(2025, 11, 21, 18, 30, tzinfo=UTC),
    expires_at=datetime(2025, 11, 29, 1, 0, 59, tzinfo=UTC),
    time_zone="America/Sao_Paulo",
    organization_name="Acme",
)


class Page(HTMLParser):
    """What a mail client would do with the HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.held: list[tuple[str, list[str]]] = []
        """Each text, and the styles of the elements that it is in."""
        self._open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "meta"):
            self._open.append((tag, dict(attrs).get("style") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        self.held.append((data, [style for _, style in self._open]))

    @property
    def links(self) -> list[str | None]:
        return [attributes["href"] for tag, attributes in self.tags if tag == "a"]


@pytest.mark.parametrize(
    ("locale", "subject", "facts"),
    [
        (
            "en",
            "Your export is ready: Contacts",
            ["Rows: 1,234,567", "12.3 MB", "November 28, 2025, 10:00 PM (Brasilia Time, UTC-03:00)"],
        ),
        (
            "es",
            "Tu exportación está lista: Contactos",
            ["Filas: 1.234.567", "12,3 MB", "28 de noviembre de 2025, 22:00 (hora de Brasilia, UTC-03:00)"],
        ),
        (
            "pt",
            "Sua exportação está pronta: Contatos",
            ["Linhas: 1.234.567", "12,3 MB", "28 de novembro de 2025, 22:00 (Horário de Brasília, UTC-03:00)"],
        ),
    ],
)
def test_speaks_the_language_in_text_and_html(locale: str, subject: str, facts: list[str]) -> None:
    actual_subject, text, html = ready_message(MAIL, locale)
    page = Page(html)
    assert actual_subject == subject
    for fact in facts:
        assert fact in text
        assert fact.rpartition(": ")[2] in page.text
    assert MAIL.files[0].url in text.splitlines()
    assert page.links == [MAIL.files[0].url]
    assert "Acme" in text


@pytest.mark.parametrize(
    ("asked", "language"),
    [
        ("pt-BR", "pt"), ("pt_BR", "pt"), ("es-MX", "es"), ("ES", "es"), (None, "en"), ("", "en"), ("fr", "en"),
        ("!", "en"), ("../../etc", "en"), ("eno", "en"),
    ],
)  # fmt: skip
def test_regional_and_unknown_locales(asked: str | None, language: str) -> None:
    assert language_of(asked) == language
    assert ready_message(MAIL, asked)[0] == ready_message(MAIL, language)[0]


def test_a_region_writes_numbers_its_own_way() -> None:
    assert "Filas: 1,234,567" in ready_message(MAIL, "es-MX")[1]


def test_all_languages_have_the_same_phrases_with_the_same_places() -> None:
    def shape(language: str) -> dict[str, set[str | None]]:
        return {
            key: {name for _, name, _, _ in string.Formatter().parse(phrase) if name is not None}
            for key, phrase in CATALOG[language].items()
        }

    assert shape("es") == shape("en") == shape("pt")
    assert all(phrase.strip() for texts in CATALOG.values() for phrase in texts.values())


@pytest.mark.parametrize("locale", list(CATALOG))
def test_nothing_from_outside_becomes_markup_or_a_line(locale: str) -> None:
    evil = '<script>x</script>"\r\nBcc: a@example.com\x00'
    mail = replace(
        MAIL,
        dataset_titles={"en": evil},
        organization_name=evil,
        files=(ReadyFile(evil, 1, 'https://host/"><img src=x>?a=1&b=2'),),
    )
    subject, text, html = ready_message(mail, locale)
    page = Page(html)
    assert "\n" not in subject
    assert "\r" not in subject
    assert not any(line.startswith("Bcc") for line in text.splitlines())
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.links == ['https://host/"><img src=x>?a=1&b=2']


def test_html_loads_nothing_remote() -> None:
    tags = {tag for tag, _ in Page(ready_message(MAIL, "en")[2]).tags}
    assert tags.isdisjoint({"img", "link", "script", "iframe", "object"})
    assert "url(" not in ready_message(MAIL, "en")[2]


def test_every_file_with_its_own_link_and_size() -> None:
    files = tuple(ReadyFile(f"part-{n}.csv", n * 1000, f"https://host/{n}") for n in (1, 2, 3))
    _, text, html = ready_message(replace(MAIL, files=files), "en")
    assert Page(html).links == ["https://host/1", "https://host/2", "https://host/3"]
    for n in (1, 2, 3):
        assert f"File {n} of 3: part-{n}.csv ({n} kB)\nhttps://host/{n}\n" in text
        assert f">File {n} of 3</a>" in html
    assert "Files: 3" in text
    assert "Size: 6 kB" in text


def linked(count: int, url: str = "https://host/") -> ReadyMail:
    return replace(MAIL, files=tuple(ReadyFile(f"part-{n:05d}.csv", 1000, f"{url}{n}") for n in range(1, count + 1)))


@pytest.mark.parametrize("locale", list(CATALOG))
@pytest.mark.parametrize("count", [1, 2])
def test_one_file_is_spoken_of_as_one(locale: str, count: int) -> None:
    one, several = ("_one", "") if count == 1 else ("", "_one")
    for mail, phrases in (
        (linked(count), ("expires", "private")),
        (replace(MAIL, files=(ReadyFile("a.csv", 10, None),) * count, expires_at=None), ("attached_files",)),
    ):
        _, text, html = ready_message(mail, locale)
        for phrase in phrases:
            for said, wanted in ((one, True), (several, False)):
                words = CATALOG[locale][phrase + said].partition("{")[0]
                assert (words in text, words in Page(html).text) == (wanted, wanted), phrase + said


def test_links_that_do_not_end_and_attachments() -> None:
    _, text, _ = ready_message(replace(MAIL, expires_at=None), "en")
    assert "work until" not in text
    attached = replace(MAIL, files=(ReadyFile("a.csv", 10, None),), expires_at=None)
    _, text, html = ready_message(attached, "en")
    assert "a.csv (10 B, attached)" in text
    assert "password" not in text
    assert Page(html).links == []


PRESIGNED = f"https://bucket.s3.mx-central-1.amazonaws.com/{'k' * 200}?X-Amz-Security-Token={'t' * 1700}&a=1&n="


@pytest.mark.parametrize("locale", list(CATALOG))
@pytest.mark.parametrize("count", [10, 11, 100, 5000])
def test_a_mail_of_many_files_is_not_clipped_and_every_link_arrives(locale: str, count: int) -> None:
    """Gmail shows 102 kB of a message; behind them stand the notes and the way to unsubscribe."""
    mail = replace(linked(count, PRESIGNED), organization_name="Ñandú " * 40, unsubscribe_url="https://host/leave")
    listed = link_list(mail.files)
    mail = replace(mail, link_list=listed and listed.name)
    _, text, html = ready_message(mail, locale)
    assert max(len(text.encode()), len(html.encode())) < 60_000
    shown = Page(html).links[:-1]
    assert shown == [file.url for file in mail.files[:10]]
    if count == 10:
        assert listed is None
        return
    assert format_decimal(count - 10, locale={"pt": "pt_BR"}.get(locale, locale)) in text
    assert ("links.txt" in text, "links.txt" in html) == (listed is not None, listed is not None)
    if listed is None:  # more than a mail can carry: it says where to ask
        assert count == 5000
    else:
        lines = listed.content.decode().splitlines()
        assert [line.split("\t")[1] for line in lines] == [file.url for file in mail.files]


def test_what_is_attached_beyond_the_list_is_counted() -> None:
    mail = replace(MAIL, files=(ReadyFile("a.csv", 10, None),) * 12, expires_at=None)
    _, text, _ = ready_message(mail, "en")
    assert (text.count("a.csv"), "attached as well: 2" in text, link_list(mail.files)) == (10, True, None)


def test_an_empty_result_says_so() -> None:
    for locale in CATALOG:
        _, text, html = ready_message(replace(MAIL, rows=0), locale)
        assert CATALOG[locale]["empty"] in text
        assert CATALOG[locale]["empty"] in Page(html).text
        assert CATALOG[locale]["empty"] not in ready_message(MAIL, locale)[1]


def test_what_was_altered_is_told() -> None:
    counters = {"cut_cells": 1500, "replaced_characters": 0, "unknown_to_the_mail": 3}
    _, text, html = ready_message(replace(MAIL, counters=counters), "es")
    assert "1.500" in text
    assert "Caracteres" not in text
    assert "1.500" in html
    assert "unknown" not in html


@pytest.mark.parametrize(("zone", "name"), [("UTC", "(UTC)"), ("No/Such", "(UTC)"), ("Asia/Kolkata", "UTC+05:30)")])
def test_zones(zone: str, name: str) -> None:
    assert name in ready_message(replace(MAIL, time_zone=zone), "en")[1]


@pytest.mark.parametrize(
    ("zone", "locale", "name"),
    [
        ("America/Caracas", "es-MX", "Caracas, UTC-04:00"),
        ("America/Argentina/Buenos_Aires", "es-AR", "Buenos Aires, UTC-03:00"),
        ("America/Argentina/Buenos_Aires", "en", "Buenos Aires, UTC-03:00"),
        ("Europe/London", "es-MX", "Londres, UTC+00:00"),
        ("America/Mexico_City", "es-MX", "hora central, UTC-06:00"),
    ],
)
def test_a_zone_without_a_name_in_the_language_is_its_city(zone: str, locale: str, name: str) -> None:
    assert f"({name.replace('UTC+00:00', 'UTC')})" in ready_message(replace(MAIL, time_zone=zone), locale)[1]


@pytest.mark.parametrize("locale", ["en", "es", "es-MX", "es-AR", "pt"])
def test_no_zone_is_said_to_have_summer_time_all_year_or_doubles_its_country(locale: str) -> None:
    for zone in sorted(available_timezones()):
        snapshot = _Writing.of(locale, zone).instant(MAIL.snapshot_at)
        assert snapshot.count("(") == 1, snapshot
        assert "/" not in snapshot
        assert not re.search("verano|verão|summer|daylight", snapshot, re.IGNORECASE), (zone, snapshot)


def test_no_offset_is_broken_at_its_hyphen() -> None:
    html = ready_message(MAIL, "en")[2]
    assert html.count("UTC-03:00") == html.count('<span style="white-space:nowrap">UTC-03:00</span>') == 2


def test_nothing_long_makes_the_page_wider_than_a_phone() -> None:
    """Seen in Chromium at 375 pixels; here only that each cell that holds a value from outside may break anywhere."""
    long = "x" * 150
    files = (ReadyFile(long, 1, "https://host/"),)
    failure = replace(FAILURE, organization_name=long, error_code=long, details=long, dataset_titles={"en": long})
    for _, _, html in (
        ready_message(replace(MAIL, organization_name=long, dataset_titles={"en": long}, files=files), "en"),
        failure_message(failure, "en"),
    ):
        held = [styles for data, styles in Page(html).held if long in data]
        assert len(held) >= 3
        assert all(any("overflow-wrap:anywhere" in style for style in styles) for styles in held)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_960, "1 MB"), (5_000_000_000, "5 GB")]
)
def test_sizes(size: int, text: str) -> None:
    mail = replace(MAIL, files=(ReadyFile("x", size, "https://h/"),))
    assert f"x ({text})" in ready_message(mail, "en")[1]


def test_every_counter_of_every_format_has_its_phrase() -> None:
    options = FormatOptions(columns=(OutputColumn("a", "A", ColumnType.TEXT),), max_bytes=10**9)
    for name in FORMATS:
        for counter in open_format(name, options).counters:
            assert "7" in ready_message(replace(MAIL, rows=1, counters={counter: 7}), "en")[1].split("* ")[1]


FAILURE = FailureMail(
    fault=Fault.REQUESTER,
    error_code="unknown_column",
    details='columns[0]: there is no column "shoe_size".\nNames: id, name.',
    reference="0f8c1a52-0000-4000-8000-000000000001",
    asked_at=datetime(2025, 11, 22, 1, 30, tzinfo=UTC),
    time_zone="America/Sao_Paulo",
    dataset_titles=MAIL.dataset_titles,
    organization_name="Acme",
)
TOLD = {
    ("en", Fault.REQUESTER): ("Your export needs a correction: Contacts", "Correct what the details below describe"),
    ("en", Fault.TRANSIENT): ("Your export could not be made this time: Contacts", "request the export again later"),
    ("en", Fault.OURS): ("Your export failed on our side: Contacts", "Our operators have to look at this first"),
    ("es", Fault.REQUESTER): ("Tu exportación necesita una corrección: Contactos", "Corrige lo que indican"),
    ("es", Fault.TRANSIENT): ("Tu exportación no se pudo hacer esta vez: Contactos", "vuelve a pedir la exportación"),
    ("es", Fault.OURS): ("Tu exportación falló por un problema nuestro: Contactos", "Nuestros operadores tienen que"),
    ("pt", Fault.REQUESTER): ("Sua exportação precisa de uma correção: Contatos", "Corrija o que os detalhes"),
    ("pt", Fault.TRANSIENT): ("Sua exportação não pôde ser feita desta vez: Contatos", "peça a exportação de novo"),
    ("pt", Fault.OURS): ("Sua exportação falhou por um problema nosso: Contatos", "Nossos operadores precisam"),
}
ASKED_ON = {
    "en": ("Requested on", "November 21, 2025, 10:30 PM (Brasilia Time, UTC-03:00)"),
    "es": ("Pedida el", "21 de noviembre de 2025, 22:30 (hora de Brasilia, UTC-03:00)"),
    "pt": ("Pedida em", "21 de novembro de 2025, 22:30 (Horário de Brasília, UTC-03:00)"),
}


@pytest.mark.parametrize(("language", "fault"), [(language, fault) for language in CATALOG for fault in Fault])
def test_a_failure_is_told_by_whose_fault_it_is_in_text_and_html(language: str, fault: Fault) -> None:
    subject, what_to_do = TOLD[language, fault]
    actual_subject, text, html = failure_message(replace(FAILURE, fault=fault), language)
    page = Page(html)
    assert actual_subject == subject
    label, instant = ASKED_ON[language]
    assert f"{label}: {instant}" in text
    for part in (what_to_do, instant, "unknown_column", FAILURE.reference, "Acme"):
        assert part in text
        assert part in page.text
    # One block, of what is for the requester to correct; and they are never sent to a file.
    details = 'columns[0]: there is no column "shoe_size". Names: id, name.'
    assert (details in text.splitlines(), details in page.text) == (True, True)
    without = failure_message(replace(FAILURE, fault=fault, details=None), language)
    assert not any(CATALOG[language]["details"] in part for part in without)
    assert page.links == []
    assert "http" not in text


def test_a_failure_of_an_unknown_dataset_at_an_unknown_instant_is_told_without_them() -> None:
    subject, text, html = failure_message(replace(FAILURE, dataset_titles={}, asked_at=None), "en")
    assert subject == "Your export needs a correction"
    for left_out in ("Export:", "Requested on"):
        assert left_out not in text
        assert left_out not in Page(html).text


@pytest.mark.parametrize("locale", ["fr", "", None, "../../etc"])
def test_a_failure_in_an_unknown_language_is_told_in_english(locale: str | None) -> None:
    assert failure_message(FAILURE, locale) == failure_message(FAILURE, "en")


@pytest.mark.parametrize("fault", list(Fault))
def test_nothing_of_a_failure_becomes_markup_or_a_line(fault: Fault) -> None:
    evil = '<script>x</script><img src=x>"\r\nBcc: a@example.com\x00\u2028'
    mail = replace(
        FAILURE,
        fault=fault,
        error_code=evil,
        details=evil,
        reference=evil,
        dataset_titles={"en": evil},
        organization_name=evil,
    )
    subject, text, html = failure_message(mail, "en")
    page = Page(html)
    assert len(subject.splitlines()) == 1
    assert not any(line.startswith("Bcc") for line in text.splitlines())
    assert {"script", "img", "a"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.text.count("<script>x</script>") == 5
