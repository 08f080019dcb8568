"""The tables of the contract with applications.

An application writes the first group of columns of ``export_requests`` (the input); only the pipeline writes the second
(the state). All input columns except four have a database-side default. No id is used twice, not on SQLite either
(``sqlite_autoincrement``): links, mails and runs keep ids longer than rows live.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from export_pipeline.database import enums
from export_pipeline.database.types import (
    UtcDateTime,
    UuidText,
    big_integer,
    boolean,
    current_instant,
    generated_uuid,
    json_type,
    uuid_text,
    wall_clock,
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


_ASCII = "length(CAST({0} AS BLOB)) = length({0})"  # length() counts up to the first NUL
_READABLE = "{0} >= '0001' AND " + _ASCII  # Python has no year 0
_FRACTION = "(length({0}) < 20 OR substr({0}, 20) GLOB '.[0-9]*' AND substr({0}, 21) NOT GLOB '*[^0-9]*')"
_SECONDS = "datetime(substr({0}, 1, 19), '+0 days')"
_DATE_OR_TIME = r"{0} || ' 00:00:00', replace({0}, 'T', ' ') || '\:00', substr(replace({0}, 'T', ' '), 1, 19)"
_UUID = "length(replace({0}, '-', '')) = 32 AND replace({0}, '-', '') NOT GLOB '*[^0-9a-f]*'"
_SQLITE_CHECKS: list[tuple[type[TypeEngine[Any]], str, list[str]]] = [
    (UtcDateTime, "instant", [f"{_SECONDS} IS substr({{0}}, 1, 19)", _READABLE, _FRACTION]),
    (sa.DateTime, "date_time", [f"coalesce({_SECONDS}, '') IN ({_DATE_OR_TIME})", _READABLE, _FRACTION]),
    (sa.Boolean, "boolean", ["{0} IN (0, 1)"]),
    (sa.JSON, "json", ["json_valid({0})"]),
    (UuidText, "uuid", ["{0} GLOB '????????-????-????-????-????????????'", _UUID, _ASCII]),
]
"""What the types of PostgreSQL refuse, and what Python could not read. Instants are compared as text, so they have one
form (``UtcDateTime``). ``+0 days`` because ``datetime`` leaves February 31 as it is without a modifier."""


def _table(name: str, *parts: sa.schema.SchemaItem) -> sa.Table:
    """A table that refuses malformed values on SQLite as on PostgreSQL, and gives no id twice."""
    table = sa.Table(name, metadata, *parts, sqlite_strict=True, sqlite_autoincrement=True)
    for column in table.columns:
        for kind, check, conditions in _SQLITE_CHECKS:
            if isinstance(column.type, kind):
                text = f"{column.name} IS NULL OR ({' AND '.join(conditions).format(column.name)})"
                constraint = sa.CheckConstraint(text, name=f"{column.name}_{check}")
                table.append_constraint(constraint.ddl_if(dialect="sqlite"))
    return table


def _id(**options: Any) -> sa.Column[int]:
    return sa.Column("id", big_integer(), sa.Identity(), primary_key=True, **options)


def _parent(name: str, key: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, big_integer(), sa.ForeignKey(key, ondelete="CASCADE"), **options)


def _now(name: str) -> sa.Column[datetime]:
    return sa.Column(name, UtcDateTime, nullable=False, server_default=current_instant())


def _number(name: str, default: int = 0, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=sa.text(str(default)), **options)


def _json(name: str, default: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, json_type(), nullable=False, server_default=sa.text(f"'{default}'"), **options)


def _uuid(name: str, **options: Any) -> sa.Column[str]:
    return sa.Column(name, uuid_text(), nullable=False, server_default=generated_uuid(), **options)


def _choice(name: str, default: StrEnum, **options: Any) -> sa.Column[str]:
    """A column that holds a value of the default's enum."""
    return sa.Column(
        name, sa.Text, _one_of(name, type(default)), nullable=False, server_default=default.value, **options
    )


def _one_of(name: str, values: type[StrEnum]) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return sa.CheckConstraint(f"{name} IN ({listed})", name=f"{name}_known")


