"""Engines and connections of the request database, and the reasons why it may be unavailable."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from export_pipeline.database.types import current_instant, read_stored

SQLITE_BUSY_TIMEOUT_SECONDS = 30
LIVELINESS = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
"""Lets libpq notice within about a minute that a server fell silent. In seconds; ``tcp_user_timeout`` in milliseconds.
With the defaults of Linux it takes two hours."""
_SQLITE_BEGIN = "sqlite_begin"
_LOCK_WAIT = "lock_wait"
LOCK_WAIT, SHORT_LOCK_WAIT = "10s", "100ms"
"""How long a statement of a run, and of a sensor, which has many rows to handle, waits for a lock (PostgreSQL)."""
_SESSION = {
    # A process that froze, or a machine that vanished, between two statements would hold its row locks until the
    # server's TCP keepalive notices, which takes hours. Transactions on this database take milliseconds.
    "idle_in_transaction_session_timeout": "30s",
    "statement_timeout": "10min",
    # The meaning of values must not depend on the role, the database or the server.
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "extra_float_digits": "1",
}


def database_now(connection: sa.Connection) -> datetime:
    """The current instant by the clock of the database."""
    return connection.execute(sa.select(current_instant())).scalar_one()


def create_engine(url: str, *, connections: int = 0) -> sa.Engine:
    """Create an engine on the request database.

    Without ``connections`` it has no pool, because the code server creates an engine per sensor tick and keeps no
    connection open. A server sets ``connections`` to its number of threads.

    SQLite runs in WAL mode with real write transactions, so that readers never block the writer.
    """
    parsed = sa.make_url(url)
    options: dict[str, Any] = {"hide_parameters": True, "json_deserializer": read_stored, "poolclass": sa.NullPool}
    if connections:
        pool = {"poolclass": sa.QueuePool, "pool_size": connections, "max_overflow": 0, "pool_pre_ping": True}
        options |= pool
    if parsed.get_backend_name() != "sqlite":
        return _postgresql(url, options)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    busy = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": not connections}
    engine = sa.create_engine(url, connect_args=busy, **options)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        # Text that is not UTF-8 would fail the claim of every row; with replacement marks, it fails only its own row.
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


def _postgresql(url: str, options: dict[str, Any]) -> sa.Engine:
    # pgbouncer gives one server session to many clients in turn. It refuses the connection's `options`, and the next
    # client would see what is prepared or set for the session. So nothing outlives its transaction.
    arguments = LIVELINESS | {"client_encoding": "UTF8", "prepare_threshold": None}
    engine = sa.create_engine(url, connect_args=arguments, isolation_level="READ COMMITTED", **options)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        lock_wait = connection.get_execution_options().get(_LOCK_WAIT, LOCK_WAIT)
        settings = {**_SESSION, "lock_timeout": lock_wait}
        local = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
        connection.exec_driver_sql(f"SELECT {local}")

    return engine


def impatient(engine: sa.Engine) -> sa.Engine:
    """The same database for a sensor: it gives up on a locked row soon, and handles it at a later tick."""
    return engine.execution_options(**{_LOCK_WAIT: SHORT_LOCK_WAIT})


def reading(engine: sa.Engine) -> sa.Connection:
    """A read-only connection, which on SQLite does not wait for a writer; use it as a context manager."""
    return engine.connect().execution_options(**{_SQLITE_BEGIN: "DEFERRED"})


def insert_or(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that supports ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def utc_now() -> datetime:
    """The current instant, aware, in UTC."""
    return datetime.now(UTC)


_SENTENCES = {
    "25006": "The request database is read-only for the pipeline: default_transaction_read_only is on for its role or "
    "database, or EXPORT_DATABASE_URL names a replica. Switch it off, or name the primary.",
    "42501": "The pipeline's role lacks a privilege on a table of the request database. Grant it.",
    "55P03": "Another transaction has held a lock in the request database for too long; find it in pg_stat_activity.",
    "57014": "A statement on the request database took too long and was ended.",
    "42P01": "The request database lacks a table of this version; run: export-pipeline db upgrade.",
    "42703": "The request database lacks a column of this version; run: export-pipeline db upgrade.",
}
_SQLITE_SENTENCES = {
    "no such table": _SENTENCES["42P01"],
    "no such column": _SENTENCES["42703"],
    "readonly database": "The pipeline's user may not write the file of the request database.",
    'near "STRICT"': "The SQLite library is older than 3.37 and has no STRICT tables; use a newer one, or PostgreSQL.",
    "database is locked": "Another process has been writing to the request database for too long.",
}
UNREACHABLE = (
    "The request database could not be reached; check that it runs, EXPORT_DATABASE_URL, and that `export-pipeline db "
    "upgrade` was run."
)


def why_unavailable(error: sa.exc.DBAPIError) -> str | None:
    """Why the request database is unavailable, without credentials; None if the error is a bug of the pipeline."""
    known = _SENTENCES.get(getattr(error.orig, "sqlstate", None) or "")
    text = str(error.orig)
    known = known or next((sentence for part, sentence in _SQLITE_SENTENCES.items() if part in text), None)
    return known or (UNREACHABLE if isinstance(error, sa.exc.OperationalError) else None)
