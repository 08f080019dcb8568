"""Cells of a worksheet as XML, a whole column at a time.

What belongs here: how each catalog type becomes a cell, and what text must suffer to be one.
What does not: sheets, styles and the workbook (xlsx_parts), and files (xlsx_format).

Text stands in the cell itself ("inline string"), so that no table of strings grows in memory. A
text cell is never a formula. Excel knows no zone: instants become wall clock in the chosen zone, to
the millisecond; its calendar begins (soundly) on 1900-03-01 and ends with 9999, so that dates
beyond are text. It keeps 15 digits of a number: longer ones are text.
"""

from __future__ import annotations

from collections import Counter

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.catalog.types import ColumnType
from export_pipeline.engine.formats.columns import Block, Clock, TextBytes, byte_table
from export_pipeline.engine.formats.xlsx_parts import Styles

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
_LONG_INTEGER = 10**_DIGITS

_EPOCH = 25_569  # 1970-01-01 as a day serial
_FIRST_DAY = 61 - _EPOCH  # 1900-03-01, in days since 1970: before it Excel counts a day that never was
_LAST_DAY = 2_958_465 - _EPOCH  # 9999-12-31
_DAY_MS = 86_400_000


def header_xml(headers: list[str], styles: Styles) -> bytes:
    """The header row."""
    array = pa.array(headers, pa.string())
    texts, _ = _escaped(pl.Series(array), array, TextBytes(array), Counter())
    opening = f'<c s="{styles.header}" t="inlineStr"><is><t xml:space="preserve">'
    return ("<row>" + "".join(opening + text + _TEXT_CLOSE for text in texts) + "</row>\n").encode()


def row_xml(block: Block, clock: Clock, styles: Styles, counters: Counter[str]) -> pl.Series:
    """One ``<row>`` element a value, each on a line of its own."""
    pieces: Pieces = ["<row>"]
    for place in range(len(block.columns)):
        pieces += _cell(block, place, clock, styles, counters)
    pieces.append("</row>\n")
    return block.frame.select(pl.concat_str(_merged(pieces)).alias("row")).to_series()


def _merged(pieces: Pieces) -> list[pl.Expr]:
    """Neighbouring literals as one."""
    merged: list[pl.Expr] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            merged.append(pl.lit(text))
        merged.append(piece)
        text = ""
    return [*merged, pl.lit(text)]


def _cell(block: Block, place: int, clock: Clock, styles: Styles, counters: Counter[str]) -> Pieces:
    pieces: Pieces
    match block.columns[place].type:
        case ColumnType.INTEGER | ColumnType.FLOAT | ColumnType.BOOLEAN:
            pieces = _numbers(block, place)
        case ColumnType.DECIMAL:
            pieces = _decimals(block, place)
        case ColumnType.TIMESTAMP:
            pieces = _timestamps(block, place, clock, styles.timestamp)
        case ColumnType.DATE:
            pieces = _dates(block, place, styles.date)
        case _:
            text, is_kept = _escaped(block.frame[str(place)], block.arrays[place], block.text_bytes(place), counters)
            pieces = _either(text, (_KEPT_OPEN if is_kept else _TEXT_OPEN, pl.lit(text), _TEXT_CLOSE))
    return pieces


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
    text = column.cast(pl.String)
    cell = ("<c><v>", text, _NUMBER_CLOSE)
    is_native = (
        (column < _LONG_INTEGER) & (column > -_LONG_INTEGER) if values.dtype.is_integer() else column.is_finite()
    )
    if values.to_frame().select(is_native.all()).item():
        return _either(values, cell)
    return _split(is_native, cell, text)


def _decimals(block: Block, place: int) -> Pieces:
    values, column = block.frame[str(place)], pl.col(str(place))
    digits = column.str.replace_all(r"[-.]", "").str.strip_chars_start("0").str.len_bytes()
    is_native = column.str.contains(_PLAIN_DECIMAL) & (digits <= _DIGITS)
    # Staged as text, so what is no number could be anything.
    text, _ = _escaped(values, block.arrays[place], block.text_bytes(place), Counter())
    if values.to_frame().select(is_native.all()).item():
        return _either(values, ("<c><v>", column, _NUMBER_CLOSE))
    return _split(is_native, ("<c><v>", column, _NUMBER_CLOSE), pl.lit(text))


