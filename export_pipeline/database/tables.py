"""The tables of the contract.

An application writes the first group of ``export_requests`` (what is asked), only the pipeline
writes the second (what is told). Every asked column but four has a database-side default.

No id is used twice, on SQLite neither (``sqlite_autoincrement``): links, mails and runs keep ids longer than rows live.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

from export_pipeline.database.enums import (
    CatchUpPolicy,
    ChargeStatus,
    EmptyResult,
    EventKind,
    NotificationKind,
    NotificationStatus,
    OverlapPolicy,
    RequestStatus,
    Stage,
    WebhookEvent,
    WebhookStatus,
    WindowKind,
)
from export_pipeline.database.types import (
    UtcDateTime,
    UuidText,
    big_integer,
    current_instant,
    generated_uuid,
    json_type,
)

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def one_of(column: str, values: type[StrEnum]) -> sa.CheckConstraint:
    """A check constraint that holds a column to an enum's values."""
    listed = ", ".join(f"'{value.value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def valid_json(column: str) -> sa.CheckConstraint:
    """On SQLite, where JSON is text: refuse text that is not JSON at the INSERT, as jsonb does."""
    check = sa.CheckConstraint(f"{column} IS NULL OR json_valid({column})", name=f"{column}_json")
    return check.ddl_if(dialect="sqlite")


def part_index(name: str, column: str, *, where: str) -> sa.Index:
    """An index on the few rows that a sensor looks for, so that its cost does not grow with history."""
    return sa.Index(name, column, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


DEFAULT_MAX_FILE_SIZE_MB = 5000
"""The default of ``max_file_size_mb`` (SendGrid, ``max_file_size``)."""
JSON_COLUMNS = ("columns", "filters", "list_ids", "segment_ids", "include", "options", "recipient_emails")
export_requests = sa.Table(
    "export_requests",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True, comment="Cometly's export_id"),
    sa.Column(
        "uid",
        UuidText,
        nullable=False,
        server_default=generated_uuid(),
        unique=True,
        comment="gu1's jobId, SendGrid's id",
    ),
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text, comment="the requester's own id, not an address"),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False, comment="csv, xlsx, json, ndjson, parquet"),
    sa.Column("compression", sa.Text, comment="none, gzip; NULL = gzip for ndjson, none otherwise"),
    sa.Column("layout", sa.Text, nullable=False, server_default="default", comment="named header set of the dataset"),
    sa.Column("columns", json_type(), comment="column names in order; NULL or [] = all"),
    sa.Column("filters", json_type(), nullable=False, server_default=sa.text("'{}'")),
    sa.Column("list_ids", json_type()),
    sa.Column("segment_ids", json_type()),
    sa.Column("start_date", sa.DateTime, comment="wall clock in the organization's time zone, inclusive"),
    sa.Column("end_date", sa.DateTime, comment="wall clock in the organization's time zone, inclusive to the second"),
    sa.Column("window_from", UtcDateTime, comment="instant, inclusive; instead of start_date and end_date"),
    sa.Column("window_before", UtcDateTime, comment="instant, exclusive"),
    sa.Column("include", json_type(), comment="child lists to add"),
    sa.Column(
        "options",
        json_type(),
        nullable=False,
        server_default=sa.text("'{}'"),
        comment="format options, see docs/requests.md",
    ),
    sa.Column(
        "max_file_size_mb",
        sa.Integer,
        nullable=False,
        server_default=sa.text(str(DEFAULT_MAX_FILE_SIZE_MB)),
        comment="1 MB = 1,000,000 bytes",
    ),
    sa.Column("notify_email", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("recipient_emails", json_type(), nullable=False, comment="JSON array of addresses"),
    sa.Column(
        "empty_result",
        sa.Text,
        nullable=False,
        server_default=EmptyResult.SEND.value,
        comment="skip: nobody is mailed if nothing matched",
    ),
    sa.Column("email_locale", sa.Text, comment="en, es, pt; anything else = en"),
    sa.Column("from_email", sa.Text),
    sa.Column("from_sender_id", sa.Text),
    sa.Column("webhook_url", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column(
        "priority",
        sa.Integer,
        nullable=False,
        server_default=sa.text("0"),
        comment="higher goes first within an organization",
    ),
    sa.Column("recurring_export_id", big_integer()),
    sa.Column("scheduled_for", UtcDateTime),
    sa.Column("cancel_requested_at", UtcDateTime, comment="set it to cancel"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("status", sa.Text, nullable=False, server_default=RequestStatus.QUEUED.value),
    sa.Column("stage", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0"), comment="runs used up so far"),
    sa.Column(
        "uncounted_attempts",
        sa.Integer,
        nullable=False,
        server_default=sa.text("0"),
        comment="of attempt, those that EXPORT_MAX_ATTEMPTS does not count",
    ),
    sa.Column("claimed_at", UtcDateTime, comment="when a run was asked of Dagster"),
    sa.Column("claim_id", UuidText, comment="names the claim; its run has it as a tag"),
    sa.Column("not_before", UtcDateTime, comment="it is not claimed before this instant"),
    sa.Column("postponed_at", UtcDateTime, comment="when it was last put back because something did not answer"),
    sa.Column("postponements", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("run_id", sa.Text, comment="the Dagster run that owns the row"),
    sa.Column(
        "rows_done", sa.BigInteger, nullable=False, server_default=sa.text("0"), comment="rows done in this stage"
    ),
    sa.Column("rows_total", sa.BigInteger, comment="rows of the snapshot"),
    sa.Column("row_count", sa.BigInteger, comment="rows delivered"),
    sa.Column("byte_count", sa.BigInteger, comment="bytes delivered"),
    sa.Column("file_count", sa.Integer, comment="files delivered"),
    sa.Column("snapshot_at", UtcDateTime, comment="the instant that the rows are of"),
    sa.Column("manifest_key", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("heartbeat_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),
    sa.Column("completed_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, comment="when the files are deleted"),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.UniqueConstraint("organization_id", "idempotency_key"),
    one_of("status", RequestStatus),
    one_of("stage", Stage),
    one_of("empty_result", EmptyResult),
    *[valid_json(name) for name in JSON_COLUMNS],
    sa.Index(None, "status", "organization_id", "id"),
    sa.Index(None, "recurring_export_id"),
    part_index("ix_export_requests_postponed_at", "postponed_at", where="postponed_at IS NOT NULL"),
    part_index("ix_export_requests_expires_at", "expires_at", where="status = 'completed'"),
    sqlite_autoincrement=True,
)
export_files = sa.Table(
    "export_files",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("request_id", big_integer(), sa.ForeignKey("export_requests.id", ondelete="CASCADE"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False, comment="place in the row order, from 1"),
    sa.Column("key", sa.Text, nullable=False, comment="under EXPORT_STORE_URL"),
    sa.Column("name", sa.Text, nullable=False, comment="file name for people"),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False, comment="hex, of the bytes as delivered"),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("content_encoding", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("deleted_at", UtcDateTime),
    sa.UniqueConstraint("request_id", "ordinal"),
    part_index("ix_export_files_kept", "request_id", where="deleted_at IS NULL"),
    sqlite_autoincrement=True,
)
export_notifications = sa.Table(
    "export_notifications",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("request_id", big_integer(), sa.ForeignKey("export_requests.id", ondelete="CASCADE"), nullable=False),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, server_default=NotificationKind.READY.value),
    sa.Column("status", sa.Text, nullable=False, server_default=NotificationStatus.PENDING.value),
    sa.Column("reason", sa.Text, comment="the provider's code, no address"),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.UniqueConstraint("request_id", "recipient", "kind"),
    part_index("ix_export_notifications_unfinished", "request_id", where="status IN ('pending', 'sending')"),
    one_of("status", NotificationStatus),
    one_of("kind", NotificationKind),
    sqlite_autoincrement=True,
)
email_charges = sa.Table(
    "email_charges",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("request_uid", UuidText, nullable=False, comment="no foreign key: what was charged outlives the row"),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default=ChargeStatus.RESERVED.value),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.UniqueConstraint("request_uid", "recipient"),
    one_of("status", ChargeStatus),
    sqlite_autoincrement=True,
)
export_events = sa.Table(
    "export_events",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column(
        "request_uid", UuidText, nullable=False, index=True, comment="no foreign key: the trail outlives the row"
    ),
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, comment="who: the requester's id, or the pipeline"),
    sa.Column("detail", json_type()),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    one_of("kind", EventKind),
    sqlite_autoincrement=True,
)
LONGEST_LAG_SECONDS = 7 * 24 * 3600
recurring_exports = sa.Table(
    "recurring_exports",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("owner", sa.Text),
    sa.Column("cron", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("request", json_type(), nullable=False, comment="the asked columns of each request"),
    sa.Column("window_kind", sa.Text, nullable=False, server_default=WindowKind.ALL.value),
    sa.Column(
        "lag_seconds",
        sa.Integer,
        nullable=False,
        server_default=sa.text("60"),
        comment="how long after its fire time a request with a window is made, for rows that commit late",
    ),
    sa.Column("overlap_policy", sa.Text, nullable=False, server_default=OverlapPolicy.SKIP.value),
    sa.Column("catch_up_policy", sa.Text, nullable=False, server_default=CatchUpPolicy.LATEST.value),
    sa.Column(
        "max_failures",
        sa.Integer,
        nullable=False,
        server_default=sa.text("5"),
        comment="failures in a row that pause it",
    ),
    sa.Column("failures_in_a_row", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("paused_at", UtcDateTime),
    sa.Column("pause_reason", sa.Text),
    sa.Column("paused_over", big_integer(), comment="the failed request that paused it; its mail tells the owner"),
    sa.Column("last_fired_for", UtcDateTime),
    sa.Column("counted_by", sa.Text, comment="cron and time zone that last_fired_for was counted by"),
    sa.Column("high_water_mark", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=current_instant()),
    one_of("window_kind", WindowKind),
    one_of("overlap_policy", OverlapPolicy),
    one_of("catch_up_policy", CatchUpPolicy),
    sa.CheckConstraint(f"lag_seconds BETWEEN 0 AND {LONGEST_LAG_SECONDS}", name="lag_seconds_in_range"),
    sa.CheckConstraint("max_failures >= 1", name="max_failures_positive"),
    valid_json("request"),
    sqlite_autoincrement=True,
)
export_unsubscriptions = sa.Table(
    "export_unsubscriptions",
    metadata,
    sa.Column("recurring_export_id", big_integer(), primary_key=True, autoincrement=False),
    sa.Column("recipient", sa.Text, primary_key=True, comment="an address that wants no more of its mails"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.ForeignKeyConstraint(["recurring_export_id"], ["recurring_exports.id"], ondelete="CASCADE"),
)
organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC", comment="IANA name"),
    sa.Column(
        "email_enabled", sa.Boolean, nullable=False, server_default=sa.true(), comment="gu1's global_sender_email"
    ),
    sa.Column("email_balance", sa.BigInteger, comment="e-mail executions left; NULL = not billed"),
)
organization_email_domains = sa.Table(
    "organization_email_domains",
    metadata,
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("verified_at", UtcDateTime),
)
organization_email_senders = sa.Table(
    "organization_email_senders",
    metadata,
    sa.Column("id", UuidText, primary_key=True, server_default=generated_uuid()),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
)
organization_members = sa.Table(
    "organization_members",
    metadata,
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("member_id", sa.Text, primary_key=True, comment="what requested_by holds"),
    sa.Column("email", sa.Text, comment="where failures are told; NULL = nowhere"),
    sa.Column("locale", sa.Text, comment="en, es, pt; anything else = en"),
    sa.Column(
        "permissions", json_type(), nullable=False, server_default=sa.text("'[]'"), comment="such as entities:export"
    ),
    valid_json("permissions"),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", UuidText, primary_key=True, server_default=generated_uuid()),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text),
    sa.Column("key_hash", sa.Text, nullable=False, unique=True),
    sa.Column("scopes", json_type(), nullable=False, server_default=sa.text("'[]'")),
    sa.Column("member_id", sa.Text, comment="whom the key acts for: what requested_by will hold"),
    sa.Column("requests_per_hour", sa.Integer, comment="NULL = as every key; gu1's sandbox: 100"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("revoked_at", UtcDateTime),
    valid_json("scopes"),
)
export_links = sa.Table(
    "export_links",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("token_hash", sa.Text, nullable=False, unique=True, comment="SHA-256 of the token, hex"),
    sa.Column("request_id", big_integer(), sa.ForeignKey("export_requests.id", ondelete="CASCADE"), nullable=False),
    sa.Column("request_uid", UuidText, comment="of the same request: an id alone could be used again"),
    sa.Column("ordinal", sa.Integer, nullable=False, comment="which of the request's files"),
    sa.Column(
        "notification_id",
        big_integer(),
        sa.ForeignKey("export_notifications.id", ondelete="CASCADE"),
        comment="whose mail it stands in; NULL = handed out by the gateway",
    ),
    sa.Column("opened_count", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("last_opened_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Index(None, "request_id"),
    sa.Index(None, "notification_id"),
    sqlite_autoincrement=True,
)
export_webhooks = sa.Table(
    "export_webhooks",
    metadata,
    sa.Column("id", big_integer(), sa.Identity(), primary_key=True),
    sa.Column("uid", UuidText, nullable=False, server_default=generated_uuid(), unique=True),
    sa.Column("request_id", big_integer(), sa.ForeignKey("export_requests.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default=WebhookStatus.PENDING.value),
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("next_try_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("answer", sa.Text, comment="of the last try: the status code, or what went wrong"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=current_instant()),
    sa.UniqueConstraint("request_id", "event"),
    sa.Index(None, "status", "next_try_at"),
    one_of("event", WebhookEvent),
    one_of("status", WebhookStatus),
    sqlite_autoincrement=True,
)
webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False, comment="signs the organization's webhooks"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=current_instant()),
)
rate_windows = sa.Table(
    "rate_windows",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("hits", sa.Integer, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False, comment="Unix seconds"),
)
export_ticks = sa.Table(
    "export_ticks",
    metadata,
    sa.Column("sensor", sa.Text, primary_key=True),
    sa.Column("ticked_at", UtcDateTime, nullable=False, comment="export-pipeline health reads how long ago that is"),
)
