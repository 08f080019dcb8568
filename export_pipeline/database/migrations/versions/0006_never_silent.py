"""Ids that are used once, postponed requests, claims that have names, and indexes on what is unfinished.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-27
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import UtcDateTime, UuidText

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
_KEPT_IDS: dict[str, list[tuple[str, str]]] = {
    "export_requests": [
        ("export_files", "request_id"),
        ("export_notifications", "request_id"),
        ("export_links", "request_id"),
        ("export_webhooks", "request_id"),
    ],
    "export_files": [],
    "export_notifications": [("export_links", "notification_id")],
    "email_charges": [],
    "export_events": [],
    "recurring_exports": [
        ("export_requests", "recurring_export_id"),
        ("export_unsubscriptions", "recurring_export_id"),
    ],
    "export_links": [],
    "export_webhooks": [],
}
"""The tables with an integer id, and where such an id may have outlived its row."""
_COLUMNS: dict[str, list[sa.Column[Any]]] = {
    "export_requests": [
        sa.Column(
            "uncounted_attempts",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of attempt, those that EXPORT_MAX_ATTEMPTS does not count",
        ),
        sa.Column("claim_id", UuidText(), nullable=True, comment="names the claim; its run has it as a tag"),
        sa.Column("not_before", UtcDateTime(), nullable=True, comment="it is not claimed before this instant"),
        sa.Column(
            "postponed_at",
            UtcDateTime(),
            nullable=True,
            comment="when it was last put back because something did not answer",
        ),
        sa.Column("postponements", sa.Integer(), server_default=sa.text("0"), nullable=False),
    ],
    "recurring_exports": [
        sa.Column(
            "counted_by", sa.Text(), nullable=True, comment="cron and time zone that last_fired_for was counted by"
        ),
    ],
    "export_links": [
        sa.Column(
            "request_uid", UuidText(), nullable=True, comment="of the same request: an id alone could be used again"
        ),
    ],
}
_INDEXES = [
    ("ix_export_links_notification_id", "export_links", "notification_id", None),
    ("ix_export_requests_postponed_at", "export_requests", "postponed_at", "postponed_at IS NOT NULL"),
    ("ix_export_requests_expires_at", "export_requests", "expires_at", "status = 'completed'"),
    ("ix_export_files_kept", "export_files", "request_id", "deleted_at IS NULL"),
    ("ix_export_notifications_unfinished", "export_notifications", "request_id", "status IN ('pending', 'sending')"),
]


def upgrade() -> None:
    """Columns, indexes; on SQLite ids that are never used again."""
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    op.execute(
        "UPDATE export_links SET request_uid = "
        "(SELECT uid FROM export_requests WHERE export_requests.id = export_links.request_id)"
    )
    if op.get_context().dialect.name == "sqlite":
        for table, kept in _KEPT_IDS.items():
            _use_ids_once(table)
            _begin_after(table, kept)
    for name, table, indexed, where in _INDEXES:
        condition = None if where is None else sa.text(where)
        op.create_index(op.f(name), table, [indexed], postgresql_where=condition, sqlite_where=condition)


def downgrade() -> None:
    """Without them; on SQLite ids stay unique, which harms nobody."""
    for name, table, _column, _where in _INDEXES:
        op.drop_index(op.f(name), table_name=table)
    for table, columns in _COLUMNS.items():
        for column in columns:
            op.drop_column(table, column.name)


def _use_ids_once(table: str) -> None:
    """Make the table anew with AUTOINCREMENT, from its own text: checks, defaults, and what the host added stay.

    Foreign keys are off (``migrate.upgrade``): dropping the old table would delete the rows that refer to it.
    """
    connection = op.get_bind()
    belongings = connection.execute(
        sa.text("SELECT type, sql FROM sqlite_master WHERE tbl_name = :table AND sql IS NOT NULL ORDER BY rowid"),
        {"table": table},
    ).all()
    created = next(sql for kind, sql in belongings if kind == "table")
    names = ", ".join(f'"{column["name"]}"' for column in sa.inspect(connection).get_columns(table))
    connection.exec_driver_sql(_with_autoincrement(created, table))
    connection.exec_driver_sql(f"INSERT INTO {table}_new ({names}) SELECT {names} FROM {table}")  # noqa: S608
    connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql(f"ALTER TABLE {table}_new RENAME TO {table}")
    for kind, sql in belongings:
        if kind != "table":
            connection.exec_driver_sql(sql)


def _with_autoincrement(created: str, table: str) -> str:
    key = rf",\s*(CONSTRAINT\s+\"?pk_{table}\"?\s+)?PRIMARY KEY\s*\(\"?id\"?\)"
    once = f"id INTEGER NOT NULL CONSTRAINT pk_{table} PRIMARY KEY AUTOINCREMENT"
    text, keys = re.subn(key, "", created)
    text, ids = re.subn(r"\bid\"? INTEGER NOT NULL", once, text, count=1)
    text, heads = re.subn(rf"\A(CREATE TABLE\s+)\"?{table}\"?", rf"\1{table}_new", text)
    if (keys, ids, heads) != (1, 1, 1):
        raise ValueError(f"the table {table} is not as an earlier revision made it; its id cannot be changed")
    return text


def _begin_after(table: str, kept: list[tuple[str, str]]) -> None:
    """The next id is above every one that is still kept somewhere."""
    highest = " UNION ALL ".join(f"SELECT max({column}) AS id FROM {other}" for other, column in [(table, "id"), *kept])  # noqa: S608
    op.execute(f"DELETE FROM sqlite_sequence WHERE name = '{table}'")  # noqa: S608
    op.execute(
        f"INSERT INTO sqlite_sequence (name, seq) SELECT '{table}', coalesce(max(id), 0) FROM ({highest}) AS kept"  # noqa: S608
    )
