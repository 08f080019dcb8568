"""Alerts: each failed run that is not the requester's fault is told once, by webhook and mail, whatever they answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from export_pipeline.database.engine import utc_now
from export_pipeline.definitions import build_definitions
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration import ops, tags
from export_pipeline.orchestration.sensors import alerts
from export_pipeline.orchestration.sensors.reconciler import export_reconciler
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.orchestration.test_sensors import STALE, a_run, evaluate
from export_pipeline_tests.servers.smtp import SmtpSink
from export_pipeline_tests.servers.webhook import SECRET_PATH, WebhookSink, serve_webhook

OPERATORS = "operators@example.com"


@pytest.fixture
def webhook() -> Iterator[WebhookSink]:
    with serve_webhook() as sink:
        yield sink


class Watch:
    """The sensor, ticked by hand; it keeps its cursor as the daemon does."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.definitions = build_definitions()
        self.cursor: str | None = None
        self.tick()

    @property
    def sensor(self) -> dg.SensorDefinition:
        return self.definitions.resolve_sensor_def("export_alerts")

    def tick(self) -> str:
        exports = self.definitions.resources["exports"]  # type: ignore[index]
        with dg.build_sensor_context(
            instance=self.pipeline.instance, cursor=self.cursor, resources={"exports": exports}
        ) as context:
            result = cast("Any", self.sensor(context))
        self.cursor = result.cursor
        return str(result.skip_reason.skip_message)

    def later(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
        """The tick of a time to come."""
        now = alerts.time.time()
        with monkeypatch.context() as patch:
            patch.setattr(alerts.time, "time", lambda: now + seconds)
            return self.tick()


@pytest.fixture
def watch(pipeline: Pipeline, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", webhook.url)
    monkeypatch.setenv("EXPORT_DAGSTER_URL", "https://dagster.example.com/")
    return Watch(pipeline)


def failing_export(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> dg.ExecuteInProcessResult:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ExportFailure(FailureCode.STORE_REFUSED, "The bucket does not exist.")

    with monkeypatch.context() as patch:
        patch.setattr(ops, "upload_files", broken)
        result, _ = pipeline.export(**asked)
    return result


def state_of(pipeline: Pipeline, run_id: str, channel: str = "webhook") -> str:
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    return run.tags.get(f"export/alert_{channel}", "")


def test_alerts_are_off_until_somebody_is_named(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    off = Watch(pipeline)
    assert off.sensor.default_status is dg.DefaultSensorStatus.STOPPED
    failed = failing_export(pipeline, monkeypatch)
    assert "EXPORT_ALERT_WEBHOOK_URL" in off.tick()
    monkeypatch.setenv("EXPORT_ALERT_EMAIL", OPERATORS)
    assert Watch(pipeline).sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert state_of(pipeline, failed.run_id) == ""


def test_a_failed_run_is_told_once_with_ids_code_advice_and_link(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_export(watch.pipeline, monkeypatch, organization_id="acme")
    assert watch.tick() == "webhook: 1 failed: alert sent."
    assert watch.tick() == watch.later(monkeypatch, 3600) == "Nothing to report."
    (text,) = webhook.texts
    uid = failed.dagster_run.tags[tags.REQUEST_UID]
    for said in (
        "1 run failed (store_refused)",
        "fault: ours; turn: operator",
        "From failure",
        "organization acme",
        uid,
    ):
        assert said in text
    assert f"https://dagster.example.com/runs/{failed.run_id}" in text
    assert "ana@" not in text
    assert state_of(watch.pipeline, failed.run_id) == f"sent {failed.run_id[:8]}"


def test_a_requesters_fault_alerts_nobody_unless_it_is_asked_for(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.pipeline.export(columns=["shoe_size"])
    assert watch.tick() == "Nothing to report."
    monkeypatch.setenv("EXPORT_ALERT_FAULTS", "requester, ours")
    all_faults = Watch(watch.pipeline)
    watch.pipeline.export(columns=["shoe_size"])
    assert all_faults.tick() == "webhook: 1 failed: alert sent."  # the first is history
    (text,) = webhook.texts
    assert "unknown_column" in text
    assert "shoe_size" not in text


@pytest.mark.parametrize("answer", [500, 404, 429, 302])
def test_what_was_not_accepted_is_tried_once_more_later_and_told_once(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    failed = failing_export(watch.pipeline, monkeypatch)
    webhook.answers.append(answer)
    assert f"not delivered (http {answer})" in watch.tick()
    assert state_of(watch.pipeline, failed.run_id).startswith("waiting")
    assert watch.tick() == watch.later(monkeypatch, 30) == "Nothing to report."  # the pause is kept
    another = failing_export(watch.pipeline, monkeypatch)
    assert watch.later(monkeypatch, 70) == "webhook: 2 failed: alert sent."
    assert watch.later(monkeypatch, 9000) == "Nothing to report."
    (text,) = webhook.texts
    assert failed.run_id in text
    assert another.run_id in text


def test_what_was_not_accepted_twice_is_given_up(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_export(watch.pipeline, monkeypatch)
    webhook.answers.extend([500, 500])
    watch.tick()
    assert "not delivered" in watch.later(monkeypatch, 70)
    assert state_of(watch.pipeline, failed.run_id) == f"given-up {failed.run_id[:8]}"
    assert watch.later(monkeypatch, 1000) == "Nothing to report."
    assert webhook.texts == []


def test_a_webhook_that_is_down_neither_raises_nor_shows_its_url(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", f"http://127.0.0.1:9{SECRET_PATH}")
    down = Watch(pipeline)
    failing_export(pipeline, monkeypatch)
    said = down.tick()
    assert "not delivered (ConnectionError)" in said
    assert "s3cret" not in said + (down.cursor or "")


def test_a_lost_answer_is_not_asked_for_twice(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_export(watch.pipeline, monkeypatch)
    webhook.answers.append("take_then_reset")
    assert "the answer was lost" in watch.tick()
    watch.later(monkeypatch, 3600)
    assert len(webhook.texts) == 1
    assert state_of(watch.pipeline, failed.run_id).startswith("unknown")


def test_a_process_that_dies_while_sending_tells_nobody_twice(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing_export(watch.pipeline, monkeypatch)

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    before = watch.cursor
    with monkeypatch.context() as patch:
        patch.setattr("export_pipeline.messaging.alerts.post_notice", die)
        with pytest.raises(KeyboardInterrupt):
            watch.tick()
    assert watch.cursor == before
    assert watch.tick() == "Nothing to report."
    assert state_of(watch.pipeline, failed.run_id).startswith("unknown")
    assert webhook.texts == []


def test_failures_older_than_a_day_alert_nobody(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_export(watch.pipeline, monkeypatch)
    assert watch.later(monkeypatch, 90_000) == "Nothing to report."
    assert webhook.texts == []


def test_a_flood_is_told_in_bounded_notices_each_run_once(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "RUNS_PER_NOTICE", 2)
    runs = [failing_export(watch.pipeline, monkeypatch).run_id for _ in range(3)]
    told = [watch.tick() for _ in range(3)]
    assert told == ["webhook: 2 failed: alert sent.", "webhook: 1 failed: alert sent.", "Nothing to report."]
    assert sorted(run for run in runs for text in webhook.texts if run in text) == sorted(runs)


def test_a_re_execution_that_fails_again_is_told_again(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = failing_export(watch.pipeline, monkeypatch)
    watch.tick()
    parent = watch.pipeline.instance.get_run_by_id(first.run_id)
    assert parent is not None
    # As Dagster does: the re-execution has its parent's tags, those of the alert among them.
    again = watch.pipeline.job.execute_in_process(
        run_config=parent.run_config, tags=parent.tags, instance=watch.pipeline.instance, raise_on_error=False
    )
    watch.pipeline.instance.add_run_tags(again.run_id, {})
    assert not again.success
    assert state_of(watch.pipeline, again.run_id) == f"sent {first.run_id[:8]}"
    assert watch.tick() == "Nothing to report."  # it had no right to the row: nobody's failure
    third = failing_export(watch.pipeline, monkeypatch)
    watch.pipeline.instance.add_run_tags(third.run_id, {"export/alert_webhook": f"sent {first.run_id[:8]}"})
    assert watch.tick() == "webhook: 1 failed: alert sent."
    assert len(webhook.texts) == 2


def test_both_channels_are_told_and_one_that_is_down_does_not_hold_the_other_up(
    pipeline: Pipeline, webhook: WebhookSink, smtp_sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", webhook.url)
    monkeypatch.setenv("EXPORT_ALERT_EMAIL", OPERATORS)
    monkeypatch.setenv("EXPORT_MAIL_URL", smtp_sink.url)
    both = Watch(pipeline)
    smtp_sink.replies[OPERATORS] = "451 later"
    failed = failing_export(pipeline, monkeypatch)
    assert both.tick() == (
        "webhook: 1 failed: alert sent. mail: 1 failed: not delivered (smtp 451), tried twice at most."
    )
    smtp_sink.replies.clear()
    assert both.later(monkeypatch, 70) == "mail: 1 failed: alert sent."
    (received,) = smtp_sink.received
    assert received.recipients == [OPERATORS]
    mail = received.message
    assert mail["Subject"] == "Export pipeline: 1 run failed (store_refused)"
    body = mail.get_body(("plain",))
    assert body is not None
    assert failed.run_id in body.get_content()
    assert len(webhook.texts) == 1
    run = pipeline.instance.get_run_by_id(failed.run_id)
    assert run is not None
    assert OPERATORS not in str(run.tags) + (both.cursor or "")


def test_a_process_that_died_is_told_when_its_request_is_given_up_and_not_before(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = watch.pipeline
    uid = pipeline.ask()
    for attempt in (1, 2, 3):
        pipeline.claim()
        run_id = a_run(pipeline, uid, dg.DagsterRunStatus.STARTED, attempt)
        pipeline.instance.report_run_failed(cast("Any", pipeline.instance.get_run_by_id(run_id)))
        pipeline.update(uid, status="running", run_id=run_id, heartbeat_at=utc_now() - STALE)
        assert watch.tick() == "Nothing to report."
        evaluate(pipeline, export_reconciler)
    assert watch.tick() == "webhook: 1 failed: alert sent."
    (text,) = webhook.texts
    assert "attempts_exhausted" in text
    assert run_id in text


def test_alerts_need_no_request_database_and_an_unknown_code_counts_as_internal(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = watch.pipeline
    failed = failing_export(pipeline, monkeypatch)
    odd = a_run(pipeline, pipeline.ask(), dg.DagsterRunStatus.STARTED)
    pipeline.instance.add_run_tags(odd, {tags.ERROR_CODE: "no such code"})
    pipeline.instance.report_run_failed(cast("Any", pipeline.instance.get_run_by_id(odd)))
    pipeline.execute("ALTER TABLE export_requests RENAME TO elsewhere")
    assert watch.tick() == "webhook: 2 failed: alert sent."
    (text,) = webhook.texts
    assert failed.run_id in text
    assert odd in text
    assert "internal_error" in text


def test_a_re_execution_that_dies_silently_is_not_told_by_the_code_that_it_inherited(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = watch.pipeline.instance
    inherited = {tags.ERROR_CODE: "store_refused", tags.FAULT: "ours"}
    run = create_run_for_test(
        instance,
        job_name="export",
        tags=inherited,
        parent_run_id="p",
        root_run_id="p",
        status=dg.DagsterRunStatus.STARTED,
    )
    instance.report_run_failed(run)
    assert watch.tick() == "Nothing to report."
    instance.add_run_tags(run.run_id, tags.failure_tags(FailureCode.ATTEMPTS_EXHAUSTED))  # by the reconciler
    assert watch.tick() == "webhook: 1 failed: alert sent."
    assert "attempts_exhausted" in webhook.texts[0]


def test_runs_of_others_and_the_retries_of_mails_alert_nobody_and_janitor_and_webhooks_do(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = watch.pipeline.instance
    for job in ("somebody_elses", "notify", "janitor", "webhooks"):
        instance.report_run_failed(create_run_for_test(instance, job_name=job, status=dg.DagsterRunStatus.STARTED))
    assert watch.tick() == "webhook: 2 failed: alert sent."
    assert "- janitor:" in webhook.texts[0]
    assert "- webhooks:" in webhook.texts[0]


def test_webhooks_that_could_not_be_called_are_told_by_their_failure(
    watch: Watch, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.pipeline.execute("DROP TABLE export_webhooks")
    job = watch.pipeline.definitions.resolve_job_def("webhooks")
    failed = job.execute_in_process(instance=watch.pipeline.instance, raise_on_error=False)
    assert watch.tick() == "webhook: 1 failed: alert sent."
    assert "database_unavailable" in webhook.texts[0]
    assert not any("no such table" in dg.serialize_value(event) for event in failed.all_events)


def test_a_run_that_failed_before_the_sensor_began_is_history(
    pipeline: Pipeline, webhook: WebhookSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_export(pipeline, monkeypatch)
    monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", webhook.url)
    late = Watch(pipeline)
    assert late.tick() == "Nothing to report."
    assert webhook.texts == []
