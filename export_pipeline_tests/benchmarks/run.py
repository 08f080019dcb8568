"""The benchmark itself: contestants in turn, A B A B, each in a fresh process and directory, each checked once."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from export_pipeline.demo.home import BUCKET
from export_pipeline.demo.s3_server import serve_s3
from export_pipeline_tests.benchmarks.check import contents
from export_pipeline_tests.benchmarks.compare import Comparison, Median, compare, median_of
from export_pipeline_tests.benchmarks.contestants import Arena, Command, Contestant, LocalS3
from export_pipeline_tests.benchmarks.data import serve_databases
from export_pipeline_tests.benchmarks.launcher import LAUNCHER, LauncherSizes, run_launchers
from export_pipeline_tests.benchmarks.measure import BenchFailure, Sample, measure
from export_pipeline_tests.benchmarks.works import WORKS, Work

Progress = Callable[[str], None]
Outcome = tuple[list[Median], list[Comparison]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rows of the largest table, rounds, and what the launchers are given."""

    rows: int = 2_000_000
    rounds: int = 3
    launcher: LauncherSizes = field(default_factory=LauncherSizes)


QUICK = Sizes(20_000, 1, LauncherSizes(latencies=2, queued=8))
"""A smoke run: says that everything works, and nothing of how fast."""


def run(names: Sequence[str], sizes: Sizes, parent: Path | None, progress: Progress) -> Outcome:
    """Run works by name; what a contestant fails at is in its median, and the others go on.

    Args:
        names: of ``works.WORKS``, or ``launcher``.
        sizes: how much.
        parent: where the databases and files go for as long as it takes; None: the system's place for such.
        progress: told what is being done.
    """
    with tempfile.TemporaryDirectory(prefix="export-pipeline-bench-", dir=parent) as name:
        directory = Path(name)
        outcomes: list[Outcome] = []
        works = [WORKS[one](sizes.rows) for one in names if one != LAUNCHER]
        if works:
            with _arena(directory, progress) as arena:
                outcomes += [run_work(arena, work, sizes.rounds, progress) for work in works]
        if LAUNCHER in names:  # after the servers of the others have ended
            outcomes.append(run_launchers(directory, sizes.launcher, sizes.rounds, progress))
    return [one for medians, _ in outcomes for one in medians], [one for _, found in outcomes for one in found]


def run_work(arena: Arena, work: Work, rounds: int, progress: Progress) -> Outcome:
    """Run a work's contestants in turn, round after round."""
    for contestant in work.contestants:
        arena.databases.load(contestant.backend, contestant.table)
    samples: dict[str, list[Sample]] = defaultdict(list)
    failures: dict[str, str] = {}
    for number in range(rounds):
        for contestant in work.contestants:
            name = contestant.name
            if name in failures or (contestant.slow and number):
                continue
            progress(f"{work.title}, round {number + 1} of {rounds}: {name}")
            try:
                samples[name].append(_sample(arena, contestant, is_checked=number == 0))
            except BenchFailure as failure:
                failures[name] = str(failure)
                progress(f"{name} failed: {failure}")
    medians = {one.name: _median(work, one, samples[one.name], failures.get(one.name)) for one in work.contestants}
    return list(medians.values()), [compare(work.title, pair, medians) for pair in work.pairs]


def _sample(arena: Arena, contestant: Contestant, *, is_checked: bool) -> Sample:
    directory = arena.directory / f"run-{secrets.token_hex(4)}"
    directory.mkdir()
    command = contestant.build(arena, directory)
    server = arena.databases.server.pid if contestant.backend == "postgresql" else None
    try:
        sample = measure(command, server_pid=server)
        if is_checked:
            check(contestant, command)
    finally:
        for delivered in {directory, *command.delivers_to}:
            shutil.rmtree(delivered, ignore_errors=True)
    return sample


def check(contestant: Contestant, command: Command) -> None:
    """See that a contestant delivered every row and column.

    Raises:
        BenchFailure: it did not; its time would be no measure of anything.
    """
    try:
        rows, columns = contents(command.delivered(), contestant.format)
    except (OSError, ValueError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise BenchFailure(f"wrote what cannot be read: {error}") from None
    if rows != contestant.rows:
        raise BenchFailure(f"wrote {rows:,} rows of {contestant.rows:,}; its time is no measure")
    if columns != {contestant.columns}:
        told = ", ".join(map(str, sorted(columns)))
        raise BenchFailure(f"wrote {told} columns of {contestant.columns}; its time is no measure")


def _median(work: Work, contestant: Contestant, samples: Sequence[Sample], failure: str | None) -> Median:
    return median_of(
        samples,
        work=work.title,
        contestant=contestant.name,
        rows=contestant.rows,
        columns=contestant.columns,
        requests=contestant.requests,
        failure=failure,
    )


@contextmanager
def _arena(directory: Path, progress: Progress) -> Iterator[Arena]:
    access_key_id, secret_access_key = f"bench{secrets.token_hex(8)}", secrets.token_hex(20)
    root = directory / "s3"
    (root / BUCKET).mkdir(parents=True)
    environment = {
        "AWS_ACCESS_KEY_ID": access_key_id,
        "AWS_SECRET_ACCESS_KEY": secret_access_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (
        serve_databases(directory, progress) as databases,
        serve_s3(root, access_key_id=access_key_id, secret_access_key=secret_access_key) as endpoint,
    ):
        yield Arena(databases, LocalS3(endpoint, root, environment), directory)
