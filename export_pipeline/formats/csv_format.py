r"""CSV after RFC 4180: UTF-8, ``\n`` between rows, a header in every part.

Null is an empty field and an empty text is ``""``, so a reader can distinguish them. With ``csv_quoting: non_empty``
every value is in quotes and both are empty fields, as in SendGrid's exports.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property, partial
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import ISO_DATE, Block, TextBytes, byte_table, iso_format
from export_pipeline.formats.text_file import EncodedRows, Frame, RowEnds, TextFormat

if TYPE_CHECKING:
    from polars._typing import CsvQuoteStyle

_BOM = b"\xef\xbb\xbf"
_NEWLINE, _QUOTE = 0x0A, 0x22
_GUARDED = frozenset({ColumnType.TEXT, ColumnType.UUID, ColumnType.DECIMAL})

# The formula guard: text that a spreadsheet would run gets a leading apostrophe; numbers and phone numbers do not.
#
# Dangerous first characters, after OWASP's list: "=", "@", tab, CR, LF, and "+" or "-" unless a number or phone number
# follows; and the fullwidth forms of the four signs. A single "+" or "-" stays as it is: people write it for "none",
# and there is nothing in it to run. A number or phone number is digits, spaces and "( ) . , - / %", with an exponent at
# most: they spell no name, no cell and no function, so a spreadsheet cannot run anything. The same is true of an
# infinity, an amount with a currency sign, and an interval as PostgreSQL writes it, whose only letters are fixed words.
_FULLWIDTH_LEAD = 0xEF
_FIRST_BYTES = byte_table(b"=@+-\t\r\n" + bytes([_FULLWIDTH_LEAD]))
# These regular expressions mean the same in RE2 (Arrow) and in Python.
# U+00A0 and U+202F are the spaces in typeset phone numbers and numbers.
_NUMBER = r"[0-9][0-9.,]*(?:[eE][+-]?[0-9]+)?%?|\.[0-9]+(?:[eE][+-]?[0-9]+)?%?"
_PHONE = "[ \u00a0\u202f]*\\(?[0-9][0-9 \u00a0\u202f().\\-/]*"
_SIGN = "+\\-\uff0b\uff0d"
_MONEY = "[$\u00a2-\u00a5\u20a0-\u20bf] ?[0-9][0-9.,]*"
_TIME = "[0-9]+:[0-9]{2}:[0-9]{2}(?:\\.[0-9]+)?"
_INTERVAL = f"[0-9]+ (?:year|mon|day)s?(?: [+-]?[0-9]+ (?:mon|day)s?)*(?: [+-]?{_TIME})?|{_TIME}"
_SIGNED_NUMBER = f"[{_SIGN}](?:{_NUMBER}|{_PHONE}|[Ii]nf(?:inity)?|{_MONEY}|{_INTERVAL})?"
_HARMLESS = f"^{_SIGNED_NUMBER}$"
_DANGEROUS = f"^[=@\\t\\r\\n\uff1d\uff20{_SIGN}]"


class CsvFormat(TextFormat):
    """CSV with its options. ``guarded_cells``: cells that got an apostrophe."""

    def __init__(self, options: FormatOptions) -> None:
        _check(options)
        super().__init__("csv", options, Frame(head=_head(options)))

    @cached_property
    def counters(self) -> Counter[str]:
        """Headers that got an apostrophe, in every file."""
        pairs = zip(_headers(self._options), self._options.columns, strict=True)
        return Counter(guarded_cells=sum(written != column.header for written, column in pairs))

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> EncodedRows:
        """Turn a staged batch into CSV rows."""
        block = Block(batch, self._options.columns, self._options.comma_separated)
        frame = block.frame.select(self._column(block, place, counted) for place in range(len(block.columns)))
        quotes_all = self._options.csv_quoting == "non_empty"
        if quotes_all:
            # Numbers as text, so that they are quoted too, and null for empty text, so that it is not.
            text = pl.col(pl.String)
            frame = frame.with_columns(pl.when(text != "").then(text), pl.selectors.numeric().cast(pl.String))
        written = _Written()
        # Not "always", which would quote nulls.
        style: CsvQuoteStyle = "non_numeric" if quotes_all else "necessary"
        if frame.width == 1:
            frame, style = _without_blank_lines(frame, self._options.csv_delimiter, style)
        frame.write_csv(
            cast("BinaryIO", written),
            include_header=False,
            separator=self._options.csv_delimiter,
            datetime_format=iso_format(self._options),
            date_format=ISO_DATE,
            quote_style=style,
            # A null in a single column needs quotes.
            null_value='""' if frame.width == 1 else None,
        )
        data = memoryview(written.data())
        return EncodedRows(data, frame.height, partial(_row_ends, data))

    def _column(self, block: Block, place: int, counted: Counter[str]) -> pl.Expr | pl.Series:
        name, options = str(place), self._options
        match block.columns[place].type:
            case ColumnType.TIMESTAMP:
                # write_csv formats on all cores, an expression on one.
                if block.has_whole_offsets(place, options.time_zone):
                    return pl.col(name).dt.convert_time_zone(options.time_zone)
                return block.timestamp_text(place, options).alias(name)
            case ColumnType.DATE:
                return pl.col(name)
            case ColumnType.FLOAT | ColumnType.DECIMAL if options.csv_decimal_mark != ".":
                text = self._values(block, place, counted).cast(pl.String)
                return text.str.replace(".", options.csv_decimal_mark, literal=True)
            case _:
                return self._values(block, place, counted)

    def _values(self, block: Block, place: int, counted: Counter[str]) -> pl.Series:
        """The column, with the formula guard if it was read as text."""
        is_number = block.columns[place].type in (ColumnType.FLOAT, ColumnType.DECIMAL)
        values = block.numbers(place) if is_number else block.frame[str(place)]
        # A uuid or a decimal may be any text in the source. JSON never begins with a formula; a text of an array may.
        column, options = block.columns[place], self._options
        is_text = column.type in _GUARDED or column.name in options.comma_separated
        if not (is_text and options.guard_formulas):
            return values
        values, count = _guarded(values, block.arrays[place], block.text_bytes(place))
        counted["guarded_cells"] += count
        return values


class _Written:
    """Keeps what polars writes, mostly in one call; io.BytesIO would copy it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def data(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def _check(options: FormatOptions) -> None:
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
    # By hand: Python's csv module does not quote a single CR.
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
    """A single column with its blanks in quotes: many readers skip a line with nothing visible on it."""
    (values,) = frame.get_columns()
    if values.dtype != pl.String or style != "necessary":
        return frame, style
    is_blank = values.str.contains(r"^\s+$")
    if not is_blank.any():
        return frame, style
    needs_quotes = is_blank | (values == "") | values.str.contains(rf'["\r\n{re.escape(delimiter)}]')
    quoted = '"' + values.str.replace_all('"', '""', literal=True) + '"'
    return quoted.zip_with(needs_quotes.fill_null(value=False), values).to_frame(), "never"


def _row_ends(data: memoryview) -> RowEnds:
    """Rows end at the newlines outside quotes: those with an even number of quotes before them (RFC 4180)."""
    values = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(values == _NEWLINE)
    quotes = np.flatnonzero(values == _QUOTE)
    whole = np.searchsorted(quotes, newlines) % 2 == 0
    return np.asarray(newlines[whole] + 1, np.int64)


def guarded_header(header: str) -> str:
    """A header with its guard: organizations name their custom fields themselves.

    In plain Python: a file is opened before its process may be forked, and polars would start threads.
    """
    dangerous = re.match(_DANGEROUS, header) and not re.fullmatch(_SIGNED_NUMBER, header)
    return f"'{header}" if dangerous else header


def _guarded(values: pl.Series, texts: pa.Array, raw: TextBytes) -> tuple[pl.Series, int]:
    """The values with their guards, and how many got one; the same series if none needs it.

    ``texts`` and ``raw`` are the same values in Arrow. A block has few suspects, and for few values a polars expression
    takes longer to start than to run (with ten of them the guard took half of the encoding).
    """
    places = raw.places_beginning_with(_FIRST_BYTES)
    if not len(places):
        return values, 0
    suspects = texts.take(pa.array(places))
    places, suspects = _without(places, suspects, pc.match_substring_regex(suspects, _HARMLESS))
    # 0xEF begins the fullwidth signs and other characters too, so the whole sign is checked.
    places, suspects = _without(places, suspects, pc.invert(pc.match_substring_regex(suspects, _DANGEROUS)))
    if not len(places):
        return values, 0
    return values.scatter(places, ["'" + text for text in suspects.to_pylist()]), len(places)


def _without(places: npt.NDArray[np.int64], texts: pa.Array, out: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    kept = pc.invert(pc.fill_null(out, fill_value=True))
    return places[kept.to_numpy(zero_copy_only=False)], texts.filter(kept)
