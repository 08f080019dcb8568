"""LibreOffice as a reader: a workbook's sheets as CSV, and its cells with their types.

What belongs here: running it, reading what it writes. What does not: what must stand in the cells (test_libreoffice).
"""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from export_pipeline_tests.contract.format_readers import csv_module

# Separator, quote, UTF-8, from line 1, no column formats, en-US, quote all text, values not as shown, no formulas, keep
# spaces, every sheet (help.libreoffice.org: "CSV filter parameters").
_CSV = "csv:Text - txt - csv (StarCalc):44,34,76,1,,1033,true,false,false,false,false,-1"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_TIMEOUT_SECONDS = 280


@dataclass(frozen=True)
class Cell:
    """What kind of cell LibreOffice has made: ``string``, ``float``, ``boolean``, ``date`` or ``empty``; its value."""

    kind: str
    value: str


def soffice() -> str:
    program = shutil.which("soffice") or shutil.which("libreoffice")
    if program is None:
        pytest.skip("LibreOffice is not installed: apt-get install libreoffice-calc-nogui (.ci/run does)")
    return program


def sheets_as_csv(workbook: Path, names: Sequence[str]) -> list[list[list[str]]]:
    """Each sheet's rows, its header with them, in the order of ``names``."""
    out = _converted(workbook, _CSV)
    return [_rows(out / f"{workbook.stem}-{name}.csv") for name in names]


def as_printed(workbook: Path) -> str:
    """The text of the pages, as a reader sees the cells."""
    pdf = _converted(workbook, "pdf") / f"{workbook.stem}.pdf"
    command = ["pdftotext", "-layout", str(pdf), "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS).stdout


def _rows(path: Path) -> list[list[str]]:
    header, rows = csv_module(path.read_bytes())
    return [header, *rows]


def sheets_as_cells(workbook: Path) -> Iterator[list[list[Cell]]]:
    """Each sheet's rows of cells; a formula anywhere fails."""
    document = ET.parse(_converted(workbook, "fods") / f"{workbook.stem}.fods")
    for sheet in document.iter(f"{_TABLE}table"):
        yield [cells for row in sheet.iter(f"{_TABLE}table-row") if (cells := list(_cells(row)))]


def _cells(row: ET.Element) -> Iterator[Cell]:
    found: list[Cell] = []
    for cell in row.iter(f"{_TABLE}table-cell"):
        found += [_cell(cell)] * int(cell.get(f"{_TABLE}number-columns-repeated", "1"))
    while found and found[-1].kind == "empty":
        found.pop()
    yield from found


def _cell(cell: ET.Element) -> Cell:
    formula = cell.get(f"{_TABLE}formula")
    # A boolean of a workbook is to LibreOffice the formula of that name.
    if formula in ("of:=TRUE()", "of:=FALSE()"):
        return Cell("boolean", formula[4:-2].lower())
    assert formula is None
    kind = cell.get(f"{_OFFICE}value-type", "empty")
    names = {"float": "value", "date": "date-value"}
    return Cell(kind, cell.get(f"{_OFFICE}{names[kind]}", "") if kind in names else "")


def _converted(workbook: Path, wanted: str) -> Path:
    out = workbook.parent / wanted.partition(":")[0]
    profile = (workbook.parent / "profile").as_uri()
    command = [soffice(), "--headless", "--norestore", f"-env:UserInstallation={profile}", "--convert-to", wanted]
    command += ["--outdir", str(out), str(workbook)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr
    return out
