"""Excel workbooks of any size in constant memory, under a strict ceiling.

A sheet's stream consists of independent deflate pieces, so that the size of rows is known before they are committed.
The bytes that must still follow them (the end of the sheet, the workbook, the directory) are always reserved.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from datetime import datetime
from functools import cache, cached_property, partial
from typing import BinaryIO

import pyarrow as pa
from openpyxl import Workbook
from openpyxl.styles import DEFAULT_FONT
from openpyxl.utils import get_column_letter
from openpyxl.xml.functions import tostring

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import deflate
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import Block, check_time_zone
from export_pipeline.formats.text_file import EncodedRows, Filler, too_small
from export_pipeline.formats.xlsx import zip_stream
from export_pipeline.formats.xlsx.cells import Styles, column_widths, header_xml, row_xml, widths_of_text
from export_pipeline.formats.xlsx.zip_stream import ZipStream
from export_pipeline.timing import Timer

SHEET_ROWS = 1_048_576
"""Rows of a sheet, its header included."""
SHEET_COLUMNS = 16_384
SHEET_BYTES = 4_000_000_000
"""A sheet's XML stays below the limit of an entry of a plain zip (4 GiB); then the next sheet begins."""
_LAST_ROW = 1_048_576
"""Of any sheet. The parts contain it in every place of a sheet's last row, which is known only at the end."""
_ROWS_MARGIN = 16
"""The most bytes by which a part with the real numbers of rows may be larger, compressed, than with ``_LAST_ROW``."""
_CREATED = datetime(1980, 1, 1)  # noqa: DTZ001 - openpyxl wants it naive. Fixed: the bytes depend on the rows only
_TITLE_LIMIT = 31
_CORE, _APP = "docProps/core.xml", "docProps/app.xml"
_WORKBOOK = "xl/workbook.xml"
_FIRST = ("_rels/.rels", _CORE, _APP, "xl/theme/theme1.xml", "xl/styles.xml")
"""The parts that do not depend on the number of sheets: they go before the sheets."""
_LAST = (_WORKBOOK, "xl/_rels/workbook.xml.rels", "[Content_Types].xml")


class XlsxFormat:
    """Workbooks with their options. ``replaced_characters`` and ``cut_cells`` count cells."""

    extension = "xlsx"
    media_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

    def __init__(self, options: FormatOptions) -> None:
        check_time_zone(options.time_zone)
        if options.compression != "none":
            message = "xlsx is already compressed; leave compression out or 'none'"
            raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
        if len(options.columns) > SHEET_COLUMNS:
            message = f"a sheet holds {SHEET_COLUMNS} columns, not {len(options.columns)}; use csv or parquet"
            raise ExportFailure(FailureCode.NOT_SUPPORTED, message, field="columns")
        self._options = options
        self.packing = Timer()
        self._parts = cache(partial(_Parts, options.dataset, len(options.columns)))

    @cached_property
    def counters(self) -> Counter[str]:
        """The changes in the headers of every file."""
        counted = Counter(replaced_characters=0, cut_cells=0)
        header_xml(self._options.columns, self._parts(1).styles, counted)
        return counted

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> SheetRows:
        """Turn a staged batch into rows of a sheet."""
        block = Block(batch, self._options.columns, self._options.comma_separated)
        rows = SheetRows.from_series(row_xml(block, self._options, self._parts(1).styles, counted))
        rows.widths = widths_of_text(block)
        return rows

    def open(self, sink: BinaryIO) -> XlsxFile:
        """Begin a workbook."""
        return XlsxFile(sink, self._options, self._parts, self.packing)


class SheetRows(EncodedRows):
    """Rows of a sheet, and the widths of their first texts: a file's first rows set the widths of its columns."""

    widths: Sequence[int] = ()


