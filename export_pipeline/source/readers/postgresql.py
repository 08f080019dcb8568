"""PostgreSQL: ADBC (binary COPY into Arrow), in one transaction on one connection.

ADBC holds the whole result in memory when it binds values (``reference``: 560 MB for 500,000 rows). So psycopg escapes
them into the statement. Its connection is closed before ADBC's is opened: behind a pool, exports that each hold one
connection and wait for a second would deadlock.

This module uses ADBC's low-level interface: its DBAPI imports pandas and polars, 55 MB in every run. Its ``_reader`` is
private, but only it gives the SQLSTATE of an error in mid-stream (arrow-adbc issue 1523), which distinguishes a source
that closed the connection from one that refused.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import adbc_driver_manager as adbc
import adbc_driver_postgresql
import psycopg
import pyarrow as pa
import sqlalchemy as sa
from adbc_driver_manager._reader import AdbcRecordBatchReader
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL
from sqlalchemy.engine import Dialect

from export_pipeline.catalog.model import Selected
from export_pipeline.catalog.types import ColumnType
from export_pipeline.concurrency import Interruptible
from export_pipeline.database.engine import LIVELINESS
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.query import Query
from export_pipeline.source.readers import (
    FETCH_BYTES,
    SECONDS_IDLE,
    SECONDS_TO_WAIT_FOR_A_LOCK,
    SECONDS_TO_WAIT_FOR_US,
    Snapshot,
    Source,
)
from export_pipeline.source.readers.arrow_types import staged_schema, to_staged
from export_pipeline.source.readers.errors import failure_of, translated

_ERRORS = (psycopg.Error, adbc.Error, OSError, pa.ArrowException)
_DIALECT: Dialect = sa.make_url("postgresql+psycopg://").get_dialect()()
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NOT_JSON = "22P02"
_NOT_UTF8 = ("22021", "22P05")
_TEXTS = frozenset({"text", "varchar", "bpchar"})
_WHOLE = frozenset({"int2", "int4", "int8"})
_NUMBERS = frozenset({*_WHOLE, "numeric", *_TEXTS})
_OWN_TYPES: Mapping[ColumnType, frozenset[str]] = {
    ColumnType.INTEGER: _NUMBERS,
    ColumnType.FLOAT: _NUMBERS | {"float4", "float8"},
    ColumnType.DECIMAL: _NUMBERS | {"float4", "float8"},
    ColumnType.BOOLEAN: _WHOLE | {"bool"},
    ColumnType.TIMESTAMP: _TEXTS | {"timestamptz", "timestamp", "date"},
    ColumnType.DATE: _TEXTS | {"date"},
    ColumnType.UUID: _TEXTS | {"uuid"},
    ColumnType.JSON: _TEXTS | {"json", "jsonb"},
}
"""The built-in types that each declared type can be read from without a changed value.
Types of extensions and users are read as text, which ``to_staged`` checks."""


@contextmanager
def snapshot(source: Source, query: Query) -> Iterator[Snapshot]:
    """One REPEATABLE READ, READ ONLY transaction."""
    _, given = _DIALECT.create_connect_args(sa.make_url(source.url))
    # LIVELINESS: a silent server must fail the read, for the heartbeat would go on for ever.
    conninfo = make_conninfo(**{**LIVELINESS, **given, "client_encoding": "UTF8"})
    milliseconds = round(source.statement_timeout_seconds * 1000)
    settings = _settings(milliseconds, row_security=source.row_security, gathers=query.gathers)
    prepared = _prepare(conninfo, settings, query)
    with ExitStack() as held:
        with translated(_ERRORS):
            session = held.enter_context(_session(conninfo))
            session.run(_BEGIN)
            session.run(settings)
            row_count, taken_at = session.row(prepared.count)
        with closing(_batches(session, prepared, query)) as batches:
            yield Snapshot(row_count, taken_at, batches)


def _settings(statement_milliseconds: int, *, row_security: bool, gathers: bool) -> str:
    """A statement that sets, for the transaction, all that changes values or time-outs.

    It overrides role, database, URL and environment. Older servers do not know all of these settings.
    """
    settings = {
        "client_encoding": "UTF8",
        # Without an order of day and month: a view of the source may parse dates by the server's.
        "datestyle": "ISO",
        "intervalstyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": 3,
        "standard_conforming_strings": "on",
        # A timestamp without time zone is read as UTC, and must be compared as UTC too, whatever the server's zone.
        "timezone": "UTC",
        "row_security": "on" if row_security else "off",
        "statement_timeout": statement_milliseconds,
        "transaction_timeout": 0,
        "lock_timeout": f"{SECONDS_TO_WAIT_FOR_A_LOCK}s",
        # For a frozen export process, between two statements or while it reads rows.
        "idle_in_transaction_session_timeout": f"{SECONDS_IDLE}s",
        "tcp_user_timeout": f"{SECONDS_TO_WAIT_FOR_US}s",
    }
    if gathers:
        # Where the planner expects one row and there are a million, a nested loop gathers all child lists for each row.
        settings["enable_nestloop"] = "off"
    values = SQL(", ").join(SQL("({}, {})").format(name, str(value)) for name, value in settings.items())
    statement = "SELECT set_config(n, v, true) FROM (VALUES {}) AS s(n, v) WHERE current_setting(n, true) IS NOT NULL"
    return SQL(statement).format(values).as_string()


@dataclass(frozen=True)
class _Prepared:
    """Statements with their values, and facts about their columns."""

    rows: str
    count: str
    sure: frozenset[int]
    """Places of columns whose database type allows only values of the declared type."""
    json_texts: tuple[str, ...]
    """The text columns that are declared json; the statement parses them."""


def _prepare(conninfo: str, settings: str, query: Query) -> _Prepared:
    """Write the statements, let the database plan the one for rows, and compare its types with the catalog's."""
    own = {place: column.label(f"own_{place}") for place, column in query.own.items()}
    when = sa.func.transaction_timestamp().label("taken_at")
    with translated(_ERRORS, compares=True), closing(psycopg.connect(conninfo)) as connection:
        connection.read_only = True
        connection.execute(settings.encode())
        plan = _statement(query.rows.add_columns(*own.values()).limit(0), connection)
        try:
            described = connection.execute(plan.encode()).description or []
        except psycopg.Error as error:
            raise failure_of(error, compares=True, column=_at(error, plan)) from None
        types = [_type_name(column.type_code) for column in described[len(described) - len(own) :]]
        own_types = dict(zip(own, types, strict=True))
        for place, name in own_types.items():
            _check_type(query.columns[place], name)
        declared = {place: column.type for place, column in enumerate(query.columns)}
        json = [place for place, each in declared.items() if each is ColumnType.JSON]  # parsed by the dialect
        return _Prepared(
            rows=_statement(query.rows, connection),
            count=_statement(query.count.add_columns(when), connection),
            sure=frozenset({*json, *(at for at, name in own_types.items() if name not in _TEXTS | {""})}),
            json_texts=tuple(
                query.columns[place].source for place in json if own_types.get(place) not in ("json", "jsonb")
            ),
        )


