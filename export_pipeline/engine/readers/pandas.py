"""Any other database that SQLAlchemy speaks: pandas ``read_sql`` in chunks with Arrow types.

What belongs here: the reader that needs no driver of its own, several times slower than ADBC.
What does not: the statement, a database's session (``mariadb``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.engine.mariadb import BACKENDS as MARIADB
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import STEP_ROWS, Snapshot, mariadb
from export_pipeline.engine.readers.types import joined, staged_schema, to_staged, translated

_ERRORS = (sa.exc.SQLAlchemyError, pd.errors.DatabaseError)
_STRICT = ("SNAPSHOT", "SERIALIZABLE", "REPEATABLE READ")
"""Isolation levels in which a transaction sees one instant, those that read without locks first."""


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float = 0) -> Iterator[Snapshot]:
    """One transaction: on MariaDB and MySQL a snapshot that cannot write, within the time-out.

    On any other database at the strictest isolation that SQLAlchemy knows of it.
    """
    with translated(_ERRORS):
        connection = _engine(sa.make_url(source_url), statement_timeout_seconds).connect()
    try:
        with translated(_ERRORS):
            _begin(connection, statement_timeout_seconds)
            row_count = connection.execute(query.count).scalar_one()
            taken_at = datetime.now(UTC)
        with closing(_Reading(connection, query)) as reading:
            yield Snapshot(row_count, taken_at, joined(reading.batches()))
    finally:
        # One transaction from the first statement on: there is nothing to commit. A server that is gone fails the
        # rollback too, which must not hide what failed first.
        with suppress(sa.exc.SQLAlchemyError):
            connection.close()


def _engine(url: sa.URL, statement_timeout_seconds: float) -> sa.Engine:
    if url.get_backend_name() in MARIADB:
        return mariadb.reading_engine(url, statement_timeout_seconds)
    return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)


def _begin(connection: sa.Connection, statement_timeout_seconds: float) -> None:
    if connection.dialect.name in MARIADB:
        mariadb.begin(connection, statement_timeout_seconds)
        return
    driver = connection.connection.dbapi_connection
    known = connection.dialect.get_isolation_level_values(driver) if driver is not None else ()
    for level in _STRICT:
        if level in known:
            connection.execution_options(isolation_level=level)
            return


class _Reading:
    """The rows as they come, by a cursor on the server."""

    def __init__(self, connection: sa.Connection, query: Query) -> None:
        self._connection = connection
        self._query = query
        self._cursors: list[Any] = []

    def batches(self) -> Iterator[pa.RecordBatch]:
        columns, schema = self._query.columns, staged_schema(self._query.columns)
        streaming = self._connection.execution_options(stream_results=True, max_row_buffer=STEP_ROWS)
        sa.event.listen(streaming, "after_cursor_execute", self._keep)
        with translated(_ERRORS):
            for frame in pd.read_sql(self._query.rows, streaming, chunksize=STEP_ROWS, dtype_backend="pyarrow"):
                for batch in pa.Table.from_pandas(frame, preserve_index=False).to_batches():
                    yield to_staged(batch, columns, schema)
        self._cursors.clear()

    def close(self) -> None:
        """Leave what has not been read unread."""
        known = self._connection.dialect.name in MARIADB
        if known and self._cursors and not self._connection.invalidated:
            mariadb.abandon(self._connection)
        for cursor in self._cursors:
            # It says that the statement was ended, which it was.
            with contextlib.suppress(Exception):
                cursor.close()
            mariadb.forget(cursor)

    def _keep(self, _connection: object, cursor: Any, *_args: object) -> None:
        self._cursors.append(cursor)
