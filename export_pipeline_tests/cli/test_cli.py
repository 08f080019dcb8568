"""The command: what a user types and reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import click
import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.cli import cli, main
from export_pipeline.cli.health import NAMES
from export_pipeline.database.engine import utc_now
from export_pipeline.orchestration import tags
from export_pipeline.requests.health import note_tick
from export_pipeline_tests.orchestration.conftest import Pipeline, pipeline

__all__ = ["pipeline"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert "Example" in shown.output
    example = shown.output.split("Example", 1)[1]
    assert re.search(r"^ +(\S+ )?export-pipeline ", example, re.MULTILINE), "an example keeps its lines"
    assert "\\b" not in shown.output


def test_upgrade_makes_the_tables_and_may_be_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPORT_DATABASE_URL", f"sqlite:///{tmp_path / 'new' / 'app.db'}")
    assert run("db", "upgrade").output == run("db", "upgrade").output
    assert (tmp_path / "new" / "app.db").exists()


def test_a_database_that_was_not_migrated_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPORT_DATABASE_URL", f"sqlite:///{tmp_path / 'app.db'}")
    shown = run("status", "x")
    assert shown.exit_code == 1
    assert "export-pipeline db upgrade" in shown.output


def test_an_unreachable_database_says_so_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_DATABASE_URL", "postgresql://app:s3cret@127.0.0.1:1/app?connect_timeout=2")
    for command in (("db", "upgrade"), ("status", "x")):
        shown = run(*command)
        assert shown.exit_code == 1
        assert "could not be reached" in shown.output
        assert "s3cret" not in shown.output


def test_a_wrong_setting_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPORT_STORE_URL", "nowhere")
    monkeypatch.setattr("sys.argv", ["export-pipeline", "db", "upgrade"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("export-pipeline: EXPORT_STORE_URL: must be s3://")


def ask(*arguments: str) -> str:
    shown = run("request", "--organization", "acme", "--dataset", "people", "--format", "csv", *arguments)
    assert shown.exit_code == 0, shown.output
    return shown.output.strip()


def test_request_status_verify_of_an_export(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = ask("--recipient", "ana@example.com", "--column", "id", "--column", "name", "--filters", '{"id": {"lt": 10}}')
    assert json.loads(run("status", uid, "--json").output)["request"]["status"] == "queued"
    assert "no files to verify" in run("verify", uid).output
    assert "there are no files to link to" in run("links", uid).output
    (claim,) = pipeline.claim()
    assert pipeline.run(claim).success
    shown = json.loads(run("status", uid, "--json").output)["request"]
    assert (shown["status"], shown["row_count"]) == ("completed", 7)
    assert "completed" in run("status", uid).output
    assert run("status", uid, "--watch").exit_code == 0
    verified = run("verify", uid)
    assert (verified.exit_code, "7 rows" in verified.output) == (0, True)
    (file,) = [path for path in pipeline.stored if path.suffix == ".csv"]
    assert run("links", uid).output.strip() == file.as_uri()
    file.write_bytes(file.read_bytes().replace(b"\n", b" \n", 1))
    damaged = run("verify", uid)
    assert damaged.exit_code == 1
    assert "SHA-256" in damaged.output


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2024-01-17", "2024-01-17T00:00:00"),
        ("2024-01-17 00:00:00", "2024-01-17T00:00:00.000001"),
        ("2024-01-17T23:59:59", "2024-01-17T23:59:59"),
    ],
)
def test_an_end_date_alone_is_a_day_and_a_time_is_its_second(pipeline: Pipeline, given: str, stored: str) -> None:
    uid = ask("--start-date", "2024-01-16", "--end-date", given)
    with pipeline.database.connect() as connection:
        end = connection.execute(sa.text("SELECT end_date FROM export_requests WHERE uid = :uid"), {"uid": uid})
        assert datetime.fromisoformat(end.scalar_one()) == datetime.fromisoformat(stored)


def test_an_expired_export_has_no_files_to_verify(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_requests SET status = 'expired'")
    assert state.manifest_key is not None
    shown = run("verify", state.uid)
    assert (shown.exit_code, "the request is expired: it has no files to verify" in shown.output) == (1, True)


def test_no_link_is_printed_to_files_past_their_time(pipeline: Pipeline) -> None:
    _, state = pipeline.export()
    pipeline.execute("UPDATE export_requests SET expires_at = completed_at")
    shown = run("links", state.uid)
    assert (shown.exit_code, "the files have expired" in shown.output, "file:" in shown.output) == (1, True, False)


NARROWING = [
    ("request", "--filters", '{"id": 1}', "{}"),
    ("request", "--start-date", "2024-01-01", "2023-01-01"),
    ("request", "--end-date", "2024-01-01", "2025-01-01"),
    ("recurring add", "--request", "{}", "{}"),
    ("recurring run-now", "--from", "2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z"),
    ("recurring run-now", "--before", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"),
]


@pytest.mark.parametrize(("command", "option", "first", "second"), NARROWING)
def test_an_option_that_narrows_is_given_once(
    pipeline: Pipeline, command: str, option: str, first: str, second: str
) -> None:
    needed = {
        "request": ("--organization", "acme", "--dataset", "people", "--format", "csv"),
        "recurring add": ("--organization", "acme", "--cron", "0 6 * * *"),
        "recurring run-now": ("1",),
    }
    shown = run(*command.split(), *needed[command], option, first, option, second)
    assert (shown.exit_code, f"'{option}': is given twice" in " ".join(shown.output.split())) == (2, True)


def test_status_shows_the_runs_however_the_uid_is_spelled(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    uid = pipeline.ask()
    with dg.DagsterInstance.get() as instance:
        instance.add_run(dg.DagsterRun(job_name="export", run_id=str(uuid4()), tags={tags.REQUEST_UID: uid}))
    for spelled in (uid, uid.upper(), uid.replace("-", "")):
        assert len(json.loads(run("status", spelled, "--json").output)["runs"]) == 1


def test_status_of_a_failed_request_exits_with_1(pipeline: Pipeline) -> None:
    uid = ask("--column", "shoe_size")
    (claim,) = pipeline.claim()
    pipeline.run(claim)
    shown = run("status", uid)
    assert shown.exit_code == 1
    assert "unknown_column" in shown.output
    assert "turn: requester" in shown.output
    assert "Nothing to press" in shown.output


def test_cancel(pipeline: Pipeline) -> None:
    uid = ask()
    assert run("cancel", uid).exit_code == 0
    assert pipeline.state(uid).cancel_requested_at is not None
    assert pipeline.claim() == []
    pipeline.execute("UPDATE export_requests SET status = 'canceled'")
    again = run("cancel", uid)
    assert (again.exit_code, "cannot be canceled any more" in again.output) == (1, True)


def test_queue_shows_who_waits_and_for_how_long(pipeline: Pipeline) -> None:
    assert "all" in run("queue").output
    ask()
    pipeline.ask(organization_id="[b]eta", created_at=utc_now() - timedelta(hours=2))
    shown = run("queue").output.splitlines()
    assert [line[: line.rindex(":")].split() for line in shown[1:]] == [
        ["[b]eta", "1", "0", "2:00"],
        ["acme", "1", "0", "0:00"],
        ["all", "2", "0", "2:00"],
    ]
    document = json.loads(run("queue", "--json", "--organization", "acme").output)
    assert [line["organization_id"] for line in document["organizations"]] == ["acme"]
    assert (document["total"]["waiting"], document["total"]["running"]) == (1, 0)


@pytest.mark.parametrize("status", ["failed", "canceled", "completed"])
def test_retry(pipeline: Pipeline, status: str) -> None:
    uid = pipeline.ask()
    pipeline.claim()
    pipeline.execute(f"UPDATE export_requests SET status = '{status}', completed_at = created_at")
    done = run("retry", uid)
    if status == "completed":
        assert (done.exit_code, "only one that failed or was canceled" in done.output) == (1, True)
        return
    assert (done.exit_code, pipeline.state(uid).status) == (0, "queued")
    assert [(claim.uid, claim.attempt) for claim in pipeline.claim()] == [(uid, 2)]
    assert '"retried": true' in run("audit", uid, "--json").output.replace("\\", "")


def test_a_dry_run_uses_up_no_number(pipeline: Pipeline) -> None:
    arguments = ("--organization", "acme", "--dataset", "people", "--format", "csv", "--recipient", "ana@example.com")
    assert run("request", *arguments, "--dry-run").exit_code == 0
    assert pipeline.state(pipeline.ask()).id == 1


@pytest.mark.parametrize("command", ["status", "cancel", "retry", "verify", "links"])
def test_an_unknown_uid_is_told(pipeline: Pipeline, command: str) -> None:
    shown = run(command, "no-such-request")
    assert shown.exit_code == 1
    assert "no request has the uid" in shown.output


@pytest.mark.parametrize(
    "command",
    [
        ("request", "--organization", "acme", "--dataset", "people", "--format", "csv"),
        ("recurring", "add", "--organization", "acme", "--cron", "0 6 * * *", "--request", "{}"),
    ],
    ids=["request", "recurring add"],
)
def test_a_catalog_that_does_not_load_is_told_and_nothing_is_inserted(
    pipeline: Pipeline, command: tuple[str, ...]
) -> None:
    for file in pipeline.home.glob("**/people.yaml"):
        file.write_text(file.read_text().replace("integer", "intejer"))
    shown = run(*command)
    assert shown.exit_code != 0
    assert isinstance(shown.exception, CatalogError)
    with pipeline.database.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM export_requests")).scalar() == 0


def test_watch_shows_a_share_and_no_number_of_rows_that_was_added_up(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = ask()
    state = pipeline.state(uid)
    facts = {"status": "running", "stage": "serialize", "rows_done": 50, "rows_total": 100}
    states = iter([state.model_copy(update=facts), state.model_copy(update={**facts, "status": "completed"})])
    command = sys.modules["export_pipeline.cli.requests"]
    monkeypatch.setattr(command, "state_of", lambda *_: next(states))
    monkeypatch.setattr(command, "POLL_SECONDS", 0)
    shown = run("status", uid, "--watch")
    assert "100%" in shown.stderr
    assert "300" not in shown.stderr


def test_an_extra_that_is_missing_is_installed_from_here(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    monkeypatch.setitem(sys.modules, "export_pipeline.gateway.app", None)
    shown = run("gateway")
    assert (shown.exit_code, "pip install '.[gateway]'" in shown.output) == (1, True)


def test_filters_that_are_no_json_are_refused_by_the_command(pipeline: Pipeline) -> None:
    shown = run("request", "--organization", "a", "--dataset", "people", "--format", "csv", "--filters", "{")
    assert shown.exit_code == 2
    assert "is not JSON" in shown.output


def test_health_is_an_exit_code_for_monitors(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silent = run("health")
    assert silent.exit_code == 1
    assert "no tick yet" in silent.output
    with pipeline.database.begin() as connection:
        note_tick(connection, "export_installation")
    assert run("health").exit_code == 0
    document = json.loads(run("health", "--json").output)
    assert document["ok"]
    assert [check["name"] for check in document["checks"]] == list(NAMES)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("EXPORT_CATALOG", str(tmp_path / "empty"))
    broken = run("health")
    assert broken.exit_code == 1
    assert "has no *.yaml file" in broken.output
    assert run("health", "--only", "last_tick_seconds").exit_code == 0
    monkeypatch.setenv("EXPORT_DATABASE_URL", "postgresql://app:s3cret@127.0.0.1:1/app")
    unreachable = run("health")
    assert unreachable.exit_code == 1
    assert "could not be reached" in unreachable.output
    assert "s3cret" not in unreachable.output
