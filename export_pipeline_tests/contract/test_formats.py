"""What every format must hold: what goes in comes out, and no file is larger than its ceiling."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import openpyxl
import openpyxl.utils
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_pipeline.catalog.types import FORMATS, ColumnType, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import open_format, splitter
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.xlsx import workbook as xlsx_format
from export_pipeline.formats.xlsx.cells import CELL_LIMIT, CUT_MARK
from export_pipeline.formats.xlsx.workbook import sheet_title
from export_pipeline.formats.xlsx.zip_stream import ZipStream
from export_pipeline_tests.contract import format_readers as readers
from export_pipeline_tests.contract.format_samples import (
    AMPLE,
    COLUMNS,
    INSTANTS,
    Written,
    nasty_table,
    one_column,
    ordinary_table,
    table_of,
    write_all,
)

NEW_YORK = ZoneInfo("America/New_York")
HEADER = [column.header for column in COLUMNS]
VARIANTS = [(name, "none") for name in FORMATS] + [(name, "gzip") for name in ("csv", "json", "ndjson")]
READERS: dict[str, Callable[[bytes], readers.Rows]] = {
    "csv": readers.csv_arrow,
    "json": readers.json_array,
    "ndjson": readers.ndjson,
    "xlsx": readers.xlsx_calamine,
    "parquet": readers.parquet_arrow,
}
every_variant = pytest.mark.parametrize(("name", "compression"), VARIANTS)


def contents(written: Written) -> list[bytes]:
    """The files without their gzip frame."""
    if written.extension.endswith(".gz"):
        return [readers.gunzip_one_member(data) for data in written.contents]
    return written.contents


def ids(name: str, written: Written) -> list[int]:
    """The ids of all rows of all files, each file read alone."""
    found: list[int] = []
    for data in contents(written):
        found += [int(row[0]) for row in READERS[name](data)[1]]
    return found


def staged_rows() -> Iterator[dict[str, Any]]:
    yield from nasty_table().to_pylist()


def check_instant(text: str, value: datetime) -> None:
    local = value.astimezone(NEW_YORK)
    is_whole = not (local.utcoffset() or timedelta()).total_seconds() % 60
    expected = local if is_whole else value
    fraction = f".{expected.microsecond:06d}" if expected.microsecond else ""
    shortened = fraction[:4] if fraction.endswith("000") else fraction
    assert text == expected.replace(microsecond=0).isoformat()[:19] + shortened + expected.isoformat()[-6:]


# --- csv ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("reader", [readers.csv_module, readers.csv_pandas, readers.csv_arrow])
def test_csv_reads_back(reader: Callable[[bytes], readers.Rows], compression: Any) -> None:
    written = write_all(
        "csv", nasty_table(), compression=compression, guard_formulas=False, time_zone="America/New_York"
    )
    header, rows = reader(contents(written)[0])
    nothing = None if reader is readers.csv_arrow else ""
    assert header == HEADER
    for row, staged in zip(rows, staged_rows(), strict=True):
        cell = dict(zip(staged, row, strict=True))
        for name in ("label", "uid", "doc", "amount"):
            assert cell[name] == (nothing if staged[name] is None else staged[name])
        assert cell["big"] == (nothing if staged["big"] is None else str(staged["big"]))
        assert cell["flag"] == {None: nothing, True: "true", False: "false"}[staged["flag"]]
        assert cell["day"] == (nothing if staged["day"] is None else staged["day"].isoformat())
        if staged["ratio"] is None:
            assert cell["ratio"] == nothing
        else:
            assert math.copysign(1, float(cell["ratio"])) == math.copysign(1, staged["ratio"])
            assert float(cell["ratio"]) == pytest.approx(staged["ratio"], rel=0, abs=0, nan_ok=True)
        if staged["at"] is None:
            assert cell["at"] == nothing
        else:
            check_instant(cell["at"], staged["at"])


def test_csv_is_what_rfc_4180_and_iso_8601_say() -> None:
    written = write_all("csv", nasty_table().slice(0, 5))
    lines = written.contents[0].decode().split("\n")
    assert lines[0] == 'ID,"The ""label"", quoted",uid,big & <wide>,ratio,doc,Montão é,flag,at,day'
    assert lines[1].startswith("1,,6f0c0000-0000-4000-8000-000000000000,0,0.30000000000000004,")
    assert lines[1].endswith(",12.50,true,2026-03-08T06:59:59+00:00,2026-03-08")
    assert lines[2].startswith('2,"",')
    assert lines[-1] == ""
    assert b"\r" not in written.contents[0]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_of_one_column_has_no_line_that_looks_empty(delimiter: str) -> None:
    """pandas and others pass over lines on which nothing can be seen."""
    values = [None, "", " ", "\t ", "\u00a0", "a", ' "', "x,y", "x;y", "\n", "\r", " \r\n", "plain", '"']
    columns = (OutputColumn("id", " ", ColumnType.TEXT),)
    written = write_all(
        "csv", table_of({"id": values}, columns), columns=columns, csv_delimiter=delimiter, guard_formulas=False
    )
    text = written.contents[0].decode()
    assert text.count("plain\n") == 1
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))[1:] == [[v or ""] for v in values]
    frame = pd.read_csv(io.StringIO(text, newline=""), sep=delimiter, keep_default_na=False, dtype=str)
    assert frame[" "].tolist() == [value or "" for value in values]


@pytest.mark.parametrize("header", ["a\rb", "a\nb", 'a"b', "a,b", "a;b", "plain", " "])
def test_csv_headers_are_quoted_where_their_characters_ask_for_it(header: str) -> None:
    columns = (OutputColumn("id", header, ColumnType.INTEGER), OutputColumn("w", header + "2", ColumnType.INTEGER))
    data = write_all("csv", table_of({"id": [1], "w": [2]}, columns), columns=columns).contents[0]
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    assert rows == [[header, header + "2"], ["1", "2"]]
    assert (b"\r" in data) == ("\r" in header)
    options = pa.csv.ParseOptions(newlines_in_values=True)
    assert pa.csv.read_csv(io.BytesIO(data), parse_options=options).column_names == [header, header + "2"]


HARMLESS = [
    "-12.5", "+3", "-1e5", "-1,234.50", "-.5", "+55 (11) 91234-5678", "+1-555-123-4567", "+5511912345678", "-5%",
    "+49 89/1234 56", "-", "+", "plain", "a=b", "1+1", " =1", "'=1", "", None, "007", "-1.2E-3", "+55\u00a011\u00a09",
    "-Infinity", "-inf", "-$0.01", "-$1,234.50", "-€ 5", "-1 years -2 mons +3 days -04:05:06.5", "-1 day", "-04:05:06",
]  # fmt: skip
DANGEROUS = [
    "=1", "=SUM(A1)", "@x", "\t=1", "\rx", "\n=1", "+A1", "-A1", "+cmd|' /C calc'!A0", "-2+3", "--1", "+1;=2", "-1e5x",
    "+55 (11) 91234-5678 =x", "\uff1d1", "\uff0bA1", "\uff0dA1", "\uff20x", "+1\n=2", "-x", "- note", "+(A1)", "+()",
    "-$A$1", "-R$1", "-Infinity()", "-1 day|x", "-1 days A1", "-1:2", "-$1+A1",
]  # fmt: skip


def test_csv_guards_what_a_spreadsheet_would_run() -> None:
    table, columns = one_column(ColumnType.TEXT, [*HARMLESS, *DANGEROUS])
    written = write_all("csv", table, columns=columns)
    cells = [row[1] for row in readers.csv_arrow(written.contents[0])[1]]
    assert cells == [*HARMLESS, *(f"'{text}" for text in DANGEROUS)]
    assert written.counters == {"guarded_cells": len(DANGEROUS)}
    assert written.files[0].counters == written.counters


@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize("kind", [ColumnType.DECIMAL, ColumnType.UUID])
def test_csv_guards_what_is_declared_otherwise_and_may_be_any_text_in_the_source(kind: ColumnType, mark: str) -> None:
    table, columns = one_column(kind, ["-1", "=x"])
    written = write_all("csv", table, columns=columns, csv_decimal_mark=mark, csv_delimiter=";")
    assert [row[1] for row in readers.csv_module(written.contents[0], delimiter=";")[1]] == ["-1", "'=x"]
    assert written.counters == {"guarded_cells": 1}


def test_csv_does_not_guard_json_which_begins_with_nothing_that_runs() -> None:
    table, columns = one_column(ColumnType.JSON, ["-1", '["=x"]'])
    written = write_all("csv", table, columns=columns)
    assert [row[1] for row in readers.csv_module(written.contents[0])[1]] == ["-1", '["=x"]']


def test_csv_guard_can_be_switched_off() -> None:
    table, columns = one_column(ColumnType.TEXT, ["=1"])
    assert write_all("csv", table, columns=columns, guard_formulas=False).contents == [b"id,v\n1,=1\n"]


def test_csv_profile_for_excel() -> None:
    written = write_all(
        "csv", nasty_table(), csv_bom=True, csv_delimiter=";", csv_decimal_mark=",", guard_formulas=False
    )
    data = written.contents[0]
    assert data.startswith(b"\xef\xbb\xbfID;")
    header, rows = readers.csv_module(data[3:], ";")
    assert header == HEADER
    first, ninth = rows[0], rows[8]
    assert (first[4], first[6]) == ("0,30000000000000004", "12,50")
    assert ninth[1] == "a,b;c|d"
    assert [row[1] for row in rows] == [staged["label"] or "" for staged in staged_rows()]


def test_csv_decimal_comma_is_quoted_where_it_would_separate() -> None:
    table, columns = one_column(ColumnType.FLOAT, [1.5])
    assert write_all("csv", table, columns=columns, csv_decimal_mark=",").contents == [b'id,v\n1,"1,5"\n']


# --- json, ndjson ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "compression"), [variant for variant in VARIANTS if "json" in variant[0]])
def test_json_reads_back(name: str, compression: Any) -> None:
    written = write_all(name, nasty_table(), compression=compression, time_zone="America/New_York")
    header, rows = READERS[name](contents(written)[0])
    assert header == HEADER
    for row, staged in zip(rows, staged_rows(), strict=True):
        cell = dict(zip(staged, row, strict=True))
        for key in ("id", "label", "uid", "big", "flag"):
            assert cell[key] == staged[key]
            assert type(cell[key]) is type(staged[key])
        assert cell["doc"] == (None if staged["doc"] is None else json.loads(staged["doc"], parse_float=Decimal))
        is_number = staged["amount"] not in {None, "NaN"}
        assert cell["amount"] == (Decimal(staged["amount"]) if is_number else None)
        is_finite = staged["ratio"] is not None and math.isfinite(staged["ratio"])
        assert cell["ratio"] == (pytest.approx(Decimal(repr(staged["ratio"])), rel=0, abs=0) if is_finite else None)
        assert cell["day"] == (staged["day"] and staged["day"].isoformat())
        assert (cell["at"] is None) == (staged["at"] is None)
        if staged["at"] is not None:
            check_instant(cell["at"], staged["at"])
    bad_floats = sum(row["ratio"] is not None and not math.isfinite(row["ratio"]) for row in staged_rows())
    bad_decimals = sum(row["amount"] == "NaN" for row in staged_rows())
    assert written.counters == {"non_finite_numbers": bad_floats + bad_decimals}


def test_json_shapes() -> None:
    table, columns = one_column(ColumnType.TEXT, ["é\u2028", None])
    expected = '{"id":1,"v":"é\u2028"}', '{"id":2,"v":null}'
    assert write_all("ndjson", table, columns=columns).contents == ["".join(f"{e}\n" for e in expected).encode()]
    assert write_all("json", table, columns=columns).contents == [("[\n" + ",\n".join(expected) + "\n]\n").encode()]


def test_json_of_raw_columns_alone_in_any_order() -> None:
    table, columns = one_column(ColumnType.JSON, ["[1]", None])
    swapped = (columns[1], columns[0], OutputColumn("v", 'again"', ColumnType.JSON))
    data = write_all("ndjson", table, columns=swapped).contents[0]
    assert data == b'{"v":[1],"id":1,"again\\"":[1]}\n{"v":null,"id":2,"again\\"":null}\n'
    assert write_all("ndjson", table, columns=columns[1:]).contents == [b'{"v":[1]}\n{"v":null}\n']


def test_json_decimals_that_json_does_not_spell() -> None:
    table, columns = one_column(ColumnType.DECIMAL, ["+1.5", "007", "-.5", "1.", "-Infinity", "1E+5", "0", "-000.10"])
    written = write_all("ndjson", table, columns=columns)
    values = [row[1] for row in readers.ndjson(written.contents[0])[1]]
    assert values == [Decimal("1.5"), 7, Decimal("-0.5"), 1, None, Decimal("1E+5"), 0, Decimal("-0.1")]
    assert written.counters == {"non_finite_numbers": 1}


def test_json_refuses_a_decimal_that_would_break_the_file() -> None:
    table, columns = one_column(ColumnType.DECIMAL, ["1", "12,5", None])
    with pytest.raises(ExportFailure) as failure:
        write_all("json", table, columns=columns)
    assert (failure.value.code, failure.value.field) == (FailureCode.SOURCE_DATA_INVALID, "v")


# --- xlsx --------------------------------------------------------------------------------------


def shown_text(text: str | None) -> str | None:
    """The text as a workbook must hold it: cut, and without what XML forbids."""
    if text is None:
        return None
    clean = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)
    wide = clean.encode("utf-16-le")
    if len(wide) <= CELL_LIMIT * 2:
        return clean
    return wide[: (CELL_LIMIT - len(CUT_MARK)) * 2].decode("utf-16-le", "ignore") + CUT_MARK


def shown_instant(value: datetime | None) -> Any:
    """Wall clock to the millisecond, or ISO text where Excel has no calendar."""
    if value is None:
        return None
    local = value.astimezone(NEW_YORK).replace(tzinfo=None)
    if local < datetime(1900, 3, 1):  # noqa: DTZ001 - a wall clock
        return "text"
    return local.replace(microsecond=local.microsecond // 1000 * 1000)


def shown_decimal(text: str | None) -> Any:
    match = re.fullmatch(r"-?(\d+)(?:\.(\d+?)0*)?(?:[eE][+-]?\d+)?", text or "")
    if match is None:
        return text
    digits = (match[1] + (match[2] or "")).lstrip("0")
    return float(text) if len(digits) <= 15 else text  # type: ignore[arg-type]


def check_sheet_row(cell: dict[str, Any], staged: dict[str, Any]) -> None:
    for name in ("label", "uid", "doc"):
        assert cell[name] == shown_text(staged[name])
    big = staged["big"]
    assert cell["big"] == (str(big) if big is not None and abs(big) >= 10**15 else big)
    ratio = staged["ratio"]
    if ratio is not None and not math.isfinite(ratio):
        assert cell["ratio"] == {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(ratio)]
    else:
        assert cell["ratio"] == ratio
    assert cell["amount"] == shown_decimal(staged["amount"])
    assert cell["flag"] is staged["flag"]
    instant = shown_instant(staged["at"])
    if instant == "text":
        check_instant(cell["at"], staged["at"])
    elif instant is None:
        assert cell["at"] is None
    else:
        assert abs(cell["at"] - instant) < timedelta(milliseconds=1)
    day = staged["day"]
    if day is not None and day < date(1900, 3, 1):
        assert cell["day"] == day.isoformat()
    else:
        assert (cell["day"].date() if isinstance(cell["day"], datetime) else cell["day"]) == day


def test_xlsx_reads_back_with_openpyxl() -> None:
    written = write_all("xlsx", nasty_table(), time_zone="America/New_York", dataset="contacts")
    header, rows = readers.xlsx_openpyxl(written.contents[0])
    assert header == HEADER
    for row, staged in zip(rows, staged_rows(), strict=True):
        # openpyxl leaves Excel's escape for a literal _x0041_ as it stands in the file.
        plain = [re.sub("_x005F_(?=x[0-9A-Fa-f]{4})", "_", c) if isinstance(c, str) else c for c in row]
        check_sheet_row(dict(zip(staged, plain, strict=True)), staged)
    assert written.counters == {"replaced_characters": 2, "cut_cells": 2}
    sheet = openpyxl.load_workbook(io.BytesIO(written.contents[0])).active
    assert sheet.title == "contacts"
    assert sheet.freeze_panes == "A2"
    assert all(cell.font.bold for cell in sheet[1])
    assert all(cell.data_type != "f" for row in sheet.iter_rows() for cell in row)


def test_xlsx_reads_back_with_calamine() -> None:
    written = write_all("xlsx", nasty_table(), time_zone="America/New_York")
    header, rows = readers.xlsx_calamine(written.contents[0])
    assert header == HEADER
    for row, staged in zip(rows, staged_rows(), strict=True):
        # calamine has no null: an empty cell is an empty text.
        cell = {key: None if value == "" and staged[key] is None else value for key, value in zip(staged, row)}  # noqa: B905
        check_sheet_row(cell, staged)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2.5000000000000000", 2.5),  # an average of PostgreSQL
        ("123456.78900000000000000000", 123456.789),  # numeric(50, 20)
        ("0.00000000000000000000", 0),
        ("1e-07", 1e-7),
        ("-1.5E+20", -1.5e20),
        ("123456789012345e-3", 123456789012.345),
        ("123456789012345.0", 123456789012345),
        ("1234567890123456", "1234567890123456"),
        ("1234567890123450", "1234567890123450"),  # an identifier, as its neighbours
        ("0.1234567890123456", "0.1234567890123456"),
        ("1e-400", "1e-400"),  # would be 0
        ("1e400", "1e400"),
        (f"0.{'0' * 400}1", f"0.{'0' * 400}1"),
        (f"-0.{'0' * 400}", 0),
        ("Infinity", "Infinity"),
        ("-inf", "-Infinity"),
        ("nan", "NaN"),
        ("n/a", "n/a"),
        ("1.5.6", "1.5.6"),
        (None, None),
    ],
)
def test_xlsx_writes_a_decimal_as_a_number_if_a_cell_keeps_all_its_digits(text: str | None, shown: Any) -> None:
    for values in ([text], [text, "1", "x" * 400]):
        table, columns = one_column(ColumnType.DECIMAL, values)
        (_, found), *_ = readers.xlsx_openpyxl(write_all("xlsx", table, columns=columns).contents[0])[1]
        assert (found, isinstance(found, str)) == (shown, isinstance(shown, str))


@pytest.mark.parametrize("format_name", ["csv", "xlsx"])
def test_infinities_are_spelled_alike_whatever_the_type(format_name: str) -> None:
    columns = (OutputColumn("id", "id", ColumnType.INTEGER), *(
        OutputColumn(name, name, kind) for name, kind in (("f", ColumnType.FLOAT), ("d", ColumnType.DECIMAL))
    ))  # fmt: skip
    floats = [math.inf, -math.inf, math.nan, 0.1 + 0.2, 1e300, 5e-324, -0.0]
    decimals = ["inf", "-Infinity", "nan", "1", "2", "3", "4"]
    table = table_of({"id": range(7), "f": floats, "d": decimals}, columns)
    written = write_all(format_name, table, columns=columns)
    read = readers.csv_module if format_name == "csv" else readers.xlsx_openpyxl
    rows = read(written.contents[0])[1]
    for row, spelled in zip(rows, ("Infinity", "-Infinity", "NaN"), strict=False):
        assert list(row[1:]) == [spelled, spelled]
    assert [float(row[1]) for row in rows[3:]] == floats[3:]
    assert written.counters.get("guarded_cells", 0) == 0


def test_alterations_of_headers_and_decimals_are_counted_once_a_file() -> None:
    long, odd = "h" * (CELL_LIMIT + 1), "a\x01"
    columns = (OutputColumn("id", long, ColumnType.INTEGER), OutputColumn("d", odd, ColumnType.DECIMAL))
    table = table_of({"id": range(400), "d": ["9" * (CELL_LIMIT + 1), *["1.5"] * 399]}, columns)
    written = write_all("xlsx", table, columns=columns)
    assert written.counters == {"cut_cells": 2, "replaced_characters": 1}
    columns = (OutputColumn("id", "=1", ColumnType.INTEGER), OutputColumn("d", "d", ColumnType.DECIMAL))
    files = write_all("csv", table.slice(1), columns=columns, max_bytes=1000)
    assert files.counters == {"guarded_cells": len(files.files)}


def test_xlsx_columns_are_as_wide_as_their_type_header_and_first_rows_ask() -> None:
    written = write_all("xlsx", ordinary_table(50))
    sheet = openpyxl.load_workbook(io.BytesIO(written.contents[0])).active
    widths = {
        column.name: sheet.column_dimensions[openpyxl.utils.get_column_letter(n)].width
        for n, column in enumerate(COLUMNS, 1)
    }
    assert (widths["at"], widths["day"]) == (20, 12)
    assert widths["uid"] >= 36
    assert widths["label"] >= len('The "label", quoted') + 3
    assert max(widths.values()) <= 60
    assert sheet.auto_filter.ref == f"A1:{openpyxl.utils.get_column_letter(len(COLUMNS))}51"
    header, cell = sheet["A1"].font, sheet["A2"].font
    assert (header.bold, header.name, header.size, header.scheme) == (True, cell.name, cell.size, cell.scheme)


def test_xlsx_replaces_every_character_that_xml_forbids() -> None:
    forbidden = [chr(code) for code in (*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF)]
    table, columns = one_column(ColumnType.TEXT, [f"a{character}b" for character in forbidden])
    written = write_all("xlsx", table, columns=columns)
    assert {row[1] for row in readers.xlsx_openpyxl(written.contents[0])[1]} == {"a\ufffdb"}
    assert written.counters["replaced_characters"] == len(forbidden)


def test_xlsx_continues_on_the_next_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_format, "SHEET_ROWS", 101)
    written = write_all("xlsx", ordinary_table(250), dataset="a/b:contacts")
    book = openpyxl.load_workbook(io.BytesIO(written.contents[0]))
    assert book.sheetnames == ["a b contacts", "a b contacts (2)", "a b contacts (3)"]
    found: list[Any] = []
    for number, sheet in enumerate(book.worksheets):
        assert sheet.freeze_panes == "A2"
        for read in (readers.xlsx_openpyxl, readers.xlsx_calamine):
            header, rows = read(written.contents[0], number)
            assert header == HEADER
            assert len(rows) == (100, 100, 50)[number]
        found += [row[0] for row in rows]
    assert found == list(range(1, 251))
    assert [sheet.auto_filter.ref for sheet in book.worksheets] == ["A1:J101", "A1:J101", "A1:J51"]
    workbook = zipfile.ZipFile(io.BytesIO(written.contents[0])).read("xl/workbook.xml").decode()
    named = re.findall(r"_xlnm._FilterDatabase[^<]*!([^<]*)</definedName>", workbook)
    assert named == ["$A$1:$J$101", "$A$1:$J$101", "$A$1:$J$51"]


def test_xlsx_of_exactly_one_full_sheet_has_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_format, "SHEET_ROWS", 101)
    written = write_all("xlsx", ordinary_table(100))
    assert openpyxl.load_workbook(io.BytesIO(written.contents[0])).sheetnames == ["export"]


def test_xlsx_sheets_and_files_together_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_format, "SHEET_ROWS", 51)
    written = write_all("xlsx", ordinary_table(2000), max_bytes=30_000)
    assert len(written.files) > 2
    found: list[Any] = []
    for file, data in zip(written.files, written.contents, strict=True):
        assert len(data) <= 30_000
        sheets = openpyxl.load_workbook(io.BytesIO(data)).worksheets
        assert len(sheets) == -(-file.rows // 50)
        found += [row[0] for sheet in sheets for row in sheet.iter_rows(min_row=2, values_only=True)]
    assert found == list(range(1, 2001))


def test_xlsx_sheet_stays_below_what_a_zip_entry_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_format, "SHEET_BYTES", 200_000)
    monkeypatch.setattr(splitter, "BLOCK_ROWS", 500)
    written = write_all("xlsx", ordinary_table(2000))
    assert len(openpyxl.load_workbook(io.BytesIO(written.contents[0])).sheetnames) > 1


@pytest.mark.parametrize(
    ("dataset", "number", "title"),
    [
        ("contacts", 1, "contacts"),
        ("contacts", 2, "contacts (2)"),
        ("[a]:b*c?d/e\\f", 1, "a  b c d e f"),
        ("x" * 40, 12, "x" * 26 + " (12)"),
        ("'quoted'", 1, "quoted"),
        ("", 1, "export"),
        ("History", 1, "History export"),
    ],
)
def test_xlsx_sheet_titles(dataset: str, number: int, title: str) -> None:
    assert sheet_title(dataset, number) == title


def test_xlsx_is_a_sound_archive() -> None:
    data = write_all("xlsx", nasty_table()).contents[0]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert not any(info.extract_version > 20 for info in archive.infolist())


def test_zip_directory_beyond_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offsets are shifted, as if 4 GiB had come before; zipfile allows for such a prefix."""
    from export_pipeline.formats import deflate

    sink = io.BytesIO()
    archive = ZipStream(sink)
    archive.position = 1 << 32
    archive.begin("first.xml")
    archive.append(b"abc" * 99, deflate.pack(b"abc" * 99))
    archive.end()
    archive.add("second.xml", b"x", deflate.pack(b"x") + deflate.END)
    archive.close()

    class Shifted(io.BytesIO):
        """As large as it claims, without the 4 GiB of zeros."""

        def seek(self, offset: int, whence: int = 0) -> int:
            position = super().seek(offset - (1 << 32) if whence == 0 else offset, whence)
            return position + (1 << 32)

        def tell(self) -> int:
            return super().tell() + (1 << 32)

    with zipfile.ZipFile(Shifted(sink.getvalue())) as book:
        assert book.read("first.xml") == b"abc" * 99
        assert book.read("second.xml") == b"x"