class _Parts:
    """The parts of a workbook with a given number of sheets, from openpyxl, and their compressed sizes."""

    def __init__(self, dataset: str, columns: int, sheets: int) -> None:
        files, self.styles = _openpyxl_parts(dataset, columns, sheets)
        self.first = {name: files[name] for name in _FIRST}
        self._last = {name: files[name] for name in _LAST}
        self._sheet_head, self._sheet_tail = _around_rows(files[sheet_name(sheets)])
        self.packed = {name: deflate.pack(files[name]) + deflate.END for name in (*_FIRST, *_LAST)}
        names = [*self.packed, *(sheet_name(number) for number in range(1, sheets + 1))]
        self.end_size = zip_stream.directory_size(names) + sum(
            zip_stream.local_size(name) + len(self.packed[name]) for name in _LAST
        )
        # The real numbers of rows compress less than one number for every sheet.
        self.end_size += _ROWS_MARGIN * (1 + sheets)
        self.sheet_end_size = (
            len(deflate.pack(self._sheet_tail)) + _ROWS_MARGIN + len(deflate.END) + zip_stream.DESCRIPTOR_SIZE
        )

    def head(self, widths: Sequence[int]) -> bytes:
        """The beginning of a sheet with columns of these widths, in characters."""
        columns = "".join(
            f'<col min="{number}" max="{number}" width="{width}" customWidth="1"/>'
            for number, width in enumerate(widths, start=1)
        )
        before, opening, after = self._sheet_head.partition(b"<sheetData")
        return before + f"<cols>{columns}</cols>".encode() + opening + after

    def tail(self, rows: int) -> bytes:
        """The end of a sheet of so many rows, the header included: its filter covers them."""
        return self._sheet_tail.replace(f'{_LAST_ROW}"'.encode(), f'{rows}"'.encode(), 1)

    def ending(self, rows_of_sheets: Sequence[int]) -> dict[str, tuple[bytes, bytes]]:
        """The parts after the sheets, by name, and each compressed."""
        rows = iter(rows_of_sheets)
        pattern = rf"\${_LAST_ROW}(?=</definedName>)".encode()
        workbook = re.sub(pattern, lambda _: f"${next(rows)}".encode(), self._last[_WORKBOOK])
        return {
            name: (workbook, deflate.pack(workbook) + deflate.END) if name == _WORKBOOK else (data, self.packed[name])
            for name, data in self._last.items()
        }


class XlsxFile:
    """One workbook being written."""

    def __init__(
        self, sink: BinaryIO, options: FormatOptions, parts_of: Callable[[int], _Parts], packing: Timer
    ) -> None:
        self._zip = ZipStream(sink)
        self._parts_of = parts_of
        self._columns, self._max_bytes = options.columns, options.max_bytes
        self._filler = Filler(self._max_bytes, packing)
        self._rows_of_sheets: list[int] = []
        self._sheet_bytes = 0
        self._begun = False
        self._widths = column_widths(self._columns)
        parts = parts_of(1)
        self._header = header_xml(self._columns, parts.styles, Counter())
        self._header_packed = deflate.pack(self._header)
        first = sum(zip_stream.local_size(name) + len(parts.packed[name]) for name in parts.first)
        if self._room_on_next_sheet() < first:
            raise too_small("xlsx", self._max_bytes, self._max_bytes - self._room_on_next_sheet() + first)
        for name, data in parts.first.items():
            self._zip.add(name, data, parts.packed[name])

    @property
    def _sheets(self) -> int:
        return len(self._rows_of_sheets)

    @property
    def _rows(self) -> int:
        return self._rows_of_sheets[-1]

    def write(self, encoded: SheetRows, start: int) -> int:
        """Take as many rows as fit (see ``FileWriter``), on as many sheets as they need."""
        if not self._sheets:
            self._widths = column_widths(self._columns, encoded.widths)
        at, rows = start, len(encoded)
        while at < rows:
            needs_sheet = not self._sheets or self._rows >= SHEET_ROWS or self._sheet_bytes >= SHEET_BYTES
            room = self._room_on_next_sheet() if needs_sheet else self._room()
            stop = min(rows, at + SHEET_ROWS - (1 if needs_sheet else self._rows))
            piece = self._filler.next(encoded, at, stop, room=room, begun=self._begun)
            if piece is None:
                break
            if needs_sheet:
                self._end_sheet()
                self._next_sheet()
            self._zip.append(piece.raw, piece.packed)
            self._rows_of_sheets[-1] += piece.stop - at
            self._sheet_bytes += len(piece.raw)
            self._begun = True
            at = piece.stop
        return at - start

    def close(self) -> None:
        """End the sheet and write the parts that name all sheets, then the directory."""
        if not self._sheets:
            self._next_sheet()
        self._end_sheet()
        for name, (data, packed) in self._parts_of(self._sheets).ending(self._rows_of_sheets).items():
            self._zip.add(name, data, packed)
        self._zip.close()

    def _room(self) -> int:
        parts = self._parts_of(self._sheets)
        return self._max_bytes - self._zip.position - parts.sheet_end_size - parts.end_size

    def _room_on_next_sheet(self) -> int:
        parts = self._parts_of(self._sheets + 1)
        head = deflate.pack(parts.head(self._widths))
        opening = zip_stream.local_size(sheet_name(self._sheets + 1)) + len(head) + len(self._header_packed)
        ends = parts.sheet_end_size + (self._parts_of(self._sheets).sheet_end_size if self._sheets else 0)
        return self._max_bytes - self._zip.position - opening - ends - parts.end_size

    def _next_sheet(self) -> None:
        self._rows_of_sheets.append(1)
        self._sheet_bytes = 0
        head = self._parts_of(self._sheets).head(self._widths)
        self._zip.begin(sheet_name(self._sheets))
        self._zip.append(head, deflate.pack(head))
        self._zip.append(self._header, self._header_packed)

    def _end_sheet(self) -> None:
        if self._sheets:
            tail = self._parts_of(self._sheets).tail(self._rows)
            self._zip.append(tail, deflate.pack(tail))
            self._zip.end()


