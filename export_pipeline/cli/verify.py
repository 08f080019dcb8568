"""``export-pipeline verify``: the proof that what was delivered is what was promised.

What belongs here: showing. What does not: the proof (delivery.verify).
"""

from __future__ import annotations

import click

from export_pipeline.cli.common import open_database, state_of
from export_pipeline.delivery.store import open_store
from export_pipeline.delivery.verify import verify as verify_files
from export_pipeline.requests.enums import RequestStatus
from export_pipeline.settings import Settings


@click.command()
@click.argument("uid")
def verify(uid: str) -> None:
    r"""Read an export's delivered files back and hold rows, bytes and SHA-256 against its manifest.

    \b
    Example:
      export-pipeline verify 3f0e8c1e-5d0b-4b0e-9c1e-2b1f6f1c9a10
    """
    settings = Settings.from_environment()
    state = state_of(open_database(settings), uid)
    if state.status is not RequestStatus.COMPLETED or state.manifest_key is None:
        raise click.ClickException(f"the request is {state.status}: it has no files to verify")
    report = verify_files(open_store(settings), state.manifest_key)
    problems = list(report.problems)
    if (report.rows, report.bytes, report.files) != (state.row_count, state.byte_count, state.file_count):
        problems.append("export_requests: row_count, byte_count or file_count is not what the files hold")
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise click.ClickException(f"{len(problems)} problems in {report.files} files")
    click.echo(f"{report.files} files, {report.rows} rows, {report.bytes} bytes: as the manifest says.")
