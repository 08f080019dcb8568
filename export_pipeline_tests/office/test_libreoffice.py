"""A workbook of ours, opened in LibreOffice: cell by cell what the CSV of the same rows says, in cells of its type.

Where a workbook cannot hold what a CSV can, docs/formats.md says what becomes of it, and by that rule it is held.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import cycle, islice
from pathlib import Path
from zoneinfo import ZoneInfo

import openpyxl
import pytest

from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.formats.xlsx import workbook as xlsx_format
from export_pipeline_tests import adversarial
from export_pipeline_tests.contract import format_samples as samples
from export_pipeline_tests.contract.format_readers import csv_module
from export_pipeline_tests.contract.format_samples import COLUMNS, table_of, write_all
from export_pipeline_tests.office.libreoffice import Cell, as_printed, sheets_as_cells, sheets_as_csv

TEXTS = (*adversarial.TEXTS.values(), adversarial.LONG_TEXT, *adversarial.PHONES, *adversarial.EMAILS, *samples.TEXTS)
SHEET_ROWS = 51
FIRST_DAY = date(1900, 3, 1)


def nasty_rows() -> dict[str, list[object]]:
    values = {
        "label": TEXTS,
        "uid": [None if row % 5 == 4 else f"6f0c0000-0000-4000-8000-{row:012d}" for row in range(len(TEXTS))],
        "big": samples.INTEGERS,
        "ratio": samples.FLOATS,
        "doc": samples.DOCS,
        "amount": samples.DECIMALS,
        "flag": samples.FLAGS,
        "at": samples.INSTANTS,
        "day": samples.DAYS,
    }
    rows = {name: list(islice(cycle(given), len(TEXTS))) for name, given in values.items()}
    # The last column is never null, so that no row of LibreOffice's ends early.
    rows["day"] = [day or samples.DAYS[0] for day in rows["day"]]
    return {"id": list(range(1, len(TEXTS) + 1)), **rows}


@dataclass(frozen=True)
class Opened:
    """The same rows three times: by our CSV, by LibreOffice's CSV, by LibreOffice's cells; headers taken off."""

    ours: list[list[str]]
    csv: list[list[str]]
    cells: list[list[Cell]]
    sheets: int
    zone: ZoneInfo


@pytest.fixture(scope="module", params=["UTC", "America/Sao_Paulo"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    table, zone = table_of(nasty_rows()), request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xlsx_format, "SHEET_ROWS", SHEET_ROWS)
        written = write_all("xlsx", table, time_zone=zone)
    header, ours = csv_module(write_all("csv", table, time_zone=zone, guard_formulas=False).contents[0])
    workbook: Path = tmp_path_factory.mktemp("office") / "nasty.xlsx"
    workbook.write_bytes(written.contents[0])
    names = openpyxl.load_workbook(io.BytesIO(written.contents[0]), read_only=True).sheetnames
    sheets, cells = sheets_as_csv(workbook, names), list(sheets_as_cells(workbook))
    assert all(sheet[0] == header for sheet in sheets)
    assert all(len(sheet[0]) == len(COLUMNS) for sheet in cells)
    return Opened(
        ours,
        [row for one in sheets for row in one[1:]],
        [row for one in cells for row in one[1:]],
        len(names),
        ZoneInfo(zone),
    )


def test_every_row_is_there_once_over_several_sheets(opened: Opened) -> None:
    assert opened.sheets == math.ceil(len(TEXTS) / (SHEET_ROWS - 1)) > 2
    assert [row[0] for row in opened.csv] == [row[0] for row in opened.ours] == [str(n + 1) for n in range(len(TEXTS))]
    assert len(opened.cells) == len(TEXTS)


@pytest.mark.parametrize("place", range(len(COLUMNS)), ids=[column.name for column in COLUMNS])
def test_every_cell_says_what_the_csv_says(opened: Opened, place: int) -> None:
    kind = COLUMNS[place].type
    different = [
        (ours[0], ours[place][:200], theirs[place][:200])
        for ours, theirs in zip(opened.ours, opened.csv, strict=True)
        if not same(kind, ours[place], theirs[place], opened.zone)
    ]
    assert different == []


@pytest.mark.parametrize("place", range(len(COLUMNS)), ids=[column.name for column in COLUMNS])
def test_every_cell_is_of_its_type_and_none_is_a_formula(opened: Opened, place: int) -> None:
    kind = COLUMNS[place].type
    different = [
        (ours[0], ours[place][:200], cells[place])
        for ours, cells in zip(opened.ours, opened.cells, strict=True)
        if not is_right(kind, ours[place], cells[place], opened.zone)
    ]
    assert different == []


def test_no_cell_is_filled_with_number_signs_for_want_of_width(tmp_path: Path) -> None:
    """Programs show ### for a date or number that its column is too narrow for."""
    widest = {
        "id": [999_999_999_999_999, -999_999_999_999_999, 1],
        "big": [-999_999_999_999_999, 0, 999_999_999_999_999],
        "ratio": [-1.7976931348623157e307, -0.30000000000000004, 123456789012345.6],
        "amount": ["-12345678901234.5", "-1.23456789012345E-20", "2.5000000000000000"],
        "at": samples.INSTANTS[:1] + samples.INSTANTS[5:7],
        "day": [date(2026, 12, 28), date(1900, 3, 1), date(9999, 12, 31)],
    }
    columns = [OutputColumn(name, name, column.type) for column in COLUMNS if (name := column.name) in widest]
    rows = 3000  # what is in the first ones must not decide
    values = {name: [given[-1]] * rows + given for name, given in ((n, list(g)) for n, g in widest.items())}
    written = write_all("xlsx", table_of(values, columns), columns=tuple(columns), time_zone="America/Sao_Paulo")
    workbook = tmp_path / "wide.xlsx"
    workbook.write_bytes(written.contents[0])
    text = as_printed(workbook)
    assert "#" not in text
    for shown in ("999999999999999", "-999999999999999", "2026-12-28", "2026-03-08 03:59:59", "2.5"):
        assert shown in text


