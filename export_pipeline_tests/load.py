"""Many requests through a real installation: how many a minute it completes, and how long each of them waits.

    python -m export_pipeline_tests.load --requests 2000 --plot load.svg
    python -m export_pipeline_tests.load --requests 500 --workers 2          # steps on Celery workers (needs root)
    python -m export_pipeline_tests.load --requests 600 --per-second 0.4     # as they come, not all at once

The installation is that of ``deploy/``: daemon and code server, PostgreSQL for the requests, the source and Dagster,
S3, SMTP; everything on this machine, so the numbers are those of one machine that does all of it. A request exports the
rows of one of several organizations as CSV. Rows and mails are counted: one that is missing fails the command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import psycopg

from export_pipeline_tests.cluster import WORKERS, Cluster, Size, open_cluster
from export_pipeline_tests.servers.postgres import serve_postgres
from export_pipeline_tests.servers.s3 import s3_server_process

ORGANIZATIONS = 10
_RECIPIENT = "ana@example.com"
_INSERT = """
INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) VALUES (%s, 'wide', 'csv', %s)
"""
_ENDED = "SELECT count(*) FROM export_requests WHERE status IN ('completed', 'failed', 'canceled')"


@dataclass(frozen=True)
class Export:
    """When a request was made, begun and completed, in seconds since the first was made."""

    created: float
    started: float
    completed: float

    @property
    def waited(self) -> float:
        return self.started - self.created


def drive(cluster: Cluster, requests: int, per_second: float, deadline_seconds: float) -> list[Export]:
    """Make the requests, all at once or so many a second, and wait until the last has ended.

    Raises:
        RuntimeError: one failed, is short of rows, or did not end in time.
    """
    began = time.monotonic()
    with psycopg.connect(cluster.database_url, autocommit=True) as connection:
        for number in range(requests):
            if per_second:
                time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            connection.execute(_INSERT, [f"org-{number % ORGANIZATIONS}", json.dumps([_RECIPIENT])])
        while (ended := _count(connection, _ENDED)) < requests:
            if time.monotonic() > began + deadline_seconds:
                raise RuntimeError(f"{ended} of {requests} ended in {deadline_seconds:.0f} s; {cluster.logs()}")
            time.sleep(0.5)
        rows = _count(connection, "SELECT count(*) / %s FROM wide", ORGANIZATIONS)
        short = "SELECT count(*) FROM export_requests WHERE status <> 'completed' OR row_count <> %s"
        if lost := _count(connection, short, rows):
            raise RuntimeError(f"{lost} of {requests} did not complete with all rows")
        times = connection.execute("SELECT created_at, started_at, completed_at FROM export_requests ORDER BY id")
        return _since_the_first(times.fetchall())


def _count(connection: psycopg.Connection, statement: str, *values: object) -> int:
    found = connection.execute(statement.encode(), values).fetchone()
    assert found is not None
    return int(found[0])


def _since_the_first(times: list[tuple[datetime, ...]]) -> list[Export]:
    first = min(created for created, *_ in times)
    return [Export(*((one - first).total_seconds() for one in row)) for row in times]


def check_mails(cluster: Cluster, requests: int) -> None:
    """One mail a request: they follow the files.

    Raises:
        RuntimeError: there are fewer or more.
    """
    deadline = time.monotonic() + 120
    while len(cluster.mails(_RECIPIENT)) < requests and time.monotonic() < deadline:
        time.sleep(0.5)
    if (sent := len(cluster.mails(_RECIPIENT))) != requests:
        raise RuntimeError(f"{sent} mails for {requests} requests")


def report(exports: list[Export], foreign_cpu: float) -> str:
    """The numbers, as lines of Markdown."""
    span = max(one.completed for one in exports)
    in_order = sorted(one.completed for one in exports)
    # Without the first and the last tenth: the start, and the end when slots are left empty.
    first, last = in_order[len(in_order) // 10], in_order[-1 - len(in_order) // 10]
    steady = (len(in_order) - 2 * (len(in_order) // 10)) / (last - first) * 60 if last > first else 0.0
    lines = [
        "| what | value |",
        "|---|--:|",
        f"| exports completed | {len(exports)} |",
        f"| seconds, first request to last file | {span:.0f} |",
        f"| exports a minute, over all | {len(exports) / span * 60:.0f} |",
        f"| exports a minute, between the first and the last tenth | {steady:.0f} |",
        f"| CPU of other processes meanwhile | {foreign_cpu:.0%} |",
    ]
    for name, values in (
        ("waited for its run", [one.waited for one in exports]),
        ("begun to completed", [one.completed - one.started for one in exports]),
    ):
        cuts = statistics.quantiles(values, n=100)
        lines.append(f"| {name}: median, 95 %, longest | {cuts[49]:.1f}, {cuts[94]:.1f}, {max(values):.1f} s |")
    return "\n".join(lines)


def plot(exports: list[Export], file: Path) -> None:
    """Throughput and waiting time as a picture, of the kind that the file's name ends in."""
    from matplotlib.figure import Figure  # without pyplot: no display is asked for

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in ("created", "started", "completed"):
        above.step(sorted(getattr(one, name) for one in exports), range(1, len(exports) + 1), where="post", label=name)
    above.set_ylabel("requests")
    above.legend()
    below.plot([one.started for one in exports], [one.waited for one in exports], ".", markersize=3)
    below.set_xlabel("seconds since the first request")
    below.set_ylabel("seconds waited for its run")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(file)


