"""Creates the tables of the request database, and brings them to the newest revision."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from export_pipeline.database.engine import reading
from export_pipeline.database.tables import metadata

VERSION_TABLE = "export_pipeline_version"
"""Not Alembic's default, because the host application may keep its own migrations in the same database."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


LOCK_WAIT_SECONDS = 30
"""While a migration waits for the lock of a table, everything that comes after it waits too."""
_UPGRADE_LOCK = 0x6578706F7274
"""The key of the advisory lock that makes concurrent upgrades run one after the other."""


def upgrade(engine: sa.Engine) -> str:
    """Create or migrate the tables, and return the revision. Does nothing on an up-to-date database.

    An empty database gets the tables of the metadata at once; revisions run only on a database that has tables (Alembic
    cookbook, "Building an Up to Date Database from Scratch").
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'")
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        if _revision(connection) is None:
            # A table of the same name that is not ours fails here, before anything is written to it.
            metadata.create_all(connection, checkfirst=False)
            command.stamp(_config(connection), "head")
        else:
            command.upgrade(_config(connection), "head")
    return head_revision()


def head_revision() -> str:
    """The newest revision that this version of the package knows."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def is_behind(engine: sa.Engine) -> bool:
    """Whether ``db upgrade`` has work to do. A newer database is not behind: it still serves this version."""
    current, scripts = current_revision(engine), ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    return current is None or (current in known and current != scripts.get_current_head())


def current_revision(engine: sa.Engine) -> str | None:
    """The revision of the database; None before the first ``db upgrade``."""
    with reading(engine) as connection:
        return _revision(connection)


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
