"""Commands for recurring exports, which an application manages by SQL, and for the fire times of a cron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
import sqlalchemy as sa

from export_pipeline.catalog.loader import Catalog, load_catalog
from export_pipeline.cli.common import ONCE, JsonText, json_option, open_database, print_json
from export_pipeline.database.engine import reading, utc_now
from export_pipeline.database.enums import CatchUpPolicy, OverlapPolicy, WindowKind
from export_pipeline.database.tables import LONGEST_LAG_SECONDS, recurring_exports
from export_pipeline.failures import ExportFailure
from export_pipeline.recurring import models
from export_pipeline.recurring.dispatch import check_recurring, window_of
from export_pipeline.recurring.dispatch import run_now as make_now
from export_pipeline.recurring.models import RecurringExport, load_recurring, parse_template
from export_pipeline.requests.models import RequestInput
from export_pipeline.requests.organizations import read_organization
from export_pipeline.requests.validation.request import preflight
from export_pipeline.scheduling.cron import Schedule, checked_schedule, fire_times, next_fire, uneven_steps
from export_pipeline.scheduling.wall_clock import beginning
from export_pipeline.scheduling.windows import Window
from export_pipeline.settings import Settings


class Instant(click.ParamType[datetime]):
    """An instant: ISO 8601 with an offset or Z."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse it."""
        with suppress(ValueError, OverflowError):
            instant = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            if instant.tzinfo:  # without an offset it would depend on the clock of this machine
                return instant.astimezone(UTC)
        return self.fail("is not an instant with its offset, such as 2026-03-29T00:00:00Z", param, ctx)


@click.group()
def recurring() -> None:
    """Exports that are requested on a cron schedule."""


@recurring.command()
@click.option("--organization", "organization_id", required=True, help="The tenant whose rows are exported.")
@click.option("--cron", required=True, help="Five fields: minute, hour, day of month, month, day of week.")
@click.option("--timezone", "time_zone", default="UTC", show_default=True, help="IANA zone of the cron's clock.")
@click.option(
    "--request",
    "template",
    type=JsonText(),
    required=True,
    **ONCE,
    help="JSON: columns of export_requests that all requests share.",
)
@click.option(
    "--window", "window_kind", type=click.Choice([w.value for w in WindowKind]), default="all", show_default=True
)
@click.option("--lag", "lag_seconds", type=click.IntRange(0, LONGEST_LAG_SECONDS), help="Seconds; default 60.")
@click.option("--overlap", "overlap_policy", type=click.Choice([p.value for p in OverlapPolicy]), help="Default skip.")
@click.option(
    "--catch-up", "catch_up_policy", type=click.Choice([p.value for p in CatchUpPolicy]), help="Default latest."
)
@click.option("--owner", help="The member whose permission is checked and who is notified of failures.")
@click.option("--max-failures", type=click.IntRange(1), help="Consecutive failures that pause it; default 5.")
@click.option("--since", "high_water_mark", type=Instant(), help="For since_last_success: the first window's begin.")
def add(*, cron: str, time_zone: str, template: Any, **columns: Any) -> None:
    r"""Insert a recurring export and print its id.

    \b
    Example:
      export-pipeline recurring add --organization 6f0c --cron '0 6 * * MON' --timezone Europe/Madrid \\
          --window previous_period --owner u-17 \\
          --request '{"dataset": "contacts", "format": "csv", "recipient_emails": ["ana@example.com"]}'
    """
    settings = Settings.from_environment()
    engine, catalog = open_database(settings), load_catalog(settings.catalog)
    values = {name: value for name, value in columns.items() if value is not None}
    with _reported():
        schedule = checked_schedule(cron, time_zone)
        request = parse_template(template).given()
        _check_template(engine, catalog, request, values)
    for warning in uneven_steps(schedule):
        click.echo(f"Warning: cron: {warning}", err=True)
    with engine.begin() as connection:
        inserted = connection.execute(
            recurring_exports.insert()
            .values(cron=schedule.cron, time_zone=time_zone, request=request, **values)
            .returning(recurring_exports.c.id)
        )
        click.echo(inserted.scalar_one())


def _check_template(engine: sa.Engine, catalog: Catalog, request: dict[str, Any], values: dict[str, Any]) -> None:
    """Check that its requests could be served now."""
    row = RequestInput(
        **request,
        organization_id=values["organization_id"],
        requested_by=values.get("owner"),
        window_before=utc_now() if values.get("window_kind") != WindowKind.ALL else None,
    )
    with reading(engine) as connection:
        preflight(row, catalog, read_organization(connection, row.organization_id))
        check_recurring(connection, row)


