"""The tables of the contract.

Revision ID: 0001
Revises:
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import (
    UtcDateTime,
    UuidText,
    big_integer,
    current_instant,
    generated_uuid,
    json_type,
)

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "api_keys",
        sa.Column("id", UuidText(), server_default=generated_uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("scopes", json_type(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("scopes IS NULL OR json_valid(scopes)", name=op.f("ck_api_keys_scopes_json")).ddl_if(
            dialect="sqlite"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_index(op.f("ix_api_keys_organization_id"), "api_keys", ["organization_id"], unique=False)
    op.create_table(
        "export_events",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("request_uid", UuidText(), nullable=False, comment="no foreign key: the trail outlives the row"),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=True, comment="who: the requester's id, or the pipeline"),
        sa.Column("detail", json_type(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('asked', 'started', 'completed', 'failed', 'canceled', 'requeued', 'notified', "
            "'downloaded', 'expired')",
            name=op.f("ck_export_events_kind_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_events")),
    )
    op.create_index(op.f("ix_export_events_request_uid"), "export_events", ["request_uid"], unique=False)
    op.create_table(
        "export_requests",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False, comment="Cometly's export_id"),
        sa.Column(
            "uid", UuidText(), server_default=generated_uuid(), nullable=False, comment="gu1's jobId, SendGrid's id"
        ),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=True, comment="the requester's own id, not an address"),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False, comment="csv, xlsx, json, ndjson, parquet"),
        sa.Column(
            "compression", sa.Text(), nullable=True, comment="none, gzip; NULL = gzip for ndjson, none otherwise"
        ),
        sa.Column(
            "layout", sa.Text(), server_default="default", nullable=False, comment="named header set of the dataset"
        ),
        sa.Column("columns", json_type(), nullable=True, comment="column names in order; NULL or [] = all"),
        sa.Column("filters", json_type(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("list_ids", json_type(), nullable=True),
        sa.Column("segment_ids", json_type(), nullable=True),
        sa.Column(
            "start_date", sa.DateTime(), nullable=True, comment="wall clock in the organization's time zone, inclusive"
        ),
        sa.Column(
            "end_date",
            sa.DateTime(),
            nullable=True,
            comment="wall clock in the organization's time zone, inclusive to the second",
        ),
        sa.Column("include", json_type(), nullable=True, comment="child lists to add"),
        sa.Column(
            "options",
            json_type(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="format options, see docs/requests.md",
        ),
        sa.Column(
            "max_file_size_mb",
            sa.Integer(),
            server_default=sa.text("5000"),
            nullable=False,
            comment="1 MB = 1,000,000 bytes",
        ),
        sa.Column("notify_email", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("recipient_emails", json_type(), nullable=False, comment="JSON array of addresses"),
        sa.Column("email_locale", sa.Text(), nullable=True, comment="en, es, pt; anything else = en"),
        sa.Column("from_email", sa.Text(), nullable=True),
        sa.Column("from_sender_id", sa.Text(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column(
            "priority",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="higher goes first within an organization",
        ),
        sa.Column("recurring_export_id", big_integer(), nullable=True),
        sa.Column("scheduled_for", UtcDateTime(), nullable=True),
        sa.Column("cancel_requested_at", UtcDateTime(), nullable=True, comment="set it to cancel"),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("stage", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="runs used up so far"),
        sa.Column("claimed_at", UtcDateTime(), nullable=True, comment="when a run was asked of Dagster"),
        sa.Column("run_id", sa.Text(), nullable=True, comment="the Dagster run that owns the row"),
        sa.Column(
            "rows_done", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="rows done in this stage"
        ),
        sa.Column("rows_total", sa.BigInteger(), nullable=True, comment="rows of the snapshot"),
        sa.Column("row_count", sa.BigInteger(), nullable=True, comment="rows delivered"),
        sa.Column("byte_count", sa.BigInteger(), nullable=True, comment="bytes delivered"),
        sa.Column("file_count", sa.Integer(), nullable=True, comment="files delivered"),
        sa.Column("snapshot_at", UtcDateTime(), nullable=True, comment="the instant that the rows are of"),
        sa.Column("manifest_key", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("heartbeat_at", UtcDateTime(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=True, comment="when the files are deleted"),
        sa.Column("updated_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint(
            "stage IN ('plan', 'filter_entities', 'serialize', 'upload', 'publish', 'notify_recipients')",
            name=op.f("ck_export_requests_stage_known"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'completed', 'failed', 'canceled', 'expired')",
            name=op.f("ck_export_requests_status_known"),
        ),
        sa.CheckConstraint(
            "columns IS NULL OR json_valid(columns)", name=op.f("ck_export_requests_columns_json")
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "filters IS NULL OR json_valid(filters)", name=op.f("ck_export_requests_filters_json")
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "include IS NULL OR json_valid(include)", name=op.f("ck_export_requests_include_json")
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "list_ids IS NULL OR json_valid(list_ids)", name=op.f("ck_export_requests_list_ids_json")
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "options IS NULL OR json_valid(options)", name=op.f("ck_export_requests_options_json")
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "recipient_emails IS NULL OR json_valid(recipient_emails)",
            name=op.f("ck_export_requests_recipient_emails_json"),
        ).ddl_if(dialect="sqlite"),
        sa.CheckConstraint(
            "segment_ids IS NULL OR json_valid(segment_ids)", name=op.f("ck_export_requests_segment_ids_json")
        ).ddl_if(dialect="sqlite"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_requests")),
        sa.UniqueConstraint(
            "organization_id", "idempotency_key", name=op.f("uq_export_requests_organization_id_idempotency_key")
        ),
        sa.UniqueConstraint("uid", name=op.f("uq_export_requests_uid")),
    )
    op.create_index(
        op.f("ix_export_requests_status_organization_id_id"),
        "export_requests",
        ["status", "organization_id", "id"],
        unique=False,
    )
    op.create_table(
        "organization_email_domains",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("verified_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("organization_id", "domain", name=op.f("pk_organization_email_domains")),
    )
    op.create_table(
        "organization_email_senders",
        sa.Column("id", UuidText(), server_default=generated_uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organization_email_senders")),
    )
    op.create_index(
        op.f("ix_organization_email_senders_organization_id"),
        "organization_email_senders",
        ["organization_id"],
        unique=False,
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("time_zone", sa.Text(), server_default="UTC", nullable=False, comment="IANA name"),
        sa.Column(
            "email_enabled",
            sa.Boolean(),
            server_default=sa.true(),
            nullable=False,
            comment="gu1's global_sender_email",
        ),
        sa.Column("email_balance", sa.BigInteger(), nullable=True, comment="e-mail executions left; NULL = not billed"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
    )
    op.create_table(
        "recurring_exports",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("request", json_type(), nullable=False, comment="the asked columns of each request"),
        sa.Column("window_kind", sa.Text(), server_default="all", nullable=False),
        sa.Column("overlap_policy", sa.Text(), server_default="skip", nullable=False),
        sa.Column("catch_up_policy", sa.Text(), server_default="latest", nullable=False),
        sa.Column("paused_at", UtcDateTime(), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("last_fired_for", UtcDateTime(), nullable=True),
        sa.Column("high_water_mark", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint(
            "catch_up_policy IN ('latest', 'all', 'none')", name=op.f("ck_recurring_exports_catch_up_policy_known")
        ),
        sa.CheckConstraint(
            "overlap_policy IN ('skip', 'queue')", name=op.f("ck_recurring_exports_overlap_policy_known")
        ),
        sa.CheckConstraint(
            "window_kind IN ('all', 'previous_period', 'since_last_success')",
            name=op.f("ck_recurring_exports_window_kind_known"),
        ),
        sa.CheckConstraint(
            "request IS NULL OR json_valid(request)", name=op.f("ck_recurring_exports_request_json")
        ).ddl_if(dialect="sqlite"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recurring_exports")),
    )
    op.create_index(
        op.f("ix_recurring_exports_organization_id"), "recurring_exports", ["organization_id"], unique=False
    )
    op.create_table(
        "export_files",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("request_id", big_integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="place in the row order, from 1"),
        sa.Column("key", sa.Text(), nullable=False, comment="under EXPORT_STORE_URL"),
        sa.Column("name", sa.Text(), nullable=False, comment="file name for people"),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False, comment="hex, of the bytes as delivered"),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("content_encoding", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("deleted_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["request_id"], ["export_requests.id"], name=op.f("fk_export_files_request_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_files")),
        sa.UniqueConstraint("request_id", "ordinal", name=op.f("uq_export_files_request_id_ordinal")),
    )
    op.create_table(
        "export_notifications",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("request_id", big_integer(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True, comment="the provider's code, no address"),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'sending', 'sent', 'refused', 'unknown')",
            name=op.f("ck_export_notifications_status_known"),
        ),
        sa.ForeignKeyConstraint(
            ["request_id"], ["export_requests.id"], name=op.f("fk_export_notifications_request_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_notifications")),
        sa.UniqueConstraint("request_id", "recipient", name=op.f("uq_export_notifications_request_id_recipient")),
    )


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("export_notifications")
    op.drop_table("export_files")
    op.drop_index(op.f("ix_recurring_exports_organization_id"), table_name="recurring_exports")
    op.drop_table("recurring_exports")
    op.drop_table("organizations")
    op.drop_index(op.f("ix_organization_email_senders_organization_id"), table_name="organization_email_senders")
    op.drop_table("organization_email_senders")
    op.drop_table("organization_email_domains")
    op.drop_index(op.f("ix_export_requests_status_organization_id_id"), table_name="export_requests")
    op.drop_table("export_requests")
    op.drop_index(op.f("ix_export_events_request_uid"), table_name="export_events")
    op.drop_table("export_events")
    op.drop_index(op.f("ix_api_keys_organization_id"), table_name="api_keys")
    op.drop_table("api_keys")
