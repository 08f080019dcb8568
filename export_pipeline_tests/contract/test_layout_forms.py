"""What a layout decides of a file's form: quoting, arrays, whole seconds, as SendGrid and Cometly write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline_tests.contract import format_readers as readers
from export_pipeline_tests.contract.format_samples import (
    COLUMNS,
    INSTANTS,
    TEXTS,
    Written,
    nasty_table,
    one_column,
    ordinary_table,
    table_of,
    write_all,
)

NON_EMPTY: dict[str, Any] = {"csv_quoting": "non_empty"}
SECONDS: dict[str, Any] = {"timestamps": "seconds"}
EITHER_COMPRESSION = pytest.mark.parametrize("compression", ["none", "gzip"])
EVERY_READER = pytest.mark.parametrize("reader", [readers.csv_module, readers.csv_pandas])
# Every field is nothing, or at least one character in quotes.
QUOTED_OR_NOTHING = re.compile(rb'(?:(?:"(?:[^"]|"")++")?+[,\n])*+')


def contents(written: Written) -> list[bytes]:
    if written.extension.endswith(".gz"):
        return [readers.gunzip_one_member(data) for data in written.contents]
    return written.contents


# --- csv_quoting: non_empty --------------------------------------------------------------------


@EITHER_COMPRESSION
@EVERY_READER
def test_quoted_csv_reads_back_as_the_other_does(reader: Callable[[bytes], readers.Rows], compression: Any) -> None:
    quoted, plain = (
        contents(write_all("csv", nasty_table(), compression=compression, **options))[0] for options in (NON_EMPTY, {})
    )
    assert reader(quoted) == reader(plain)
    assert QUOTED_OR_NOTHING.fullmatch(quoted)
    assert not QUOTED_OR_NOTHING.fullmatch(plain)


def test_every_type_is_quoted_and_null_and_empty_are_nothing() -> None:
    data = write_all("csv", nasty_table().slice(0, 2), **NON_EMPTY).contents[0]
    header, first, second, end = data.decode().split("\n")
    assert header == '"ID","The ""label"", quoted","uid","big & <wide>","ratio","doc","Montão é","flag","at","day"'
    assert first.startswith('"1",,"6f0c0000-0000-4000-8000-000000000000","0","0.30000000000000004","{""a"": 1, ')
    assert first.endswith(',"12.50","true","2026-03-08T06:59:59+00:00","2026-03-08"')
    assert second == '"2",,"6f0c0000-0000-4000-8000-000000000001",,,,,"false","2026-03-08T07:00:00+00:00",'
    assert end == ""


def test_quoted_csv_in_the_profile_of_a_spreadsheet() -> None:
    columns = (OutputColumn("ratio", "r", ColumnType.FLOAT), OutputColumn("amount", "a", ColumnType.DECIMAL))
    table = table_of({"ratio": [1.5, None], "amount": ["2.50", "-0.1"], "id": [1, 2]})
    written = write_all(
        "csv", table, columns=columns, csv_delimiter=";", csv_decimal_mark=",", csv_bom=True, **NON_EMPTY
    )
    assert written.contents == [b'\xef\xbb\xbf"r";"a"\n"1,5";"2,50"\n;"-0,1"\n']


@pytest.mark.parametrize("kind", [ColumnType.TEXT, ColumnType.INTEGER])
def test_a_row_with_nothing_in_its_only_column_is_still_a_row(kind: ColumnType) -> None:
    table, columns = one_column(kind, [None, "", "x"] if kind is ColumnType.TEXT else [None, None, 7])
    (data,) = write_all("csv", table, columns=columns[1:], **NON_EMPTY).contents
    assert data == (b'"v"\n""\n""\n"x"\n' if kind is ColumnType.TEXT else b'"v"\n""\n""\n"7"\n')
    assert len(readers.csv_module(data)[1]) == len(readers.csv_pandas(data)[1]) == 3


@EITHER_COMPRESSION
@EVERY_READER
def test_quoted_csv_splits_between_rows_alone(reader: Callable[[bytes], readers.Rows], compression: Any) -> None:
    short = nasty_table().filter(pa.array([text is None or len(text) < 1000 for text in TEXTS]))
    lines = pa.array([f'of {n},\n\n{"x" * (n % 50)}\n"several" lines\n' for n in range(3000)])
    table = pa.concat_tables([ordinary_table(3000).set_column(1, "label", lines), short])
    columns = (*COLUMNS[1:], COLUMNS[0])  # the text with line breaks comes first
    whole = reader(contents(write_all("csv", table, columns=columns, **NON_EMPTY))[0])
    split = [
        write_all(
            "csv", table, columns=columns, compression=compression, max_bytes=25_000, batch_rows=rows, **NON_EMPTY
        )
        for rows in (65_536, 777)
    ]
    assert split[0].contents == split[1].contents
    assert len(split[0].files) > 3
    assert all(len(data) <= 25_000 for data in split[0].contents)
    parts = [reader(data) for data in contents(split[0])]
    assert all(header == whole[0] for header, _ in parts)
    assert [len(rows) for _, rows in parts] == [file.rows for file in split[0].files]
    assert [row for _, rows in parts for row in rows] == whole[1]


def test_quoted_csv_still_guards_what_a_spreadsheet_would_run() -> None:
    table, columns = one_column(ColumnType.TEXT, ["=1+1", "+55 11 91234-5678", ""])
    written = write_all("csv", table, columns=columns, **NON_EMPTY)
    assert written.contents == [b'"id","v"\n"1","\'=1+1"\n"2","+55 11 91234-5678"\n"3",\n']
    assert written.counters == {"guarded_cells": 1}


# --- timestamps: seconds -----------------------------------------------------------------------


def to_the_second(instant: datetime | None, zone: str) -> str | None:
    if instant is None:
        return None
    local = instant.astimezone(ZoneInfo(zone)).replace(microsecond=0)
    if (local.utcoffset() or timedelta()).total_seconds() % 60:
        zone, local = "UTC", instant.replace(microsecond=0)
    return local.isoformat().replace("+00:00", "Z") if zone == "UTC" else local.isoformat()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Europe/London"])
@pytest.mark.parametrize(
    ("name", "read"), [("csv", readers.csv_arrow), ("json", readers.json_array), ("ndjson", readers.ndjson)]
)
def test_fractions_are_cut_off(name: str, read: Callable[[bytes], readers.Rows], zone: str) -> None:
    table, columns = one_column(ColumnType.TIMESTAMP, INSTANTS)
    written = write_all(name, table, columns=columns, time_zone=zone, **SECONDS)
    found = [row[1] for row in read(written.contents[0])[1]]
    assert found == [to_the_second(instant, zone) for instant in INSTANTS]
    assert zone != "UTC" or {"1969-12-31T23:59:59Z", "2026-03-08T01:30:00Z"} <= set(found)


def test_fractions_are_cut_off_in_a_workbook_too() -> None:
    table, columns = one_column(ColumnType.TIMESTAMP, INSTANTS)
    rows = readers.xlsx_openpyxl(write_all("xlsx", table, columns=columns, **SECONDS).contents[0])[1]
    for (_, found), instant in zip(rows, INSTANTS, strict=True):
        if isinstance(found, str):  # before Excel's calendar
            assert found == to_the_second(instant, "UTC")
        else:
            assert found == (instant and instant.replace(tzinfo=None, microsecond=0))


def test_parquet_keeps_its_instants_and_its_json() -> None:
    options: dict[str, Any] = {"timestamps": "seconds", "comma_separated": frozenset({"doc"}), **NON_EMPTY}
    assert write_all("parquet", nasty_table(), **options).contents == write_all("parquet", nasty_table()).contents


# --- arrays: comma_separated -------------------------------------------------------------------

ARRAYS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("[]", ""),
    ('["ana@x.example"]', "ana@x.example"),
    ('["ana@x.example", "ana+2@x.example"]', "ana@x.example,ana+2@x.example"),
    ('\n[\n  "pretty" ,"printed"\n]', "pretty,printed"),
    ('["\\u00f1", "\\ud83d\\ude00", "a\\/b", "é"]', "ñ,😀,a/b,é"),
    ('["two words", "it\'s; |"]', "two words,it's; |"),
    ('["12", "true"]', "12,true"),
)
KEPT_AS_JSON = (
    '["a,b"]', '["say \\"hi\\""]', '["a", " b"]', '["a\\u00a0"]', '["tab\\t"]', '["line\\nfeed"]', '["\\u0000"]',
    '[""]', '["a", ""]', '["[1]"]', '["{}"]', '["a", null]', '["a", 1]', '[["a"]]', "[1, 2]", '{"a": ["b"]}', '"a"',
    "null", '["\\ud800"]', '["\\"]', '["a"', '["a" "b"]', "plain text",
)  # fmt: skip
DOCS = [*(value for value, _ in ARRAYS), *KEPT_AS_JSON]
SHOWN = [*(shown for _, shown in ARRAYS), *KEPT_AS_JSON]
COMMAS: dict[str, Any] = {"comma_separated": frozenset({"v"})}


@pytest.mark.parametrize("batch_rows", [1000, 3])
def test_plain_arrays_are_joined_in_csv_and_all_else_keeps_its_json(batch_rows: int) -> None:
    table, columns = one_column(ColumnType.JSON, DOCS)
    written = write_all("csv", table, columns=columns, batch_rows=batch_rows, **COMMAS)
    assert [row[1] for row in readers.csv_arrow(written.contents[0])[1]] == SHOWN
    assert written.counters == {"guarded_cells": 0}


def test_plain_arrays_are_joined_in_a_workbook() -> None:
    table, columns = one_column(ColumnType.JSON, DOCS)
    rows = readers.xlsx_openpyxl(write_all("xlsx", table, columns=columns, **COMMAS).contents[0])[1]
    assert [row[1] or None for row in rows] == [shown or None for shown in SHOWN]


@pytest.mark.parametrize(("name", "read"), [("json", readers.json_array), ("ndjson", readers.ndjson)])
def test_json_keeps_arrays(name: str, read: Callable[[bytes], readers.Rows]) -> None:
    docs = [value for value in DOCS if value is None or is_json(value)]
    table, columns = one_column(ColumnType.JSON, docs)
    rows = read(write_all(name, table, columns=columns, **COMMAS).contents[0])[1]
    assert [row[1] for row in rows] == [value and json.loads(value) for value in docs]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def test_other_columns_keep_their_json() -> None:
    table = table_of({"id": [1], "doc": ['["a", "b"]'], "label": ['["a", "b"]']})
    columns = (COLUMNS[5], COLUMNS[1])
    written = write_all("csv", table, columns=columns, comma_separated=frozenset({"uid"}), **NON_EMPTY)
    assert readers.csv_module(written.contents[0])[1] == [['["a", "b"]'] * 2]


@pytest.mark.parametrize(("guard", "first"), [(True, "'=cmd@x.example,+1"), (False, "=cmd@x.example,+1")])
def test_an_array_that_begins_with_a_formula_is_guarded(guard: bool, first: str) -> None:
    table, columns = one_column(ColumnType.JSON, ['["=cmd@x.example", "+1"]', '["a", "=1"]', '["=1", null]'])
    written = write_all("csv", table, columns=columns, guard_formulas=guard, **COMMAS)
    assert [row[1] for row in readers.csv_module(written.contents[0])[1]] == [first, "a,=1", '["=1", null]']
    assert written.counters == {"guarded_cells": int(guard)}


# --- the three systems' files ------------------------------------------------------------------

SENDGRID_HEADER = (
    b'"EMAIL","FIRST_NAME","LAST_NAME","ADDRESS_LINE_1","ADDRESS_LINE_2","CITY","STATE_PROVINCE_REGION","POSTAL_CODE",'
    b'"COUNTRY","ALTERNATE_EMAILS","PHONE_NUMBER","WHATSAPP","LINE","FACEBOOK","UNIQUE_NAME","CREATED_AT","UPDATED_AT",'
    b'"CONTACT_ID"'
)
CONTACTS = {
    "id": [1, 2],
    "email": ["ana@example.com", "luis@example.org"],
    "first_name": ["Ana", None],
    "last_name": ['O\'Brien, "Nan"', ""],
    "city": ["São\nPaulo", None],
    "postal_code": ["01310-100", None],
    "alternate_emails": ['["ana@example.net", "a.s@example.net"]', "[]"],
    "phone_number": ["+5511912345678", None],
    "created_at": [datetime(2021, 2, 1, 12, 35, 22, 999_999, UTC), datetime(2021, 2, 1, 12, 35, 23, tzinfo=UTC)],
    "updated_at": [datetime(2021, 2, 1, 12, 36, tzinfo=UTC), datetime(2021, 2, 1, 12, 36, 0, 1, UTC)],
    "contact_id": ["a1f5c3a2-0d57-4a68-9d4a-0a2e3a1c0c11", "b2f5c3a2-0d57-4a68-9d4a-0a2e3a1c0c12"],
    "name": ["Ana", None],
    "location": [None, None],
}


def write_layout(name: str, layout_name: str) -> bytes:
    """One file of ``CONTACTS`` in a shipped layout of contacts."""
    dataset = load_catalog("")["contacts"]
    layout = dataset.layouts[layout_name]
    shown = dataset.layout(layout_name, table=name in {"csv", "xlsx"}) or ()
    columns = tuple(OutputColumn(item.column.name, item.header, item.column.type) for item in shown)
    values = {column.name: CONTACTS.get(column.name, [None, None]) for column in columns}
    written = write_all(
        name,
        table_of(values, columns),
        columns=columns,
        key=columns[0].name,
        csv_quoting=layout.csv_quoting,
        timestamps=layout.timestamps,
        comma_separated=frozenset(layout.array_columns if layout.arrays == "comma_separated" else ()),
    )
    return written.contents[0]


def test_sendgrid_csv_is_the_documented_one_byte_for_byte() -> None:
    """The form of the export file in Airbyte's fixture for source-sendgrid (decompressed_response.csv)."""
    data = write_layout("csv", "sendgrid_legacy")
    rows = (
        '"ana@example.com","Ana","O\'Brien, ""Nan""",,,"São\nPaulo",,"01310-100",,"ana@example.net,a.s@example.net",'
        '"+5511912345678",,,,,"2021-02-01T12:35:22Z","2021-02-01T12:36:00Z","a1f5c3a2-0d57-4a68-9d4a-0a2e3a1c0c11"\n'
        '"luis@example.org",,,,,,,,,,,,,,,"2021-02-01T12:35:23Z","2021-02-01T12:36:00Z",'
        '"b2f5c3a2-0d57-4a68-9d4a-0a2e3a1c0c12"\n'
    )
    assert data == SENDGRID_HEADER + b"\n" + rows.encode()


def test_sendgrid_json_lines_have_lower_case_keys_and_arrays() -> None:
    first = json.loads(write_layout("ndjson", "sendgrid").split(b"\n")[0])
    assert list(first)[:18] == SENDGRID_HEADER.decode().lower().replace('"', "").split(",")
    assert first["alternate_emails"] == ["ana@example.net", "a.s@example.net"]
    assert (first["created_at"], first["custom_fields"]) == ("2021-02-01T12:35:22Z", None)


def test_newer_sendgrid_csv_goes_on_after_the_contact_id() -> None:
    header = write_layout("csv", "sendgrid").split(b"\n")[0]
    added = header.removeprefix(SENDGRID_HEADER + b",").decode().split(",")
    assert added == ['"CUSTOM_FIELDS"', '"PHONE_NUMBER_ID"', '"EXTERNAL_ID"', '"ANONYMOUS_ID"']


def test_a_cometly_line_is_the_documented_one_byte_for_byte() -> None:
    assert write_layout("ndjson", "cometly").split(b"\n")[0] == (
        b'{"id":1,"email":"ana@example.com","name":"Ana","phone":"+5511912345678","location":null}'
    )
