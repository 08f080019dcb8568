"""SQLite: ADBC in one deferred transaction, which in WAL mode is a snapshot that blocks no writer.

ADBC brings a SQLite of its own. Two copies of the library in one process drop each other's locks on a file
(sqlite.org/howtocorrupt.html, section 2.2.1); tried here, it ended in a bus error. So a file that this process has also
open through Python's own ``sqlite3`` is read through that, at less than half the speed.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import sqlite3
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
from export_pipeline.concurrency import Interruptible
from export_pipeline.database.engine import SQLITE_BUSY_TIMEOUT_SECONDS
from export_pipeline.source.dialects.base import READ_AS_TEXT
from export_pipeline.source.query import Query
from export_pipeline.source.readers import FETCH_BYTES, STEP_ROWS, Snapshot, Source
from export_pipeline.source.readers.arrow_types import (
    WHOLE_DOUBLES,
    batches_of,
    joined,
    staged_schema,
    to_staged,
    wrong_type,
)
from export_pipeline.source.readers.errors import failure_of, timed_out, translated

_ERRORS = (adbc.Error, pa.ArrowException)
_SHARED_ERRORS = (sqlite3.Error,)
_TYPED_VALUE = {ColumnType.INTEGER: 0, ColumnType.BOOLEAN: 0, ColumnType.FLOAT: 0.0}
_STEP_ROWS_IF_UNKNOWN = 128
_MISMATCH = re.compile(r"Type mismatch in column (\d+)")
_STEPS_BETWEEN_CHECKS = 10_000


class _Deadline:
    """The longest that one statement may take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds or math.inf
        self.begin()

    def begin(self) -> None:
        """A statement begins."""
        self._at = time.monotonic() + self._seconds

    def is_over(self) -> bool:
        return time.monotonic() > self._at

    def check(self) -> None:
        if self.is_over():
            raise timed_out()


def _uri(source: Source) -> str:
    return f"file:{quote(sa.make_url(source.url).database or '')}?mode=ro"


@contextmanager
def snapshot(source: Source, query: Query) -> Iterator[Snapshot]:
    """One read transaction on the file, through ADBC.

    ADBC cannot interrupt a statement (``NOT_IMPLEMENTED``), so its time is checked when it returns rows.
    """
    with translated(_ERRORS):
        connection = adbc_sqlite.connect(_uri(source), autocommit=True)
    with closing(connection), closing(connection.cursor()) as cursor:
        with translated(_ERRORS):
            cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_SECONDS * 1000}")
            cursor.execute("BEGIN")
            deadline = _Deadline(source.statement_timeout_seconds)
            row_count, step = _counted(cursor, query)
            deadline.check()
        with (
            closing(connection.cursor(adbc_stmt_kwargs={"adbc.sqlite.query.batch_rows": step})) as reading,
            closing(_batches(reading, query, deadline)) as batches,
        ):
            yield Snapshot(row_count, datetime.now(UTC), batches)


def _counted(cursor: adbc.Cursor, query: Query) -> tuple[int, int]:
    """The number of rows, and how many to request from ADBC at once: it counts them, however large they are.

    Where the whole table is read, the step follows from the largest row. SQLite knows a text's length without reading
    it.
    """
    sizes = [
        sa.func.ifnull(sa.func.octet_length(own), 0)
        for place, own in query.own.items()
        if query.columns[place].type in READ_AS_TEXT
    ]
    is_known = query.limit is None and len(query.own) == len(query.columns)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    largest = sa.func.max(functools.reduce(operator.add, sizes, one), type_=sa.Integer())
    statement, values = bound_statement(query.count.add_columns(largest) if is_known else query.count)
    cursor.execute(statement, values)
    row_count, *found = cursor.fetchall()[0]
    step = FETCH_BYTES // (found[0] or 1) if is_known else _STEP_ROWS_IF_UNKNOWN
    return row_count, max(1, min(STEP_ROWS, step))