@recurring.command("list")
@click.option("--organization", "organization_id", help="Only those of one organization.")
@json_option
def list_(*, organization_id: str | None, as_json: bool) -> None:
    r"""Show recurring exports, when each fires next, and why one is paused.

    \b
    Example:
      export-pipeline recurring list --organization 6f0c
    """
    with reading(open_database()) as connection:
        found = [load_recurring(connection, one) for one in models.recurring_ids(connection, organization_id)]
    rows = [one.model_dump(mode="json") | {"next": _next_of(one)} for one in found]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        failures = f"{row['failures_in_a_row']} failures in a row"
        state = f"paused: {row['pause_reason']}" if row["paused_at"] else f"next {row['next']}, {failures}"
        named = (str(row[name]) for name in ("id", "organization_id", "cron", "time_zone", "window_kind"))
        click.echo("  ".join([*named, state]))


def _next_of(one: RecurringExport) -> str | None:
    if one.paused_at is not None:
        return None
    try:
        return _printed(next_fire(one.rules().schedule, max(utc_now(), one.last_done)), one.rules().schedule)
    except ExportFailure as failure:
        return failure.message


@recurring.command()
@click.argument("recurring_id", type=int)
@click.option("--reason", default="paused from the command line", show_default=True)
def pause(recurring_id: int, *, reason: str) -> None:
    r"""Stop making requests until it is resumed. Requests that exist continue.

    \b
    Example:
      export-pipeline recurring pause 12 --reason 'migration until Monday'
    """
    with open_database().begin() as connection:
        if not models.pause(connection, recurring_id, reason):
            raise click.ClickException(f"there is no recurring export {recurring_id}, or it is paused already")
    click.echo("Paused.")


@recurring.command()
@click.argument("recurring_id", type=int)
def resume(recurring_id: int) -> None:
    r"""Make requests again; its catch-up policy decides about the fire times in between.

    \b
    Example:
      export-pipeline recurring resume 12
    """
    with open_database().begin() as connection:
        if not models.resume(connection, recurring_id):
            raise click.ClickException(f"there is no recurring export {recurring_id}, or it is not paused")
    click.echo("Resumed.")


@recurring.command("run-now")
@click.argument("recurring_id", type=int)
@click.option("--again", metavar="UID", help="Repeat the window of this earlier request.")
@click.option("--from", "begin", type=Instant(), **ONCE, help="Rows created from this instant on.")
@click.option("--before", "end", type=Instant(), **ONCE, help="Rows created before this instant.")
def run_now(recurring_id: int, *, again: str | None, begin: datetime | None, end: datetime | None) -> None:
    r"""Make a request now and print its uid; with --again or --from and --before, for any past window.

    \b
    Examples:
      export-pipeline recurring run-now 12
      export-pipeline recurring run-now 12 --again 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline recurring run-now 12 --from 2026-03-01T00:00:00+01:00 --before 2026-04-01T00:00:00+02:00
    """
    if again is not None and (begin or end):
        raise click.UsageError("name the window by --again or by --from and --before, not both")
    if begin and end and end <= begin:
        raise click.UsageError("--before must be after --from")
    with _reported(), open_database().begin() as connection:
        window = Window(begin, end) if begin or end else None
        if again is not None:
            window = window_of(connection, recurring_id, again)
        uid = make_now(connection, recurring_id, window=window)
    click.echo(uid)


@recurring.command("next")
@click.argument("recurring_id", type=int, required=False)
@click.option("--cron", help="Five fields, instead of a recurring export's id.")
@click.option("--timezone", "time_zone", default="UTC", show_default=True, help="IANA zone of the cron's clock.")
@click.option("--from", "start", help="After this instant, or local time if it has no offset; default now.")
@click.option("--count", type=click.IntRange(1, 10_000), default=5, show_default=True)
def next_(recurring_id: int | None, *, cron: str | None, time_zone: str, start: str | None, count: int) -> None:
    r"""Print the next fire times, one a line: local time with its offset, and UTC.

    \b
    Examples:
      export-pipeline recurring next 12
      export-pipeline recurring next --cron '30 2 * * *' --timezone Europe/Madrid --from 2026-03-28T12:00:00Z --count 3
    """
    if (recurring_id is None) == (cron is None):
        raise click.UsageError("name a recurring export by its id, or a schedule by --cron")
    with _reported():
        if cron is not None:
            schedule = checked_schedule(cron, time_zone)
        else:
            with reading(open_database()) as connection:
                schedule = load_recurring(connection, recurring_id or 0).rules().schedule
        after = utc_now() if start is None else _instant_of(start, schedule)
        for instant in islice(fire_times(schedule, after), count):
            click.echo(_printed(instant, schedule))


def _instant_of(text: str, schedule: Schedule) -> datetime:
    try:
        named = datetime.fromisoformat(text)
        return named.astimezone(UTC) if named.tzinfo else beginning(named, schedule.zone)
    except (ValueError, OverflowError):
        raise click.BadParameter("is not a time such as 2026-03-29T00:00:00Z", param_hint="--from") from None


def _printed(instant: datetime, schedule: Schedule) -> str:
    return f"{instant.astimezone(schedule.zone).isoformat()}  {instant:%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def _reported() -> Iterator[None]:
    """Print errors that the user can fix in one line."""
    try:
        yield
    except (ExportFailure, LookupError) as error:
        raise click.ClickException(str(error)) from None
