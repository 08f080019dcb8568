"""Fixtures of the gateway's tests: installations with the demo's data, and a gateway in front of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, open_pipeline
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.gateway.clients import Gateway, forget, open_gateway
from export_pipeline_tests.servers.postgres import PostgresServer

CONTACTS, ENTITIES = 500, 300


@pytest.fixture(scope="session")
def sqlite_demo_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("gateway-sqlite")
    url = f"sqlite:///{directory}/application.db"
    load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
    with open_pipeline(Database(url), LocalShelf(directory / "store"), directory) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def postgresql_demo_installation(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("gateway-postgresql")
    with postgres_server.fresh_database() as url:
        load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
        with open_pipeline(Database(url), LocalShelf(directory / "store"), directory) as pipeline:
            yield pipeline


@pytest.fixture(scope="session")
def sqlite_gateway(sqlite_demo_installation: Pipeline) -> Iterator[Gateway]:
    with open_gateway(sqlite_demo_installation) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def postgresql_gateway(postgresql_demo_installation: Pipeline) -> Iterator[Gateway]:
    with open_gateway(postgresql_demo_installation) as gateway:
        yield gateway


@pytest.fixture
def sqlite_installation(sqlite_demo_installation: Pipeline) -> Pipeline:
    """The installation, without what earlier tests left queued and counted."""
    forget(sqlite_demo_installation)
    return sqlite_demo_installation


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def gateway(request: pytest.FixtureRequest) -> Gateway:
    """A gateway in front of an installation on either database."""
    found: Gateway = request.getfixturevalue(f"{request.param}_gateway")
    forget(found.pipeline)
    return found


@pytest.fixture
def one_gateway(sqlite_gateway: Gateway) -> Gateway:
    """A gateway for what does not depend on the database."""
    forget(sqlite_gateway.pipeline)
    return sqlite_gateway
