"""The status of a request's runs, read from Dagster: state, and metadata of each stage.

What belongs here: reading. What does not: showing it (cli).
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster import DagsterInstance, RunsFilter
from pydantic import BaseModel, ConfigDict

from export_pipeline.orchestration import tags


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
