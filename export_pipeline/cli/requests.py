"""Commands for requests, which an application makes by SQL: request, cancel, retry, queue, status."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click
import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.cli.common import ONCE, JsonText, json_option, open_database, print_json, state_of
from export_pipeline.database.engine import reading
from export_pipeline.database.enums import FINISHED, RequestStatus
from export_pipeline.database.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.requests import notifications, transitions
from export_pipeline.requests.audit import operators_message
from export_pipeline.requests.health import queue as lines_of_queue
from export_pipeline.requests.health import total
from export_pipeline.requests.models import RequestState, insert_and_load, insert_request, overall_progress
from export_pipeline.requests.validation.request import admit
from export_pipeline.scheduling.wall_clock import read_end
from export_pipeline.settings import Settings, dagster_home

POLL_SECONDS = 1.0
ESTIMATE = """\
rows        {rows:,}
bytes       about {bytes:,}
files       about {files:,}
seconds     about {seconds:,.1f} to read and write on this machine
recipients  {recipients:,}
Nothing was inserted."""


class EndDate(click.DateTime):
    """The end of a range: a time, or a date."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        return read_end(super().convert(value, param, ctx), value)


@click.command()
@click.option("--organization", "organization_id", required=True, help="The organization whose rows are exported.")
@click.option("--dataset", required=True, help="A dataset of the catalog, such as contacts or entities.")
@click.option("--format", required=True, help="csv, xlsx, json, ndjson or parquet.")
@click.option("--recipient", "recipient_emails", multiple=True, help="An address to mail; may be repeated.")
@click.option("--column", "columns", multiple=True, help="A column, in the order of the file; default all.")
@click.option("--layout", help="A named header set of the dataset, such as sendgrid or cometly.")
@click.option("--include", multiple=True, help="A child list to add, such as comet_tokens; may be repeated.")
@click.option("--list", "list_ids", multiple=True, help="A list's id; may be repeated. Lists and segments are a union.")
@click.option("--segment", "segment_ids", multiple=True, help="A segment's id; may be repeated.")
@click.option("--filters", type=JsonText(), **ONCE, help='JSON, such as \'{"country": ["BR", "AR"]}\'.')
@click.option("--compression", help="none or gzip; default gzip for ndjson, none otherwise.")
@click.option(
    "--max-file-size-mb",
    type=int,
    help=f"Largest size of a file, 1 MB = 1,000,000 bytes; default {DEFAULT_MAX_FILE_SIZE_MB}.",
)
@click.option("--locale", "email_locale", help="Language of the mail: en, es or pt.")
@click.option("--requested-by", help="The requester's id in your application.")
@click.option("--from-email", help="Sender: an address on a verified domain of the organization.")
@click.option("--from-sender-id", help="Sender: a row of organization_email_senders.")
@click.option("--notify/--no-notify", "notify_email", default=None, help="Whether to mail the recipients; default yes.")
@click.option("--start-date", type=click.DateTime(), **ONCE, help="Created from, in the organization's time zone.")
@click.option("--end-date", type=EndDate(), **ONCE, help="Created until, inclusive; a date means that whole day.")
@click.option("--options", type=JsonText(), help='JSON, such as \'{"csv_profile": "excel"}\'; see docs/requests.md.')
@click.option("--dry-run", is_flag=True, help="Insert nothing; print how many rows, bytes, files and seconds.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object for programs.")
def request(*, dry_run: bool, as_json: bool, **columns: Any) -> None:
    r"""Insert a request and print its uid. The running pipeline picks it up.

    \b
    Examples:
      export-pipeline request --organization 6f0c --dataset contacts --format csv --recipient ana@example.com
      export-pipeline request --organization 6f0c --dataset entities --format xlsx \\
          --filters '{"type": "person", "risk_score": {"gte": 70}}' --column id --column name
      export-pipeline request --organization 6f0c --dataset contacts --format csv --layout sendgrid --dry-run
      export-pipeline status $(export-pipeline request …) --watch
    """
    settings = Settings.from_environment()
    engine = open_database(settings)
    values = {
        name: list(value) if isinstance(value, tuple) else value for name, value in columns.items() if value is not None
    }
    if dry_run:
        try:
            found = _estimate(engine, settings, values)
        except ExportFailure as failure:
            raise click.ClickException(f"{failure.code}: {failure.message}") from None
        click.echo(json.dumps(found) if as_json else ESTIMATE.format(**found))
        return
    load_catalog(settings.catalog)  # report a broken catalog now: no request could be served
    with engine.begin() as connection:
        click.echo(insert_request(connection, **values))


@click.command()
@click.argument("uid")
def cancel(uid: str) -> None:
    r"""Cancel a request: its run ends within seconds, no mail is sent, its files are deleted from the store.

    \b
    Example:
      export-pipeline cancel 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    engine = open_database()
    with engine.begin() as connection:
        requested = transitions.request_cancel(connection, uid)
    if not requested:
        raise click.ClickException(f"the request is {state_of(engine, uid).status} and cannot be canceled any more")
    click.echo("Cancel requested.")


@click.command()
@click.argument("uid")
def retry(uid: str) -> None:
    r"""Queue a failed or canceled request again: it starts from the first step, with a new count of attempts.

    To continue from the failed step, re-execute its run in the Dagster UI.

    \b
    Example:
      export-pipeline retry 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    engine = open_database()
    with engine.begin() as connection:
        queued = transitions.retry(connection, uid, actor="command")
    if not queued:
        status = state_of(engine, uid).status
        raise click.ClickException(f"the request is {status}; only one that failed or was canceled can be retried")
    click.echo("Queued again.")


