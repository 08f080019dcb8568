"""Excel workbooks of any size in constant memory, under a strict ceiling.

A sheet's stream consists of independent deflate pieces, so that the weight of rows is known before
they are committed; everything that must still follow them (the sheet's end, the workbook, the
directory) is reserved at any moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import BinaryIO

import pyarrow as pa

from export_pipeline.catalog.types import OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import deflate
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import Block, Clock, check_time_zone
from export_pipeline.formats.text_file import EncodedRows, Filler, Pack, Piece, too_small
from export_pipeline.formats.xlsx import zip_stream
from export_pipeline.formats.xlsx.cells import column_widths, header_counts, header_xml, row_xml, widths_of_text
from export_pipeline.formats.xlsx.parts import WORKBOOK, Parts, build_parts, sheet_name
from export_pipeline.formats.xlsx.zip_stream import ZipStream

SHEET_ROWS = 1_048_576
"""Rows of a sheet, its header included."""
SHEET_COLUMNS = 16_384
_ROWS_MARGIN = 16
"""Bytes by which a part with the real numbers of rows may be larger, compressed, than one with the largest."""
SHEET_BYTES = 4_000_000_000
"""A sheet's XML stays below what an entry of a plain zip can hold; then the next sheet begins."""


class XlsxFormat:
    """Workbooks with their options. Counted are cells with ``replaced_characters``, and ``cut_cells``."""

    counters = ("replaced_characters", "cut_cells")
    extension = "xlsx"
    media_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

    def __init__(self, options: FormatOptions) -> None:
        _check(options)
        self._options = options
        self._packer = deflate.Packer()
        columns = len(options.columns)
        self._parts = cache(lambda sheets: _Weighed(build_parts(options.dataset, columns, sheets), sheets))

    @cached_property
    def head_counts(self) -> Counter[str]:
        """What is altered in the headers of every file."""
        return header_counts(self._options.columns)

    @property
    def compress_seconds(self) -> float:
        """Seconds spent on deflate."""
        return self._packer.seconds

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> SheetRows:
        """Turn a staged batch into rows of a sheet."""
        block = Block.of(batch, self._options.columns, self._options.comma_separated)
        styles = self._parts(1).parts.styles
        rows = SheetRows.from_series(row_xml(block, Clock.of(self._options), styles, counted))
        rows.widths = widths_of_text(block)
        return rows

    def open(self, sink: BinaryIO) -> XlsxFile:
        """Begin a workbook."""
        return XlsxFile(sink, self._parts, self._options.columns, self._options.max_bytes, pack=self._packer)


class SheetRows(EncodedRows):
    """Rows of a sheet, and how wide their first texts are: the columns are as wide as the first rows of a file ask."""

    widths: Sequence[int] = ()


class _Weighed:
    """The parts of a workbook with so many sheets, compressed, and the bytes that end such a workbook."""

    def __init__(self, parts: Parts, sheets: int) -> None:
        self.parts = parts
        self.packed = {name: deflate.pack(data) + deflate.END for name, data in (parts.first | parts.last).items()}
        names = [*self.packed, *(sheet_name(number) for number in range(1, sheets + 1))]
        self.end_size = zip_stream.directory_size(names) + sum(
            zip_stream.local_size(name) + len(self.packed[name]) for name in parts.last
        )
        # The real numbers of rows compress less well than the same one for every sheet.
        self.end_size += _ROWS_MARGIN * (1 + sheets)
        self.sheet_end_size = (
            len(deflate.pack(parts.sheet_tail)) + _ROWS_MARGIN + len(deflate.END) + zip_stream.DESCRIPTOR_SIZE
        )


class XlsxFile:
    """One workbook being written."""

    def __init__(
        self,
        sink: BinaryIO,
        parts_of: Callable[[int], _Weighed],
        columns: Sequence[OutputColumn],
        max_bytes: int,
        *,
        pack: Pack = deflate.pack,
    ) -> None:
        self._zip = ZipStream(sink)
        self._parts_of = parts_of
        self._max_bytes = max_bytes
        self._filler = Filler(pack, total=max_bytes, compresses=True)
        self._rows_of_sheets: list[int] = []
        self._sheet_bytes = 0
        self._begun = False
        self._columns = columns
        self._widths = column_widths(columns)
        now = parts_of(1)
        self._header = header_xml([column.header for column in columns], now.parts.styles)
        self._header_packed = deflate.pack(self._header)
        first = sum(zip_stream.local_size(name) + len(now.packed[name]) for name in now.parts.first)
        if self._room_on_next_sheet() < first:
            raise too_small("xlsx", max_bytes, max_bytes - self._room_on_next_sheet() + first)
        for name, data in now.parts.first.items():
            self._zip.add(name, data, now.packed[name])

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
            self._commit(piece, piece.stop - at)
            at = piece.stop
        return at - start

    def close(self) -> None:
        """End the sheet and write the parts that name all sheets, then the directory."""
        if not self._sheets:
            self._next_sheet()
        self._end_sheet()
        now = self._parts_of(self._sheets)
        for name, data in now.parts.ending(self._rows_of_sheets).items():
            packed = deflate.pack(data) + deflate.END if name == WORKBOOK else now.packed[name]
            self._zip.add(name, data, packed)
        self._zip.close()

    def _room(self) -> int:
        now = self._parts_of(self._sheets)
        return self._max_bytes - self._zip.position - now.sheet_end_size - now.end_size

    def _room_on_next_sheet(self) -> int:
        after = self._parts_of(self._sheets + 1)
        head = deflate.pack(after.parts.head(self._widths))
        opening = zip_stream.local_size(sheet_name(self._sheets + 1)) + len(head) + len(self._header_packed)
        ends = after.sheet_end_size + (self._parts_of(self._sheets).sheet_end_size if self._sheets else 0)
        return self._max_bytes - self._zip.position - opening - ends - after.end_size

    def _next_sheet(self) -> None:
        self._rows_of_sheets.append(1)
        self._sheet_bytes = 0
        head = self._parts_of(self._sheets).parts.head(self._widths)
        self._zip.begin(sheet_name(self._sheets))
        self._zip.append(head, deflate.pack(head))
        self._zip.append(self._header, self._header_packed)

    def _end_sheet(self) -> None:
        if self._sheets:
            tail = self._parts_of(self._sheets).parts.tail(self._rows)
            self._zip.append(tail, deflate.pack(tail))
            self._zip.end()

    def _commit(self, piece: Piece, rows: int) -> None:
        self._zip.append(piece.raw, piece.packed)
        self._rows_of_sheets[-1] += rows
        self._sheet_bytes += len(piece.raw)
        self._begun = True


def _check(options: FormatOptions) -> None:
    check_time_zone(options.time_zone)
    if options.compression != "none":
        message = "xlsx is already compressed; leave compression out or 'none'"
        raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
    if len(options.columns) > SHEET_COLUMNS:
        message = f"a sheet holds {SHEET_COLUMNS} columns, {len(options.columns)} were asked; use csv or parquet"
        raise ExportFailure(FailureCode.NOT_SUPPORTED, message, field="columns")
