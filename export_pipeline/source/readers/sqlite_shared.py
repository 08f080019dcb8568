"""SQLite, where this process has the same file open through Python's own ``sqlite3``: read it through that too.

ADBC brings a SQLite of its own. Two copies of the library in one process drop each other's locks on
a file (sqlite.org/howtocorrupt.html, section 2.2.1); tried here, it ended in a bus error. A source in
a file of its own is read through ADBC (``sqlite``), more than twice as fast.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from urllib.parse import quote

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.concurrency import Interruptible
from export_pipeline.database.engine import SQLITE_BUSY_TIMEOUT_SECONDS
from export_pipeline.source.query import Query
from export_pipeline.source.readers import Snapshot
from export_pipeline.source.readers.arrow_types import batches_of, joined
from export_pipeline.source.readers.errors import translated
from export_pipeline.source.readers.sqlite import bound_statement

_ERRORS = (sqlite3.Error,)
_STEPS_BETWEEN_LOOKS = 10_000


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float = 0) -> Iterator[Snapshot]:
    """One read transaction on the file."""
    path = sa.make_url(source_url).database or ""
    uri = f"file:{quote(path)}?mode=ro"
    with translated(_ERRORS):
        connection = sqlite3.connect(
            uri, uri=True, timeout=SQLITE_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
    with closing(connection), Interruptible(connection.interrupt, _ERRORS) as interruptible:
        # The gate decodes texts: here, one that is no UTF-8 would end the reading without its column's name.
        connection.text_factory = bytes
        with translated(_ERRORS):
            connection.execute("BEGIN")
            limit = _Limit(connection, statement_timeout_seconds)
            limit.begin()
            statement, values = bound_statement(query.count)
            (row_count,) = interruptible(lambda: connection.execute(statement, values).fetchone())
        with closing(_batches(connection, query, limit, interruptible)) as batches:
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


def _batches(
    connection: sqlite3.Connection, query: Query, limit: _Limit, interruptible: Interruptible
) -> Generator[pa.RecordBatch, None, None]:
    with translated(_ERRORS):
        limit.begin()
        statement, values = bound_statement(query.rows)
        cursor = interruptible(lambda: connection.execute(statement, values))
        batches = batches_of(cursor.fetchmany, query.columns)
        yield from joined(iter(lambda: interruptible(lambda: next(batches, None)), None))
