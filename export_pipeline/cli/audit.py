"""``export-pipeline audit``: the trail of one request, also when its row is gone.

What belongs here: showing. What does not: the trail itself (requests.events).
"""

from __future__ import annotations

import json
from uuid import UUID

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from export_pipeline.cli.common import open_database
from export_pipeline.delivery.mime import one_line
from export_pipeline.requests.database import reading
from export_pipeline.requests.events import LONGEST_KEPT, Event, events_of
from export_pipeline.settings import Settings


@click.command()
@click.argument("uid", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document an event, for programs.")
def audit(uid: UUID, *, as_json: bool) -> None:
    r"""Print who asked for an export and for what, who was handed links and opened them, when the files were deleted.

    It holds personal data, filters and addresses among them: mind who sees it.

    \b
    Examples:
      export-pipeline audit 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline audit 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --json | jq 'select(.kind == "downloaded")'
    """
    engine = open_database(Settings.from_environment())
    with reading(engine) as connection:
        events = events_of(connection, str(uid))
    if not events:
        raise click.ClickException(f"the audit trail has nothing of {uid}")
    if as_json:
        for event in events:
            click.echo(_line(event))
        return
    table = Table("at", "kind", "actor", "detail", box=None)
    for event in events:
        table.add_row(event.at.isoformat(timespec="seconds"), event.kind, _shown(event.actor), _shown(event.detail))
    Console(highlight=False).print(table)


def _shown(text: str | None) -> Text:
    """As it is, but for what a terminal would obey; no markup: an id may hold brackets."""
    return Text(one_line(text or "", longest=LONGEST_KEPT))


def _line(event: Event) -> str:
    # The detail is JSON already, and may nest deeper than Python reads.
    facts = json.dumps({"at": event.at.isoformat(), "kind": event.kind, "actor": event.actor})
    return f'{facts[:-1]}, "detail": {event.detail or "null"}}}'
