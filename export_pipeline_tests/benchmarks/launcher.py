"""What a small export costs: the real daemon and code server, with the warm run launcher and with Dagster's own."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.home import Home, Processes, free_port
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.benchmarks.compare import Comparison, Goal, Median, Pair, compare, median_of
from export_pipeline_tests.benchmarks.measure import BenchFailure, Sample
from export_pipeline_tests.benchmarks.tables import ORGANIZATION

LAUNCHER = "launcher"
WARM, DEFAULT = "warm launcher", "Dagster's launcher"
CONTACTS, ROWS = 1706, 1000
"""Of all organizations, and of the largest, which asks."""
TIMEOUT_SECONDS = 900.0
_COLUMNS = 29
"""Of the shipped dataset: all are exported."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class LauncherSizes:
    """Exports a round on an idle instance, one after another; and exports queued at once, in the first round."""

    latencies: int = 5
    queued: int = 200


def run_launchers(
    directory: Path, sizes: LauncherSizes, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Median], list[Comparison]]:
    """Measure both launchers in turn, each time on a new installation."""
    latencies: dict[str, list[Sample]] = {WARM: [], DEFAULT: []}
    queues: dict[str, list[Sample]] = {WARM: [], DEFAULT: []}
    failures: dict[str, str] = {}
    for number in range(rounds):
        for name in (WARM, DEFAULT):
            if name in failures:
                continue
            progress(f"launcher, round {number + 1} of {rounds}: {name}")
            try:
                with _installation(directory, is_warm=name == WARM) as one:
                    one.export(ORGANIZATION)  # pays for what is started once
                    latencies[name] += [one.latency(turn) for turn in range(sizes.latencies)]
                    if number == 0:
                        queues[name].append(one.queue(sizes.queued))
                    one.check_launcher(is_warm=name == WARM)
            except BenchFailure as failure:
                failures[name] = str(failure)
                progress(f"{name} failed: {failure}")
    latency = _Work(f"insert to completed, {ROWS:,} rows", ROWS, 1, Goal(wall_ratio=0.6, wall_seconds=3))
    queue = _Work(f"{sizes.queued} exports queued", 0, sizes.queued, Goal(wall_ratio=1 / 3))
    outcomes = [latency.outcome(latencies, failures), queue.outcome(queues, failures)]
    return [one for medians, _ in outcomes for one in medians], [one for _, found in outcomes for one in found]


@dataclass(frozen=True)
class _Work:
    title: str
    rows: int
    requests: int
    goal: Goal

    def outcome(
        self, samples: Mapping[str, Sequence[Sample]], failures: Mapping[str, str]
    ) -> tuple[list[Median], list[Comparison]]:
        medians = {
            name: median_of(
                samples[name],
                work=self.title,
                contestant=name,
                rows=self.rows,
                columns=_COLUMNS,
                requests=self.requests,
                failure=failures.get(name),
            )
            for name in (WARM, DEFAULT)
        }
        return list(medians.values()), [compare(self.title, Pair(WARM, DEFAULT, self.goal), medians)]


class _Installation:
    def __init__(self, home: Home) -> None:
        self._home = home

    def export(self, organization: str) -> float:
        """One request; seconds until its row says ``completed``."""
        began = time.perf_counter()
        request = self._insert(organization)
        while time.perf_counter() - began < TIMEOUT_SECONDS:
            status, rows = self._query("SELECT status, row_count FROM export_requests WHERE id = ?", request)[0]
            if status == "completed":
                seconds = time.perf_counter() - began
                if rows != ROWS:
                    raise BenchFailure(f"exported {rows:,} rows of {ROWS:,}; its time is no measure")
                return seconds
            if status in ("failed", "canceled"):
                raise BenchFailure(f"an export of the launchers' work {status}; see its row's message")
            time.sleep(_POLL_SECONDS)
        raise BenchFailure(f"an export of the launchers' work did not end in {TIMEOUT_SECONDS:.0f} s")

    def latency(self, turn: int) -> Sample:
        """One export on the idle instance, at another phase of the sensor's ticks each time."""
        time.sleep(1.3 + turn * 0.37 % 1.7)
        cpu = self._cpu()
        seconds = self.export(ORGANIZATION)
        return Sample(wall_seconds=seconds, cpu_seconds=self._cpu() - cpu)

    def queue(self, exports: int) -> Sample:
        """Many exports at once, of all organizations in turn."""
        time.sleep(3)
        cpu, began = self._cpu(), time.perf_counter()
        first, *_ = [self._insert(ORGANIZATIONS[n % len(ORGANIZATIONS)].id) for n in range(exports)]
        ended = "SELECT count(*) FROM export_requests WHERE id >= ? AND status IN ('completed', 'failed', 'canceled')"
        while self._query(ended, first)[0][0] < exports:
            if time.perf_counter() - began > TIMEOUT_SECONDS:
                raise BenchFailure(f"{exports} queued exports did not end in {TIMEOUT_SECONDS:.0f} s")
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        not_completed = self._query("SELECT count(*) FROM export_requests WHERE status <> 'completed'")[0][0]
        if not_completed:
            raise BenchFailure(f"{not_completed} of {exports} queued exports did not complete")
        return Sample(wall_seconds=seconds, cpu_seconds=self._cpu() - cpu)

    def check_launcher(self, *, is_warm: bool) -> None:
        """See that the runs were launched as is said, and none fell back."""
        if is_warm and "Not launched by the warm" in (self._home.logs / "daemon.log").read_text():
            raise BenchFailure("the warm run launcher left a run to Dagster's")

    def _insert(self, organization: str) -> int:
        statement = (
            "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) "
            "VALUES (?, 'contacts', 'csv', '[\"ana@example.com\"]') RETURNING id"
        )
        return int(self._query(statement, organization)[0][0])

    def _query(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._home.database, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def _cpu(self) -> float:
        """CPU seconds so far of every process of the installation, those that ended too."""
        total = 0.0
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAGSTER_HOME") == str(self._home.dagster_home):
                    times = process.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
            except psutil.Error:
                continue
        return total


@contextmanager
def _installation(directory: Path, *, is_warm: bool) -> Iterator[_Installation]:
    """A daemon and a code server on data of their own, until the block ends."""
    home = Home(directory / f"launcher-{secrets.token_hex(4)}")
    home.create()
    if not is_warm:
        file = home.dagster_home / "dagster.yaml"
        configuration = yaml.safe_load(file.read_text())
        del configuration["run_launcher"]
        file.write_text(yaml.safe_dump(configuration))
    engine = create_engine(home.database_url)
    upgrade(engine)
    engine.dispose()
    load_demo_data(home.database_url, contacts=CONTACTS, entities=10)
    port = free_port()
    home.write_workspace(port)
    environment = home.environment("") | {"EXPORT_STORE_URL": (home.directory / "store").as_uri()}
    with Processes(home.logs, environment) as processes:
        processes.code_server(port)
        processes.daemon(home.workspace)
        yield _Installation(home)
