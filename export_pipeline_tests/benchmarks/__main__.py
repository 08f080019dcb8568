"""The benchmark: ``python -m export_pipeline_tests.benchmarks``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

WORKS = ("csv", "ndjson", "xlsx", "sqlite", "split", "upload", "shapes", "scale", "scale-up", "launcher")
_ONLY_IF_NAMED = ("scale-up",)
_NOT_QUICK = ("launcher",)
_FILE = click.Path(dir_okay=False, path_type=Path)


def _works(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: not known; use some of {', '.join(WORKS)}")
    return names


@click.command()
@click.option("--rows", type=click.IntRange(20_000), help="Contacts of the largest table.  [default: 2000000]")
@click.option("--rounds", type=click.IntRange(1), help="How often everybody runs, in turn.  [default: 3]")
@click.option(
    "--works", callback=_works, help=f"Some of {', '.join(WORKS)}. Default: all but scale-up (ten times the rows)."
)
@click.option("--quick", is_flag=True, help="A smoke run: 20,000 rows, one round, without the launchers.")
@click.option("--json", "json_file", type=_FILE, help="Write everything to this file.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Write the tables to this file, for docs/benchmarks.md.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the databases and files go while it runs: about 3 kB a row.",
)
def bench(
    *,
    rows: int | None,
    rounds: int | None,
    works: tuple[str, ...] | None,
    quick: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    directory: Path | None,
) -> None:
    r"""Measure our whole path against what people would use instead, on real databases of this machine (Linux).

    Exits with 1 if somebody could not be measured, or delivered fewer rows than it should.

    \b
    Examples:
      python -m export_pipeline_tests.benchmarks --quick
      python -m export_pipeline_tests.benchmarks --rows 200000 --works csv,xlsx
      python -m export_pipeline_tests.benchmarks --rounds 5 --json bench.json --markdown bench.md
    """
    from rich.console import Console

    from export_pipeline_tests.benchmarks.report import Results, as_markdown, print_tables, this_machine, versions
    from export_pipeline_tests.benchmarks.run import QUICK, Sizes, run

    sizes = QUICK if quick else Sizes()
    sizes = Sizes(rows or sizes.rows, rounds or sizes.rounds, sizes.launcher)
    left_out = (*_ONLY_IF_NAMED, *_NOT_QUICK) if quick else _ONLY_IF_NAMED
    names = works or tuple(name for name in WORKS if name not in left_out)
    started_at, machine = datetime.now(UTC), this_machine()
    medians, comparisons = run(names, sizes, directory, lambda words: click.echo(words, err=True))
    results = Results(
        started_at=started_at,
        command=" ".join(["python -m export_pipeline_tests.benchmarks", *sys.argv[1:]]),
        rows=sizes.rows,
        rounds=sizes.rounds,
        machine=machine,
        versions=versions(),
        comparisons=comparisons,
        medians=medians,
    )
    print_tables(results, Console(width=None if sys.stdout.isatty() else 200))
    if json_file is not None:
        json_file.write_text(results.model_dump_json(indent=2) + "\n")
    if markdown_file is not None:
        markdown_file.write_text(as_markdown(results))
    if results.failures:
        sys.exit(1)


if __name__ == "__main__":
    bench()