# --- parquet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [readers.parquet_arrow, readers.parquet_pandas])
def test_parquet_reads_back(reader: Callable[[bytes], readers.Rows]) -> None:
    written = write_all("parquet", nasty_table())
    header, rows = reader(written.contents[0])
    assert header == HEADER
    for row, staged in zip(rows, staged_rows(), strict=True):
        for value, expected in zip(row, staged.values(), strict=True):
            if isinstance(expected, float) and math.isnan(expected):
                assert value is None or math.isnan(value)  # to pandas a NaN is missing
            else:
                assert value == expected


def test_parquet_is_typed() -> None:
    data = write_all("parquet", nasty_table()).contents[0]
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema_arrow.field("at").type == pa.timestamp("us", tz="UTC")
    assert file.schema_arrow.field("day").type == pa.date32()
    assert file.schema_arrow.field("flag").type == pa.bool_()
    column = file.metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"
    assert column.statistics is None  # no row's text in the footer
    assert file.metadata.row_group(0).column(0).statistics.max == len(nasty_table())


# --- every format ------------------------------------------------------------------------------


@every_variant
def test_names_and_media_types(name: str, compression: Any) -> None:
    written = write_all(name, ordinary_table(1), compression=compression)
    assert written.extension == (f"{name}.gz" if compression == "gzip" else name)
    assert (
        written.media_type
        == {
            "csv": "text/csv; charset=utf-8",
            "json": "application/json",
            "ndjson": "application/x-ndjson",
            "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            "parquet": "application/vnd.apache.parquet",
            "gzip": "application/gzip",
        }[compression if compression == "gzip" else name]
    )


