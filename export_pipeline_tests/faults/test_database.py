"""PostgreSQL that hangs up, times out or is not there, as the source and as the request database.

The source is read again, or the run fails with a reason. Without the request database nothing can be said: what could
not be written is found by the reconciler, and a commit whose answer was lost counts once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest

from export_pipeline.orchestration import execution
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.installation import Installation, judged, open_installation
from export_pipeline_tests.faults.proxy import Call
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server

TRIES = 1 + execution.MAX_RETRIES
SENSORS = ("export_requests", "export_cancellations", "export_reconciler", "export_webhooks", "recurring_exports")


@pytest.fixture(scope="module")
def opened(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with open_installation(postgres_server, s3_server, tmp_path_factory.mktemp("database")) as installation:
        yield installation


@pytest.fixture
def installation(opened: Installation) -> Iterator[Installation]:
    opened.calm()
    yield opened
    opened.calm()


@contextmanager
def at_every_heartbeat(installation: Installation, do: Callable[[], bool]) -> Iterator[None]:
    """Call ``do`` every few hundredths of a second until it says that it has done its work, or the block ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02) and not do():
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def backends(installation: Installation, what: str) -> list[int]:
    """Processes of the source that run, or keep a transaction after, a statement like ``what``."""
    statement = """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND query LIKE %s"""
    return [row[0] for row in installation.source_query(statement, [what])]


