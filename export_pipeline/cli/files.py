"""Commands for the files and mails of a finished export: verify, links, resend."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.database.enums import EventKind, NotificationKind, NotificationStatus, RequestStatus
from export_pipeline.requests import notifications
from export_pipeline.requests.audit import COMMAND, record
from export_pipeline.requests.download_links import revoke_links
from export_pipeline.requests.models import RequestState
from export_pipeline.settings import Settings

DEFAULT_MINUTES = 15
"""From the moment of the request for it (Cometly, Get Contact Export)."""


@click.command()
@click.argument("uid")
def verify(uid: str) -> None:
    r"""Read an export's delivered files back and compare rows, bytes and SHA-256 with its manifest.

    \b
    Example:
      export-pipeline verify 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    from export_pipeline.stages.verify import verify as verify_files
    from export_pipeline.storage import open_store

    settings = Settings.from_environment()
    state = state_of(open_database(settings), uid)
    if state.status is not RequestStatus.COMPLETED or state.manifest_key is None:
        raise click.ClickException(f"the request is {state.status}: it has no files to verify")
    report = verify_files(open_store(settings), state.manifest_key)
    problems = list(report.problems)
    if (report.rows, report.bytes, report.files) != (state.row_count, state.byte_count, state.file_count):
        problems.append("export_requests: row_count, byte_count or file_count differs from the files")
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise click.ClickException(f"{len(problems)} problems in {report.files} files")
    click.echo(f"{report.files} files, {report.rows} rows, {report.bytes} bytes: as the manifest says.")


@click.command()
@click.argument("uid")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_MINUTES,
    show_default=True,
    help="Lifetime of the links; never longer than that of the files.",
)
@click.option("--revoke", is_flag=True, help="Print no links; revoke those in mails and from the gateway.")
def links(uid: str, *, minutes: float, revoke: bool) -> None:
    r"""Print a fresh download link for each file, one a line, in the order of the rows.

    Anyone with a link can download the file.

    \b
    Examples:
      export-pipeline links 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --minutes 60
      export-pipeline links 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --revoke
    """
    from export_pipeline.stages.manifest import read_manifest
    from export_pipeline.stages.upload import describe
    from export_pipeline.storage import open_store

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


@click.command()
@click.argument("uid")
@click.option(
    "--recipient", "recipients", multiple=True, help="Only the mail to this recipient; may be repeated. Default: all."
)
@click.option("--unknown", is_flag=True, help="Also mails that may have arrived: they may arrive a second time.")
def resend(uid: str, *, recipients: tuple[str, ...], unknown: bool) -> None:
    r"""Send the refused mails of a finished request again, after the reason was corrected. No mail is charged twice.

    A run of the job `notify` sends them within a minute, while the daemon runs. For a failed request, it is the mail to
    its requester. `export-pipeline status` shows the reasons.

    \b
    Examples:
      export-pipeline resend 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline resend 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --recipient ana@example.com --unknown
    """
    settings = Settings.from_environment()
    if not settings.sends_mail:
        raise click.ClickException("EXPORT_MAIL_URL is none:, so no mail can be sent; name a provider first")
    engine = open_database(settings)
    state = state_of(engine, uid)
    kind = _kind(state)
    try:
        with engine.begin() as connection:
            counts = notifications.put_back(connection, state.id, kind=kind, only=recipients, unknown=unknown)
            pending = counts.get(NotificationStatus.PENDING, 0) + counts.get(NotificationStatus.SENDING, 0)
            lost = counts.get(NotificationStatus.UNKNOWN, 0)
            again = "with --unknown they are, and may arrive a second time."
            hint = f": {lost} may have arrived and are not sent again; {again}" if lost else ""
            if not pending:
                listed = ", ".join(f"{status} {number}" for status, number in counts.items())
                raise click.ClickException(f"there is no mail to send ({listed or 'the request has no mails'}){hint}")
    except LookupError as error:
        raise click.ClickException(f"{error} have no mail of this request") from None
    click.echo(f"Mails to send: {pending}. A run of the job notify sends them within a minute.")
    if hint:
        click.echo(f"Warning{hint}", err=True)
    if unknown:
        click.echo("Warning: mails that may have arrived are among them; they may arrive a second time.", err=True)


def _kind(state: RequestState) -> NotificationKind:
    if state.status is RequestStatus.FAILED:
        return NotificationKind.FAILED
    has_expired = state.expires_at is not None and state.expires_at <= datetime.now(UTC)
    if state.status is RequestStatus.COMPLETED and not has_expired:
        return NotificationKind.READY
    raise click.ClickException(f"the request is {'expired' if has_expired else state.status}: there is nothing to mail")
