"""What is claimed and when: bounds, locked rows, outages, wrong clocks, and requests that are asked for again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import create_run_for_test

from export_pipeline.database.engine import create_engine, impatient, reading, utc_now, why_unavailable
from export_pipeline.database.enums import Stage
from export_pipeline.database.migrate import upgrade
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import ExportFailure, FailureCode, OwnershipLost
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.sensors import reconciler
from export_pipeline.requests import billing, ownership, queue, transitions
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.queue import MOST_POSTPONEMENTS
from export_pipeline.settings import Settings

FAILURE = ExportFailure(FailureCode.SOURCE_REFUSED, "The source refused.")
rows = export_requests.c


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    """A migrated request database on PostgreSQL."""
    engine = create_engine(Settings(database_url=postgres_url).database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


def ask(database: sa.Engine, organization: str, number: int) -> None:
    row = {"organization_id": organization, "dataset": "people", "format": "csv", "recipient_emails": []}
    with database.begin() as connection:
        connection.execute(export_requests.insert(), [row] * number)


def claim(database: sa.Engine, *, limit: int = 50, per_organization: int = 10, in_total: int = 25) -> list[str]:
    """What is claimed, by organization; there is something exactly if it was said before that there is."""
    bounds = {"per_organization": per_organization, "in_total": in_total}
    with reading(database) as connection:
        is_any = queue.is_any_claimable(connection, **bounds)
    with database.begin() as connection:
        found = queue.claim(connection, limit=limit, **bounds)
    assert bool(found) is is_any
    return sorted(one.organization_id for one in found)


def begin(database: sa.Engine, organization: str) -> None:
    """The oldest claimed one of an organization."""
    rows = export_requests.c
    oldest = sa.select(sa.func.min(rows.id)).where(
        rows.organization_id == organization, rows.status == "queued", rows.claimed_at.is_not(None)
    )
    with database.begin() as connection:
        connection.execute(export_requests.update().where(rows.id == oldest.scalar_subquery()).values(status="running"))


def test_nothing_is_claimed_beyond_the_bound_of_an_organization_or_of_all(database: sa.Engine) -> None:
    assert claim(database) == []
    for organization in "abc":
        ask(database, organization, 40)
    assert claim(database, limit=12) == [*"aaaabbbbcccc"]
    assert claim(database, limit=12) == [*"aaaabbbbcccc"]
    assert claim(database) == ["a"]  # 25 of all
    assert claim(database) == []
    assert claim(database, in_total=99) == ["a"] + ["b"] * 2 + ["c"] * 2  # 10 of each
    assert claim(database, in_total=99) == []
    begin(database, "b")
    assert claim(database, in_total=99) == ["b"]
    assert claim(database, in_total=99) == []


def test_who_has_fewest_claimed_comes_first_when_all_wait_for_the_bound(database: sa.Engine) -> None:
    for organization in "abc":
        ask(database, organization, 40)
    claim(database)
    ask(database, "late", 2)
    assert claim(database) == []
    begin(database, "b")
    assert claim(database) == ["late"]
    for organization in "cc":
        begin(database, organization)
    assert claim(database) == ["c", "late"]


@pytest.mark.parametrize("canceled", [False, True])
def test_without_bounds_everything_that_waits_is_claimed(database: sa.Engine, canceled: bool) -> None:
    ask(database, "a", 30)
    if canceled:
        with database.begin() as connection:
            connection.execute(export_requests.update().values(cancel_requested_at=sa.func.current_timestamp()))
    with database.begin() as connection:
        assert queue.is_any_waiting(connection) is not canceled
        assert len(queue.claim(connection, limit=50)) == (0 if canceled else 30)


def update(database: sa.Engine, condition: sa.ColumnElement[bool], **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(export_requests.update().where(condition).values(**values))


def claimed(database: sa.Engine, limit: int = 50) -> list[queue.Claim]:
    with database.begin() as connection:
        return queue.claim(connection, limit=limit)


@contextmanager
def locked(database: sa.Engine, statement: str) -> Iterator[None]:
    """A transaction of the application that stays open, on PostgreSQL (SQLite has one writer at a time)."""
    with database.connect() as connection:
        connection.exec_driver_sql(statement)
        yield
        connection.rollback()


def test_a_row_that_an_application_holds_keeps_no_other_from_being_claimed(postgres: sa.Engine) -> None:
    for organization in "abc":
        ask(postgres, organization, 30)
    with locked(postgres, "UPDATE export_requests SET priority = 5 WHERE organization_id = 'a' OR id = 31"):
        began = time.monotonic()
        assert len(claim(postgres, limit=10, in_total=99)) == 10
        assert {one.organization_id for one in claimed(postgres, limit=99)} == {"b", "c"}
        assert time.monotonic() - began < 5
    assert {one.organization_id for one in claimed(postgres)} == {"a", "b"}


@pytest.mark.parametrize("table", ["export_requests", "recurring_exports", "organizations"])
def test_no_statement_waits_for_a_lock_without_an_end(postgres: sa.Engine, table: str) -> None:
    ask(postgres, "a", 1)
    update(postgres, sa.true(), recurring_export_id=1)
    with postgres.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO recurring_exports (organization_id, cron, request) VALUES ('a', '0 6 * * *', '{}');"
            "INSERT INTO organizations (id, email_balance) VALUES ('a', 5)"
        )
        billing.reserve(connection, "a", str(connection.execute(sa.select(rows.uid)).scalar_one()), ["ana@example.com"])
    (one,) = claimed(postgres)
    with (
        locked(postgres, f"SELECT * FROM {table} FOR UPDATE"),
        pytest.raises(sa.exc.OperationalError) as caught,
        impatient(postgres).begin() as connection,
    ):
        transitions.give_up(connection, one.id, transitions.INTERNAL, attempt=1, run_id=None)
    assert "lock" in (why_unavailable(caught.value) or "")
    with postgres.begin() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "10s"
        assert transitions.give_up(connection, one.id, transitions.INTERNAL, attempt=1, run_id=None)


def test_the_run_of_a_locked_row_is_not_taken_for_dead(postgres: sa.Engine) -> None:
    """It cannot write its heartbeat while an application holds its row."""
    ask(postgres, "a", 2)
    first, second = claimed(postgres)
    with dg.DagsterInstance.ephemeral() as instance:
        runs: dict[int, str] = {}
        for one in (first, second):
            run_tags = tags.run_tags(one, rows=None, large_rows=1)
            run = create_run_for_test(instance, "export", tags=run_tags, status=dg.DagsterRunStatus.STARTED)
            runs[one.id] = run.run_id
            old = utc_now() - timedelta(hours=1)
            update(postgres, rows.id == one.id, status="running", run_id=run.run_id, heartbeat_at=old)
        with reading(postgres) as connection:
            orphans = queue.silent_requests(connection, lease_seconds=1, quiet_seconds=1, heartbeat_timeout_seconds=2)
        exports: Any = SimpleNamespace(database=postgres, settings=Settings())
        with locked(postgres, f"SELECT * FROM export_requests WHERE id = {first.id} FOR UPDATE"):
            assert reconciler.reconcile_all(instance, exports, orphans, seconds=30) == ([first.uid], 0)
        statuses = [instance.get_run_by_id(runs[one.id]) for one in (first, second)]
        assert [run.is_finished for run in statuses if run is not None] == [False, True]
    assert [read(postgres, one.id).status for one in (first, second)] == ["running", "queued"]


def running(database: sa.Engine, claim: queue.Claim) -> str:
    run_id = f"run-{claim.attempt}-{claim.id}"
    with database.begin() as connection:
        ownership.begin(connection, claim.id, run_id=run_id, lineage=[], attempt=claim.attempt, claim_id=claim.claim_id)
    return run_id


def postpone(database: sa.Engine, claim: queue.Claim, code: FailureCode = FailureCode.SOURCE_UNAVAILABLE) -> bool:
    run_id = running(database, claim)
    with database.begin() as connection:
        return transitions.postpone(connection, claim.id, ExportFailure(code, "It is away."), run_id=run_id)


def read(database: sa.Engine, request_id: int) -> Any:
    with database.connect() as connection:
        return connection.execute(sa.select(export_requests).where(rows.id == request_id)).one()


def test_a_postponed_request_waits_longer_each_time_and_uses_up_no_attempt(database: sa.Engine) -> None:
    ask(database, "a", 1)
    waits: list[float] = []
    keys: set[str] = set()
    for _ in range(10):
        (one,) = claimed(database)
        keys.add(one.run_key)
        assert postpone(database, one)
        assert claimed(database) == []  # not before its time
        waiting = read(database, one.id)
        waits.append((waiting.not_before - waiting.postponed_at).total_seconds())
        assert (waiting.status, waiting.stage, waiting.run_id, waiting.claimed_at) == ("queued", None, None, None)
        assert waiting.attempt - waiting.uncounted_attempts == 0
        assert "does not answer" in waiting.message
        assert f"{waiting.not_before:%H:%M:%S}" in waiting.message
        update(database, rows.id == one.id, not_before=waiting.created_at)
    assert len(keys) == 10
    assert all(15 * 2**n <= wait <= 15 * 2**n * 1.21 for n, wait in enumerate(waits[:8]))
    assert all(3600 <= wait <= 3600 * 1.21 for wait in waits[8:])
    (one,) = claimed(database)
    update(database, rows.id == one.id, postponements=MOST_POSTPONEMENTS)
    assert not postpone(database, one)  # about a day of it: the run fails it
    with database.begin() as connection:
        failure = ExportFailure(FailureCode.SOURCE_UNAVAILABLE, "It is away.")
        assert transitions.fail(connection, one.id, failure, run_id=f"run-{one.attempt}-{one.id}")


def test_only_the_run_that_owns_a_request_postpones_it(database: sa.Engine) -> None:
    ask(database, "a", 1)
    (one,) = claimed(database)
    running(database, one)
    with database.begin() as connection:
        assert not transitions.postpone(connection, one.id, transitions.INTERNAL, run_id="another")
    update(database, rows.id == one.id, cancel_requested_at=sa.func.current_timestamp())
    with database.begin() as connection:
        assert not transitions.postpone(connection, one.id, transitions.INTERNAL, run_id=f"run-1-{one.id}")
    assert read(database, one.id).status == "running"


def test_while_nothing_answers_one_request_at_a_time_tries_it_and_all_follow_once_it_does(database: sa.Engine) -> None:
    ask(database, "a", 12)
    for one in claimed(database, limit=6):
        postpone(database, one)
    (probe,) = claimed(database)
    assert probe.id > 6  # one that never failed
    assert claim(database, in_total=99) == []  # it is under way
    postpone(database, probe)
    (probe,) = claimed(database)
    run_id = running(database, probe)
    assert claimed(database) == []
    with database.begin() as connection:
        ownership.enter(connection, probe.id, Stage.SERIALIZE, run_id=run_id, lineage=[])
    assert len(claimed(database)) == 11


def test_reading_does_not_wake_those_that_wait_for_the_store(database: sa.Engine) -> None:
    ask(database, "a", 3)
    first, second, _ = claimed(database)[:3]
    postpone(database, first, FailureCode.STORE_UNAVAILABLE)
    run_id = running(database, second)
    with database.begin() as connection:
        ownership.enter(connection, second.id, Stage.SERIALIZE, run_id=run_id, lineage=[])
    assert read(database, first.id).not_before is not None
    file = StoredFile(1, "a/b", "b.csv", 10, 3, "0" * 64, "text/csv", None)
    with database.begin() as connection:
        transitions.complete(connection, second.id, run_id=run_id, files=[file], manifest_key="m", expires_at=utc_now())
    assert read(database, first.id).not_before is None


def test_an_instant_that_a_wrong_clock_wrote_holds_no_row_for_ever(database: sa.Engine) -> None:
    ask(database, "a", 3)
    waits, began, claimed_ahead = claimed(database)
    running(database, began)
    postpone(database, waits)
    year = timedelta(days=365)
    update(database, rows.id == waits.id, not_before=utc_now() + year)
    update(database, rows.id == began.id, heartbeat_at=utc_now() + year)
    update(database, rows.id == claimed_ahead.id, claimed_at=utc_now() + year)
    with reading(database) as connection:
        quiet = queue.silent_requests(connection, lease_seconds=60, quiet_seconds=10, heartbeat_timeout_seconds=120)
    assert [(one.id, one.timed_out) for one in quiet] == [(began.id, True), (claimed_ahead.id, True)]
    update(database, rows.id.in_([began.id, claimed_ahead.id]), status="completed")
    assert [one.id for one in claimed(database)] == [waits.id]


@pytest.mark.parametrize("attempts", [0, 7])
def test_a_row_that_is_inserted_as_running_is_found(database: sa.Engine, attempts: int) -> None:
    ask(database, "a", 1)
    old = utc_now() - timedelta(hours=1)
    update(database, sa.true(), status="running", attempt=attempts, created_at=old)
    with reading(database) as connection:
        (one,) = queue.silent_requests(connection, lease_seconds=60, quiet_seconds=10, heartbeat_timeout_seconds=120)
    with database.begin() as connection:
        assert queue.release(connection, one.id, attempt=one.attempt, run_id=None, charged=True)
    assert [one.attempt for one in claimed(database)] == [attempts + 1]


ASKED_AGAIN = [
    "UPDATE export_requests SET status = 'queued'",
    "UPDATE export_requests SET status = 'queued', claimed_at = NULL, run_id = NULL",
    "UPDATE export_requests SET status = 'queued', attempt = 0, claimed_at = NULL, run_id = NULL, completed_at = NULL",
    None,
]


@pytest.mark.parametrize("statement", ASKED_AGAIN)
def test_a_failed_request_that_is_asked_for_again_has_all_its_attempts(
    database: sa.Engine, statement: str | None
) -> None:
    """By SQL, by however much of it, or by ``export-pipeline retry``."""
    ask(database, "a", 1)
    keys: list[str] = []
    for _ in range(3):
        (one,) = claimed(database)
        keys.append(one.run_key)
        with database.begin() as connection:
            found = queue.not_begun(connection)
            assert [orphan.counted_attempts for orphan in found] == [1]
        run_id = running(database, one)
        with database.begin() as connection:
            assert transitions.fail(connection, one.id, FAILURE, run_id=run_id)
            if statement is None:
                assert transitions.retry(connection, one.uid, actor="command")
            else:
                connection.exec_driver_sql(statement)
        assert read(database, one.id).status == "queued"
        update(database, rows.id == one.id, postponements=MOST_POSTPONEMENTS)
    assert len(set(keys)) == 3
    if statement is None or "completed_at" not in statement:
        (one,) = claimed(database)
        assert postpone(database, one)  # what it was postponed before does not count either


@pytest.mark.parametrize("status", ["queued", "running", "completed", "expired"])
def test_only_what_failed_or_was_canceled_is_retried(database: sa.Engine, status: str) -> None:
    ask(database, "a", 1)
    (one,) = claimed(database)
    update(database, rows.id == one.id, status=status)
    with database.begin() as connection:
        assert not transitions.retry(connection, one.uid, actor="command")
        assert not transitions.retry(connection, "no uid", actor="command")


def test_a_run_of_an_older_claim_does_not_take_the_row(database: sa.Engine) -> None:
    """Its number may come again, for a run that was never made costs no attempt; its name does not."""
    ask(database, "a", 1)
    (first,) = claimed(database)
    with database.begin() as connection:
        queue.release(connection, first.id, attempt=1, run_id=None, charged=False)
    (second,) = claimed(database)
    assert (first.attempt, second.attempt) == (1, 1)
    with pytest.raises(OwnershipLost):
        running(database, first)
    running(database, second)


def test_a_request_given_up_before_a_run_took_it_is_re_executed(database: sa.Engine) -> None:
    ask(database, "a", 1)
    (one,) = claimed(database)
    with database.begin() as connection:
        assert transitions.give_up(connection, one.id, transitions.INTERNAL, attempt=1, run_id=None)

    def begin_with(lineage: list[str], claim_id: str) -> None:
        with database.begin() as connection:
            ownership.begin(connection, one.id, run_id="again", lineage=lineage, attempt=1, claim_id=claim_id)

    for lineage, claim_id in (([], one.claim_id), (["run-1"], "another claim")):
        with pytest.raises(OwnershipLost):
            begin_with(lineage, str(UUID(int=1)) if claim_id != one.claim_id else claim_id)
    begin_with(["run-1"], one.claim_id)
    assert read(database, one.id).run_id == "again"


def test_what_ended_is_not_read_to_find_mails_that_are_owed_or_files_that_are_due(postgres: sa.Engine) -> None:
    """Their cost is that of what is unfinished, not of history."""
    with postgres.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails, status, completed_at,"
            " expires_at) SELECT 'a', 'd', 'csv', '[]', 'completed', now(), now() + interval '1 day'"
            " FROM generate_series(1, 20000);"
            "INSERT INTO export_notifications (request_id, recipient, status)"
            " SELECT id, 'ana@example.com', 'sent' FROM export_requests; ANALYZE"
        )
    seen: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "export_requests" in statement and not statement.startswith("EXPLAIN"):
            plan = connection.connection.cursor().execute(f"EXPLAIN {statement}", parameters)
            seen.append("\n".join(line for (line,) in plan))

    with reading(postgres) as connection:
        sa.event.listen(postgres, "before_cursor_execute", explain)
        queue.unnotified(connection, quiet_seconds=1, heartbeat_timeout_seconds=2, within=timedelta(days=2))
        transitions.past_retention(connection)
    sa.event.remove(postgres, "before_cursor_execute", explain)
    assert len(seen) == 3
    assert not [plan for plan in seen if "Seq Scan on export_requests" in plan or "Seq Scan on export_not" in plan]
