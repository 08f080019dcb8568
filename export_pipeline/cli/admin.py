"""Commands that set up and run an installation: demo, db, gateway, api-key, webhook-secret, and the audit trail."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import click
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.cli.common import extra_hint, open_database
from export_pipeline.database import migrate
from export_pipeline.database.engine import create_engine, reading, why_unavailable
from export_pipeline.messaging.mime import one_line
from export_pipeline.requests.api_keys import create_key, list_keys, revoke_key
from export_pipeline.requests.audit import LONGEST_KEPT, events_of
from export_pipeline.requests.organizations import permission_for
from export_pipeline.requests.webhooks import renew_secret, secret_of
from export_pipeline.settings import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of processes.")
def gateway(*, host: str, port: int, workers: int) -> None:
    r"""Serve our own HTTP API and those of gu1, SendGrid and Cometly; needs the extra `gateway`.

    \b
    Examples:
      export-pipeline gateway --host 127.0.0.1 --port 8080
      export-pipeline gateway --host 0.0.0.0 --port 8080 --workers 4
    """
    from export_pipeline.check.environment import warn_of_unknown_variables

    settings = Settings.from_environment()
    warn_of_unknown_variables()
    open_database(settings).dispose()
    try:
        from export_pipeline.gateway.app import serve
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing; {extra_hint('gateway')}") from None
    serve(settings, host=host, port=port, workers=workers)


@click.group()
def api_key() -> None:
    """Keys for the HTTP gateway; each belongs to one organization."""


@api_key.command()
@click.option("--organization", required=True, help="The organization whose rows the key may export.")
@click.option("--scope", "scopes", multiple=True, required=True, help="Such as entities:export; may be repeated.")
@click.option("--name", help="A name to recognize the key by.")
@click.option("--member", help="The member for whom the key acts: stored as requested_by, and their permissions apply.")
@click.option("--requests-per-hour", type=click.IntRange(min=1), help="Limit of this key; gu1's sandbox has 100.")
def create(
    *, organization: str, scopes: tuple[str, ...], name: str | None, member: str | None, requests_per_hour: int | None
) -> None:
    r"""Make a key and print it as the last word. Only its hash is stored, so it cannot be shown again.

    \b
    Examples:
      export-pipeline api-key create --organization 6f0c --scope entities:export
      export-pipeline api-key create --organization 6f0c --scope contacts:export --name crm | awk '{print $NF}'
    """
    settings = Settings.from_environment()
    known = sorted(permission_for(dataset) for dataset in load_catalog(settings.catalog))
    unknown = [scope for scope in scopes if scope not in known]
    if unknown:
        raise click.ClickException(f"--scope {unknown[0]}: unknown; use one of {', '.join(known)}")
    with open_database(settings).begin() as connection:
        key = create_key(
            connection, organization, scopes, name=name, member_id=member, requests_per_hour=requests_per_hour
        )
    click.echo(f"Key {key.id}; it is shown only once: {key.secret}")


@api_key.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    r"""Revoke a key at once.

    \b
    Example:
      export-pipeline api-key revoke 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    with open_database().begin() as connection:
        revoked = revoke_key(connection, key_id)
    if not revoked:
        raise click.ClickException(f"no valid key has the id {key_id}")
    click.echo("Revoked.")


@api_key.command(name="list")
@click.option("--organization", required=True, help="The organization of the keys.")
def list_(*, organization: str) -> None:
    r"""Show an organization's keys: id, whether it is valid, scopes, name.

    \b
    Example:
      export-pipeline api-key list --organization 6f0c
    """
    with open_database().connect() as connection:
        for key_id, name, scopes, valid in list_keys(connection, organization):
            click.echo(f"{key_id}  {'valid' if valid else 'revoked'}  {','.join(scopes)}  {name or ''}".rstrip())


@click.command()
@click.option("--organization", required=True, help="The organization whose webhooks are signed.")
@click.option("--renew", is_flag=True, help="Make a new secret; the old one is no longer used.")
def webhook_secret(*, organization: str, renew: bool) -> None:
    r"""Print the secret that signs an organization's webhooks, as the last word.

    \b
    Examples:
      export-pipeline webhook-secret --organization 6f0c
      export-pipeline webhook-secret --organization 6f0c --renew
    """
    with open_database().begin() as connection:
        if renew:
            renew_secret(connection, organization)
        click.echo(secret_of(connection, organization))


@click.command()
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Directory of the demo; the files of an earlier demo are removed.",
)
@click.option("--rows", type=click.IntRange(100), default=100_000, show_default=True, help="Number of contacts.")
@click.option("--ui", is_flag=True, help="Keep the Dagster UI and the S3 endpoint up until Ctrl-C.")
def demo(home: Path, rows: int, *, ui: bool) -> None:
    r"""Show the whole pipeline on this machine: demo data, a real S3 server, the Dagster daemon, mails in an outbox.

    \b
    Examples:
      export-pipeline demo
      export-pipeline demo --home /tmp/demo --rows 1000000
      export-pipeline demo --ui
    """
    from export_pipeline.demo.home import Home
    from export_pipeline.demo.story import run_demo

    run_demo(Home(home.resolve()), rows, ui=ui)


@click.group()
def db() -> None:
    """The request database (EXPORT_DATABASE_URL)."""


@db.command()
def upgrade() -> None:
    r"""Create the tables, or upgrade them to the newest revision. Safe to run again.

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


@click.command()
@click.argument("uid", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per event, for programs.")
def audit(uid: UUID, *, as_json: bool) -> None:
    r"""Print the audit trail of an export: who requested it, who got and opened links, when files were deleted.

    It also exists after the request is deleted. It holds personal data, such as filters and addresses.

    \b
    Examples:
      export-pipeline audit 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline audit 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --json | jq 'select(.kind == "downloaded")'
    """
    with reading(open_database()) as connection:
        events = events_of(connection, str(uid))
    if not events:
        raise click.ClickException(f"the audit trail has no events of {uid}")
    if as_json:
        for event in events:
            # The detail is already JSON, and may nest deeper than Python can read.
            facts = json.dumps({"at": event.at.isoformat(), "kind": event.kind, "actor": event.actor})
            click.echo(f'{facts[:-1]}, "detail": {event.detail or "null"}}}')
        return
    table = Table("at", "kind", "actor", "detail", box=None)
    for event in events:
        table.add_row(
            event.at.isoformat(timespec="seconds"), event.kind, _printable(event.actor), _printable(event.detail)
        )
    Console(highlight=False).print(table)


def _printable(text: str | None) -> Text:
    """The text without terminal control characters, and not read as markup: an id may hold brackets."""
    return Text(one_line(text or "", longest=LONGEST_KEPT))
