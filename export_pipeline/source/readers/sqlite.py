"""SQLite in a file of its own: ADBC in one deferred transaction, which in WAL mode is a snapshot that blocks no writer.

ADBC takes a column's type from its first values, and SQLite has values, not columns, of a type: a
column that starts with nulls would be read as integers and fail later. The first row read is
therefore one of ours with a value of the declared type in every column; it is dropped again.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import adbc_driver_manager.dbapi as adbc
import adbc_driver_sqlite.dbapi as adbc_sqlite
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from export_pipeline.catalog.model import Selected
from export_pipeline.catalog.types import ColumnType
from export_pipeline.database.engine import SQLITE_BUSY_TIMEOUT_SECONDS
from export_pipeline.source.query import Query
from export_pipeline.source.readers import FETCH_BYTES, STEP_ROWS, Snapshot
from export_pipeline.source.readers.arrow_types import joined, staged_schema, to_staged, wrong_type
from export_pipeline.source.readers.errors import failure_of, timed_out, translated

_ERRORS = (adbc.Error, pa.ArrowException)
_TYPED_VALUE = {ColumnType.INTEGER: 0, ColumnType.BOOLEAN: 0, ColumnType.FLOAT: 0.0}
_TEXTS = (ColumnType.TEXT, ColumnType.UUID, ColumnType.JSON, ColumnType.DECIMAL)
_STEP_ROWS_IF_UNKNOWN = 128
_WHOLE_DOUBLES = 2**53
_MISMATCH = re.compile(r"Type mismatch in column (\d+)")


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float = 0) -> Iterator[Snapshot]:
    """One read transaction on the file.

    ADBC cannot interrupt a statement (``NOT_IMPLEMENTED``), so its time is looked at when it hands rows over.
    """
    path = sa.make_url(source_url).database or ""
    with translated(_ERRORS):
        connection = adbc_sqlite.connect(f"file:{quote(path)}?mode=ro", autocommit=True)
    with closing(connection), closing(connection.cursor()) as cursor:
        with translated(_ERRORS):
            cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_SECONDS * 1000}")
            cursor.execute("BEGIN")
            deadline = _deadline(statement_timeout_seconds)
            row_count, step = _counted(cursor, query)
            _look_at(deadline)
        with (
            closing(connection.cursor(adbc_stmt_kwargs={"adbc.sqlite.query.batch_rows": step})) as reading,
            closing(_batches(reading, query, statement_timeout_seconds)) as batches,
        ):
            yield Snapshot(row_count, datetime.now(UTC), batches)


def _counted(cursor: adbc.Cursor, query: Query) -> tuple[int, int]:
    """How many rows there are, and how many to ask ADBC for at once: it counts them, however heavy they are.

    The heaviest is looked for where the whole table is to be read. SQLite knows a text's length without reading it.
    """
    weights = [
        sa.func.ifnull(sa.func.octet_length(own), 0)
        for place, own in query.own.items()
        if query.columns[place].type in _TEXTS
    ]
    is_known = query.limit is None and len(query.own) == len(query.columns)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    heaviest = sa.func.max(functools.reduce(operator.add, weights, one), type_=sa.Integer())
    statement, values = bound_statement(query.count.add_columns(heaviest) if is_known else query.count)
    cursor.execute(statement, values)
    row_count, *found = cursor.fetchall()[0]
    step = FETCH_BYTES // (found[0] or 1) if is_known else _STEP_ROWS_IF_UNKNOWN
    return row_count, max(1, min(STEP_ROWS, step))


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds if seconds else math.inf


def _look_at(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise timed_out()


def _batches(cursor: adbc.Cursor, query: Query, timeout_seconds: float) -> Generator[pa.RecordBatch, None, None]:
    schema = staged_schema(query.columns)
    # By place: to SQLite, names that differ by case alone are one.
    read = [_read(query, place).label(f"c{place}") for place in range(len(query.columns))]
    rows = query.rows.with_only_columns(*read).subquery()
    typed = sa.select(*[sa.literal(_TYPED_VALUE.get(column.type, "")) for column in query.columns])
    statement, values = bound_statement(sa.union_all(typed, sa.select(rows)))
    first = True
    with translated(_ERRORS):
        deadline = _deadline(timeout_seconds)
        cursor.execute(statement, values)
        for batch in joined(_fetched(cursor.fetch_record_batch(), deadline, query.columns)):
            yield to_staged(batch.slice(1) if first else batch, query.columns, schema)
            first = False


def _read(query: Query, place: int) -> sa.ColumnElement[Any]:
    read = query.rows.selected_columns[place]
    if query.columns[place].type is not ColumnType.FLOAT:
        return read
    # ADBC would round an integer that no double is equal to: it gets a text, which the gate refuses.
    is_whole = sa.func.typeof(read) == sa.literal_column("'integer'")
    return sa.case((is_whole & ~read.between(-_WHOLE_DOUBLES, _WHOLE_DOUBLES), sa.literal_column("''")), else_=read)


def _fetched(reader: pa.RecordBatchReader, deadline: float, columns: Sequence[Selected]) -> Iterator[pa.RecordBatch]:
    while (batch := _next(reader, columns)) is not None:
        _look_at(deadline)
        for array, column in zip(batch.columns, columns, strict=True):
            # Beside a text, ADBC writes doubles as texts too, with few digits.
            if column.type is ColumnType.FLOAT and array.type != pa.float64():
                raise wrong_type(column)
        yield batch


def _next(reader: pa.RecordBatchReader, columns: Sequence[Selected]) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except OSError as error:
        mismatch = _MISMATCH.search(str(error))
        raise (wrong_type(columns[int(mismatch[1])]) if mismatch else failure_of(error)) from None


def bound_statement(select: sa.Select[Any] | sa.CompoundSelect[Any]) -> tuple[str, Sequence[Any]]:
    """The statement with question marks, and the values in their order."""
    compiled = select.compile(dialect=SQLiteDialect_pysqlite(paramstyle="qmark"))
    values = compiled.params  # made anew at every access
    return compiled.string, [values[name] for name in compiled.positiontup or []]
