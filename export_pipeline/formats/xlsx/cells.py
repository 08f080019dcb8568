"""Cells of a worksheet as XML, a whole column at a time.

Text is in the cell itself ("inline string"), so that no table of strings grows in memory; a text cell is never a
formula. Excel has no time zones: instants become local time in the chosen zone, to the millisecond. Its calendar is
correct from 1900-03-01 and ends with 9999: other dates are text. It keeps 15 digits of a number: longer ones are text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import ISO_DATE, Block, TextBytes, byte_table

CELL_LIMIT = 32_767
"""UTF-16 code units of text in one cell."""
CUT_MARK = "… [cut]"
Pieces = list[str | pl.Expr]
_EMPTY = "<c/>"
_TEXT_OPEN, _TEXT_CLOSE = '<c t="inlineStr"><is><t>', "</t></is></c>"
_KEPT_OPEN = '<c t="inlineStr"><is><t xml:space="preserve">'
_NUMBER_CLOSE = "</v></c>"
_BLANK = byte_table(b" \t\r\n")
_NON_CHARACTERS = (b"\xef\xbf\xbe", b"\xef\xbf\xbf")  # U+FFFE and U+FFFF
_SPECIAL = byte_table(bytes(range(0x20)) + b"&<>\xef")  # EF is the first byte of U+FFFE
_FORBIDDEN = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x{FFFE}\x{FFFF}]"
_PLAIN_DECIMAL = r"^-?[0-9]+(?:\.[0-9]+)?$"
_DIGITS = 15
_SURELY_IN_RANGE = 300
"""The most characters of a decimal without an exponent that is certainly within Excel's bounds."""
_SMALLEST, _LARGEST = 2.3e-308, 9.99e307
"""Excel's bounds of a number."""
_LONG_INTEGER = 10**_DIGITS
_EPOCH = 25_569  # 1970-01-01 as a day serial
_FIRST_DAY = 61 - _EPOCH  # 1900-03-01, in days since 1970: before it Excel counts a day that did not exist
_LAST_DAY = 2_958_465 - _EPOCH  # 9999-12-31
_DAY_MS = 86_400_000
_SAMPLE_ROWS = 100
_NARROWEST, _WIDEST = 10, 60
_WIDTHS = {
    ColumnType.TIMESTAMP: 20,
    ColumnType.DATE: 12,
    # 15 digits, a sign and a point: programs show "#" for a number that does not fit.
    ColumnType.INTEGER: 18,
    ColumnType.FLOAT: 18,
    ColumnType.DECIMAL: 18,
}
_FILTER_BUTTON = 4
"""Width of the filter's button, in characters."""


@dataclass(frozen=True)
class Styles:
    """The style numbers of cells."""

    header: int
    timestamp: int
    date: int


def column_widths(columns: Sequence[OutputColumn], widths_of_text: Sequence[int] = ()) -> list[int]:
    """The columns' widths in characters: by type; for text by the header and the first texts."""
    texts = widths_of_text or [0] * len(columns)
    return [
        max(_WIDTHS.get(column.type, _NARROWEST), min(max(len(column.header) + _FILTER_BUTTON, text), _WIDEST))
        for column, text in zip(columns, texts, strict=True)
    ]


def widths_of_text(block: Block) -> list[int]:
    """The width that the first texts of each text column need, in characters; 0 for other columns."""
    return [
        0 if column.type in _WIDTHS or column.type is ColumnType.BOOLEAN else _text_width(array.slice(0, _SAMPLE_ROWS))
        for column, array in zip(block.columns, block.arrays, strict=True)
    ]


def _text_width(texts: pa.Array) -> int:
    # A character of three bytes or more, such as of Chinese, is two wide.
    bytes_, characters = pc.binary_length(texts), pc.utf8_length(texts)
    wide = pc.divide(pc.subtract(bytes_, characters), 2)
    return int(pc.max(pc.add(characters, wide)).as_py() or 0) + 2


def header_xml(columns: Sequence[OutputColumn], styles: Styles, counted: Counter[str]) -> bytes:
    """The header row; adds its changes to ``counted``."""
    array = pa.array([column.header for column in columns], pa.string())
    texts, _ = _escaped_texts(array, TextBytes(array), counted)
    opening = f'<c s="{styles.header}" t="inlineStr"><is><t xml:space="preserve">'
    return ("<row>" + "".join(opening + text + _TEXT_CLOSE for text in texts.to_pylist()) + "</row>\n").encode()


def row_xml(block: Block, options: FormatOptions, styles: Styles, counters: Counter[str]) -> pl.Series:
    """One ``<row>`` element a value, each on its own line."""
    pieces: Pieces = ["<row>"]
    for place in range(len(block.columns)):
        pieces += _cell(block, place, options, styles, counters)
    pieces.append("</row>\n")
    return block.frame.select(pl.concat_str(_merged(pieces)).alias("row")).to_series()


