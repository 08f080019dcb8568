"""Nothing personal and no credential is in what Dagster keeps, whatever fails and however loudly it says why.

Every failure here is made from outside, by data, triggers and servers whose own words quote what must not be told. What
is searched is the whole instance: run config, tags, event log, compute logs, op outputs, snapshots, ticks, and what the
processes print.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.home import free_port
from export_pipeline.orchestration import execution
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, S3Shelf
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.instance_storage import places_of
from export_pipeline_tests.servers.hooks import serve_hooks
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Bucket, S3Server, fresh_bucket
from export_pipeline_tests.servers.smtp import SmtpSink
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = pytest.mark.timeout(900)
OURS, OTHER = ORGANIZATIONS[0].id, ORGANIZATIONS[1].id
STAGES = ("plan", "filter_entities", "serialize", "upload", "publish", "notify_recipients")
SIGNATURES = ("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token")


@dataclass
class Marks:
    """What must not be found: words that occur nowhere by chance."""

    made: list[str] = field(default_factory=list)

    def __call__(self, what: str) -> str:
        mark = f"zz{what}{secrets.token_hex(4)}"
        self.made.append(mark)
        return mark

    def address(self, what: str) -> str:
        return f"{self(what)}@leak.example"


CATALOG = {
    "bad_value": "table: bad_value\nkey: id\ncolumns: [{name: id, type: integer}, {name: number, type: integer}]",
    "odd_type": "table: odd_type\nkey: id\ncolumns: [{name: id, type: integer}, {name: token, type: text}]",
    "raising": "table: raising\nkey: id\ncolumns: [{name: id, type: integer}, {name: said, type: text}]",
    "wide": "table: wide\nkey: email\ncolumns: [{name: email, type: text}, {name: body, type: text}]",
}
# The first three statements' errors quote a row's value, a filter's value, and whatever a function of theirs says.
SOURCE = """
CREATE TABLE leaky (id int, organization_id text, email text);
INSERT INTO leaky VALUES (1, 'leaky', '{row}');
CREATE VIEW bad_value AS SELECT id, organization_id, email::integer AS number FROM leaky;
CREATE TABLE odd_type (id int, organization_id text, token uuid);
INSERT INTO odd_type VALUES (1, 'odd', gen_random_uuid());
CREATE FUNCTION shout(email text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'row %', email USING DETAIL = email || ' in the detail', HINT = email || ' in the hint'; END $$;
CREATE VIEW raising AS SELECT id, organization_id, shout(email) AS said FROM leaky;
CREATE TABLE wide (email text, organization_id text, body text);
INSERT INTO wide VALUES ('{key}', 'wide', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 40000) n));
CREATE FUNCTION fail_at_stage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.idempotency_key = 'fail at ' || NEW.stage AND NEW.status IN ('running', 'completed')
     AND NEW.stage IS DISTINCT FROM OLD.stage THEN
    RAISE EXCEPTION 'refused: % %', NEW.recipient_emails, NEW.filters USING DETAIL = NEW::text;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER fail_at_stage BEFORE UPDATE ON export_requests FOR EACH ROW EXECUTE FUNCTION fail_at_stage();
