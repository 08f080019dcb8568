"""The command ``export-pipeline``: arguments and output; the work is done by the other packages.

Modules import heavy libraries only inside the commands that need them, so that ``--help`` is fast.
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


for _command in (demo, db, check, request, status, cancel, retry, queue, health, verify, links, resend, audit):
    cli.add_command(_command)
for _command in (recurring, gateway, api_key, webhook_secret):
    cli.add_command(_command)


def _keep_examples(command: click.Command) -> None:
    """Keep the lines of examples: docstrings are raw, so click's mark is a backslash and a letter in them."""
    command.help = (command.help or "").replace("\\b\n", "\b\n").replace("\\\\\n", "\\\n")
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _keep_examples(one)


_keep_examples(cli)


def main() -> None:
    """Run the command; errors that the user can fix are printed in one line, with exit code 2."""
    try:
        cli()
    except (SettingsError, CatalogError, ExportFailure) as error:
        click.echo(f"export-pipeline: {error}", err=True)
        sys.exit(2)
