"""``export-pipeline links``: fresh download links of a finished export.

What belongs here: minting when asked, and printing. What does not: signing (delivery).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.delivery.manifest import read_manifest
from export_pipeline.delivery.store import open_store
from export_pipeline.delivery.upload import describe
from export_pipeline.requests.enums import EventKind, RequestStatus
from export_pipeline.requests.events import COMMAND, record
from export_pipeline.requests.sealed_links import revoke_links
from export_pipeline.settings import Settings

DEFAULT_MINUTES = 15
"""Counted from the moment they are asked for (Cometly, Get Contact Export)."""


@click.command()
@click.argument("uid")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_MINUTES, show_default=True,
    help="How long the links live; never longer than the files.",
)  # fmt: skip
@click.option("--revoke", is_flag=True, help="Print none; end the sealed links that mails and the gateway gave out.")
def links(uid: str, *, minutes: float, revoke: bool) -> None:
    r"""Print a fresh link a file, one a line, in the order of the rows. They need no password: mind who sees them.

    \b
    Examples:
      export-pipeline links 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --minutes 60
      export-pipeline links 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --revoke
    """
    settings = Settings.from_environment()
    engine = open_database(settings)
    state = state_of(engine, uid)
    if revoke:
        with engine.begin() as connection:
            click.echo(f"{revoke_links(connection, uid)} links revoked.")
        return
    if state.status is not RequestStatus.COMPLETED or state.manifest_key is None or state.expires_at is None:
        raise click.ClickException(f"the request is {state.status}: there are no files to link to")
    lifetime = min(timedelta(minutes=minutes), state.expires_at - datetime.now(UTC))
    if lifetime <= timedelta(0):
        raise click.ClickException("the files have expired: there is nothing to link to")
    store = open_store(settings)
    files = read_manifest(store, state.manifest_key).files
    with engine.begin() as connection:
        record(connection, state.uid, state.organization_id, EventKind.LINKED, {"files": len(files)}, actor=COMMAND)
    for file in files:
        click.echo(store.link(describe(file), lifetime).url)
