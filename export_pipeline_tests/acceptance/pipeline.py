"""A whole installation in one process: rows go in by SQL, the real Dagster job runs, what it delivered comes out."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import UUID

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa

from export_pipeline.database import engine, migrate
from export_pipeline.definitions import build_definitions
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline.requests import queue
from export_pipeline.requests.models import RequestState, read_state
from export_pipeline_tests.servers.s3 import S3Bucket

RECIPIENT = "ana@example.com"


@dataclass(frozen=True)
class Database:
    """The application's database; ``query`` and ``insert`` use its own driver and plain SQL."""

    url: str

    @property
    def kind(self) -> str:
        return sa.make_url(self.url).get_backend_name()

    @contextmanager
    def connect(self) -> Iterator[Any]:
        connection: Any
        if self.kind == "sqlite":
            connection = sqlite3.connect(cast(str, sa.make_url(self.url).database))
        else:
            connection = psycopg.connect(self.url.replace("+psycopg", ""))
        with closing(connection), connection:
            yield connection

    def query(self, statement: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement with ``?`` for values."""
        with self.connect() as connection:
            return self._rows(connection, statement, values)

    def insert(self, table: str, *rows: Mapping[str, Any]) -> list[Any]:
        """Insert rows as an application does, all or none, and return their ids; lists and dicts go in as JSON."""
        with self.connect() as connection:
            return [self._insert(connection, table, row) for row in rows]

    def insert_only(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert a row of a table that has no ``id``."""
        with self.connect() as connection:
            self._execute(connection, *_insertion(table, row))

    def execute(self, statement: str, values: Iterable[Any] = ()) -> None:
        """A statement without rows, with ``?`` for values."""
        with self.connect() as connection:
            self._execute(connection, statement, values)

    def _insert(self, connection: Any, table: str, row: Mapping[str, Any]) -> Any:
        statement, values = _insertion(table, row)
        return self._rows(connection, f"{statement} RETURNING id", values)[0][0]

    def _rows(self, connection: Any, statement: str, values: Iterable[Any]) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._execute(connection, statement, values).fetchall()]

    def _execute(self, connection: Any, statement: str, values: Iterable[Any]) -> Any:
        if self.kind == "postgresql":
            connection.execute("SET TIME ZONE 'UTC'")
            statement = statement.replace("?", "%s")
        return connection.execute(statement, tuple(values))


def _insertion(table: str, row: Mapping[str, Any]) -> tuple[str, list[Any]]:
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", values


class Shelf(Protocol):
    """Where delivered files stand, read without the product."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    def read(self, key: str) -> bytes: ...

    def keys(self) -> list[str]: ...


@dataclass(frozen=True)
class LocalShelf:
    """A directory."""

    directory: Path

    @property
    def environment(self) -> Mapping[str, str]:
        return {"EXPORT_STORE_URL": f"file://{self.directory}"}

    def read(self, key: str) -> bytes:
        return (self.directory / key).read_bytes()

    def keys(self) -> list[str]:
        return sorted(p.relative_to(self.directory).as_posix() for p in self.directory.rglob("*") if p.is_file())


@dataclass(frozen=True)
class S3Shelf:
    """A bucket, through a client of the test's own."""

    bucket: S3Bucket

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "EXPORT_STORE_URL": f"s3://{self.bucket.name}/exports",
            "EXPORT_S3_ENDPOINT_URL": self.bucket.endpoint,
            **self.bucket.server.environment(),
        }

    def read(self, key: str) -> bytes:
        return cast(bytes, self.bucket.client.get_object(Bucket=self.bucket.name, Key=f"exports/{key}")["Body"].read())

    def keys(self) -> list[str]:
        return [key.removeprefix("exports/") for key in self.bucket.keys()]  # noqa: SIM118 - no mapping


@dataclass(frozen=True)
class Result:
    """What became of a request."""

    state: RequestState
    run: dg.ExecuteInProcessResult = field(repr=False)
    manifest: dict[str, Any] | None
    files: list[bytes] = field(repr=False)
    mails: list[EmailMessage] = field(repr=False)

    @property
    def failures(self) -> list[dg.DagsterEvent]:
        """The steps that failed."""
        return [event for event in self.run.all_events if event.is_step_failure]

    @property
    def retries(self) -> int:
        """How often a step asked to be tried again."""
        return sum(event.is_step_up_for_retry for event in self.run.all_events)


