"""Fire times become requests: once each, whatever crashes; windows follow deliveries; bad rows harm no others."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine, utc_now
from export_pipeline.database.tables import export_requests
from export_pipeline.failures import ExportFailure, OwnershipLost
from export_pipeline.recurring import dispatch, models
from export_pipeline.recurring.models import MANAGED
from export_pipeline.requests import transitions
from export_pipeline.requests.models import ExportRequest, RequestTemplate, insert_request
from export_pipeline.scheduling.windows import Act, Decision, Window
from export_pipeline.settings import Settings
from export_pipeline_tests.recurring.rows import TEMPLATE, add, at, cancel, complete, fail, look, made, row, update
from export_pipeline_tests.servers.postgres import PostgresServer


def test_a_fire_time_becomes_one_request_with_the_templates_columns(database: sa.Engine) -> None:
    template = TEMPLATE | {"filters": {"id": {"gt": 1}}, "columns": ["id"], "email_locale": "es", "priority": 3}
    recurring_id = add(database, request=template, owner="u-17")
    assert look(database, "2 09:59").made == []
    (uid,) = look(database, "2 10:00").made
    assert look(database, "2 10:30").made == []
    (request,) = made(database)
    assert (request.uid, request.recurring_export_id, request.requested_by) == (uid, recurring_id, "u-17")
    assert (request.scheduled_for, request.idempotency_key) == (
        at("2 10:00"),
        f"recurring:{recurring_id}:2026-03-02T10:00:00+00:00",
    )
    assert (request.filters, request.columns, request.email_locale) == ({"id": {"gt": 1}}, ["id"], "es")
    assert (request.priority, request.window_from, request.window_before) == (3, None, None)
    assert row(database, recurring_id).last_fired_for == at("2 10:00")


def test_the_first_fire_time_is_after_the_row_was_made(database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO recurring_exports (organization_id, cron, request) VALUES ('acme', '* * * * *', "
            """'{"dataset": "people", "format": "csv", "recipient_emails": []}')"""
        )
    dispatch.make_due(database, limit=50)
    dispatch.make_due(database, limit=50, now=utc_now() + timedelta(minutes=1))
    assert 1 <= len(made(database)) <= 2


def test_every_column_that_may_be_asked_is_the_templates_or_the_recurring_exports_own() -> None:
    told = {
        "status", "stage", "attempt", "claimed_at", "run_id", "rows_done", "rows_total", "row_count", "byte_count",
        "file_count", "snapshot_at", "manifest_key", "error_code", "message", "heartbeat_at", "started_at",
        "completed_at", "expires_at", "updated_at", "uncounted_attempts", "claim_id", "not_before", "postponed_at",
        "postponements",
    }  # fmt: skip
    assert set(RequestTemplate.model_fields) | MANAGED | told == set(ExportRequest.model_fields)
    assert not set(RequestTemplate.model_fields) & (MANAGED | told)


DAEMONS, ROUNDS = 4, 5


def test_many_daemons_at_once_make_each_fire_time_once(database: sa.Engine) -> None:
    ids = [add(database, overlap_policy="queue", catch_up_policy="all", organization_id=f"o{n}") for n in range(4)]
    failures: list[BaseException] = []
    for hour in range(10, 10 + ROUNDS):
        barrier = threading.Barrier(DAEMONS)

        def daemon(now: str = f"2 {hour}:00", barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                tick = look(database, now)
                assert tick.not_done == []
            except BaseException as error:  # noqa: BLE001 - of another thread
                failures.append(error)

        threads = [threading.Thread(target=daemon) for _ in range(DAEMONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for request in made(database):
            if request.status == "queued":
                complete(database, request.id)
    assert failures == []
    fired = Counter((request.recurring_export_id, request.scheduled_for) for request in made(database))
    assert fired == {(one, at(f"2 {hour}:00")): 1 for one in ids for hour in range(10, 10 + ROUNDS)}


def test_whoever_saw_an_older_row_moves_nothing(database: sa.Engine) -> None:
    """The conditional UPDATE by itself, without the lock and the key that protect as well."""
    seen = row(database, add(database))
    look(database, "2 10:00")
    with database.begin() as connection:
        assert not dispatch._move(connection, seen, Decision(Act.MAKE, at("2 11:00")))
        fresh = models.load_recurring(connection, seen.id)
        assert dispatch._move(connection, fresh, Decision(Act.MAKE, at("2 11:00")))


KILLED = """
import os, sys
from export_pipeline.recurring import dispatch
from export_pipeline.database.engine import create_engine
from export_pipeline_tests.recurring.rows import at
url, moment = sys.argv[1:]
original = getattr(dispatch, moment)
def die(*arguments):
    original(*arguments)
    os._exit(9)
