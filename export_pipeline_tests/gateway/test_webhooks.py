"""A webhook asked for over HTTP or by SQL is called by the pipeline, whether a gateway runs or not."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, open_pipeline
from export_pipeline_tests.gateway.clients import open_gateway
from export_pipeline_tests.servers.hooks import serve_hooks


def call_what_is_due(pipeline: Pipeline) -> None:
    tick = pipeline.tick("export_webhooks")
    assert [request.run_config for request in tick.run_requests] == [{}]
    with pipeline._settings():
        run = pipeline._repository.get_job("webhooks").execute_in_process(instance=pipeline._instance)
    assert run.success
    assert pipeline.tick("export_webhooks").skip_message == "No webhook is due."


def test_completion_failure_and_cancel_are_each_told_once(sqlite_installation: Pipeline, tmp_path: Path) -> None:
    database, shelf = Database(sqlite_installation.database.url), LocalShelf(tmp_path / "store")
    insecure = {"EXPORT_WEBHOOK_ALLOW_INSECURE": "true"}
    with serve_hooks() as sink, open_pipeline(database, shelf, tmp_path, **insecure) as pipeline:
        with open_gateway(pipeline) as gateway:
            asked = {"dataset": "contacts", "format": "csv", "columns": ["id"], "webhook_url": sink.url}
            uid = gateway.caller().post("/v1/exports", asked).json()["uid"]
            (result,) = gateway.work()
        call_what_is_due(pipeline)
        (hook,) = sink.received
        export = hook.document["export"]
        assert (hook.document["event"], export["uid"], export["status"]) == ("export.completed", uid, "completed")
        assert export["row_count"] == result.state.row_count
        assert b"http" not in hook.body, "no link is in it"

        failed = pipeline.export(columns=["shoe_size"], webhook_url=sink.url)
        pipeline.database.insert("export_requests", {
            "organization_id": export["organization_id"], "dataset": "contacts", "format": "csv",
            "recipient_emails": [], "webhook_url": sink.url, "cancel_requested_at": "2025-01-01 00:00:00.000000",
        })  # fmt: skip
        pipeline.tick("export_cancellations")
        call_what_is_due(pipeline)
        told = [(hook.document["event"], hook.document["export"]["status"]) for hook in sink.received[1:]]
        assert sorted(told) == [("export.canceled", "canceled"), ("export.failed", "failed")]
        assert failed.state.uid in {hook.document["export"]["uid"] for hook in sink.received}


def test_the_sensor_asks_for_one_run_at_a_time(sqlite_installation: Pipeline, tmp_path: Path) -> None:
    database, shelf = Database(sqlite_installation.database.url), LocalShelf(tmp_path / "store")
    with open_pipeline(database, shelf, tmp_path, EXPORT_WEBHOOK_ALLOW_INSECURE="true") as pipeline:
        pipeline.export(columns=["shoe_size"], webhook_url="http://127.0.0.1:9/")
        assert pipeline.tick("export_webhooks").run_requests
        job = pipeline._repository.get_job("webhooks")
        pipeline._instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert pipeline.tick("export_webhooks").skip_message == "A run makes the calls already."
        pipeline.database.execute("DELETE FROM export_webhooks")
