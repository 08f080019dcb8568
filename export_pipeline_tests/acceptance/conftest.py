"""Fixtures of the acceptance tests: databases with the demo's data, loaded once, and installations on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, open_pipeline
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.servers.postgres import PostgresServer

CONTACTS = 3_000
ENTITIES = 1_500


@pytest.fixture(scope="session")
def sqlite_demo(tmp_path_factory: pytest.TempPathFactory) -> Database:
    url = f"sqlite:///{tmp_path_factory.mktemp('demo')}/application.db"
    load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
    return Database(url)


@pytest.fixture(scope="session")
def postgresql_demo(postgres_server: PostgresServer) -> Iterator[Database]:
    with postgres_server.fresh_database() as url:
        load_demo_data(url, contacts=CONTACTS, entities=ENTITIES)
        yield Database(url)


@pytest.fixture(scope="session")
def sqlite_pipeline(sqlite_demo: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("sqlite-installation")
    with open_pipeline(sqlite_demo, LocalShelf(directory / "store"), directory) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def postgresql_pipeline(postgresql_demo: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("postgresql-installation")
    with open_pipeline(postgresql_demo, LocalShelf(directory / "store"), directory) as pipeline:
        yield pipeline


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    """An installation on either database."""
    found: Pipeline = request.getfixturevalue(f"{request.param}_pipeline")
    return found
