"""PostgreSQL: ADBC (binary COPY into Arrow) in a snapshot exported by psycopg.

What belongs here: how a snapshot is shared and values are bound. What does not: the statement.

ADBC holds the whole result in memory when values are bound on its side (``reference``: 560 MB for
500,000 rows), so psycopg, the database's own driver, escapes them into the statement instead.

ADBC's low-level interface is used: its DBAPI imports pandas and polars for what is not needed here (55 MB in every
run). Its ``_reader`` is private, but the only way to the SQLSTATE of what fails in mid-stream (arrow-adbc issue 1523):
a source that hung up could not be told from one that refused.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime

import adbc_driver_manager as adbc
import adbc_driver_postgresql
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from adbc_driver_manager._reader import AdbcRecordBatchReader
from psycopg.sql import SQL, Composed, Literal
from sqlalchemy.engine import Dialect

from export_pipeline.engine.interruptible import Interruptible
from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import FETCH_BYTES, Snapshot
from export_pipeline.engine.readers.types import staged_schema, to_staged, translated
from export_pipeline.requests.database import LIVELINESS

_ERRORS = (psycopg.Error, adbc.Error, OSError, pa.ArrowException)
_DIALECT: Dialect = sa.make_url("postgresql+psycopg://").get_dialect()()
_READ_ONLY = "ISOLATION LEVEL REPEATABLE READ READ ONLY"


@contextmanager
def snapshot(source_url: str, query: Query, *, statement_timeout_seconds: float) -> Iterator[Snapshot]:
    """One REPEATABLE READ, READ ONLY transaction; ADBC joins it by its exported snapshot."""
    uri = _uri(source_url)
    milliseconds = round(statement_timeout_seconds * 1000)
    with translated(_ERRORS):
        keeper = psycopg.connect(uri)
    with closing(keeper):
        with translated(_ERRORS):
            keeper.execute(SQL("SET TRANSACTION {}").format(SQL(_READ_ONLY)))
            for setting in _session(milliseconds):
                keeper.execute(setting)
            row_count = _count(keeper, query)
            taken_at, name = _row(keeper.execute("SELECT transaction_timestamp(), pg_export_snapshot()"))
            statement = _statement(query.rows, keeper)
        with closing(_batches(uri, statement, name, milliseconds, query)) as batches:
            yield Snapshot(row_count, taken_at, batches)


def _uri(source_url: str) -> str:
    """What libpq takes. A server that falls silent must fail the read: the run's heartbeat goes on without it."""
    url = sa.make_url(source_url).set(drivername="postgresql")
    chosen = {name: str(value) for name, value in LIVELINESS.items() if name not in url.query}
    return url.update_query_dict(chosen).render_as_string(hide_password=False)


def _count(keeper: psycopg.Connection, query: Query) -> int:
    try:
        return _one(keeper.execute(_statement(query.count, keeper)))
    except BaseException:
        # Closing the connection alone leaves a long count running on the server, for nobody.
        with suppress(*_ERRORS):
            keeper.cancel_safe()
        raise


def _session(milliseconds: int) -> tuple[Composed, ...]:
    return (
        SQL("SET LOCAL statement_timeout = {}").format(Literal(milliseconds)),
        # A timestamp without time zone is read as UTC, and must be compared as UTC too, whatever the server's zone.
        SQL("SET LOCAL TIME ZONE {}").format(Literal("UTC")),
    )


def _batches(
    uri: str, statement: bytes, name: str, milliseconds: int, query: Query
) -> Generator[pa.RecordBatch, None, None]:
    schema = staged_schema(query.columns)
    begin = (SQL("BEGIN {}").format(SQL(_READ_ONLY)), SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(name)))
    with (
        translated(_ERRORS, counted=True),
        closing(adbc_driver_postgresql.connect(uri)) as database,
        closing(adbc.AdbcConnection(database)) as connection,
        closing(adbc.AdbcStatement(connection)) as cursor,
        Interruptible(cursor.cancel, _ERRORS) as interruptible,
    ):
        cursor.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(FETCH_BYTES)})
        for setting in (*begin, *_session(milliseconds)):
            cursor.set_sql_query(setting.as_string())
            cursor.execute_update()
        cursor.set_sql_query(statement.decode())
        stream, _ = interruptible(cursor.execute_query)
        with closing(AdbcRecordBatchReader._import_from_c(stream.address)) as reader:  # noqa: SLF001 - see above
            while (batch := interruptible(lambda: next(reader, None))) is not None:
                yield to_staged(batch, query.columns, schema, json_is_checked=True)  # by engine.query


def _statement(select: sa.Select[tuple[int]], connection: psycopg.Connection) -> bytes:
    """The statement with its values escaped by psycopg for this connection."""
    compiled = select.compile(dialect=_DIALECT)
    return psycopg.ClientCursor(connection).mogrify(compiled.string.encode(), compiled.params).encode()


def _row(cursor: psycopg.Cursor[tuple[datetime, str]]) -> tuple[datetime, str]:
    row = cursor.fetchone()
    if row is None:
        raise psycopg.OperationalError
    return row


def _one(cursor: psycopg.Cursor[tuple[int]]) -> int:
    row = cursor.fetchone()
    if row is None:
        raise psycopg.OperationalError
    return row[0]
