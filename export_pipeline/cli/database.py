"""``export-pipeline db``: the request database.

What belongs here: the group's commands. What does not: migrations.
"""

from __future__ import annotations

import click
import sqlalchemy as sa

from export_pipeline.requests import migrate
from export_pipeline.requests.database import create_engine, why_unavailable
from export_pipeline.settings import Settings


@click.group()
def db() -> None:
    """The request database (EXPORT_DATABASE_URL)."""


@db.command()
def upgrade() -> None:
    r"""Create the tables, or bring them to the newest revision. Safe to run again.

    \b
    Example:
      EXPORT_DATABASE_URL=postgresql://app:secret@localhost/app export-pipeline db upgrade
    """
    engine = create_engine(Settings.from_environment().database_url)
    try:
        revision = migrate.upgrade(engine)
    except sa.exc.DBAPIError as error:
        if (why := why_unavailable(error)) is None:
            raise
        raise click.ClickException(why) from None
    click.echo(f"The request database is at revision {revision}.")
