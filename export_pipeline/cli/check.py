"""``export-pipeline check``: what would stop an export, before one is asked for."""

from __future__ import annotations

import json

import click

from export_pipeline.check.findings import State

_COLORS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs.")
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=30,
    show_default=True,
    help="How long all parts together may take; more for many datasets on a database far away.",
)
def check(*, as_json: bool, seconds: float) -> None:
    r"""Try every part of the installation and say what is wrong and what to do. Exit code 1 if anything is.

    Settings, both databases, every dataset's table, columns and types, the store and its links, staging, mail,
    alerts. It takes seconds, sends no mail and leaves nothing behind.

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
        click.echo(json.dumps({"ok": not counts[State.WRONG], "findings": found}, indent=2))
    else:
        click.echo(f"{counts[State.WRONG]} wrong, {counts[State.WARNING]} warnings, {counts[State.OK]} ok.")
    if counts[State.WRONG]:
        raise SystemExit(1)
