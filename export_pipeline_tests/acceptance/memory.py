"""How much memory an export takes, by format and rows: ``python -m export_pipeline_tests.acceptance.memory``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from export_pipeline.stages.plan import ExportPlan

FORMATS = ("csv", "ndjson", "json", "xlsx", "parquet")
_MB = 1_000_000


@dataclass(frozen=True)
class Measured:
    """One export: peak resident megabytes after the imports, after reading and at the end; seconds of both halves."""

    rows: int
    bytes: int
    idle_mb: float
    staged_mb: float
    peak_mb: float
    stage_seconds: float
    serialize_seconds: float


def measure(source_url: str, staging: Path, file_format: str, rows: int, *, max_file_size_mb: int = 5000) -> Measured:
    """Export the first ``rows`` contacts of the one organization, in a fresh process."""
    arguments = ["--child", source_url, str(staging), file_format, str(rows), str(max_file_size_mb)]
    done = subprocess.run(
        [sys.executable, "-m", "export_pipeline_tests.acceptance.memory", *arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Measured(**json.loads(done.stdout))


def _export(source_url: str, directory: str, file_format: str, rows: int, max_file_size_mb: int) -> Measured:
    from export_pipeline.catalog.loader import load_catalog
    from export_pipeline.source.readers import postgresql, sqlite
    from export_pipeline.stages.filter_entities import Source, stage_rows
    from export_pipeline.stages.plan import selection
    from export_pipeline.stages.serialize import serialize_shard
    from export_pipeline.storage.staging import Staging

    assert postgresql, sqlite
    catalog, staging = load_catalog(), Staging(f"file://{directory}")
    plan = _plan(catalog["contacts"], file_format, rows, max_file_size_mb)
    idle, begun = _peak_mb(), time.perf_counter()
    staged = stage_rows(
        Source(source_url, 0),
        selection(plan, catalog),
        staging,
        plan.prefix,
        max_bytes=plan.max_bytes,
        shard_rows=2_000_000,
        snapshot_taken=lambda _rows, _at: None,
        progress=lambda _rows: None,
    )
    staged_mb, staged_at = _peak_mb(), time.perf_counter()
    size = 0
    for shard in staged.shards:
        output = serialize_shard(
            plan,
            catalog["contacts"],
            staging,
            shard=shard.ordinal,
            staged_key=shard.key,
            rows=shard.rows,
            progress=lambda _rows: None,
        )
        size += output.bytes
    ended = time.perf_counter()
    staging.delete_tree(plan.prefix)
    return Measured(staged.rows, size, idle, staged_mb, _peak_mb(), staged_at - begun, ended - staged_at)


def _plan(dataset: object, file_format: str, rows: int, max_file_size_mb: int) -> ExportPlan:
    from export_pipeline.catalog.model import Dataset
    from export_pipeline.catalog.types import OutputColumn
    from export_pipeline.requests.validation.files import Options
    from export_pipeline.stages.plan import ExportPlan
    from export_pipeline_tests.acceptance.source import ORGANIZATION

    assert isinstance(dataset, Dataset)
    return ExportPlan.model_validate(
        {
            "request_id": 1,
            "uid": str(uuid4()),
            "attempt": 1,
            "organization_id": ORGANIZATION,
            "organization_time_zone": "UTC",
            "dataset": dataset.name,
            "dataset_version": dataset.version,
            "format": file_format,
            "compression": "gzip" if file_format == "ndjson" else "none",
            "layout": "default",
            "columns": tuple(
                OutputColumn(name=c.name, header=c.name, type=c.type) for c in dataset.columns if c.exported
            ),
            "filters": {"id": {"lte": rows}},
            "list_ids": (),
            "segments": (),
            "custom_fields": {},
            "created_from": None,
            "created_before": None,
            "options": Options(),
            "time_zone": "UTC",
            "name_style": "descriptive",
            "max_bytes": max_file_size_mb * _MB,
            "key_secret": "0" * 32,
        }
    )


def _peak_mb() -> float:
    # Not ru_maxrss: a child inherits that of the process that started it.
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024 / _MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[200_000, 2_000_000])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--max-file-size-mb", type=int, default=5000)
    parser.add_argument("--source-url", help="a database that has them already, or an empty one; default: SQLite")
    parser.add_argument("--postgresql", action="store_true", help="a server of our own instead of SQLite")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        url, directory, file_format, rows, limit = given.child
        print(json.dumps(asdict(_export(url, directory, file_format, int(rows), int(limit)))))  # noqa: T201
        return
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="export-pipeline-memory-")))
        url = given.source_url or _new_source(stack, directory, postgresql=given.postgresql)
        _load(url, max(given.rows))
        _print_table(url, directory / "staging", given)


def _new_source(stack: ExitStack, directory: Path, *, postgresql: bool) -> str:
    if not postgresql:
        return f"sqlite:///{directory}/source.db"
    from export_pipeline_tests.servers.postgres import serve_postgres

    return stack.enter_context(stack.enter_context(serve_postgres()).fresh_database())


def _load(url: str, rows: int) -> None:
    """Load in a process that ends again, so that the machine's memory is the measured one's."""
    code = (
        "import sys, sqlalchemy as sa; from export_pipeline_tests.acceptance.source import load_one_organization as go;"
        "url = sa.make_url(sys.argv[1]);"
        "url = url.set(drivername='postgresql+psycopg') if url.drivername == 'postgresql' else url;"
        "sa.inspect(sa.create_engine(url)).has_table('contacts') or go(sys.argv[1], int(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, url, str(rows)], check=True)


def _print_table(url: str, staging: Path, given: argparse.Namespace) -> None:
    print("format   rows       MB delivered  idle MB  read MB  peak MB  ratio  read s  write s")  # noqa: T201
    for file_format in given.formats:
        smallest = 0.0
        for rows in sorted(given.rows):
            one = measure(url, staging, file_format, rows, max_file_size_mb=given.max_file_size_mb)
            smallest = smallest or one.peak_mb
            line = f"{file_format:8} {one.rows:9,}  {one.bytes / _MB:12.1f}  {one.idle_mb:7.0f}  {one.staged_mb:7.0f}"
            line += f"  {one.peak_mb:7.0f}  {one.peak_mb / smallest:5.2f}"
            print(f"{line}  {one.stage_seconds:6.1f}  {one.serialize_seconds:7.1f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
