"""Giving every reader's batches the staged Arrow types, and translating what a database raises.

What belongs here: what all readers share. What does not: any one database's protocol.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from export_pipeline.catalog.types import ColumnType, Selected
from export_pipeline.engine.formats.base import ARROW_TYPES
from export_pipeline.engine.readers import FETCH_BYTES, FETCH_ROWS
from export_pipeline.engine.readers.mariadb import sqlstate_of
from export_pipeline.failures import ExportFailure, FailureCode

STATEMENT_TIMEOUT = "57014"
TOO_LARGE = "54000"
_SQLITE_MAY_PASS = ("is locked", "unable to open database", "disk I/O error")
"""SQLite has no SQLSTATE; these are the messages of SQLITE_BUSY, SQLITE_LOCKED, SQLITE_CANTOPEN and SQLITE_IOERR."""
_SNAPSHOT_GONE = "22023"
"""Invalid snapshot identifier: the backend that kept the exported snapshot was terminated."""
_WRONG_VALUE = ("22",)
_WRONG_TYPES = ("42883", "42804")
_MAY_PASS = ("08", "40", "53", "55", "57", "58")


def staged_schema(columns: Sequence[Selected]) -> pa.Schema:
    """The Arrow schema of the batches of these columns."""
    return pa.schema([pa.field(column.name, ARROW_TYPES[column.type]) for column in columns])


def to_staged(
    batch: pa.RecordBatch, columns: Sequence[Selected], schema: pa.Schema, *, json_is_checked: bool = False
) -> pa.RecordBatch:
    """Cast a reader's batch to the staged types.

    Args:
        batch: as the driver made it.
        columns: what was read.
        schema: theirs, ``staged_schema``.
        json_is_checked: the database has seen to it that what is declared json is JSON.

    Raises:
        ExportFailure: ``source_data_invalid``, naming the column.
    """
    arrays = [_cast(array, column) for array, column in zip(batch.columns, columns, strict=True)]
    for array, column in zip(arrays, columns, strict=True):
        if column.type is ColumnType.JSON and not json_is_checked:
            _check_json(array, column)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


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


_JSON = json.JSONDecoder(parse_constant=_no_json)
"""Strict: Python's own would take ``NaN`` and ``Infinity``."""


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


def _cast(array: pa.Array, column: Selected) -> pa.Array:
    wanted = ARROW_TYPES[column.type]
    if array.type == wanted:
        return array
    if array.null_count == len(array):
        # Without a value to go by, pandas takes any column for one of text.
        return pa.nulls(len(array), wanted)
    try:
        if column.type in (ColumnType.TIMESTAMP, ColumnType.DATE) and _is_text(array.type):
            return _parse_times(array, column).cast(wanted)
        return _cast_number(array, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pl.exceptions.PolarsError):
        raise wrong_type(column) from None


def wrong_type(column: Selected) -> ExportFailure:
    """A column holds what its declared type does not allow."""
    return ExportFailure(
        FailureCode.SOURCE_DATA_INVALID,
        f"Column {column.source} holds a value that is no {column.type}. Correct the data, or the catalog's type.",
    )


def _is_text(wanted: pa.DataType) -> bool:
    return bool(pa.types.is_string(wanted) or pa.types.is_large_string(wanted) or pa.types.is_string_view(wanted))


def _cast_number(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(wanted) and pa.types.is_timestamp(array.type) and array.type.tz is None:
        # A timestamp without time zone is taken as UTC, the only reading that needs no guess of a zone.
        return pc.assume_timezone(array.cast(pa.timestamp("us")), "UTC")
    if pa.types.is_float32(array.type):
        array = array.cast(pa.string())  # a real is the fewest digits that stand for it
    if pa.types.is_boolean(wanted) and not pa.types.is_integer(array.type):
        raise pa.ArrowInvalid
    return array.cast(wanted)


def _parse_times(array: pa.Array, column: Selected) -> pa.Array:
    """ISO 8601 text, as databases without a time type hold it; no offset means UTC."""
    text = pl.Series(column.name, array)
    if column.type is ColumnType.DATE:
        return text.str.to_date("%Y-%m-%d", strict=True).to_arrow()
    plain = text.str.replace("T", " ", literal=True)
    moments = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False)
    odd = moments.is_null() & text.is_not_null()
    if odd.any():
        zoned = plain.filter(odd).str.replace("Z$", "+00:00").str.replace(r"([+-]\d\d)$", "${1}:00")
        parsed = zoned.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="us", strict=True).dt.convert_time_zone(
            "UTC"
        )
        moments = moments.scatter(odd.arg_true(), parsed)
    return moments.to_arrow()


