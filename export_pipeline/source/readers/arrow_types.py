"""The gate for values: what a reader hands over is checked once, here, whatever reads it next.

A batch that has passed holds valid UTF-8, numbers that are exactly those of the database, dates of the years 1 to 9999,
and JSON, decimals and uuids that are what they are declared to be. No format checks again.
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

_UUID = r"^\{?[0-9A-Fa-f]{8}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{12}\}?$"
_DECIMAL = r"^\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))\s*$"
_WHOLE_DOUBLES = 2**53
"""From here on a double may stand for an integer beside it."""
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, in days from 1970-01-01."""
_DAY_US = 86_400_000_000
_FIRST_BEYOND_ASCII = _CONTINUES = 0x80
"""Bytes of UTF-8: from this one on, they are of more than one; the two highest bits of one that continues another."""


def staged_schema(columns: Sequence[Selected]) -> pa.Schema:
    """The Arrow schema of the batches of these columns."""
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.type]) for column in columns])


def to_staged(
    batch: pa.RecordBatch, columns: Sequence[Selected], schema: pa.Schema, *, sure: Collection[int] = ()
) -> pa.RecordBatch:
    """Check a reader's batch and give it the staged types.

    Args:
        batch: as the driver made it.
        columns: what was read.
        schema: theirs, ``staged_schema``.
        sure: places of columns whose own type in the database allows no other values: the spelling of their JSON,
            uuids and decimals is not looked at again.

    Raises:
        ExportFailure: ``source_data_invalid``, naming the column.
    """
    arrays = [
        _staged(array, column, sure=place in sure)
        for place, (array, column) in enumerate(zip(batch.columns, columns, strict=True))
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def wrong_type(column: Selected) -> ExportFailure:
    """A column holds what its declared type does not allow."""
    return ExportFailure(
        FailureCode.SOURCE_DATA_INVALID,
        f"Column {column.source} holds a value that is no {column.type}. Correct the data, or the catalog's type.",
    )


def joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches until they hold ``FETCH_BYTES`` or ``FETCH_ROWS``."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if size >= FETCH_BYTES or rows >= FETCH_ROWS:
            yield pa.concat_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_batches(waiting)


def _staged(array: pa.Array, column: Selected, *, sure: bool) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    wanted = ARROW_TYPES[column.type]
    if array.null_count == len(array):
        # Without a value to go by, a driver may take any column for one of any type.
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


def _as_it_is(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Arrow's own cast, which fails rather than to lose anything between the types that are allowed it below."""
    return array if array.type == wanted else array.cast(wanted)


def _whole(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Doubles as integers, as long as no other integer may have become the same double."""
    furthest = pc.max(pc.abs(array)).as_py()
    if not furthest < _WHOLE_DOUBLES:
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
    """Where a database has no dates but timestamps: days, if none has a time."""
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


Way = tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, pa.DataType], pa.Array]]
_TEXT: tuple[Way, ...] = ((_is_text, _as_it_is), (_is_bytes, _as_it_is))
_NUMBER_AS_TEXT: tuple[Way, ...] = (
    (pa.types.is_integer, _as_it_is),
    (pa.types.is_floating, _as_it_is),
    (pa.types.is_decimal, _as_it_is),
)
_INTEGER: Way = (pa.types.is_integer, _as_it_is)
_WAYS: Mapping[ColumnType, tuple[Way, ...]] = {
    ColumnType.TEXT: (*_TEXT, *_NUMBER_AS_TEXT),
    ColumnType.DECIMAL: (*_TEXT, *_NUMBER_AS_TEXT),
    ColumnType.UUID: _TEXT,
    ColumnType.JSON: _TEXT,
    ColumnType.INTEGER: (
        _INTEGER,
        (pa.types.is_floating, _whole),
        (pa.types.is_decimal, _as_it_is),
        (_is_text, _as_it_is),
    ),
    ColumnType.FLOAT: (
        (pa.types.is_float64, _as_it_is),
        (pa.types.is_floating, _shortest),
        _INTEGER,
        (pa.types.is_decimal, _shortest),
        (_is_text, _as_it_is),
    ),
    ColumnType.BOOLEAN: ((pa.types.is_boolean, _as_it_is), _INTEGER),
    ColumnType.TIMESTAMP: (
        (pa.types.is_timestamp, _instants),
        (pa.types.is_date, _as_it_is),
        (_is_text, _parsed_instants),
    ),
    ColumnType.DATE: ((pa.types.is_date, _as_it_is), (pa.types.is_timestamp, _midnights), (_is_text, _parsed_days)),
}
"""Which Arrow types each declared type may come from, and how. Arrow itself would take a count of seconds for a
timestamp, a timestamp for a number, and a number for a day."""


def _cast(array: pa.Array, declared: ColumnType) -> pa.Array:
    for is_allowed, way in _WAYS[declared]:
        if is_allowed(array.type):
            return way(array, ARROW_TYPES[declared])
    raise pa.ArrowInvalid


def _check_utf8(array: pa.Array) -> None:
    """The whole column at once: many times as fast as Arrow's own validation, which looks at value after value."""
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


_SPELLINGS = {ColumnType.UUID: _UUID, ColumnType.DECIMAL: _DECIMAL}


def _check_json(array: pa.Array, column: Selected) -> None:
    """It goes into JSON files as it is: text like ``1},{"id":2`` would be a row more, or a key forged."""
    try:
        for text in array.to_pylist():
            if text is not None:
                _JSON.decode(text)
    except (ValueError, RecursionError):
        raise wrong_type(column) from None


def _no_json(constant: str) -> None:
    raise ValueError(constant)


_JSON = json.JSONDecoder(parse_constant=_no_json, parse_int=len, parse_float=len)
"""Strict: Python's own would take ``NaN`` and ``Infinity``. Numbers are not made: Python refuses long ones."""
# Rows as Python's drivers give them, gathered into Arrow batches that a few megabytes bound.


AT_ONCE = 16
"""The most rows that a driver is asked for at once: one of them is weighed, for all of them would take too long."""
Rows = Sequence[Sequence[Any]]
_WRONG = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


def batches_of(
    fetch: Callable[[int], Rows], columns: Sequence[Selected], narrow: Collection[int] = ()
) -> Iterator[pa.RecordBatch]:
    """Rows as staged batches.

    Args:
        fetch: gives at most so many of them, and none at the end.
        columns: what they hold.
        narrow: places of doubles that are floats of 32 bits in the database.
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
    waiting: list[Sequence[Any]] = []
    weight, step = 0, AT_ONCE
    while rows := fetch(step):
        waiting += rows
        one = sum(map(getsizeof, rows[-1]))
        weight += len(rows) * one
        step = min(AT_ONCE, FETCH_BYTES // one + 1)
        if weight >= FETCH_BYTES or len(waiting) >= STEP_ROWS:
            yield waiting
            waiting, weight = [], 0
    if waiting:
        yield waiting


def _array(column: Selected, values: Sequence[Any]) -> pa.Array:
    try:
        return _text(values) if ARROW_TYPES[column.type] == pa.string() else _inferred(values)
    except _WRONG:
        raise wrong_type(column) from None


def _inferred(values: Sequence[Any]) -> pa.Array:
    """Of the type that the values have, all of them; bytes are text that was not decoded yet."""
    array = pa.array(values)
    return array.cast(pa.string()) if array.type == pa.binary() else array


def _text(values: Sequence[Any]) -> pa.Array:
    """Texts, undecoded or not. Numbers among them as they are written, with the fewest digits that give them back."""
    try:
        return _inferred(values)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        texts = [value if value is None or isinstance(value, str | bytes) else str(value) for value in values]
        return pa.array(texts, pa.string())