def _timestamps(block: Block, place: int, clock: Clock, style: int) -> Pieces:
    name = str(place)
    text = block.timestamp_text(place, clock)
    wall = pl.col(name).dt.convert_time_zone(clock.zone).dt.replace_time_zone(None).dt.epoch("ms")
    if clock.whole_seconds:
        wall = wall // 1000 * 1000
    millis = block.frame.select(wall)[name]
    serial = (wall / _DAY_MS + _EPOCH).cast(pl.String)
    return _dated(millis // _DAY_MS, wall // _DAY_MS, serial, text, style)


def _dates(block: Block, place: int, style: int) -> Pieces:
    column = pl.col(str(place)).to_physical()
    serial = (column + _EPOCH).cast(pl.String)
    return _dated(block.frame[str(place)].to_physical(), column, serial, block.date_text(place), style)


def _dated(days: pl.Series, day: pl.Expr, serial: pl.Expr, text: pl.Expr, style: int) -> Pieces:
    cell = (f'<c s="{style}"><v>', serial, _NUMBER_CLOSE)
    if days.is_between(_FIRST_DAY, _LAST_DAY).all():
        return _either(days, cell)
    return _split(day.is_between(_FIRST_DAY, _LAST_DAY), cell, text)


def _escaped(values: pl.Series, texts: pa.Array, raw: TextBytes, counters: Counter[str]) -> tuple[pl.Series, bool]:
    """The text as XML says it, and whether its blanks must be kept. Each step runs only where it is needed.

    ``texts`` and ``raw`` are the same values, as Arrow has them. By Arrow's own kernels: for the few values of a block
    an expression of polars takes longer to begin than to do.
    """
    if raw.longest() > CELL_LIMIT:
        rewritten, is_multiline = _escaped_texts(texts, raw, counters)
        return pl.Series(rewritten), is_multiline or raw.edge_is_one_of(_BLANK)
    # Most values have nothing to escape: the rest is taken out, rewritten and put back.
    is_multiline = False
    places = raw.places_with(_SPECIAL, b"_x")
    if len(places):
        rewritten, is_multiline = _escaped_texts(texts.take(pa.array(places)), raw, counters)
        values = values.scatter(places, pl.Series(rewritten))
    return values, is_multiline or raw.edge_is_one_of(_BLANK)


def _escaped_texts(texts: pa.Array, raw: TextBytes, counters: Counter[str]) -> tuple[pa.Array, bool]:
    """The texts as XML says them, and whether one has several lines; ``raw`` has their bytes among others."""
    has_control = raw.has_control()
    if has_control or raw.has(*_NON_CHARACTERS):
        texts = _without_forbidden(texts, counters)
    if raw.longest() > CELL_LIMIT:
        texts = _cut(texts, counters)
    if raw.has(b"_x"):
        # Excel reads _x0041_ as a character. More than needed is escaped, as it reads back the same.
        texts = pc.replace_substring_regex(texts, r"_(x[0-9A-Fa-f]{4})", r"_x005F_\1")
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        if raw.has(character.encode()):
            texts = pc.replace_substring(texts, character, entity)
    if has_control and raw.has(b"\r"):
        # A bare CR would be read as a line feed; openpyxl does not understand Excel's own _x000D_ inline.
        texts = pc.replace_substring(texts, "\r", "&#13;")
    has_line_feed = has_control and raw.has(b"\n")
    if has_line_feed:
        # As a reference, so that every line of the sheet is one row.
        texts = pc.replace_substring(texts, "\n", "&#10;")
    return texts, has_line_feed


def _without_forbidden(texts: pa.Array, counters: Counter[str]) -> pa.Array:
    """Characters that XML 1.0 cannot hold become U+FFFD; counts the cells."""
    count = pc.sum(pc.match_substring_regex(texts, _FORBIDDEN)).as_py() or 0
    counters["replaced_characters"] += count
    return pc.replace_substring_regex(texts, _FORBIDDEN, "\ufffd") if count else texts


def _cut(texts: pa.Array, counters: Counter[str]) -> pa.Array:
    """Text beyond what a cell holds ends with a mark; counts the cells."""
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
