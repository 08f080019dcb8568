"""Databases without ADBC, several times slower: MariaDB and MySQL row by row, any other by pandas ``read_sql``.

pandas knows how to read every database that SQLAlchemy speaks. What it keeps of a value is enough there but for NaN,
which it takes for null.
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

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.dialects.mariadb import BACKENDS as MARIADB
from export_pipeline.source.query import Query
from export_pipeline.source.readers import Snapshot, mariadb
from export_pipeline.source.readers.arrow_types import AT_ONCE, batches_of, joined, staged_schema, to_staged
from export_pipeline.source.readers.errors import translated

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
        streaming = self._connection.execution_options(stream_results=True, max_row_buffer=AT_ONCE)
        with translated(_ERRORS):
            if self._connection.dialect.name in MARIADB:
                rows, narrow = mariadb.own_values(self._connection, self._query)
                sa.event.listen(streaming, "after_cursor_execute", self._keep)
                yield from batches_of(streaming.execute(rows).fetchmany, self._query.columns, narrow)
            else:
                yield from self._frames(streaming)
        self._cursors.clear()

    def _frames(self, streaming: sa.Connection) -> Iterator[pa.RecordBatch]:
        """As many rows at a time as are few megabytes even if they are fat."""
        columns, schema = self._query.columns, staged_schema(self._query.columns)
        # By its defaults pandas makes doubles of decimals, and of integers beside nulls: another number past 2**53.
        frames = pd.read_sql(
            self._query.rows, streaming, chunksize=AT_ONCE, coerce_float=False, dtype_backend="numpy_nullable"
        )
        try:
            for frame in frames:
                yield to_staged(pa.RecordBatch.from_arrays(_arrays(frame), names=schema.names), columns, schema)
        except UnicodeDecodeError:
            raise ExportFailure(
                FailureCode.SOURCE_DATA_INVALID,
                "A text column holds bytes that are not UTF-8. Correct the data, or convert them in a view.",
            ) from None

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


def _arrays(frame: pd.DataFrame) -> list[pa.Array]:
    arrays = [pa.array(values) for _, values in frame.items()]
    return [one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one for one in arrays]
