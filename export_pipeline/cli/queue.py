"""``export-pipeline queue``: who waits, who is served, and for how long the oldest has waited.

What belongs here: showing. What does not: counting (requests.queue).
"""

from __future__ import annotations

import json
from datetime import timedelta

import click
from rich.console import Console
from rich.table import Table

from export_pipeline.cli.common import open_database
from export_pipeline.requests.database import reading
from export_pipeline.requests.queue import Line, total
from export_pipeline.requests.queue import queue as lines_of_queue
from export_pipeline.settings import Settings


@click.command()
@click.option("--organization", help="Show this organization alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs; waits in seconds.")
def queue(organization: str | None, *, as_json: bool) -> None:
    r"""Show how many requests of each organization wait and run, and the oldest wait, the longest first.

    \b
    Examples:
      export-pipeline queue
      export-pipeline queue --organization 6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01
      export-pipeline queue --json | jq .total.oldest_wait_seconds
    """
    engine = open_database(Settings.from_environment())
    with reading(engine) as connection:
        lines = lines_of_queue(connection, organization)
    if as_json:
        document = {
            "organizations": [line.model_dump() for line in lines],
            "total": total(lines).model_dump(exclude={"organization_id"}),
        }
        click.echo(json.dumps(document, indent=2))
        return
    _show(lines)


def _show(lines: list[Line]) -> None:
    table = Table("organization", box=None, show_footer=True)
    everything = total(lines)
    table.columns[0].footer = "all"
    for name, footer in (
        ("waiting", f"{everything.waiting:,}"),
        ("running", f"{everything.running:,}"),
        ("oldest wait", _duration(everything.oldest_wait_seconds)),
    ):
        table.add_column(name, footer=footer, justify="right")
    for line in lines:
        table.add_row(
            line.organization_id, f"{line.waiting:,}", f"{line.running:,}", _duration(line.oldest_wait_seconds)
        )
    Console(highlight=False, markup=False).print(table)


def _duration(seconds: float | None) -> str:
    """``0:03:20``, ``2 days, 1:00:00``; a dash if nobody waits."""
    return "-" if seconds is None else str(timedelta(seconds=int(seconds)))
