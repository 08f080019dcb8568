"""Any other database that SQLAlchemy speaks, by the driver that it has for it: several times slower than ADBC.

Its name is older than its way: pandas turned integers that came as decimals into doubles, and NaN into null.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.engine.mariadb import BACKENDS as MARIADB
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import Snapshot, mariadb
from export_pipeline.engine.readers.failures import translated
from export_pipeline.engine.readers.rows import AT_ONCE, batches_of
from export_pipeline.engine.readers.types import joined
from export_pipeline.failures import ExportFailure, FailureCode

_ERRORS = (sa.exc.SQLAlchemyError,)
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
        # MariaDB fails no statement for a value that the request compares.
        with translated(_ERRORS, compares=connection.dialect.name not in MARIADB):
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
    try:
        if url.get_backend_name() in MARIADB:
            return mariadb.reading_engine(url, statement_timeout_seconds)
        return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    except ImportError as error:
        raise ExportFailure(
            FailureCode.SOURCE_REFUSED,
            f"The driver that EXPORT_SOURCE_URL needs is not installed ({error.name}). Install it.",
        ) from None


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
        with translated(_ERRORS):
            rows, narrow = self._query.rows, frozenset[int]()
            if self._connection.dialect.name in MARIADB:
                rows, narrow = mariadb.own_values(self._connection, self._query)
            streaming = self._connection.execution_options(stream_results=True, max_row_buffer=AT_ONCE)
            sa.event.listen(streaming, "after_cursor_execute", self._keep)
            result = streaming.execute(rows)
            yield from batches_of(result.fetchmany, self._query.columns, narrow)
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
