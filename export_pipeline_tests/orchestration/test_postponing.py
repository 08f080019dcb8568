"""What does not answer for a while costs nobody anything: the request waits in the queue and loses no attempt."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import RequestStatus
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration import execution, ops, tags
from export_pipeline.orchestration.sensors import alerts
from export_pipeline.orchestration.sensors.alerts import problems
from export_pipeline_tests.orchestration.conftest import Pipeline

AWAY = {
    FailureCode.SOURCE_UNAVAILABLE: "stage_rows",
    FailureCode.STAGING_UNAVAILABLE: "serialize_shard",
    FailureCode.STORE_UNAVAILABLE: "upload_files",
}


def broken(code: FailureCode, calls: list[int] | None = None) -> Any:
    def fails(*arguments: Any, **options: Any) -> Any:
        if calls is not None:
            calls.append(1)
        raise ExportFailure(code, "It does not answer.")

    return fails


def due(pipeline: Pipeline, uid: str) -> None:
    pipeline.update(uid, not_before=None)


def run_of(pipeline: Pipeline, result: dg.ExecuteInProcessResult) -> dg.DagsterRun:
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


@pytest.mark.slow
@pytest.mark.parametrize("code", AWAY)
def test_a_request_is_postponed_not_failed_and_completes_when_it_answers(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, code: FailureCode
) -> None:
    uid = pipeline.ask()
    for postponed in range(1, 6):  # more often than it has attempts
        with monkeypatch.context() as patch:
            patch.setattr(ops, AWAY[code], broken(code))
            (claim,) = pipeline.claim()
            result = pipeline.run(claim)
        state = pipeline.request(uid)
        assert (state.status, state.postponements) == (RequestStatus.QUEUED, postponed)
        assert state.not_before is not None
        assert pipeline.staged == []
        (step,) = [one for one in result.all_events if one.is_step_failure]
        assert (step.step_failure_data.error_display_string or "").find("Postponed until") > 0
        run = run_of(pipeline, result)
        assert run.tags[tags.POSTPONED] == code.value
        assert tags.ERROR_CODE not in run.tags
        assert alerts.alertable_failure(pipeline.instance, run, frozenset({"transient", "ours"})) is None
        due(pipeline, uid)
    (claim,) = pipeline.claim()
    assert pipeline.run(claim).success
    assert pipeline.state(uid).status is RequestStatus.COMPLETED
    assert len(pipeline.outbox) == 1  # and no mail of a failure


@pytest.mark.parametrize("code", [FailureCode.INVALID_OPTION, FailureCode.MAIL_UNAVAILABLE, FailureCode.STORE_REFUSED])
def test_every_other_failure_is_final(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, code: FailureCode) -> None:
    monkeypatch.setattr(ops, "upload_files", broken(code))
    _, state = pipeline.export()
    row = pipeline.request(state.uid)
    assert (row.status, state.error_code, row.postponements) == (RequestStatus.FAILED, code.value, 0)


def test_a_request_that_was_postponed_for_a_day_fails(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = pipeline.ask()
    pipeline.update(uid, postponements=31)
    monkeypatch.setattr(ops, "stage_rows", broken(FailureCode.SOURCE_UNAVAILABLE))
    (claim,) = pipeline.claim()
    run = run_of(pipeline, pipeline.run(claim))
    assert pipeline.state(uid).status is RequestStatus.FAILED
    assert run.tags[tags.ERROR_CODE] == FailureCode.SOURCE_UNAVAILABLE.value


@pytest.mark.parametrize("away", [1, 10])
def test_a_run_waits_for_the_request_database_in_its_place(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    """Nothing else could use its slot; the step goes on where it was, and no attempt is used up."""
    left = [away]
    enter = execution._Frame.enter

    def entered(frame: Any, which: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise sa.exc.OperationalError("", {}, Exception("server closed the connection"))
        return enter(frame, which)

    monkeypatch.setattr(execution._Frame, "enter", entered)
    result, state = pipeline.export()
    assert result.success
    assert (state.status, state.attempt, pipeline.request(state.uid).postponements) == (RequestStatus.COMPLETED, 1, 0)


def test_the_end_of_a_step_is_written_once_the_request_database_answers(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source and requests on one server: both are away, and the step's end cannot be written at first."""
    left = [5]
    postpone = execution.transitions.postpone

    def away(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise sa.exc.OperationalError("", {}, Exception("server closed the connection"))
        return postpone(*arguments, **options)

    monkeypatch.setattr(execution.transitions, "postpone", away)
    monkeypatch.setattr(ops, "stage_rows", broken(FailureCode.SOURCE_UNAVAILABLE))
    _, state = pipeline.export()
    assert (left, state.status, pipeline.request(state.uid).postponements) == ([0], RequestStatus.QUEUED, 1)


def test_an_outage_that_lasts_is_red_and_names_what_does_not_answer(pipeline: Pipeline) -> None:
    exports: Any = (pipeline.definitions.resources or {})["exports"]
    assert problems(exports) == []
    uid = pipeline.ask()
    pipeline.update(uid, postponements=6, postponed_at=utc_now(), error_code="store_unavailable")
    (problem,) = problems(exports)
    assert "store_unavailable" in problem