def _part_index(name: str, column: str, *, where: str) -> sa.Index:
    """An index on the few rows that a sensor looks for, so that its cost does not grow with history."""
    return sa.Index(name, column, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


DEFAULT_MAX_FILE_SIZE_MB = 5000
"""The default of ``max_file_size_mb`` (SendGrid, ``max_file_size``)."""
export_requests = _table(
    "export_requests",
    _id(comment="Cometly's export_id"),
    _uuid("uid", unique=True, comment="gu1's jobId, SendGrid's id"),
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("requested_by", sa.Text, comment="the requester's own id, not an address"),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False, comment="csv, xlsx, json, ndjson, parquet"),
    sa.Column("compression", sa.Text, comment="none, gzip; NULL = gzip for ndjson, none otherwise"),
    sa.Column("layout", sa.Text, nullable=False, server_default="default", comment="named header set of the dataset"),
    sa.Column("columns", json_type(), comment="column names in order; NULL or [] = all"),
    _json("filters", "{}"),
    sa.Column("list_ids", json_type()),
    sa.Column("segment_ids", json_type()),
    sa.Column("start_date", wall_clock(), comment="wall clock in the organization's time zone, inclusive"),
    sa.Column("end_date", wall_clock(), comment="wall clock in the organization's time zone, inclusive to the second"),
    sa.Column("window_from", UtcDateTime, comment="instant, inclusive; instead of start_date and end_date"),
    sa.Column("window_before", UtcDateTime, comment="instant, exclusive"),
    sa.Column("include", json_type(), comment="child lists to add"),
    _json("options", "{}", comment="format options, see docs/requests.md"),
    _number("max_file_size_mb", DEFAULT_MAX_FILE_SIZE_MB, comment="1 MB = 1,000,000 bytes"),
    sa.Column("notify_email", boolean(), nullable=False, server_default=sa.true()),
    sa.Column("recipient_emails", json_type(), nullable=False, comment="JSON array of addresses"),
    _choice("empty_result", enums.EmptyResult.SEND, comment="skip: no mails are sent if no row matched"),
    sa.Column("email_locale", sa.Text, comment="en, es, pt; anything else = en"),
    sa.Column("from_email", sa.Text),
    sa.Column("from_sender_id", sa.Text),
    sa.Column("webhook_url", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    _number("priority", comment="higher goes first within an organization"),
    sa.Column("recurring_export_id", big_integer()),
    sa.Column("scheduled_for", UtcDateTime),
    sa.Column("cancel_requested_at", UtcDateTime, comment="set it to cancel"),
    _now("created_at"),
    _choice("status", enums.RequestStatus.QUEUED),
    sa.Column("stage", sa.Text, _one_of("stage", enums.Stage)),
    _number("attempt", comment="runs used up so far"),
    _number("uncounted_attempts", comment="of attempt, those that EXPORT_MAX_ATTEMPTS does not count"),
    sa.Column("claimed_at", UtcDateTime, comment="when a run was requested from Dagster"),
    sa.Column("claim_id", uuid_text(), comment="id of the claim; its run has it as a tag"),
    sa.Column("not_before", UtcDateTime, comment="not claimed before this instant"),
    sa.Column("postponed_at", UtcDateTime, comment="when it was last postponed because something did not answer"),
    _number("postponements"),
    sa.Column("run_id", sa.Text, comment="the Dagster run that owns the row"),
    sa.Column("rows_done", big_integer(), nullable=False, server_default="0", comment="rows done in this stage"),
    sa.Column("rows_total", big_integer(), comment="rows of the snapshot"),
    sa.Column("row_count", big_integer(), comment="rows delivered"),
    sa.Column("byte_count", big_integer(), comment="bytes delivered"),
    sa.Column("file_count", sa.Integer, comment="files delivered"),
    sa.Column("snapshot_at", UtcDateTime, comment="the instant of the snapshot"),
    sa.Column("manifest_key", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("heartbeat_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),
    sa.Column("completed_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, comment="when the files are deleted"),
    _now("updated_at"),
    sa.UniqueConstraint("organization_id", "idempotency_key"),
    sa.Index(None, "status", "organization_id", "id"),
    sa.Index(None, "recurring_export_id"),
    _part_index("ix_export_requests_postponed_at", "postponed_at", where="postponed_at IS NOT NULL"),
    _part_index("ix_export_requests_expires_at", "expires_at", where="status = 'completed'"),
)
export_files = _table(
    "export_files",
    _id(),
    _parent("request_id", "export_requests.id", nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False, comment="place in the row order, from 1"),
    sa.Column("key", sa.Text, nullable=False, comment="under EXPORT_STORE_URL"),
    sa.Column("name", sa.Text, nullable=False, comment="file name for people"),
    sa.Column("bytes", big_integer(), nullable=False),
    sa.Column("rows", big_integer(), nullable=False),
    sa.Column("sha256", sa.Text, nullable=False, comment="hex, of the delivered bytes"),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("content_encoding", sa.Text),
    _now("created_at"),
    sa.Column("deleted_at", UtcDateTime),
    sa.UniqueConstraint("request_id", "ordinal"),
    _part_index("ix_export_files_kept", "request_id", where="deleted_at IS NULL"),
)
export_notifications = _table(
    "export_notifications",
    _id(),
    _parent("request_id", "export_requests.id", nullable=False),
    sa.Column("recipient", sa.Text, nullable=False),
    _choice("kind", enums.NotificationKind.READY),
    _choice("status", enums.NotificationStatus.PENDING),
    sa.Column("reason", sa.Text, comment="the provider's code, no address"),
    _number("tries"),
    _now("created_at"),
    _now("updated_at"),
    sa.UniqueConstraint("request_id", "recipient", "kind"),
    _part_index("ix_export_notifications_unfinished", "request_id", where="status IN ('pending', 'sending')"),
)
email_charges = _table(
    "email_charges",
    _id(),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("request_uid", uuid_text(), nullable=False, comment="no foreign key, because charges outlive the row"),
    sa.Column("recipient", sa.Text, nullable=False),
    _choice("status", enums.ChargeStatus.RESERVED),
    _now("created_at"),
    _now("updated_at"),
    sa.UniqueConstraint("request_uid", "recipient"),
)
export_events = _table(
    "export_events",
    _id(),
    sa.Column(
        "request_uid", uuid_text(), nullable=False, index=True, comment="no foreign key: the trail outlives rows"
    ),
    sa.Column("organization_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, _one_of("kind", enums.EventKind), nullable=False),
    sa.Column("actor", sa.Text, comment="the requester's id, or the pipeline"),
    sa.Column("detail", json_type()),
    _now("created_at"),
)
LONGEST_LAG_SECONDS = 7 * 24 * 3600
recurring_exports = _table(
    "recurring_exports",
    _id(),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("owner", sa.Text),
    sa.Column("cron", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("request", json_type(), nullable=False, comment="the input columns of each request"),
    _choice("window_kind", enums.WindowKind.ALL),
    # For rows that commit late.
    _number("lag_seconds", 60, comment="seconds from a fire time to the insert of a request with a window"),
    _choice("overlap_policy", enums.OverlapPolicy.SKIP),
    _choice("catch_up_policy", enums.CatchUpPolicy.LATEST),
    _number("max_failures", 5, comment="failures in a row that pause it"),
    _number("failures_in_a_row"),
    sa.Column("paused_at", UtcDateTime),
    sa.Column("pause_reason", sa.Text),
    sa.Column("paused_over", big_integer(), comment="the failed request that paused it; its mail informs the owner"),
    sa.Column("last_fired_for", UtcDateTime),
    sa.Column("counted_by", sa.Text, comment="cron and time zone in which last_fired_for was computed"),
    sa.Column("high_water_mark", UtcDateTime),
    _now("created_at"),
    _now("updated_at"),
    sa.CheckConstraint(f"lag_seconds BETWEEN 0 AND {LONGEST_LAG_SECONDS}", name="lag_seconds_in_range"),
    sa.CheckConstraint("max_failures >= 1", name="max_failures_positive"),
)
export_unsubscriptions = _table(
    "export_unsubscriptions",
    sa.Column("recurring_export_id", big_integer(), primary_key=True, autoincrement=False),
    sa.Column("recipient", sa.Text, primary_key=True, comment="an address that gets no more of its mails"),
    _now("created_at"),
    sa.ForeignKeyConstraint(["recurring_export_id"], ["recurring_exports.id"], ondelete="CASCADE"),
)
organizations = _table(
    "organizations",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("time_zone", sa.Text, nullable=False, server_default="UTC", comment="IANA name"),
    sa.Column(
        "email_enabled", boolean(), nullable=False, server_default=sa.true(), comment="gu1's global_sender_email"
    ),
    sa.Column("email_balance", big_integer(), comment="e-mail executions left; NULL = not billed"),
)
organization_email_domains = _table(
    "organization_email_domains",
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("verified_at", UtcDateTime),
)
organization_email_senders = _table(
    "organization_email_senders",
    _uuid("id", primary_key=True),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
)
organization_members = _table(
    "organization_members",
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("member_id", sa.Text, primary_key=True, comment="the value of requested_by"),
    sa.Column("email", sa.Text, comment="for mails about failures; NULL = none"),
    sa.Column("locale", sa.Text, comment="en, es, pt; anything else = en"),
    _json("permissions", "[]", comment="such as entities:export"),
)
api_keys = _table(
    "api_keys",
    _uuid("id", primary_key=True),
    sa.Column("organization_id", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text),
    sa.Column("key_hash", sa.Text, nullable=False, unique=True),
    _json("scopes", "[]"),
    sa.Column("member_id", sa.Text, comment="the member that the key acts for: requested_by of its requests"),
    sa.Column("requests_per_hour", sa.Integer, comment="NULL = the default limit; gu1's sandbox: 100"),
    _now("created_at"),
    sa.Column("revoked_at", UtcDateTime),
)
export_links = _table(
    "export_links",
    _id(),
    sa.Column("token_hash", sa.Text, nullable=False, unique=True, comment="SHA-256 of the token, hex"),
    _parent("request_id", "export_requests.id", nullable=False),
    sa.Column("request_uid", uuid_text(), comment="of the same request, because an id could be used again"),
    sa.Column("ordinal", sa.Integer, nullable=False, comment="which of the request's files"),
    _parent("notification_id", "export_notifications.id", comment="of the mail it is in; NULL = issued by the gateway"),
    _number("opened_count"),
    sa.Column("last_opened_at", UtcDateTime),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
    _now("created_at"),
    sa.Index(None, "request_id"),
    sa.Index(None, "notification_id"),
)
export_webhooks = _table(
    "export_webhooks",
    _id(),
    _uuid("uid", unique=True),
    _parent("request_id", "export_requests.id", nullable=False),
    sa.Column("event", sa.Text, _one_of("event", enums.WebhookEvent), nullable=False),
    _choice("status", enums.WebhookStatus.PENDING),
    _number("tries"),
    _now("next_try_at"),
    sa.Column("answer", sa.Text, comment="of the last try: the status code, or what went wrong"),
    _now("created_at"),
    _now("updated_at"),
    sa.UniqueConstraint("request_id", "event"),
    sa.Index(None, "status", "next_try_at"),
)
webhook_secrets = _table(
    "webhook_secrets",
    sa.Column("organization_id", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False, comment="signs the organization's webhooks"),
    _now("created_at"),
)
rate_windows = _table(
    "rate_windows",
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("hits", sa.Integer, nullable=False),
    sa.Column("ends_at", sa.Double().with_variant(sa.REAL(), "sqlite"), nullable=False, comment="Unix seconds"),
)
export_ticks = _table(
    "export_ticks",
    sa.Column("sensor", sa.Text, primary_key=True),
    sa.Column("ticked_at", UtcDateTime, nullable=False, comment="export-pipeline health reads how long ago that is"),
)


@sa.event.listens_for(rate_windows, "after_create")
def _set_unlogged(table: sa.Table, connection: sa.Connection, **_options: object) -> None:
    # Written at every HTTP request, and disposable: no write-ahead log, no wait for the disk.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ALTER TABLE {table.name} SET UNLOGGED")
