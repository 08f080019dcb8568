"""The small dataset on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipeline.source.readers import Source
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.engine import people
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer, serve_postgres_with_icu


@pytest.fixture(scope="session")
def icu_server() -> Iterator[PostgresServer]:
    """A PostgreSQL with collations that take different texts for equal."""
    with serve_postgres_with_icu() as server:
        yield server


@pytest.fixture(
    scope="module",
    params=["postgresql", pytest.param("postgresql 18", marks=pytest.mark.slow), "sqlite", "sqlite shared", "mariadb"],
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Where ``people`` stands, as the settings would name it."""
    if request.param.startswith("postgresql"):
        fixture = "postgres_server" if request.param == "postgresql" else "postgres18_server"
        postgres: PostgresServer = request.getfixturevalue(fixture)
        with postgres.fresh_database() as url:
            yield people.create(url.replace("postgresql://", "postgresql+psycopg://"))
        return
    if request.param == "mariadb":
        server: MariadbServer = request.getfixturevalue("mariadb_server")
        with server.fresh_database() as url:
            yield people.create(url)
        return
    path: Path = tmp_path_factory.mktemp("people") / "people.db"
    made = people.create(f"sqlite:///{path}")
    yield Source(made.url, shares_file=request.param == "sqlite shared")


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def demo_source(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    """Where the demo's few contacts stand, with their lists and segments."""
    if request.param == "postgresql":
        with postgres_server.fresh_database() as url:
            load_demo_data(url, contacts=200, entities=1)
            yield Source(url.replace("postgresql://", "postgresql+psycopg://"))
        return
    path: Path = tmp_path_factory.mktemp("demo") / "application.db"
    load_demo_data(f"sqlite:///{path}", contacts=200, entities=1)
    yield Source(f"sqlite:///{path}")
