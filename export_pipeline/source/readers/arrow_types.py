"""Readers' batches, checked and converted to the staged types; and Python drivers' rows as such batches.

``to_staged`` is the only check of values: afterwards text is valid UTF-8, numbers are exactly those of the database,
dates are in the years 1 to 9999, and JSON, decimals and uuids are well-formed. No format checks again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from sys import getsizeof
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.catalog.model import Selected
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.readers import FETCH_BYTES, FETCH_ROWS, STEP_ROWS
from export_pipeline.storage.batches import ARROW_TYPES

_SPELLINGS = {
    ColumnType.UUID: r"^\{?[0-9A-Fa-f]{8}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{12}\}?$",
    ColumnType.DECIMAL: r"^\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))\s*$",
}
WHOLE_DOUBLES = 2**53
"""From here on, one double may represent several integers."""
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, in days from 1970-01-01."""
_DAY_US = 86_400_000_000
_FIRST_BEYOND_ASCII = _CONTINUES = 0x80
"""In UTF-8: the least byte of characters beyond ASCII, and the two highest bits of bytes that continue a character."""
AT_ONCE = 16
"""The most rows to request from a driver at once: only one of them is weighed, because weighing all takes too long."""
Rows = Sequence[Sequence[Any]]
_WRONG = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


def staged_schema(columns: Sequence[Selected]) -> pa.Schema:
    """The Arrow schema of the batches of these columns."""
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.type]) for column in columns])


def to_staged(
    batch: pa.RecordBatch, columns: Sequence[Selected], schema: pa.Schema, *, sure: Collection[int] = ()
) -> pa.RecordBatch:
    """Check a reader's batch and convert it to the staged types: to ``schema``, the ``staged_schema`` of the columns.

    ``sure`` are the places of columns whose database type allows only well-formed JSON, uuids or decimals: these are
    not checked again.

    Raises ``ExportFailure``: ``source_data_invalid``, naming the column.
    """
    arrays = [
        _staged(array, column, sure=place in sure)
        for place, (array, column) in enumerate(zip(batch.columns, columns, strict=True))
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def wrong_type(column: Selected) -> ExportFailure:
    """A column has a value that its declared type does not allow."""
    return ExportFailure(
        FailureCode.SOURCE_DATA_INVALID,
        f"Column {column.source} holds a value that is not {column.type}. Correct the data, or the catalog's type.",
    )


def joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches until they hold ``FETCH_BYTES`` or ``FETCH_ROWS``."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        pending.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if size >= FETCH_BYTES or rows >= FETCH_ROWS:
            yield pa.concat_batches(pending)
            pending, rows, size = [], 0, 0
    if pending:
        yield pa.concat_batches(pending)


def _staged(array: pa.Array, column: Selected, *, sure: bool) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    wanted = ARROW_TYPES[column.type]
    if array.null_count == len(array):
        # Without a value, a driver may give the column any type.
        return pa.nulls(len(array), wanted)
    try:
        staged = _cast(array, column.type)
        if wanted == pa.string():
            _check_utf8(staged)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pl.exceptions.PolarsError):
        raise wrong_type(column) from None
    if column.type in (ColumnType.TIMESTAMP, ColumnType.DATE):
        _check_calendar(staged, column)
    elif not sure:
        _check_spelling(staged, column)
    return staged


def _is_text(given: pa.DataType) -> bool:
    return bool(pa.types.is_string(given) or pa.types.is_large_string(given) or pa.types.is_string_view(given))


def _is_bytes(given: pa.DataType) -> bool:
    return bool(pa.types.is_binary(given) or pa.types.is_large_binary(given) or pa.types.is_binary_view(given))