def _statement(select: sa.Select[Any], connection: psycopg.Connection) -> str:
    """The statement with its values escaped by psycopg for this connection."""
    compiled = select.compile(dialect=_DIALECT)
    return psycopg.ClientCursor(connection).mogrify(compiled.string.encode(), compiled.params)


def _type_name(oid: int) -> str:
    """The name in ``pg_type``, ``text[]`` for an array; empty for a type of an extension or a user."""
    known = psycopg.postgres.types.get(oid)
    if known is None:
        return ""
    return f"{known.name}[]" if oid == known.array_oid else known.name


def _check_type(column: Selected, name: str) -> None:
    allowed = _OWN_TYPES.get(column.type)
    if allowed is None or not name or name in allowed:
        return
    what = f"Declare it text, or cast it to {column.type} in a view."
    if column.type is ColumnType.JSON:
        what = "Declare it text, or use to_jsonb() of it in a view."
    raise ExportFailure(
        FailureCode.SOURCE_DATA_INVALID,
        f"Column {column.source} is {name} in the source database, which cannot be read as {column.type}. {what}",
    )


def _at(error: psycopg.Error, statement: str) -> str:
    """The column that the database was comparing when planning the statement failed."""
    before = statement[: max(0, int(error.diag.statement_position or 0) - 1)]
    columns = re.findall(r'\.(\w+|"[^"]+")', re.sub(r"E?'(?:[^']|'')*'?", "''", before))
    return columns[-1].strip('"') if columns else ""


@dataclass(frozen=True)
class _Session:
    """An ADBC connection whose calls a signal can interrupt."""

    _statement: adbc.AdbcStatement
    _readers: ExitStack
    _interruptible: Interruptible

    def run(self, sql: str) -> None:
        """Run a statement that has no rows to read."""
        self._statement.set_sql_query(sql)
        self._interruptible(self._statement.execute_update)

    def row(self, sql: str) -> tuple[int, datetime]:
        """The only row of a statement: a number and an instant."""
        (batch,) = [batch for batch in self.batches(sql) if batch.num_rows]
        number, instant = (column[0].as_py() for column in batch.columns)
        return number, instant

    def batches(self, sql: str) -> Generator[pa.RecordBatch, None, None]:
        """The rows of a statement. Its reader is closed when all are read, or with the session."""
        self._statement.set_sql_query(sql)
        stream, _ = self._interruptible(self._statement.execute_query)
        reader = AdbcRecordBatchReader._import_from_c(stream.address)  # noqa: SLF001 - see above
        self._readers.enter_context(closing(reader))
        while (batch := self._interruptible(lambda: next(reader, None))) is not None:
            yield batch
        self._readers.close()


@contextmanager
def _session(conninfo: str) -> Iterator[_Session]:
    with (
        closing(adbc_driver_postgresql.connect(conninfo)) as database,
        closing(adbc.AdbcConnection(database)) as connection,
        closing(adbc.AdbcStatement(connection)) as statement,
        ExitStack() as readers,
        Interruptible(statement.cancel, _ERRORS) as interruptible,
    ):
        statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(FETCH_BYTES)})
        yield _Session(statement, readers, interruptible)


def _batches(session: _Session, prepared: _Prepared, query: Query) -> Generator[pa.RecordBatch, None, None]:
    schema = staged_schema(query.columns)
    try:
        for batch in session.batches(prepared.rows):
            yield to_staged(batch, query.columns, schema, sure=prepared.sure)
    except _ERRORS as error:
        raise _failure(error, prepared) from None


def _failure(error: Exception, prepared: _Prepared) -> ExportFailure:
    sqlstate, what = getattr(error, "sqlstate", None), ""
    if prepared.json_texts and sqlstate == _NOT_JSON and "json" in str(error):
        what = f"Column {' or '.join(prepared.json_texts)} holds a value that is not json"
    if sqlstate in _NOT_UTF8:
        what = f"A text of the source database cannot be converted to UTF-8 (SQLSTATE {sqlstate})"
    if not what:
        return failure_of(error)
    return ExportFailure(FailureCode.SOURCE_DATA_INVALID, f"{what}. Correct the data, or the catalog's type.")
