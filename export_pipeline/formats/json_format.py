"""NDJSON (one object a line) and JSON (one array of the same objects), streamed.

JSON columns and decimals are inserted unchanged, so that no digit and no nesting is lost; the readers have checked that
staged JSON is JSON. JSON has no NaN and no infinity: they become null and are counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import groupby

import polars as pl
import pyarrow as pa

from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import ISO_DATE, Block
from export_pipeline.formats.text_file import EncodedRows, Frame, TextFormat

_RAW_TYPES = frozenset({ColumnType.JSON, ColumnType.DECIMAL})
_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
_NON_FINITE = r"(?i)^[+-]?(?:s?nan|inf|infinity)$"
# A row of an array begins with its separator, so that a piece of rows is complete in itself; the first row of a file
# omits the comma.
_ARRAY = Frame(head=b"[", tail=b"\n]\n", empty_tail=b"]\n", first_skip=1)


class JsonFormat(TextFormat):
    """Objects with the headers as keys: one a line (``ndjson``), or in one array (``json``).

    ``non_finite_numbers``: numbers that JSON cannot represent, written as null.
    """

    counters: Mapping[str, int] = {"non_finite_numbers": 0}

    def __init__(self, name: str, options: FormatOptions) -> None:
        self._lines = name == "ndjson"
        super().__init__(name, options, Frame() if self._lines else _ARRAY)

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> EncodedRows:
        """Turn a staged batch into one object a row."""
        block = Block(batch, self._options.columns)
        before, after = ("", "}\n") if self._lines else (",\n", "}")
        pieces: list[pl.Expr] = [pl.lit(before + "{")]
        places = range(len(block.columns))
        for is_raw, group in groupby(places, key=lambda place: block.columns[place].type in _RAW_TYPES):
            members = list(group)
            comma = "," if members[0] else ""
            if is_raw:
                pieces += _raw_members(block, members, comma, counted)
            else:
                # ``"a":1,"b":"x"`` of neighbouring columns that polars can write as JSON.
                values = [self._value(block, place, counted).alias(block.columns[place].header) for place in members]
                encoded = pl.struct(values).struct.json_encode()
                pieces += [pl.lit(comma), encoded.str.strip_prefix("{").str.strip_suffix("}")]
        pieces.append(pl.lit(after))
        return EncodedRows.from_series(block.frame.select(pl.concat_str(pieces).alias("row")).to_series())

    def _value(self, block: Block, place: int, counted: Counter[str]) -> pl.Expr:
        name = str(place)
        match block.columns[place].type:
            case ColumnType.TIMESTAMP:
                return block.timestamp_text(place, self._options)
            case ColumnType.DATE:
                return pl.col(name).dt.strftime(ISO_DATE)
            case ColumnType.FLOAT:
                # json_encode writes null for these by itself.
                counted["non_finite_numbers"] += int((~block.frame[name].is_finite()).sum())
                return pl.col(name)
            case _:
                return pl.col(name)


def _raw_members(block: Block, places: list[int], comma: str, counted: Counter[str]) -> list[pl.Expr]:
    pieces: list[pl.Expr] = []
    for place in places:
        is_json = block.columns[place].type is ColumnType.JSON
        key = json.dumps(block.columns[place].header, ensure_ascii=False)
        pieces.append(pl.lit(f"{comma}{key}:"))
        pieces.append((_json_text(block, place) if is_json else _decimal(block, place, counted)).fill_null("null"))
        comma = ","
    return pieces


def _decimal(block: Block, place: int, counted: Counter[str]) -> pl.Expr:
    values = block.frame[str(place)]
    odd = values.filter(~values.str.contains(_NUMBER))
    if odd.is_empty():
        return pl.col(str(place))
    counted["non_finite_numbers"] += int(odd.str.contains(_NON_FINITE).sum())
    column = pl.col(str(place))
    # What databases may write but JSON does not allow: "+1", "007", ".5", "1.", blanks around.
    tidy = (
        column.str.strip_chars()
        .str.replace(r"^\+", "")
        .str.replace(r"^(-?)0+([0-9])", "$1$2")
        .str.replace(r"^(-?)\.", "${1}0.")
        .str.replace(r"\.($|[eE])", "$1")
    )
    text = pl.when(column.str.contains(_NON_FINITE)).then(None).otherwise(tidy)
    bad = block.frame.select((~text.str.contains(_NUMBER)).sum()).item()
    if bad:
        name = block.columns[place].name
        message = f"decimal column {name} holds {bad} value(s) that are not numbers"
        raise ExportFailure(FailureCode.SOURCE_DATA_INVALID, message, field=name)
    return text


def _json_text(block: Block, place: int) -> pl.Expr:
    """The column's JSON on one line: a line break in JSON can only be white space between tokens."""
    raw, text = block.text_bytes(place), pl.col(str(place))
    for line_break in ("\n", "\r"):
        if raw.has(line_break.encode()):
            text = text.str.replace_all(line_break, " ", literal=True)
    return text
