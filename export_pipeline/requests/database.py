"""The request database: its engine, and the column types that mean the same on PostgreSQL and SQLite.

What belongs here: connection settings, portable types and database-side defaults.
What does not: any table (``tables``), the exported data's database (engine).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine

from export_pipeline.requests.json_text import read_stored

SQLITE_BUSY_TIMEOUT_SECONDS = 30
LIVELINESS = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
"""By which libpq notices within a minute or so that a server fell silent, in seconds, and milliseconds for
``tcp_user_timeout``. By Linux's own defaults it takes two hours."""
_IDLE_IN_TRANSACTION_SECONDS = 30
"""A process that froze, or a machine that vanished, between two statements would hold its row's lock, and with it the
reconciler, until the server's TCP keepalive notices: hours. Transactions on this database take milliseconds."""
_SQLITE_BEGIN = "sqlite_begin"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: ``timestamptz`` on PostgreSQL, ``YYYY-MM-DD HH:MM:SS.ffffff`` UTC text on SQLite."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Pick the database's own type."""
        return dialect.type_descriptor(sa.DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Take aware datetimes only, so that no wall clock is ever stored as an instant."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give aware datetimes in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UuidText(TypeDecorator[str]):
    """A UUID as hyphenated text in Python: ``uuid`` on PostgreSQL, text elsewhere."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Pick the database's own type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=False))
        return dialect.type_descriptor(sa.Text())


def json_type() -> TypeEngine[Any]:
    """JSON: ``jsonb`` on PostgreSQL, checked text on SQLite. SQL NULL and JSON null both read as None."""
    return sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def big_integer() -> TypeEngine[int]:
    """A 64-bit integer that SQLite accepts as its rowid key."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class generated_uuid(GenericFunction[str]):  # noqa: N801 - named like the SQL function it stands for
    """Database-side default: a random (version 4) UUID."""

    type = UuidText()
    inherit_cache = True


@compiles(generated_uuid, "postgresql")
def _generated_uuid_postgresql(_element: generated_uuid, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "gen_random_uuid()"


@compiles(generated_uuid, "sqlite")
def _generated_uuid_sqlite(_element: generated_uuid, _compiler: SQLCompiler, **_kw: Any) -> str:
    return (
        "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
        "substr('89ab', abs(random() % 4) + 1, 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
    )


class current_instant(GenericFunction[datetime]):  # noqa: N801 - named like the SQL function it stands for
    """Database-side default: now, as ``UtcDateTime`` stores it."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(current_instant, "postgresql")
def _current_instant_postgresql(_element: current_instant, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "clock_timestamp()"


@compiles(current_instant, "sqlite")
def _current_instant_sqlite(_element: current_instant, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


def create_engine(url: str, *, connections: int = 0) -> sa.Engine:
    """An engine on the request database.

    Without a pool by default: the code server makes one a sensor tick, and keeps none open. A process that serves
    asks for as many ``connections`` as it has threads.

    SQLite runs in WAL mode with real write transactions, so that readers never block the writer.
    """
    parsed = sa.make_url(url)
    pool: dict[str, Any] = {"poolclass": sa.NullPool}
    if connections:
        pool = {"poolclass": sa.QueuePool, "pool_size": connections, "max_overflow": 0, "pool_pre_ping": True}
    if parsed.get_backend_name() != "sqlite":
        return _postgresql(url, pool)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    busy = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": not connections}
    engine = sa.create_engine(url, connect_args=busy, hide_parameters=True, json_deserializer=read_stored, **pool)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        # Text that is no UTF-8 would fail the claim of every row; read with marks, it fails its own row alone.
        connection.text_factory = lambda data: data.decode(errors="replace")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE: a deferred transaction that reads first fails with "database is locked" when it writes.
        mode = connection.get_execution_options().get(_SQLITE_BEGIN, "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _postgresql(url: str, pool: dict[str, Any]) -> sa.Engine:
    engine = sa.create_engine(url, hide_parameters=True, connect_args=LIVELINESS, **pool)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        # Not by the connection's `options`, which pgbouncer refuses in transaction mode.
        connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_IN_TRANSACTION_SECONDS}s'")
        connection.commit()

    return engine


def reading(engine: sa.Engine) -> sa.Connection:
    """A connection for reading alone, which on SQLite waits for no writer; use it as a context."""
    return engine.connect().execution_options(**{_SQLITE_BEGIN: "DEFERRED"})


def insert_or(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what becomes of a row which is there already."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def utc_now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC)
