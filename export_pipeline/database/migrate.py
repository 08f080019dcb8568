"""Bringing the request database to the newest revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from export_pipeline.database.engine import reading

VERSION_TABLE = "export_pipeline_version"
"""Not Alembic's default: the host application may keep its own migrations in the same database."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


LOCK_WAIT_SECONDS = 30
"""A migration that waits for a table's lock makes everybody after it wait as well."""
_UPGRADE_LOCK = 0x6578706F7274
"""Names the advisory lock by which two upgrades at once do one after the other."""


def upgrade(engine: sa.Engine) -> str:
    """Create or migrate the tables; does nothing on an up-to-date database.

    Returns:
        The revision the database has now.
    """
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            # Before the transaction, in which SQLite ignores it: a table that is made anew is dropped, and must take
            # neither the rows that refer to it nor views that name it with it.
            _pragmas(connection, "foreign_keys = OFF", "legacy_alter_table = ON")
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'")
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            command.upgrade(_config(connection), "head")
        if connection.dialect.name == "sqlite":
            _pragmas(connection, "foreign_keys = ON", "legacy_alter_table = OFF")
    return head_revision()


def _pragmas(connection: sa.Connection, *settings: str) -> None:
    raw: Any = connection.connection.dbapi_connection
    for setting in settings:
        raw.execute(f"PRAGMA {setting}")


def head_revision() -> str:
    """The newest revision that this version of the package knows."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def is_behind(engine: sa.Engine) -> bool:
    """Whether ``db upgrade`` has something to do. A newer database is not behind: it keeps serving this version."""
    current, scripts = current_revision(engine), ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    return current is None or (current in known and current != scripts.get_current_head())


def current_revision(engine: sa.Engine) -> str | None:
    """The database's revision, None before the first ``db upgrade``."""
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()
