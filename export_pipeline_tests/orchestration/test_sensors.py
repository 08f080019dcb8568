"""Sensors and reconciler: requests become runs once, cancels reach them, and rows that lost their run are mended."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.test_utils import create_run_for_test

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import export_notifications
from export_pipeline.failures import ExportCanceled
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.heartbeat import Heartbeat
from export_pipeline.orchestration.runs import RunView
from export_pipeline.orchestration.sensors import INTERVAL_SECONDS, ROWS_PER_TICK, reconciler
from export_pipeline.orchestration.sensors.cancellations import export_cancellations
from export_pipeline.orchestration.sensors.reconciler import Action, action_for, export_reconciler
from export_pipeline.orchestration.sensors.requests import export_requests
from export_pipeline.requests import notifications, queue, transitions
from export_pipeline.requests.queue import StaleRequest
from export_pipeline_tests.orchestration.conftest import Pipeline


def evaluate(pipeline: Pipeline, sensor: dg.SensorDefinition) -> Any:
    exports = pipeline.definitions.resources["exports"]  # type: ignore[index]
    with dg.build_sensor_context(instance=pipeline.instance, resources={"exports": exports}) as context:
        return sensor(context)


def a_run(pipeline: Pipeline, uid: str, status: dg.DagsterRunStatus, attempt: int = 1) -> str:
    run = create_run_for_test(
        pipeline.instance,
        job_name="export",
        tags={tags.REQUEST_UID: uid, tags.ATTEMPT: str(attempt)},
        status=status,
    )
    return run.run_id


def test_a_request_that_comes_during_a_tick_is_taken_by_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_PICKUP_WAIT_SECONDS", "30")
    uids: list[str] = []
    comes_late = threading.Timer(0.5, lambda: uids.append(pipeline.ask()))
    comes_late.start()
    result = evaluate(pipeline, export_requests)
    comes_late.join()
    assert [asked.tags[tags.REQUEST_UID] for asked in result.run_requests] == uids


def test_a_waiting_request_is_asked_for_once(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    first = evaluate(pipeline, export_requests)
    (asked,) = first.run_requests
    assert asked.run_key == f"{uid}:1:{asked.tags[tags.CLAIM]}"
    assert asked.run_config == {"ops": {"plan": {"config": {"request_id": 1}}}}
    assert isinstance(evaluate(pipeline, export_requests), dg.SkipReason)


def test_a_tick_takes_a_bounded_number_of_rows(pipeline: Pipeline) -> None:
    for _ in range(ROWS_PER_TICK + 5):
        pipeline.ask()
    assert len(evaluate(pipeline, export_requests).run_requests) == ROWS_PER_TICK
    assert len(evaluate(pipeline, export_requests).run_requests) == 5


def test_a_row_of_garbage_does_not_spoil_the_tick(pipeline: Pipeline) -> None:
    bad = pipeline.ask(dataset="\x01 nonsense " * 500, organization_id="x" * 5000, format="")
    good = pipeline.ask()
    asked = evaluate(pipeline, export_requests).run_requests
    assert [request.run_key.rpartition(":")[0] for request in asked] == [f"{bad}:1", f"{good}:1"]
    assert all(len(value) < 100 for request in asked for value in request.tags.values())


def test_a_row_of_which_no_run_can_be_made_fails_and_the_others_start(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = pipeline.ask(), pipeline.ask()
    original = tags.run_tags

    def fails(claim: queue.Claim, **options: Any) -> dict[str, str]:
        if claim.uid == bad:
            raise TypeError("'>' not supported between instances of 'str' and 'int'")
        return original(claim, **options)

    monkeypatch.setattr(tags, "run_tags", fails)
    asked = evaluate(pipeline, export_requests).run_requests
    assert [one.run_key.rpartition(":")[0] for one in asked] == [f"{good}:1"]
    assert (pipeline.state(bad).status, pipeline.state(bad).error_code) == ("failed", "internal_error")


def test_an_unreachable_database_skips_the_tick_with_a_reason(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise sa.exc.OperationalError("SELECT", {}, Exception("password=s3cret"))

    for module, name in ((queue, "claim"), (transitions, "cancel_requested"), (queue, "silent_requests")):
        monkeypatch.setattr(module, name, unreachable)
    for sensor in (export_requests, export_cancellations, export_reconciler):
        skipped = evaluate(pipeline, sensor)
        assert "EXPORT_DATABASE_URL" in skipped.skip_message
        assert "s3cret" not in skipped.skip_message


def test_sensors_tick_at_every_loop_of_the_daemon() -> None:
    """A sensor of 5 s is skipped every other time by the daemon's loop of 5 s."""
    assert INTERVAL_SECONDS <= 4
    for sensor in (export_requests, export_cancellations):
        assert sensor.minimum_interval_seconds == INTERVAL_SECONDS
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_a_cancel_before_the_run_ends_the_row_at_once(pipeline: Pipeline) -> None:
    uid = pipeline.ask(cancel_requested_at=utc_now())
    evaluate(pipeline, export_cancellations)
    assert pipeline.state(uid).status == "canceled"
    assert isinstance(evaluate(pipeline, export_requests), dg.SkipReason)


