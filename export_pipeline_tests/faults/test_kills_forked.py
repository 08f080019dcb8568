"""Steps in processes of their own under Dagster's own launcher: what outlives its worker, what nobody reports.

By default steps run in the worker, which the warm run launcher watches. This is the installation that has neither:
``EXPORT_EXECUTOR=multiprocess`` without our launcher.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psutil
import pytest

from export_pipeline.demo.home import Home
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.exports import ACME, SETTINGS, ask, prepare
from export_pipeline_tests.faults.gates import gate
from export_pipeline_tests.faults.promises import at_rest, broken, files_of, left_behind, unbalanced
from export_pipeline_tests.faults.supervisor import CODE_SERVER, Supervisor, kill, lives, supervise, wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, open_stack

pytestmark = pytest.mark.timeout(900)
SLOW = {"organization_id": ACME, "dataset": "steady", "format": "csv"}
"""Reads for 20 s, so that its step outlives the kill of its worker however busy the machine is."""


def with_dagsters_own_launcher(home: Home, database_url: str) -> None:
    prepare(home, database_url)
    configuration = home.dagster_home / "dagster.yaml"
    before, launcher, after = configuration.read_text().partition("run_launcher:\n")
    assert launcher
    configuration.write_text(before + after[after.index("\n\n") :])


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    # With a heartbeat of half a second, a step that a busy machine delays by 2.5 s counts as dead.
    settings = SETTINGS | {"EXPORT_HEARTBEAT_SECONDS": "1"}
    settings |= {"EXPORT_EXECUTOR": "multiprocess", "EXPORT_EXECUTOR_CONCURRENCY": "2"}
    directory = tmp_path_factory.mktemp("forked")
    with open_stack(postgres_server, s3_server, directory, prepare=with_dagsters_own_launcher, **settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def supervisor(stack: Stack) -> Iterator[Supervisor]:
    with supervise(stack) as supervisor:
        yield supervisor


def test_a_step_that_outlives_its_killed_worker_and_a_run_that_nobody_reports(
    stack: Stack, supervisor: Supervisor, tally: Tally
) -> None:
    undisturbed = ask(stack, "slow", **SLOW)
    outlived, uid = ask(stack, "slow", **SLOW), str(uuid.uuid4())
    completes = f"NEW.uid = '{uid}' AND NEW.status = 'completed' AND OLD.status = 'running'"
    with gate(stack, "the row's completion", "UPDATE ON export_requests", completes) as closed:
        finished_alone = ask(stack, "slow", uid=uid, **SLOW)
        row = stack.wait(outlived.uid, lambda row: row["stage"] == "filter_entities")
        kill_worker(supervisor, row["run_id"])
        # The step lives on, and says so: its request is left to it.
        beat = stack.row(outlived.uid)["heartbeat_at"]
        row = stack.wait(outlived.uid, lambda row: row["heartbeat_at"] > beat)
        assert row["attempt"] == 1
        wait_until(lambda: supervisor.status(row["run_id"]) == "FAILURE", 180)

        closed.wait()
        kill_worker(supervisor, stack.row(finished_alone.uid)["run_id"])
    asked = [outlived, finished_alone]
    wait_until(lambda: at_rest(stack, [*asked, undisturbed]), 300, why=stack.logs)
    assert [stack.row(one.uid)["attempt"] for one in asked] == [2, 1]

    together = ask(stack, "slow", **SLOW)
    row = stack.wait(together.uid, lambda row: row["stage"] == "filter_entities")
    worker = supervisor.worker(row["run_id"])
    assert worker is not None
    restart = supervisor.kill(CODE_SERVER)
    family = [worker, *worker.children(recursive=True)]
    for one in family:
        kill(one)
    restart()
    assert supervisor.status(row["run_id"]) == "STARTED"  # for ever, as far as Dagster is concerned
    stack.wait(together.uid, lambda row: row["attempt"] == 2)
    assert supervisor.status(row["run_id"]) == "FAILURE"
    wait_until(lambda: at_rest(stack, [together]), 300, why=stack.logs)

    asked.append(together)
    found = {one.uid: broken(stack, one, files_of(stack, undisturbed.uid)) for one in asked}
    names = ("kill -9 of a worker whose step lives on",) * 2 + ("kill -9 of code server, worker and step together",)
    for name, one in zip(names, found.values(), strict=True):
        tally(name, tries=1, survived=int(not one), lost=int(bool(one.lost)), doubled=int(bool(one.doubled)))
    assert {uid: vars(bad) for uid, bad in found.items() if bad} == {}
    assert unbalanced(stack) == []
    assert left_behind(stack, asked) == []


def kill_worker(supervisor: Supervisor, run_id: str) -> None:
    """The worker alone: its step goes on in a process of its own."""
    worker = supervisor.worker(run_id)
    assert worker is not None
    children: list[psutil.Process] = worker.children(recursive=True)
    assert kill(worker)
    assert any(lives(one) for one in children)