@contextmanager
def translated(errors: tuple[type[Exception], ...], *, counted: bool = False) -> Iterator[None]:
    """Turn a driver's errors into failures of ours (``failure_of``), without the text, which may hold data."""
    try:
        yield
    except errors as error:
        raise failure_of(error, counted=counted) from None


def failure_of(error: Exception, *, counted: bool = False) -> ExportFailure:
    """What a driver's error means, by its SQLSTATE where there is one.

    Args:
        error: what the driver raised.
        counted: the same conditions have been evaluated for every row before, so a value that does not fit is the
            source's own, not one of the request.
    """
    original = _original(error)
    sqlstate = sqlstate_of(original) or str(getattr(original, "sqlstate", None) or "")
    if getattr(original, "sqlite_errorname", None) == "SQLITE_INTERRUPT":
        sqlstate = STATEMENT_TIMEOUT
    name = type(original).__name__
    shown = f"SQLSTATE {sqlstate}" if sqlstate else name
    if sqlstate == STATEMENT_TIMEOUT:
        return timed_out()
    if sqlstate == TOO_LARGE:
        return ExportFailure(
            FailureCode.SOURCE_REFUSED,
            "A row's child list is longer than the source database hands over at once. Give the child list a limit in "
            "the catalog, or raise max_allowed_packet there.",
        )
    if sqlstate.startswith(_WRONG_VALUE) and sqlstate != _SNAPSHOT_GONE:
        return _wrong_value(shown, counted=counted)
    if sqlstate in _WRONG_TYPES:
        return ExportFailure(
            FailureCode.SOURCE_REFUSED,
            f"The source database cannot compare two columns that the catalog has compared ({shown}). Check the types "
            "of key, tenant, lists.member and children.foreign_key.",
        )
    if _may_pass(original, sqlstate):
        return ExportFailure(
            FailureCode.SOURCE_UNAVAILABLE,
            f"The source database could not be read ({shown}). Check that it runs and EXPORT_SOURCE_URL.",
        )
    return ExportFailure(
        FailureCode.SOURCE_REFUSED,
        f"The source database refused the query ({shown}). Check the catalog's table and columns, and the user's "
        "rights.",
    )


def _wrong_value(shown: str, *, counted: bool) -> ExportFailure:
    if counted:
        return ExportFailure(
            FailureCode.SOURCE_DATA_INVALID,
            f"The source database could not compute a value of a row ({shown}). Correct the data, or the view.",
        )
    return ExportFailure(
        FailureCode.INVALID_REQUEST,
        f"The source database cannot compare a value of organization_id or filters ({shown}). "
        "Check that their types are those of the columns.",
    )


def timed_out() -> ExportFailure:
    """A statement took longer than it may."""
    return ExportFailure(
        FailureCode.SOURCE_REFUSED,
        "The source database stopped the query: it took longer than EXPORT_STATEMENT_TIMEOUT_SECONDS, or was "
        "canceled there. Raise the limit, or add an index on the tenant and key columns.",
    )


def _original(error: BaseException) -> BaseException:
    """The driver's error: pandas puts one of its own before SQLAlchemy's, and SQLAlchemy one before the driver's."""
    if type(error).__module__.partition(".")[0] == "pandas" and error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error


def _may_pass(error: BaseException, sqlstate: str) -> bool:
    if sqlstate:
        return sqlstate == _SNAPSHOT_GONE or sqlstate.startswith(_MAY_PASS)
    if any(message in str(error) for message in _SQLITE_MAY_PASS):
        return True
    # A connection that breaks in mid-COPY has no SQLSTATE; SQLite calls a missing table operational too.
    return type(error).__name__ in ("OperationalError", "InterfaceError") and not isinstance(error, sqlite3.Error)
