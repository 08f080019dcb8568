"""An installation without a daemon; its PostgreSQL, S3 and mail connections all pass a proxy."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from psycopg.rows import dict_row

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration import execution
from export_pipeline.settings import Settings
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.proxy import HttpProxy, http_proxy
from export_pipeline_tests.faults.tcp_proxy import TcpProxy, tcp_proxy
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Bucket, S3Server, fresh_bucket
from export_pipeline_tests.servers.sendgrid import API_KEY, SendGridSink, serve_sendgrid
from export_pipeline_tests.servers.smtp import SmtpSink, serve_smtp

ROWS = {"small": 500, "large": 60_000}
"""Rows of each organization; those of ``large`` make a CSV of 20 MB, which S3 gets in three parts."""
_CATALOG = """
name: people
title: {en: People, es: Personas, pt: Pessoas}
table: people
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: note, type: text}
"""
_PEOPLE = """
CREATE TABLE people AS
SELECT number AS id, 'small'::text AS organization_id, md5(number::text) AS note FROM generate_series(1, 500) number
UNION ALL
SELECT number, 'large', repeat(md5(number::text), 10) FROM generate_series(1, 60000) number;
ALTER TABLE people ADD PRIMARY KEY (organization_id, id);
ANALYZE people;
CREATE VIEW slowly AS SELECT * FROM people
"""
"""``slowly``: a test puts a delay into it."""


@dataclass
class Installation:
    """Real parts, and what a test asks of them. ``requests`` and ``source`` are the proxies of the two databases."""

    home: Path
    database_url: str
    source_url: str
    requests: TcpProxy
    source: TcpProxy
    bucket: S3Bucket
    s3: HttpProxy
    sendgrid_sink: SendGridSink
    sendgrid: HttpProxy
    smtp: SmtpSink
    instance: dg.DagsterInstance

    def ask(self, **row: Any) -> str:
        """Insert a request past the proxies; its uid."""
        row = {"organization_id": "small", "dataset": "people", "format": "csv", "recipient_emails": ["a@x.io"], **row}
        values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        statement = f"INSERT INTO export_requests ({names}) VALUES ({marks}) RETURNING uid::text"
        return str(self.query(statement, values)[0]["uid"])

    def query(self, statement: str, values: Any = ()) -> list[dict[str, Any]]:
        """Rows of the request database, past its proxy."""
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            cursor = connection.execute(statement.encode(), values)
            return [] if cursor.description is None else cursor.fetchall()

    def source_query(self, statement: str, values: Any = ()) -> list[Any]:
        """Rows of the source, past its proxy."""
        with psycopg.connect(self.source_url) as connection:
            cursor = connection.execute(statement.encode(), values)
            return [] if cursor.description is None else cursor.fetchall()

    def row(self, uid: str) -> dict[str, Any]:
        (found,) = self.query("SELECT * FROM export_requests WHERE uid::text = %s", [uid])
        return found

    def reasons(self, uid: str) -> dict[str, str | None]:
        """What the provider said of each mail."""
        statement = """SELECT recipient, reason FROM export_notifications n JOIN export_requests r
                       ON r.id = n.request_id WHERE r.uid::text = %s AND kind = 'ready'"""
        return {row["recipient"]: row["reason"] for row in self.query(statement, [uid])}

    def ledger(self, uid: str) -> dict[str, str]:
        """Status of the mail to each recipient."""
        statement = """SELECT recipient, n.status FROM export_notifications n JOIN export_requests r
                       ON r.id = n.request_id WHERE r.uid::text = %s AND kind = 'ready'"""
        return {row["recipient"]: row["status"] for row in self.query(statement, [uid])}

    def tick(self, sensor: str) -> Any:
        """Evaluate a sensor as the daemon has the code server do it."""
        repository = build_definitions().get_repository_def()
        resources = dict(repository.get_top_level_resources())
        with dg.build_sensor_context(self.instance, repository_def=repository, resources=resources) as context:
            return repository.get_sensor_def(sensor).evaluate_tick(context)

    def launch(self, *, sensor: str = "export_requests") -> dg.DagsterRun:
        """Let a sensor ask for a run, which must be one, and execute it as Dagster's worker does."""
        deadline = time.monotonic() + 30
        while not (found := self.tick(sensor).run_requests) and time.monotonic() < deadline:
            time.sleep(0.1)  # the reconciler waits until nothing was heard of a row for five heartbeats
        (asked,) = found or []
        jobs = {"export": export_job, "notify": notify_job}
        return self._execute(jobs[asked.job_name or "export"], run_config=asked.run_config, tags=asked.tags)

    def export(self, **row: Any) -> tuple[str, dg.DagsterRun]:
        """Ask for one export and have it run."""
        uid = self.ask(**row)
        return uid, self.launch()

    def from_failure(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """What the button "Re-execute from failure" does."""
        options = dg.ReexecutionOptions.from_failure(run.run_id, self.instance)
        return self._execute(export_job, run_config=run.run_config, tags=run.tags, reexecution_options=options)

    def _execute(self, job: Any, **options: Any) -> dg.DagsterRun:
        # Dagster keeps a reconstructed job for the process: it would have the S3 endpoint of the installation before.
        ReconstructableJob.get_repository_definition.cache_clear()
        ReconstructableJob.get_definition.cache_clear()
        with dg.execute_job(dg.reconstructable(job), instance=self.instance, **options) as result:
            run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def tries(self, run: dg.DagsterRun) -> dict[str, int]:
        """How often each step of a run was begun."""
        counts: dict[str, int] = {}
        kinds = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED}
        for record in self.instance.get_records_for_run(run.run_id, of_type=kinds).records:
            step = (record.event_log_entry.step_key or "").partition("[")[0]
            counts[step] = counts.get(step, 0) + 1
        return counts

    def waits(self, run: dg.DagsterRun) -> list[float]:
        """Seconds that the steps of a run waited before each further try, as multiples of the first wait."""
        kind = dg.DagsterEventType.STEP_UP_FOR_RETRY
        events = [
            record.event_log_entry.dagster_event
            for record in self.instance.get_records_for_run(run.run_id, of_type=kind).records
        ]
        seconds = [event.step_retry_data.seconds_to_wait or 0.0 for event in events if event is not None]
        return [one / execution.FIRST_RETRY_SECONDS for one in seconds]

    def log(self, run: dg.DagsterRun) -> str:
        """Everything that Dagster's event log says of a run."""
        return "\n".join(str(entry) for entry in self.instance.all_logs(run.run_id))

    def cause(self, uid: str) -> str:
        """Why a request failed, in the words for operators."""
        statement = """SELECT detail->>'message' AS cause FROM export_events
                       WHERE request_uid::text = %s AND kind = 'failed' ORDER BY id DESC LIMIT 1"""
        return str(self.query(statement, [uid])[0]["cause"])

    def objects(self, uid: str) -> list[str]:
        """Keys that the bucket has of a request, asked past the proxy."""
        return [key for key in self.bucket.keys() if uid in key]  # noqa: SIM118 - no mapping

    def staged(self) -> list[Path]:
        return [path for path in (self.home / "staging").rglob("*") if path.is_file()]

    def mailed(self) -> list[str]:
        """Recipients of every mail that a provider took, each as often as it was taken."""
        return self.sendgrid_sink.recipients + [one for mail in self.smtp.received for one in mail.recipients]

    def assert_delivered(self, uid: str) -> None:
        """The row says ``completed``; manifest, files and rows are whole, each once, and nothing else is there."""
        row = self.row(uid)
        assert (row["status"], row["error_code"]) == ("completed", None), row["message"]
        manifest = json.loads(self._read(f"exports/{row['manifest_key']}"))
        ids: list[int] = []
        for file in manifest["files"]:
            content = self._read(f"exports/{file['key']}")
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
            ids += [int(record["id"]) for record in csv.DictReader(io.StringIO(content.decode()))]
        assert ids == list(range(1, ROWS[row["organization_id"]] + 1))
        assert row["row_count"] == manifest["rows"] == len(ids)
        expected = [row["manifest_key"], *(file["key"] for file in manifest["files"])]
        assert self.objects(uid) == sorted(f"exports/{key}" for key in expected)
        assert self.bucket.uploads() == []

    def assert_not_published(self, uid: str, error_code: str) -> None:
        """The row says why; there is no manifest, no file, no upload and no mail."""
        row = self.row(uid)
        assert (row["status"], row["error_code"]) == ("failed", error_code), row["message"]
        assert row["message"]
        assert row["manifest_key"] is None
        assert self.query("SELECT 1 FROM export_files WHERE request_id = %s", [row["id"]]) == []
        assert self.objects(uid) == []
        assert self.bucket.uploads() == []
        assert self.ledger(uid) == {}
        assert self.mailed() == []

    def assert_postponed(self, uid: str, error_code: str) -> None:
        """The row waits in the queue and says why; nothing was published, nobody was mailed, no attempt is used up."""
        row = self.row(uid)
        assert (row["status"], row["error_code"], row["run_id"]) == ("queued", error_code, None), row["message"]
        assert "is tried again" in row["message"]
        assert row["not_before"] is not None
        assert row["attempt"] == row["uncounted_attempts"]
        assert row["manifest_key"] is None
        assert self.bucket.uploads() == []
        assert self.mailed() == []

    def launch_again(self, uid: str) -> dg.DagsterRun:
        """Let its wait be over."""
        self.query("UPDATE export_requests SET not_before = NULL WHERE uid::text = %s", [uid])
        return self.launch()

    def calm(self) -> None:
        """Every part works, and what was counted is forgotten."""
        for database in (self.requests, self.source):
            database.up()
        for proxy in (self.s3, self.sendgrid):
            proxy.calm()
        self.sendgrid_sink.accepted.clear()
        self.smtp.received.clear()
        self.smtp.drops.clear()
        self.smtp.replies.clear()
        for upload in self.bucket.uploads():
            self.bucket.client.abort_multipart_upload(
                Bucket=self.bucket.name, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        # What a failed test left must not be what the next one is served.
        self.query("UPDATE export_notifications SET status = 'unknown' WHERE status IN ('pending', 'sending')")
        self.query("DELETE FROM export_requests WHERE status IN ('queued', 'running')")

    def _read(self, key: str) -> bytes:
        return bytes(self.bucket.client.get_object(Bucket=self.bucket.name, Key=key)["Body"].read())


@contextmanager
def judged(tally: Tally, fault: str, installation: Installation) -> Iterator[None]:
    """Tell the tally of one request that met a fault: it survived if the block's assertions hold."""
    survived = False
    try:
        yield
        survived = True
    finally:
        mailed = installation.mailed()
        doubled = len(mailed) - len(set(mailed))
        tally(fault, tries=1, survived=int(survived), lost=int(not survived and not doubled), doubled=doubled)


def export_job() -> dg.JobDefinition:
    """By name, so that Dagster can make it anew for a re-execution."""
    return build_definitions().resolve_job_def("export")


def notify_job() -> dg.JobDefinition:
    """The job of mails that are left."""
    return build_definitions().resolve_job_def("notify")


@contextmanager
def open_installation(postgres: PostgresServer, s3_server: S3Server, home: Path) -> Iterator[Installation]:
    """Everything but a daemon; the environment is the installation's until the block ends.

    Retries wait hundredths of a second; how often they are made is the product's.
    """
    (home / "catalog").mkdir()
    for name in ("people", "slowly"):
        (home / "catalog" / f"{name}.yaml").write_text(_CATALOG.replace("people", name))
    (home / "dagster").mkdir()
    with ExitStack() as held:
        database_url, source_url = (held.enter_context(postgres.fresh_database()) for _ in range(2))
        engine = create_engine(Settings(database_url=database_url).database_url)
        upgrade(engine)
        engine.dispose()
        with psycopg.connect(source_url) as connection:
            connection.execute(_PEOPLE.encode())
        requests, source = (held.enter_context(tcp_proxy(url)) for url in (database_url, source_url))
        bucket = held.enter_context(fresh_bucket(s3_server))
        s3 = held.enter_context(http_proxy(bucket.endpoint))
        sink = held.enter_context(serve_sendgrid())
        sendgrid = held.enter_context(http_proxy(sink.url))
        smtp = held.enter_context(serve_smtp())
        patch = held.enter_context(pytest.MonkeyPatch.context())
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        environment = {
            **s3_server.environment(),
            "EXPORT_DATABASE_URL": requests.through(database_url),
            "EXPORT_SOURCE_URL": source.through(source_url),
            "EXPORT_STORE_URL": f"s3://{bucket.name}/exports",
            "EXPORT_S3_ENDPOINT_URL": s3.url,
            "EXPORT_STAGING_URL": (home / "staging").as_uri(),
            "EXPORT_MAIL_URL": "sendgrid:",
            "SENDGRID_API_KEY": API_KEY,
            "SENDGRID_HOST": sendgrid.url,
            "EXPORT_CATALOG": str(home / "catalog"),
            "EXPORT_HEARTBEAT_SECONDS": "0.1",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(execution, "FIRST_RETRY_SECONDS", 0.05)
        instance = held.enter_context(dg.DagsterInstance.local_temp(str(home / "dagster")))
        yield Installation(home, database_url, source_url, requests, source, bucket, s3, sink, sendgrid, smtp, instance)