def _estimate(engine: sa.Engine, settings: Settings, columns: Mapping[str, Any]) -> dict[str, float]:
    """Check a request as its run would, and estimate its export."""
    from export_pipeline.source.readers import source_of
    from export_pipeline.stages.plan import estimate, make_plan

    catalog = load_catalog(settings.catalog)
    with engine.connect() as connection, connection.begin() as transaction:
        # Insert and roll back, so that the database's own defaults and constraints apply.
        # With an id below 1, so that no number of the sequence is used up: a rollback does not return it.
        request = insert_and_load(connection, id=-secrets.randbelow(2**31), **columns)
        organization, checked = admit(connection, catalog, settings, request)
        transaction.rollback()
    source = source_of(settings)
    found = estimate(make_plan(request, checked, organization, source, attempt=1), catalog, source)
    return {
        "rows": found.rows,
        "bytes": found.bytes,
        "files": found.files,
        "seconds": round(found.seconds, 1),
        "recipients": len(checked.recipients),
    }


@click.command()
@click.option("--organization", help="Show only this organization.")
@json_option
def queue(organization: str | None, *, as_json: bool) -> None:
    r"""Show how many requests of each organization wait and run, and the oldest wait; the longest wait first.

    With --json, waits are in seconds.

    \b
    Examples:
      export-pipeline queue
      export-pipeline queue --organization 6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01
      export-pipeline queue --json | jq .total.oldest_wait_seconds
    """
    with reading(open_database()) as connection:
        lines = lines_of_queue(connection, organization)
        everything = total(lines)
    if as_json:
        organizations = [line.model_dump() for line in lines]
        print_json({"organizations": organizations, "total": everything.model_dump(exclude={"organization_id"})})
        return
    names = ("waiting", "running", "oldest wait")
    table = Table("organization", *(Column(name, justify="right") for name in names), box=None)
    for line in (*lines, everything):
        seconds = line.oldest_wait_seconds
        waited = "-" if seconds is None else str(timedelta(seconds=int(seconds)))  # 0:03:20; 2 days, 1:00:00
        name = "all" if line is everything else line.organization_id
        table.add_row(name, f"{line.waiting:,}", f"{line.running:,}", waited)
    Console(highlight=False, markup=False).print(table)


@click.command()
@click.argument("uid")
@click.option("--watch", is_flag=True, help="Show a progress bar with ETA until the request is finished.")
@json_option
def status(uid: str, *, watch: bool, as_json: bool) -> None:
    r"""Show a request's progress, and its runs if DAGSTER_HOME is set. Exit code 1 if it failed.

    \b
    Examples:
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --watch
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --json | jq .request.status
    """
    engine = open_database()
    state = state_of(engine, uid)
    if watch:
        state = _watch(engine, state)
    runs = _runs(state.uid)
    with reading(engine) as connection:
        cause = operators_message(connection, state.uid) if state.status is RequestStatus.FAILED else None
        mails = [
            {"kind": kind, "status": status, "reason": reason, "mails": number}
            for kind, status, reason, number in notifications.reasons(connection, state.id)
        ]
    if as_json:
        document = {"request": state.model_dump(mode="json"), "cause": cause, "mails": mails, "runs": runs}
        print_json(document)
    else:
        _show_status(state, cause, mails, runs)
    if state.status is RequestStatus.FAILED:
        raise SystemExit(1)


def _watch(engine: sa.Engine, state: RequestState) -> RequestState:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        # A percentage: each stage counts the rows once, so a number would be a multiple of the export's rows.
        TaskProgressColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("queued", total=None)
        while True:
            done, total = overall_progress(state)
            progress.update(task, description=str(state.stage or state.status), completed=done, total=total)
            if state.status in FINISHED:
                return state
            time.sleep(POLL_SECONDS)
            state = state_of(engine, state.uid)


def _runs(uid: str) -> list[dict[str, Any]]:
    if dagster_home() is None:
        return []
    from dagster import DagsterInstance

    from export_pipeline.orchestration.runs import run_statuses

    with DagsterInstance.get() as instance:
        return run_statuses(instance, uid)


def _show_status(
    state: RequestState, cause: str | None, mails: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> None:
    console = Console()
    table = Table(show_header=False, box=None)
    for name, value in state.model_dump(mode="json").items():
        if value is not None:
            table.add_row(name, str(value))
    for mail in mails:
        reason = f" ({mail['reason']})" if mail["reason"] else ""
        table.add_row(f"mails {mail['kind']}", f"{mail['mails']} {mail['status']}{reason}")
    if cause:
        table.add_row("cause", Text(cause))
    console.print(table)
    if state.status is RequestStatus.FAILED and state.error_code in RUNBOOK:
        advice = RUNBOOK[FailureCode(state.error_code)]
        console.print(f"\nturn: {advice.turn}. {advice.plain}", markup=False, highlight=False)
    for run in runs:
        console.print(f"\nrun {run['run_id']}  {run['status']}  attempt {run['attempt']}")
        stages = Table("step", "rows", "bytes", "files", "seconds", "rows/s", box=None)
        for stage in run["stages"]:
            facts = stage["metadata"]
            names = ("rows", "bytes", "files", "seconds", "rows_per_second")
            stages.add_row(stage["step"], *[str(facts.get(name, "")) for name in names])
        console.print(stages)
    if not runs and dagster_home() is None:
        console.print("\nSet DAGSTER_HOME to see the runs.")
