"""Who runs: our path and its peers, each as a command that writes one export into a directory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from export_pipeline.demo.home import BUCKET
from export_pipeline.stages.manifest import MANIFEST_NAME
from export_pipeline_tests.benchmarks.data import Backend, Databases
from export_pipeline_tests.benchmarks.jobs import OWN, Job
from export_pipeline_tests.benchmarks.tables import ORGANIZATION, BenchTable


@dataclass(frozen=True)
class LocalS3:
    """The S3 server of this benchmark."""

    endpoint: str
    directory: Path
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Arena:
    """Where contestants meet: the databases, the S3 server, a directory for each run."""

    databases: Databases
    s3: LocalS3
    directory: Path


@dataclass(frozen=True)
class Command:
    """A process to run, and the directories in which everything that it delivers will lie."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    delivers_to: Sequence[Path]
    job: Job | None = None
    """For a Python process, which tells what it measured of itself."""

    def delivered(self) -> list[Path]:
        """The finished files, in the order of their names."""
        found = (path for root in self.delivers_to for path in sorted(root.rglob("*")) if path.is_file())
        return [path for path in found if path.name != MANIFEST_NAME and OWN not in path.parts]


Build = Callable[[Arena, Path], Command]


@dataclass(frozen=True)
class Contestant:
    """Somebody who exports a table; ``rows`` and ``columns`` is what must be in the files."""

    name: str
    table: BenchTable
    backend: Backend
    format: str
    build: Build
    rows: int
    requests: int = 1
    slow: bool = False
    """Takes minutes where others take seconds: runs in the first round alone."""

    @property
    def columns(self) -> int:
        """Columns of every file."""
        return len(self.table.columns)


def ours(
    table: BenchTable,
    file_format: str,
    *,
    name: str = "export-pipeline",
    backend: Backend = "postgresql",
    max_file_size_mb: int = 5000,
    requests: int = 1,
    s3: bool = False,
) -> Contestant:
    """Our path. More than one request: each exports an equal share of the rows."""
    share = table.rows // requests if requests > 1 else 0

    def build(arena: Arena, directory: Path) -> Command:
        job = _job(arena, table, backend, file_format, directory).model_copy(
            update={
                "max_file_size_mb": max_file_size_mb,
                "requests": requests,
                "rows_a_request": share,
                "store_url": f"s3://{BUCKET}/{directory.name}" if s3 else "",
                "s3_endpoint_url": arena.s3.endpoint if s3 else "",
            }
        )
        delivers_to = arena.s3.directory / BUCKET / directory.name if s3 else directory
        module = [sys.executable, "-m", "export_pipeline_tests.benchmarks.ours"]
        return Command(module, arena.s3.environment if s3 else {}, [delivers_to], job)

    return Contestant(name, table, backend, file_format, build, share * requests or table.rows, requests)


def peer(
    name: str, table: BenchTable, file_format: str, *, backend: Backend = "postgresql", slow: bool = False
) -> Contestant:
    """A peer of ``peers.PEERS``."""

    def build(arena: Arena, directory: Path) -> Command:
        module = [sys.executable, "-m", "export_pipeline_tests.benchmarks.peers", name]
        return Command(module, {}, [directory], _job(arena, table, backend, file_format, directory))

    return Contestant(name, table, backend, file_format, build, table.rows, slow=slow)


def psql_copy(table: BenchTable) -> Contestant:
    r"""``psql \copy … csv``, the client that comes with the database."""

    def build(arena: Arena, directory: Path) -> Command:
        copy = rf"\copy ({table.statement}) to '{directory / 'peer.csv'}' with (format csv, header)"
        return Command([*_psql(arena), copy], _connection(arena), [directory])

    return Contestant(r"psql \copy", table, "postgresql", "csv", build, table.rows)


def psql_gzip(table: BenchTable) -> Contestant:
    r"""``psql`` and ``row_to_json``, piped to ``gzip -1``.

    By ``\copy`` with characters that JSON cannot hold as quote and delimiter, so that lines come as
    they are and are streamed: a plain query would be held in memory, and text COPY doubles backslashes.
    """

    def build(arena: Arena, directory: Path) -> Command:
        rows = f"select row_to_json(t) from ({table.statement}) t"
        copy = rf"\copy ({rows}) to stdout with (format csv, quote e'\x01', delimiter e'\x02')"
        piped = 'output=$1; shift; "$@" | gzip -1 > "$output"'
        output = str(directory / "peer.ndjson.gz")
        shell = ["bash", "-o", "pipefail", "-c", piped, "bash", output]
        return Command([*shell, *_psql(arena), copy], _connection(arena), [directory])

    return Contestant("psql | gzip -1", table, "postgresql", "ndjson.gz", build, table.rows)


def _psql(arena: Arena) -> list[str]:
    return [str(arena.databases.server.psql), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c"]


def _connection(arena: Arena) -> dict[str, str]:
    url = sa.make_url(arena.databases.postgresql)
    return {
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGUSER": str(url.username),
        "PGPASSWORD": str(url.password),
        "PGDATABASE": str(url.database),
    }


def _job(arena: Arena, table: BenchTable, backend: Backend, file_format: str, directory: Path) -> Job:
    return Job(
        source_url=arena.databases.url(backend),
        table=table.name,
        statement=table.statement,
        unordered=table.unordered,
        declaration=table.declaration,
        organization_id=ORGANIZATION,
        format=file_format,
        directory=directory,
    )