setattr(dispatch, moment, die)
dispatch.make_due(create_engine(url), limit=50, now=at("2 10:00"))
"""


@pytest.mark.parametrize("moment", ["_move", "_insert", "_look"])
def test_a_daemon_that_is_killed_in_between_leaves_the_fire_time_to_the_next(database: sa.Engine, moment: str) -> None:
    """After the pointer moved, after the row was inserted, and right before the commit: nothing, or all of it."""
    recurring_id = add(database)
    url = database.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", KILLED, url, moment], check=False, timeout=120)
    assert killed.returncode == 9
    assert made(database) == []
    assert row(database, recurring_id).last_fired_for == at("2 09:00")
    assert len(look(database, "2 10:01").made) == 1
    assert len(made(database)) == 1


def test_a_pointer_that_somebody_sets_back_doubles_nothing(database: sa.Engine) -> None:
    recurring_id = add(database)
    look(database, "2 10:00")
    complete(database, made(database)[0].id)
    update(database, recurring_id, last_fired_for=at("2 08:00"))
    assert look(database, "2 10:30").made == []
    assert row(database, recurring_id).last_fired_for == at("2 10:00")
    assert len(made(database)) == 1


def test_a_request_that_only_has_a_fire_times_key_spends_no_fire_time(database: sa.Engine) -> None:
    recurring_id, good = add(database), add(database)
    key = f"{dispatch.KEY_PREFIX}{recurring_id}:2026-03-02T10:00:00+00:00"
    with database.begin() as connection:
        insert_request(connection, **TEMPLATE, organization_id="acme", idempotency_key=key)
    tick = look(database, "2 10:00")
    assert tick.not_done == [recurring_id]
    assert row(database, recurring_id).last_fired_for == at("2 09:00")
    assert made(database)[-1].recurring_export_id == good
    with database.begin() as connection:
        connection.execute(
            export_requests.update().values(idempotency_key=None).where(export_requests.c.idempotency_key == key)
        )
    assert len(look(database, "2 10:01").made) == 1
    assert made(database)[-1].recurring_export_id == recurring_id


def test_a_paused_one_makes_nothing_and_catches_up_when_resumed(database: sa.Engine) -> None:
    recurring_id = add(database, catch_up_policy="all", failures_in_a_row=2)
    with database.begin() as connection:
        assert models.pause(connection, recurring_id, "migration")
        assert not models.pause(connection, recurring_id, "again")
    assert look(database, "2 12:00").made == []
    assert row(database, recurring_id).pause_reason == "migration"
    with database.begin() as connection:
        assert models.resume(connection, recurring_id)
        assert not models.resume(connection, recurring_id)
    for _ in range(5):
        look(database, "2 12:00")
        for request in made(database):
            if request.status == "queued":
                complete(database, request.id)
    assert [request.scheduled_for for request in made(database)] == [at(f"2 {hour}:00") for hour in (10, 11, 12)]
    found = row(database, recurring_id)
    assert (found.paused_at, found.pause_reason, found.failures_in_a_row) == (None, None, 0)


@pytest.mark.parametrize("end", [complete, fail])
def test_a_request_ends_though_its_recurring_export_was_paused_at_an_instant_without_end(
    postgres_server: PostgresServer, migrated_postgresql: str, end: Callable[[sa.Engine, int], None]
) -> None:
    with postgres_server.fresh_database(migrated_postgresql) as url:
        database = create_engine(Settings(database_url=url).database_url)
        recurring_id = add(database)
        look(database, "2 10:00")
        with database.begin() as connection:
            connection.exec_driver_sql("UPDATE recurring_exports SET paused_at = 'infinity'")
        (request,) = made(database)
        end(database, request.id)
        assert made(database)[0].status in ("completed", "failed")
        columns = "id, failures_in_a_row"
        with database.connect() as connection:
            found = connection.exec_driver_sql(f"SELECT {columns} FROM recurring_exports").one()
        assert tuple(found) == (recurring_id, int(end is fail))
        database.dispose()


def test_a_fire_time_that_overlaps_is_passed_over_or_waits(database: sa.Engine) -> None:
    skips, queues = add(database), add(database, overlap_policy="queue")
    look(database, "2 10:00")
    first = made(database)
    wait_since(database, "2 10:00")
    assert look(database, "2 11:00").passed_over == 1
    assert len(made(database)) == 2
    for request in first:
        complete(database, request.id)
    look(database, "2 11:05")
    assert [(one.recurring_export_id, one.scheduled_for) for one in made(database)[2:]] == [(queues, at("2 11:00"))]
    assert row(database, skips).last_fired_for == row(database, queues).last_fired_for == at("2 11:00")


def wait_since(database: sa.Engine, moment: str) -> None:
    """All requests so far are unfinished since then: the database's clock is not that of March."""
    with database.begin() as connection:
        connection.execute(export_requests.update().values(created_at=at(moment)))


