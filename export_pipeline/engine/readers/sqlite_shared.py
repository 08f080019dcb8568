"""SQLite, where this process has the same file open through Python's own ``sqlite3``: read it through that too.

What belongs here: the slower reader that shares the library. What does not: the statement.

ADBC brings a SQLite of its own. Two copies of the library in one process drop each other's locks on
a file (sqlite.org/howtocorrupt.html, section 2.2.1); tried here, it ended in a bus error. A source in
a file of its own is read through ADBC (``sqlite``), more than twice as fast.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.catalog.types import ColumnType, Selected
from export_pipeline.engine.formats.base import ARROW_TYPES
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import STEP_ROWS, Snapshot
from export_pipeline.engine.readers.sqlite import bound_statement
from export_pipeline.engine.readers.types import joined, staged_schema, to_staged, translated, wrong_type
from export_pipeline.requests.database import SQLITE_BUSY_TIMEOUT_SECONDS

_STEPS_BETWEEN_LOOKS = 10_000
_READ_AS = {ColumnType.BOOLEAN: pa.int64(), ColumnType.TIMESTAMP: pa.string(), ColumnType.DATE: pa.string()}


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float = 0) -> Iterator[Snapshot]:
    """One read transaction on the file."""
    path = sa.make_url(source_url).database or ""
    uri = f"file:{quote(path)}?mode=ro"
    with translated((sqlite3.Error,)):
        connection = sqlite3.connect(uri, uri=True, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None)
    with closing(connection):
        with translated((sqlite3.Error,)):
            connection.execute("BEGIN")
            limit = _Limit(connection, statement_timeout_seconds)
            limit.begin()
            (row_count,) = connection.execute(*bound_statement(query.count)).fetchone()
        with closing(_batches(connection, query, limit)) as batches:
            yield Snapshot(row_count, datetime.now(UTC), batches)


class _Limit:
    """The longest that a statement may take: SQLite asks, every so many of its steps, whether it may go on."""

    def __init__(self, connection: sqlite3.Connection, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = 0.0
        if seconds:
            connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _STEPS_BETWEEN_LOOKS)

    def begin(self) -> None:
        """A statement begins."""
        self._deadline = time.monotonic() + self._seconds


def _batches(connection: sqlite3.Connection, query: Query, limit: _Limit) -> Generator[pa.RecordBatch, None, None]:
    with translated((sqlite3.Error,)):
        limit.begin()
        yield from joined(_fetched(connection.execute(*bound_statement(query.rows)), query))


def _fetched(cursor: sqlite3.Cursor, query: Query) -> Iterator[pa.RecordBatch]:
    schema = staged_schema(query.columns)
    while rows := cursor.fetchmany(STEP_ROWS):
        values = zip(*rows, strict=True)
        arrays = [_array(column, one) for column, one in zip(query.columns, values, strict=True)]
        yield to_staged(pa.RecordBatch.from_arrays(arrays, names=schema.names), query.columns, schema)


def _array(column: Selected, values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, type=_READ_AS.get(column.type, ARROW_TYPES[column.type]))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise wrong_type(column) from None
