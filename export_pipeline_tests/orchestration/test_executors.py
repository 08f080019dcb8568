"""Executors chosen by settings; silence of a run whose step waits for a worker; what is forgotten."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration import runs
from export_pipeline.orchestration.jobs import OUR_JOBS, celery_config
from export_pipeline.orchestration.runs import LONGEST_WAIT_SECONDS, RunView, has_waiting_step
from export_pipeline.orchestration.sensors.reconciler import Action, action_for
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline.requests.queue import StaleRequest
from export_pipeline.settings import Settings
from export_pipeline.storage.staging import Staging
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.servers.s3 import S3Bucket

SHARED = {
    "EXPORT_DATABASE_URL": "postgresql://app@db/app",
    "EXPORT_STORE_URL": "s3://bucket/exports",
    "EXPORT_STAGING_URL": "s3://bucket/staging",
    "EXPORT_CELERY_BROKER_URL": "redis://:s3cret@broker/0",
}


def export_job() -> dg.JobDefinition:
    return build_definitions().resolve_job_def("export")


def job_without_config() -> dg.JobDefinition:
    return build_definitions().resolve_job_def("janitor")


@pytest.mark.parametrize(
    ("setting", "name"),
    [("in_process", "in_process"), ("multiprocess", "multiprocess"), ("celery", "celery"), ("k8s", "k8s")],
)
def test_the_job_has_the_executor_of_the_settings(monkeypatch: pytest.MonkeyPatch, setting: str, name: str) -> None:
    for variable, value in {**SHARED, "EXPORT_EXECUTOR": setting}.items():
        monkeypatch.setenv(variable, value)
    definitions = build_definitions()
    assert definitions.resolve_job_def("export").executor_def.name == name
    assert definitions.resolve_job_def("notify").executor_def.name == "in_process"  # one op: nothing to spread
    manager = definitions.resources["io_manager"]
    assert (manager.s3_bucket, manager.s3_prefix) == ("bucket", "staging/runs")


def test_the_brokers_password_is_in_no_configuration_of_dagster(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**SHARED, "EXPORT_EXECUTOR": "celery"}.items():
        monkeypatch.setenv(variable, value)
    assert "s3cret" not in repr(celery_config(Settings.from_environment()))
    monkeypatch.setenv("EXPORT_CELERY_RESULT_URL", "redis://:s3cret@results/1")
    assert celery_config(Settings.from_environment())["backend"] == {"env": "EXPORT_CELERY_RESULT_URL"}


@pytest.mark.slow
def test_an_export_completes_with_a_process_a_step(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPORT_EXECUTOR", "multiprocess")
    uid = pipeline.ask()
    (claim,) = pipeline.claim()
    asked = run_request(claim)
    job = dg.reconstructable(export_job)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        with dg.execute_job(job, instance, run_config=asked.run_config, tags=dict(asked.tags)) as result:
            assert result.success
        assert len(instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)) == 6
        assert not has_waiting_step(instance, result.run_id)
    state = pipeline.state(uid)
    assert (state.status, state.row_count) == ("completed", state.rows_total)


Told = tuple[str, str | None]
QUEUED: Told = ("celery_queue_wait", None)
BEGUN: Told = (None, "celery_queue_wait")  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        ([], False),
        ([("plan", QUEUED)], True),
        ([("plan", QUEUED), ("plan", BEGUN)], False),
        ([("plan", QUEUED), ("plan", BEGUN), ("serialize[00001]", QUEUED)], True),
        ([("serialize[00001]", QUEUED), ("serialize[00002]", QUEUED), ("serialize[00002]", BEGUN)], True),
        ([("plan", QUEUED), ("plan", BEGUN), ("plan", QUEUED)], True),  # its retry
    ],
)
def test_a_step_waits_from_when_it_is_handed_out_until_a_worker_begins_it(
    told: list[tuple[str, Told]], waits: bool
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job_without_config())
        for step, (start, end) in told:
            data = EngineEventData(marker_start=start, marker_end=end)
            instance.report_engine_event("", run, data, step_key=step)
        assert has_waiting_step(instance, run.run_id) is waits


def test_a_step_that_nobody_begins_for_hours_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was killed before it began, or the queue lost it: nobody will ever say so."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job_without_config())
        instance.report_engine_event("", run, EngineEventData(marker_start=QUEUED[0]), step_key="plan")
        now = time.time()
        for later, waits in ((-60, True), (60, False)):
            monkeypatch.setattr(runs.time, "time", lambda later=later: now + LONGEST_WAIT_SECONDS + later)
            assert has_waiting_step(instance, run.run_id) is waits
            monkeypatch.undo()


def test_a_silent_run_whose_step_waits_is_left_alone_and_one_whose_step_was_lost_gets_a_new_attempt() -> None:
    stale = StaleRequest(id=1, uid="u", attempt=1, running=True, run_id="r", timed_out=True)
    run = RunView(run_id="r", attempt=1, finished=False, canceled=False)
    assert action_for(stale, [run], max_attempts=3) is Action.NEW_ATTEMPT
    assert action_for(stale, [replace(run, waiting=True)], max_attempts=3) is Action.LEAVE


def test_step_outputs_on_s3_are_forgotten_with_their_run_and_what_is_younger_stays(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(f"s3://{s3_bucket.name}/staging", s3_endpoint_url=s3_bucket.endpoint)
    stays, unknown = "", str(uuid4())
    with dg.DagsterInstance.ephemeral() as instance:
        ended = export_and_end(instance)
        stays = instance.create_run_for_job(job_without_config()).run_id
        for run_id in (ended, stays, unknown, "not-a-run"):
            with staging.create(f"runs/storage/{run_id}/plan/result") as sink:
                sink.write(b"x")
        assert forgotten(instance, staging, 0) == (0, 0, 1)
        monkeypatch.setattr(runs, "KEEP_LEFTOVERS", timedelta(0))
        assert forgotten(instance, staging, 0) == (0, 0, 1)
        assert instance.get_run_by_id(ended) is not None
    assert sorted(staging.trees("runs/storage")) == sorted([stays, "not-a-run"])


def test_runs_past_their_time_are_forgotten_with_their_events_and_logs(tmp_path: Path) -> None:
    staging = Staging((tmp_path / "staging").as_uri())
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        ended = export_and_end(instance)
        active = instance.create_run_for_job(job_without_config()).run_id
        for run_id in (ended, active):
            (Path(instance.storage_directory()) / run_id).mkdir(parents=True, exist_ok=True)
        assert forgotten(instance, staging, 3) == (0, 0, 0)
        assert forgotten(instance, staging, 1e-9) == (1, 0, 0)
        assert [run.run_id for run in instance.get_runs()] == [active]
        assert instance.all_logs(ended) == []
        assert [path.name for path in Path(instance.storage_directory()).iterdir()] == [active]


def forgotten(instance: dg.DagsterInstance, staging: Staging, days: float, **options: Any) -> tuple[int, int, int]:
    counts = runs.forget(instance, staging, days, OUR_JOBS, **options)
    return counts["forgotten_runs"], counts["not_forgotten_runs"], counts["forgotten_outputs"]


def ended_run(instance: dg.DagsterInstance, job: str, location: str) -> dg.DagsterRun:
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__").get_job_origin(job)
    run = create_run_for_test(instance, job_name=job, remote_job_origin=origin, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(run)
    return run


def test_runs_of_others_stay_and_one_that_cannot_be_deleted_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging((tmp_path / "staging").as_uri())
    logged: list[str] = []
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        mine = [ended_run(instance, job, "here") for job in OUR_JOBS]
        others = {ended_run(instance, *other).run_id for other in (("billing", "here"), ("export", "there"))}
        here = runs.repository_label(mine[0])
        stuck, delete = mine[1].run_id, instance.delete_run

        def fails_once(run_id: str) -> None:
            if run_id == stuck:
                raise OSError("secret")
            delete(run_id)

        monkeypatch.setattr(instance, "delete_run", fails_once)
        assert forgotten(instance, staging, 1e-9, label=here, log=logged.append) == (len(OUR_JOBS) - 1, 1, 0)
        assert {run.run_id for run in instance.get_runs()} == {stuck} | others
        assert [stuck in line and "secret" not in line for line in logged] == [True]
        monkeypatch.setattr(instance, "delete_run", delete)
        assert forgotten(instance, staging, 1e-9, label=here) == (1, 0, 0)
        assert {run.run_id for run in instance.get_runs()} == others


def test_our_jobs_are_all_of_the_code_location() -> None:
    assert {job.name for job in build_definitions().resolve_all_job_defs() if not job.name.startswith("__")} == {
        *OUR_JOBS
    }


def export_and_end(instance: dg.DagsterInstance) -> str:
    run = instance.create_run_for_job(job_without_config())
    instance.report_run_failed(run)
    return str(run.run_id)
