"""Commands that test an installation: check before it is used, health while it runs."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Column, Table

from export_pipeline.catalog.loader import CatalogError, load_catalog
from export_pipeline.check import State
from export_pipeline.cli.common import json_option, open_database, print_json
from export_pipeline.database.engine import reading
from export_pipeline.requests.health import LONGEST_WAIT_SECONDS, Check, checks
from export_pipeline.settings import Settings

_COLORS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red"}


@click.command()
@json_option
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=30,
    show_default=True,
    help="Time limit of the whole check; give more for many datasets on a distant database.",
)
def check(*, as_json: bool, seconds: float) -> None:
    r"""Check every part of the installation and print what is wrong and what to do. Exit code 1 if anything is wrong.

    It checks settings, both databases, every dataset's table, columns and types, the store and its links, staging,
    mail and alerts. It takes seconds, sends no mail and leaves nothing behind.

    \b
    Examples:
      export-pipeline check
      export-pipeline check --json | jq '.findings[] | select(.state == "wrong")'
    """
    from export_pipeline.check.installation import check_installation

    found = []
    for part, finding in check_installation(seconds=seconds):
        found.append({"part": part, "state": finding.state, "subject": finding.subject, "text": finding.text})
        if not as_json:
            state = click.style(f"{finding.state:8}", fg=_COLORS[finding.state])
            click.echo(f"{state} {part}: {finding.subject}: {finding.text}")
    counts = {state: sum(one["state"] == state for one in found) for state in State}
    if as_json:
        print_json({"ok": not counts[State.WRONG], "findings": found})
    else:
        click.echo(f"{counts[State.WRONG]} wrong, {counts[State.WARNING]} warnings, {counts[State.OK]} ok.")
    if counts[State.WRONG]:
        raise SystemExit(1)


NAMES = (
    "last_tick_seconds",
    "oldest_wait_seconds",
    "longest_silence_seconds",
    "oldest_owed_mail_seconds",
    "oldest_due_webhook_seconds",
    "most_postponements",
    "catalog_problems",
)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only this check; may be repeated.")
@click.option(
    "--longest-wait",
    type=click.FloatRange(min=0),
    default=LONGEST_WAIT_SECONDS,
    show_default=True,
    help="Bound of oldest_wait_seconds.",
)
@json_option
def health(only: tuple[str, ...], longest_wait: float, *, as_json: bool) -> None:
    r"""Print what waits, for monitors. Exit code 1 if a value is beyond its bound.

    It reads only the request database and needs no Dagster instance. The exit code is 1 also if the database does not
    answer, and 2 for a wrong setting.

    \b
    Examples:
      export-pipeline health
      export-pipeline health --only last_tick_seconds
      export-pipeline health --json | jq '.checks[] | select(.ok | not)'
    """
    settings = Settings.from_environment()
    engine = open_database(settings)
    with reading(engine) as connection:
        found = checks(
            connection, heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds, longest_wait_seconds=longest_wait
        )
    found.append(_catalog(settings))
    found = [check for check in found if not only or check.name in only]
    ok = all(check.ok for check in found)
    if as_json:
        print_json({"ok": ok, "checks": [check.model_dump() for check in found]})
        raise SystemExit(0 if ok else 1)
    table = Table("", "check", Column("value", justify="right"), Column("bound", justify="right"), box=None)
    for check in found:
        value = "-" if check.value is None else f"{check.value:,.0f}"
        table.add_row("ok" if check.ok else "BAD", check.name, value, f"{check.bound:,.0f}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for check in found:
        if not check.ok:
            console.print(f"\n{check.name}: {check.meaning}")
    if not ok:
        raise SystemExit(1)


def _catalog(settings: Settings) -> Check:
    problems: tuple[str, ...] = ()
    try:
        load_catalog(settings.catalog)
    except CatalogError as error:
        problems = error.problems
    meaning = "problems of the catalog; exports go on with the last good one." + "".join(f"\n{one}" for one in problems)
    return Check(name="catalog_problems", value=len(problems), bound=0, ok=not problems, meaning=meaning)
