"""Whether a run's silence is that of a step which waits for a worker.

Beyond one machine a step may wait long: for a free Celery worker, for a pod to be scheduled. No op is at work then, so
nobody writes the row's heartbeat, and the run is healthy all the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dagster as dg
from dagster import DagsterInstance, RunsFilter
from dagster._core.events import EngineEventData
from pydantic import BaseModel, ConfigDict

from export_pipeline.orchestration import tags
from export_pipeline.requests import queue
from export_pipeline.requests.queue import StaleRequest

_TOLD = {
    dg.DagsterEventType.ENGINE_EVENT,  # of Celery: the marker starts when a step is queued, ends when one takes it
    dg.DagsterEventType.STEP_WORKER_STARTING,
    dg.DagsterEventType.STEP_WORKER_STARTED,
}
_QUEUE_WAIT = "celery_queue_wait"
LONGEST_WAIT_SECONDS = 6 * 3600.0
"""A step that nobody began for so long is taken for lost: a worker killed between taking and beginning it, or a queue
that lost it, tells nobody."""


def has_waiting_step(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run handed out a step in the last ``LONGEST_WAIT_SECONDS`` that no worker has begun yet."""
    handed_out: Counter[str] = Counter()
    since: dict[str, float] = {}
    for entry in instance.all_logs(run_id, of_type=_TOLD):
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


# Which rows lost their run, and what is to become of each.


@dataclass(frozen=True)
class RunView:
    """What matters of a Dagster run."""

    run_id: str
    attempt: int | None
    finished: bool
    canceled: bool
    canceling: bool = False
    waiting: bool = False
    """It has not begun: nothing can be heard of it yet."""
    job_name: str = ""
    ended_at: float = 0.0
    """Unix seconds; 0 while it has not ended."""
    claim_id: str | None = None
    """The claim that it was launched for; None if an older version launched it."""


def is_of(run: RunView, orphan: StaleRequest) -> bool:
    """Whether a run was launched for the claim that the row counts now."""
    if run.claim_id is None or orphan.claim_id is None:
        return run.attempt == orphan.attempt
    return run.claim_id == orphan.claim_id


# Rows that lost their run, and mails that their run left: asking Dagster, and doing what was decided.


RUNS_A_CALL = 50
"""So many rows' runs are read at once: fewer calls, and what is read is not old when it is acted upon."""
LONGEST_START_SECONDS = 3600.0
"""A run that is being started for longer is taken for dead: an image is pulled, a machine is bought in that time."""


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


def _has_not_begun(record: dg.RunRecord) -> bool:
    status = record.dagster_run.status
    if status is dg.DagsterRunStatus.STARTING:  # run monitoring ends it, unless it is switched off
        return time.time() - record.update_timestamp.timestamp() < LONGEST_START_SECONDS
    return status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def terminated_before_they_began(
    instance: DagsterInstance, claimed: Sequence[queue.StaleRequest]
) -> list[queue.StaleRequest]:
    """Those claimed requests whose run an operator ended before it took them."""
    stopped = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
    found: list[queue.StaleRequest] = []
    for begin in range(0, len(claimed), RUNS_A_CALL):
        some = {one.claim_id: one for one in claimed[begin : begin + RUNS_A_CALL] if one.claim_id is not None}
        if some:
            runs = instance.get_runs(RunsFilter(tags={tags.CLAIM: list(some)}, statuses=stopped))
            found += [some[claim] for claim in {run.tags[tags.CLAIM] for run in runs}]
    return found


def terminated_of(instance: DagsterInstance, run_ids: Sequence[str]) -> set[str]:
    """Those of the runs that Dagster was told to end."""
    terminated = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
    some = [run_ids[begin : begin + RUNS_A_CALL] for begin in range(0, len(run_ids), RUNS_A_CALL)]
    filters = [RunsFilter(run_ids=ids, statuses=terminated) for ids in some]
    return {record.dagster_run.run_id for one in filters for record in instance.get_run_records(one)}


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


# The status of a request's runs, read from Dagster: state, and metadata of each stage.


class StageStatus(BaseModel):
    """What one step said of itself: ``rows``, ``bytes``, ``files``, ``seconds``, rates."""

    model_config = ConfigDict(frozen=True)

    step: str
    metadata: dict[str, int | float | str]


class RunStatus(BaseModel):
    """One run of a request."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    status: str
    attempt: int | None
    started_at: float | None
    """Unix seconds."""
    ended_at: float | None
    stages: list[StageStatus]


def run_statuses(instance: DagsterInstance, uid: str) -> list[RunStatus]:
    """All runs of a request, oldest first. A resumed run has only the steps that it did itself."""
    records = instance.get_run_records(RunsFilter(tags={tags.REQUEST_UID: uid}))
    return [_run_status(instance, record) for record in reversed(records)]


def _run_status(instance: DagsterInstance, record: dg.RunRecord) -> RunStatus:
    run = record.dagster_run
    return RunStatus(
        run_id=run.run_id,
        status=run.status.value,
        attempt=tags.attempt_of(run.tags),
        started_at=record.start_time,
        ended_at=record.end_time,
        stages=_stages(instance, run.run_id),
    )


def _stages(instance: DagsterInstance, run_id: str) -> list[StageStatus]:
    stages: list[StageStatus] = []
    events = instance.get_records_for_run(run_id, of_type={dg.DagsterEventType.STEP_OUTPUT}).records
    for record in events:
        event = record.event_log_entry.dagster_event
        if event is None or event.step_key is None:
            continue
        metadata = {name: _plain(value) for name, value in event.step_output_data.metadata.items()}
        plain = {name: value for name, value in metadata.items() if value is not None}
        if "seconds" in plain:
            stages.append(StageStatus(step=event.step_key, metadata=plain))
    return stages


def _plain(metadata: dg.MetadataValue[Any]) -> int | float | str | None:
    value = metadata.value
    return value if isinstance(value, int | float | str) else None
