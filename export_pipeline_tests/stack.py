"""A running installation for tests: the real daemon and code server over PostgreSQL, S3 and SMTP.

What a test asks of an installation belongs here (insert a row, wait, read mails and objects, find the worker); what it
then does to it belongs to the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import psycopg
from psycopg.rows import dict_row

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.demo.home import Home, Processes, free_port
from export_pipeline.launcher.worker import WORKER_TAG, Worker
from export_pipeline.settings import Settings
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Bucket, S3Server, fresh_bucket
from export_pipeline_tests.servers.smtp import SmtpSink, serve_smtp

SLOW = """
name: slow
title: Slow
table: slow
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
"""
SLOW_VIEW = """
CREATE VIEW slow AS
SELECT number AS id, 'acme'::text AS organization_id FROM generate_series(1, 40) number WHERE pg_sleep(0.1) IS NOT NULL
"""


@dataclass
class Stack:
    """A running installation."""

    home: Home
    database_url: str
    environment: dict[str, str]
    bucket: S3Bucket
    smtp: SmtpSink
    processes: Processes | None = None

    def insert(self, **row: Any) -> str:
        names, marks = ", ".join(row), ", ".join(["%s"] * len(row))
        statement = f"INSERT INTO export_requests ({names}) VALUES ({marks}) RETURNING uid::text"
        with psycopg.connect(self.database_url) as connection:
            found = connection.execute(statement.encode(), list(row.values())).fetchone()
        assert found is not None
        return str(found[0])

    def row(self, uid: str) -> dict[str, Any]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            found = connection.execute("SELECT * FROM export_requests WHERE uid::text = %s", [uid]).fetchone()
        assert found is not None
        return found

    def wait(self, uid: str, until: Callable[[dict[str, Any]], bool], seconds: float = 90) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not until(row := self.row(uid)):
            assert time.monotonic() < deadline, f"still {row['status']} {row['stage']}: {row['message']}; {self.logs()}"
            time.sleep(0.2)
        return row

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.home.logs.glob("*.log"))

    def mails(self, recipient: str) -> list[Any]:
        return [one.message for one in self.smtp.received if one.recipients == [recipient]]

    def wait_for_mail(self, recipient: str, seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (mails := self.mails(recipient)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(mails) == 1
        return mails[0]

    def objects(self, uid: str) -> list[str]:
        listed = self.bucket.client.list_objects_v2(Bucket=self.bucket.name, Prefix=f"exports/{uid}/")
        return [item["Key"] for item in listed.get("Contents", [])]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from export_pipeline.cli import main; main()", *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _as_it_is(home: Home, database_url: str) -> None:
    """Nothing to prepare."""


def _directly(_database_url: str) -> dict[str, str]:
    """Nothing in between."""
    return {}


@contextmanager
def open_stack(
    postgres_server: PostgresServer,
    s3_server: S3Server,
    directory: Path,
    *,
    prepare: Callable[[Home, str], None] = _as_it_is,
    connect: Callable[[str], dict[str, str]] = _directly,
    processes_too: bool = True,
    **settings: str,
) -> Iterator[Stack]:
    """An installation with its real daemon; ``settings`` are further variables.

    ``prepare`` gets the home and the database's URL before any process starts; ``connect`` gets the URL, and returns
    variables that lead there by another way. Without ``processes_too`` the test starts daemon and code server.
    """
    home = Home(directory / "home")
    home.create()
    catalog = home.directory / "catalog"
    catalog.mkdir()
    (catalog / "slow.yaml").write_text(SLOW)
    shipped = resources.files("export_pipeline.catalog") / "datasets" / "contacts.yaml"
    (catalog / "contacts.yaml").write_text(shipped.read_text())
    with ExitStack() as stack:
        url = stack.enter_context(postgres_server.fresh_database())
        bucket = stack.enter_context(fresh_bucket(s3_server))
        smtp = stack.enter_context(serve_smtp())
        engine = create_engine(Settings(database_url=url).database_url)
        upgrade(engine)
        engine.dispose()
        load_demo_data(Settings(database_url=url).database_url, contacts=5000, entities=10)
        with psycopg.connect(url) as connection:
            connection.execute(SLOW_VIEW)
        prepare(home, url)
        environment = {
            **home.environment(s3_server.endpoint),
            **s3_server.environment(),
            "EXPORT_DATABASE_URL": url,
            "EXPORT_STORE_URL": f"s3://{bucket.name}/exports",
            "EXPORT_MAIL_URL": smtp.url,
            "EXPORT_CATALOG": str(catalog),
            "EXPORT_HEARTBEAT_SECONDS": "0.5",
            **settings,
            **connect(url),
        }
        port = free_port()
        home.write_workspace(port)
        processes = stack.enter_context(Processes(home.logs, environment))
        if processes_too:
            processes.code_server(port)
            processes.daemon(home.workspace)
        yield Stack(home, url, environment, bucket, smtp, processes)


def finished(row: dict[str, Any]) -> bool:
    return row["status"] in ("completed", "failed", "canceled")


def mailed(row: dict[str, Any]) -> bool:
    return row["stage"] == "notify_recipients" or row["status"] in ("failed", "canceled")


def slow_request(stack: Stack, recipient: str) -> str:
    return stack.insert(organization_id="acme", dataset="slow", format="csv", recipient_emails=json.dumps([recipient]))


def worker_of(stack: Stack) -> psutil.Process:
    """The process that executes the only run, as the warm run launcher noted it on the run."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    worker = Worker.of_tag(run.run_id, run.tags.get(WORKER_TAG))
    assert worker is not None
    return psutil.Process(worker.pid)