def same(kind: ColumnType, ours: str, theirs: str, zone: ZoneInfo) -> bool:
    """LibreOffice's CSV has 15 digits of a number, whole seconds, LF for CR LF, and nothing for null and empty text."""
    if ours == "" or theirs == "":
        return ours == theirs
    match kind:
        case ColumnType.INTEGER | ColumnType.FLOAT | ColumnType.DECIMAL:
            return same_number(ours, theirs)
        case ColumnType.BOOLEAN:
            return theirs == ours.upper()
        case ColumnType.TIMESTAMP if is_native(kind, ours, zone):
            return abs(wall_clock(ours, zone) - datetime.fromisoformat(theirs)) < timedelta(seconds=1)
        case ColumnType.TIMESTAMP | ColumnType.DATE:
            return theirs == ours
        case _:
            return theirs == in_a_cell(ours).replace("\r\n", "\n")


def is_right(kind: ColumnType, ours: str, cell: Cell, zone: ZoneInfo) -> bool:
    """The type, and the value: a number's to 15 digits, an instant's to the hundredth that LibreOffice writes."""
    if ours == "":
        return cell.kind in ("empty", "string")
    if not is_native(kind, ours, zone):
        return cell.kind == "string"
    match kind:
        case ColumnType.BOOLEAN:
            return cell == Cell("boolean", ours)
        case ColumnType.DATE:
            return cell == Cell("date", ours)
        case ColumnType.TIMESTAMP:
            moment = datetime.fromisoformat(cell.value)
            return cell.kind == "date" and abs(wall_clock(ours, zone) - moment) <= timedelta(milliseconds=10)
        case _:
            return cell.kind == "float" and same_number(ours, cell.value)


def is_native(kind: ColumnType, ours: str, zone: ZoneInfo) -> bool:
    """It is no text in a workbook: what a cell's 15 digits and calendar hold."""
    match kind:
        case ColumnType.DECIMAL:
            return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", ours) is not None and digits(ours) <= 15
        case ColumnType.INTEGER:
            return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", ours) is not None and digits(ours) <= 15
        case ColumnType.FLOAT:
            return math.isfinite(float(ours))
        case ColumnType.TIMESTAMP:
            return wall_clock(ours, zone).date() >= FIRST_DAY
        case ColumnType.DATE:
            return date.fromisoformat(ours) >= FIRST_DAY
        case _:
            return kind is ColumnType.BOOLEAN


def digits(number: str) -> int:
    whole, _, fraction = re.sub(r"[eE].*", "", number).partition(".")
    return len((whole.lstrip("-") + fraction.rstrip("0")).lstrip("0"))


def same_number(ours: str, theirs: str) -> bool:
    if digits(ours) > 15 and not re.search("[.eE]", ours):
        return theirs == ours
    try:
        one, other = Decimal(ours), Decimal(theirs)
    except InvalidOperation:
        return ours == theirs
    if not one.is_finite():
        return ours.lower() == theirs.lower()
    return one == other or math.isclose(one, other, rel_tol=1e-14)


def wall_clock(text: str, zone: ZoneInfo) -> datetime:
    """An offset of seconds, as they were before standard time, is one that ISO 8601 cannot write: CSV has UTC then."""
    return datetime.fromisoformat(text).astimezone(zone).replace(tzinfo=None)


def in_a_cell(text: str) -> str:
    """Forbidden characters become U+FFFD, and 32,767 UTF-16 units are as much as a cell holds."""
    allowed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\ufffd", text)
    units = allowed.encode("utf-16-le")
    if len(units) <= 2 * 32_767:
        return allowed
    mark = "… [cut]"
    return units[: 2 * (32_767 - len(mark))].decode("utf-16-le", errors="ignore") + mark
