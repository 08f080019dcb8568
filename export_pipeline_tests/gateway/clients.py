"""A gateway in this process, and callers of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.gateway.app import build
from export_pipeline.gateway.services import Services, open_services
from export_pipeline.requests import queue
from export_pipeline.requests.api_keys import create_key
from export_pipeline.settings import Settings
from export_pipeline_tests.acceptance.pipeline import Pipeline, Result

OURS, THEIRS = ORGANIZATIONS[0], ORGANIZATIONS[1]
BOTH_SCOPES = ("contacts:export", "entities:export")


@dataclass(frozen=True)
class Gateway:
    """An installation and the gateway in front of it."""

    pipeline: Pipeline
    services: Services
    client: TestClient

    @property
    def database(self) -> sa.Engine:
        return self.services.database

    def key(self, organization: str = OURS.id, scopes: tuple[str, ...] = BOTH_SCOPES, **facts: Any) -> str:
        with self.database.begin() as connection:
            return create_key(connection, organization, scopes, **facts).secret

    def caller(self, *arguments: Any, headers: Mapping[str, str] | None = None, **facts: Any) -> Caller:
        key = self.key(*arguments, **facts)
        return Caller(self.client, {"Authorization": f"Bearer {key}", **(headers or {})})

    def work(self) -> list[Result]:
        """Run whatever is queued."""
        with self.database.begin() as connection:
            claimed = queue.claim(connection, limit=100)
        return [self.pipeline._run(claim) for claim in claimed]

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.pipeline.database.query(statement, values)


@dataclass(frozen=True)
class Caller:
    """A client with a key."""

    client: TestClient
    headers: Mapping[str, str]

    def get(self, path: str, **options: Any) -> Any:
        return self.call("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        return self.call("POST", path, **({} if json is None else {"json": json}), **options)

    def delete(self, path: str, **options: Any) -> Any:
        return self.call("DELETE", path, **options)

    def call(self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Any:
        return self.client.request(method, path, headers={**self.headers, **(headers or {})}, **options)


def forget(pipeline: Pipeline) -> None:
    """What an earlier test asked and nobody ran, and the rates that it counted, are none of the next one's."""
    pipeline.database.execute("UPDATE export_requests SET status = 'canceled' WHERE status = 'queued'")
    pipeline.database.execute("DELETE FROM rate_windows")


@contextmanager
def settings_of(pipeline: Pipeline, **changed: str) -> Iterator[Settings]:
    """The settings of an installation, some of them changed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**pipeline.environment, **changed}.items():
            patch.setenv(name, value)
        yield Settings.from_environment()


@contextmanager
def open_gateway(pipeline: Pipeline, **settings: str) -> Iterator[Gateway]:
    """A gateway in front of an installation; rates are high unless ``settings`` say otherwise."""
    changed = {"EXPORT_RATE_LIMIT_PER_MINUTE": "100000", **settings}
    with settings_of(pipeline, **changed) as read:
        services = open_services(read)
    with TestClient(build(services), base_url="http://gateway.test", follow_redirects=False) as client:
        yield Gateway(pipeline, services, client)


@contextmanager
def served(gateway: Gateway) -> Iterator[str]:
    """The gateway on a real socket; gives its URL."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(build(gateway.services), host="127.0.0.1", port=0, log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