class TestSource:
    @pytest.mark.parametrize("received", [2_000, 1_000_000], ids=["while it is counted", "in the middle of the rows"])
    def test_a_reset_connection_is_read_again_from_the_beginning(
        self, installation: Installation, tally: Tally, received: int
    ) -> None:
        installation.source.cut_after(received)
        with judged(tally, "source: connection reset", installation):
            cuts = installation.source.cuts
            uid, run = installation.export(organization_id="large")
            assert installation.source.cuts == cuts + 1
            installation.assert_delivered(uid)
            assert installation.mailed() == ["a@x.io"]
            assert sum(installation.tries(run).values()) == 7  # six steps, one of them twice

    def test_a_terminated_backend_is_read_again(self, installation: Installation, tally: Tally) -> None:
        """``slowly`` is what the reader is at when its backend is terminated."""
        slow_source(installation, seconds=0.005)
        terminated: list[int] = []

        def terminate() -> bool:
            for pid in backends(installation, "COPY%"):
                installation.source_query("SELECT pg_terminate_backend(%s)", [pid])
                terminated.append(pid)
            return bool(terminated)

        with judged(tally, "source: backend terminated", installation):
            with at_every_heartbeat(installation, terminate):
                uid, run = installation.export(dataset="slowly")
            assert terminated
            assert installation.tries(run)["filter_entities"] == 2
            installation.assert_delivered(uid)
            assert installation.mailed() == ["a@x.io"]

    def test_a_source_that_stays_away_postpones_the_request(self, installation: Installation, tally: Tally) -> None:
        with judged(tally, "source: outage", installation):
            installation.source.down()
            uid, run = installation.export()
            assert list(installation.tries(run).values())[-1] == TRIES
            assert installation.waits(run) == [1, 2, 4]
            installation.assert_postponed(uid, "source_unavailable")
            installation.source.up()
            assert installation.launch_again(uid).is_success
            installation.assert_delivered(uid)
            assert installation.mailed() == ["a@x.io"]

    def test_the_statement_time_out_ends_a_query_that_takes_too_long(
        self, installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXPORT_STATEMENT_TIMEOUT_SECONDS", "0.5")
        slow_source(installation, seconds=0.05)
        with judged(tally, "source: statement time-out", installation):
            uid, run = installation.export(dataset="slowly")
            assert_failed_once(installation, uid, run, "filter_entities", "source_refused")
            assert "EXPORT_STATEMENT_TIMEOUT_SECONDS" in installation.cause(uid)
            assert backends(installation, "%slowly%") == []
            monkeypatch.setenv("EXPORT_STATEMENT_TIMEOUT_SECONDS", "60")
            slow_source(installation, seconds=0)
            assert installation.from_failure(run).is_success
            installation.assert_delivered(uid)

    def test_a_value_that_the_source_cannot_compute_is_tried_once(
        self, installation: Installation, tally: Tally
    ) -> None:
        """In the middle of the rows: the reader must not take it for a connection that broke."""
        installation.source_query(_VIEW.format("repeat(note, 1 / CASE id WHEN 400 THEN 0 ELSE 1 END)", ""))
        with judged(tally, "source: refused for good", installation):
            uid, run = installation.export(dataset="slowly")
            assert_failed_once(installation, uid, run, "filter_entities", "source_data_invalid")

    def test_a_refused_query_is_tried_once(self, installation: Installation, tally: Tally) -> None:
        installation.source_query("ALTER TABLE people RENAME COLUMN note TO remark")
        try:
            with judged(tally, "source: refused for good", installation):
                uid, run = installation.export()
                assert_failed_once(installation, uid, run, "filter_entities", "source_refused")
        finally:
            installation.source_query("ALTER TABLE people RENAME COLUMN remark TO note")


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"filters": {"shoe_size": 44}}, "invalid_filter"),
        ({"filters": {"id": {"near": 4}}}, "invalid_filter"),
        ({"columns": ["shoe_size"]}, "unknown_column"),
        ({"dataset": "nobody"}, "unknown_dataset"),
        ({"recipient_emails": ["nobody"]}, "invalid_recipient"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_served_is_tried_once_and_reads_and_stores_nothing(
    installation: Installation, tally: Tally, asked: dict[str, Any], code: str
) -> None:
    connections = installation.source.connections
    with judged(tally, "request: refused for good", installation):
        uid, run = installation.export(**asked)
        assert_failed_once(installation, uid, run, "plan", code)
        assert installation.source.connections == connections
        assert installation.staged() == [path for path in installation.staged() if uid not in str(path)]
        # A clean end takes back what an attempt may have left: it looks, and finds nothing.
        assert {call.operation for call in installation.s3.calls} <= {"ListObjectsV2"}
        assert len(installation.s3.calls) <= 1


def assert_failed_once(installation: Installation, uid: str, run: dg.DagsterRun, step: str, code: str) -> None:
    assert installation.tries(run)[step] == 1
    assert list(installation.tries(run))[-1] == step
    installation.assert_not_published(uid, code)
    row = installation.row(uid)
    assert (row["attempt"], row["run_id"]) == (1, run.run_id)
    for sensor in ("export_requests", "export_reconciler"):
        assert not installation.tick(sensor).run_requests
    assert installation.row(uid) == row


_VIEW = "CREATE OR REPLACE VIEW slowly AS SELECT id, organization_id, {} AS note FROM people {}"


def slow_source(installation: Installation, *, seconds: float) -> None:
    """A view of the small organization that takes so long for each of its 500 rows."""
    delay = f"WHERE organization_id <> 'small' OR pg_sleep({seconds}) IS NOT NULL" if seconds else ""
    installation.source_query(_VIEW.format("note", delay))


class TestRequestDatabase:
    def test_no_sensor_gives_up_while_it_is_away(self, installation: Installation, tally: Tally) -> None:
        with judged(tally, "request database: away at the tick", installation):
            uid = installation.ask()
            installation.requests.down()
            for sensor in SENSORS:
                tick = installation.tick(sensor)
                assert not tick.run_requests
                assert "request database" in (tick.skip_message or ""), sensor
            installation.requests.up()
            for sensor in SENSORS[1:]:
                assert "request database" not in (installation.tick(sensor).skip_message or "")
            installation.launch()
            installation.assert_delivered(uid)
            assert installation.row(uid)["attempt"] == 1

    @pytest.mark.parametrize("moment", ["PutObject", "CompleteMultipartUpload", "manifest"])
    def test_a_short_outage_in_the_middle_costs_nothing_but_time(
        self, installation: Installation, tally: Tally, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes away while S3 is busy, and comes back when the step has been tried again twice."""
        monkeypatch.setattr(execution, "FIRST_RETRY_SECONDS", 0.3)
        seen = installation.requests.cuts
        with judged(tally, "request database: down in the middle of a run", installation):
            at_s3(monkeypatch, installation, moment, installation.requests.down)
            with at_every_heartbeat(installation, lambda: self._back(installation, seen + 3)):
                uid, _ = installation.export(organization_id="small" if moment == "PutObject" else "large")
            assert installation.requests.cuts > seen
            installation.assert_delivered(uid)
            assert installation.mailed() == ["a@x.io"]
            assert installation.row(uid)["attempt"] == 1

    def _back(self, installation: Installation, cuts: int) -> bool:
        if installation.requests.cuts < cuts:
            return False
        installation.requests.up()
        return True

    def test_a_long_outage_costs_an_attempt_and_is_mended_by_the_reconciler(
        self, installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(execution, "DATABASE_RETRIES", 3)
        with judged(tally, "request database: down until the run gave up", installation):
            with monkeypatch.context() as patch:
                at_s3(patch, installation, "PutObject", installation.requests.down)
                uid, failed = installation.export()
            assert failed.status is dg.DagsterRunStatus.FAILURE
            assert "gets a new attempt" in installation.log(failed)
            assert failed.tags["export/error_code"] == "database_unavailable"
            assert installation.row(uid)["status"] == "running"
            assert installation.mailed() == []
            assert not [key for key in installation.objects(uid) if key.endswith("manifest.json")]
            installation.requests.up()
            wait_until(lambda: installation.row(uid)["status"] == "queued", lambda: installation.tick(SENSORS[2]))
            installation.launch()
            row = installation.row(uid)
            assert (row["status"], row["attempt"]) == ("completed", 2)
            assert installation.mailed() == ["a@x.io"]

    @pytest.mark.parametrize(
        ("said", "mail"),
        [
            ("INSERT INTO export_files", "sent"),
            ("INSERT INTO export_notifications", "sent"),
            ("started_at", "sent"),
        ],
        ids=["completed", "enlisted", "begun"],
    )
    def test_a_commit_whose_answer_is_lost_counts_once(
        self, installation: Installation, tally: Tally, said: str, mail: str
    ) -> None:
        with judged(tally, "request database: answer to a commit lost", installation):
            cuts = installation.requests.cuts
            installation.requests.lose_reply(b"COMMIT", said.encode())
            uid, run = installation.export()
            assert installation.requests.cuts == cuts + 1
            assert run.is_success
            installation.assert_delivered(uid)
            assert installation.ledger(uid) == {"a@x.io": mail}
            assert installation.mailed() == ["a@x.io"]
            counts = installation.query(
                "SELECT count(*) AS files FROM export_files WHERE request_id = %s", [installation.row(uid)["id"]]
            )
            assert counts == [{"files": 1}]

    def test_a_claim_whose_answer_is_lost_is_claimed_again_once_its_lease_ends(
        self, installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXPORT_CLAIM_LEASE_SECONDS", "0.5")
        with judged(tally, "request database: answer to a commit lost", installation):
            uid = installation.ask()
            installation.requests.lose_reply(b"COMMIT", b"UPDATE export_requests")
            tick = installation.tick("export_requests")
            assert "request database" in (tick.skip_message or "")
            assert installation.row(uid)["claimed_at"] is not None
            wait_until(lambda: installation.row(uid)["claimed_at"] is None, lambda: installation.tick(SENSORS[2]))
            installation.launch()
            installation.assert_delivered(uid)
            assert installation.row(uid)["attempt"] == 1
            assert installation.mailed() == ["a@x.io"]

    def test_a_mail_that_was_taken_while_it_went_away_is_not_sent_again(
        self, installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The provider has the mail and the ledger still says ``sending``: whether it arrived cannot be told."""
        with judged(tally, "request database: away when a mail was taken", installation):
            cuts = installation.requests.cuts
            answer = installation.sendgrid.fault_for

            def gone(call: Call) -> Any:
                if b"ana@x.io" in call.body:
                    installation.requests.down()
                return answer(call)

            monkeypatch.setattr(installation.sendgrid, "fault_for", gone)
            with at_every_heartbeat(installation, lambda: self._back(installation, cuts + 2)):
                uid, run = installation.export(recipient_emails=["ana@x.io", "bo@x.io"])
            assert run.is_success
            assert installation.ledger(uid) == {"ana@x.io": "unknown", "bo@x.io": "sent"}
            assert sorted(installation.mailed()) == ["ana@x.io", "bo@x.io"]


def at_s3(patch: pytest.MonkeyPatch, installation: Installation, moment: str, do: Callable[[], None]) -> None:
    """Do something once, when S3 first hears of an operation, or of the manifest."""
    answer, done = installation.s3.fault_for, threading.Event()

    def meanwhile(call: Call) -> Any:
        if (call.operation == moment or moment in call.key) and not done.is_set():
            done.set()
            do()
        return answer(call)

    patch.setattr(installation.s3, "fault_for", meanwhile)


def wait_until(true: Callable[[], bool], meanwhile: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.1)