def sheet_name(number: int) -> str:
    """The name of a sheet's part (from 1)."""
    return f"xl/worksheets/sheet{number}.xml"


def sheet_title(dataset: str, number: int) -> str:
    """A title that Excel accepts: "contacts", "contacts (2)", ..."""
    # "History" is reserved by Excel; a title may not begin or end with an apostrophe.
    clean = re.sub(r"[\[\]:*?/\\\x00-\x1f\x7f\ufffe\uffff]", " ", dataset).strip(" '") or "export"
    clean = f"{clean} export" if clean.lower() == "history" else clean
    suffix = f" ({number})" if number > 1 else ""
    room = _TITLE_LIMIT - len(suffix)
    return clean.encode("utf-16-le")[: room * 2].decode("utf-16-le", "ignore").rstrip(" '") + suffix


def _openpyxl_parts(dataset: str, columns: int, sheets: int) -> tuple[dict[str, bytes], Styles]:
    """The parts of openpyxl's workbook with so many sheets and columns, without rows; and the numbers of its styles."""
    book = Workbook()
    styles = _styles(book)
    for number in range(1, sheets + 1):
        sheet = book.active if number == 1 else book.create_sheet()
        sheet.title = sheet_title(dataset, number)
        sheet.freeze_panes = "A2"
        # With it openpyxl writes the hidden name by which Excel and LibreOffice know the range.
        sheet.auto_filter.ref = f"A1:{get_column_letter(columns)}{_LAST_ROW}"
    stream = io.BytesIO()
    book.save(stream)
    with zipfile.ZipFile(stream) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    book.properties.creator, book.properties.created, book.properties.modified = "export-pipeline", _CREATED, _CREATED
    files[_CORE] = tostring(book.properties.to_tree())
    return files, styles


def _styles(book: Workbook) -> Styles:
    """Register the styles with the workbook by cells that are removed again."""
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
    # The dimension would be that of the tiny workbook. It is optional, and not known yet.
    sheet = re.sub(rb"<dimension[^>]*/>", b"", sheet)
    head, opening, rest = sheet.partition(b"<sheetData")
    if not opening:
        raise RuntimeError("openpyxl wrote a sheet without <sheetData>")
    _, closing, tail = rest.partition(b"</sheetData>")
    tail = closing + tail if closing else b"</sheetData>" + rest.partition(b"/>")[2]
    return head + b"<sheetData>\n", tail