def _batches(cursor: adbc.Cursor, query: Query, deadline: _Deadline) -> Generator[pa.RecordBatch, None, None]:
    """The rows after one that is dropped again.

    ADBC takes a column's type from its first values, and in SQLite values have a type, not columns: a column that
    starts with nulls would be read as integers and fail later. So the first row has a value of the declared type in
    every column.
    """
    schema = staged_schema(query.columns)
    # By place: to SQLite, names that differ only by case are one.
    read = [_read(query, place).label(f"c{place}") for place in range(len(query.columns))]
    rows = query.rows.with_only_columns(*read).subquery()
    typed = sa.select(*[sa.literal(_TYPED_VALUE.get(column.type, "")) for column in query.columns])
    statement, values = bound_statement(sa.union_all(typed, sa.select(rows)))
    first = True
    with translated(_ERRORS):
        deadline.begin()
        cursor.execute(statement, values)
        for batch in joined(_fetched(cursor.fetch_record_batch(), deadline, query.columns)):
            yield to_staged(batch.slice(1) if first else batch, query.columns, schema)
            first = False


def _read(query: Query, place: int) -> sa.ColumnElement[Any]:
    read = query.rows.selected_columns[place]
    if query.columns[place].type is not ColumnType.FLOAT:
        return read
    # ADBC would round an integer that no double is equal to: it gets a text, which to_staged refuses.
    is_whole = sa.func.typeof(read) == sa.literal_column("'integer'")
    return sa.case((is_whole & ~read.between(-WHOLE_DOUBLES, WHOLE_DOUBLES), sa.literal_column("''")), else_=read)


def _fetched(
    reader: pa.RecordBatchReader, deadline: _Deadline, columns: Sequence[Selected]
) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except OSError as error:
            mismatch = _MISMATCH.search(str(error))
            raise (wrong_type(columns[int(mismatch[1])]) if mismatch else failure_of(error)) from None
        deadline.check()
        for array, column in zip(batch.columns, columns, strict=True):
            # Beside a text, ADBC writes doubles as texts too, with few digits.
            if column.type is ColumnType.FLOAT and array.type != pa.float64():
                raise wrong_type(column)
        yield batch


@contextmanager
def shared_snapshot(source: Source, query: Query) -> Iterator[Snapshot]:
    """One read transaction on the file, through Python's ``sqlite3``."""
    with translated(_SHARED_ERRORS):
        connection = sqlite3.connect(
            _uri(source), uri=True, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
    with closing(connection), Interruptible(connection.interrupt, _SHARED_ERRORS) as interruptible:
        # to_staged decodes texts: here, one that is not UTF-8 would end the reading without its column's name.
        connection.text_factory = bytes
        with translated(_SHARED_ERRORS):
            connection.execute("BEGIN")
            deadline = _Deadline(source.statement_timeout_seconds)
            if source.statement_timeout_seconds:
                connection.set_progress_handler(deadline.is_over, _STEPS_BETWEEN_CHECKS)
            statement, values = bound_statement(query.count)
            (row_count,) = interruptible(lambda: connection.execute(statement, values).fetchone())
        with closing(_shared_batches(connection, query, deadline, interruptible)) as batches:
            yield Snapshot(row_count, datetime.now(UTC), batches)


def _shared_batches(
    connection: sqlite3.Connection, query: Query, deadline: _Deadline, interruptible: Interruptible
) -> Generator[pa.RecordBatch, None, None]:
    with translated(_SHARED_ERRORS):
        deadline.begin()
        statement, values = bound_statement(query.rows)
        cursor = interruptible(lambda: connection.execute(statement, values))
        batches = batches_of(cursor.fetchmany, query.columns)
        yield from joined(iter(lambda: interruptible(lambda: next(batches, None)), None))


def bound_statement(select: sa.Select[Any] | sa.CompoundSelect[Any]) -> tuple[str, Sequence[Any]]:
    """The statement with question marks, and the values in their order."""
    compiled = select.compile(dialect=SQLiteDialect_pysqlite(paramstyle="qmark"))
    values = compiled.params  # made anew at every access
    return compiled.string, [values[name] for name in compiled.positiontup or []]