def test_many_that_wait_keep_nobody_else_from_their_turn(database: sa.Engine) -> None:
    waiting = [add(database, overlap_policy="queue") for _ in range(60)]
    assert [len(look(database, "2 10:00").made) for _ in range(3)] == [50, 10, 0]
    wait_since(database, "2 10:00")
    other = add(database, organization_id="other", last_fired_for=at("2 10:00"))
    (uid,) = look(database, "2 11:00").made
    assert (made(database)[-1].uid, made(database)[-1].recurring_export_id) == (uid, other)
    assert {row(database, one).last_fired_for for one in waiting} == {at("2 10:00")}


def test_one_of_each_organization_comes_first(database: sa.Engine) -> None:
    for _ in range(60):
        add(database)
    other = add(database, organization_id="other")
    assert len(look(database, "2 10:00").made) == 50
    assert other in {request.recurring_export_id for request in made(database)}


def test_a_look_that_runs_out_of_time_leaves_nobody_behind_for_ever(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_LONGEST_SECONDS", 0.0)
    ids = [add(database, overlap_policy="queue") for _ in range(3)]
    for _ in range(100):
        if len(made(database)) == len(ids):
            break
        assert len(look(database, "2 10:00").made) <= 1
    wait_since(database, "2 10:00")
    other = add(database, last_fired_for=at("2 10:00"))
    assert any(look(database, "2 11:00").made for _ in range(100))
    assert made(database)[-1].recurring_export_id == other


def windows(database: sa.Engine) -> list[tuple[Any, Any]]:
    return [(request.window_from, request.window_before) for request in made(database)]


def test_since_last_success_begins_where_the_last_completed_window_ended(database: sa.Engine) -> None:
    recurring_id = add(database, window_kind="since_last_success", lag_seconds=0)

    def mark() -> Any:
        return row(database, recurring_id).high_water_mark

    look(database, "2 10:00")
    assert mark() is None
    complete(database, made(database)[-1].id)
    assert (mark(), windows(database)[-1]) == (at("2 10:00"), (None, at("2 10:00")))
    look(database, "2 11:00")
    fail(database, made(database)[-1].id)
    assert mark() == at("2 10:00")
    look(database, "2 12:00")
    cancel(database, made(database)[-1].id)
    assert mark() == at("2 10:00")
    look(database, "2 13:00")
    assert mark() == at("2 10:00")  # not when it is asked for
    complete(database, made(database)[-1].id)
    assert windows(database)[1:] == [(at("2 10:00"), at(f"2 {hour}:00")) for hour in (11, 12, 13)]
    assert mark() == at("2 13:00")
    with pytest.raises(OwnershipLost, match=r"delivers rows of this one.*run-now"):  # re-executed, or retried
        complete(database, made(database)[1].id)
    for ended in made(database)[1:3]:
        with pytest.raises(ExportFailure, match="delivers rows of this one"), database.begin() as connection:
            transitions.retry(connection, ended.uid, actor="command")
    assert mark() == at("2 13:00")


def test_a_request_whose_rows_no_later_one_delivers_is_retried(database: sa.Engine) -> None:
    add(database, window_kind="since_last_success", lag_seconds=0)
    look(database, "2 10:00")
    fail(database, made(database)[0].id)
    look(database, "2 11:00")
    fail(database, made(database)[1].id)  # it failed as well: it delivers nothing
    uid = made(database)[0].uid
    with database.begin() as connection:
        assert transitions.retry(connection, uid, actor="command")
    assert made(database)[0].status == "queued"


@pytest.mark.parametrize("column", ["cron", "time_zone"])
def test_fire_times_count_from_the_change_of_the_schedule_on(database: sa.Engine, column: str) -> None:
    """Else an hourly cron would make up for all the hours since the last weekly fire time."""
    recurring_id = add(database, cron="0 10 * * *", catch_up_policy="all", overlap_policy="queue")
    look(database, "2 10:00")
    complete(database, made(database)[0].id)
    update(database, recurring_id, **({"cron": "0 * * * *"} if column == "cron" else {"time_zone": "Asia/Kolkata"}))
    for _ in range(3):
        look(database, "9 10:05")
    assert len(made(database)) == 1
    look(database, "9 11:00" if column == "cron" else "10 04:30")
    assert len(made(database)) == 2


def test_a_mark_in_the_future_is_said_and_corrected(database: sa.Engine) -> None:
    """A clock was a year ahead for a while: without a correction nothing is due for a year."""
    recurring_id = add(database, window_kind="since_last_success", lag_seconds=0, catch_up_policy="all")
    look(database, "2 10:00")
    complete(database, made(database)[0].id)
    ahead = at("2 10:00") + timedelta(days=365)
    update(database, recurring_id, last_fired_for=ahead, high_water_mark=ahead)
    tick = look(database, "2 11:00")
    assert tick.corrected == [recurring_id, recurring_id]
    assert windows(database)[1:] == [(at("2 10:00"), at("2 11:00"))]
    assert look(database, "2 11:30").corrected == []


def test_the_mark_never_passes_the_instant_at_which_the_request_was_made(database: sa.Engine) -> None:
    """A requested window may end in the future; rows that are created later are in no file."""
    recurring_id = add(database, window_kind="since_last_success", lag_seconds=0)
    with database.begin() as connection:
        later = utc_now() + timedelta(days=30)
        dispatch.run_now(connection, recurring_id, window=Window(None, later))
    complete(database, made(database)[0].id)
    assert row(database, recurring_id).high_water_mark == made(database)[0].created_at


def test_a_request_of_another_organization_moves_nothing(database: sa.Engine) -> None:
    recurring_id = add(database, window_kind="since_last_success", failures_in_a_row=1)
    asked = {
        **TEMPLATE,
        "organization_id": "other",
        "recurring_export_id": recurring_id,
        "window_before": at("9 00:00"),
    }
    with database.begin() as connection:
        insert_request(connection, **asked)
        insert_request(connection, **asked)
    completed, failed = made(database)
    complete(database, completed.id)
    fail(database, failed.id)
    found = row(database, recurring_id)
    assert (found.high_water_mark, found.failures_in_a_row) == (None, 1)


def test_an_unfinished_request_of_another_organization_holds_nothing_up(database: sa.Engine) -> None:
    ids = [
        add(database),
        add(database, overlap_policy="queue"),
        add(database, window_kind="since_last_success", lag_seconds=0),
    ]
    with database.begin() as connection:
        for recurring_id in ids:
            insert_request(connection, **TEMPLATE, organization_id="other", recurring_export_id=recurring_id)
    wait_since(database, "2 09:30")
    tick = look(database, "2 10:00")
    assert (len(tick.made), tick.passed_over) == (3, 0)
    for request in made(database)[3:]:
        complete(database, request.id)
    with database.begin() as connection:
        assert dispatch.run_now(connection, ids[2], now=at("2 10:30"))


def test_a_row_that_nothing_can_be_made_of_is_paused_and_says_so_in_a_failed_request(database: sa.Engine) -> None:
    bad = [
        (add(database, cron="every day"), "invalid_schedule: cron: 'every day' needs five fields"),
        (add(database, time_zone="Mars/Olympus"), "invalid_option: time_zone: 'Mars/Olympus'"),
        (add(database, request={"dataset": "people"}), "invalid_request: request.format: is missing"),
        (
            add(database, request=TEMPLATE | {"formt": "csv"}),
            "invalid_request: request.formt: is not a column of a request",
        ),
        (add(database, request=TEMPLATE | {"uid": "x"}), "invalid_request: request.uid: is set by the recurring"),
        (add(database, request=TEMPLATE | {"columns": "id"}), "invalid_request: request.columns: input should be"),
        (add(database, request=TEMPLATE | {"priority": 2**40}), "invalid_request: request.priority: input should be"),
        (add(database, request=[1]), "invalid_request: request: input should be"),
        (add(database, request=TEMPLATE | {"recipient_emails": ["x"]}), "invalid_recipient: recipient_emails[0]"),
    ]
    good = add(database)
    tick = look(database, "2 10:00")
    assert (len(tick.made), tick.not_done) == (len(bad) + 1, [])
    for recurring_id, expected in bad:
        assert reason(database, recurring_id).startswith(expected)
    told = {one.recurring_export_id: f"{one.error_code}: {one.message}" for one in made(database) if one.error_code}
    assert told == {recurring_id: reason(database, recurring_id) for recurring_id, _ in bad}
    assert row(database, good).paused_at is None
    assert look(database, "2 10:30").made == []


@pytest.mark.parametrize("columns", [{"lag_seconds": -1}, {"lag_seconds": 604801}, {"max_failures": 0}], ids=str)
def test_numbers_out_of_range_are_refused_at_the_insert(database: sa.Engine, columns: dict[str, int]) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        add(database, **columns)


def reason(database: sa.Engine, recurring_id: int) -> str:
    columns = dispatch.recurring_exports.c
    with database.connect() as connection:
        return str(connection.execute(sa.select(columns.pause_reason).where(columns.id == recurring_id)).scalar())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_only_sqlite_would_hold_spoils_no_tick(database: sa.Engine) -> None:
    ids = [add(database) for _ in range(4)]
    with database.begin() as connection:
        for recurring_id, change in zip(
            ids,
            ("cron = CAST(x'00ff' AS TEXT)", "time_zone = CAST(x'ff' AS TEXT)", "request = '{\"format\": 1}'"),
            strict=False,
        ):
            connection.exec_driver_sql(f"UPDATE recurring_exports SET {change} WHERE id = {recurring_id}")
    look(database, "2 10:00")
    with database.connect() as connection:
        paused = connection.execute(sa.text("SELECT id FROM recurring_exports WHERE paused_at IS NOT NULL")).scalars()
        assert set(paused) == set(ids[:3])
    (asked,) = [request for request in made(database) if request.status == "queued"]
    assert asked.recurring_export_id == ids[3]


def test_out_of_turn_it_covers_its_turn_or_any_window_again(database: sa.Engine) -> None:
    recurring_id = add(database, window_kind="since_last_success", lag_seconds=60, high_water_mark=at("2 08:00"))

    def run_now(**options: Any) -> str:
        with database.begin() as connection:
            return dispatch.run_now(connection, recurring_id, now=at("2 09:30"), **options)

    run_now()
    assert windows(database) == [(at("2 08:00"), at("2 09:29"))]
    with pytest.raises(ExportFailure, match="has not ended"):
        run_now()
    complete(database, made(database)[0].id)
    assert row(database, recurring_id).high_water_mark == at("2 09:29")
    uid = made(database)[0].uid
    with database.connect() as connection:
        again = dispatch.window_of(connection, recurring_id, uid)
        with pytest.raises(LookupError):
            dispatch.window_of(connection, recurring_id + 1, uid)
    run_now(window=again)
    run_now(window=Window(at("1 00:00"), at("2 00:00")))
    assert windows(database)[1:] == [(at("2 08:00"), at("2 09:29")), (at("1 00:00"), at("2 00:00"))]
    for request in made(database)[1:]:
        complete(database, request.id)
    found = row(database, recurring_id)
    assert (found.high_water_mark, found.last_fired_for) == (at("2 09:29"), at("2 09:00"))
    look(database, "2 10:01")
    assert windows(database)[-1] == (at("2 09:29"), at("2 10:00"))
