"""Fixtures that every test may ask for: real servers, started once a session, and a fresh corner of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export_pipeline_tests.servers.postgres import PostgresServer, serve_postgres
from export_pipeline_tests.servers.s3 import S3Bucket, S3Server, fresh_bucket, s3_server_process
from export_pipeline_tests.servers.sendgrid import SendGridSink, serve_sendgrid
from export_pipeline_tests.servers.smtp import SmtpSink, serve_smtp


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with serve_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    with postgres_server.fresh_database() as url:
        yield url


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
