"""The command ``export-pipeline``.

What belongs here: arguments, and words for people. What does not: anything the pipeline itself does.
"""

from __future__ import annotations

import sys

import click

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.cli.admin import api_key, audit, db, demo, gateway, webhook_secret
from export_pipeline.cli.files import links, resend, verify
from export_pipeline.cli.health import check, health
from export_pipeline.cli.recurring import recurring
from export_pipeline.cli.requests import cancel, queue, request, retry, status
from export_pipeline.failures import ExportFailure
from export_pipeline.settings import SettingsError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="export-pipeline")
def cli() -> None:
    """A row in export_requests becomes files on S3 and a mail to every recipient.

    Settings come from the environment (EXPORT_DATABASE_URL and others, see docs/settings.md).
    """


cli.add_command(demo)
cli.add_command(db)
cli.add_command(check)
cli.add_command(request)
cli.add_command(status)
cli.add_command(cancel)
cli.add_command(retry)
cli.add_command(queue)
cli.add_command(health)
cli.add_command(verify)
cli.add_command(links)
cli.add_command(resend)
cli.add_command(audit)
cli.add_command(recurring)
cli.add_command(gateway)
cli.add_command(api_key, "api-key")
cli.add_command(webhook_secret, "webhook-secret")


def _keep_examples(command: click.Command) -> None:
    """Let examples keep their lines: docstrings are raw, so click's mark for it stands in them as backslash and b."""
    command.help = (command.help or "").replace("\\b\n", "\b\n").replace("\\\\\n", "\\\n")
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _keep_examples(one)


_keep_examples(cli)


def main() -> None:
    """Run the command; what the user can mend is said in one line, with exit code 2."""
    try:
        cli()
    except (SettingsError, CatalogError, ExportFailure) as error:
        click.echo(f"export-pipeline: {error}", err=True)
        sys.exit(2)
