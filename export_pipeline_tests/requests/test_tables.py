"""The tables mean the same on PostgreSQL and SQLite, and agree with the enums, the migrations and the docs."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from export_pipeline.database import migrate
from export_pipeline.database.engine import create_engine, utc_now
from export_pipeline.database.enums import (
    CatchUpPolicy,
    ChargeStatus,
    EventKind,
    NotificationKind,
    NotificationStatus,
    OverlapPolicy,
    RequestStatus,
    Stage,
    WebhookStatus,
    WindowKind,
)
from export_pipeline.database.tables import export_requests, metadata
from export_pipeline.database.types import UtcDateTime
from export_pipeline.failures import FailureCode
from export_pipeline.requests import download_links
from export_pipeline.requests.models import ExportRequest, is_canonical_uuid, is_uuid, load_request
from export_pipeline.requests.validation.files import Options
from export_pipeline.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
FOUR_COLUMNS = """
INSERT INTO export_requests (organization_id, dataset, format, recipient_emails)
VALUES ('6f0c', 'contacts', 'csv', '["ana@example.com"]')
"""


def test_four_columns_of_plain_sql_are_a_whole_request(database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(FOUR_COLUMNS)
        connection.exec_driver_sql(FOUR_COLUMNS)
        first, second = load_request(connection, 1), load_request(connection, 2)
    assert UUID(first.uid).version == 4
    assert first.uid != second.uid
    assert (first.status, first.attempt, first.max_file_size_mb, first.layout) == ("queued", 0, 5000, "default")
    assert (first.filters, first.options, first.notify_email) == ({}, {}, True)
    assert first.recipient_emails == ["ana@example.com"]
    assert abs((utc_now() - first.created_at).total_seconds()) < 60


def test_the_databases_spelling_of_a_uuid_is_the_canonical_one(database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(FOUR_COLUMNS)
        uid = load_request(connection, 1).uid
    assert is_canonical_uuid(uid)
    for spelled in (uid.replace("-", ""), f"{{{uid}}}", f"urn:uuid:{uid}", uid[:-1] + "A"):
        assert (is_uuid(spelled), is_canonical_uuid(spelled)) == (True, False)
    assert not is_canonical_uuid("")


def test_the_request_model_has_exactly_the_columns_of_the_table() -> None:
    assert set(ExportRequest.model_fields) == set(export_requests.c.keys())


def test_migrated_tables_are_those_of_the_metadata(database: sa.Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrate.VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_check_constraints_are_the_same_migrated_and_declared(database: sa.Engine, tmp_path: Path) -> None:
    with database.connect() as connection:
        migrated = _checks(connection)
    if database.dialect.name == "sqlite":
        declared_engine = create_engine(f"sqlite:///{tmp_path / 'declared.db'}")
        metadata.create_all(declared_engine)
        with declared_engine.connect() as connection:
            assert migrated == _checks(connection)
    assert len(migrated) >= len(ENUMS)


def _checks(connection: sa.Connection) -> dict[tuple[str, str], str]:
    inspector = sa.inspect(connection)
    return {
        (table, str(check["name"])): check["sqltext"]
        for table in metadata.tables
        for check in inspector.get_check_constraints(table)
    }


ENUMS = [
    ("export_requests", "status", RequestStatus),
    ("export_requests", "stage", Stage),
    ("export_notifications", "status", NotificationStatus),
    ("export_notifications", "kind", NotificationKind),
    ("email_charges", "status", ChargeStatus),
    ("export_webhooks", "status", WebhookStatus),
    ("export_events", "kind", EventKind),
    ("recurring_exports", "window_kind", WindowKind),
    ("recurring_exports", "overlap_policy", OverlapPolicy),
    ("recurring_exports", "catch_up_policy", CatchUpPolicy),
]


@pytest.mark.parametrize(("table", "column", "enum"), ENUMS)
def test_check_constraint_holds_exactly_the_enum(
    database: sa.Engine, table: str, column: str, enum: type[StrEnum]
) -> None:
    with database.connect() as connection:
        text = _checks(connection)[(table, f"ck_{table}_{column}_known")]
    assert set(re.findall(r"'([a-z_]+)'", text)) == {member.value for member in enum}


def test_a_status_that_is_none_is_refused(database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(FOUR_COLUMNS)
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.exec_driver_sql("UPDATE export_requests SET status = 'done'")


MALFORMED: list[tuple[str, object]] = [
    *[("cancel_requested_at", value) for value in ("yesterday", "2026-02-31 00:00:00", "2026-01-01 24:30:00", b"\xff")],
    *[("start_date", value) for value in ("yesterday", "2026-02-31", "0000-01-01", "2026-01-01 10:00:00.", b"\xff")],
    *[("notify_email", value) for value in ("no way", 7)],
    *[("max_file_size_mb", value) for value in ("large", b"\xff")],
    *[("rows_total", value) for value in ("many", b"\xff")],
    *[("uid", value) for value in ("6f0c", "x" * 36, b"\xff")],
    *[("recurring_export_id", value) for value in ("weekly", 1.5)],
    ("columns", "[1"),
    ("columns", b"[]"),
    ("layout", b"\xff"),
]


@pytest.mark.parametrize(("column", "value"), MALFORMED, ids=lambda value: repr(value)[:24])
def test_sqlite_refuses_a_malformed_value_at_the_insert_as_postgresql_does(
    tmp_path: Path, column: str, value: object
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'requests.db'}")
    migrate.upgrade(engine)
    statement = FOUR_COLUMNS.replace("recipient_emails)", f"recipient_emails, {column})").replace("]')", "]', ?)")
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql(statement, (value,))
    engine.dispose()


SPELLINGS = [
    ("cancel_requested_at", "2026-01-31 10:00:00", "2026-01-31T10:00:00+00:00"),
    ("cancel_requested_at", "2026-01-31 23:59:59.999999", "2026-01-31T23:59:59.999999+00:00"),
    ("start_date", "2026-01-31", "2026-01-31T00:00:00"),
    ("start_date", "2026-01-31 10:00", "2026-01-31T10:00:00"),
    ("start_date", "2026-01-31T10:00:00", "2026-01-31T10:00:00"),
    ("end_date", "9999-12-31 23:59:59.999999", "9999-12-31T23:59:59.999999"),
]


@pytest.mark.parametrize(("column", "text", "meant"), SPELLINGS)
def test_an_application_may_write_dates_and_times_as_text(
    database: sa.Engine, column: str, text: str, meant: str
) -> None:
    statement = FOUR_COLUMNS.replace("recipient_emails)", f"recipient_emails, {column})").replace(
        "]')", f"]', '{text}')"
    )
    with database.begin() as connection:
        connection.exec_driver_sql(statement)
        assert getattr(load_request(connection, 1), column).isoformat() == meant


def test_text_that_is_not_json_is_refused_at_the_insert(database: sa.Engine) -> None:
    statement = FOUR_COLUMNS.replace('["ana@example.com"]', "ana@example.com")
    with pytest.raises((sa.exc.IntegrityError, sa.exc.DataError)), database.begin() as connection:
        connection.exec_driver_sql(statement)


def test_upgrade_is_safe_to_run_again(database: sa.Engine) -> None:
    assert migrate.upgrade(database) == migrate.current_revision(database) == migrate.head_revision()


def test_the_version_table_is_not_alembics_default(database: sa.Engine) -> None:
    with database.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
    assert "alembic_version" not in tables
    assert migrate.VERSION_TABLE in tables


def test_an_instant_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        UtcDateTime().process_bind_param(utc_now().replace(tzinfo=None), sa.make_url("sqlite://").get_dialect()())


def _documented(text: str, heading: str) -> set[str]:
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([a-z_0-9]+)`", section, re.MULTILINE))


def test_docs_name_every_column_status_stage_and_code() -> None:
    text = (DOCS / "requests.md").read_text()
    assert _documented(text, "Columns") == set(export_requests.c.keys())
    assert _documented(text, "Statuses") == {status.value for status in RequestStatus}
    assert _documented(text, "Stages") == {stage.value for stage in Stage}
    assert _documented(text, "Failure codes") == {code.value for code in FailureCode}
    assert _documented(text, "Options") == set(Options.model_fields)


def test_no_integer_id_is_used_twice(database: sa.Engine) -> None:
    keyed = [
        table for table in metadata.tables.values() if "id" in table.c and isinstance(table.c.id.type, sa.BigInteger)
    ]
    assert len(keyed) == 8
    for table in keyed:
        if database.dialect.name == "sqlite":
            with database.connect() as connection:
                found = connection.execute(
                    sa.text("SELECT sql FROM sqlite_master WHERE name = :table"), {"table": table.name}
                ).scalar_one()
            assert "PRIMARY KEY AUTOINCREMENT" in found, table.name
        else:
            assert sa.inspect(database).get_columns(table.name)[0]["identity"], table.name


def test_two_upgrades_at_once_are_one_after_the_other(postgres_url: str) -> None:
    url = Settings(database_url=postgres_url).database_url
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: migrate.upgrade(create_engine(url)), range(2)))
    assert done == [migrate.head_revision()] * 2


def test_a_link_of_a_deleted_request_does_not_open_another_that_has_its_number(tmp_path: Path) -> None:
    """An application's SQLite has no foreign keys on: links stay, and it may give a number again by hand."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    migrate.upgrade(engine)
    file = "(request_id, ordinal, key, name, bytes, rows, sha256, media_type) VALUES (1, 1, 'k', 'n', 1, 1, 's', 't')"
    with engine.begin() as connection:
        connection.exec_driver_sql(FOUR_COLUMNS)
        connection.exec_driver_sql("UPDATE export_requests SET status = 'completed'")
        connection.exec_driver_sql(f"INSERT INTO export_files {file}")
        (token,) = download_links.create(connection, 1, [1], expires_at=utc_now() + timedelta(days=1))
        assert isinstance(download_links.open_link(connection, token), download_links.Opened)
    with sqlite3.connect(engine.url.database or "") as plain:
        plain.execute("DELETE FROM export_requests")
        plain.execute(
            FOUR_COLUMNS.replace("(organization", "(id, status, organization").replace(
                "('6f0c'", "(1, 'completed', 'b'"
            )
        )
    plain.close()
    with engine.begin() as connection:
        assert download_links.open_link(connection, token) is download_links.Closed.UNKNOWN
        assert download_links.language_of_link(connection, token) is None
    engine.dispose()