@every_variant
def test_no_rows_make_one_valid_file(name: str, compression: Any) -> None:
    written = write_all(name, ordinary_table(0), compression=compression)
    assert [(file.ordinal, file.rows) for file in written.files] == [(1, 0)]
    (data,) = contents(written)
    header, rows = READERS[name](data)
    assert rows == []
    assert header == ([] if "json" in name else HEADER)
    assert name != "json" or data == b"[]\n"


@every_variant
def test_files_are_told_as_they_are(name: str, compression: Any) -> None:
    written = write_all(name, ordinary_table(3000), compression=compression, max_bytes=60_000)
    assert len(written.files) > 1
    for ordinal, (file, data) in enumerate(zip(written.files, written.contents, strict=True), 1):
        assert (file.ordinal, file.bytes, file.sha256) == (ordinal, len(data), hashlib.sha256(data).hexdigest())
    assert sum(file.rows for file in written.files) == 3000
    assert written.progress == sorted(written.progress)
    assert written.progress[-1] == 3000


@every_variant
def test_bytes_depend_on_the_rows_alone(name: str, compression: Any) -> None:
    table = pa.concat_tables([ordinary_table(30_000), nasty_table()])
    digests = {
        tuple(file.sha256 for file in write_all(name, table, compression=compression, batch_rows=rows).files)
        for rows in (65_536, 65_536, 1_000, 16_385)
    }
    assert len(digests) == 1


