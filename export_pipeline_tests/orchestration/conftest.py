"""A pipeline without a daemon: the real job, sensors and resources on a real instance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.database.tables import export_requests
from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration import execution
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline.requests import queue
from export_pipeline.requests.models import ExportRequest, RequestState, insert_request, load_request, read_state
from export_pipeline_tests.engine import people

CATALOG = """
name: people
title: {en: People, es: Personas, pt: Pessoas}
table: people
tenant: organization_id
key: id
created_at: created_at
columns:
  - {name: id, type: integer}
  - {name: name, type: text}
  - {name: score, type: float}
  - {name: created_at, type: timestamp}
"""


@dataclass
class Pipeline:
    """Everything a test needs of one installation."""

    home: Path
    database: sa.Engine
    instance: dg.DagsterInstance
    definitions: dg.Definitions

    @property
    def job(self) -> dg.JobDefinition:
        return self.definitions.resolve_job_def("export")

    @property
    def outbox(self) -> list[str]:
        return sorted(path.read_text() for path in (self.home / "outbox").glob("*.eml"))

    @property
    def stored(self) -> list[Path]:
        return [path for path in (self.home / "store").rglob("*") if path.is_file()]

    @property
    def staged(self) -> list[Path]:
        return [path for path in (self.home / "staging").rglob("*") if path.is_file()]

    def ask(self, **asked: Any) -> str:
        row = {"organization_id": "acme", "dataset": "people", "format": "csv", "recipient_emails": ["ana@example.com"]}
        with self.database.begin() as connection:
            return insert_request(connection, **{**row, **asked})

    def claim(self) -> list[queue.Claim]:
        with self.database.begin() as connection:
            return queue.claim(connection, limit=50)

    def run(self, claim: queue.Claim, **tags: str) -> dg.ExecuteInProcessResult:
        asked = run_request(claim)
        return self.job.execute_in_process(
            run_config=asked.run_config, tags={**asked.tags, **tags}, instance=self.instance, raise_on_error=False
        )

    def export(self, **asked: Any) -> tuple[dg.ExecuteInProcessResult, RequestState]:
        uid = self.ask(**asked)
        (claim,) = self.claim()
        return self.run(claim), self.state(uid)

    def state(self, uid: str) -> RequestState:
        with self.database.connect() as connection:
            state = read_state(connection, uid)
        assert state is not None
        return state

    def request(self, uid: str) -> ExportRequest:
        """Its whole row."""
        with self.database.connect() as connection:
            return load_request(connection, self.state(uid).id)

    def update(self, uid: str, **values: Any) -> None:
        with self.database.begin() as connection:
            connection.execute(export_requests.update().where(export_requests.c.uid == uid).values(**values))

    def execute(self, statement: str) -> None:
        with self.database.begin() as connection:
            connection.exec_driver_sql(statement)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops that are tried again are tried at once."""
    monkeypatch.setattr(execution, "FIRST_RETRY_SECONDS", 0.01)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "people.yaml").write_text(CATALOG)
    settings = {
        "EXPORT_DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}",
        "EXPORT_STORE_URL": (tmp_path / "store").as_uri(),
        "EXPORT_STAGING_URL": (tmp_path / "staging").as_uri(),
        "EXPORT_MAIL_URL": (tmp_path / "outbox").as_uri(),
        "EXPORT_CATALOG": str(tmp_path / "catalog"),
        "EXPORT_HEARTBEAT_SECONDS": "0.1",
        "EXPORT_PICKUP_WAIT_SECONDS": "0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    database = create_engine(settings["EXPORT_DATABASE_URL"])
    upgrade(database)
    people.create(settings["EXPORT_DATABASE_URL"])
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(tmp_path, database, instance, build_definitions())
    database.dispose()