"""


@dataclass(frozen=True)
class Fault:
    """A request that fails, and how its row has to say so."""

    name: str
    row: dict[str, Any]
    status: str
    error_code: str | None


def faults(marks: Marks, smtp: SmtpSink, hook_url: str, member: str) -> list[Fault]:
    def asked(organization: str = "acme", dataset: str = "contacts", **more: Any) -> dict[str, Any]:
        row: dict[str, Any] = {"organization_id": organization, "dataset": dataset, "format": "csv"}
        requester = member if organization == OURS else marks("requester")
        row |= {"recipient_emails": [marks.address("recipient")], "requested_by": requester, **more}
        return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()}

    refused, later = marks.address("refused"), marks.address("later")
    smtp.replies[refused] = f"550 5.1.1 <{refused}>: no such mailbox, ask {marks.address('postmaster')}"
    smtp.replies[later] = f"451 4.7.1 <{later}>: greylisted, see http://mail.example/?token={marks('smtptoken')}"
    unknown_field = {marks("field"): marks("value")}
    return [
        Fault("a filter that is unknown", asked(OURS, filters=unknown_field), "failed", "invalid_filter"),
        Fault("no address", asked(OURS, recipient_emails=[marks("noaddress")]), "failed", "invalid_recipient"),
        Fault("a stored segment", asked(OURS, segment_ids=[SEGMENT]), "failed", "invalid_segment"),
        Fault("a field's definition", asked(OTHER, layout="sendgrid"), "failed", "source_data_invalid"),
        Fault("a database that quotes a row", asked("leaky", "bad_value"), "failed", "source_data_invalid"),
        # What the file shows is compared, a text: the database refuses nothing, and has nothing to quote.
        Fault(
            "a filter of another type", asked("odd", "odd_type", filters={"token": marks("filter")}), "completed", None
        ),
        Fault("a function that raises", asked("leaky", "raising"), "failed", "source_refused"),
        Fault("a row too large", asked("wide", "wide", max_file_size_mb=1), "failed", "row_too_large"),
        Fault("a webhook", asked("odd", "odd_type", webhook_url=hook_url), "completed", None),
        Fault(
            "a webhook that nobody answers",
            asked("odd", "odd_type", webhook_url=f"http://127.0.0.1:{free_port()}/{marks('hook')}"),
            "completed",
            None,
        ),
        Fault("a mail refused", asked("mail", "odd_type", recipient_emails=[refused]), "completed", None),
        Fault("a mail put off", asked("mail", "odd_type", recipient_emails=[later]), "completed", None),
        *[
            Fault(
                f"a trigger at {name}",
                # As another application's own check would: its error quotes the whole row.
                asked(OURS, filters={"email": marks("filter")}, idempotency_key=f"fail at {name}"),
                "completed" if name == "notify_recipients" else "failed",
                # A run that cannot even take its row leaves it to the reconciler.
                {"plan": "attempts_exhausted", "notify_recipients": None}.get(name, "internal_error"),
            )
            for name in STAGES
        ],
    ]


SEGMENT = "5e9e0000-0000-4000-8000-000000000001"


def prepare(stack: Stack, marks: Marks) -> None:
    catalog = Path(stack.environment["EXPORT_CATALOG"])
    for name, declared in CATALOG.items():
        (catalog / f"{name}.yaml").write_text(f"name: {name}\ntitle: T\ntenant: organization_id\n{declared}\n")
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(SOURCE.format(row=marks.address("row"), key=marks.address("key")).encode())
        connection.execute(
            "INSERT INTO contact_segments (id, organization_id, name, filter, created_at) "
            "VALUES (%s, %s, 'x', %s, now())",
            [SEGMENT, OURS, json.dumps({"email": {marks("operator"): marks("segment")}})],
        )
        connection.execute(
            "INSERT INTO contact_field_definitions (id, organization_id, name, field_type, created_at) "
            "VALUES (gen_random_uuid(), %s, %s, 'Text', now())",
            [OTHER, f"\x07{marks('definition')}"],
        )


def everything_told(stack: Stack) -> bool:
    """No run is under way, and every webhook and failure mail was tried."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        under_way = instance.get_runs_count(
            dg.RunsFilter(statuses=[status for status in dg.DagsterRunStatus if status.name in UNDER_WAY])
        )
    with psycopg.connect(stack.database_url) as connection:
        waiting = connection.execute("SELECT count(*) FROM export_webhooks WHERE tries = 0").fetchone()
    return not under_way and waiting == (0,)


UNDER_WAY = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")


