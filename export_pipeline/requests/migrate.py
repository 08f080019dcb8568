"""Bringing the request database to the newest revision.

What belongs here: calling Alembic, and asking which revision a database has.
What does not: the revisions (``migrations/versions``).
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from export_pipeline.requests.database import reading

VERSION_TABLE = "export_pipeline_version"
"""Not Alembic's default: the host application may keep its own migrations in the same database."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(engine: sa.Engine) -> str:
    """Create or migrate the tables; does nothing on an up-to-date database.

    Returns:
        The revision the database has now.
    """
    with engine.begin() as connection:
        command.upgrade(_config(connection), "head")
    return head_revision()


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
