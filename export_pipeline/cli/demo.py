"""``export-pipeline demo``.

What belongs here: arguments. What does not: the story (demo.story).
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where the demo lives; what an earlier demo left there is removed.",
)
@click.option("--rows", type=click.IntRange(100), default=100_000, show_default=True, help="How many contacts to make.")
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
