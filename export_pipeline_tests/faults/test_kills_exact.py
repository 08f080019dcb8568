"""SIGKILL between two statements, processes that are taken for dead and live on, two daemons, attempts that run out."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.exports import ACME, KINDS, SETTINGS, Asked, ask, prepare
from export_pipeline_tests.faults.gates import Gate, gate
from export_pipeline_tests.faults.promises import Files, at_rest, broken, files_of, left_behind, query, unbalanced
from export_pipeline_tests.faults.supervisor import DAEMON, Supervisor, kill, lives, supervise, wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = pytest.mark.timeout(900)
MAX_ATTEMPTS = 3
STALE_SECONDS = 6


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    tight = {
        "EXPORT_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "EXPORT_HEARTBEAT_SECONDS": "0.5",
        "EXPORT_HEARTBEAT_TIMEOUT_SECONDS": str(STALE_SECONDS),
    }
    directory = tmp_path_factory.mktemp("exact")
    with open_stack(postgres_server, s3_server, directory, prepare=prepare, **{**SETTINGS, **tight}) as stack:
        yield stack


@pytest.fixture(scope="module")
def supervisor(stack: Stack) -> Iterator[Supervisor]:
    with supervise(stack) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def expected(stack: Stack) -> dict[str, Files]:
    """Files of exports that nobody disturbed."""
    asked = [ask(stack, kind) for kind in KINDS]
    wait_until(lambda: at_rest(stack, asked), 300, why=stack.logs)
    return {one.kind: files_of(stack, one.uid) for one in asked}


_STAGE = "NEW.uid = '{uid}' AND NEW.stage = '%s' AND NEW.stage IS DISTINCT FROM OLD.stage"
_MAIL = "NEW.request_id = (SELECT id FROM export_requests WHERE uid = '{uid}')"
POINTS = {
    "planned, nothing reserved": ("INSERT ON email_charges", "NEW.request_uid = '{uid}'"),
    "rows staged, nothing serialized": ("UPDATE ON export_requests", _STAGE % "serialize"),
    "serialized, nothing uploaded": ("UPDATE ON export_requests", _STAGE % "upload"),
    "uploaded, no manifest": ("UPDATE ON export_requests", _STAGE % "publish"),
    "manifest written, row not completed": (
        "UPDATE ON export_requests",
        "NEW.uid = '{uid}' AND NEW.status = 'completed' AND OLD.status = 'running'",
    ),
    "completed, no mail begun": ("UPDATE ON export_requests", _STAGE % "notify_recipients"),
    "one mail handed over, not noted": (
        "UPDATE ON export_notifications",
        "NEW.recipient = '{first}' AND NEW.status = 'sent'",
    ),
    "one mail noted, the second not begun": (
        "UPDATE ON export_notifications",
        "NEW.recipient = '{second}' AND NEW.status = 'sending'",
    ),
}


def test_a_worker_killed_between_two_statements_loses_nothing_and_doubles_nothing(
    stack: Stack, supervisor: Supervisor, expected: dict[str, Files], tally: Tally
) -> None:
    kinds = ("csv", "xlsx", "multipart", "ndjson")
    waiting: list[tuple[Gate, Asked]] = []
    with ExitStack() as gates:
        for number, (name, (event, condition)) in enumerate(POINTS.items()):
            uid, kind = str(uuid.uuid4()), kinds[number % len(kinds)]
            recipients = [f"point{number}-{place}@example.com" for place in (1, 2)]
            held = condition.format(uid=uid, first=recipients[0], second=recipients[1])
            closed = gates.enter_context(gate(stack, name, event, held))
            waiting.append((closed, ask(stack, kind, uid=uid, recipients=recipients)))
        asked = [one for _, one in waiting]
        while waiting:
            wait_until(lambda: any(closed.reached() for closed, _ in waiting), 300, why=stack.logs)
            closed, one = next(pair for pair in waiting if pair[0].reached())
            worker = supervisor.worker(_run_of(supervisor, one))
            assert worker is not None
            assert kill(worker)
            closed.open()
            waiting.remove((closed, one))
        wait_until(lambda: at_rest(stack, asked), 300, why=stack.logs)
    found = {name: broken(stack, one, expected[one.kind]) for name, one in zip(POINTS, asked, strict=True)}
    tally(
        "kill -9 of the worker between two statements",
        tries=len(found),
        survived=sum(not one for one in found.values()),
        lost=sum(bool(one.lost) for one in found.values()),
        doubled=sum(bool(one.doubled) for one in found.values()),
    )
    assert {name: vars(bad) for name, bad in found.items() if bad} == {}
    # Handed over and not noted: it arrived, and the ledger says what it knows.
    assert {name: one.unknown for name, one in found.items() if one.unknown} == {"one mail handed over, not noted": 1}
    (uncertain,) = [one for name, one in zip(POINTS, asked, strict=True) if found[name].unknown]
    assert [len(stack.mails(address)) for address in uncertain.recipients] == [1, 1]
    attempts = {name: stack.row(one.uid)["attempt"] for name, one in zip(POINTS, asked, strict=True)}
    before_completion = list(POINTS)[:5]
    assert attempts == {name: 2 if name in before_completion else 1 for name in POINTS}
    assert unbalanced(stack) == []
    assert left_behind(stack, asked) == []


def _run_of(supervisor: Supervisor, asked: Asked) -> str:
    """The run that works on a request: its row may not say so yet."""
    from export_pipeline.orchestration.runs import runs_of

    (run,) = [run for run in runs_of(supervisor.instance, asked.uid) if not run.finished]
    return run.run_id


FROZEN = ("rows staged, nothing serialized", "serialized, nothing uploaded", "manifest written, row not completed")


def test_a_worker_taken_for_dead_that_lives_on_delivers_and_mails_nothing(
    stack: Stack, supervisor: Supervisor, expected: dict[str, Files], chance: random.Random, tally: Tally
) -> None:
    """A paused machine, a network partition: nobody can see that it is not dead. It holds its row's lock, too."""
    asked: list[Asked] = []
    frozen: list[psutil.Process] = []
    try:
        for name, kind in zip(FROZEN, ("csv", "multipart", "ndjson"), strict=True):
            uid = str(uuid.uuid4())
            event, condition = POINTS[name]
            with gate(stack, name, event, condition.format(uid=uid)) as closed:
                asked.append(ask(stack, kind, uid=uid))
                closed.wait()
                worker = supervisor.worker(_run_of(supervisor, asked[-1]))
                assert worker is not None
                if kind == "multipart":  # somewhere in the upload
                    closed.open()
                    time.sleep(chance.uniform(0, 0.05))
                worker.suspend()
                frozen.append(worker)
        wait_until(lambda: at_rest(stack, asked), 300, why=stack.logs)
    finally:
        for worker in frozen:
            worker.resume()
    wait_until(lambda: not any(map(lives, frozen)), 300, why=stack.logs)
    found = {one.uid: broken(stack, one, expected[one.kind]) for one in asked}
    tally(
        "worker frozen until it is taken for dead, then going on",
        tries=len(found),
        survived=sum(not one for one in found.values()),
        lost=sum(bool(one.lost) for one in found.values()),
        doubled=sum(bool(one.doubled) for one in found.values()),
    )
    assert {uid: vars(bad) for uid, bad in found.items() if bad} == {}
    assert [stack.row(one.uid)["attempt"] for one in asked] == [2, 2, 2]
    assert unbalanced(stack) == []
    assert left_behind(stack, asked) == []


