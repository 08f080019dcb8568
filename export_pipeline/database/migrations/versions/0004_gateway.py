"""What the HTTP gateway keeps: sealed links, webhooks and their secrets, rate windows, facts of API keys.

Revision ID: 0004
Revises: 0003 (to be chained on 0003 where both are merged)
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import UtcDateTime, UuidText, big_integer, current_instant, generated_uuid

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Four tables, two columns."""
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(
            sa.Column(
                "member_id", sa.Text(), nullable=True, comment="whom the key acts for: what requested_by will hold"
            )
        )
        batch.add_column(
            sa.Column(
                "requests_per_hour", sa.Integer(), nullable=True, comment="NULL = as every key; gu1's sandbox: 100"
            )
        )
    _create_links()
    _create_webhooks()
    op.create_table(
        "rate_windows",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("hits", sa.Integer(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False, comment="Unix seconds"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_windows")),
    )
    if op.get_context().dialect.name == "postgresql":
        # Counted at every HTTP request, and nothing is lost with it: no write-ahead log, no wait for the disk.
        op.execute("ALTER TABLE rate_windows SET UNLOGGED")


def _create_links() -> None:
    op.create_table(
        "export_links",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False, comment="SHA-256 of the token, hex"),
        sa.Column("request_id", big_integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="which of the request's files"),
        sa.Column(
            "notification_id",
            big_integer(),
            nullable=True,
            comment="whose mail it stands in; NULL = handed out by the gateway",
        ),
        sa.Column("opened_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_opened_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["export_requests.id"],
            name=op.f("fk_export_links_request_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["notification_id"],
            ["export_notifications.id"],
            name=op.f("fk_export_links_notification_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_export_links_token_hash")),
    )
    op.create_index(op.f("ix_export_links_request_id"), "export_links", ["request_id"], unique=False)


def _create_webhooks() -> None:
    op.create_table(
        "export_webhooks",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("uid", UuidText(), server_default=generated_uuid(), nullable=False),
        sa.Column("request_id", big_integer(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_try_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True, comment="of the last try: the status code, or what went wrong"),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint(
            "event IN ('export.completed', 'export.failed', 'export.canceled')",
            name=op.f("ck_export_webhooks_event_known"),
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'abandoned')", name=op.f("ck_export_webhooks_status_known")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["export_requests.id"],
            name=op.f("fk_export_webhooks_request_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_webhooks")),
        sa.UniqueConstraint("request_id", "event", name=op.f("uq_export_webhooks_request_id_event")),
        sa.UniqueConstraint("uid", name=op.f("uq_export_webhooks_uid")),
    )
    op.create_index(
        op.f("ix_export_webhooks_status_next_try_at"), "export_webhooks", ["status", "next_try_at"], unique=False
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False, comment="signs the organization's webhooks"),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_webhook_secrets")),
    )


def downgrade() -> None:
    """Without the gateway's tables."""
    op.drop_table("rate_windows")
    op.drop_table("webhook_secrets")
    op.drop_table("export_webhooks")
    op.drop_table("export_links")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_column("requests_per_hour")
        batch.drop_column("member_id")
