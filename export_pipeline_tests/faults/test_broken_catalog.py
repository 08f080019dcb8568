"""A broken catalog under a running installation: red, told once, and exports of the last good one go on.

The workspace is the shipped one, so that Dagster's daemon loads the code location anew every 60 s, in a new process.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.supervisor import wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.servers.webhook import serve_webhook
from export_pipeline_tests.stack import SLOW, Stack, finished, open_stack

pytestmark = pytest.mark.timeout(600)
SHIPPED = Path(__file__).parents[2] / "workspace.yaml"
RELOADED_SECONDS = 75.0
"""The daemon loads a code location anew every 60 s."""


def ticks_of(stack: Stack, sensor: str) -> list[Any]:
    """The sensor's last ticks, the newest first."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        state = next((one for one in instance.all_instigator_state() if one.instigator_name == sensor), None)
        return [] if state is None else list(instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=3))


def ask(stack: Stack) -> str:
    return stack.insert(
        organization_id="acme", dataset="slow", format="csv", recipient_emails=json.dumps([f"a{time.time()}@x.io"])
    )


def test_exports_go_on_while_the_catalog_is_broken(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, tally: Tally
) -> None:
    with (
        serve_webhook() as alerts,
        open_stack(
            postgres_server, s3_server, tmp_path, processes_too=False, EXPORT_ALERT_WEBHOOK_URL=alerts.url
        ) as stack,
    ):
        assert stack.processes is not None
        stack.processes.daemon(SHIPPED)
        wait_until(lambda: stack.command("health", "--only", "last_tick_seconds").returncode == 0, 120, why=stack.logs)
        before = ask(stack)
        stack.wait(before, finished)

        declaration = Path(stack.environment["EXPORT_CATALOG"]) / "slow.yaml"
        declaration.write_text(SLOW.replace("integer", "integre"))
        broken_at = time.monotonic()
        during = ask(stack)
        wait_until(lambda: alerts.texts, 120, why=stack.logs)
        time.sleep(max(0.0, broken_at + RELOADED_SECONDS - time.monotonic()))
        after_reload = ask(stack)
        ended = [stack.wait(uid, finished)["status"] for uid in (before, during, after_reload)]
        tally("catalog broken under a running installation", tries=3, survived=ended.count("completed"))
        assert ended == ["completed"] * 3

        failed = [tick for tick in ticks_of(stack, "export_installation") if tick.status.value == "FAILURE"]
        assert failed
        assert "'integre' is not one of" in failed[0].error.to_string()
        assert len(alerts.texts) == 1
        assert "slow.yaml" in alerts.texts[0]
        health = stack.command("health")
        assert health.returncode == 1
        assert "'integre' is not one of" in health.stdout

        declaration.write_text(SLOW)
        wait_until(lambda: stack.command("health").returncode == 0, 60, why=stack.logs)
        wait_until(lambda: ticks_of(stack, "export_installation")[0].status.value == "SKIPPED", 60, why=stack.logs)
        assert len(alerts.texts) == 1
