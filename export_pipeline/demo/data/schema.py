"""The tables of the demo host application, on PostgreSQL and on SQLite.

SQLite has no types for instants, decimals, UUIDs and JSON, and the affinity of such columns would turn text into
numbers: there all of them are TEXT. Instants are ``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

metadata = MetaData()


def _text_on_sqlite(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return kind.with_variant(Text(), "sqlite")


UUID = _text_on_sqlite(postgresql.UUID(as_uuid=False))
JSON = _text_on_sqlite(postgresql.JSONB())
INSTANT = _text_on_sqlite(DateTime(timezone=True))
DAY = _text_on_sqlite(Date())
DECIMAL = _text_on_sqlite(Numeric())
# In SQLite only INTEGER makes the rowid the key.
NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def _key(kind: TypeEngine[Any]) -> Column[Any]:
    return Column("id", kind, primary_key=True, autoincrement=False)


def _organization() -> Column[Any]:
    return Column("organization_id", UUID, nullable=False)


def _texts(*names: str) -> list[Column[Any]]:
    return [Column(name, Text) for name in names]


def _instant(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, INSTANT, nullable=nullable)


contacts = Table(
    "contacts",
    metadata,
    _key(NUMBER),
    Column("contact_id", UUID, nullable=False),
    _organization(),
    *_texts("email", "first_name", "last_name", "name", "phone_number", "location", "address_line_1"),
    *_texts("address_line_2", "city", "state_province_region", "postal_code", "country"),
    Column("alternate_emails", JSON),
    *_texts("whatsapp", "line", "facebook", "unique_name", "phone_number_id", "external_id", "anonymous_id"),
    Column("custom_fields", JSON),
    Column("is_subscribed", Boolean),
    Column("score", Double),
    Column("lifetime_value", DECIMAL),
    Column("birth_date", DAY),
    _instant("created_at"),
    _instant("updated_at"),
    Index("contacts_organization_id_id", "organization_id", "id"),
)
entities = Table(
    "entities",
    metadata,
    _key(UUID),
    Column("external_id", Text),
    _organization(),
    *_texts("type", "name", "tax_id", "country_code", "nationality", "email", "phone"),
    Column("registration_date", DAY),
    Column("is_client", Boolean, nullable=False),
    Column("risk_score", Integer),
    Column("risk_factors", JSON),
    Column("status", Text, nullable=False),
    Column("kyc_verified", Boolean, nullable=False),
    Column("kyc_provider", Text),
    Column("kyc_data", JSON),
    Column("entity_data", JSON),
    Column("attributes", JSON),
    _instant("created_at"),
    _instant("updated_at"),
    _instant("deleted_at", nullable=True),
    Index("entities_organization_id_id", "organization_id", "id"),
)
contact_tokens = Table(
    "contact_tokens",
    metadata,
    _key(NUMBER),
    Column("contact_id", NUMBER, nullable=False),
    _organization(),
    Column("token", Text, nullable=False),
    _instant("created_at"),
    Index("contact_tokens_contact_id_id", "contact_id", "id"),
)
contact_emails = Table(
    "contact_emails",
    metadata,
    _key(NUMBER),
    Column("contact_id", NUMBER, nullable=False),
    _organization(),
    Column("email", Text, nullable=False),
    # The contact that had the address before it was merged into this one; its row is deleted.
    Column("merged_from", NUMBER),
    _instant("created_at"),
    Index("contact_emails_contact_id_id", "contact_id", "id"),
)
contact_lists = Table(
    "contact_lists",
    metadata,
    _key(UUID),
    _organization(),
    Column("name", Text, nullable=False),
    _instant("created_at"),
)
contact_list_members = Table(
    "contact_list_members",
    metadata,
    Column("list_id", UUID, nullable=False),
    Column("contact_id", NUMBER, nullable=False),
    _organization(),
    Index("contact_list_members_list_id_contact_id", "list_id", "contact_id", unique=True),
)
contact_field_definitions = Table(
    "contact_field_definitions",
    metadata,
    _key(UUID),
    _organization(),
    Column("name", Text, nullable=False),
    Column("field_type", Text, nullable=False),
    _instant("created_at"),
)
contact_segments = Table(
    "contact_segments",
    metadata,
    _key(UUID),
    _organization(),
    Column("name", Text, nullable=False),
    Column("filter", JSON, nullable=False),
    Column("query_dsl", Text),
    _instant("created_at"),
)
