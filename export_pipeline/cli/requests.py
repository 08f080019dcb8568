"""``export-pipeline request`` and ``cancel``: what an application does by SQL, from the shell.

What belongs here: arguments to a row. What does not: checking them (preflight does, as for every row).
"""

from __future__ import annotations

import json
from typing import Any

import click

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.requests import states
from export_pipeline.requests.model import insert_request
from export_pipeline.requests.tables import DEFAULT_MAX_FILE_SIZE_MB
from export_pipeline.settings import Settings

_LISTS = ("recipient_emails", "columns", "include", "list_ids", "segment_ids")


class JsonText(click.ParamType[Any]):
    """JSON typed on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"is not JSON: {error.msg} at character {error.pos + 1}", param, ctx)


@click.command()
@click.option("--organization", "organization_id", required=True, help="The tenant whose rows are exported.")
@click.option("--dataset", required=True, help="A dataset of the catalog, such as contacts or entities.")
@click.option("--format", required=True, help="csv, xlsx, json, ndjson or parquet.")
@click.option("--recipient", "recipient_emails", multiple=True, help="Who gets the mail; may be repeated.")
@click.option("--column", "columns", multiple=True, help="A column, in the order wanted; default all.")
@click.option("--layout", help="A named header set of the dataset, such as sendgrid or cometly.")
@click.option("--include", multiple=True, help="A child list to add, such as comet_tokens; may be repeated.")
@click.option("--list", "list_ids", multiple=True, help="A list's id; may be repeated. Lists and segments are a union.")
@click.option("--segment", "segment_ids", multiple=True, help="A segment's id; may be repeated.")
@click.option("--filters", type=JsonText(), help='JSON, such as \'{"country": ["BR", "AR"]}\'.')
@click.option("--compression", help="none or gzip; default gzip for ndjson, none otherwise.")
@click.option(
    "--max-file-size-mb",
    type=int,
    help=f"Ceiling of each file, 1 MB = 1,000,000 bytes; default {DEFAULT_MAX_FILE_SIZE_MB}.",
)
@click.option("--locale", "email_locale", help="Language of the mail: en, es or pt.")
@click.option("--requested-by", help="The requester's id in your application.")
@click.option("--from-email", help="Sender: an address on a verified domain of the organization.")
@click.option("--from-sender-id", help="Sender: a row of organization_email_senders.")
@click.option("--notify/--no-notify", "notify_email", default=None, help="Whether anybody is mailed; default yes.")
@click.option("--start-date", type=click.DateTime(), help="Created from, in the organization's time zone.")
@click.option("--end-date", type=click.DateTime(), help="Created until, inclusive.")
@click.option("--options", type=JsonText(), help='JSON, such as \'{"csv_profile": "excel"}\'; see docs/requests.md.')
@click.option(
    "--dry-run", is_flag=True, help="Insert nothing; say how many rows, bytes, files and seconds it would be."
)
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object for programs.")
def request(*, dry_run: bool, as_json: bool, **asked: Any) -> None:
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
    lists = {name: list(asked.pop(name)) for name in _LISTS}
    values = {name: value for name, value in asked.items() if value is not None} | lists
    if dry_run:
        from export_pipeline.cli.dry_run import dry_run as estimate_only

        estimate_only(engine, settings, values, as_json=as_json)
        return
    with engine.begin() as connection:
        click.echo(insert_request(connection, **values))


@click.command()
@click.argument("uid")
def cancel(uid: str) -> None:
    r"""Cancel a request: its run ends within seconds, nobody is mailed, nothing stays in the store.

    \b
    Example:
      export-pipeline cancel 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    engine = open_database(Settings.from_environment())
    with engine.begin() as connection:
        asked = states.request_cancel(connection, uid)
    if not asked:
        raise click.ClickException(f"the request is {state_of(engine, uid).status} and cannot be canceled any more")
    click.echo("Cancel requested.")


@click.command()
@click.argument("uid")
def retry(uid: str) -> None:
    r"""Put a failed or canceled request back in the queue: it is exported anew, its attempts counted anew.

    Re-executing its run in the Dagster UI goes on from the step that failed; this begins from the first.

    \b
    Example:
      export-pipeline retry 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    engine = open_database(Settings.from_environment())
    with engine.begin() as connection:
        queued = states.retry(connection, uid, actor="command")
    if not queued:
        status = state_of(engine, uid).status
        raise click.ClickException(f"the request is {status}; only one that failed or was canceled can be retried")
    click.echo("Queued again.")
