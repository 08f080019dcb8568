"""Every transition of a request: who may make it, from where, and what it leaves in the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine, utc_now
from export_pipeline.database.enums import FINISHED, UNFINISHED, RequestStatus, Stage
from export_pipeline.database.migrate import upgrade
from export_pipeline.database.tables import export_events, export_files, export_requests
from export_pipeline.failures import ExportCanceled, ExportFailure, FailureCode, OwnershipLost
from export_pipeline.requests import ownership, queue, transitions
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.models import find_state, insert_request, load_request
from export_pipeline.settings import Settings

FAILURE = ExportFailure(FailureCode.UNKNOWN_DATASET, "dataset: no such thing.", field="dataset")


def ask(database: sa.Engine, organization: str = "acme", **asked: Any) -> int:
    with database.begin() as connection:
        uid = insert_request(
            connection,
            **{
                "organization_id": organization,
                "dataset": "contacts",
                "format": "csv",
                "recipient_emails": [],
                **asked,
            },
        )
        return connection.execute(
            sa.select(export_requests.c.id).where(sa.cast(export_requests.c.uid, sa.Text) == uid)
        ).scalar_one()


def claim(database: sa.Engine, limit: int = 50) -> list[queue.Claim]:
    with database.begin() as connection:
        return queue.claim(connection, limit=limit)


def begin(
    database: sa.Engine, request_id: int, run_id: str = "run-1", lineage: Sequence[str] = (), attempt: int | None = 1
) -> ownership.Ownership:
    with database.begin() as connection:
        return ownership.begin(connection, request_id, run_id=run_id, lineage=lineage, attempt=attempt)


def enter(
    database: sa.Engine, request_id: int, stage: Stage, run_id: str = "run-1", lineage: Sequence[str] = ()
) -> ownership.Ownership:
    with database.begin() as connection:
        return ownership.enter(connection, request_id, stage, run_id=run_id, lineage=lineage)


def heartbeat(database: sa.Engine, request_id: int, run_id: str = "run-1", **values: Any) -> None:
    with database.begin() as connection:
        ownership.heartbeat(connection, request_id, run_id=run_id, values=values)


def row(database: sa.Engine, request_id: int) -> Any:
    with database.connect() as connection:
        return load_request(connection, request_id)


def events(database: sa.Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.execute(sa.select(export_events.c.kind).order_by(export_events.c.id)).scalars())


def update(database: sa.Engine, request_id: int, **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(export_requests.update().where(export_requests.c.id == request_id).values(**values))


def complete(database: sa.Engine, request_id: int, run_id: str = "run-1") -> None:
    file = StoredFile(1, "a/b", "b.csv", 10, 3, "0" * 64, "text/csv", None)
    with database.begin() as connection:
        transitions.complete(
            connection,
            request_id,
            run_id=run_id,
            files=[file],
            manifest_key="a/manifest.json",
            expires_at=utc_now() + timedelta(days=7),
        )


def running(database: sa.Engine) -> int:
    request_id = ask(database)
    claim(database)
    begin(database, request_id)
    return request_id


def test_a_request_is_either_finished_or_not() -> None:
    assert sorted((*UNFINISHED, *FINISHED)) == sorted(RequestStatus)


def test_a_request_is_claimed_once_and_charged_one_attempt(database: sa.Engine) -> None:
    request_id = ask(database)
    (claimed,) = claim(database)
    assert (claimed.id, claimed.attempt) == (request_id, 1)
    assert claimed.run_key == f"{row(database, request_id).uid}:1:{claimed.claim_id}"
    assert claim(database) == []
    assert row(database, request_id).status == "queued"


def test_a_row_that_commits_late_with_a_smaller_id_is_found(database: sa.Engine) -> None:
    """The cursor gap: a cursor over ids that saw id 2 never looks at id 1 again."""
    ask(database)
    assert [one.id for one in claim(database)] == [1]
    with database.begin() as connection:
        connection.execute(
            export_requests.insert().values(
                id=-5, organization_id="acme", dataset="contacts", format="csv", recipient_emails=[]
            )
        )
    assert [one.id for one in claim(database)] == [-5]


def test_claims_take_fair_turns_across_organizations(database: sa.Engine) -> None:
    flood = [ask(database, "flood") for _ in range(20)]
    small = ask(database, "small")
    assert {one.id for one in claim(database, limit=3)} == {flood[0], flood[1], small}


def test_priority_counts_within_an_organization(database: sa.Engine) -> None:
    ask(database)
    urgent = ask(database, priority=5)
    assert [one.id for one in claim(database, limit=1)] == [urgent]


def test_canceled_before_it_was_claimed_is_never_claimed(database: sa.Engine) -> None:
    request_id = ask(database, cancel_requested_at=utc_now())
    assert claim(database) == []
    with database.connect() as connection:
        assert [one for one, _ in transitions.cancel_requested(connection)] == [request_id]


def test_one_of_two_runs_gets_the_row(database: sa.Engine) -> None:
    request_id = running(database)
    with pytest.raises(OwnershipLost):
        begin(database, request_id, run_id="run-2")
    assert row(database, request_id).run_id == "run-1"


def test_a_run_of_an_older_attempt_cannot_begin(database: sa.Engine) -> None:
    request_id = ask(database)
    claim(database)
    with database.begin() as connection:
        queue.release(connection, request_id, attempt=1, run_id=None, charged=True)
    claim(database)
    with pytest.raises(OwnershipLost):
        begin(database, request_id, attempt=1)
    assert begin(database, request_id, run_id="run-2", attempt=2).attempt == 2


def test_a_run_launched_by_hand_begins_whatever_the_attempt(database: sa.Engine) -> None:
    request_id = ask(database)
    assert begin(database, request_id, attempt=None).attempt == 1
    assert claim(database) == []


def test_a_re_executed_run_takes_over_and_its_parent_loses(database: sa.Engine) -> None:
    request_id = running(database)
    with database.begin() as connection:
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    assert (row(database, request_id).status, row(database, request_id).error_code) == ("running", None)
    with pytest.raises(OwnershipLost):
        heartbeat(database, request_id, run_id="run-1")
    with pytest.raises(OwnershipLost):
        enter(database, request_id, Stage.UPLOAD, run_id="run-1")


def test_a_third_run_in_the_chain_takes_over_from_the_second(database: sa.Engine) -> None:
    request_id = running(database)
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])
    enter(database, request_id, Stage.UPLOAD, run_id="run-3", lineage=["run-2", "run-1"])
    assert row(database, request_id).run_id == "run-3"


def test_heartbeat_writes_progress(database: sa.Engine) -> None:
    request_id = running(database)
    before = row(database, request_id).heartbeat_at
    heartbeat(database, request_id, rows_done=5, rows_total=10, snapshot_at=utc_now())
    after = row(database, request_id)
    assert (after.rows_done, after.rows_total) == (5, 10)
    assert after.heartbeat_at >= before


def test_heartbeat_hears_the_cancel(database: sa.Engine) -> None:
    request_id = running(database)
    uid = row(database, request_id).uid
    with database.begin() as connection:
        assert transitions.request_cancel(connection, uid)
    with pytest.raises(ExportCanceled):
        heartbeat(database, request_id)


def test_completed_rows_tell_what_was_delivered(database: sa.Engine) -> None:
    request_id = running(database)
    complete(database, request_id)
    done = row(database, request_id)
    assert (done.status, done.row_count, done.byte_count, done.file_count) == ("completed", 3, 10, 1)
    with database.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(export_files)).scalar_one() == 1
    assert events(database) == ["asked", "started", "completed"]


def test_a_cancel_in_the_last_moment_wins_over_completion(database: sa.Engine) -> None:
    request_id = running(database)
    update(database, request_id, cancel_requested_at=utc_now())
    with pytest.raises(ExportCanceled):
        complete(database, request_id)
    assert row(database, request_id).status == "running"


def test_a_canceled_row_stays_canceled_whatever_its_run_says(database: sa.Engine) -> None:
    request_id = running(database)
    with database.begin() as connection:
        assert transitions.cancel(connection, request_id, by_requester="asked", by_operator="an operator")
    with pytest.raises(ExportCanceled):
        complete(database, request_id)
    with pytest.raises(ExportCanceled):
        notify(database, request_id)
    uid = row(database, request_id).uid
    with database.begin() as connection:
        assert not transitions.fail(connection, request_id, FAILURE, run_id="run-1")
        assert not transitions.request_cancel(connection, uid)
    assert (row(database, request_id).status, row(database, request_id).message) == ("canceled", "an operator")


def test_a_failed_row_is_revived_by_a_re_execution_alone(database: sa.Engine) -> None:
    """Dagster goes on with the other shards of a run after one has failed."""
    request_id = running(database)
    with database.begin() as connection:
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    with pytest.raises(OwnershipLost):
        enter(database, request_id, Stage.UPLOAD)
    with pytest.raises(OwnershipLost):
        begin(database, request_id)
    assert row(database, request_id).error_code == "unknown_dataset"
    enter(database, request_id, Stage.UPLOAD, run_id="run-2", lineage=["run-1"])


def test_publish_tried_again_finds_what_it_had_completed(database: sa.Engine) -> None:
    request_id = running(database)
    complete(database, request_id)
    assert enter(database, request_id, Stage.PUBLISH).manifest_key == "a/manifest.json"
    with pytest.raises(OwnershipLost):
        enter(database, request_id, Stage.PUBLISH, run_id="run-2")
    # A notification took the row; a re-execution of this attempt's run still finds what was published.
    notify(database, request_id, run_id="notify-run", lineage=None)
    with database.begin() as connection:
        found = ownership.enter(connection, request_id, Stage.PUBLISH, run_id="run-3", lineage=["run-1"], attempt=1)
    assert found.manifest_key == "a/manifest.json"
    with pytest.raises(OwnershipLost), database.begin() as connection:
        ownership.enter(connection, request_id, Stage.PUBLISH, run_id="run-9", lineage=[], attempt=2)


def test_a_row_that_was_taken_meanwhile_is_not_given_up(database: sa.Engine) -> None:
    request_id = running(database)
    with database.begin() as connection:
        assert not transitions.give_up(connection, request_id, FAILURE, attempt=1, run_id="run-0")
        assert not transitions.cancel(connection, request_id, by_requester="r", by_operator="o", run_id="run-0")
        assert transitions.give_up(connection, request_id, FAILURE, attempt=1, run_id="run-1")


def test_a_stale_run_writes_no_message_on_what_another_completed(database: sa.Engine) -> None:
    request_id = running(database)
    complete(database, request_id)
    with database.begin() as connection:
        transitions.note(connection, request_id, "stale", run_id="run-0")
    assert row(database, request_id).message is None


def test_a_finished_request_cannot_be_begun_again(database: sa.Engine) -> None:
    request_id = running(database)
    complete(database, request_id)
    with pytest.raises(OwnershipLost, match="completed"):
        begin(database, request_id)


def notify(database: sa.Engine, request_id: int, run_id: str = "run-1", lineage: Sequence[str] | None = ()) -> None:
    with database.begin() as connection:
        ownership.enter_completed(connection, request_id, Stage.NOTIFY_RECIPIENTS, run_id=run_id, lineage=lineage)


def test_notify_may_be_entered_only_after_completion(database: sa.Engine) -> None:
    request_id = running(database)
    with pytest.raises(OwnershipLost):
        notify(database, request_id)
    complete(database, request_id)
    notify(database, request_id)
    assert (row(database, request_id).status, row(database, request_id).stage) == ("completed", "notify_recipients")
    notify(database, request_id, run_id="run-3", lineage=None)  # a resumed notification takes it from a dead run
    assert row(database, request_id).run_id == "run-3"


def test_a_failure_is_written_by_the_owner_alone(database: sa.Engine) -> None:
    request_id = running(database)
    with database.begin() as connection:
        assert not transitions.fail(connection, request_id, FAILURE, run_id="run-2")
        assert transitions.fail(connection, request_id, FAILURE, run_id="run-1")
    failed = row(database, request_id)
    assert (failed.status, failed.error_code, failed.message) == ("failed", "unknown_dataset", FAILURE.message)
    assert events(database) == ["asked", "started", "failed"]


@pytest.mark.parametrize(("charged", "next_attempt"), [(True, 2), (False, 1)])
def test_a_released_request_is_claimed_again(database: sa.Engine, charged: bool, next_attempt: int) -> None:
    request_id = ask(database)
    claim(database)
    with database.begin() as connection:
        assert queue.release(connection, request_id, attempt=1, run_id=None, charged=charged)
        assert not queue.release(connection, request_id, attempt=9, run_id=None, charged=charged)
    assert [one.attempt for one in claim(database)] == [next_attempt]


def quiet(database: sa.Engine) -> list[queue.StaleRequest]:
    with database.connect() as connection:
        return queue.silent_requests(connection, lease_seconds=60, quiet_seconds=10, heartbeat_timeout_seconds=120)


def test_only_rows_that_fell_silent_are_orphans(database: sa.Engine) -> None:
    waiting, claimed, stale_claim, healthy, silent, dead = (ask(database, f"org-{n}") for n in range(6))
    now = utc_now()
    update(database, claimed, claimed_at=now)
    update(database, stale_claim, claimed_at=now - timedelta(seconds=90), attempt=1)
    # Begun long ago and still writing its heartbeat: slow, not stuck.
    update(database, healthy, status="running", started_at=now - timedelta(hours=9), heartbeat_at=now)
    update(database, silent, status="running", heartbeat_at=now - timedelta(seconds=30), attempt=1)
    update(database, dead, status="running", heartbeat_at=now - timedelta(seconds=130), attempt=1)
    found = {orphan.id: (orphan.running, orphan.timed_out) for orphan in quiet(database)}
    assert found == {stale_claim: (False, False), silent: (True, False), dead: (True, True)}
    assert waiting not in found


def test_a_renewed_lease_is_no_orphan(database: sa.Engine) -> None:
    request_id = ask(database)
    update(database, request_id, claimed_at=utc_now() - timedelta(seconds=90))
    with database.begin() as connection:
        queue.renew_lease(connection, request_id)
    assert quiet(database) == []


def test_files_past_retention_expire_once_they_are_deleted(database: sa.Engine) -> None:
    request_id = running(database)
    complete(database, request_id)
    with database.connect() as connection:
        assert transitions.past_retention(connection) == []
    update(database, request_id, expires_at=utc_now() - timedelta(seconds=1))
    with database.begin() as connection:
        assert [one for one, _ in transitions.past_retention(connection)] == [request_id]
        transitions.expire(connection, request_id)
        assert [one for one, _ in transitions.past_retention(connection)] == [request_id]  # a janitor may die here
        transitions.files_deleted(connection, request_id)
        assert transitions.past_retention(connection) == []
    assert row(database, request_id).status == "expired"
    assert events(database)[-2:] == ["expired", "deleted"]


def test_text_that_is_not_utf_8_is_shown_with_marks(tmp_path: Path) -> None:
    """Only SQLite accepts it; found by the fault suite's rows of garbage."""
    database = create_engine(f"sqlite:///{tmp_path / 'requests.db'}")
    upgrade(database)
    request_id = ask(database)
    with database.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE export_requests SET format = CAST(X'C0E4' AS TEXT), message = CAST(X'FF' AS TEXT)"
        )
        state = find_state(connection, export_requests.c.id == request_id)
    assert state is not None
    assert (state.format, state.message) == ("\ufffd\ufffd", "\ufffd")
    database.dispose()


