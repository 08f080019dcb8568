"""From the fire time to the mail, in one process: the sensor, the real job, the rows that were delivered."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.tables import organization_members, organizations
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration import ops
from export_pipeline.orchestration.sensors import INTERVAL_SECONDS
from export_pipeline.orchestration.sensors import due as due_sensors
from export_pipeline.orchestration.sensors.due import recurring_exports as sensor
from export_pipeline.requests.models import RequestState
from export_pipeline.stages.notify_recipients import EMPTY_AND_SILENT
from export_pipeline_tests.orchestration.conftest import Pipeline, pipeline
from export_pipeline_tests.orchestration.test_sensors import evaluate
from export_pipeline_tests.recurring.rows import TEMPLATE, add, made, row, update

__all__ = ["pipeline"]
HOUR = timedelta(hours=1)
KEY = "k" * 32


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """What the sensor takes for now, so that no hour ends in the middle of a test."""
    instant = datetime(2026, 6, 2, 10, tzinfo=UTC)
    monkeypatch.setattr(due_sensors, "make_due", partial(due_sensors.make_due, now=instant))
    return instant


def born(pipeline: Pipeline, created_at: datetime) -> int:
    """A row of the exported table, created at that instant."""
    with pipeline.database.begin() as connection:
        return connection.execute(
            sa.text(
                "INSERT INTO people (id, organization_id, name, created_at) "
                "SELECT max(id) + 1, 'acme', 'new', :created_at FROM people RETURNING id"
            ),
            {"created_at": created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")},
        ).scalar_one()


def due(pipeline: Pipeline, recurring_id: int, now: datetime) -> RequestState:
    """Let the hour that has begun be due, make its request by the sensor, and run it."""
    update(pipeline.database, recurring_id, last_fired_for=now - HOUR)
    before = len(made(pipeline.database))
    assert "1 requests made" in evaluate(pipeline, sensor).skip_message
    requests = made(pipeline.database)
    assert len(requests) == before + 1
    for claim in pipeline.claim():
        pipeline.run(claim)
    return pipeline.state(requests[-1].uid)


def delivered(pipeline: Pipeline, state: RequestState) -> list[int]:
    paths = [path for path in pipeline.stored if path.suffix == ".csv" and state.uid in str(path)]
    return [int(line["id"]) for path in paths for line in csv.DictReader(path.read_text().splitlines())]


def test_a_due_row_becomes_an_export_with_exactly_the_windows_rows(pipeline: Pipeline, now: datetime) -> None:
    recurring_id = add(pipeline.database, window_kind="previous_period", lag_seconds=0)
    micro = timedelta(microseconds=1)
    born(pipeline, now - HOUR - micro)
    inside = [born(pipeline, now - HOUR), born(pipeline, now - micro)]
    born(pipeline, now)
    state = due(pipeline, recurring_id, now)
    assert (state.status, delivered(pipeline, state)) == ("completed", inside)
    (request,) = made(pipeline.database)
    assert (request.window_from, request.window_before, request.scheduled_for) == (now - HOUR, now, now)
    assert len(pipeline.outbox) == 1
    assert "0 requests made" in evaluate(pipeline, sensor).skip_message


def test_a_failed_window_is_part_of_the_next_and_the_mark_moves_on_completion_alone(
    pipeline: Pipeline, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = now - 3 * HOUR
    recurring_id = add(pipeline.database, window_kind="since_last_success", lag_seconds=0, high_water_mark=start)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(FailureCode.STORE_REFUSED, "The store refused.")

    rows = [born(pipeline, start)]
    with monkeypatch.context() as broken:
        broken.setattr(ops, "upload_files", refuse)
        assert due(pipeline, recurring_id, now).status == "failed"
    assert row(pipeline.database, recurring_id).high_water_mark == start
    rows.append(born(pipeline, start + HOUR))
    original, seen = ops.publish_export, list[Any]()

    def watch(*arguments: Any) -> Any:
        seen.append(row(pipeline.database, recurring_id).high_water_mark)
        return original(*arguments)

    monkeypatch.setattr(ops, "publish_export", watch)
    monkeypatch.setattr(due_sensors, "make_due", partial(due_sensors.make_due, now=now + HOUR))
    state = due(pipeline, recurring_id, now + HOUR)
    assert (state.status, delivered(pipeline, state)) == ("completed", rows)
    assert seen == [start]
    last = made(pipeline.database)[-1]
    assert last.window_from == start
    assert row(pipeline.database, recurring_id).high_water_mark == last.window_before == now + HOUR


def test_nothing_new_and_skip_means_no_mail_nothing_paid_and_the_row_says_so(pipeline: Pipeline, now: datetime) -> None:
    with pipeline.database.begin() as connection:
        connection.execute(organizations.insert().values(id="acme", email_balance=3))
    silent = add(
        pipeline.database, window_kind="previous_period", lag_seconds=0, request=TEMPLATE | {"empty_result": "skip"}
    )
    state = due(pipeline, silent, now)
    assert (state.status, state.row_count, pipeline.outbox) == ("completed", 0, [])
    assert state.message == EMPTY_AND_SILENT
    with pipeline.database.connect() as connection:
        assert connection.execute(sa.select(organizations.c.email_balance)).scalar_one() == 3
    pipeline.execute("DELETE FROM export_requests")
    born(pipeline, now - HOUR)
    assert (due(pipeline, silent, now).message, len(pipeline.outbox)) == (None, 1)


def test_a_recurring_mail_has_a_way_out_and_another_has_none(
    pipeline: Pipeline, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_PUBLIC_URL", "https://exports.example.com")
    monkeypatch.setenv("EXPORT_SIGNING_KEY", KEY)
    from export_pipeline.definitions import build_definitions

    served = Pipeline(pipeline.home, pipeline.database, pipeline.instance, build_definitions())
    served.export()
    (plain,) = served.outbox
    assert "unsubscribe" not in plain.lower()
    due(served, add(served.database), now)
    (mail,) = [mail for mail in served.outbox if mail != plain]
    assert "List-Unsubscribe: <https://exports.example.com/unsubscribe/" in mail
    assert "Unsubscribe from this recurring export" in mail


def test_the_owner_is_mailed_once_that_it_was_paused(pipeline: Pipeline, now: datetime) -> None:
    recurring_id = add(pipeline.database, owner="owner")
    with pipeline.database.begin() as connection:
        connection.execute(
            organization_members.insert().values(
                organization_id="acme", member_id="owner", email="owner@home.example", locale="es", permissions=[]
            )
        )
    state = due(pipeline, recurring_id, now)
    assert (state.status, state.error_code) == ("failed", "permission_denied")
    assert "0 requests made" in evaluate(pipeline, sensor).skip_message
    notify = pipeline.definitions.resolve_job_def("notify")
    for _ in range(2):
        config = {"ops": {"resume_notification": {"config": {"request_id": state.id}}}}
        notify.execute_in_process(run_config=config, instance=pipeline.instance)
    (mail,) = pipeline.outbox
    assert "To: owner@home.example" in mail
    assert f"peri=C3=B3dica: {recurring_id}" in mail.replace("=\n", "")


def test_the_sensor_says_what_it_could_not_do_and_skips_without_a_database(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise sa.exc.OperationalError("SELECT", {}, Exception("password=s3cret"))

    assert sensor.minimum_interval_seconds == INTERVAL_SECONDS
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    recurring_id = add(pipeline.database)
    with monkeypatch.context() as broken:
        broken.setattr("export_pipeline.recurring.dispatch._look", unreachable)
        assert evaluate(pipeline, sensor).skip_message.endswith(f"to be tried again: {recurring_id}")
    monkeypatch.setattr(due_sensors, "make_due", unreachable)
    skipped = evaluate(pipeline, sensor)
    assert "EXPORT_DATABASE_URL" in skipped.skip_message
    assert "s3cret" not in skipped.skip_message
