"""Files and staging go when they are due, also through a store that refuses meanwhile; the audit trail stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline.database.engine import utc_now
from export_pipeline_tests.acceptance.pipeline import Database, S3Shelf, open_pipeline
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.gateway.clients import OURS, Gateway, open_gateway
from export_pipeline_tests.servers.s3 import S3Bucket

FILTER = {"email": {"contains": "@example.com"}}
SETTINGS = {"EXPORT_PUBLIC_URL": "http://gateway.test", "EXPORT_AUDIT_RETENTION_DAYS": "30"}


@pytest.fixture
def gateway(s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[Gateway]:
    url = f"sqlite:///{tmp_path}/application.db"
    load_demo_data(url, contacts=200, entities=1)
    with (
        open_pipeline(Database(url), S3Shelf(s3_bucket), tmp_path, **SETTINGS) as pipeline,
        open_gateway(pipeline) as gateway,
    ):
        yield gateway


def clean(gateway: Gateway) -> dict[str, Any]:
    """The janitor, as its schedule runs it."""
    pipeline = gateway.pipeline
    with pipeline._settings():
        result = pipeline._repository.get_job("janitor").execute_in_process(instance=pipeline._instance)
    (output,) = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def trail(gateway: Gateway, uid: str) -> list[dict[str, Any]]:
    with gateway.pipeline._settings():
        shown = CliRunner().invoke(cli, ["audit", uid, "--json"])
        assert CliRunner().invoke(cli, ["audit", uid]).exit_code == shown.exit_code
    return [json.loads(line) for line in shown.output.splitlines()] if shown.exit_code == 0 else []


def due(gateway: Gateway, uid: str) -> None:
    instant = (utc_now() - timedelta(seconds=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    gateway.pipeline.database.execute("UPDATE export_requests SET expires_at = ? WHERE uid = ?", [instant, uid])


def test_the_trail_tells_the_whole_story_when_row_and_files_are_gone(
    gateway: Gateway, s3_bucket: S3Bucket, tally: Tally
) -> None:
    member = {"organization_id": OURS.id, "member_id": "ana", "permissions": ["contacts:export"]}
    gateway.pipeline.database.insert_only("organization_members", member)
    caller = gateway.caller(member_id="ana")
    asked = {"dataset": "contacts", "format": "csv", "filters": FILTER, "recipient_emails": ["bob@example.com"]}
    uid = caller.post("/v1/exports", asked).json()["uid"]
    (result,) = gateway.work()
    (mail,) = result.mails
    body = mail.get_body(("plain",))
    assert body is not None
    (link,) = re.findall(r"http://gateway\.test(/d/\S+)", body.get_content())
    assert gateway.client.get(link).status_code == 302
    for _ in range(3):
        assert caller.get(f"/v1/exports/{uid}").json()["files"]
    key = gateway.rows("SELECT id FROM api_keys")[0][0]

    # Its time has come, and the store refuses us: nobody is promised the files, and they are not said to be gone.
    due(gateway, uid)
    environment, name = gateway.pipeline.environment, "AWS_SECRET_ACCESS_KEY"
    environment[name], right = "revoked", environment[name]
    with pytest.raises(dg.Failure, match="S3 refused"):
        clean(gateway)
    assert gateway.client.get(link).status_code == 410
    assert caller.get(f"/v1/exports/{uid}").json()["files"] == []
    assert [event["kind"] for event in trail(gateway, uid)][-1] == "expired"
    environment[name] = right
    assert clean(gateway)["expired_exports"] == 1
    assert s3_bucket.keys() == []
    assert gateway.rows("SELECT status FROM export_requests WHERE uid = ?", uid) == [("expired",)]
    gateway.pipeline.database.execute("DELETE FROM export_requests WHERE uid = ?", [uid])

    story = trail(gateway, uid)
    assert [(event["kind"], event["actor"]) for event in story] == [
        ("asked", "ana"),
        ("started", "pipeline"),
        ("completed", "pipeline"),
        ("notified", "pipeline"),
        ("downloaded", "link"),
        ("linked", f"key {key}"),
        ("expired", "pipeline"),
        ("deleted", "pipeline"),
    ]
    assert story[0]["detail"]["filters"] == FILTER
    assert story[0]["detail"]["recipient_emails"] == ["bob@example.com"]
    assert story[4]["detail"]["recipient"] == "bob@example.com"
    assert story[7]["detail"] == {"files": 1}
    assert [event["at"] for event in story] == sorted(event["at"] for event in story)

    # The trail itself ends when it is set to: what it repeats of the request is personal data.
    gateway.pipeline.database.execute("UPDATE export_events SET created_at = '2025-01-01 00:00:00.000000'")
    assert clean(gateway)["forgotten_audit_events"] == len(story)
    assert trail(gateway, uid) == []
    assert gateway.rows("SELECT count(*) FROM export_events WHERE detail LIKE '%@example.com%'") == [(0,)]
    tally("store that refuses when files are due", tries=1, survived=1)


def test_what_failed_exports_staged_is_gone_after_a_day_and_not_before(gateway: Gateway, tally: Tally) -> None:
    pipeline = gateway.pipeline
    staging = Path(pipeline.environment["EXPORT_STAGING_URL"].removeprefix("file://"))
    states = [pipeline.export(format="csv", recipient_emails=[]).state for _ in range(2)]
    for state in states:
        left = staging / state.uid / "1" / "rows.arrow"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"bob@example.com")
    old = (utc_now() - timedelta(days=1, minutes=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    pipeline.database.execute("UPDATE export_requests SET completed_at = ? WHERE uid = ?", [old, states[0].uid])
    assert clean(gateway)["cleared_leftovers"] == 1
    assert [path.name for path in staging.iterdir()] == [states[1].uid]
    tally("rows left in staging", tries=2, survived=2)
