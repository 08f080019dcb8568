"""``export-pipeline status``: the row, and the run's own state and metadata beside it.

What belongs here: showing. What does not: reading runs (orchestration.run_status).
"""

from __future__ import annotations

import json
import time
from typing import Any

import click
import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.failures import FailureCode
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.requests import ledger
from export_pipeline.requests.database import reading
from export_pipeline.requests.enums import FINISHED, RequestStatus
from export_pipeline.requests.events import operators_message
from export_pipeline.requests.model import RequestState
from export_pipeline.requests.progress import overall_progress
from export_pipeline.settings import Settings, dagster_home

POLL_SECONDS = 1.0


@click.command()
@click.argument("uid")
@click.option("--watch", is_flag=True, help="Show a progress bar with ETA until the request is finished.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs.")
def status(uid: str, *, watch: bool, as_json: bool) -> None:
    r"""Show how far a request is, and what its runs say (with DAGSTER_HOME set). Exit code 1 if it failed.

    \b
    Examples:
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --watch
      export-pipeline status 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --json | jq .request.status
    """
    engine = open_database(Settings.from_environment())
    state = state_of(engine, uid)
    if watch:
        state = _watch(engine, state)
    runs = _runs(state.uid)
    with reading(engine) as connection:
        operators_text = operators_message(connection, state.uid) if state.status is RequestStatus.FAILED else None
        mails = [
            {"kind": kind, "status": status, "reason": reason, "mails": number}
            for kind, status, reason, number in ledger.reasons(connection, state.id)
        ]
    if as_json:
        document = {"request": state.model_dump(mode="json"), "cause": operators_text, "mails": mails, "runs": runs}
        click.echo(json.dumps(document, indent=2))
    else:
        _show(state, operators_text, mails, runs)
    if state.status is RequestStatus.FAILED:
        raise SystemExit(1)


def _watch(engine: sa.Engine, state: RequestState) -> RequestState:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        # A share: rows are counted once in each stage, so that their number would be a multiple of the export's.
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

    from export_pipeline.orchestration.run_status import run_statuses

    with DagsterInstance.get() as instance:
        return [run.model_dump(mode="json") for run in run_statuses(instance, uid)]


def _show(
    state: RequestState, operators_text: str | None, mails: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> None:
    console = Console()
    table = Table(show_header=False, box=None)
    for name, value in state.model_dump(mode="json").items():
        if value is not None:
            table.add_row(name, str(value))
    for mail in mails:
        reason = f" ({mail['reason']})" if mail["reason"] else ""
        table.add_row(f"mails {mail['kind']}", f"{mail['mails']} {mail['status']}{reason}")
    if operators_text:
        table.add_row("cause", Text(operators_text))
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
