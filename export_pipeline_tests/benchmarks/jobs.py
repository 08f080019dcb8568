"""What a measured process is told and what it tells: the models between the benchmark and its children."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

OWN = "own"


class Job(BaseModel):
    """One export for a Python process to do."""

    model_config = ConfigDict(frozen=True)

    source_url: str
    table: str
    statement: str
    unordered: str
    declaration: str
    """The dataset in the catalog's YAML."""
    organization_id: str
    format: str
    directory: Path
    """Where everything goes that the process writes."""
    max_file_size_mb: int = 5000
    store_url: str = ""
    s3_endpoint_url: str = ""
    requests: int = 1
    """More than one: each asks for ``rows_a_request`` rows of its own."""
    rows_a_request: int = 0

    @property
    def output(self) -> Path:
        """The file that a peer writes."""
        return self.directory / f"peer.{self.format}"

    @property
    def own(self) -> Path:
        """Where our path keeps what it does not deliver."""
        return self.directory / OWN


class Told(BaseModel):
    """What the process measured of itself, from when its imports were done."""

    model_config = ConfigDict(frozen=True)

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    parts: dict[str, float] = {}


def read_job() -> Job:
    """The job, from standard input."""
    return Job.model_validate_json(sys.stdin.buffer.read())


def do(work: Callable[[], dict[str, float] | None]) -> None:
    """Do the work, and tell what it took.

    Imports come before: a warm run launcher has made them before any request comes, and a peer's
    process would be as warm.
    """
    began, cpu = time.perf_counter(), _cpu()
    parts = work() or {}
    told = Told(
        wall_seconds=time.perf_counter() - began,
        cpu_seconds=_cpu() - cpu,
        peak_rss_bytes=_peak_rss(),
        parts=parts,
    )
    sys.stdout.write(told.model_dump_json() + "\n")


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_rss() -> int:
    # Not ru_maxrss: a process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
