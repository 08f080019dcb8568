"""Fixtures that every test may ask for: real servers, started once a session, and a fresh corner of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.settings import Settings
from export_pipeline_tests.servers.mariadb import MariadbServer, serve_mariadb
from export_pipeline_tests.servers.postgres import PostgresServer, serve_postgres
from export_pipeline_tests.servers.s3 import S3Bucket, S3Server, fresh_bucket, s3_server_process
from export_pipeline_tests.servers.sendgrid import SendGridSink, serve_sendgrid
from export_pipeline_tests.servers.smtp import SmtpSink, serve_smtp


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with serve_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres18_server() -> Iterator[PostgresServer]:
    """A newer major version than ``postgres_server``."""
    with serve_postgres(18) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariadbServer]:
    with serve_mariadb() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    with postgres_server.fresh_database() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgresql(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a migrated request database. A copy of it takes a third of the time of a migration."""
    with postgres_server.fresh_database() as url:
        _migrate(url)
        yield str(sa.make_url(url).database)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated request database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "requests.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    engine = create_engine(Settings(database_url=url).database_url)
    upgrade(engine)
    engine.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A migrated request database, once on each of the two."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            server: PostgresServer = request.getfixturevalue("postgres_server")
            url = stack.enter_context(server.fresh_database(request.getfixturevalue("migrated_postgresql")))
        else:
            url = f"sqlite:///{shutil.copy(request.getfixturevalue('migrated_sqlite'), tmp_path)}"
        engine = create_engine(Settings(database_url=url).database_url)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with s3_server_process() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    """A fresh bucket; the environment holds its credentials, as the product expects them."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    with fresh_bucket(s3_server) as bucket:
        yield bucket


@pytest.fixture
def smtp_sink() -> Iterator[SmtpSink]:
    with serve_smtp() as sink:
        yield sink


@pytest.fixture
def sendgrid_sink() -> Iterator[SendGridSink]:
    with serve_sendgrid() as sink:
        yield sink