@pytest.mark.slow
@every_variant
def test_files_are_well_filled(name: str, compression: Any) -> None:
    written = write_all(name, ordinary_table(120_000), compression=compression, max_bytes=1_000_000)
    least = 0.9 if compression == "none" else 0.85
    assert len(written.files) > 1
    assert all(least * 1_000_000 <= file.bytes <= 1_000_000 for file in written.files[:-1])
    assert ids(name, written) == list(range(1, 120_001))


@every_variant
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 1500),
    ceiling=st.integers(14_000, 90_000),
    batch_rows=st.integers(1, 2000),
    seed=st.integers(0, 1000),
)
def test_no_file_is_larger_than_its_ceiling(
    name: str, compression: Any, rows: int, ceiling: int, batch_rows: int, seed: int
) -> None:
    table = ordinary_table(rows, seed=seed)
    written = write_all(name, table, compression=compression, max_bytes=ceiling, batch_rows=batch_rows)
    assert all(len(data) <= ceiling for data in written.contents)
    assert all(file.rows for file in written.files) or len(written.files) == 1
    assert ids(name, written) == list(range(1, rows + 1))
    if name == "csv":
        assert all(READERS[name](data)[0] == HEADER for data in contents(written))


@every_variant
def test_a_row_that_fits_no_file_is_named_by_its_key(name: str, compression: Any) -> None:
    noise = hashlib.shake_256(b"seed").hexdigest(60_000)  # does not compress to less than half
    table, columns = one_column(ColumnType.TEXT, ["short", "short", noise[:30_000], "short"])
    with pytest.raises(ExportFailure) as failure:
        write_all(name, table, columns=columns, compression=compression, max_bytes=12_000)
    assert failure.value.code is FailureCode.ROW_TOO_LARGE
    assert "id 3 " in failure.value.message
    assert noise[:20] not in failure.value.message