def test_a_cancel_whose_run_is_over_ends_the_row(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    a_run(pipeline, uid, dg.DagsterRunStatus.FAILURE)
    pipeline.update(uid, status="running", cancel_requested_at=utc_now(), heartbeat_at=utc_now())
    evaluate(pipeline, export_cancellations)
    assert pipeline.state(uid).status == "canceled"


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED])
def test_the_row_of_a_terminated_run_is_told_while_its_process_works_on(
    pipeline: Pipeline, status: dg.DagsterRunStatus
) -> None:
    """The UI in another container, or a step on a Celery worker: nobody could interrupt the process."""
    uid, other, unowned = pipeline.ask(), pipeline.ask(), pipeline.ask()
    pipeline.claim()
    run_id, goes_on = a_run(pipeline, uid, status), a_run(pipeline, other, dg.DagsterRunStatus.STARTED)
    a_run(pipeline, other, status)  # a re-execution that was terminated before it took the row
    a_run(pipeline, unowned, status)
    for request, owner in ((uid, run_id), (other, goes_on)):
        pipeline.update(request, status="running", run_id=owner, heartbeat_at=utc_now(), started_at=utc_now())
    told: list[str] = []

    def work_on() -> None:
        with Heartbeat(pipeline.database, 1, run_id, 0.05) as heartbeat:
            told.append(evaluate(pipeline, export_cancellations).skip_message)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                heartbeat.check()
                time.sleep(0.01)

    with pytest.raises(ExportCanceled):
        work_on()
    assert told[0].startswith("1 runs terminated by operators")
    assert [pipeline.state(one).status for one in (uid, other, unowned)] == ["canceled", "running", "queued"]
    assert "operator" in (pipeline.state(uid).message or "")


STALE = timedelta(seconds=600)


