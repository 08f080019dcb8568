"""What the runbook says is true: the words stand where the operator looks, and pressing what they name helps."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipeline.database.tables import organization_members
from export_pipeline.definitions import build_definitions
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.orchestration import heartbeat, ops, tags
from export_pipeline.orchestration.metadata import metadata_of
from export_pipeline.orchestration.runbook import RUNBOOK, Turn
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline_tests.orchestration.conftest import Pipeline

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def export_job() -> dg.JobDefinition:
    return build_definitions().resolve_job_def("export")


class Operator:
    """Runs exports where they can be re-executed: on an instance with files."""

    def __init__(self, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
        self.pipeline = pipeline
        self.instance = instance

    def export(self, **asked: Any) -> tuple[str, dg.DagsterRun]:
        uid = self.pipeline.ask(**asked)
        (claim,) = self.pipeline.claim()
        request = run_request(claim)
        with dg.execute_job(
            dg.reconstructable(export_job), instance=self.instance, run_config=request.run_config, tags=request.tags
        ) as result:
            return uid, self.run(result.run_id)

    def from_failure(self, run: dg.DagsterRun) -> dg.DagsterRun:
        return self._again(run, dg.ReexecutionOptions.from_failure(run.run_id, self.instance))

    def from_the_start(self, run: dg.DagsterRun) -> dg.DagsterRun:
        return self._again(run, dg.ReexecutionOptions(run.run_id))

    def _again(self, run: dg.DagsterRun, options: dg.ReexecutionOptions) -> dg.DagsterRun:
        """The buttons; like them, it hands the parent's tags on."""
        with dg.execute_job(
            dg.reconstructable(export_job),
            instance=self.instance,
            run_config=run.run_config,
            tags=run.tags,
            reexecution_options=options,
        ) as result:
            return self.run(result.run_id)

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def failure_of(self, run: dg.DagsterRun) -> dict[str, Any]:
        (record,) = self.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
        event = record.event_log_entry.dagster_event
        assert event is not None
        assert event.step_failure_data.user_failure_data is not None
        return {name: value.value for name, value in event.step_failure_data.user_failure_data.metadata.items()}


@pytest.fixture
def operator(pipeline: Pipeline, tmp_path: Path) -> Iterator[Operator]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield Operator(pipeline, instance)


def store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(FailureCode.STORE_REFUSED, "The bucket does not exist.")

    monkeypatch.setattr(ops, "upload_files", broken)


def test_the_failed_step_says_whose_turn_it_is_and_what_to_press_and_the_re_execution_is_clean(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        store_fails(patch)
        uid, failed = operator.export()
        assert operator.failure_of(failed) == {
            "error_code": "store_refused",
            "fault": "ours",
            "turn": "operator",
            "what_to_press": RUNBOOK[FailureCode.STORE_REFUSED].plain,
            "row": f"export-pipeline status {uid}",
        }
        assert (failed.tags[tags.ERROR_CODE], failed.tags[tags.FAULT]) == ("store_refused", "ours")
        again = operator.from_failure(failed)
        assert again.tags[tags.ERROR_CODE] == "store_refused"
    served = operator.from_failure(again)
    assert served.status is dg.DagsterRunStatus.SUCCESS
    assert (served.tags[tags.ERROR_CODE], served.tags[tags.FAULT]) == ("none", "none")
    assert operator.pipeline.state(uid).status == "completed"
    assert len(operator.pipeline.outbox) == 1


def member(pipeline: Pipeline, *permissions: str) -> None:
    with pipeline.database.begin() as connection:
        connection.execute(organization_members.delete())
        connection.execute(
            organization_members.insert().values(organization_id="acme", member_id="u1", permissions=list(permissions))
        )


def test_what_an_organization_provides_later_is_served_from_the_start(operator: Operator) -> None:
    """As the runbook says of ``permission_denied``, ``insufficient_balance`` and the like."""
    member(operator.pipeline)
    uid, failed = operator.export(requested_by="u1")
    assert operator.failure_of(failed)["turn"] == Turn.ORGANIZATION
    member(operator.pipeline, "people:export")
    assert operator.from_the_start(failed).status is dg.DagsterRunStatus.SUCCESS
    assert operator.pipeline.state(uid).status == "completed"


def test_progress_is_told_in_the_event_log_without_anything_personal(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LOG_SECONDS", 0.0)
    _, run = operator.export()
    total = operator.pipeline.state(run.tags[tags.REQUEST_UID]).row_count
    logged = [entry for entry in operator.instance.all_logs(run.run_id) if not entry.is_dagster_event]
    said = [entry.user_message for entry in logged if entry.level >= logging.INFO]
    assert said[:2] == ["Counting the rows ...", f"The snapshot is open: {total} rows to export."]
    assert f"{total} of {total} rows done." in said
    assert all(
        re.fullmatch(r"(The snapshot is open: )?[\d,]+( of [\d,]+)? rows (done|to export)\.", one) for one in said[1:]
    )


def test_every_code_has_its_advice_and_every_requester_fault_somebody_elses_turn() -> None:
    assert set(RUNBOOK) == set(FailureCode)
    for code, advice in RUNBOOK.items():
        assert (advice.turn is Turn.OPERATOR) or code.fault is Fault.REQUESTER, code
        assert metadata_of(ExportFailure(code, "it failed"))["what_to_press"] == advice.plain


def test_the_page_has_every_code_with_the_words_of_the_runbook() -> None:
    page = OPERATIONS.read_text().split("## Runbook\n", 1)[1].split("\n## ", 1)[0]
    told = {
        code: (turn, press) for code, turn, press in re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    }
    for section in page.split("\n#### ")[1:]:
        code = section.split("`")[1]
        told[code] = tuple(
            re.findall(rf"^\* \*\*{name}:\*\* (.+)$", section, re.MULTILINE)[0] for name in ("Turn", "Press")
        )
        assert len(re.findall(r"^\* \*\*Look at:\*\* .{20,}$", section, re.MULTILINE)) == 1, code
    assert told == {code.value: (advice.turn.value, advice.press) for code, advice in RUNBOOK.items()}


def test_descriptions_name_tags_that_exist() -> None:
    from export_pipeline.orchestration import jobs, ops
    from export_pipeline.orchestration.sensors import alerts, cancellations, due, reconciler, requests

    known = {value for value in vars(tags).values() if isinstance(value, str)} | {
        alerts.TAG + channel for channel in ("webhook", "mail")
    }
    modules = (jobs, ops, alerts, cancellations, due, reconciler, requests)
    declared = [*(value for module in modules for value in vars(module).values()), alerts.alerts_sensor(running=True)]
    kinds = dg.OpDefinition | dg.JobDefinition | dg.SensorDefinition
    written = [value.description or "" for value in declared if isinstance(value, kinds)]
    assert len(written) >= 19
    assert all(text.strip() for text in written)
    written.append(OPERATIONS.read_text())
    assert {tag for text in written for tag in re.findall(r"export/[a-z_]+", text)} <= known
