"""``export-pipeline gateway``, ``api-key`` and ``webhook-secret``: serving HTTP, and who is known by what.

What belongs here: arguments, and words for people. What does not: endpoints (gateway), keys (requests.api_keys).
"""

from __future__ import annotations

import click

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.cli.common import extra_hint, open_database
from export_pipeline.requests.api_keys import create_key, list_keys, revoke_key
from export_pipeline.requests.permissions import permission_for
from export_pipeline.requests.webhooks import renew_secret, secret_of
from export_pipeline.settings import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that serve.")
def gateway(*, host: str, port: int, workers: int) -> None:
    r"""Serve HTTP: our own API, gu1's, SendGrid's and Cometly's; needs the extra `gateway`.

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
        from export_pipeline.gateway.server import serve
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing; {extra_hint('gateway')}") from None
    serve(settings, host=host, port=port, workers=workers)


@click.group()
def api_key() -> None:
    """Keys for the HTTP gateway; each belongs to one organization."""


@api_key.command()
@click.option("--organization", required=True, help="Whose rows the key may export.")
@click.option("--scope", "scopes", multiple=True, required=True, help="Such as entities:export; may be repeated.")
@click.option("--name", help="What it is for, to know it again.")
@click.option("--member", help="Whom it acts for: what requested_by will hold, whose permissions count.")
@click.option(
    "--requests-per-hour", type=click.IntRange(min=1), help="Ceiling of this key alone; gu1's sandbox has 100."
)
def create(
    *, organization: str, scopes: tuple[str, ...], name: str | None, member: str | None, requests_per_hour: int | None
) -> None:
    r"""Make a key and print it, once, as the last word. Only its hash is stored.

    \b
    Examples:
      export-pipeline api-key create --organization 6f0c --scope entities:export
      export-pipeline api-key create --organization 6f0c --scope contacts:export --name crm | awk '{print $NF}'
    """
    settings = Settings.from_environment()
    known = sorted(permission_for(dataset) for dataset in load_catalog(settings.catalog))
    unknown = [scope for scope in scopes if scope not in known]
    if unknown:
        raise click.ClickException(f"--scope {unknown[0]}: is not one of {', '.join(known)}")
    with open_database(settings).begin() as connection:
        key = create_key(
            connection, organization, scopes, name=name, member_id=member, requests_per_hour=requests_per_hour
        )
    click.echo(f"Key {key.id}; it is shown only now: {key.secret}")


@api_key.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    r"""End a key at once.

    \b
    Example:
      export-pipeline api-key revoke 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    with open_database(Settings.from_environment()).begin() as connection:
        revoked = revoke_key(connection, key_id)
    if not revoked:
        raise click.ClickException(f"no valid key has the id {key_id}")
    click.echo("Revoked.")


@api_key.command(name="list")
@click.option("--organization", required=True, help="Whose keys.")
def list_(*, organization: str) -> None:
    r"""Show an organization's keys: id, whether it is valid, scopes, name.

    \b
    Example:
      export-pipeline api-key list --organization 6f0c
    """
    with open_database(Settings.from_environment()).connect() as connection:
        for key_id, name, scopes, valid in list_keys(connection, organization):
            click.echo(f"{key_id}  {'valid' if valid else 'revoked'}  {','.join(scopes)}  {name or ''}".rstrip())


@click.command()
@click.option("--organization", required=True, help="Whose webhooks are signed with it.")
@click.option("--renew", is_flag=True, help="Make another; the old one signs nothing more.")
def webhook_secret(*, organization: str, renew: bool) -> None:
    r"""Print the secret that an organization's webhooks are signed with, as the last word.

    \b
    Examples:
      export-pipeline webhook-secret --organization 6f0c
      export-pipeline webhook-secret --organization 6f0c --renew
    """
    with open_database(Settings.from_environment()).begin() as connection:
        if renew:
            renew_secret(connection, organization)
        click.echo(secret_of(connection, organization))
