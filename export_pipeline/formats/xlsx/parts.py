"""The parts of a workbook around its rows, as openpyxl makes them."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime

from openpyxl import Workbook
from openpyxl.styles import DEFAULT_FONT
from openpyxl.utils import get_column_letter
from openpyxl.xml.functions import tostring

_CREATED = datetime(1980, 1, 1)  # noqa: DTZ001 - openpyxl wants it naive. Fixed: the bytes depend on the rows alone
_TITLE_LIMIT = 31
LAST_ROW = 1_048_576
"""Of any sheet. The parts name it wherever the last row of a sheet belongs, which is known at the end."""
_CORE, _APP = "docProps/core.xml", "docProps/app.xml"
_FIRST = ("_rels/.rels", _CORE, _APP, "xl/theme/theme1.xml", "xl/styles.xml")
WORKBOOK = "xl/workbook.xml"
_LAST = (WORKBOOK, "xl/_rels/workbook.xml.rels", "[Content_Types].xml")


@dataclass(frozen=True)
class Styles:
    """The style numbers of cells."""

    header: int
    timestamp: int
    date: int


@dataclass(frozen=True)
class Parts:
    """The parts of a workbook with a given number of sheets."""

    first: dict[str, bytes]
    """Those that do not depend on the number of sheets: they go before the sheets."""
    last: dict[str, bytes]
    """Those that do: they go after."""
    sheet_head: bytes
    """From the start of a sheet to where its rows begin, without the widths of its columns."""
    sheet_tail: bytes
    styles: Styles

    def head(self, widths: Sequence[int]) -> bytes:
        """The beginning of a sheet whose columns are so many characters wide."""
        columns = "".join(
            f'<col min="{number}" max="{number}" width="{width}" customWidth="1"/>'
            for number, width in enumerate(widths, start=1)
        )
        before, opening, after = self.sheet_head.partition(b"<sheetData")
        return before + f"<cols>{columns}</cols>".encode() + opening + after

    def tail(self, rows: int) -> bytes:
        """The end of a sheet of so many rows, the header included: its filter covers them."""
        return self.sheet_tail.replace(f'{LAST_ROW}"'.encode(), f'{rows}"'.encode(), 1)

    def ending(self, rows_of_sheets: Sequence[int]) -> dict[str, bytes]:
        """The parts that go after the sheets."""
        rows = iter(rows_of_sheets)
        workbook = re.sub(
            rf"\${LAST_ROW}(?=</definedName>)".encode(), lambda _: f"${next(rows)}".encode(), self.last[WORKBOOK]
        )
        return {**self.last, WORKBOOK: workbook}


def sheet_name(number: int) -> str:
    """The name of a sheet's part (from 1)."""
    return f"xl/worksheets/sheet{number}.xml"


def sheet_title(dataset: str, number: int) -> str:
    """A title that Excel accepts: "contacts", "contacts (2)", ..."""
    # "History" is Excel's own; an apostrophe may not stand at either end.
    clean = re.sub(r"[\[\]:*?/\\\x00-\x1f\x7f\ufffe\uffff]", " ", dataset).strip(" '") or "export"
    clean = f"{clean} export" if clean.lower() == "history" else clean
    suffix = f" ({number})" if number > 1 else ""
    room = _TITLE_LIMIT - len(suffix)
    return clean.encode("utf-16-le")[: room * 2].decode("utf-16-le", "ignore").rstrip(" '") + suffix


def build_parts(dataset: str, columns: int, sheets: int) -> Parts:
    """Let openpyxl write a workbook of so many sheets and columns without rows, and take it apart."""
    book = Workbook()
    styles = _styles(book)
    for number in range(1, sheets + 1):
        sheet = book.active if number == 1 else book.create_sheet()
        sheet.title = sheet_title(dataset, number)
        sheet.freeze_panes = "A2"
        # With it openpyxl writes the hidden name by which Excel and LibreOffice know the range.
        sheet.auto_filter.ref = f"A1:{get_column_letter(columns)}{LAST_ROW}"
    stream = io.BytesIO()
    book.save(stream)
    with zipfile.ZipFile(stream) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    book.properties.creator, book.properties.created, book.properties.modified = "export-pipeline", _CREATED, _CREATED
    files[_CORE] = tostring(book.properties.to_tree())
    head, tail = _around_rows(files[sheet_name(sheets)])
    return Parts({n: files[n] for n in _FIRST}, {n: files[n] for n in _LAST}, head, tail, styles)


def _styles(book: Workbook) -> Styles:
    """Register the styles with the workbook; the cells that carried them are removed again."""
    sheet = book.active
    header, timestamp, date = sheet["A1"], sheet["A2"], sheet["A3"]
    bold = copy(DEFAULT_FONT)
    bold.b = True
    header.font = bold
    timestamp.number_format = "yyyy-mm-dd hh:mm:ss"
    date.number_format = "yyyy-mm-dd"
    styles = Styles(header.style_id, timestamp.style_id, date.style_id)
    sheet.delete_rows(1, 3)
    return styles


def _around_rows(sheet: bytes) -> tuple[bytes, bytes]:
    # The dimension would be that of the tiny workbook. It is optional, and not known beforehand.
    sheet = re.sub(rb"<dimension[^>]*/>", b"", sheet)
    head, opening, rest = sheet.partition(b"<sheetData")
    if not opening:
        raise RuntimeError("openpyxl wrote a sheet without <sheetData>")
    _, closing, tail = rest.partition(b"</sheetData>")
    tail = closing + tail if closing else b"</sheetData>" + rest.partition(b"/>")[2]
    return head + b"<sheetData>\n", tail
