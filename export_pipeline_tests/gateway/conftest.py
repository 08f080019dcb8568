"""Fixtures of the gateway's tests: installations with the demo's data, and a gateway in front of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export_pipeline.demo.data import load_demo_data
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, open_pipeline
from export_pipeline_tests.gateway.clients import Gateway, open_gateway
from export_pipeline_tests.servers.postgres import PostgresServer

CONTACTS, ENTITIES = 500, 300


@pytest.fixture(scope="session")
def sqlite_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("gateway-sqlite")
    url = f"sqlite:///{directory}/application.db"
    load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
    with open_pipeline(Database(url), LocalShelf(directory / "store"), directory) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def postgresql_installation(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("gateway-postgresql")
    with postgres_server.fresh_database() as url:
        load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
        with open_pipeline(Database(url), LocalShelf(directory / "store"), directory) as pipeline:
            yield pipeline


@pytest.fixture(params=["sqlite", "postgresql"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A gateway in front of an installation on either database."""
    with open_gateway(request.getfixturevalue(f"{request.param}_installation")) as gateway:
        yield gateway


@pytest.fixture
def one_gateway(sqlite_installation: Pipeline) -> Iterator[Gateway]:
    """A gateway for what does not depend on the database."""
    with open_gateway(sqlite_installation) as gateway:
        yield gateway
