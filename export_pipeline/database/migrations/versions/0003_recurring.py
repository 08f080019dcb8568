"""Recurring exports: windows of requests, what a recurring export remembers, and who left it.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import UtcDateTime, big_integer, current_instant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _checked(condition: str, name: str) -> sa.CheckConstraint:
    # Beside its column: SQLite adds no constraint to a table that exists, and a copy would lose its other checks.
    return sa.CheckConstraint(condition, name=op.f(name))


def upgrade() -> None:
    """Windows and empty results of requests; lag, failures and pauses of recurring exports; unsubscriptions."""
    op.add_column(
        "export_requests",
        sa.Column(
            "window_from",
            UtcDateTime(),
            nullable=True,
            comment="instant, inclusive; instead of start_date and end_date",
        ),
    )
    op.add_column(
        "export_requests", sa.Column("window_before", UtcDateTime(), nullable=True, comment="instant, exclusive")
    )
    op.add_column(
        "export_requests",
        sa.Column(
            "empty_result",
            sa.Text(),
            _checked("empty_result IN ('send', 'skip')", "ck_export_requests_empty_result_known"),
            server_default="send",
            nullable=False,
            comment="skip: nobody is mailed if nothing matched",
        ),
    )
    op.create_index(
        op.f("ix_export_requests_recurring_export_id"), "export_requests", ["recurring_export_id"], unique=False
    )
    op.add_column(
        "recurring_exports",
        sa.Column(
            "lag_seconds",
            sa.Integer(),
            _checked("lag_seconds BETWEEN 0 AND 604800", "ck_recurring_exports_lag_seconds_in_range"),
            server_default=sa.text("60"),
            nullable=False,
            comment="how long after its fire time a request with a window is made, for rows that commit late",
        ),
    )
    op.add_column(
        "recurring_exports",
        sa.Column(
            "max_failures",
            sa.Integer(),
            _checked("max_failures >= 1", "ck_recurring_exports_max_failures_positive"),
            server_default=sa.text("5"),
            nullable=False,
            comment="failures in a row that pause it",
        ),
    )
    op.add_column(
        "recurring_exports",
        sa.Column("failures_in_a_row", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column(
        "recurring_exports",
        sa.Column(
            "paused_over",
            big_integer(),
            nullable=True,
            comment="the failed request that paused it; its mail tells the owner",
        ),
    )
    op.create_table(
        "export_unsubscriptions",
        sa.Column("recurring_export_id", big_integer(), autoincrement=False, nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False, comment="an address that wants no more of its mails"),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["recurring_export_id"],
            ["recurring_exports.id"],
            name=op.f("fk_export_unsubscriptions_recurring_export_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recurring_export_id", "recipient", name=op.f("pk_export_unsubscriptions")),
    )


def downgrade() -> None:
    """Back to requests without windows."""
    op.drop_table("export_unsubscriptions")
    for column in ("paused_over", "failures_in_a_row", "max_failures", "lag_seconds"):
        op.drop_column("recurring_exports", column)
    op.drop_index(op.f("ix_export_requests_recurring_export_id"), table_name="export_requests")
    for column in ("empty_result", "window_before", "window_from"):
        op.drop_column("export_requests", column)
