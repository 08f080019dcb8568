"""Dagster's queue with the shipped limits: upkeep goes first, has a slot, and has an end; nothing final is repeated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import MAX_RETRIES_TAG, MAX_RUNTIME_SECONDS_TAG, PRIORITY_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._utils.tags import TagConcurrencyLimitsCounter

from export_pipeline.orchestration import jobs
from export_pipeline.orchestration.jobs import JANITOR_JOB_NAME, JOB_NAME, NOTIFY_JOB_NAME, OUR_JOBS
from export_pipeline.orchestration.sensors import due
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline.requests.queue import Claim
from export_pipeline_tests.orchestration.conftest import Pipeline

ROOT = Path(__file__).parents[2]
UPKEEP = (jobs.WEBHOOKS_JOB_NAME, NOTIFY_JOB_NAME, JANITOR_JOB_NAME)


def limits() -> tuple[int, list[dict[str, Any]]]:
    runs = yaml.safe_load((ROOT / "dagster.yaml").read_text())["concurrency"]["runs"]
    return runs["max_concurrent_runs"], runs["tag_concurrency_limits"]


def export_run(number: int) -> dg.DagsterRun:
    claim = Claim(number, f"00000000-0000-4000-8000-{number:012}", 1, f"organization-{number}", "people", "csv")
    return dg.DagsterRun(JOB_NAME, tags=dict(run_request(claim).tags))


@pytest.mark.parametrize("job", OUR_JOBS)
def test_each_run_has_an_end_and_is_not_repeated_by_dagster(pipeline: Pipeline, job: str) -> None:
    run_tags = pipeline.definitions.resolve_job_def(job).run_tags
    assert run_tags[MAX_RETRIES_TAG] == "0"
    assert float(run_tags[MAX_RUNTIME_SECONDS_TAG]) > 0
    assert (int(run_tags.get(PRIORITY_TAG, 0)) > 0) is (job in UPKEEP)


def test_exports_leave_a_slot_and_upkeep_is_taken_first(pipeline: Pipeline) -> None:
    slots, tag_limits = limits()
    counter = TagConcurrencyLimitsCounter(tag_limits, [])
    begun = 0
    for number in range(60):
        run = export_run(number)
        if not counter.is_blocked(run):
            counter.update_counters_with_launched_item(run)
            begun += 1
    assert begun == slots - 1
    queued = [export_run(1)]
    for job in UPKEEP:
        run = dg.DagsterRun(job, tags=dict(pipeline.definitions.resolve_job_def(job).run_tags))
        assert not counter.is_blocked(run)
        queued.append(run)
    in_turn = QueuedRunCoordinatorDaemon(interval_seconds=1)._priority_sort(queued)
    assert {run.job_name for run in list(in_turn)[:3]} == set(UPKEEP)


def test_a_dead_run_of_webhooks_does_not_keep_the_next_from_its_calls(pipeline: Pipeline) -> None:
    pipeline.ask(webhook_url="https://app.example.com/hook")
    pipeline.execute(
        "INSERT INTO export_webhooks (request_id, event) SELECT id, 'export.completed' FROM export_requests"
    )
    dead = create_run_for_test(pipeline.instance, jobs.WEBHOOKS_JOB_NAME, status=dg.DagsterRunStatus.STARTED)
    before = time.time()

    def tick(seconds: float) -> Any:
        exports: Any = (pipeline.definitions.resources or {})["exports"]
        with (
            pytest.MonkeyPatch.context() as patch,
            dg.build_sensor_context(instance=pipeline.instance, resources={"exports": exports}) as context,
        ):
            patch.setattr(due.time, "time", lambda: before + seconds)
            return due.export_webhooks(context)

    pipeline.instance.report_engine_event("it began", dead)
    pipeline.instance.handle_new_event(_started(dead))
    assert isinstance(tick(60), dg.SkipReason)
    assert isinstance(tick(jobs.LONGEST_WEBHOOKS.total_seconds() + 60), dg.RunRequest)
    run = pipeline.instance.get_run_by_id(dead.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE


def _started(run: dg.DagsterRun) -> Any:
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.events.log import EventLogEntry

    return EventLogEntry(
        error_info=None,
        user_message="",
        level="debug",
        run_id=run.run_id,
        timestamp=time.time(),
        dagster_event=DagsterEvent(DagsterEventType.RUN_START.value, run.job_name),
    )
