"""SQLite in a file of its own: ADBC in one deferred transaction, which in WAL mode is a snapshot that blocks no writer.

What belongs here: SQLite's ways. What does not: the statement.

ADBC takes a column's type from its first values, and SQLite has values, not columns, of a type: a
column that starts with nulls would be read as integers and fail later. The first row read is
therefore one of ours with a value of the declared type in every column; it is dropped again.
"""

from __future__ import annotations

import math
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

from export_pipeline.catalog.types import ColumnType, Selected
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import STEP_ROWS, Snapshot
from export_pipeline.engine.readers.types import failure_of, joined, staged_schema, timed_out, to_staged, translated
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.database import SQLITE_BUSY_TIMEOUT_SECONDS

_ERRORS = (adbc.Error, pa.ArrowException)
_OPTIONS = {"adbc.sqlite.query.batch_rows": STEP_ROWS}
_TYPED_VALUE = {ColumnType.INTEGER: 0, ColumnType.BOOLEAN: 0, ColumnType.FLOAT: 0.0}


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float = 0) -> Iterator[Snapshot]:
    """One read transaction on the file.

    ADBC cannot interrupt a statement (``NOT_IMPLEMENTED``), so its time is looked at when it hands rows over.
    """
    path = sa.make_url(source_url).database or ""
    with translated(_ERRORS):
        connection = adbc_sqlite.connect(f"file:{quote(path)}?mode=ro", autocommit=True)
    with closing(connection), closing(connection.cursor(adbc_stmt_kwargs=_OPTIONS)) as cursor:
        with translated(_ERRORS):
            cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_SECONDS * 1000}")
            cursor.execute("BEGIN")
            statement, values = bound_statement(query.count)
            deadline = _deadline(statement_timeout_seconds)
            cursor.execute(statement, values)
            row_count = cursor.fetchall()[0][0]
            _look_at(deadline)
        with closing(_batches(cursor, query, statement_timeout_seconds)) as batches:
            yield Snapshot(row_count, datetime.now(UTC), batches)


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds if seconds else math.inf


def _look_at(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise timed_out()


def _batches(cursor: adbc.Cursor, query: Query, timeout_seconds: float) -> Generator[pa.RecordBatch, None, None]:
    schema = staged_schema(query.columns)
    rows = query.rows.subquery()
    typed = sa.select(*[_typed(column) for column in query.columns])
    statement, values = bound_statement(sa.union_all(typed, sa.select(rows)))
    first = True
    with translated(_ERRORS):
        deadline = _deadline(timeout_seconds)
        cursor.execute(statement, values)
        for batch in joined(_fetched(cursor.fetch_record_batch(), deadline)):
            yield to_staged(batch.slice(1) if first else batch, query.columns, schema)
            first = False


def _fetched(reader: pa.RecordBatchReader, deadline: float) -> Iterator[pa.RecordBatch]:
    while (batch := _next(reader)) is not None:
        _look_at(deadline)
        yield batch


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except OSError as error:
        if "Type mismatch" not in str(error):
            raise failure_of(error) from None
        raise ExportFailure(
            FailureCode.SOURCE_DATA_INVALID,
            "A column holds a value that is not of its declared type. Correct the data, or the catalog's types.",
        ) from None


def _typed(column: Selected) -> sa.ColumnElement[Any]:
    return sa.literal(_TYPED_VALUE.get(column.type, "")).label(column.name)


def bound_statement(select: sa.Select[Any] | sa.CompoundSelect[Any]) -> tuple[str, Sequence[Any]]:
    """The statement with question marks, and the values in their order."""
    compiled = select.compile(dialect=SQLiteDialect_pysqlite(paramstyle="qmark"))
    values = compiled.params  # made anew at every access
    return compiled.string, [values[name] for name in compiled.positiontup or []]
