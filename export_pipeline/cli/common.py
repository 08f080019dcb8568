"""What several commands share: the database, a request by its uid."""

from __future__ import annotations

from typing import Any

import click
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine, reading
from export_pipeline.database.migrate import is_behind
from export_pipeline.requests.models import RequestState, read_state
from export_pipeline.settings import Settings


def open_database(settings: Settings) -> sa.Engine:
    """The migrated request database.

    Raises:
        click.ClickException: it cannot be reached or was not migrated.
    """
    engine = create_engine(settings.database_url)
    try:
        behind = is_behind(engine)
    except sa.exc.OperationalError:
        raise click.ClickException(
            "the request database could not be reached; check that it runs and EXPORT_DATABASE_URL"
        ) from None
    if behind:
        raise click.ClickException("the request database is not up to date; run: export-pipeline db upgrade")
    return engine


def once(_context: click.Context, _param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """For an option that narrows what is exported: click alone would take the last of several without a word.

    Declare it with ``multiple=True``.
    """
    if len(values) > 1:
        raise click.BadParameter("is given twice; give it once")
    return values[0] if values else None


def extra_hint(extra: str) -> str:
    """How to install what a command needs; the package is on no index, so a bare name would not be found."""
    return f"install the extra `{extra}`, in the directory of export-pipeline: pip install '.[{extra}]'"


def state_of(engine: sa.Engine, uid: str) -> RequestState:
    """The state of a request.

    Raises:
        click.ClickException: there is no such request.
    """
    with reading(engine) as connection:
        state = read_state(connection, uid)
    if state is None:
        raise click.ClickException(f"no request has the uid {uid}")
    return state
