"""``export-pipeline request --dry-run``: what a request would come to, and nothing is left of it.

What belongs here: asking the rules and the estimate, and words for people. What does not: any rule.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

import click
import sqlalchemy as sa

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.engine.estimate import Estimate, estimate
from export_pipeline.engine.plan import make_plan
from export_pipeline.engine.readers import source_of
from export_pipeline.failures import ExportFailure
from export_pipeline.requests.admission import admit
from export_pipeline.requests.model import insert_and_load
from export_pipeline.requests.organizations import Organizations
from export_pipeline.settings import Settings


def dry_run(engine: sa.Engine, settings: Settings, asked: Mapping[str, Any], *, as_json: bool) -> None:
    """Check a request as its run would, and print what it would come to.

    Raises:
        click.ClickException: the request would fail; says with which code.
    """
    try:
        recipients, found = _answer(engine, settings, asked)
    except ExportFailure as failure:
        code, message = failure.code, failure.message
    else:
        _print(recipients, found, as_json=as_json)
        return
    raise click.ClickException(f"{code}: {message}")


def _answer(engine: sa.Engine, settings: Settings, asked: Mapping[str, Any]) -> tuple[int, Estimate]:
    catalog, organizations = load_catalog(settings.catalog), Organizations()
    with engine.connect() as connection, connection.begin() as transaction:
        # Inserted and taken back, so that the database's own defaults and constraints have their say.
        # Below 1, so that no number of the sequence is used up: those are not given back.
        request = insert_and_load(connection, id=-secrets.randbelow(2**31), **asked)
        organization, checked = admit(connection, organizations, catalog, settings, request)
        transaction.rollback()
    source = source_of(settings)
    plan = make_plan(request, checked, organization, source, attempt=1)
    return len(checked.recipients), estimate(plan, catalog, source)


def _print(recipients: int, found: Estimate, *, as_json: bool) -> None:
    facts = {
        "rows": found.rows,
        "bytes": found.bytes,
        "files": found.files,
        "seconds": round(found.seconds, 1),
        "recipients": recipients,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"rows        {found.rows:,}")
    click.echo(f"bytes       about {found.bytes:,}")
    click.echo(f"files       about {found.files:,}")
    click.echo(f"seconds     about {found.seconds:,.1f} to read and write on this machine")
    click.echo(f"recipients  {recipients:,}")
    click.echo("Nothing was inserted.")