@every_variant
def test_a_row_that_just_fits_is_written(name: str, compression: Any) -> None:
    table, columns = one_column(ColumnType.TEXT, [hashlib.shake_256(b"seed").hexdigest(10_000)])
    (file,) = write_all(name, table, columns=columns, compression=compression).files
    slack = 1200 if name == "parquet" else 400 if name == "xlsx" else 0
    written = write_all(name, table, columns=columns, compression=compression, max_bytes=file.bytes + slack)
    assert [each.rows for each in written.files] == [1]
    with pytest.raises(ExportFailure):
        write_all(name, table, columns=columns, compression=compression, max_bytes=file.bytes - 1)


@every_variant
def test_a_ceiling_below_an_empty_file_fails(name: str, compression: Any) -> None:
    with pytest.raises(ExportFailure) as failure:
        write_all(name, ordinary_table(3), compression=compression, max_bytes=1)
    assert failure.value.code is (
        FailureCode.ROW_TOO_LARGE if (name, compression) == ("ndjson", "none") else FailureCode.FILE_SIZE_TOO_SMALL
    )


@every_variant
def test_what_progress_raises_aborts_the_file_at_hand(name: str, compression: Any) -> None:
    class StopError(Exception):
        pass

    events: list[str] = []

    @contextmanager
    def create(ordinal: int) -> Iterator[BinaryIO]:
        try:
            yield io.BytesIO()
        except StopError:
            events.append("aborted")
            raise

    def progress(rows: int) -> None:
        raise StopError

    fmt = open_format(name, FormatOptions(COLUMNS, AMPLE, compression))
    batches = ordinary_table(10).to_batches()
    with pytest.raises(StopError):
        list(splitter.write_files(batches, fmt, create, key="id", max_bytes=AMPLE, progress=progress))
    assert events == ["aborted"]