def _merged(pieces: Pieces) -> list[pl.Expr]:
    """Neighbouring literals as one."""
    merged: list[pl.Expr] = []
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        members = list(group)
        merged += [pl.lit("".join(map(str, members)))] if is_text else cast("list[pl.Expr]", members)
    return merged


def _cell(block: Block, place: int, options: FormatOptions, styles: Styles, counters: Counter[str]) -> Pieces:
    match block.columns[place].type:
        case ColumnType.INTEGER | ColumnType.FLOAT | ColumnType.BOOLEAN:
            return _numbers(block, place)
        case ColumnType.DECIMAL:
            return _decimals(block, place, counters)
        case ColumnType.TIMESTAMP:
            return _timestamps(block, place, options, styles.timestamp)
        case ColumnType.DATE:
            return _dates(block, place, styles.date)
        case _:
            text, is_kept = _escaped(block.frame[str(place)], block.arrays[place], block.text_bytes(place), counters)
            return _either(text, (_KEPT_OPEN if is_kept else _TEXT_OPEN, pl.lit(text), _TEXT_CLOSE))


def _either(values: pl.Series, cell: tuple[str, pl.Expr, str]) -> Pieces:
    """The cell, or an empty one where the value is null."""
    if not values.null_count():
        return list(cell)
    opening, content, closing = cell
    return [pl.concat_str(pl.lit(opening), content, pl.lit(closing)).fill_null(_EMPTY)]


def _split(is_native: pl.Expr, native: tuple[str, pl.Expr, str], text: pl.Expr) -> Pieces:
    """Native cells where they can be, text cells elsewhere, empty cells for nulls."""
    opening, content, closing = native
    as_native = pl.concat_str(pl.lit(opening), content, pl.lit(closing))
    as_text = pl.concat_str(pl.lit(_TEXT_OPEN), text, pl.lit(_TEXT_CLOSE))
    return [pl.when(is_native).then(as_native).otherwise(as_text).fill_null(_EMPTY)]


def _numbers(block: Block, place: int) -> Pieces:
    values, column = block.frame[str(place)], pl.col(str(place))
    if values.dtype == pl.Boolean:
        return _either(values, ('<c t="b"><v>', column.cast(pl.Int8).cast(pl.String), _NUMBER_CLOSE))
    text = pl.lit(block.numbers(place)).cast(pl.String)
    cell = ("<c><v>", column.cast(pl.String), _NUMBER_CLOSE)
    is_native = (
        (column < _LONG_INTEGER) & (column > -_LONG_INTEGER) if values.dtype.is_integer() else column.is_finite()
    )
    if values.to_frame().select(is_native.all()).item():
        return _either(values, cell)
    return _split(is_native, cell, text)


def _decimals(block: Block, place: int, counters: Counter[str]) -> Pieces:
    values, raw, column = block.numbers(place), block.text_bytes(place), pl.col(str(place))
    cell = ("<c><v>", column, _NUMBER_CLOSE)
    frame = values.to_frame()
    is_native = column.str.contains(_PLAIN_DECIMAL) & (_digits(column) <= _DIGITS)
    is_in_range = raw.longest() <= _SURELY_IN_RANGE and not raw.has(b"e", b"E")
    if is_in_range and frame.select(is_native.all()).item():
        return _either(values, cell)
    # An average ends with more zeros than a cell has digits; a float that is exported as a decimal has an exponent.
    has_point = column.str.contains(".", literal=True)
    mantissa = column if is_in_range else column.str.replace(r"[eE][+-]?[0-9]+$", "")
    digits = _digits(pl.when(has_point).then(mantissa.str.strip_chars_end("0")).otherwise(mantissa))
    is_native = mantissa.str.contains(_PLAIN_DECIMAL) & (digits <= _DIGITS)
    if not is_in_range:
        number = column.cast(pl.Float64, strict=False).abs()
        is_native &= (number < _LARGEST) & ((number > _SMALLEST) | (digits == 0))
    if frame.select(is_native.all()).item():
        return _either(values, cell)
    # Staged as text, so a value that is not a number may be any text.
    text, _ = _escaped(values, block.arrays[place], raw, counters)
    return _split(is_native.fill_null(value=False), cell, pl.lit(text))


def _digits(number: pl.Expr) -> pl.Expr:
    return number.str.replace_all(r"[-.]", "").str.strip_chars_start("0").str.len_bytes()


