"""The job: what it leaves on the row, in the store, in the outbox and in Dagster, however it ends."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.tables import export_events, export_notifications
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import MailNotAccepted, MailOutcomeUnknown
from export_pipeline.messaging.providers import Outbox
from export_pipeline.orchestration import execution, ops, tags
from export_pipeline.requests import ownership, transitions
from export_pipeline.requests.audit import operators_message
from export_pipeline.stages import notify_recipients
from export_pipeline.stages import upload as upload_module
from export_pipeline.storage.staging import Staging
from export_pipeline_tests.engine.people import ACME
from export_pipeline_tests.orchestration.conftest import Pipeline


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    return [
        event.step_failure_data.user_failure_data.description
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    ]


def notifications(pipeline: Pipeline) -> dict[str, str]:
    with pipeline.database.connect() as connection:
        rows = connection.execute(sa.select(export_notifications.c.recipient, export_notifications.c.status))
        return {row.recipient: row.status for row in rows}


def metadata_of(result: dg.ExecuteInProcessResult, step: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for event in result.all_events:
        if event.event_type is dg.DagsterEventType.STEP_OUTPUT and (event.step_key or "").startswith(step):
            found |= {name: value.value for name, value in event.step_output_data.metadata.items()}
    return found


def test_a_request_becomes_a_file_and_a_mail(pipeline: Pipeline) -> None:
    result, state = pipeline.export(recipient_emails=["ana@example.com", "Bob@EXAMPLE.com ", "Bob@example.com"])
    assert result.success
    assert (state.status, state.stage, state.row_count, state.file_count) == (
        "completed",
        "notify_recipients",
        len(ACME),
        1,
    )
    file, manifest = sorted(pipeline.stored, key=lambda path: path.suffix)
    assert manifest.name == "manifest.json"
    assert file.name.endswith(f"-{state.uid}.csv")
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [int(row["id"]) for row in rows] == [row["id"] for row in ACME]
    assert notifications(pipeline) == {"ana@example.com": "sent", "Bob@example.com": "sent"}
    assert len(pipeline.outbox) == 2
    assert not any("ana@" in mail and "Bob@" in mail for mail in pipeline.outbox)
    assert pipeline.staged == []


def test_every_stage_says_rows_bytes_files_seconds_and_rate(pipeline: Pipeline) -> None:
    result, state = pipeline.export()
    for step in ("filter_entities", "serialize", "upload", "publish"):
        metadata = metadata_of(result, step)
        assert metadata["rows"] == len(ACME), step
        assert {"bytes", "seconds", "rows_per_second", "files"} <= set(metadata), step
        assert metadata["files"] == 1, step
    read, written, sent, whole = (
        metadata_of(result, step) for step in ("filter_entities", "serialize", "upload", "publish")
    )
    assert read["bound_by"] in {"read", "stage"}
    assert {"read_seconds", "stage_seconds"} <= set(read)
    assert "serialize_seconds" in written
    assert sent["bound_by"] == "upload"
    parts = {name: value for name, value in whole.items() if name.endswith("_seconds")}
    assert parts["read_seconds"] == read["read_seconds"]
    assert parts["stage_seconds"] == pytest.approx(read["stage_seconds"] + written["stage_seconds"], abs=0.002)
    assert parts["upload_seconds"] == sent["upload_seconds"]
    assert parts[f"{whole['bound_by']}_seconds"] == max(parts.values())
    links = [value for name, value in metadata_of(result, "upload").items() if name.startswith("object_")]
    assert len(links) == 1
    assert state.uid in links[0]
    (materialized,) = result.get_asset_materialization_events()
    assert materialized.asset_key == dg.AssetKey(["exports", "people"])
    shown = {name: value.value for name, value in materialized.materialization.metadata.items()}
    assert (shown["rows"], shown["bytes"], shown["request_uid"]) == (len(ACME), state.byte_count, state.uid)
    assert shown["bound_by"] == whole["bound_by"]


def test_run_config_is_the_request_id_alone_and_tags_hold_ids(pipeline: Pipeline) -> None:
    uid = pipeline.ask(organization_id="not an id; drop <b>", dataset="people")
    (claim,) = pipeline.claim()
    result = pipeline.run(claim)
    run = result.dagster_run
    assert run.run_config == {"ops": {"plan": {"config": {"request_id": claim.id}}}}
    assert run.tags[tags.REQUEST_UID] == uid
    assert metadata_of(result, "plan")["row"] == f"export-pipeline status {uid}"
    assert run.tags[tags.ORGANIZATION].startswith("sha256:")
    assert all(len(value) <= 80 for value in run.tags.values())


def test_no_rows_is_a_complete_export_with_a_valid_empty_file(pipeline: Pipeline) -> None:
    _, state = pipeline.export(organization_id="nobody")
    assert (state.status, state.row_count, state.file_count) == ("completed", 0, 1)
    (file,) = [path for path in pipeline.stored if path.suffix == ".csv"]
    assert file.read_text() == "id,name,score,created_at\n"
    assert len(pipeline.outbox) == 1


def test_a_null_in_an_only_column_is_still_a_row_to_every_reader(pipeline: Pipeline) -> None:
    pipeline.execute("UPDATE people SET name = NULL")
    _, state = pipeline.export(columns=["name"])
    (file,) = [path for path in pipeline.stored if path.suffix == ".csv"]
    assert len(list(csv.DictReader(io.StringIO(file.read_text())))) == state.row_count == len(ACME)


def test_a_requesters_fault_fails_cleanly_and_is_not_retried(pipeline: Pipeline) -> None:
    result, state = pipeline.export(columns=["shoe_size"])
    assert not result.success
    assert (state.status, state.error_code) == ("failed", "unknown_column")
    assert "shoe_size" in (state.message or "")
    # What the requester typed is for the row alone.
    assert failures(result) == [
        "unknown_column: columns has to be corrected by the requester; export_requests.message says how."
    ]
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert pipeline.stored == pipeline.staged == pipeline.outbox == []


def test_what_may_pass_is_retried_with_backoff_and_succeeds(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter([1, 2])
    original = upload_module.upload_files

    def flaky(*arguments: Any, **options: Any) -> Any:
        if next(tries, None):
            raise ExportFailure(FailureCode.STORE_UNAVAILABLE, "The store failed.")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "upload_files", flaky)
    result, state = pipeline.export()
    assert (result.success, state.status) == (True, "completed")
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 2


def test_what_does_not_pass_is_postponed_after_its_retries(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(FailureCode.STORE_UNAVAILABLE, "The store failed.")

    monkeypatch.setattr(ops, "upload_files", broken)
    result, state = pipeline.export()
    assert sum(event.is_step_up_for_retry for event in result.all_events) == execution.MAX_RETRIES
    assert (state.status, state.error_code) == ("queued", "store_unavailable")
    assert pipeline.outbox == []


SECRET = "ana@example.com s3cret"


@pytest.mark.parametrize(
    "step", ["plan_request", "stage_rows", "serialize_shard", "upload_files", "publish_export", "mail_recipients"]
)
def test_a_bug_is_told_by_its_place_and_leaks_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def bug(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(SECRET) from KeyError(SECRET)

    monkeypatch.setattr(ops, step, bug)
    result, state = pipeline.export()
    assert not result.success
    if step == "mail_recipients":
        assert (state.status, state.error_code) == ("completed", None)
    else:
        assert (state.status, state.error_code) == ("failed", "internal_error")
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    told = failed.step_failure_data.user_failure_data.metadata
    assert told["exception"].value == "RuntimeError"
    assert "test_job.py" in told["raised_at"].value
    log = "\n".join(str(record) for record in pipeline.instance.all_logs(result.run_id))
    assert SECRET not in log
    assert "ana@example.com" not in log


def test_a_refused_recipient_does_not_keep_the_others_from_theirs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "bob@example.com": MailNotAccepted("smtp 550", permanent=True),
        "eve@example.com": MailOutcomeUnknown("reset"),
    }
    _answer(monkeypatch, answers)
    result, state = pipeline.export(recipient_emails=["bob@example.com", "eve@example.com", "ana@example.com"])
    assert (result.success, state.status) == (True, "completed")
    assert notifications(pipeline) == {
        "ana@example.com": "sent",
        "bob@example.com": "refused",
        "eve@example.com": "unknown",
    }
    assert len(pipeline.outbox) == 1


def test_a_mail_server_that_is_down_for_now_is_tried_again_for_those_without_a_mail(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _answer(monkeypatch, {"bob@example.com": [MailNotAccepted("smtp 451", permanent=False)] * 2})
    result, state = pipeline.export(recipient_emails=["ana@example.com", "bob@example.com"])
    assert (result.success, state.status) == (True, "completed")
    assert sent == ["ana@example.com", "bob@example.com", "bob@example.com", "bob@example.com"]
    assert notifications(pipeline) == {"ana@example.com": "sent", "bob@example.com": "sent"}


def test_mail_that_never_leaves_keeps_the_files_and_says_so(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, {"ana@example.com": [MailNotAccepted("smtp 451", permanent=False)] * 99})
    result, state = pipeline.export()
    assert not result.success
    assert (state.status, state.error_code) == ("completed", None)
    assert "could not be mailed" in (state.message or "")
    assert notifications(pipeline) == {"ana@example.com": "pending"}


def _answer(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]) -> list[str]:
    """Let the outbox answer as a provider may; the recipients in the order they were tried."""
    tried: list[str] = []
    original = Outbox.send

    def send(self: Outbox, message: Any) -> None:
        tried.append(message.recipient)
        answer = answers.get(message.recipient)
        if isinstance(answer, list):
            answer = answer.pop() if answer else None
        if answer is not None:
            raise answer
        original(self, message)

    monkeypatch.setattr(Outbox, "send", send)
    return tried


def test_a_cancel_between_two_stages_ends_the_run_and_leaves_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ops.serialize_shard

    def cancel_then_serialize(*arguments: Any, **options: Any) -> Any:
        pipeline.execute("UPDATE export_requests SET cancel_requested_at = created_at")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "serialize_shard", cancel_then_serialize)
    result, state = pipeline.export()
    assert (result.dagster_run.status, state.status) == (dg.DagsterRunStatus.STARTED, "canceled") or (
        pipeline.instance.get_run_by_id(result.run_id).status is dg.DagsterRunStatus.CANCELED  # type: ignore[union-attr]
    )
    assert state.status == "canceled"
    assert pipeline.stored == pipeline.staged == pipeline.outbox == []


def test_a_row_that_another_run_took_is_left_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ops.upload_files

    def lose_then_upload(*arguments: Any, **options: Any) -> Any:
        pipeline.execute("UPDATE export_requests SET run_id = 'another'")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "upload_files", lose_then_upload)
    result, state = pipeline.export()
    assert not result.success
    assert "does not own" in failures(result)[0]
    assert (state.status, state.run_id) == ("running", "another")
    assert pipeline.outbox == []


def test_a_finished_request_is_not_exported_again(pipeline: Pipeline) -> None:
    uid = pipeline.ask()
    (claim,) = pipeline.claim()
    assert pipeline.run(claim).success
    again = pipeline.run(claim)
    assert not again.success
    assert "completed" in failures(again)[0]
    assert len(pipeline.stored) == 2
    assert pipeline.state(uid).status == "completed"
    assert len(pipeline.outbox) == 1


def wide_rows(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_SHARD_ROWS", "7")
    pipeline.execute("UPDATE people SET name = hex(randomblob(60000)) WHERE organization_id = 'acme'")


def test_one_failed_shard_fails_the_request_for_good(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_rows(pipeline, monkeypatch)
    original = ops.upload_files

    def refuse_the_first(*arguments: Any, **options: Any) -> Any:
        if options["shard"] == 1:
            raise ExportFailure(FailureCode.STORE_REFUSED, "The store refused.")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "upload_files", refuse_the_first)
    result, state = pipeline.export(max_file_size_mb=1)
    assert not result.success
    assert (state.status, state.error_code) == ("failed", "store_refused")
    with pipeline.database.connect() as connection:
        assert operators_message(connection, state.uid) == "The store refused."


def test_a_row_too_large_in_one_shard_is_what_the_requester_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide_rows(pipeline, monkeypatch)
    pipeline.execute("UPDATE people SET name = hex(randomblob(600000)) WHERE id = 2")
    _, state = pipeline.export(max_file_size_mb=1)
    assert (state.status, state.error_code) == ("failed", "row_too_large")
    assert pipeline.stored == []


def test_a_fault_found_after_completion_deletes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_at_the_mail(request: Any) -> Any:
        raise ExportFailure(
            FailureCode.INVALID_RECIPIENT, "recipient_emails[0]: not an address.", field="recipient_emails"
        )

    monkeypatch.setattr(notify_recipients, "recipients_of_files", broken_at_the_mail)
    result, state = pipeline.export()
    assert not result.success
    assert state.status == "completed"
    assert "recipient_emails" in (state.message or "")
    assert len(pipeline.stored) == 2


def test_staging_that_cannot_be_cleared_does_not_keep_the_mail(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ExportFailure(FailureCode.STAGING_UNAVAILABLE, "The staging store failed.")

    monkeypatch.setattr(Staging, "delete_tree", broken)
    result, state = pipeline.export()
    assert result.success
    assert (state.status, len(pipeline.outbox)) == ("completed", 1)


def test_a_failure_while_telling_the_failure_leaks_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(ops, "stage_rows", bug)
    monkeypatch.setattr(transitions, "fail", bug)
    result, _ = pipeline.export()
    assert not result.success
    assert SECRET not in "\n".join(str(record) for record in pipeline.instance.all_logs(result.run_id))


def test_a_heartbeat_that_fails_once_is_not_the_last(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    original = ownership.heartbeat

    def flaky(*arguments: Any, **options: Any) -> None:
        beats.append(1)
        if len(beats) == 1:
            raise sa.exc.InterfaceError("UPDATE", {}, Exception("connection lost"))
        original(*arguments, **options)

    monkeypatch.setattr(ownership, "heartbeat", flaky)
    slow = ops.serialize_shard

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return slow(*arguments, **options)

    monkeypatch.setattr(ops, "serialize_shard", slowly)
    result, state = pipeline.export()
    assert (result.success, state.status) == (True, "completed")
    assert len(beats) > 5


def test_a_uid_that_is_no_uuid_is_refused_at_the_insert(pipeline: Pipeline) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        pipeline.ask(uid="../../evil")


def test_shards_keep_their_order_and_no_row_is_lost(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_rows(pipeline, monkeypatch)
    result, state = pipeline.export(max_file_size_mb=1)
    assert result.success
    assert (state.status, state.row_count) == ("completed", len(ACME))
    files = sorted(path for path in pipeline.stored if path.suffix == ".csv")
    assert all(path.stat().st_size <= 1_000_000 for path in files)
    assert len({path.name.split("-part-")[1].split("-")[0] for path in files}) == -(-len(ACME) // 7)
    ids = [int(row["id"]) for path in files for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert ids == [row["id"] for row in ACME]


def test_one_row_larger_than_the_limit_fails_and_names_its_key(pipeline: Pipeline) -> None:
    pipeline.execute("UPDATE people SET name = hex(randomblob(600000)) WHERE id = 33")
    _, state = pipeline.export(max_file_size_mb=1)
    assert (state.status, state.error_code) == ("failed", "row_too_large")
    assert "33" in (state.message or "")
    assert pipeline.stored == pipeline.staged == []


def test_the_audit_trail_tells_the_story(pipeline: Pipeline) -> None:
    pipeline.export()
    with pipeline.database.connect() as connection:
        kinds = list(connection.execute(sa.select(export_events.c.kind).order_by(export_events.c.id)).scalars())
    assert kinds == ["asked", "started", "completed", "notified"]
