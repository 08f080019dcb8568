"""The janitor deletes what is past its time, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from export_pipeline.database.engine import utc_now
from export_pipeline.database.enums import EventKind
from export_pipeline.database.tables import export_events
from export_pipeline.definitions import build_definitions
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import rate_windows
from export_pipeline.requests.audit import events_of, record
from export_pipeline.storage.local import LocalStore
from export_pipeline_tests.orchestration.conftest import Pipeline


def clean(pipeline: Pipeline) -> dict[str, Any]:
    job = pipeline.definitions.resolve_job_def("janitor")
    result = job.execute_in_process(instance=pipeline.instance)
    (output,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_files_past_retention_are_deleted_and_the_row_says_expired(pipeline: Pipeline) -> None:
    _, kept = pipeline.export()
    _, old = pipeline.export()
    pipeline.update(old.uid, expires_at=utc_now() - timedelta(seconds=1))
    assert clean(pipeline)["expired_exports"] == 1
    assert pipeline.state(old.uid).status == "expired"
    assert pipeline.state(kept.uid).status == "completed"
    assert {path.relative_to(pipeline.home / "store").parts[0] for path in pipeline.stored} == {kept.uid}
    assert clean(pipeline)["expired_exports"] == 0


def test_what_a_dead_attempt_left_is_cleared_after_a_day(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    delivered = set(pipeline.stored)
    pipeline.update(state.uid, attempt=2)
    for place in ("staging", "store"):
        left = pipeline.home / place / state.uid / "1" / "rows" / "00001.arrow"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"left")
    moved = {path: path.parents[2] for path in delivered}
    assert moved  # the delivered files are attempt 1's here; the row says 2, as after a second attempt
    clean(pipeline)
    assert pipeline.staged  # an operator may still re-execute from failure
    pipeline.update(state.uid, completed_at=utc_now() - timedelta(days=2))
    assert clean(pipeline)["cleared_leftovers"] == 1
    assert pipeline.staged == []
    assert pipeline.stored == []


def test_what_is_not_named_like_a_request_is_not_ours_to_delete(pipeline: Pipeline) -> None:
    precious = pipeline.home / "staging" / "backups" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    clean(pipeline)
    assert precious.exists()


def test_one_export_that_the_store_will_not_let_go_does_not_keep_the_others(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stuck = pipeline.export()
    _, other = pipeline.export()
    for state in (stuck, other):
        pipeline.update(state.uid, expires_at=utc_now() - timedelta(seconds=1))
    original = LocalStore.delete

    def refuse(self: LocalStore, key: str) -> None:
        if key.startswith(stuck.uid):
            raise ExportFailure(FailureCode.STORE_REFUSED, "The store refused.")
        original(self, key)

    monkeypatch.setattr(LocalStore, "delete", refuse)
    cleaned = clean(pipeline)
    assert (cleaned["expired_exports"], cleaned["failed"]) == (1, 1)
    monkeypatch.setattr(LocalStore, "delete", original)
    assert clean(pipeline)["expired_exports"] == 1
    assert pipeline.stored == []


def test_a_part_that_fails_keeps_no_other_from_being_done_and_shows_no_text_of_strangers(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old = pipeline.export()
    pipeline.update(old.uid, expires_at=utc_now() - timedelta(seconds=1))

    def refuse(store: LocalStore, older_than: timedelta) -> int:
        raise ExportFailure(FailureCode.STORE_UNAVAILABLE, "The store is away.")

    def break_down(*arguments: Any) -> Any:
        raise ValueError("ana@example.com")

    monkeypatch.setattr(LocalStore, "abort_uploads", refuse)
    monkeypatch.setattr(rate_windows, "forget_ended", break_down)
    job = pipeline.definitions.resolve_job_def("janitor")
    result = job.execute_in_process(instance=pipeline.instance, raise_on_error=False)
    (step,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_FAILURE]
    told = step.step_failure_data.user_failure_data
    assert told is not None
    assert told.description == (
        "Not done, and tried again by the next run:\n"
        "- rate windows: internal_error\n"
        "- uploads to the store: store_unavailable: The store is away."
    )
    said = {name: value.value for name, value in told.metadata.items()}
    assert (said["error_code"], said["exception"]) == ("internal_error", "ValueError")
    assert "break_down" in str(said["raised_at"])
    assert (said["expired_exports"], said["aborted_uploads"], said["forgotten_runs"]) == (1, 0, 0)
    assert pipeline.stored == []
    assert not any("ana@" in dg.serialize_value(event) for event in result.all_events)


def test_an_export_that_is_revived_while_the_janitor_lists_keeps_everything(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = pipeline.export()
    left = pipeline.home / "staging" / state.uid / "1" / "rows.arrow"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"rows")
    pipeline.update(state.uid, status="failed", completed_at=utc_now() - timedelta(days=2))
    original = LocalStore.keys

    def revive_then_list(self: LocalStore, prefix: str) -> Any:
        pipeline.update(state.uid, status="running", run_id="re-execution")
        return original(self, prefix)

    monkeypatch.setattr(LocalStore, "keys", revive_then_list)
    assert clean(pipeline)["cleared_leftovers"] == 0
    assert left.exists()
    assert len(pipeline.stored) == 2


def test_a_running_request_keeps_what_it_staged(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.update(uid, status="running", heartbeat_at=utc_now(), attempt=1)
    staged = pipeline.home / "staging" / uid / "1" / "plan.json"
    staged.parent.mkdir(parents=True)
    staged.write_text("{}")
    assert clean(pipeline)["cleared_leftovers"] == 0
    assert staged.exists()


def lay(pipeline: Pipeline, place: str, uid: str, *, attempt: int = 1, name: str = "a.csv", age: timedelta) -> Path:
    """A file of an attempt that was last written so long ago."""
    path = pipeline.home / place / uid / str(attempt) / ("f" * 32) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"left")
    then = (utc_now() - age).timestamp()
    os.utime(path, (then, then))
    return path


def test_files_of_every_attempt_are_deleted_when_the_export_expires(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.update(state.uid, attempt=3, expires_at=utc_now() - timedelta(seconds=1))
    for attempt in (1, 2, 3):
        lay(pipeline, "store", state.uid, attempt=attempt, age=timedelta(0))
    assert clean(pipeline)["expired_exports"] == 1
    assert pipeline.stored == []


@pytest.mark.parametrize("status", ["failed", "canceled", "expired", None])
def test_what_is_left_in_the_store_alone_is_found_without_staging(pipeline: Pipeline, status: str | None) -> None:
    """Staging may be lost with its machine, or cleared before a late upload ends."""
    _, kept = pipeline.export()
    uid = str(uuid4()) if status is None else pipeline.ask()
    if status is not None:
        pipeline.update(uid, status=status, attempt=2, completed_at=utc_now() - timedelta(days=2))
    left = lay(pipeline, "store", uid, age=timedelta(days=2))
    assert clean(pipeline)["cleared_leftovers"] == 1
    assert not left.exists()
    assert {path.relative_to(pipeline.home / "store").parts[0] for path in pipeline.stored} == {kept.uid}


@pytest.mark.parametrize("place", ["staging", "store"])
@pytest.mark.parametrize(
    ("name", "age", "is_known", "stays"),
    [
        ("a.csv", timedelta(hours=1), False, True),
        ("a.csv", timedelta(days=2), False, False),
        ("manifest.json", timedelta(days=2), False, True),
        ("manifest.json", timedelta(days=2), True, False),
        ("manifest.json", timedelta(hours=1), True, True),
    ],
)
def test_what_the_database_does_not_know_may_be_another_installations(
    pipeline: Pipeline, place: str, name: str, age: timedelta, is_known: bool, stays: bool
) -> None:
    uid = str(uuid4())
    paths = [lay(pipeline, "store", uid, name=name, age=age), lay(pipeline, place, uid, age=age)]
    if is_known:
        with pipeline.database.begin() as connection:
            record(connection, uid, "acme", EventKind.COMPLETED)
    assert clean(pipeline)["cleared_leftovers"] == (0 if stays else 1)
    assert [path.exists() for path in paths] == [stays, stays]


def test_a_later_attempt_leaves_one_manifest_and_no_file_of_an_earlier_one(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    pipeline.update(uid, attempt=1)
    left = [lay(pipeline, "store", uid, name=name, age=timedelta(0)) for name in ("a.csv", "manifest.json")]
    (claim,) = pipeline.claim()
    assert pipeline.run(claim).success
    assert pipeline.state(uid).attempt == 2
    assert not any(path.exists() for path in left)
    assert len([path for path in pipeline.stored if path.name == "manifest.json"]) == 1
    assert len(pipeline.stored) == 2


@pytest.mark.parametrize(
    ("becomes", "goes"),
    [
        ({"status": "failed", "error_code": "row_too_large"}, True),
        ({"status": "canceled"}, True),
        ({"status": "queued", "attempt": 2, "run_id": None}, True),
        ({"status": "failed", "error_code": "store_unavailable"}, False),
        ({"run_id": "a re-execution"}, False),
    ],
)
def test_a_worker_that_loses_its_request_takes_back_what_it_wrote_unless_another_goes_on_with_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, becomes: dict[str, Any], goes: bool
) -> None:
    """Whoever ended the attempt cleared the stores while the upload was still under way."""
    uid = pipeline.ask()
    put = LocalStore.link_file

    def end_meanwhile(self: LocalStore, *arguments: Any, **options: Any) -> bool:
        if pipeline.state(uid).status == "running":
            pipeline.update(uid, **becomes)
        return put(self, *arguments, **options)

    monkeypatch.setattr(LocalStore, "link_file", end_meanwhile)
    (claim,) = pipeline.claim()
    assert not pipeline.run(claim).success
    assert bool(pipeline.stored) is not goes


def test_the_audit_trail_outlives_the_files_and_ends_when_it_is_set_to(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [pipeline.export()[1].uid for _ in range(3)]
    for uid in uids[:2]:
        pipeline.update(uid, expires_at=utc_now() - timedelta(seconds=1))
    clean(pipeline)
    old, recent, kept = uids
    pipeline.execute(f"DELETE FROM export_requests WHERE uid = '{old}'")
    age(pipeline, old, timedelta(days=40))
    age(pipeline, recent, timedelta(days=20))
    # One that began long ago and is not over: its trail keeps its beginning.
    age(pipeline, kept, timedelta(days=40), kinds=("asked", "started"))

    assert clean(pipeline)["forgotten_audit_events"] == 0
    assert kinds(pipeline, old) == ["asked", "started", "completed", "notified", "expired", "deleted"]

    monkeypatch.setenv("EXPORT_AUDIT_RETENTION_DAYS", "30")
    again = replace(pipeline, definitions=build_definitions())
    assert clean(again)["forgotten_audit_events"] == 6
    assert kinds(pipeline, old) == []
    assert kinds(pipeline, recent) == ["asked", "started", "completed", "notified", "expired", "deleted"]
    assert kinds(pipeline, kept) == ["asked", "started", "completed", "notified"]


def age(pipeline: Pipeline, uid: str, by: timedelta, kinds: tuple[str, ...] = tuple(EventKind)) -> None:
    events = export_events.c
    with pipeline.database.begin() as connection:
        connection.execute(
            export_events.update()
            .where(events.request_uid == uid, events.kind.in_(kinds))
            .values(created_at=utc_now() - by)
        )


def kinds(pipeline: Pipeline, uid: str) -> list[str]:
    with pipeline.database.connect() as connection:
        return [event.kind for event in events_of(connection, uid)]
