"""An installation on several machines: control (daemon, code server, runs) and Celery workers that share no disk.

Each machine is a directory and a mount namespace in which the others' directories are empty; what they have in common
is PostgreSQL, S3 and Redis, and the code, as in an image. It runs with the ``dagster.yaml`` of ``deploy/``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from unittest.mock import patch

import dagster as dg
import psycopg
import yaml

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.demo.home import Home, Processes, free_port
from export_pipeline.settings import Settings
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.redis import serve_redis
from export_pipeline_tests.servers.s3 import S3Server, fresh_bucket
from export_pipeline_tests.servers.smtp import serve_smtp
from export_pipeline_tests.stack import SLOW, SLOW_VIEW, Stack

DEPLOYED = Path(__file__).parents[1] / "deploy" / "dagster.yaml"
CONTROL, WORKERS = "control", ("one", "two")
WIDE = """
name: wide
title: Wide
table: wide
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: text, type: text}
"""
WIDE_ROWS, SHARD_ROWS = 3000, 500
WIDE_TABLE = """
CREATE TABLE wide AS SELECT number AS id, organization_id, repeat(md5(number::text), 30) AS text
FROM unnest(%s::text[]) organization_id, generate_series(1, %s) number
"""


@dataclass(frozen=True)
class Size:
    """How many workers it has, runs it launches at once, organizations, and rows each of them has in ``wide``."""

    workers: tuple[str, ...] = WORKERS
    concurrent_runs: int = 4
    organizations: tuple[str, ...] = ("acme",)
    rows: int = WIDE_ROWS


class Worker:
    """A Celery worker with one process for steps; all its processes die at once, as those of a machine do."""

    def __init__(self, machines: Path, name: str, environment: dict[str, str]) -> None:
        home = machines / name
        (home / "dagster").mkdir(parents=True)
        (home / "tmp").mkdir()
        others = [machines / other for other in (CONTROL, *WORKERS) if other != name]
        hidden = "".join(
            f"mkdir -p {shlex.quote(str(one))} && mount -t tmpfs none {shlex.quote(str(one))} && " for one in others
        )
        app = "export_pipeline.orchestration.celery_app"
        celery = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", f"{name}@%h", "-c", "1", "-l", "INFO"]
        command = ["unshare", "--mount", "sh", "-c", f"{hidden}exec {shlex.join(celery)}"]
        own = {"DAGSTER_HOME": str(home / "dagster"), "TMPDIR": str(home / "tmp"), "C_FORCE_ROOT": "1"}
        self.log = machines / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment, **own},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to all of it; safe to call again."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


@dataclass
class Cluster(Stack):
    """A running installation with its workers by name."""

    machines: Path = field(kw_only=True)
    workers: dict[str, Worker] = field(kw_only=True)

    def logs(self) -> str:
        texts = [worker.log.read_text(errors="replace")[-4000:] for worker in self.workers.values()]
        return "\n".join([super().logs(), *texts])

    def steps_of(self, uid: str, attempt: int) -> dict[str, list[str]]:
        """Which steps each worker began, as Dagster's events of the attempt's run say."""
        began: dict[str, list[str]] = {}
        with dg.DagsterInstance.from_config(str(self.home.dagster_home)) as instance:
            tags = {"export/request_uid": uid, "export/attempt": str(attempt)}
            for run in instance.get_runs(dg.RunsFilter(tags=tags)):
                for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                    assert entry.dagster_event is not None
                    worker = entry.dagster_event.engine_event_data.metadata.get("Celery worker")
                    if worker is not None:
                        name = str(worker.value).partition("@")[0]
                        began.setdefault(name, []).append(str(entry.dagster_event.step_key))
        return began

    def statuses(self, uid: str) -> list[dg.DagsterRunStatus]:
        """Of the request's runs, in their order."""
        with dg.DagsterInstance.from_config(str(self.home.dagster_home)) as instance:
            runs = instance.get_runs(dg.RunsFilter(tags={"export/request_uid": uid}))
        return [run.status for run in reversed(runs)]

    def staged(self, prefix: str) -> list[str]:
        listed = self.bucket.client.list_objects_v2(Bucket=self.bucket.name, Prefix=f"staging/{prefix}")
        return [item["Key"] for item in listed.get("Contents", [])]


@contextmanager
def open_cluster(
    postgres_server: PostgresServer, s3_server: S3Server, machines: Path, size: Size = Size(), **settings: str
) -> Iterator[Cluster]:
    """Control and its workers; without any, steps run where their run does. ``settings`` are further variables."""
    home = Home(machines / CONTROL)
    home.create()
    deployed = yaml.safe_load(DEPLOYED.read_text())
    deployed["concurrency"]["runs"]["max_concurrent_runs"] = size.concurrent_runs
    (home.dagster_home / "dagster.yaml").write_text(yaml.safe_dump(deployed))
    catalog = machines / "catalog"  # part of the image
    catalog.mkdir()
    (catalog / "slow.yaml").write_text(SLOW)
    (catalog / "wide.yaml").write_text(WIDE)
    with ExitStack() as stack:
        url = stack.enter_context(postgres_server.fresh_database())
        dagster_url = stack.enter_context(postgres_server.fresh_database())
        bucket = stack.enter_context(fresh_bucket(s3_server))
        smtp = stack.enter_context(serve_smtp())
        redis = stack.enter_context(serve_redis())
        engine = create_engine(Settings(database_url=url).database_url)
        upgrade(engine)
        engine.dispose()
        with psycopg.connect(url) as connection:
            connection.execute(SLOW_VIEW)
            connection.execute(WIDE_TABLE, [list(size.organizations), size.rows])
        environment = {
            **home.environment(s3_server.endpoint),
            **s3_server.environment(),
            "AWS_ENDPOINT_URL_S3": s3_server.endpoint,  # for Dagster's own logs
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "DAGSTER_PG_URL": dagster_url.replace("postgresql://", "postgresql+psycopg2://"),
            "DAGSTER_LOGS_BUCKET": bucket.name,
            "EXPORT_DATABASE_URL": url,
            "EXPORT_STORE_URL": f"s3://{bucket.name}/exports",
            "EXPORT_STAGING_URL": f"s3://{bucket.name}/staging",
            "EXPORT_MAIL_URL": smtp.url,
            "EXPORT_CATALOG": str(catalog),
            "EXPORT_EXECUTOR": "celery" if size.workers else "in_process",
            "EXPORT_CELERY_BROKER_URL": redis,
            "EXPORT_SHARD_ROWS": str(SHARD_ROWS),
            "EXPORT_HEARTBEAT_SECONDS": "0.5",
            **settings,
        }
        # The test opens Dagster's instance itself, whose configuration names variables.
        stack.enter_context(patch.dict(os.environ, environment))
        port = free_port()
        home.write_workspace(port)
        processes = stack.enter_context(Processes(home.logs, environment))
        workers = {name: stack.enter_context(Worker(machines, name, environment)) for name in size.workers}
        processes.code_server(port)
        processes.daemon(home.workspace)
        yield Cluster(home, url, environment, bucket, smtp, machines=machines, workers=workers)