def test_a_run_whose_row_another_took_over_does_not_complete_it(database: sa.Engine) -> None:
    request_id = running(database)
    begin(database, request_id, "run-2", ["run-1"])
    with pytest.raises(OwnershipLost):
        complete(database, request_id, "run-1")
    found = row(database, request_id)
    assert (found.status, found.run_id, found.manifest_key) == ("running", "run-2", None)
    complete(database, request_id, "run-2")


UNSTORABLE = ["a NUL \0 in it", "half a \ud83d pair", "not of Latin 1: \u20ac \u65e5"]


@pytest.mark.parametrize("text", UNSTORABLE)
def test_a_failure_whose_text_the_database_cannot_hold_is_written_all_the_same(
    request: pytest.FixtureRequest, postgres_url: str, text: str
) -> None:
    """A database in LATIN1, and text that no PostgreSQL holds: the row would stay ``running``."""
    server = create_engine(Settings(database_url=postgres_url).database_url)
    name = f"latin_{abs(hash(text))}"
    with server.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.autocommit = True
        raw.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    latin = create_engine(server.url.set(database=name).render_as_string(hide_password=False))
    upgrade(latin)
    request_id = running(latin)
    with latin.begin() as connection:
        failure = ExportFailure(FailureCode.SOURCE_DATA_INVALID, text)
        assert transitions.fail(connection, request_id, failure, run_id="run-1")
    found = row(latin, request_id)
    assert (found.status, found.error_code) == ("failed", "source_data_invalid")
    assert found.message
    assert found.message.isascii()
    assert events(latin)[-1] == "failed"


def test_a_request_that_is_refused_at_its_insert_has_a_trail_that_says_when_it_was_asked(database: sa.Engine) -> None:
    created = utc_now().replace(microsecond=0) - timedelta(days=3)
    request_id = ask(database, created_at=created)
    with database.begin() as connection:
        assert transitions.give_up(connection, request_id, FAILURE, attempt=0, run_id=None)
    assert events(database) == ["asked", "failed"]
    with database.connect() as connection:
        first = connection.execute(sa.select(export_events.c.created_at).order_by(export_events.c.id)).scalars().first()
    assert first == created
