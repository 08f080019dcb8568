"""The gateway as a process: what the command makes and prints, a stop that cuts nobody off, its log."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline_tests.acceptance.pipeline import Pipeline
from export_pipeline_tests.gateway.clients import OURS, settings_of
from export_pipeline_tests.gateway.load import measure, running_gateway


@pytest.fixture
def environment(sqlite_installation: Pipeline) -> Iterator[dict[str, str]]:
    with settings_of(sqlite_installation):
        yield sqlite_installation.environment


def make_key(*arguments: str) -> str:
    command = ["api-key", "create", "--organization", OURS.id, "--scope", "contacts:export", *arguments]
    made = CliRunner().invoke(cli, command)
    assert made.exit_code == 0, made.output
    return made.output.split()[-1]


def status(port: int, key: str, path: str = "/v3/marketing/contacts/exports") -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status


@pytest.mark.slow
def test_a_key_from_the_command_opens_the_served_gateway_until_it_is_revoked(
    environment: dict[str, str], tmp_path: Path
) -> None:
    key = make_key("--name", "crm")
    listed = CliRunner().invoke(cli, ["api-key", "list", "--organization", OURS.id]).output
    line = next(line for line in listed.splitlines() if line.endswith("crm") and "  valid  " in line)
    assert key not in listed
    with running_gateway(tmp_path, environment) as (port, process):
        assert status(port, key) == 200
        assert CliRunner().invoke(cli, ["api-key", "revoke", line.split()[0]]).output == "Revoked.\n"
        assert CliRunner().invoke(cli, ["api-key", "revoke", line.split()[0]]).exit_code == 1
        assert status(port, key) == 401
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    facts = [(one["route"], one["status"]) for one in lines if one["message"] == "request"]
    assert ("/v3/marketing/contacts/exports", 401) in facts
    assert key not in (tmp_path / "gateway.log").read_text()


@pytest.mark.slow
def test_a_stop_ends_what_is_under_way_in_peace(environment: dict[str, str], tmp_path: Path) -> None:
    """Callers that ask all the time: each request that was taken is answered in full, then the process is gone."""
    key = make_key()
    with (
        running_gateway(tmp_path, environment) as (port, process),
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection,
    ):
        body = json.dumps({"file_type": "csv"})
        connection.putrequest("POST", "/v3/marketing/contacts/exports")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        assert measure(port, key, ("GET", "/healthz", None), callers=1, seconds=0.2)
        process.send_signal(signal.SIGTERM)
        stopped = threading.Thread(target=process.wait, args=[60])
        stopped.start()
        connection.send(body.encode())
        answer = connection.getresponse()
        assert (answer.status, set(json.loads(answer.read()))) == (202, {"_metadata", "id"})
        stopped.join(60)
        assert process.returncode in (0, -signal.SIGTERM)


def test_a_scope_that_there_is_not_and_a_wrong_rate_store_are_told(
    environment: dict[str, str],
) -> None:
    wrong = CliRunner().invoke(cli, ["api-key", "create", "--organization", "a", "--scope", "everything:export"])
    assert (wrong.exit_code, "contacts:export, entities:export" in wrong.output) == (1, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT_RATE_LIMIT_URL", "carrier-pigeon://loft")
        failed = CliRunner().invoke(cli, ["gateway"])
    assert "EXPORT_RATE_LIMIT_URL: expected redis://" in str(failed.exception)


def test_the_secret_of_webhooks_is_printed_and_renewed(environment: dict[str, str]) -> None:
    command = ["webhook-secret", "--organization", OURS.id]
    first, again = (CliRunner().invoke(cli, command).output for _ in range(2))
    renewed = CliRunner().invoke(cli, [*command, "--renew"]).output
    assert first == again != renewed
    assert first.startswith("whsec_")