def test_whatever_fails_at_every_op_the_instance_knows_nothing_personal_and_no_credential(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, tally: Tally
) -> None:
    marks = Marks()
    operator = marks.address("operator")
    settings = {
        "EXPORT_ALERT_WEBHOOK_URL": f"http://127.0.0.1:{free_port()}/{marks('alerthook')}",
        "EXPORT_ALERT_EMAIL": operator,
        "EXPORT_SIGNING_KEY": marks("signingkey") * 4,
        "SENDGRID_API_KEY": marks("sendgridkey"),
        "EXPORT_WEBHOOK_ALLOW_INSECURE": "true",
        "EXPORT_MAX_ATTEMPTS": "2",
        "EXPORT_CLAIM_LEASE_SECONDS": "15",
    }
    with serve_hooks() as hooks, open_stack(postgres_server, s3_server, tmp_path, **settings) as stack:
        hooks.statuses = [500] * 20
        prepare(stack, marks)
        stack.smtp.replies[operator] = f"550 <{operator}> is not here"
        member = _member_whose_mail_is_refused(stack, marks)
        asked = faults(marks, stack.smtp, f"{hooks.url}&token={marks('hooktoken')}", member)
        uids = {stack.insert(**fault.row): fault for fault in asked}
        rows = {uid: stack.wait(uid, finished, seconds=400) for uid in uids}
        ended = {fault.name: (rows[uid]["status"], rows[uid]["error_code"]) for uid, fault in uids.items()}
        assert ended == {fault.name: (fault.status, fault.error_code) for fault in asked}
        # The bucket is gone when the last one uploads: boto3's error quotes bucket, key and URL.
        _wait_until(lambda: everything_told(stack))
        _delete_bucket(stack.bucket)
        revoked = stack.insert(**asked[8].row)
        assert stack.wait(revoked, finished, seconds=120)["error_code"] == "store_refused"
        _wait_until(lambda: everything_told(stack))
        failed_ops = _failed_steps(stack)
        run_id = _plant(stack, planted := f"planted{secrets.token_hex(8)}")
        credentials = [stack.environment["AWS_SECRET_ACCESS_KEY"], sa.make_url(stack.database_url).password or "-"]
        home = stack.home

    assert {step.split("[")[0] for step in failed_ops} >= set(STAGES), failed_ops
    known = places_of([planted, revoked, run_id], home.dagster_home, home.logs)
    assert any(
        "(unpacked)" in where for where in places_of(["notify_recipients"], home.dagster_home)["notify_recipients"]
    )
    assert set(known) == {planted, revoked, run_id}, "the search finds what is there"
    assert len(known[planted]) > 1
    leaked = places_of([*marks.made, "@leak.example", *SIGNATURES, *credentials], home.dagster_home, home.logs)
    tally("failure whose words quote a secret", tries=len(rows) + 1, survived=len(rows) + 1 if not leaked else 0)
    assert leaked == {}


def _member_whose_mail_is_refused(stack: Stack, marks: Marks) -> str:
    member, address = marks("member"), marks.address("member")
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "INSERT INTO organization_members (organization_id, member_id, email, permissions) "
            """VALUES (%s, %s, %s, '["contacts:export"]')""",
            [OURS, member, address],
        )
    stack.smtp.replies[address] = f"451 <{address}> over quota"
    return member


def _delete_bucket(bucket: S3Bucket) -> None:
    for key in bucket.keys():  # noqa: SIM118 - no mapping
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    bucket.client.delete_bucket(Bucket=bucket.name)


def _wait_until(done: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _failed_steps(stack: Stack) -> set[str]:
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        return {
            record.event_log_entry.dagster_event.step_key or ""
            for run in instance.get_runs()
            for record in instance.get_records_for_run(
                run.run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}
            ).records
            if record.event_log_entry.dagster_event is not None
        }


