"""Dagster's runs: those of a request, their status, whether one waits for a worker, and deleting old ones.

The one module of ``orchestration/`` with private names of Dagster. A test checks each, so an upgrade fails there first.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dagster as dg
from dagster import DagsterInstance, RunsFilter

# Its markers say when a Celery step is queued and when a worker takes it. Public events do not.
from dagster._core.events import EngineEventData

# Names a code location as the tag below does: other locations may have jobs of the same name.
from dagster._core.remote_origin import RemoteRepositoryOrigin

# The tag by which Dagster marks the runs of a code location.
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from export_pipeline.orchestration import tags
from export_pipeline.orchestration.resources import OUTPUTS
from export_pipeline.requests.models import is_canonical_uuid
from export_pipeline.requests.queue import StaleRequest
from export_pipeline.stages.cleanup import KEEP_LEFTOVERS
from export_pipeline.storage.staging import Staging

RUNS_PER_CALL = 50
"""Requests whose runs are read by one call: few calls, and the answer is still fresh when it is used."""
LONGEST_START_SECONDS = 3600.0
"""A run that takes longer to start counts as dead: pulling an image and buying a machine take less."""
LONGEST_WAIT_SECONDS = 6 * 3600.0
"""A step that no worker began for so long counts as lost: a worker that is killed between taking and beginning a step,
or a queue that loses it, leaves no sign."""
RUNS_PER_JANITOR = 1000
"""The janitor runs every hour; deleting runs must not take one."""
_TERMINATED = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_UNFINISHED = [status for status in dg.DagsterRunStatus if status not in _ENDED]
_STEP_EVENTS = {
    dg.DagsterEventType.ENGINE_EVENT,  # Celery's marker starts when a step is queued and ends when a worker takes it
    dg.DagsterEventType.STEP_WORKER_STARTING,
    dg.DagsterEventType.STEP_WORKER_STARTED,
}
_QUEUE_WAIT = "celery_queue_wait"
_STORED_OUTPUTS = f"{OUTPUTS}/storage"
"""Dagster's S3 IO manager keeps ``storage/<run>/<step>/<output>`` below its prefix."""


@dataclass(frozen=True)
class RunView:
    """What the sensors need to know of a Dagster run."""

    run_id: str
    attempt: int | None
    finished: bool
    canceled: bool
    canceling: bool = False
    waiting: bool = False
    """It has not begun, so it cannot send a heartbeat yet."""
    job_name: str = ""
    ended_at: float = 0.0
    """Unix seconds; 0 while it has not ended."""
    claim_id: str | None = None
    """The claim that it was launched for; None if an older version launched it."""


def is_of(run: RunView, stale: StaleRequest) -> bool:
    """Whether a run was launched for the current claim of the row."""
    if run.claim_id is None or stale.claim_id is None:
        return run.attempt == stale.attempt
    return run.claim_id == stale.claim_id


def runs_of(instance: DagsterInstance, uid: str) -> list[RunView]:
    """All runs of a request, newest first."""
    return runs_of_each(instance, [uid])[uid]


def runs_of_each(instance: DagsterInstance, uids: Collection[str]) -> dict[str, list[RunView]]:
    """All runs of each of these requests, newest first, in one call."""
    values = {uid: tags.tag_value(uid) for uid in uids}
    found: dict[str, list[RunView]] = {value: [] for value in values.values()}
    records: Iterable[dg.RunRecord] = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: list(found)}))
    for record in records:
        found[record.dagster_run.tags[tags.REQUEST_UID]].append(_view(record))
    return {uid: found[value] for uid, value in values.items()}


def _view(record: dg.RunRecord) -> RunView:
    run = record.dagster_run
    return RunView(
        run_id=run.run_id,
        attempt=tags.attempt_of(run.tags),
        finished=run.is_finished,
        canceled=run.status is dg.DagsterRunStatus.CANCELED,
        canceling=run.status is dg.DagsterRunStatus.CANCELING,
        waiting=_has_not_begun(record),
        claim_id=run.tags.get(tags.CLAIM),
        job_name=run.job_name,
        ended_at=record.end_time or 0.0,
    )


def _has_not_begun(record: dg.RunRecord) -> bool:
    status = record.dagster_run.status
    if status is dg.DagsterRunStatus.STARTING:  # run monitoring ends such a run, unless it is switched off
        return time.time() - record.update_timestamp.timestamp() < LONGEST_START_SECONDS
    return status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def terminated_before_they_began(instance: DagsterInstance, claimed: Sequence[StaleRequest]) -> list[StaleRequest]:
    """The claimed requests whose run an operator terminated before it took them."""
    by_claim = {one.claim_id: one for one in claimed if one.claim_id is not None}
    runs = [run for filters in _filters(list(by_claim), tag=tags.CLAIM) for run in instance.get_runs(filters)]
    return [by_claim[claim] for claim in {run.tags[tags.CLAIM] for run in runs}]


def terminated_of(instance: DagsterInstance, run_ids: Sequence[str]) -> set[str]:
    """Which of the runs were terminated."""
    return {run.run_id for filters in _filters(run_ids) for run in instance.get_runs(filters)}


def _filters(ids: Sequence[str], tag: str | None = None) -> Iterable[RunsFilter]:
    """Filters for terminated runs, by the value of a tag or by their own ids."""
    for begin in range(0, len(ids), RUNS_PER_CALL):
        some = ids[begin : begin + RUNS_PER_CALL]
        by_id: dict[str, Any] = {"run_ids": some} if tag is None else {"tags": {tag: some}}
        yield RunsFilter(statuses=_TERMINATED, **by_id)