def _timestamps(block: Block, place: int, options: FormatOptions, style: int) -> Pieces:
    name = str(place)
    text = block.timestamp_text(place, options)
    wall = pl.col(name).dt.convert_time_zone(options.time_zone).dt.replace_time_zone(None).dt.epoch("ms")
    if options.timestamps == "seconds":
        wall = wall // 1000 * 1000
    millis = block.frame.select(wall)[name]
    serial = (wall / _DAY_MS + _EPOCH).cast(pl.String)
    return _dated(millis // _DAY_MS, wall // _DAY_MS, serial, text, style)


def _dates(block: Block, place: int, style: int) -> Pieces:
    column = pl.col(str(place)).to_physical()
    serial = (column + _EPOCH).cast(pl.String)
    text = pl.col(str(place)).dt.strftime(ISO_DATE)
    return _dated(block.frame[str(place)].to_physical(), column, serial, text, style)


def _dated(days: pl.Series, day: pl.Expr, serial: pl.Expr, text: pl.Expr, style: int) -> Pieces:
    cell = (f'<c s="{style}"><v>', serial, _NUMBER_CLOSE)
    if days.is_between(_FIRST_DAY, _LAST_DAY).all():
        return _either(days, cell)
    return _split(day.is_between(_FIRST_DAY, _LAST_DAY), cell, text)


def _escaped(values: pl.Series, texts: pa.Array, raw: TextBytes, counters: Counter[str]) -> tuple[pl.Series, bool]:
    """The text escaped for XML, and whether its blanks must be kept. Each step runs only where it is needed.

    ``texts`` and ``raw`` are the same values in Arrow. With Arrow's kernels: for the few values of a block a polars
    expression takes longer to start than to run.
    """
    if raw.longest() > CELL_LIMIT:
        rewritten, is_multiline = _escaped_texts(texts, raw, counters)
        return pl.Series(rewritten), is_multiline or raw.edge_is_one_of(_BLANK)
    # Most values need no escapes: only the others are rewritten.
    is_multiline = False
    places = raw.places_with(_SPECIAL, b"_x")
    if len(places):
        rewritten, is_multiline = _escaped_texts(texts.take(pa.array(places)), raw, counters)
        values = values.scatter(places, pl.Series(rewritten))
    return values, is_multiline or raw.edge_is_one_of(_BLANK)


def _escaped_texts(texts: pa.Array, raw: TextBytes, counters: Counter[str]) -> tuple[pa.Array, bool]:
    """The texts escaped for XML, and whether one has several lines; ``raw`` contains their bytes among others."""
    has_control = raw.has_control()
    if has_control or raw.has(*_NON_CHARACTERS):
        texts = _without_forbidden(texts, counters)
    if raw.longest() > CELL_LIMIT:
        texts = _cut(texts, counters)
    if raw.has(b"_x"):
        # Excel reads _x0041_ as a character. Escaping more than necessary is harmless: it reads back the same.
        texts = pc.replace_substring_regex(texts, r"_(x[0-9A-Fa-f]{4})", r"_x005F_\1")
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        if raw.has(character.encode()):
            texts = pc.replace_substring(texts, character, entity)
    if has_control and raw.has(b"\r"):
        # A literal CR would be read as a line feed; openpyxl does not read Excel's own _x000D_ in inline strings.
        texts = pc.replace_substring(texts, "\r", "&#13;")
    has_line_feed = has_control and raw.has(b"\n")
    if has_line_feed:
        # As a reference, so that every line of the sheet is one row.
        texts = pc.replace_substring(texts, "\n", "&#10;")
    return texts, has_line_feed


def _without_forbidden(texts: pa.Array, counters: Counter[str]) -> pa.Array:
    """Replace characters that XML 1.0 does not allow by U+FFFD; counts the cells."""
    count = pc.sum(pc.match_substring_regex(texts, _FORBIDDEN)).as_py() or 0
    counters["replaced_characters"] += count
    return pc.replace_substring_regex(texts, _FORBIDDEN, "\ufffd") if count else texts


def _cut(texts: pa.Array, counters: Counter[str]) -> pa.Array:
    """Cut text that is too long for a cell, with a mark at its end; counts the cells."""
    is_wide = pc.fill_null(pc.greater(pc.binary_length(texts), CELL_LIMIT), fill_value=False)
    # Value by value, but only those of 32 kB or more: Arrow cannot count UTF-16.
    wide = [text.encode("utf-16-le") for text in texts.filter(is_wide).to_pylist()]
    room = (CELL_LIMIT - len(CUT_MARK)) * 2
    cut = [
        text[:room].decode("utf-16-le", "ignore") + CUT_MARK if len(text) > CELL_LIMIT * 2 else text.decode("utf-16-le")
        for text in wide
    ]
    counters["cut_cells"] += sum(len(text) > CELL_LIMIT * 2 for text in wide)
    return pc.replace_with_mask(texts, is_wide, pa.array(cut, pa.string())) if cut else texts