def test_attempts_run_out_and_a_slow_export_that_lives_is_left_alone(
    stack: Stack, supervisor: Supervisor, tally: Tally
) -> None:
    steady = {"organization_id": ACME, "dataset": "steady", "format": "csv"}
    slow = ask(stack, "steady", recipients=["slow@example.com"], **steady)
    doomed = ask(stack, "steady", recipients=["doomed@example.com"], **steady)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        row = stack.wait(doomed.uid, lambda row: row["stage"] == "filter_entities" and row["attempt"] == attempt)  # noqa: B023
        worker = supervisor.worker(row["run_id"])
        assert worker is not None
        assert kill(worker)
    row = stack.wait(doomed.uid, finished, 180)
    assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "attempts_exhausted", MAX_ATTEMPTS)
    assert stack.mails(doomed.recipients[0]) == []
    charges = query(stack, "SELECT status FROM email_charges WHERE request_uid = %(uid)s::uuid", uid=doomed.uid)
    assert [one["status"] for one in charges] == ["released"]

    row = stack.wait(slow.uid, finished, 300)
    assert (row["status"], row["attempt"], row["row_count"]) == ("completed", 1, 100)
    assert (row["completed_at"] - row["started_at"]).total_seconds() > 3 * STALE_SECONDS
    stack.wait_for_mail(slow.recipients[0])
    reference = [(1, 100, row["byte_count"], files_of(stack, slow.uid)[0][3])]
    healthy = broken(stack, slow, reference)
    assert not healthy, vars(healthy)
    tally("kill -9 of the worker in every attempt: failed, reported, nothing charged", tries=1, survived=1)
    tally("export slower than the stale limit, with a heartbeat: left alone", tries=1, survived=1)
    assert unbalanced(stack) == []


def test_two_daemons_at_once_and_one_of_them_killed_run_each_request_once(
    stack: Stack, supervisor: Supervisor, expected: dict[str, Files], chance: random.Random, tally: Tally
) -> None:
    second = supervisor.second_daemon()
    asked = [ask(stack, chance.choice(list(KINDS))) for _ in range(10)]
    wait_until(lambda: at_rest(stack, asked[:3]), 300, why=stack.logs)
    asked += [ask(stack, chance.choice(list(KINDS))) for _ in range(4)]
    time.sleep(chance.uniform(0, 4))
    supervisor.kill(chance.choice([DAEMON, second]))
    wait_until(lambda: at_rest(stack, asked), 300, why=stack.logs)
    found = {one.uid: broken(stack, one, expected[one.kind]) for one in asked}
    tally(
        "two daemons at once, one of them killed",
        tries=len(found),
        survived=sum(not one for one in found.values()),
        lost=sum(bool(one.lost) for one in found.values()),
        doubled=sum(bool(one.doubled) for one in found.values()),
    )
    assert {uid: vars(bad) for uid, bad in found.items() if bad} == {}
    assert unbalanced(stack) == []
    assert left_behind(stack, asked) == []