@every_variant
def test_a_file_past_its_ceiling_is_never_handed_over(name: str, compression: Any) -> None:
    """A belt: the format is told more than the splitter allows."""
    fmt = open_format(name, FormatOptions(COLUMNS, AMPLE, compression))

    @contextmanager
    def create(ordinal: int) -> Iterator[BinaryIO]:
        yield io.BytesIO()

    with pytest.raises(ExportFailure) as failure:
        list(
            splitter.write_files(
                ordinary_table(10).to_batches(), fmt, create, key="id", max_bytes=10, progress=lambda rows: None
            )
        )
    assert failure.value.code is FailureCode.SIZE_LIMIT_EXCEEDED


@pytest.mark.parametrize("name", FORMATS)
def test_fat_rows_are_encoded_few_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitter, "BLOCK_BYTES", 10_000)
    written = write_all(name, ordinary_table(1000))
    assert ids(name, written) == list(range(1, 1001))
    assert len(written.progress) > 10


@pytest.mark.parametrize("name", ["csv", "json", "ndjson", "xlsx"])
def test_instants_keep_their_offset_over_a_change_of_clocks(name: str) -> None:
    table, columns = one_column(ColumnType.TIMESTAMP, INSTANTS[3:5])
    written = write_all(name, table, columns=columns, time_zone="America/New_York")
    values = [row[1] for row in READERS[name](written.contents[0])[1]]
    if name == "xlsx":  # both are half past one on the wall
        assert values == [datetime(2026, 11, 1, 1, 30)] * 2  # noqa: DTZ001 - a wall clock
    else:
        assert values == ["2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00"]


