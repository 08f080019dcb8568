"""The tables of the demo host application, on PostgreSQL and on SQLite.

SQLite has no types for instants, decimals, UUIDs and JSON, and the affinity of such columns would turn text into
numbers: there all of them are TEXT. Instants are ``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

metadata = sa.MetaData()


def _text_on_sqlite(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return kind.with_variant(sa.Text(), "sqlite")


UUID = _text_on_sqlite(postgresql.UUID(as_uuid=False))
JSON = _text_on_sqlite(postgresql.JSONB())
INSTANT = _text_on_sqlite(sa.DateTime(timezone=True))
DAY = _text_on_sqlite(sa.Date())
DECIMAL = _text_on_sqlite(sa.Numeric())
# In SQLite only INTEGER makes the rowid the key.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT, BOOLEAN = sa.Text(), sa.Boolean()


def _key(kind: TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column("id", kind, primary_key=True, autoincrement=False)


def _columns(kind: TypeEngine[Any], *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def _optional(kind: TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return _columns(kind, *names, nullable=True)


contacts = sa.Table(
    "contacts",
    metadata,
    _key(NUMBER),
    *_columns(UUID, "contact_id", "organization_id"),
    *_optional(TEXT, "email", "first_name", "last_name", "name", "phone_number", "location", "address_line_1"),
    *_optional(TEXT, "address_line_2", "city", "state_province_region", "postal_code", "country"),
    *_optional(JSON, "alternate_emails"),
    *_optional(TEXT, "whatsapp", "line", "facebook", "unique_name", "phone_number_id", "external_id", "anonymous_id"),
    *_optional(JSON, "custom_fields"),
    *_optional(BOOLEAN, "is_subscribed"),
    *_optional(sa.Double(), "score"),
    *_optional(DECIMAL, "lifetime_value"),
    *_optional(DAY, "birth_date"),
    *_columns(INSTANT, "created_at", "updated_at"),
    sa.Index("contacts_organization_id_id", "organization_id", "id"),
)
entities = sa.Table(
    "entities",
    metadata,
    _key(UUID),
    *_optional(TEXT, "external_id"),
    *_columns(UUID, "organization_id"),
    *_optional(TEXT, "type", "name", "tax_id", "country_code", "nationality", "email", "phone"),
    *_optional(DAY, "registration_date"),
    *_columns(BOOLEAN, "is_client"),
    *_optional(sa.Integer(), "risk_score"),
    *_optional(JSON, "risk_factors"),
    *_columns(TEXT, "status"),
    *_columns(BOOLEAN, "kyc_verified"),
    *_optional(TEXT, "kyc_provider"),
    *_optional(JSON, "kyc_data", "entity_data", "attributes"),
    *_columns(INSTANT, "created_at", "updated_at"),
    *_optional(INSTANT, "deleted_at"),
    sa.Index("entities_organization_id_id", "organization_id", "id"),
)
contact_list_members = sa.Table(
    "contact_list_members",
    metadata,
    *_columns(UUID, "list_id"),
    *_columns(NUMBER, "contact_id"),
    *_columns(UUID, "organization_id"),
    sa.Index("contact_list_members_list_id_contact_id", "list_id", "contact_id", unique=True),
)


def _of_contacts(name: str, *columns: sa.Column[Any]) -> sa.Table:
    owner = [*_columns(NUMBER, "contact_id"), *_columns(UUID, "organization_id")]
    index = sa.Index(f"{name}_contact_id_id", "contact_id", "id")
    return sa.Table(name, metadata, _key(NUMBER), *owner, *columns, *_columns(INSTANT, "created_at"), index)


def _of_every_organization(name: str, *columns: sa.Column[Any]) -> sa.Table:
    made_at = _columns(INSTANT, "created_at")
    return sa.Table(name, metadata, _key(UUID), *_columns(UUID, "organization_id"), *columns, *made_at)


contact_tokens = _of_contacts("contact_tokens", *_columns(TEXT, "token"))
# `merged_from`: the contact that had the address before it was merged into this one; its row is deleted.
contact_emails = _of_contacts("contact_emails", *_columns(TEXT, "email"), *_optional(NUMBER, "merged_from"))
contact_lists = _of_every_organization("contact_lists", *_columns(TEXT, "name"))
contact_field_definitions = _of_every_organization("contact_field_definitions", *_columns(TEXT, "name", "field_type"))
contact_segments = _of_every_organization(
    "contact_segments", *_columns(TEXT, "name"), *_columns(JSON, "filter"), *_optional(TEXT, "query_dsl")
)
