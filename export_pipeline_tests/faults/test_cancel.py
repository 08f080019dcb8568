"""Cancel cancels: at every step, from the row and from the UI, within seconds, and nothing is left of the export."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg
import pytest

from export_pipeline.demo.home import Processes, free_port
from export_pipeline_tests.faults import paced
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.proxy import HttpProxy, http_proxy
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, open_stack

pytestmark = pytest.mark.timeout(600)
PROMISED_SECONDS = 10
"""On a machine that has nothing else to do; see ``BUSY``."""
BUSY = 4
"""How much slower the tests' machine may be: others use it, too."""
SHARDS = {"max_file_size_mb": 1}
"""With 300,000 rows and EXPORT_SHARD_ROWS, three shards."""


@dataclass
class Installation:
    stack: Stack
    store: HttpProxy
    ui: str


@pytest.fixture(scope="module")
def installation(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with ExitStack() as held:
        store = held.enter_context(http_proxy(s3_server.endpoint))
        settings = {"EXPORT_S3_ENDPOINT_URL": store.url, "EXPORT_SHARD_ROWS": "100000"}
        stack = held.enter_context(
            open_stack(postgres_server, s3_server, tmp_path_factory.mktemp("cancel"), **settings)
        )
        paced.create(stack)
        port = free_port()
        processes = held.enter_context(Processes(stack.home.logs, stack.environment))
        processes.webserver(stack.home.workspace, port)
        yield Installation(stack, store, f"http://127.0.0.1:{port}")


@contextmanager
def locked(stack: Stack, table: str) -> Iterator[None]:
    """Whoever reads the table waits."""
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


def in_stage(stage: str, *, rows: int = 0) -> Callable[[Installation, str], bool]:
    def reached(installation: Installation, uid: str) -> bool:
        row = installation.stack.row(uid)
        return row["stage"] == stage and row["rows_done"] >= rows and row["status"] == "running"

    return reached


def held_at_gate(installation: Installation, uid: str) -> bool:
    return any(uid in call.target for call in installation.store.waiting)


def rows_arrive(installation: Installation, uid: str) -> bool:
    """They are counted, and the source sends the first ones: megabytes come before any is staged."""
    if installation.stack.row(uid)["rows_total"] is None:
        return False
    time.sleep(3)
    return True


READING = in_stage("filter_entities")


@dataclass(frozen=True)
class Place:
    """Where a cancel strikes: what the organization exports, what holds the run there, and when it has come there."""

    rows: int = 10
    counting: float = 0
    reading: float = 0
    asked: tuple[tuple[str, Any], ...] = ()
    hold: Callable[[Installation], AbstractContextManager[None]] = lambda _: nullcontext()
    reached: Callable[[Installation, str], bool] = READING


PLACES = {
    "plan": Place(
        asked=(("requested_by", "somebody"),),  # without it, nobody asks whether they may, and the lock holds nothing
        hold=lambda installation: locked(installation.stack, "organization_members"),
        reached=in_stage("plan"),
    ),
    "filter_entities, while it counts": Place(rows=1200, counting=0.1),
    "filter_entities, before the first row": Place(rows=1200, reading=0.1),
    "filter_entities, between two rows": Place(rows=400_000, reading=0.0001, reached=rows_arrive),
    "serialize": Place(rows=8_000_000, asked=(("format", "xlsx"),), reached=in_stage("serialize", rows=1)),
    "upload": Place(hold=lambda installation: installation.store.closed(r"^PUT .*\.csv"), reached=held_at_gate),
    "upload, the second of three shards": Place(
        rows=300_000,
        asked=tuple(SHARDS.items()),
        hold=lambda installation: installation.store.closed(r"^PUT .*part-00002.*\.csv"),
        reached=held_at_gate,
    ),
    "publish": Place(hold=lambda installation: installation.store.closed(r"^PUT .*manifest"), reached=held_at_gate),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_cancel_ends_the_run_where_it_is_and_leaves_nothing(
    installation: Installation, place: str, tally: Tally
) -> None:
    """From the row and from the UI: two requests, one after the other, each canceled in its own way."""
    stack, where = installation.stack, PLACES[place]
    uids = {}
    for way in ("row", "ui"):
        organization = paced.pace(
            stack, f"{place} {way}", rows=where.rows, counting=where.counting, reading=where.reading
        )
        uids[way] = (organization, f"{way}-{list(PLACES).index(place)}@example.com")
    asked, seconds = {}, {}
    with where.hold(installation):
        for way, (organization, recipient) in uids.items():
            asked[way] = uid = paced.ask(stack, organization, [recipient], **dict(where.asked))
            stack.wait(uid, lambda _, uid=uid: where.reached(installation, uid), 150)
            began = time.monotonic()
            cancel(installation, way, uid)
            row = stack.wait(uid, lambda row: row["status"] == "canceled", 120)
            paced.wait_until(lambda uid=uid: all_ended(stack, uid), f"the run of {place} {way} goes on", 120)
            seconds[way] = time.monotonic() - began
            assert row["attempt"] == 1
            assert "terminated by signal" not in events_of(stack, uid), "its process crashed instead of ending"
    print(f"canceled in {place}: " + ", ".join(f"{way} {took:.1f} s" for way, took in seconds.items()))
    for way, uid in asked.items():
        left = [*stack.objects(uid), *uploads_of(stack, uid), *staged_of(stack, uid)]
        mails = stack.mails(uids[way][1])
        clean = not left and not mails and stack.row(uid)["status"] == "canceled"
        tally(f"canceled from the {way} in {place}", tries=1, survived=int(clean), doubled=len(mails))
        assert left == []
        assert mails == []
        assert seconds[way] < PROMISED_SECONDS * BUSY, f"{way}: {seconds[way]:.1f} s"


def cancel(installation: Installation, way: str, uid: str) -> None:
    if way == "ui":
        (run,) = paced.runs_of(installation.stack, uid)
        paced.terminate(installation.ui, run.dagster_run.run_id)
        return
    with psycopg.connect(installation.stack.database_url) as connection:
        connection.execute("UPDATE export_requests SET cancel_requested_at = now() WHERE uid::text = %s", [uid])


def all_ended(stack: Stack, uid: str) -> bool:
    return all(run.dagster_run.is_finished for run in paced.runs_of(stack, uid))


def events_of(stack: Stack, uid: str) -> str:
    """Everything that Dagster's event log says of the request's runs."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        runs = [record.dagster_run.run_id for record in paced.runs_of(stack, uid)]
        return "\n".join(entry.message for run_id in runs for entry in instance.all_logs(run_id))


def uploads_of(stack: Stack, uid: str) -> list[str]:
    return [upload["Key"] for upload in stack.bucket.uploads() if uid in upload["Key"]]


def staged_of(stack: Stack, uid: str) -> list[str]:
    root = stack.home.directory / "staging"
    return [path.as_posix() for path in root.rglob("*") if path.is_file() and uid in path.as_posix()]


def test_a_cancel_before_the_run_makes_none(installation: Installation, tally: Tally) -> None:
    stack = installation.stack
    uid = paced.ask(stack, "never paced", ["early@example.com"], cancel_requested_at="2026-01-01T00:00:00Z")
    row = stack.wait(uid, lambda row: row["status"] == "canceled", 60)
    assert (row["attempt"], paced.runs_of(stack, uid)) == (0, [])
    tally("canceled before the run", tries=1, survived=1)


def test_a_cancel_once_the_mails_go_out_is_too_late_and_says_so(installation: Installation, tally: Tally) -> None:
    """The files are published: a row that says `completed` stays so. Terminating the run stops the mails."""
    stack, recipients = installation.stack, [f"late-{number}@example.com" for number in range(4)]
    take, arrived, let_go = stack.smtp.handle_DATA, list[str](), threading.Event()

    async def hold(server: Any, session: Any, envelope: Any) -> str:
        arrived.append(envelope.rcpt_tos[0])
        if len(arrived) == 2:
            await asyncio.get_running_loop().run_in_executor(None, let_go.wait)
        return await take(server, session, envelope)

    stack.smtp.handle_DATA = hold  # type: ignore[method-assign]
    try:
        uid = paced.ask(stack, paced.pace(stack, "late", rows=3), recipients)
        paced.wait_until(lambda: len(arrived) == 2, "the second mail", 90)
        refused = stack.command("cancel", uid)
        assert refused.returncode == 1
        assert "completed and cannot be canceled any more" in refused.stderr
        (run,) = paced.runs_of(stack, uid)
        began = time.monotonic()
        paced.terminate(installation.ui, run.dagster_run.run_id)
        paced.wait_until(lambda: all_ended(stack, uid), "the run goes on", 120)
        seconds = time.monotonic() - began
        print(f"terminated while mailing: {seconds:.1f} s")
    finally:
        let_go.set()
        del stack.smtp.handle_DATA
    mailed = [recipient for recipient in recipients if stack.mails(recipient)]
    assert stack.row(uid)["status"] == "completed"
    assert set(mailed) <= set(recipients[:2])
    assert seconds < PROMISED_SECONDS * BUSY
    tally("terminated while the mails go out", tries=1, survived=1)


def test_nothing_came_after_the_cancels(installation: Installation) -> None:
    """Long after the first of them: no mail, no object, no other state."""
    stack = installation.stack
    with psycopg.connect(stack.database_url) as connection:
        states = connection.execute(
            "SELECT status, count(*) FROM export_requests WHERE organization_id <> 'late' GROUP BY status"
        ).fetchall()
    assert {status for status, _ in states} == {"canceled"}
    assert [one.recipients for one in stack.smtp.received if "late" not in one.recipients[0]] == []
