"""What Dagster keeps for ever unless told otherwise: runs, their events and logs, and what steps handed on.

What belongs here: which of it is past its time, and forgetting it. What does not: requests and their files
(delivery.retention), ticks (``retention`` of ``dagster.yaml``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from export_pipeline.delivery.retention import KEEP_LEFTOVERS
from export_pipeline.engine.staging import Staging
from export_pipeline.orchestration.executors import OUTPUTS
from export_pipeline.requests.model import is_canonical_uuid

Log = Callable[[str], None]

RUNS_A_TURN = 1000
"""The janitor comes every hour; its own run must not take one."""
_STORED = f"{OUTPUTS}/storage"
"""Dagster's S3 IO manager keeps ``storage/<run>/<step>/<output>`` below its prefix."""


@dataclass(frozen=True)
class Ours:
    """Which of Dagster's runs are this project's: other code locations share its storage."""

    jobs: tuple[str, ...]
    label: str | None = None
    """Of repository and code location, as Dagster tags runs with it; None in a process without a location."""

    @classmethod
    def beside(cls, run: dg.DagsterRun, jobs: tuple[str, ...]) -> Ours:
        """Runs of these jobs, in the code location of ``run``."""
        origin = run.remote_job_origin
        return cls(jobs, None if origin is None else origin.repository_origin.get_label())


def forget(
    instance: dg.DagsterInstance, staging: Staging, run_retention_days: float, ours: Ours, log: Log = lambda _: None
) -> dict[str, int]:
    """Forget what is past its time.

    Args:
        instance: Dagster's.
        staging: below which step outputs are, if it is on S3.
        run_retention_days: how long runs are kept after their end; 0 = for ever.
        ours: whose runs.
        log: is told of runs that could not be deleted.

    Returns:
        How many runs are forgotten, of how many that failed, and of how many the step outputs are forgotten.
    """
    forgotten, failed = 0, 0
    if run_retention_days:
        forgotten, failed = _forget_runs(instance, timedelta(days=run_retention_days), ours, log)
    return {
        "forgotten_runs": forgotten,
        "not_forgotten_runs": failed,
        "forgotten_outputs": _forget_outputs(instance, staging),
    }


def _forget_runs(instance: dg.DagsterInstance, keep: timedelta, ours: Ours, log: Log) -> tuple[int, int]:
    """The run key goes with the run. None is asked for twice: every attempt has its own, and the row says which."""
    records: list[dg.RunRecord] = []
    for job in ours.jobs:
        ended = dg.RunsFilter(
            job_name=job,
            statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
            updated_before=datetime.now(UTC) - keep,
            tags={} if ours.label is None else {REPOSITORY_LABEL_TAG: ours.label},
        )
        records += instance.get_run_records(ended, limit=RUNS_A_TURN - len(records), ascending=True)
        if len(records) >= RUNS_A_TURN:
            break
    failed = sum(not _is_forgotten(instance, record.dagster_run.run_id, log) for record in records)
    return len(records) - failed, failed


def _is_forgotten(instance: dg.DagsterInstance, run_id: str, log: Log) -> bool:
    try:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _forget_local_outputs(instance, run_id)
        instance.delete_run(run_id)
    except Exception as error:  # noqa: BLE001 - one that cannot be deleted must not keep the others; the next turn tries
        log(f"Run {run_id} is past its time and could not be deleted ({type(error).__qualname__}).")
        return False
    return True


def _forget_local_outputs(instance: dg.DagsterInstance, run_id: str) -> None:
    with suppress(OSError):  # a directory that stays takes a few kilobytes, and the run is forgotten all the same
        shutil.rmtree(Path(instance.storage_directory()) / run_id)


def _forget_outputs(instance: dg.DagsterInstance, staging: Staging) -> int:
    """They are kept as long as staged rows are: without those no run can be re-executed from failure."""
    count = 0
    for name in filter(is_canonical_uuid, staging.trees(_STORED)):
        record = instance.get_run_record_by_id(name)
        if record is None or _ended_long_ago(record):
            staging.delete_tree(f"{_STORED}/{name}")
            count += 1
    return count


def _ended_long_ago(record: dg.RunRecord) -> bool:
    ended = record.end_time if record.dagster_run.is_finished else None
    return ended is not None and datetime.fromtimestamp(ended, UTC) < datetime.now(UTC) - KEEP_LEFTOVERS