def _arrow(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Arrow's own cast. Between the types that use it below, it fails instead of losing anything."""
    return array if array.type == wanted else array.cast(wanted)


def _whole(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Doubles as integers, if each double represents one integer only."""
    furthest = pc.max(pc.abs(array)).as_py()
    if not furthest < WHOLE_DOUBLES:
        raise pa.ArrowInvalid
    return array.cast(wanted)


def _shortest(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """By the digits: a float of 32 bits is 11.4, not 11.399999618530273, and Arrow's cast of decimals rounds twice."""
    return array.cast(pa.string()).cast(wanted)


def _instants(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if array.type.tz is None:
        # A timestamp without time zone is taken as UTC, the only reading that needs no guess of a zone.
        array = pc.assume_timezone(array.cast(pa.timestamp("us")), "UTC")
    return array.cast(wanted)


def _midnights(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Timestamps as dates, for a database without dates, if none has a time."""
    days = array.cast(wanted) if array.type.tz is None else None
    if days is None or not days.cast(array.type).equals(array):
        raise pa.ArrowInvalid
    return days


def _parsed_instants(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """ISO 8601 text, as databases without a time type hold it; no offset means UTC."""
    text = pl.Series("", array.cast(pa.string()))
    plain = text.str.replace("T", " ", literal=True)
    moments = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False)
    odd = moments.is_null() & text.is_not_null()
    if odd.any():
        zoned = plain.filter(odd).str.replace("Z$", "+00:00").str.replace(r"([+-]\d\d)$", "${1}:00")
        parsed = zoned.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="us", strict=True).dt.convert_time_zone(
            "UTC"
        )
        moments = moments.scatter(odd.arg_true(), parsed)
    return moments.to_arrow().cast(wanted)


def _parsed_days(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    return pl.Series("", array.cast(pa.string())).str.to_date("%Y-%m-%d", strict=True).to_arrow().cast(wanted)


_Cast = Callable[[pa.Array, pa.DataType], pa.Array]
_Casts = Mapping[Callable[[pa.DataType], bool], _Cast]
_OF_TEXT: _Casts = {_is_text: _arrow, _is_bytes: _arrow}
_OF_TEXT_OR_NUMBER: _Casts = {
    **_OF_TEXT,
    pa.types.is_integer: _arrow,
    pa.types.is_floating: _arrow,
    pa.types.is_decimal: _arrow,
}
_CASTS: Mapping[ColumnType, _Casts] = {
    ColumnType.TEXT: _OF_TEXT_OR_NUMBER,
    ColumnType.DECIMAL: _OF_TEXT_OR_NUMBER,
    ColumnType.UUID: _OF_TEXT,
    ColumnType.JSON: _OF_TEXT,
    ColumnType.INTEGER: {
        pa.types.is_integer: _arrow,
        pa.types.is_floating: _whole,
        pa.types.is_decimal: _arrow,
        _is_text: _arrow,
    },
    ColumnType.FLOAT: {
        pa.types.is_float64: _arrow,
        pa.types.is_floating: _shortest,
        pa.types.is_integer: _arrow,
        pa.types.is_decimal: _shortest,
        _is_text: _arrow,
    },
    ColumnType.BOOLEAN: {pa.types.is_boolean: _arrow, pa.types.is_integer: _arrow},
    ColumnType.TIMESTAMP: {pa.types.is_timestamp: _instants, pa.types.is_date: _arrow, _is_text: _parsed_instants},
    ColumnType.DATE: {pa.types.is_date: _arrow, pa.types.is_timestamp: _midnights, _is_text: _parsed_days},
}
"""The Arrow types that each declared type may come from, and how; the first that applies. Arrow itself would convert a
count of seconds to a timestamp, a timestamp to a number, and a number to a date."""


def _cast(array: pa.Array, declared: ColumnType) -> pa.Array:
    for is_allowed, cast in _CASTS[declared].items():
        if is_allowed(array.type):
            return cast(array, ARROW_TYPES[declared])
    raise pa.ArrowInvalid


def _check_utf8(array: pa.Array) -> None:
    """Check the whole column at once: many times as fast as Arrow's own validation, value by value."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4)
    first, last = int(ends[0]), int(ends[-1])
    if first == last:
        return
    found = np.frombuffer(data, np.uint8)[first:last]
    if found.max() < _FIRST_BEYOND_ASCII:
        return
    whole = pa.py_buffer(np.array([0, last - first], np.int32))
    pa.Array.from_buffers(pa.string(), 1, [None, whole, data.slice(first, last - first)]).validate(full=True)
    begins = found.take(ends[:-1][ends[:-1] < last] - first)
    if ((begins & 0xC0) == _CONTINUES).any():
        raise pa.ArrowInvalid


def _check_calendar(array: pa.Array, column: Selected) -> None:
    unit = 1 if column.type is ColumnType.DATE else _DAY_US
    ends = pc.min_max(array.view(pa.int32() if unit == 1 else pa.int64()))
    first, last = ends["min"].as_py(), ends["max"].as_py()
    if first is not None and not (_FIRST_DAY * unit <= first and last < (_LAST_DAY + 1) * unit):
        raise ExportFailure(
            FailureCode.SOURCE_DATA_INVALID,
            f"Column {column.source} holds a date outside the years 1 to 9999, or an infinity. Turn such values into "
            "null in a view.",
        )


def _check_spelling(array: pa.Array, column: Selected) -> None:
    if column.type is ColumnType.JSON:
        _check_json(array, column)
    elif column.type in _SPELLINGS and not pc.all(pc.match_substring_regex(array, _SPELLINGS[column.type])).as_py():
        raise wrong_type(column)


def _check_json(array: pa.Array, column: Selected) -> None:
    """JSON files take it as it is: text like ``1},{"id":2`` would add a row, or forge a key."""
    try:
        for text in array.to_pylist():
            if text is not None:
                _JSON.decode(text)
    except (ValueError, RecursionError):
        raise wrong_type(column) from None


def _no_json(constant: str) -> None:
    raise ValueError(constant)


_JSON = json.JSONDecoder(parse_constant=_no_json, parse_int=len, parse_float=len)
"""Strict: Python's default accepts ``NaN`` and ``Infinity``. It does not build numbers: Python refuses long ones."""


def batches_of(
    fetch: Callable[[int], Rows], columns: Sequence[Selected], narrow: Collection[int] = ()
) -> Iterator[pa.RecordBatch]:
    """A Python driver's rows as staged batches of a few megabytes.

    ``fetch`` returns at most the given number of rows, and none at the end. ``narrow`` are the places of doubles that
    are floats of 32 bits in the database.
    """
    schema = staged_schema(columns)
    for rows in _steps(fetch):
        values = zip(*rows, strict=True)
        arrays = [
            pa.array(one, pa.float32()) if place in narrow else _array(column, one)
            for place, (column, one) in enumerate(zip(columns, values, strict=True))
        ]
        yield to_staged(pa.RecordBatch.from_arrays(arrays, names=schema.names), columns, schema)


def _steps(fetch: Callable[[int], Rows]) -> Iterator[Rows]:
    pending: list[Sequence[Any]] = []
    weight, step = 0, AT_ONCE
    while rows := fetch(step):
        pending += rows
        one = sum(map(getsizeof, rows[-1]))
        weight += len(rows) * one
        step = min(AT_ONCE, FETCH_BYTES // one + 1)
        if weight >= FETCH_BYTES or len(pending) >= STEP_ROWS:
            yield pending
            pending, weight = [], 0
    if pending:
        yield pending


def _array(column: Selected, values: Sequence[Any]) -> pa.Array:
    try:
        return _text(values) if ARROW_TYPES[column.type] == pa.string() else _inferred(values)
    except _WRONG:
        raise wrong_type(column) from None


def _inferred(values: Sequence[Any]) -> pa.Array:
    """An array of the one type that all values have; bytes are text that is not decoded yet."""
    array = pa.array(values)
    return array.cast(pa.string()) if array.type == pa.binary() else array


def _text(values: Sequence[Any]) -> pa.Array:
    """Texts, decoded or not. Numbers among them are written with the fewest digits that read back the same."""
    try:
        return _inferred(values)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        texts = [value if value is None or isinstance(value, str | bytes) else str(value) for value in values]
        return pa.array(texts, pa.string())
