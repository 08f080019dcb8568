"""Telling the requester of a failure: at once where possible, by the reconciler otherwise, and never in the way."""

from __future__ import annotations

from datetime import timedelta
from email import message_from_string, policy
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import export_notifications, organization_email_senders, organization_members
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.messaging.message import MailNotAccepted
from export_pipeline.messaging.providers import Outbox
from export_pipeline.orchestration import execution, ops, tags
from export_pipeline.orchestration.sensors.cancellations import export_cancellations
from export_pipeline.orchestration.sensors.reconciler import export_reconciler
from export_pipeline.requests.models import RequestState
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.orchestration.test_sensors import STALE, a_run, evaluate
from export_pipeline_tests.servers.sendgrid import API_KEY, Answer, SendGridSink

REQUESTER = "requester@example.com"
BAD: dict[str, Any] = {"columns": ["shoe_size"], "requested_by": "u1"}
SECRET = "requester@example.com s3cret"


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """With a requester who may be told."""
    with pipeline.database.begin() as connection:
        connection.execute(
            organization_members.insert().values(
                organization_id="acme",
                member_id="u1",
                email=REQUESTER,
                locale="pt",
                permissions=["contacts:export", "entities:export", "people:export"],
            )
        )
    return pipeline


def ledger(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    columns = export_notifications.c
    with pipeline.database.connect() as connection:
        rows = connection.execute(
            sa.select(columns.recipient, columns.kind, columns.status).order_by(columns.kind, columns.id)
        )
        return [(row.recipient, row.kind, row.status) for row in rows]


def mailed(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Who got which subject."""
    mails = [message_from_string(text, policy=policy.default) for text in pipeline.outbox]
    return [(mail["To"], mail["Subject"]) for mail in mails]


def log_of(pipeline: Pipeline, *run_ids: str) -> str:
    return "\n".join(str(record) for run_id in run_ids for record in pipeline.instance.all_logs(run_id))


def resume(pipeline: Pipeline, state: RequestState) -> dg.ExecuteInProcessResult:
    """What the reconciler asks for, carried out."""
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE, completed_at=utc_now() - timedelta(seconds=60))
    (asked,) = evaluate(pipeline, export_reconciler).run_requests
    assert asked.job_name == "notify"
    assert asked.run_key.startswith(f"{state.uid}:notify:")
    job = pipeline.definitions.resolve_job_def("notify")
    return job.execute_in_process(
        run_config=asked.run_config, tags=asked.tags, instance=pipeline.instance, raise_on_error=False
    )


def nothing_left(pipeline: Pipeline, state: RequestState) -> bool:
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    return isinstance(evaluate(pipeline, export_reconciler), dg.SkipReason)


FAULTS = [
    (FailureCode.UNKNOWN_COLUMN, "Sua exportação precisa de uma correção: Pessoas"),
    (FailureCode.MAIL_UNAVAILABLE, "Sua exportação não pôde ser feita desta vez: Pessoas"),
    (FailureCode.COUNT_MISMATCH, "Sua exportação falhou por um problema nosso: Pessoas"),
]


@pytest.mark.parametrize(("code", "subject"), FAULTS)
def test_a_run_that_fails_for_good_tells_the_requester_and_no_recipient(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, code: FailureCode, subject: str
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(code, "It failed.")

    monkeypatch.setattr(ops, "stage_rows", broken)
    result, state = pipeline.export(requested_by="u1")
    assert not result.success
    assert (state.status, state.error_code) == ("failed", code.value)
    assert mailed(pipeline) == [(REQUESTER, subject)]
    assert ledger(pipeline) == [(REQUESTER, "failed", "sent")]
    assert "@example.com" not in log_of(pipeline, result.run_id)
    assert nothing_left(pipeline, state)


def test_a_mail_that_cannot_leave_changes_nothing_and_is_sent_by_a_later_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Outbox.send

    def refuse(self: Outbox, message: Any) -> None:
        raise MailNotAccepted("smtp 451", permanent=False)

    monkeypatch.setattr(Outbox, "send", refuse)
    failed, before = pipeline.export(**BAD)
    assert (before.status, before.error_code) == ("failed", "unknown_column")
    assert not any(event.is_step_up_for_retry for event in failed.all_events)
    assert ledger(pipeline) == [(REQUESTER, "failed", "pending")]

    down = resume(pipeline, before)
    assert not down.success
    assert sum(event.is_step_up_for_retry for event in down.all_events) == execution.MAX_RETRIES
    assert ledger(pipeline) == [(REQUESTER, "failed", "pending")]

    monkeypatch.setattr(Outbox, "send", original)
    # Tried a moment ago: the reconciler leaves the provider some time.
    assert nothing_left(pipeline, before)
    pipeline.instance.delete_run(down.run_id)
    up = resume(pipeline, before)
    assert up.success
    assert ledger(pipeline) == [(REQUESTER, "failed", "sent")]
    assert [to for to, _ in mailed(pipeline)] == [REQUESTER]
    after = pipeline.state(before.uid)
    for name in ("status", "stage", "run_id", "error_code", "message", "attempt"):
        assert getattr(after, name) == getattr(before, name), name
    assert "@example.com" not in log_of(pipeline, failed.run_id, down.run_id, up.run_id)
    assert nothing_left(pipeline, before)


def test_a_bug_in_the_mail_leaks_nothing_and_is_not_repeated_at_the_requester(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Outbox.send

    def bug(self: Outbox, message: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Outbox, "send", bug)
    failed, state = pipeline.export(**BAD)
    assert (failed.success, state.status, state.error_code) == (False, "failed", "unknown_column")
    monkeypatch.setattr(Outbox, "send", original)
    resumed = resume(pipeline, state)
    assert resumed.success
    # It may have left: a second mail would be worse than a missing one that the operator can see.
    assert ledger(pipeline) == [(REQUESTER, "failed", "unknown")]
    assert pipeline.outbox == []
    log = log_of(pipeline, failed.run_id, resumed.run_id)
    assert SECRET not in log
    assert "@example.com" not in log


def test_a_request_that_the_reconciler_gives_up_is_told_of_by_a_run_of_its_own(pipeline: Pipeline) -> None:
    uid = pipeline.ask(requested_by="u1")
    pipeline.claim()
    a_run(pipeline, uid, dg.DagsterRunStatus.FAILURE, attempt=3)
    pipeline.update(uid, status="running", attempt=3, heartbeat_at=utc_now() - STALE)
    evaluate(pipeline, export_reconciler)
    state = pipeline.state(uid)
    assert (state.status, state.error_code) == ("failed", "attempts_exhausted")
    assert pipeline.outbox == []
    assert resume(pipeline, state).success
    assert mailed(pipeline) == [(REQUESTER, "Sua exportação falhou por um problema nosso: Pessoas")]


def test_a_failed_request_that_completes_by_re_execution_mails_its_recipients_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_send, original_rows = Outbox.send, ops.stage_rows

    def refuse(self: Outbox, message: Any) -> None:
        raise MailNotAccepted("smtp 451", permanent=False)

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(FailureCode.SOURCE_REFUSED, "The source refused.")

    monkeypatch.setattr(Outbox, "send", refuse)
    monkeypatch.setattr(ops, "stage_rows", broken)
    failed, state = pipeline.export(requested_by="u1")
    assert state.status == "failed"
    monkeypatch.setattr(Outbox, "send", original_send)
    monkeypatch.setattr(ops, "stage_rows", original_rows)
    # An in-process run has no parent in Dagster: it is told here what a re-execution is.
    monkeypatch.setattr(tags, "lineage_of", lambda *_: [failed.run_id])
    again = pipeline.job.execute_in_process(
        run_config=failed.dagster_run.run_config,
        tags=dict(failed.dagster_run.tags),
        instance=pipeline.instance,
        raise_on_error=False,
    )
    assert again.success
    assert pipeline.state(state.uid).status == "completed"
    assert [to for to, _ in mailed(pipeline)] == ["ana@example.com"]
    assert nothing_left(pipeline, state)


def test_nobody_is_told_of_a_request_that_wants_no_mail(pipeline: Pipeline) -> None:
    _, state = pipeline.export(**BAD, notify_email=False)
    assert state.status == "failed"
    assert (ledger(pipeline), pipeline.outbox) == ([], [])


def test_nobody_is_told_of_a_request_that_was_canceled(pipeline: Pipeline) -> None:
    uid = pipeline.ask(**BAD)
    (claim,) = pipeline.claim()
    pipeline.update(uid, cancel_requested_at=utc_now())
    pipeline.run(claim)
    evaluate(pipeline, export_cancellations)
    assert pipeline.state(uid).status == "canceled"
    assert (ledger(pipeline), pipeline.outbox) == ([], [])
    assert nothing_left(pipeline, pipeline.state(uid))


def test_an_installation_without_mail_fails_as_ever(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_MAIL_URL", "none:")
    _, state = pipeline.export(**BAD)
    assert (state.status, state.error_code) == ("failed", "unknown_column")
    assert nothing_left(pipeline, state)
    result, state = pipeline.export(recipient_emails=[])
    assert (result.success, state.status) == (True, "completed")


def waits(result: dg.ExecuteInProcessResult) -> list[float]:
    return [
        float(event.step_retry_data.seconds_to_wait or 0) for event in result.all_events if event.is_step_up_for_retry
    ]


@pytest.mark.parametrize(("asked", "retried"), [(1, True), (3000, False)])
def test_a_provider_that_asks_to_wait_is_given_that_time_or_left_to_a_later_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, sendgrid_sink: SendGridSink, asked: int, retried: bool
) -> None:
    for name, value in {
        "EXPORT_MAIL_URL": "sendgrid:",
        "SENDGRID_API_KEY": API_KEY,
        "SENDGRID_HOST": sendgrid_sink.url,
        "EXPORT_MAIL_FROM": "exports@example.org",
    }.items():
        monkeypatch.setenv(name, value)
    sendgrid_sink.next_answers(Answer(429, {"Retry-After": str(asked)}))
    people = ["ana@example.com", "bob@example.com"]
    result, state = pipeline.export(recipient_emails=people)
    assert state.status == "completed"
    assert result.success == retried
    assert waits(result) == ([1.0] if retried else [])
    if not retried:
        assert sendgrid_sink.recipients == []
        assert "2 of 2 recipients could not be mailed" in (state.message or "")
        assert resume(pipeline, state).success
    assert sendgrid_sink.recipients == people


def test_a_sender_that_was_lost_meanwhile_keeps_nobody_from_their_files(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders = organization_email_senders
    with pipeline.database.begin() as connection:
        sender_id = connection.execute(
            senders.insert()
            .values(organization_id="acme", email="news@acme.example.com", name="Acme News")
            .returning(senders.c.id)
        ).scalar_one()
    _, kept = pipeline.export(from_sender_id=sender_id)
    assert (kept.status, kept.message) == ("completed", None)
    original = ops.upload_files

    def lose_the_sender(*arguments: Any, **options: Any) -> Any:
        pipeline.execute("DELETE FROM organization_email_senders")
        return original(*arguments, **options)

    monkeypatch.setattr(ops, "upload_files", lose_the_sender)
    result, lost = pipeline.export(from_sender_id=sender_id)
    assert (result.success, lost.status) == (True, "completed")
    assert "sender_unknown" in (lost.message or "")
    senders_seen = {message_from_string(text, policy=policy.default)["From"] for text in pipeline.outbox}
    assert senders_seen == {"Acme News <news@acme.example.com>", "exports@localhost.localdomain"}
    assert "news@" not in log_of(pipeline, result.run_id)