def test_a_claim_whose_run_was_never_made_is_asked_for_again_without_charge(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    evaluate(pipeline, export_reconciler)
    assert pipeline.claim() == []  # the lease still holds
    pipeline.update(uid, claimed_at=utc_now() - STALE)
    evaluate(pipeline, export_reconciler)
    assert [(claim.uid, claim.attempt) for claim in pipeline.claim()] == [(uid, 1)]


def test_a_run_that_waits_its_turn_keeps_its_claim(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    a_run(pipeline, uid, dg.DagsterRunStatus.STARTING)
    pipeline.update(uid, claimed_at=utc_now() - STALE)
    evaluate(pipeline, export_reconciler)
    assert pipeline.claim() == []
    assert pipeline.state(uid).attempt == 1


def test_a_worker_that_died_costs_one_attempt(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    a_run(pipeline, uid, dg.DagsterRunStatus.FAILURE)
    pipeline.update(uid, status="running", heartbeat_at=utc_now() - timedelta(seconds=20))
    evaluate(pipeline, export_reconciler)
    assert [(claim.uid, claim.attempt) for claim in pipeline.claim()] == [(uid, 2)]


def test_code_server_and_worker_killed_together_do_not_leave_the_run_started_for_ever(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    run_id = a_run(pipeline, uid, dg.DagsterRunStatus.STARTED)
    pipeline.update(uid, status="running", run_id=run_id, heartbeat_at=utc_now() - STALE)
    evaluate(pipeline, export_reconciler)
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert [(claim.uid, claim.attempt) for claim in pipeline.claim()] == [(uid, 2)]


def test_a_slow_run_with_a_heartbeat_is_left_alone(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    run_id = a_run(pipeline, uid, dg.DagsterRunStatus.STARTED)
    pipeline.update(uid, status="running", started_at=utc_now() - timedelta(days=2), heartbeat_at=utc_now())
    evaluate(pipeline, export_reconciler)
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.STARTED
    assert pipeline.state(uid).status == "running"


def test_a_request_that_kills_its_process_every_time_fails_after_its_attempts(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    runs = []
    for attempt in (1, 2, 3):
        assert [claim.attempt for claim in pipeline.claim()] == [attempt]
        runs.append(a_run(pipeline, uid, dg.DagsterRunStatus.FAILURE, attempt))
        pipeline.update(uid, status="running", heartbeat_at=utc_now() - STALE)
        evaluate(pipeline, export_reconciler)
    state = pipeline.state(uid)
    assert (state.status, state.error_code) == ("failed", "attempts_exhausted")
    given_up = pipeline.instance.get_runs(dg.RunsFilter(tags={"export/error_code": "attempts_exhausted"}))
    assert [(run.run_id, run.tags["export/fault"]) for run in given_up] == [(runs[-1], "ours")]


def test_a_run_canceled_in_dagster_cancels_the_row(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    run_id = a_run(pipeline, uid, dg.DagsterRunStatus.CANCELED)
    pipeline.update(uid, status="running", run_id=run_id, heartbeat_at=utc_now() - STALE)
    left = pipeline.home / "staging" / uid / "1" / "rows.arrow"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"rows")
    evaluate(pipeline, export_reconciler)
    assert pipeline.state(uid).status == "canceled"
    assert pipeline.staged == []


def test_one_cancel_that_cannot_be_carried_out_does_not_keep_the_others_from_theirs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = pipeline.ask(), pipeline.ask()
    pipeline.claim()
    a_run(pipeline, stuck, dg.DagsterRunStatus.STARTED)
    for uid in (stuck, other):
        pipeline.update(uid, cancel_requested_at=utc_now())
    # An ephemeral instance cannot reach the run's process, as when its code server is gone.
    told = evaluate(pipeline, export_cancellations).skip_message
    assert stuck in told
    assert other not in told
    assert pipeline.state(other).status == "canceled"


def notified(pipeline: Pipeline) -> list[str]:
    with pipeline.database.connect() as connection:
        return list(connection.execute(sa.select(export_notifications.c.status)).scalars())


def test_mails_that_a_dead_run_left_are_sent_by_another(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_notifications SET status = 'pending'")
    assert isinstance(evaluate(pipeline, export_reconciler), dg.SkipReason)  # its run was heard of a moment ago
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    (asked,) = evaluate(pipeline, export_reconciler).run_requests
    assert (asked.job_name, asked.run_key) == ("notify", f"{state.uid}:notify:1")
    assert asked.tags[tags.DATASET] == "people"
    assert tags.ORGANIZATION not in asked.tags  # else they would wait behind the organization's own long exports
    job = pipeline.definitions.resolve_job_def("notify")
    assert job.execute_in_process(run_config=asked.run_config, tags=asked.tags, instance=pipeline.instance).success
    assert notified(pipeline) == ["sent"]
    assert pipeline.state(state.uid).status == "completed"
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    assert isinstance(evaluate(pipeline, export_reconciler), dg.SkipReason)


def test_mails_of_a_run_that_stays_started_for_ever_are_resumed(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_notifications SET status = 'sending'")
    run_id = a_run(pipeline, state.uid, dg.DagsterRunStatus.STARTED)
    a_run(pipeline, state.uid, dg.DagsterRunStatus.CANCELED)  # a mistaken re-execution says nothing of the mails
    pipeline.update(state.uid, run_id=run_id, heartbeat_at=utc_now() - STALE)
    assert len(evaluate(pipeline, export_reconciler).run_requests) == 1
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE


def test_mails_that_an_operator_stopped_are_not_resumed(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_notifications SET status = 'pending'")
    run_id = a_run(pipeline, state.uid, dg.DagsterRunStatus.CANCELED)
    pipeline.update(state.uid, run_id=run_id, heartbeat_at=utc_now() - STALE)
    assert isinstance(evaluate(pipeline, export_reconciler), dg.SkipReason)


def test_mails_are_not_resumed_over_and_over(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_notifications SET status = 'pending'")
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    run = create_run_for_test(
        pipeline.instance, job_name="notify", tags={tags.REQUEST_UID: state.uid}, status=dg.DagsterRunStatus.STARTED
    )
    pipeline.instance.report_run_failed(run)
    assert isinstance(evaluate(pipeline, export_reconciler), dg.SkipReason)


def test_mails_are_asked_for_even_if_mending_takes_longer_than_a_tick_has(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_notifications SET status = 'pending'")
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    lost = pipeline.ask()
    pipeline.claim()
    pipeline.update(lost, claimed_at=utc_now() - STALE)
    monkeypatch.setattr(reconciler, "RECONCILE_SECONDS", 0)
    assert [asked.job_name for asked in evaluate(pipeline, export_reconciler).run_requests] == ["notify"]
    pipeline.update(state.uid, heartbeat_at=utc_now())
    assert "1 are left to the next tick" in evaluate(pipeline, export_reconciler).skip_message
    monkeypatch.setattr(reconciler, "RECONCILE_SECONDS", 60)
    evaluate(pipeline, export_reconciler)
    assert [claim.uid for claim in pipeline.claim()] == [lost]


def test_the_runs_of_many_rows_are_read_in_few_calls_and_each_row_is_judged_by_its_own(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [pipeline.ask() for _ in range(7)]
    pipeline.claim()
    begun = a_run(pipeline, uids[3], dg.DagsterRunStatus.FAILURE)
    a_run(pipeline, uids[5], dg.DagsterRunStatus.NOT_STARTED)
    pipeline.execute("UPDATE export_requests SET claimed_at = '2020-01-01 00:00:00.000000'")
    pipeline.update(uids[3], status="running", run_id=begun, heartbeat_at=utc_now() - STALE)
    calls: list[Any] = []
    read = pipeline.instance.get_run_records
    monkeypatch.setattr(reconciler, "RUNS_PER_CALL", 4)
    monkeypatch.setattr(pipeline.instance, "get_run_records", lambda *a, **o: calls.append(a) or read(*a, **o))
    evaluate(pipeline, export_reconciler)
    assert len(calls) == 2
    again = {claim.uid: claim.attempt for claim in pipeline.claim()}
    assert again == {uid: 2 if uid == uids[3] else 1 for uid in uids if uid != uids[5]}


def owes_mail(pipeline: Pipeline) -> str:
    """A request that completed, and whose run died before it mailed anybody."""
    uid = pipeline.ask()
    run_id = a_run(pipeline, uid, dg.DagsterRunStatus.FAILURE)
    old = utc_now() - STALE
    pipeline.update(uid, status="completed", attempt=1, run_id=run_id, heartbeat_at=old, completed_at=old)
    request_id = pipeline.state(uid).id
    with pipeline.database.begin() as connection:
        notifications.enqueue(connection, request_id, ["ana@example.com"])
    return uid


def test_the_runs_of_many_mails_are_read_in_few_calls(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    uids = [owes_mail(pipeline) for _ in range(7)]
    calls: list[str] = []
    monkeypatch.setattr(reconciler, "RUNS_PER_CALL", 4)
    for name in ("get_run_records", "get_run_by_id"):
        read = getattr(pipeline.instance, name)
        monkeypatch.setattr(
            pipeline.instance, name, lambda *a, _read=read, _name=name, **o: calls.append(_name) or _read(*a, **o)
        )
    asked = evaluate(pipeline, export_reconciler).run_requests
    assert [request.tags[tags.REQUEST_UID] for request in asked] == uids
    assert calls == ["get_run_records", "get_run_records"]


def test_a_tick_asks_for_a_bounded_number_of_mails_and_the_next_goes_on_from_there(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "ROWS_PER_TICK", 2)
    uids = [owes_mail(pipeline) for _ in range(5)]
    exports = pipeline.definitions.resources["exports"]  # type: ignore[index]
    asked: list[list[str]] = []
    cursor: str | None = "an operator wrote here"  # or an older version of this package
    for _ in range(4):
        with dg.build_sensor_context(
            instance=pipeline.instance, cursor=cursor, resources={"exports": exports}
        ) as context:
            result: Any = export_reconciler(context)
            cursor = context.cursor
        asked.append([request.tags[tags.REQUEST_UID] for request in result.run_requests])
    assert asked == [uids[:2], uids[2:4], [uids[4], uids[0]], uids[1:3]]


def test_dead_runs_are_mended_however_many_mails_wait(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    owes_mail(pipeline)
    lost = pipeline.ask()
    pipeline.claim()
    pipeline.update(lost, claimed_at=utc_now() - STALE)
    monkeypatch.setattr(reconciler, "RESUME_SECONDS", 0)
    assert "1 are left to the next tick" in evaluate(pipeline, export_reconciler).skip_message
    assert [claim.uid for claim in pipeline.claim()] == [lost]


def tick(pipeline: Pipeline, sensor: dg.SensorDefinition, cursor: str | None) -> tuple[Any, str | None]:
    """What a tick says, and the cursor after it."""
    exports = pipeline.definitions.resources["exports"]  # type: ignore[index]
    with dg.build_sensor_context(instance=pipeline.instance, cursor=cursor, resources={"exports": exports}) as context:
        return sensor(context), context.cursor


@pytest.mark.parametrize("ahead", [True, False])
def test_after_a_gap_the_reconciler_looks_once_before_it_takes_a_run_for_dead(pipeline: Pipeline, ahead: bool) -> None:
    """An outage of the request database, a paused machine, or a clock that was wrong: nobody could be heard."""
    uid = pipeline.ask()
    pipeline.claim()
    run_id = a_run(pipeline, uid, dg.DagsterRunStatus.STARTED)
    pipeline.update(uid, status="running", run_id=run_id, heartbeat_at=utc_now() - STALE)
    away = (utc_now() + STALE if ahead else utc_now() - STALE).timestamp()
    said, cursor = tick(pipeline, export_reconciler, json.dumps({"after": 0, "at": away, "silent": False}))
    assert "no run is taken for dead yet" in said.skip_message
    assert pipeline.state(uid).status == "running"
    looked = json.loads(cursor or "")
    tick(pipeline, export_reconciler, json.dumps(looked | {"at": looked["at"] - 14}))
    assert pipeline.state(uid).status == "queued"


def test_looks_that_are_always_far_apart_still_find_the_dead() -> None:
    looks = reconciler.Looks()
    silent = [(looks := looks.next(1000.0 * number, 10)).silent for number in range(1, 8)]
    assert silent == [False, True, False, True, False, True, False]


def test_a_second_look_that_comes_too_soon_for_a_heartbeat_is_silent_as_well() -> None:
    looks = reconciler.Looks(at=1000.0).next(2000.0, 10)
    assert [looks.silent, looks.next(2005.0, 10).silent, looks.next(2015.0, 10).silent] == [True, True, False]


def lost(pipeline: Pipeline, uid: str, job: str = "export", **run_tags: str) -> str:
    """A run that is STARTED and whose process nobody can see."""
    run = create_run_for_test(
        pipeline.instance,
        job_name=job,
        tags={tags.REQUEST_UID: uid, **run_tags},
        status=dg.DagsterRunStatus.STARTED,
    )
    return run.run_id


def status_of(pipeline: Pipeline, run_id: str) -> dg.DagsterRunStatus:
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.parametrize("renewed", [timedelta(seconds=100), STALE])
def test_a_claimed_row_whose_run_began_and_never_took_it_gets_a_new_attempt(
    pipeline: Pipeline, renewed: timedelta
) -> None:
    """A container that ends between the run's start and the first statement of its first op."""
    uid = pipeline.ask()
    (claim,) = pipeline.claim()
    run_id = lost(pipeline, uid, **tags.run_tags(claim, rows=None, large_rows=1))
    pipeline.update(uid, claimed_at=utc_now() - renewed)
    evaluate(pipeline, export_reconciler)
    evaluate(pipeline, export_reconciler)  # its lease is not renewed: nothing shows that it lives
    again = [(one.uid, one.attempt) for one in pipeline.claim()]
    if renewed is STALE:
        assert (again, status_of(pipeline, run_id)) == ([(uid, 2)], dg.DagsterRunStatus.FAILURE)
    else:
        assert (again, status_of(pipeline, run_id)) == ([], dg.DagsterRunStatus.STARTED)


@pytest.mark.parametrize("status", ["completed", "failed", "canceled", "expired"])
@pytest.mark.parametrize("job", ["export", "notify"])
def test_a_run_of_a_request_that_ended_does_not_keep_its_slot_for_ever(
    pipeline: Pipeline, status: str, job: str
) -> None:
    quiet, beats = pipeline.ask(), pipeline.ask()
    run_id, lives = lost(pipeline, quiet, job), lost(pipeline, beats, job)
    old = utc_now() - timedelta(hours=1)
    pipeline.update(quiet, status=status, run_id=run_id, heartbeat_at=old, completed_at=old)
    # A run that mails a failure beats no longer, and a mail may take ten minutes.
    heard = utc_now() - (STALE if status == "failed" else timedelta())
    pipeline.update(beats, status=status, run_id=lives, heartbeat_at=heard, completed_at=old)
    evaluate(pipeline, export_reconciler)
    assert status_of(pipeline, run_id) is dg.DagsterRunStatus.FAILURE
    assert status_of(pipeline, lives) is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("job", ["export", "notify"])
def test_a_run_that_does_not_own_its_request_has_the_time_of_a_heartbeat_from_its_start(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """A notify run of a failure mail, a re-execution that was lost before it took the row."""
    uid, other = pipeline.ask(), pipeline.ask()
    owner = a_run(pipeline, other, dg.DagsterRunStatus.STARTED)
    pipeline.update(uid, status="failed", run_id="another", completed_at=utc_now())
    pipeline.update(other, status="running", attempt=1, run_id=owner, heartbeat_at=utc_now())
    runs = [lost(pipeline, uid, job), lost(pipeline, other, job)]
    elsewhere = lost(pipeline, str(UUID(int=7)), job)  # another installation's
    for run_id in (*runs, elsewhere, owner):
        run = pipeline.instance.get_run_by_id(run_id)
        assert run is not None
        pipeline.instance.report_engine_event("begins", run)
        started = DagsterEvent(DagsterEventType.RUN_START.value, run.job_name)
        pipeline.instance.report_dagster_event(started, run_id)
    evaluate(pipeline, export_reconciler)
    assert {status_of(pipeline, run_id) for run_id in runs} == {dg.DagsterRunStatus.STARTED}
    later = time.time() + 3600
    monkeypatch.setattr(reconciler.time, "time", lambda: later)
    evaluate(pipeline, export_reconciler)
    assert {status_of(pipeline, run_id) for run_id in runs} == {dg.DagsterRunStatus.FAILURE}
    assert {status_of(pipeline, run_id) for run_id in (elsewhere, owner)} == {dg.DagsterRunStatus.STARTED}


def test_a_run_that_was_terminated_while_it_was_queued_cancels_its_row_at_the_next_tick(pipeline: Pipeline) -> None:
    uid, other = pipeline.ask(), pipeline.ask()
    claim, goes_on = pipeline.claim()
    for one, status in ((claim, dg.DagsterRunStatus.CANCELED), (goes_on, dg.DagsterRunStatus.NOT_STARTED)):
        run_tags = tags.run_tags(one, rows=None, large_rows=1)
        create_run_for_test(pipeline.instance, job_name="export", tags=run_tags, status=status)
    evaluate(pipeline, export_cancellations)
    assert [pipeline.state(one).status for one in (uid, other)] == ["canceled", "queued"]


def test_a_test_of_the_sensor_in_the_ui_claims_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.ask()
    exports = pipeline.definitions.resources["exports"]  # type: ignore[index]
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        reference = instance.get_ref()
    by_hand: dict[str, Any] = {"last_tick_completion_time": None, "last_run_key": None, "cursor": None}
    for started, launches in ((None, False), (time.time(), True)):  # the daemon says when it started the sensor
        with dg.SensorEvaluationContext(
            reference, **by_hand, repository_name=None, last_sensor_start_time=started, resources={"exports": exports}
        ) as context:
            result: Any = export_requests(context)
        assert isinstance(result, dg.SensorResult) is launches


def stale_request(
    *, running: bool = True, timed_out: bool = False, attempt: int = 1, run_id: str = "r"
) -> StaleRequest:
    return StaleRequest(1, "uid", attempt, running, run_id if running else None, timed_out)


ENDED, ALIVE, CANCELED = (RunView("r", 1, f, c) for f, c in ((True, False), (False, False), (True, True)))
WAITING = RunView("r", 1, finished=False, canceled=False, waiting=True)
ACTIONS = [
    ("claimed, no run", stale_request(running=False), [], Action.REQUEST_AGAIN),
    ("claimed, run waits", stale_request(running=False), [ALIVE], Action.LEAVE),
    ("claimed, run ended", stale_request(running=False), [ENDED], Action.NEW_ATTEMPT),
    ("claimed, run canceled", stale_request(running=False), [CANCELED], Action.CANCEL),
    ("claimed, only an older run", stale_request(running=False, attempt=2), [ENDED], Action.REQUEST_AGAIN),
    ("running, silent, run alive", stale_request(), [ALIVE], Action.LEAVE),
    ("running, timed out, run alive", stale_request(timed_out=True), [ALIVE], Action.NEW_ATTEMPT),
    ("running, run ended", stale_request(), [ENDED], Action.NEW_ATTEMPT),
    ("running, timed out, re-execution waits", stale_request(timed_out=True), [ENDED, WAITING], Action.LEAVE),
    ("running, ended and re-executed", stale_request(), [ENDED, ALIVE], Action.LEAVE),
    ("running, run deleted in the UI", stale_request(), [], Action.NEW_ATTEMPT),
    ("running, canceled in Dagster", stale_request(), [CANCELED], Action.CANCEL),
    ("running, another run of it canceled", stale_request(run_id="owner"), [CANCELED], Action.NEW_ATTEMPT),
]


@pytest.mark.parametrize(("name", "row", "runs", "expected"), ACTIONS, ids=[case[0] for case in ACTIONS])
def test_action(name: str, row: StaleRequest, runs: list[RunView], expected: Action) -> None:
    assert action_for(row, runs, max_attempts=3) is expected


def test_action_after_the_last_attempt() -> None:
    assert action_for(stale_request(attempt=3), [RunView("r", 3, True, False)], max_attempts=3) is Action.GIVE_UP