@pytest.mark.parametrize(
    ("name", "options", "code", "field"),
    [
        ("xls", {}, FailureCode.UNKNOWN_FORMAT, "format"),
        ("csv", {"compression": "zip"}, FailureCode.UNKNOWN_COMPRESSION, "compression"),
        ("xlsx", {"compression": "gzip"}, FailureCode.UNKNOWN_COMPRESSION, "compression"),
        ("parquet", {"compression": "gzip"}, FailureCode.UNKNOWN_COMPRESSION, "compression"),
        ("csv", {"csv_delimiter": "ab"}, FailureCode.INVALID_OPTION, "csv_delimiter"),
        ("csv", {"csv_delimiter": '"'}, FailureCode.INVALID_OPTION, "csv_delimiter"),
        ("csv", {"csv_decimal_mark": ";"}, FailureCode.INVALID_OPTION, "csv_decimal_mark"),
        ("ndjson", {"time_zone": "Mars/Olympus"}, FailureCode.INVALID_OPTION, "time_zone"),
        ("csv", {"time_zone": "America"}, FailureCode.INVALID_OPTION, "time_zone"),
        ("xlsx", {"time_zone": "../etc/passwd"}, FailureCode.INVALID_OPTION, "time_zone"),
    ],
)
def test_what_cannot_be_asked(name: str, options: dict[str, Any], code: FailureCode, field: str) -> None:
    with pytest.raises(ExportFailure) as failure:
        open_format(name, FormatOptions(COLUMNS, AMPLE, **options))
    assert (failure.value.code, failure.value.field) == (code, field)


