"""Retry in the UI: what its buttons ask for by GraphQL, of a real webserver.

From failure, an export goes on at the shard that failed; a finished one is neither exported nor mailed nor paid again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
import requests

from export_pipeline.demo.home import free_port
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.exports import SETTINGS, ask, prepare
from export_pipeline_tests.faults.gates import gate
from export_pipeline_tests.faults.promises import at_rest, broken, files_of, left_behind, query, unbalanced
from export_pipeline_tests.faults.supervisor import Supervisor, supervise, wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = pytest.mark.timeout(900)
_REEXECUTE = """
mutation($p: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $p) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  }
}
"""
_SELECTED = """
mutation($p: ExecutionParams!) {
  launchRunReexecution(executionParams: $p) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  }
}
"""


@dataclass
class Ui:
    """The buttons of the UI."""

    url: str
    supervisor: Supervisor

    def press(self, run_id: str, strategy: str) -> str:
        """*Re-execute*, *From failure* or *All*; returns the status of the run that it launched."""
        return self._launched(self._ask(_REEXECUTE, {"parentRunId": run_id, "strategy": strategy}))

    def select(self, run_id: str, *steps: str) -> str:
        """*Re-execute*, *Selected*; returns the run that it launched."""
        run = self.supervisor.instance.get_run_by_id(run_id)
        assert run is not None
        assert run.remote_job_origin is not None
        origin = run.remote_job_origin
        parameters = {
            "selector": {
                "repositoryLocationName": origin.location_name,
                "repositoryName": origin.repository_origin.repository_name,
                "pipelineName": run.job_name,
            },
            "runConfigData": run.run_config,
            "mode": "default",
            "stepKeys": list(steps),
            "executionMetadata": {
                "rootRunId": run.root_run_id or run_id,
                "parentRunId": run_id,
                "tags": [{"key": key, "value": value} for key, value in run.tags.items() if key.startswith("export/")],
            },
        }
        return self._launched(self._ask(_SELECTED, parameters))

    def _ask(self, mutation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": mutation, "variables": {"p": parameters}}, timeout=60
        ).json()
        told: dict[str, Any] = answer["data"]["launchRunReexecution"]
        assert told["__typename"] == "LaunchRunSuccess", told
        return told

    def _launched(self, told: dict[str, Any]) -> str:
        run_id: str = told["run"]["runId"]
        wait_until(lambda: self._is_finished(run_id), 300, why=self.supervisor.stack.logs)
        return run_id

    def _is_finished(self, run_id: str) -> bool:
        run = self.supervisor.instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    def steps(self, run_id: str, event: dg.DagsterEventType = dg.DagsterEventType.STEP_SUCCESS) -> list[str]:
        """The steps of a run that came to this event, in order."""
        records = self.supervisor.instance.get_records_for_run(run_id, of_type=event).records
        events = [record.event_log_entry.dagster_event for record in records]
        return [str(one.step_key) for one in events if one is not None]


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("retry")
    with open_stack(postgres_server, s3_server, directory, prepare=prepare, **SETTINGS) as stack:
        yield stack


@pytest.fixture(scope="module")
def ui(stack: Stack) -> Iterator[Ui]:
    port = free_port()
    assert stack.processes is not None
    stack.processes.webserver(stack.home.workspace, port)
    with supervise(stack) as supervisor:
        yield Ui(f"http://127.0.0.1:{port}", supervisor)


def charges(stack: Stack, uid: str) -> list[str]:
    found = query(stack, "SELECT status FROM email_charges WHERE request_uid = %(uid)s::uuid", uid=uid)
    return [one["status"] for one in found]


def test_from_failure_goes_on_at_the_failed_shard_and_nothing_finished_is_done_again(
    stack: Stack, ui: Ui, tally: Tally
) -> None:
    undisturbed = ask(stack, "shards")
    wait_until(lambda: at_rest(stack, [undisturbed]), 300, why=stack.logs)
    expected = files_of(stack, undisturbed.uid)

    # The third shard's rows are not to be had for a while (a disk that went away), the others' are.
    uid = str(uuid.uuid4())
    begins = f"NEW.uid = '{uid}' AND NEW.stage = 'serialize' AND OLD.stage = 'filter_entities'"
    with gate(stack, "the first shard", "UPDATE ON export_requests", begins) as closed:
        one = ask(stack, "shards", uid=uid)
        closed.wait()
        (rows,) = (stack.home.directory / "staging" / uid).rglob("00003.arrow")
        away = rows.with_suffix(".away")
        rows.rename(away)
    row = stack.wait(uid, finished)
    assert (row["status"], row["error_code"]) == ("failed", "staging_lost")
    assert charges(stack, uid) == ["released", "released"]
    wait_until(lambda: ui._is_finished(row["run_id"]), 60, why=stack.logs)
    done = ui.steps(row["run_id"])
    assert [step for step in done if step.startswith(("serialize", "upload"))] != []
    assert ui.steps(row["run_id"], dg.DagsterEventType.STEP_FAILURE) == ["serialize[00003]"]

    away.rename(rows)
    again = ui.press(row["run_id"], "FROM_FAILURE")
    assert ui.steps(again) == ["serialize[00003]", "upload[00003]", "publish", "notify_recipients"]
    wait_until(lambda: at_rest(stack, [one]), 30, why=stack.logs)
    resumed = broken(stack, one, expected)
    assert not resumed, vars(resumed)
    assert (stack.row(uid)["attempt"], stack.row(uid)["run_id"]) == (1, again)

    finished_run = stack.row(undisturbed.uid)["run_id"]
    for run in (ui.press(finished_run, "ALL_STEPS"), ui.press(again, "ALL_STEPS")):
        assert ui.supervisor.status(run) == "FAILURE"
        assert ui.steps(run) == []
    mail_alone = ui.select(again, "notify_recipients")
    assert ui.supervisor.status(mail_alone) == "SUCCESS"
    publish_again = ui.select(finished_run, "publish", "notify_recipients")
    assert ui.supervisor.status(publish_again) == "SUCCESS"
    wait_until(lambda: at_rest(stack, [one, undisturbed]), 30, why=stack.logs)
    after = {name: broken(stack, each, expected) for name, each in (("resumed", one), ("finished", undisturbed))}
    tally("Re-execute from failure after one shard failed", tries=1, survived=1)
    tally(
        "Re-execute a finished run: all of it, its end, its mails alone",
        tries=4,
        survived=4 - 2 * sum(map(bool, after.values())),
        lost=sum(bool(found.lost) for found in after.values()),
        doubled=sum(bool(found.doubled) for found in after.values()),
    )
    assert {name: vars(found) for name, found in after.items() if found} == {}
    assert unbalanced(stack) == []
    assert left_behind(stack, [one, undisturbed]) == []