def _plant(stack: Stack, word: str) -> str:
    """Something to be found: in a tag and in the event log."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        run = instance.get_runs(limit=1)[0]
        instance.add_run_tags(run.run_id, {"planted": word})
        instance.report_engine_event(word, run)
        return run.run_id


WRONG = [
    # What is wrong, the settings that say so with {mark} for the password, and what the row says.
    (
        "the source's password",
        {"EXPORT_SOURCE_URL": "postgresql://postgres:{mark}@{host}/postgres"},
        "source_refused",
    ),
    ("the mail server's password", {"EXPORT_MAIL_URL": "smtp://app:{mark}@127.0.0.1:{smtp}"}, None),
    ("the store's secret", {"AWS_SECRET_ACCESS_KEY": "{mark}"}, "store_refused"),
]


@pytest.mark.parametrize(("settings", "code"), [wrong[1:] for wrong in WRONG], ids=[name for name, *_ in WRONG])
def test_a_wrong_credential_is_told_without_it(  # noqa: PLR0917 - fixtures
    settings: dict[str, str],
    code: str | None,
    postgres_server: PostgresServer,
    s3_server: S3Server,
    smtp_sink: SmtpSink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tally: Tally,
) -> None:
    monkeypatch.setattr(execution, "FIRST_RETRY_SECONDS", 0.01)
    marks = Marks()
    mark, recipient = marks("password"), marks.address("recipient")
    with postgres_server.fresh_database() as url, fresh_bucket(s3_server) as bucket:
        host = f"{sa.make_url(url).host}:{sa.make_url(url).port}"
        changed = {name: value.format(mark=mark, host=host, smtp=smtp_sink.port) for name, value in settings.items()}
        shelf = S3Shelf(bucket) if "AWS_SECRET_ACCESS_KEY" in changed else LocalShelf(tmp_path / "store")
        database = Database(f"sqlite:///{tmp_path / 'app.db'}")
        _small_source(database)
        (tmp_path / "catalog").mkdir()
        (tmp_path / "catalog" / "small.yaml").write_text(
            "name: small\ntitle: T\ntable: small\ntenant: organization_id\nkey: id\n"
            "columns: [{name: id, type: integer}]"
        )
        changed["EXPORT_CATALOG"] = str(tmp_path / "catalog")
        home = tmp_path / "home"
        home.mkdir()
        with dg.DagsterInstance.local_temp(str(home)) as instance:
            pipeline = Pipeline(database, shelf, tmp_path, instance, changed)
            row = {"organization_id": "acme", "dataset": "small", "recipient_emails": [recipient]}
            (request_id,) = database.insert("export_requests", {"format": "csv", **row})
            (claim,) = _claimed(pipeline)
            result = _run(pipeline, claim)
            pipeline.close()
    (state,) = database.query("SELECT status, error_code, message FROM export_requests WHERE id = ?", [request_id])
    assert not result.success
    assert state[:2] == (("failed", code) if code else ("completed", None))
    printed = capfd.readouterr()
    (tmp_path / "printed").mkdir()
    (tmp_path / "printed" / "out").write_text(printed.out + printed.err + str(state[2]))
    assert places_of([result.run_id], home)
    leaked = places_of([*marks.made, *SIGNATURES], home, tmp_path / "printed")
    tally("wrong credential", tries=1, survived=int(not leaked))
    assert leaked == {}


def _small_source(database: Database) -> None:
    database.execute("CREATE TABLE small (id integer, organization_id text)")
    database.execute("INSERT INTO small VALUES (1, 'acme')")


def _claimed(pipeline: Pipeline) -> Any:
    from export_pipeline.requests import queue

    with pipeline._engine.begin() as connection:
        return queue.claim(connection, limit=1)


def _run(pipeline: Pipeline, claim: Any) -> dg.ExecuteInProcessResult:
    from export_pipeline.orchestration.sensors.requests import run_request

    asked = run_request(claim)
    with pipeline._settings():
        return pipeline._job.execute_in_process(
            run_config=asked.run_config, tags=asked.tags, instance=pipeline._instance, raise_on_error=False
        )


def test_a_wrong_password_of_the_request_database_is_told_by_sensors_and_runs_without_it(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from export_pipeline.definitions import build_definitions

    monkeypatch.setattr(execution, "FIRST_RETRY_SECONDS", 0.01)
    mark = Marks()("password")
    with postgres_server.fresh_database() as url:
        wrong = sa.make_url(url).set(password=mark).render_as_string(hide_password=False)
        monkeypatch.setenv("EXPORT_DATABASE_URL", wrong)
        for name in ("store", "staging", "outbox"):
            monkeypatch.setenv(f"EXPORT_{'MAIL' if name == 'outbox' else name.upper()}_URL", (tmp_path / name).as_uri())
        repository = build_definitions().get_repository_def()
        home = tmp_path / "home"
        home.mkdir()
        with dg.DagsterInstance.local_temp(str(home)) as instance:
            told = []
            for sensor in repository.sensor_defs:
                resources = dict(repository.get_top_level_resources())
                with dg.build_sensor_context(instance, repository_def=repository, resources=resources) as context:
                    try:
                        told.append(repr(sensor.evaluate_tick(context)))
                    except Exception as error:  # noqa: BLE001 - Dagster would keep its text and its causes
                        told += [repr(error), repr(error.__cause__), repr(error.__context__)]
            result = repository.get_job("export").execute_in_process(
                run_config={"ops": {"plan": {"config": {"request_id": 1}}}}, instance=instance, raise_on_error=False
            )
    assert not result.success
    printed = capfd.readouterr()
    assert "could not be reached" in "".join(told)
    assert mark not in "".join(told) + printed.out + printed.err
    assert places_of([result.run_id], home)
    assert places_of([mark], home) == {}
