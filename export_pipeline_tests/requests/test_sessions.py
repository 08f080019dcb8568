"""Sessions on the request database: nothing of role, database or pooler changes what a statement means."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.database.engine import create_engine, reading, utc_now, why_unavailable
from export_pipeline.database.migrate import upgrade
from export_pipeline.orchestration.sensors import skipped
from export_pipeline.requests import notifications, ownership, queue, transitions
from export_pipeline.requests.audit import events_of
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.models import insert_request, load_request
from export_pipeline.settings import Settings

ASKED: dict[str, Any] = {
    "organization_id": "acme",
    "dataset": "contacts",
    "format": "csv",
    "recipient_emails": ["ana@example.com", "zoë@example.com"],
    "filters": {"name": "Zoë \\ O'Neill €"},
}
HOSTILE = {
    "datestyle": "'German, DMY'",
    "timezone": "'Asia/Kolkata'",
    "client_encoding": "'LATIN1'",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "'serializable'",
    "extra_float_digits": "0",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


def export(database: sa.Engine) -> str:
    """Everything that a request does to its row, by as many transactions as a run."""
    with database.begin() as connection:
        uid = insert_request(connection, **ASKED, window_before=utc_now())
    with database.begin() as connection:
        (claim,) = queue.claim(connection, limit=5)
        assert dict(queue.expected_rows(connection, [claim.id], seconds=5)) in ({}, {claim.id: 3})
    run: dict[str, Any] = {"run_id": "run-1"}
    with database.begin() as connection:
        ownership.begin(connection, claim.id, lineage=[], attempt=claim.attempt, claim_id=claim.claim_id, **run)
    with database.begin() as connection:
        ownership.heartbeat(connection, claim.id, values={"rows_done": 3, "snapshot_at": utc_now()}, **run)
    file = StoredFile(1, "a/b", "b.csv", 10, 3, "0" * 64, "text/csv", None)
    with database.begin() as connection:
        transitions.complete(connection, claim.id, files=[file], manifest_key="m", expires_at=utc_now(), **run)
        notifications.enqueue(connection, claim.id, ASKED["recipient_emails"])
    return uid


def test_a_role_or_a_database_changes_no_statements_meaning(postgres_url: str) -> None:
    database = create_engine(Settings(database_url=postgres_url).database_url)
    upgrade(database)
    with database.begin() as connection:
        for name, value in HOSTILE.items():
            connection.exec_driver_sql(f'ALTER DATABASE "{database.url.database}" SET {name} = {value}')
    uid = export(database)
    with reading(database) as connection:
        request = load_request(connection, 1)
        asked = events_of(connection, uid)[0]
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() != "0"
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "30s"
    assert (request.filters, request.recipient_emails) == (ASKED["filters"], ASKED["recipient_emails"])
    assert request.window_before is not None
    assert f'"{request.window_before:%Y-%m-%d %H:%M:%S}' in (asked.detail or "")
    assert abs((asked.at - utc_now()).total_seconds()) < 60
    database.dispose()


def test_a_database_that_may_not_be_written_is_named_in_one_sentence(postgres_url: str) -> None:
    database = create_engine(Settings(database_url=postgres_url).database_url)
    upgrade(database)
    with database.begin() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{database.url.database}" SET default_transaction_read_only = on')
    with pytest.raises(sa.exc.DBAPIError) as caught, database.begin() as connection:
        insert_request(connection, **ASKED)
    assert "default_transaction_read_only" in (skipped(caught.value).skip_message or "")


@pytest.mark.parametrize("statement", ["SELECT 1 FROM no_such_table", "SELECT no_such_column FROM export_requests"])
def test_a_database_of_another_revision_is_named_in_one_sentence(database: sa.Engine, statement: str) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, database.begin() as connection:
        connection.exec_driver_sql(statement)
    assert "export-pipeline db upgrade" in (why_unavailable(caught.value) or "")


def test_a_mistake_of_ours_is_not_called_an_outage(database: sa.Engine) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, database.begin() as connection:
        insert_request(connection, **{**ASKED, "format": None})
    with pytest.raises(sa.exc.DBAPIError):
        skipped(caught.value)


@contextmanager
def pgbouncer(server: sa.URL) -> Iterator[int]:
    """pgbouncer in transaction mode, with one session for all its clients; the port that it listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    text = (
        f"[databases]\n* = host={server.host} port={server.port} user={server.username} password={server.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 1\nunix_socket_dir =\n"
    )
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory) / "pgbouncer.ini"
        config.write_text(text)
        with subprocess.Popen(["pgbouncer", "-q", *as_nobody, str(config)]) as process:
            try:
                for _ in range(300):
                    with socket.socket() as client:
                        if client.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.1)
                yield port
            finally:
                process.terminate()


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
def test_a_pooler_that_shares_sessions_between_transactions_is_left_as_it_was(
    postgres_url: str,
) -> None:
    direct = create_engine(Settings(database_url=postgres_url).database_url)
    upgrade(direct)
    with pgbouncer(direct.url) as port:
        pooled = direct.url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        first, second = create_engine(pooled), create_engine(pooled)
        for database in (first, second, first, second):
            export(database)
        application = sa.create_engine(pooled, poolclass=sa.NullPool, connect_args={"prepare_threshold": None})
        with application.connect() as connection:
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "0"
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
            assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() == 0
        for engine in (first, second, application):
            engine.dispose()
    direct.dispose()
