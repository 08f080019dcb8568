r"""CSV after RFC 4180: UTF-8, ``\n`` between rows, a header in every part.

Null is nothing between the delimiters, an empty text is ``""``: readers that care can tell them apart.
With ``csv_quoting: non_empty`` every value is in quotes and both are nothing, as in SendGrid's exports.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, partial
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa

from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import deflate
from export_pipeline.formats.base import MEDIA_TYPES, FormatOptions
from export_pipeline.formats.columns import ISO_DATE, Block, Clock, check_time_zone
from export_pipeline.formats.formula_guard import guarded, guarded_header
from export_pipeline.formats.text_file import GZIP_MEDIA_TYPE, EncodedRows, Frame, RowEnds, TextFile, gzips

if TYPE_CHECKING:
    from polars._typing import CsvQuoteStyle

_BOM = b"\xef\xbb\xbf"
_NEWLINE, _QUOTE = 0x0A, 0x22
_GUARDED = frozenset({ColumnType.TEXT, ColumnType.UUID, ColumnType.DECIMAL})


class CsvFormat:
    """CSV with its options. ``guarded_cells``: cells that got an apostrophe."""

    counters = ("guarded_cells",)

    def __init__(self, options: FormatOptions) -> None:
        _check(options)
        self._options = options
        self._clock = Clock.of(options)
        self._gzip = gzips(options)
        self._packer = deflate.Packer()
        self._frame = Frame(head=_head(options))

    @property
    def extension(self) -> str:
        """What a file name ends with."""
        return "csv.gz" if self._gzip else "csv"

    @property
    def media_type(self) -> str:
        """The Content-Type of a file as stored."""
        return GZIP_MEDIA_TYPE if self._gzip else MEDIA_TYPES["csv"]

    @cached_property
    def head_counts(self) -> Counter[str]:
        """Headers that got an apostrophe, in every file."""
        pairs = zip(_headers(self._options), self._options.columns, strict=True)
        return Counter(guarded_cells=sum(written != column.header for written, column in pairs))

    @property
    def compress_seconds(self) -> float:
        """Seconds spent on deflate."""
        return self._packer.seconds

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> EncodedRows:
        """Turn a staged batch into CSV rows."""
        block = Block.of(batch, self._options.columns, self._options.comma_separated)
        frame = block.frame.select(self._column(block, place, counted) for place in range(len(block.columns)))
        quotes_all = self._options.csv_quoting == "non_empty"
        if quotes_all:
            frame = _without_bare_values(frame)
        written = _Written()
        # Not "always", which would quote nulls.
        style: CsvQuoteStyle = "non_numeric" if quotes_all else "necessary"
        if frame.width == 1:
            frame, style = _without_blank_lines(frame, self._options.csv_delimiter, style)
        frame.write_csv(
            cast("BinaryIO", written),
            include_header=False,
            separator=self._options.csv_delimiter,
            datetime_format=self._clock.iso,
            date_format=ISO_DATE,
            quote_style=style,
            # Only for the quotes of an only column that is null.
            null_value='""' if frame.width == 1 else None,
        )
        data = memoryview(written.data())
        return EncodedRows(data, frame.height, partial(_row_ends, data))

    def open(self, sink: BinaryIO) -> TextFile:
        """Begin a file with its header."""
        limit = self._options.max_bytes
        return TextFile(sink, self._frame, name="csv", max_bytes=limit, gzip=self._gzip, pack=self._packer)

    def _column(self, block: Block, place: int, counted: Counter[str]) -> pl.Expr | pl.Series:
        name, options = str(place), self._options
        match block.columns[place].type:
            case ColumnType.TIMESTAMP:
                # write_csv formats on all cores; text made before would be made on one.
                if block.has_whole_offsets(place, options.time_zone):
                    return block.local_time(place, options.time_zone)
                return block.timestamp_text(place, self._clock).alias(name)
            case ColumnType.DATE:
                return block.dates(place)
            case ColumnType.FLOAT | ColumnType.DECIMAL if options.csv_decimal_mark != ".":
                text = self._values(block, place, counted).cast(pl.String)
                return text.str.replace(".", options.csv_decimal_mark, literal=True)
            case _:
                return self._values(block, place, counted)

    def _values(self, block: Block, place: int, counted: Counter[str]) -> pl.Series:
        """The column, guarded if what it holds was read as text."""
        is_number = block.columns[place].type in (ColumnType.FLOAT, ColumnType.DECIMAL)
        values = block.numbers(place) if is_number else block.frame[str(place)]
        if not self._is_guarded(block.columns[place]):
            return values
        values, count = guarded(values, block.arrays[place], block.text_bytes(place))
        counted["guarded_cells"] += count
        return values

    def _is_guarded(self, column: OutputColumn) -> bool:
        # A uuid or a decimal may be any text in the source. JSON begins with nothing that a spreadsheet would run; the
        # first text of an array may.
        is_text = column.type in _GUARDED or column.name in self._options.comma_separated
        return is_text and self._options.guard_formulas


class _Written:
    """Keeps what polars writes, in most cases all of it at once; io.BytesIO would copy it into fresh memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing below."""

    def data(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def _check(options: FormatOptions) -> None:
    check_time_zone(options.time_zone)
    delimiter, mark = options.csv_delimiter, options.csv_decimal_mark
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter.isalnum() or delimiter in '"\r\n\0.+-':
        message = f"csv_delimiter {delimiter!r} cannot separate fields; use ',' ';' '|' or a tab"
        raise ExportFailure(FailureCode.INVALID_OPTION, message, field="csv_delimiter")
    if mark not in {".", ","}:
        message = f"csv_decimal_mark {mark!r} is not known; use '.' or ','"
        raise ExportFailure(FailureCode.INVALID_OPTION, message, field="csv_decimal_mark")


def _headers(options: FormatOptions) -> list[str]:
    guard = guarded_header if options.guard_formulas else str
    return [guard(column.header) for column in options.columns]


def _head(options: FormatOptions) -> bytes:
    # Python's csv module leaves a lone CR bare.
    special = re.compile(rf'["\r\n{re.escape(options.csv_delimiter)}]')
    headers = _headers(options)
    quotes_all = options.csv_quoting == "non_empty" or (len(headers) == 1 and not headers[0].strip())
    written = [
        '"' + header.replace('"', '""') + '"' if quotes_all or special.search(header) else header for header in headers
    ]
    return (_BOM if options.csv_bom else b"") + (options.csv_delimiter.join(written) + "\n").encode()


def _without_blank_lines(
    frame: pl.DataFrame, delimiter: str, style: CsvQuoteStyle
) -> tuple[pl.DataFrame, CsvQuoteStyle]:
    """An only column whose blanks are in quotes: to many readers a line with nothing visible on it is no row."""
    (values,) = frame.get_columns()
    if values.dtype != pl.String or style != "necessary":
        return frame, style
    is_blank = values.str.contains(r"^\s+$")
    if not is_blank.any():
        return frame, style
    needs_quotes = is_blank | (values == "") | values.str.contains(rf'["\r\n{re.escape(delimiter)}]')
    quoted = '"' + values.str.replace_all('"', '""', literal=True) + '"'
    return quoted.zip_with(needs_quotes.fill_null(value=False), values).to_frame(), "never"


def _without_bare_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Numbers as text, so that they are quoted too, and null for empty text, so that it is not."""
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(text != "").then(text), pl.selectors.numeric().cast(pl.String))


def _row_ends(data: memoryview) -> RowEnds:
    """Rows end at the newlines outside quotes: those with an even number of quotes before them (RFC 4180)."""
    values = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(values == _NEWLINE)
    quotes = np.flatnonzero(values == _QUOTE)
    whole = np.searchsorted(quotes, newlines) % 2 == 0
    return np.asarray(newlines[whole] + 1, np.int64)
