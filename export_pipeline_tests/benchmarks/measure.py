"""Running one command and measuring it: wall, CPU and peak memory of its process tree, the server's CPU apart."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict

from export_pipeline_tests.benchmarks.contestants import Command
from export_pipeline_tests.benchmarks.jobs import Told

TIMEOUT_SECONDS = 3600.0
_SAMPLE_SECONDS = 0.02
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class BenchFailure(Exception):
    """A contestant cannot be measured; says why."""


class Sample(BaseModel):
    """One run of one contestant.

    ``wall_seconds`` and ``cpu_seconds`` (user and system) of a Python process are of its work, without
    its start and imports, which ``process_seconds`` holds; of a command they are of the whole
    process. ``server_cpu_seconds`` is what PostgreSQL spent meanwhile.
    """

    model_config = ConfigDict(frozen=True)

    wall_seconds: float
    cpu_seconds: float | None = None
    process_seconds: float | None = None
    server_cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    bytes: int | None = None
    files: int | None = None
    parts: Mapping[str, float] = {}


def measure(command: Command, *, server_pid: int | None) -> Sample:
    """Run a command to its end.

    Raises:
        BenchFailure: it fails, or takes longer than an hour; holds the line that says why.
    """
    server_before = _server_cpu(server_pid)
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as asked:
        if command.job is not None:
            asked.write(command.job.model_dump_json().encode())
            asked.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            command.arguments, env={**_environment(), **command.environment}, stdin=asked, stdout=told, stderr=errors
        )
        peak, usage = _watch(process, began)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise BenchFailure(f"ended with {process.returncode}: {_reason(errors)}")
        told.seek(0)
        own = Told.model_validate_json(told.read()) if command.job is not None else None
    delivered = command.delivered()
    return Sample(
        wall_seconds=own.wall_seconds if own else seconds,
        cpu_seconds=own.cpu_seconds if own else usage,
        process_seconds=seconds,
        server_cpu_seconds=None if server_before is None else (_server_cpu(server_pid) or 0.0) - server_before,
        peak_rss_bytes=max(peak, own.peak_rss_bytes) if own else peak,
        bytes=sum(path.stat().st_size for path in delivered),
        files=len(delivered),
        parts=own.parts if own else {},
    )


def _environment() -> dict[str, str]:
    """Ours, without the settings of an installation that is none of the benchmark's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EXPORT_")}


def _watch(process: subprocess.Popen[bytes], began: float) -> tuple[int, float]:
    """Wait for the end; the peak memory of the tree (bytes) and its CPU seconds."""
    peaks: dict[int, int] = {}
    handle = os.pidfd_open(process.pid)
    try:
        while not select.select([handle], [], [], _SAMPLE_SECONDS)[0]:
            for pid in _tree(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), _peak_rss(pid))
            if time.perf_counter() - began > TIMEOUT_SECONDS:
                process.kill()
    finally:
        os.close(handle)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return sum(peaks.values()), usage.ru_utime + usage.ru_stime


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in _read(task).split()]
    return found


def _peak_rss(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _server_cpu(pid: int | None) -> float | None:
    """CPU seconds of a server so far: its own, of its children, and of those that ended."""
    if pid is None:
        return None
    _, *children = _tree(pid)
    own, ended = _cpu(pid)
    return own + ended + sum(_cpu(child)[0] for child in children)


def _cpu(pid: int) -> tuple[float, float]:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if not fields:
        return 0.0, 0.0
    user, system, ended_user, ended_system = (int(field) * _TICK for field in fields[11:15])
    return user + system, ended_user + ended_system


def _read(path: Path) -> str:
    """What is there; nothing of a process that has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _reason(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    # After its error psql repeats the statement.
    return next((line for line in lines if "ERROR:" in line), lines[-1])[:300] if lines else "no message"
