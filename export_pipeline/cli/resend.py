"""``export-pipeline resend``: mails that were refused, or may have been lost, are sent again."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.requests import ledger
from export_pipeline.requests.enums import NotificationKind, NotificationStatus, RequestStatus
from export_pipeline.requests.model import RequestState
from export_pipeline.settings import Settings


@click.command()
@click.argument("uid")
@click.option("--recipient", "recipients", multiple=True, help="Only this one's mail; may be repeated. Default: all.")
@click.option("--unknown", is_flag=True, help="Also mails that may have arrived: they may arrive a second time.")
def resend(uid: str, *, recipients: tuple[str, ...], unknown: bool) -> None:
    r"""Send the refused mails of a finished request again, once the reason was corrected. Nobody is charged twice.

    They are put back in the ledger; a run of the job `notify` sends them within a minute, while the daemon runs.
    Of a failed request it is the mail to its requester. `export-pipeline status` shows the reasons.

    \b
    Examples:
      export-pipeline resend 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
      export-pipeline resend 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10 --recipient ana@example.com --unknown
    """
    settings = Settings.from_environment()
    if not settings.sends_mail:
        raise click.ClickException("EXPORT_MAIL_URL is none:, no mail can be sent; name a provider first")
    engine = open_database(settings)
    state = state_of(engine, uid)
    kind = _kind(state)
    try:
        with engine.begin() as connection:
            counts = ledger.put_back(connection, state.id, kind=kind, only=recipients, unknown=unknown)
            pending = counts.get(NotificationStatus.PENDING, 0) + counts.get(NotificationStatus.SENDING, 0)
            lost = counts.get(NotificationStatus.UNKNOWN, 0)
            hint = _warning(lost) if lost else ""
            if not pending:
                raise click.ClickException(f"no mail is left to send ({_listed(counts)}){hint}")
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
    alive = state.expires_at is None or state.expires_at > datetime.now(UTC)
    if state.status is RequestStatus.COMPLETED and alive:
        return NotificationKind.READY
    raise click.ClickException(f"the request is {state.status if alive else 'expired'}: there is nothing to mail")


def _warning(lost: int) -> str:
    return f": {lost} may have arrived and are not sent again; with --unknown they are, and may arrive a second time."


def _listed(counts: dict[NotificationStatus, int]) -> str:
    return ", ".join(f"{status} {number}" for status, number in counts.items()) or "it mails nobody"
