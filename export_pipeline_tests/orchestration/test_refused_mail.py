"""Mail that the provider refuses: who hears of it, what is charged, and how it is sent after all."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from email import message_from_string
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from dagster._core.utils import make_new_run_id

from export_pipeline.cli import cli
from export_pipeline.database.engine import utc_now
from export_pipeline.database.tables import export_notifications, export_requests
from export_pipeline.failures import FailureCode
from export_pipeline.messaging.message import Blame, MailNotAccepted, MailOutcomeUnknown
from export_pipeline.messaging.providers import Outbox
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.sensors.alerts import alertable_failure
from export_pipeline.orchestration.sensors.reconciler import MAX_NOTIFY_RUNS, export_reconciler
from export_pipeline.requests.models import RequestState
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.orchestration.test_mail_rules import account, organization
from export_pipeline_tests.orchestration.test_sensors import STALE, evaluate

TWO = ["ana@example.com", "bob@example.com"]
RELAYING = MailNotAccepted("smtp 554 5.7.1", permanent=True, blame=Blame.INSTALLATION)
NOBODY_THERE = MailNotAccepted("smtp 550 5.1.1", permanent=True, blame=Blame.RECIPIENT)


def answer(patch: pytest.MonkeyPatch, **errors: Exception) -> None:
    """The outbox answers as a provider may, by the name of the recipient."""
    original: Callable[[Outbox, Any], None] = Outbox.send

    def send(self: Outbox, message: Any) -> None:
        error = errors.get(message.recipient.partition("@")[0])
        if error is not None:
            raise error
        original(self, message)

    patch.setattr(Outbox, "send", send)


def ledger(pipeline: Pipeline) -> dict[str, str]:
    columns = export_notifications.c
    with pipeline.database.connect() as connection:
        rows = connection.execute(sa.select(columns.recipient, columns.status))
        return {row.recipient.partition("@")[0]: row.status for row in rows}


def mailed(pipeline: Pipeline) -> list[str]:
    return sorted(message_from_string(text)["To"] for text in pipeline.outbox)


def tick(pipeline: Pipeline, state: RequestState) -> dg.SensorResult | dg.SkipReason:
    pipeline.update(state.uid, heartbeat_at=utc_now() - STALE)
    return evaluate(pipeline, export_reconciler)


def notify_run(pipeline: Pipeline, state: RequestState) -> dg.ExecuteInProcessResult:
    """What the reconciler asks for, carried out."""
    found = tick(pipeline, state)
    assert isinstance(found, dg.SensorResult)
    (asked,) = found.run_requests or []
    return pipeline.definitions.resolve_job_def("notify").execute_in_process(
        run_config=asked.run_config,
        tags={**asked.tags, "dagster/run_key": asked.run_key or ""},
        instance=pipeline.instance,
        raise_on_error=False,
    )


def resend(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["resend", *arguments])


def test_mails_that_the_installation_is_refused_are_red_alerted_kept_and_sent_after_the_correction(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization(pipeline, email_balance=5)
    with monkeypatch.context() as broken:
        answer(broken, ana=RELAYING, bob=RELAYING)
        failed, state = pipeline.export(recipient_emails=TWO)
    assert not failed.success
    assert not any(event.is_step_up_for_retry for event in failed.all_events)
    run = pipeline.instance.get_run_by_id(failed.run_id)
    assert run is not None
    assert run.tags[tags.ERROR_CODE] == "mail_refused"
    assert alertable_failure(pipeline.instance, run, frozenset(["ours"])) is FailureCode.MAIL_REFUSED
    log = "\n".join(str(entry) for entry in pipeline.instance.all_logs(failed.run_id))
    assert "smtp 554 5.7.1" in log
    assert "@example.com" not in log
    assert (state.status, state.error_code) == ("completed", None)
    assert "2 of 2 recipients could not be mailed" in (state.message or "")
    assert "EXPORT_" not in (state.message or "")
    assert ledger(pipeline) == {"ana": "pending", "bob": "pending"}
    assert account(pipeline) == (3, {"reserved": 2})
    assert notify_run(pipeline, state).success
    assert mailed(pipeline) == TWO
    assert account(pipeline) == (3, {"charged": 2})
    assert pipeline.state(state.uid).message is None


def test_what_was_refused_or_lost_is_sent_again_by_the_command_and_paid_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization(pipeline, email_balance=5)
    with monkeypatch.context() as broken:
        answer(broken, ana=NOBODY_THERE, bob=MailOutcomeUnknown("reply lost"))
        done, state = pipeline.export(recipient_emails=[*TWO, "eve@example.com"])
    assert done.success
    assert "refused for 1 of 3 recipients and of 1 of 3 recipients it is not known" in (state.message or "")
    assert account(pipeline) == (3, {"charged": 2, "released": 1})
    assert isinstance(tick(pipeline, state), dg.SkipReason)
    shown = CliRunner().invoke(cli, ["status", state.uid])
    assert "1 refused (smtp 550 5.1.1)" in shown.output
    # Long ago, and an operator stopped the run: the command's word counts.
    long_ago = utc_now() - timedelta(days=5)
    pipeline.update(state.uid, completed_at=long_ago)

    stranger = resend(state.uid, "--recipient", "mallory@example.com")
    assert (stranger.exit_code, "no mail of this request" in stranger.output) == (1, True)
    assert "mallory" not in stranger.output
    asked = resend(state.uid)
    assert asked.exit_code == 0, asked.output
    assert "Mails to send: 1" in asked.output
    assert "1 may have arrived and are not sent again" in asked.output
    assert account(pipeline) == (2, {"charged": 2, "reserved": 1})
    assert notify_run(pipeline, state).success
    assert mailed(pipeline) == ["ana@example.com", "eve@example.com"]
    assert account(pipeline) == (2, {"charged": 3})

    lost = resend(state.uid)
    assert (lost.exit_code, "sent 2" in lost.output, "--unknown" in lost.output) == (1, True, True)
    asked = resend(state.uid, "--recipient", "Bob@example.com", "--unknown")
    assert "may arrive a second time" in asked.output
    assert notify_run(pipeline, state).success
    assert mailed(pipeline) == [*TWO, "eve@example.com"]
    assert account(pipeline) == (2, {"charged": 3})
    assert isinstance(tick(pipeline, state), dg.SkipReason)


def test_the_six_tries_count_anew_when_mails_are_put_back(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        answer(broken, ana=RELAYING)
        _, state = pipeline.export()
        for number in range(1, MAX_NOTIFY_RUNS + 1):
            run_key = f"{state.uid}:notify:{number}"
            # Past runs of the job, as Dagster keeps them; each would cost a second.
            run = dg.DagsterRun(
                job_name="notify",
                run_id=make_new_run_id(),
                tags={tags.REQUEST_UID: state.uid, "dagster/run_key": run_key},
                status=dg.DagsterRunStatus.STARTED,
            )
            pipeline.instance.add_run(run)
            pipeline.instance.report_run_failed(run)
    assert isinstance(tick(pipeline, state), dg.SkipReason)
    time.sleep(0.01)
    assert "Mails to send: 1" in resend(state.uid).output
    found = tick(pipeline, state)
    assert isinstance(found, dg.SensorResult)
    assert [asked.run_key for asked in found.run_requests or []] == [f"{state.uid}:notify:{MAX_NOTIFY_RUNS + 1}"]


def test_every_recipient_refused_for_good_is_no_success_and_is_tried_again_by_nobody(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization(pipeline, email_balance=5)
    answer(monkeypatch, ana=NOBODY_THERE, bob=NOBODY_THERE)
    failed, state = pipeline.export(recipient_emails=TWO)
    assert (failed.success, state.status) == (False, "completed")
    assert "check the addresses" in (state.message or "")
    assert ledger(pipeline) == {"ana": "refused", "bob": "refused"}
    assert account(pipeline) == (5, {"released": 2})
    assert isinstance(tick(pipeline, state), dg.SkipReason)


@pytest.mark.parametrize("status", ["queued", "running", "canceled", "expired"])
def test_only_what_ended_with_a_mail_can_be_sent_again(pipeline: Pipeline, status: str) -> None:
    uid = pipeline.ask()
    pipeline.update(uid, status=status)
    refused = resend(uid)
    assert (refused.exit_code, f"the request is {status}" in refused.output) == (1, True)


def test_a_server_that_thinks_for_long_is_not_taken_for_a_dead_worker(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat goes on while a mail waits for its verdict: 10 minutes at SMTP."""
    beats: list[Any] = []
    original = Outbox.send

    def slow(self: Outbox, message: Any) -> None:
        gives_up = time.monotonic() + 30
        while len(set(beats)) < 3 and time.monotonic() < gives_up:
            time.sleep(0.02)
            with pipeline.database.connect() as connection:
                beats.append(connection.execute(sa.select(export_requests.c.heartbeat_at)).scalar())
        original(self, message)

    monkeypatch.setattr(Outbox, "send", slow)
    done, _ = pipeline.export()
    assert done.success
    assert len(set(beats)) >= 3
