"""Databases without ADBC, several times slower: MariaDB and MySQL row by row, any other by pandas ``read_sql``.

pandas reads every database that SQLAlchemy supports. It keeps values as they are, except NaN, which becomes null.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.dialects.mariadb import BACKENDS as MARIADB
from export_pipeline.source.query import Query
from export_pipeline.source.readers import Snapshot, Source, mariadb
from export_pipeline.source.readers.arrow_types import AT_ONCE, batches_of, joined, staged_schema, to_staged
from export_pipeline.source.readers.errors import translated

_ERRORS = (sa.exc.SQLAlchemyError, pd.errors.DatabaseError)
_STRICT = ("SNAPSHOT", "SERIALIZABLE", "REPEATABLE READ")
"""Isolation levels in which a transaction sees one instant, those that read without locks first."""


@contextmanager
def snapshot(source: Source, query: Query) -> Iterator[Snapshot]:
    """One transaction: on MariaDB and MySQL a read-only snapshot with a statement time-out.

    On any other database the strictest isolation that SQLAlchemy knows of it, without a time-out.
    """
    is_mariadb = source.backend in MARIADB
    with translated(_ERRORS):
        connection = _engine(source).connect()
    try:
        # MariaDB fails no statement for a value that the request compares.
        with translated(_ERRORS, compares=not is_mariadb):
            if is_mariadb:
                mariadb.begin(connection, source.statement_timeout_seconds)
            else:
                _isolate(connection)
            row_count = connection.execute(query.count).scalar_one()
            taken_at = datetime.now(UTC)
        with closing(_mariadb_batches(connection, query) if is_mariadb else _batches(connection, query)) as batches:
            yield Snapshot(row_count, taken_at, joined(batches))
    finally:
        # One transaction from the first statement on: there is nothing to commit. A lost connection fails the rollback
        # too, which must not hide the first error.
        with suppress(sa.exc.SQLAlchemyError):
            connection.close()


def _engine(source: Source) -> sa.Engine:
    url = sa.make_url(source.url)
    try:
        if source.backend in MARIADB:
            return mariadb.reading_engine(url, source.statement_timeout_seconds)
        return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    except ImportError as error:
        raise ExportFailure(
            FailureCode.SOURCE_REFUSED,
            f"The driver that EXPORT_SOURCE_URL needs is not installed ({error.name}). Install it.",
        ) from None


def _isolate(connection: sa.Connection) -> None:
    driver = connection.connection.dbapi_connection
    known = connection.dialect.get_isolation_level_values(driver) if driver is not None else ()
    strictest = next((level for level in _STRICT if level in known), None)
    if strictest is not None:
        connection.execution_options(isolation_level=strictest)


def _streaming(connection: sa.Connection) -> sa.Connection:
    """The connection with a cursor on the server."""
    return connection.execution_options(stream_results=True, max_row_buffer=AT_ONCE)


def _mariadb_batches(connection: sa.Connection, query: Query) -> Generator[pa.RecordBatch, None, None]:
    cursors: list[Any] = []
    try:
        with translated(_ERRORS):
            rows, narrow = mariadb.own_values(connection, query)
            streaming = _streaming(connection)
            sa.event.listen(streaming, "after_cursor_execute", lambda _, cursor, *_args: cursors.append(cursor))
            yield from batches_of(streaming.execute(rows).fetchmany, query.columns, narrow)
        cursors.clear()
    finally:
        if cursors and not connection.invalidated:
            mariadb.abandon(connection)
        for cursor in cursors:
            # It raises that the statement was ended, which it was.
            with suppress(Exception):
                cursor.close()
            mariadb.forget(cursor)


def _batches(connection: sa.Connection, query: Query) -> Generator[pa.RecordBatch, None, None]:
    """Few rows at a time: even large ones are few megabytes."""
    schema = staged_schema(query.columns)
    with translated(_ERRORS):
        # By its defaults pandas makes doubles of decimals, and of integers beside nulls: another number past 2**53.
        frames = pd.read_sql(
            query.rows, _streaming(connection), chunksize=AT_ONCE, coerce_float=False, dtype_backend="numpy_nullable"
        )
        try:
            for frame in frames:
                arrays = [pa.array(values) for _, values in frame.items()]
                whole = [one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one for one in arrays]
                batch = pa.RecordBatch.from_arrays(whole, names=schema.names)
                yield to_staged(batch, query.columns, schema)
        except UnicodeDecodeError:
            raise ExportFailure(
                FailureCode.SOURCE_DATA_INVALID,
                "A text column holds bytes that are not UTF-8. Correct the data, or convert them in a view.",
            ) from None