class Pipeline:
    """An installation on a database that has the application's tables; migrates its own into it."""

    def __init__(
        self,
        source: Database,
        shelf: Shelf,
        directory: Path,
        instance: dg.DagsterInstance,
        settings: Mapping[str, str],
    ) -> None:
        self.database = source
        self.shelf = shelf
        self._outbox = directory / "outbox"
        self._instance = instance
        self.environment = {
            "EXPORT_DATABASE_URL": source.url,
            "EXPORT_STAGING_URL": f"file://{directory / 'staging'}",
            "EXPORT_MAIL_URL": f"file://{self._outbox}",
            "EXPORT_PICKUP_WAIT_SECONDS": "0",
            **shelf.environment,
            **settings,
        }
        with self._settings():
            self._repository = build_definitions().get_repository_def()
        self._job = self._repository.get_job("export")
        migrate.upgrade(self._engine)
        known = {row[0] for row in source.query("SELECT id FROM organizations")}
        for one in ORGANIZATIONS:
            if one.id not in known:
                source.insert("organizations", {"id": one.id, "name": one.name, "time_zone": one.time_zone})

    def close(self) -> None:
        self._engine.dispose()

    def export(self, **row: Any) -> Result:
        """Insert one request, run it, and return what was delivered."""
        (result,) = self.export_all([row])
        return result

    def export_all(self, rows: Iterable[Mapping[str, Any]]) -> list[Result]:
        """Insert requests, claim them all at once, and run them one after the other in their order."""
        ids = self.database.insert("export_requests", *({**_DEFAULTS, **row} for row in rows))
        with self._engine.begin() as connection:
            claimed = queue.claim(connection, limit=len(ids))
        assert [claim.id for claim in claimed] == ids, "the database has requests that are not of this test"
        return [self._run(claim) for claim in claimed]

    def tick(self, sensor: str) -> Any:
        """Evaluate a sensor as the daemon has the code server do it."""
        resources = dict(self._repository.get_top_level_resources())
        with (
            self._settings(),
            dg.build_sensor_context(self._instance, repository_def=self._repository, resources=resources) as context,
        ):
            return self._repository.get_sensor_def(sensor).evaluate_tick(context)

    def staged(self) -> list[Path]:
        """What is left in the staging store."""
        root = Path(self.environment["EXPORT_STAGING_URL"].removeprefix("file://"))
        return [path for path in root.rglob("*") if path.is_file()]

    def _run(self, claim: queue.Claim) -> Result:
        request, mails_before = run_request(claim), set(self._outbox.glob("*.eml"))
        with self._settings():
            run = self._job.execute_in_process(
                run_config=request.run_config, tags=request.tags, instance=self._instance, raise_on_error=False
            )
        with self._engine.connect() as connection:
            state = read_state(connection, claim.uid)
        assert state is not None
        mails = sorted(set(self._outbox.glob("*.eml")) - mails_before)
        manifest, files = self._delivered(state)
        messages = [cast(EmailMessage, message_from_bytes(m.read_bytes(), policy=policy.default)) for m in mails]
        return Result(state, run, manifest, files, messages)

    def _delivered(self, state: RequestState) -> tuple[dict[str, Any] | None, list[bytes]]:
        """Manifest and files, each held against what manifest and ``export_files`` say of it."""
        told = self.database.query(
            "SELECT key, bytes, rows, sha256 FROM export_files WHERE request_id = ? ORDER BY ordinal", [state.id]
        )
        if state.manifest_key is None:
            assert not told
            assert not [key for key in self.shelf.keys() if state.uid in key]  # noqa: SIM118 - no mapping
            return None, []
        manifest = json.loads(self.shelf.read(state.manifest_key))
        assert UUID(manifest["uid"]) == UUID(state.uid)
        assert [(f["key"], f["bytes"], f["rows"], f["sha256"]) for f in manifest["files"]] == told
        files = [self.shelf.read(key) for key, *_ in told]
        assert [(len(data), hashlib.sha256(data).hexdigest()) for data in files] == [(t[1], t[3]) for t in told]
        assert (state.file_count, state.byte_count) == (len(files), sum(map(len, files)))
        assert state.row_count == manifest["rows"] == sum(row[2] for row in told)
        return manifest, files

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield

    @cached_property
    def _engine(self) -> sa.Engine:
        url = self.database.url
        return engine.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


_DEFAULTS: Mapping[str, Any] = {
    "organization_id": ORGANIZATIONS[0].id,
    "dataset": "contacts",
    "format": "csv",
    "recipient_emails": [RECIPIENT],
}


@contextmanager
def open_pipeline(source: Database, shelf: Shelf, directory: Path, **settings: str) -> Iterator[Pipeline]:
    """An installation whose Dagster instance lives as long as the block; ``settings`` are further variables."""
    with (
        dg.DagsterInstance.ephemeral() as instance,
        closing(Pipeline(source, shelf, directory, instance, settings)) as pipeline,
    ):
        yield pipeline
