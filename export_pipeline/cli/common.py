"""What several commands share: the database, a request by its uid, options and their types."""

from __future__ import annotations

import json
from typing import Any

import click
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine, reading
from export_pipeline.database.migrate import is_behind
from export_pipeline.database.types import RepeatedKeyError, read_json
from export_pipeline.requests.models import RequestState, read_state
from export_pipeline.settings import Settings

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs.")


def open_database(settings: Settings | None = None) -> sa.Engine:
    """The migrated request database, by default that of the environment.

    Raises ``click.ClickException``: it cannot be reached or was not migrated.
    """
    engine = create_engine((settings or Settings.from_environment()).database_url)
    try:
        behind = is_behind(engine)
    except sa.exc.OperationalError:
        raise click.ClickException(
            "the request database could not be reached; check that it runs and EXPORT_DATABASE_URL"
        ) from None
    if behind:
        raise click.ClickException("the request database is not up to date; run: export-pipeline db upgrade")
    return engine


def state_of(engine: sa.Engine, uid: str) -> RequestState:
    """The state of a request. Raises ``click.ClickException``: there is no such request."""
    with reading(engine) as connection:
        state = read_state(connection, uid)
    if state is None:
        raise click.ClickException(f"no request has the uid {uid}")
    return state


def print_json(document: Any) -> None:
    """Print a JSON document, indented."""
    click.echo(json.dumps(document, indent=2))


def extra_hint(extra: str) -> str:
    """How to install an extra; the package is on no index, so pip would not find its bare name."""
    return f"install the extra `{extra}`, in the directory of export-pipeline: pip install '.[{extra}]'"


class JsonText(click.ParamType[Any]):
    """JSON typed on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        if not isinstance(value, str):
            return value
        try:
            return read_json(value)
        except RepeatedKeyError as error:
            problem = str(error)
        except json.JSONDecodeError as error:
            problem = f"is not JSON: {error.msg} at character {error.pos + 1}"
        except (ValueError, RecursionError):
            problem = "is not JSON, which has no NaN or Infinity, or is nested too deep"
        return self.fail(problem, param, ctx)


def _once(_context: click.Context, _param: click.Parameter, values: tuple[Any, ...]) -> Any:
    if len(values) > 1:
        raise click.BadParameter("is given twice; give it once")
    return values[0] if values else None


ONCE: dict[str, Any] = {"multiple": True, "callback": _once}
"""For an option that narrows what is exported: given twice it is an error, where click would take the last one."""