class ForeignCpu:
    """The share of the machine's CPU that others took while this context was open."""

    def __init__(self, machines: Path) -> None:
        self._machines = str(machines)
        self.share = 0.0

    def __enter__(self) -> ForeignCpu:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        machine, ours, wall = (after - before for after, before in zip(self._read(), self._before, strict=True))
        self.share = max(0.0, machine - ours) / (wall * (os.cpu_count() or 1))

    def _read(self) -> tuple[float, float, float]:
        """Busy seconds of the machine; of the installation, its servers and what they ended; wall seconds."""
        times = psutil.cpu_times()
        me = psutil.Process()
        servers = {me, *me.children(recursive=True)}
        ours = 0.0
        for process in psutil.process_iter():
            try:
                if process in servers or self._is_installed(process):
                    spent = process.cpu_times()
                    ours += spent.user + spent.system + spent.children_user + spent.children_system
            except psutil.Error:
                continue
        return times.user + times.nice + times.system + times.softirq, ours, time.monotonic()

    def _is_installed(self, process: psutil.Process) -> bool:
        """Runs are forked by a server that outlives the daemon: they are nobody's descendants here."""
        return process.environ().get("DAGSTER_HOME", "").startswith(self._machines)


def main() -> None:
    """Drive, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--per-second", type=float, default=0.0, help="requests made a second; 0 = all at once")
    parser.add_argument("--rows", type=int, default=1000, help="of each organization; a row has about 1 kB")
    parser.add_argument("--concurrent-runs", type=int, default=4, help="max_concurrent_runs of dagster.yaml")
    parser.add_argument("--workers", type=int, choices=range(len(WORKERS) + 1), default=0, help="Celery workers")
    parser.add_argument("--deadline", type=float, default=6 * 3600.0, help="seconds until it is given up")
    parser.add_argument("--plot", type=Path, help="write throughput and waiting times to this .svg or .png")
    arguments = parser.parse_args()
    if arguments.requests < 2:
        parser.error("--requests: give at least 2")
    # So that being told to end ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    size = Size(
        workers=WORKERS[: arguments.workers],
        concurrent_runs=arguments.concurrent_runs,
        organizations=tuple(f"org-{number}" for number in range(ORGANIZATIONS)),
        rows=arguments.rows,
    )
    with (
        tempfile.TemporaryDirectory(prefix="export-pipeline-load-") as name,
        serve_postgres() as postgres,
        s3_server_process() as s3,
        open_cluster(postgres, s3, Path(name), size, EXPORT_HEARTBEAT_SECONDS="2") as cluster,
    ):
        with ForeignCpu(Path(name)) as foreign:
            exports = drive(cluster, arguments.requests, arguments.per_second, arguments.deadline)
        check_mails(cluster, arguments.requests)
        events = measure_events(cluster, arguments.requests)
    print(f"python -m export_pipeline_tests.load {' '.join(sys.argv[1:])}   ({os.cpu_count()} cores)\n")
    print(report(exports, foreign.share))
    print(events)
    if arguments.plot:
        plot(exports, arguments.plot)


def measure_events(cluster: Cluster, requests: int) -> str:
    """What the requests left in Dagster's own database, as a line of the table."""
    url = cluster.environment["DAGSTER_PG_URL"].replace("+psycopg2", "")
    with psycopg.connect(url) as connection:
        events = _count(connection, "SELECT count(*) FROM event_logs WHERE run_id <> ''")
        size = _count(connection, "SELECT pg_database_size(current_database())")
    return f"| Dagster's events an export; its database | {events / requests:.0f}; {size / 1e6:.0f} MB |"


if __name__ == "__main__":
    main()