def has_waiting_step(instance: DagsterInstance, run_id: str) -> bool:
    """Whether the run handed out a step in the last ``LONGEST_WAIT_SECONDS`` that no worker has begun yet.

    Beyond one machine a step may wait long for a free Celery worker or for its pod. No op is at work then, so the row
    gets no heartbeat, and yet the run is healthy.
    """
    handed_out: Counter[str] = Counter()
    since: dict[str, float] = {}
    for entry in instance.all_logs(run_id, of_type=_STEP_EVENTS):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        change = _change(event)
        handed_out[event.step_key] += change
        if change > 0:
            since[event.step_key] = entry.timestamp
    oldest = time.time() - LONGEST_WAIT_SECONDS
    return any(count > 0 and since[step] > oldest for step, count in handed_out.items())


def _change(event: dg.DagsterEvent) -> int:
    """1 = a step is handed out, -1 = a worker begins it."""
    if event.event_type is dg.DagsterEventType.ENGINE_EVENT:
        data = cast("EngineEventData", event.event_specific_data)
        return (data.marker_start == _QUEUE_WAIT) - (data.marker_end == _QUEUE_WAIT)
    return -1 if event.event_type is dg.DagsterEventType.STEP_WORKER_STARTED else 1


def unfinished_runs(context: dg.SensorEvaluationContext, job_name: str) -> Sequence[dg.RunRecord]:
    """The runs of a job of the sensor's code location that have not ended."""
    origin, tag = context.code_location_origin, {}
    if origin is not None and context.repository_name is not None:
        tag = {REPOSITORY_LABEL_TAG: RemoteRepositoryOrigin(origin, context.repository_name).get_label()}
    return context.instance.get_run_records(RunsFilter(job_name=job_name, statuses=_UNFINISHED, tags=tag))


def repository_label(run: dg.DagsterRun) -> str | None:
    """The tag's value for runs of the same code location; None in a process without one."""
    origin = run.remote_job_origin
    return None if origin is None else origin.repository_origin.get_label()


def forget(
    instance: DagsterInstance,
    staging: Staging,
    retention_days: float,
    jobs: Sequence[str],
    *,
    label: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Delete runs of these jobs ``retention_days`` after their end (0: never), and step outputs past their use.

    Dagster itself keeps them for ever. ``label``: only runs of this code location, because others share the instance.
    Returns how many runs were deleted, how many could not be (each is a line for ``log``), and of how many runs the
    step outputs were deleted: they are below ``staging``, if it is on S3.
    """
    expired = _expired_runs(instance, timedelta(days=retention_days), jobs, label) if retention_days else []
    failed = 0
    for run_id in expired:
        try:
            _delete_run(instance, run_id)
        except Exception as error:  # noqa: BLE001 - the next janitor tries again
            failed += 1
            log(f"Run {run_id} is past its retention and could not be deleted ({type(error).__qualname__}).")
    return {
        "forgotten_runs": len(expired) - failed,
        "not_forgotten_runs": failed,
        "forgotten_outputs": _forget_outputs(instance, staging),
    }


def _expired_runs(instance: DagsterInstance, keep: timedelta, jobs: Sequence[str], label: str | None) -> list[str]:
    """Ids of at most ``RUNS_PER_JANITOR`` runs. Deleting a run key is safe: each attempt has its own."""
    found: list[str] = []
    for job in jobs:
        if len(found) < RUNS_PER_JANITOR:
            ended = RunsFilter(
                job_name=job,
                statuses=_ENDED,
                updated_before=datetime.now(UTC) - keep,
                tags={} if label is None else {REPOSITORY_LABEL_TAG: label},
            )
            records = instance.get_run_records(ended, limit=RUNS_PER_JANITOR - len(found), ascending=True)
            found += [record.dagster_run.run_id for record in records]
    return found


def _delete_run(instance: DagsterInstance, run_id: str) -> None:
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    with suppress(OSError):  # a directory that stays takes a few kilobytes
        shutil.rmtree(Path(instance.storage_directory()) / run_id)
    instance.delete_run(run_id)


def _forget_outputs(instance: DagsterInstance, staging: Staging) -> int:
    """Step outputs live as long as staged rows: without those no run can be re-executed from failure."""
    count = 0
    for name in filter(is_canonical_uuid, staging.trees(_STORED_OUTPUTS)):
        record = instance.get_run_record_by_id(name)
        if record is None or _ended_long_ago(record):
            staging.delete_tree(f"{_STORED_OUTPUTS}/{name}")
            count += 1
    return count


def _ended_long_ago(record: dg.RunRecord) -> bool:
    ended = record.end_time if record.dagster_run.is_finished else None
    return ended is not None and datetime.fromtimestamp(ended, UTC) < datetime.now(UTC) - KEEP_LEFTOVERS


def run_statuses(instance: DagsterInstance, uid: str) -> list[dict[str, Any]]:
    """All runs of a request, oldest first; instants in Unix seconds.

    ``stages`` has the rows, bytes, files, seconds and rates of each step. A re-execution has only its own steps.
    """
    records = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: uid}))
    return [
        {
            "run_id": record.dagster_run.run_id,
            "status": record.dagster_run.status.value,
            "attempt": tags.attempt_of(record.dagster_run.tags),
            "started_at": record.start_time,
            "ended_at": record.end_time,
            "stages": _stages(instance, record.dagster_run.run_id),
        }
        for record in reversed(records)
    ]


def _stages(instance: DagsterInstance, run_id: str) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = []
    for record in instance.get_records_for_run(run_id, of_type={dg.DagsterEventType.STEP_OUTPUT}).records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        values = {name: metadata.value for name, metadata in event.step_output_data.metadata.items()}
        if "seconds" in values:
            plain = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
            stages.append({"step": event.step_key, "metadata": plain})
    return stages