def test_a_sheet_has_no_more_columns_than_excel() -> None:
    columns = (OutputColumn("id", "id", ColumnType.INTEGER),) * 16_385
    with pytest.raises(ExportFailure) as failure:
        open_format("xlsx", FormatOptions(columns, AMPLE))
    assert failure.value.code is FailureCode.NOT_SUPPORTED


MEASURE = """
import sys
from contextlib import nullcontext
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.splitter import write_files
from export_pipeline_tests.contract.format_samples import COLUMNS, ordinary_table

class Nowhere:
    def write(self, data): return len(data)

name, batches = sys.argv[1], int(sys.argv[2])
(batch,) = ordinary_table(20_000).combine_chunks().to_batches()
fmt = open_format(name, FormatOptions(COLUMNS, 10**9))
create = lambda ordinal: nullcontext(Nowhere())
list(write_files((batch for _ in range(batches)), fmt, create, key="id", max_bytes=10**9, progress=lambda rows: None))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("name", FORMATS)
def test_memory_does_not_grow_with_rows(name: str) -> None:
    def peak(batches: int) -> int:
        command = [sys.executable, "-c", MEASURE, name, str(batches)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # The allocators reach their plateau after some seconds: not at 20 batches.
    few, many = peak(50), peak(120)
    assert many <= few * 1.1, f"{few} kB for 50 batches, {many} kB for 120"


def test_a_process_that_opened_every_format_can_still_be_forked() -> None:
    """Run workers are forked; a process in which polars has worked could not be."""
    code = """
import os, signal
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.requests.validation.files import FORMATS
from export_pipeline_tests.contract.format_samples import COLUMNS, ordinary_table, write_all

for name in FORMATS:
    open_format(name, FormatOptions(COLUMNS, 10**9))
if not os.fork():
    signal.alarm(30)
    os._exit(sum(write_all(name, ordinary_table(10)).files[0].rows for name in FORMATS))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 50
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_the_names_cost_no_imports() -> None:
    heavy = "{'polars', 'openpyxl', 'pyarrow.parquet', 'isal'} & set(sys.modules)"
    code = f"import sys, export_pipeline.formats as f; assert f.open_format and not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
