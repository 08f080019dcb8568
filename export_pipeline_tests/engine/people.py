"""A small dataset with every column type, on either database, for tests of queries and readers.

``DATASET`` has every type; ``CONTACTS`` is the same table as segments know it, with lists and custom fields.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.model import CustomField
from export_pipeline.catalog.types import ColumnType
from export_pipeline.source.readers import Source

DATASET = parse_dataset(
    """
name: people
title: People
table: people
tenant: organization_id
key: id
created_at: created_at
columns:
  - {name: id, type: integer}
  - {name: name, type: text, aliases: [full_name]}
  - {name: score, type: float}
  - {name: balance, type: decimal}
  - {name: is_client, type: boolean}
  - {name: born_on, type: date}
  - {name: created_at, type: timestamp}
  - {name: external_uuid, type: uuid}
  - {name: extra, type: json}
  - {name: secret, type: text, filter: false}
"""
)
CONTACTS = parse_dataset(
    """
name: contacts
title: Contacts
table: people
tenant: organization_id
key: id
created_at: created_at
columns:
  - {name: id, type: integer}
  - {name: contact_id, type: uuid, source: external_uuid}
  - {name: email, type: text}
  - {name: first_name, type: text, source: name}
  - {name: alternate_emails, type: json}
  - {name: custom_fields, type: json}
  - {name: phone_number_id, type: decimal, source: balance}
  - {name: postal_code, type: integer, source: id, filter: [eq, in, is_null]}
  - {name: city, type: text, source: secret, filter: false}
  - {name: created_at, type: timestamp}
  - {name: updated_at, type: timestamp}
lists:
  table: people_on_lists
  member: person_id
  tenant: organization_id
  lists: {table: people_lists, tenant: organization_id}
custom_fields: {column: custom_fields, table: fields, tenant: organization_id}
"""
)
_FIELDS = CONTACTS.column("custom_fields")
assert _FIELDS is not None
CUSTOM_FIELDS = (
    CustomField(_FIELDS, "age", ColumnType.DECIMAL),
    CustomField(_FIELDS, "Joined", ColumnType.TIMESTAMP),
    CustomField(_FIELDS, "color", ColumnType.TEXT),
)
AGES: list[Any] = [None, 5, 2.5, "7", "12.50", "x", True, -3, [1], 100.0, 0, "", "1e5", "-", "5.", " 6", "--1", "1.2.3"]
JOINED: dict[Any, datetime | None] = {
    "2026-03-01": datetime(2026, 3, 1, tzinfo=UTC),
    "2026-03-01T12:30:00Z": datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
    "2026-03-01 12:30:00.25+02:00": datetime(2026, 3, 1, 10, 30, 0, 250000, tzinfo=UTC),
    "2026-03-01T10:30:00.250001-03": datetime(2026, 3, 1, 13, 30, 0, 250001, tzinfo=UTC),
    "2024-02-29T23:59:59": datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC),
    None: None,
    "2026-02-31": None,
    "2025-02-29": None,
    "2026-03-01T24:00:00": None,
    "2026-03-01T12:30:00.1234567": None,
    "2026-03-01T12:30:00+15:00": None,
    "2026-03-01 12:30": None,
    "03/01/2026": None,
    "now": None,
    20260301: None,
    "2026-03-01\n": None,
}
"""What stands in the field, and the instant that it is."""
COLORS: list[Any] = [None, "Red", "red", "a%b_c", "", 5, True, "o'brien", "back\\slash", "日本", "*[a]?"]
ALTERNATES: list[Any] = [
    None,
    [],
    ["ana@Example.com"],
    ["x@y.org", "o'b@example.com"],
    "x@y.org",
    {"a": "x@y.org"},
    [5, "%"],
]
EMAILS = [
    None,
    "ana@example.com",
    "bo@EXAMPLE.com",
    "c@sub.example.com",
    "no address",
    "d@y.org",
    "e@x@y.org",
    "@y.org",
]
LISTS = {"acme": [str(UUID(int=1)), str(UUID(int=2))], "other": [str(UUID(int=3))]}
NAMES = [
    None,
    "",
    "ana",
    "Ana",
    "Ána",
    "a%b_c",
    "o'brien",
    'say "hi"',
    "back\\slash",
    "%s",
    ":x",
    "$1",
    "日本",
    " ana ",
]


def person(number: int) -> dict[str, Any]:
    """Row ``number``; every value follows from it, nulls included."""
    return {
        "id": number,
        "organization_id": "acme" if number % 4 else "other",
        "name": NAMES[number % len(NAMES)],
        "score": None if number % 7 == 0 else (number - 20) / 4,
        "balance": None if number % 5 == 0 else Decimal(number - 10) / 8,
        "is_client": None if number % 6 == 0 else number % 2 == 0,
        "born_on": None if number % 8 == 0 else date(1990 + number % 5, 1 + number % 12, 1),
        "created_at": datetime(2026, 3, 1 + number % 28, number % 24, 30, number % 60, number * 1001, tzinfo=UTC),
        "external_uuid": None if number % 9 == 0 else str(UUID(int=number)),
        "extra": None if number % 3 == 0 else {"n": number, "text": "ä"},
        "secret": "s",
    }


def contact(number: int) -> dict[str, Any]:
    """Row ``number`` with what ``CONTACTS`` has beside ``DATASET``."""
    return {
        **person(number),
        "email": EMAILS[number % len(EMAILS)],
        "alternate_emails": ALTERNATES[number % len(ALTERNATES)],
        "custom_fields": None if number % 20 == 0 else _custom_fields(number),
        "updated_at": datetime(2026, 3, 14, 12, number, tzinfo=UTC) if number % 10 else None,
    }


def _custom_fields(number: int) -> dict[str, Any]:
    joined = list(JOINED)[number % len(JOINED)]
    return {"age": AGES[number % len(AGES)], "Joined": joined, "color": COLORS[number % len(COLORS)], "more": [1]}


def examples(source: Source, number: int) -> int:
    """How many examples a property is tried with: ``number`` in CI, which sets ``FUZZ_EXAMPLES``, else a fifth.

    Fewer through Python's drivers, which take longer to read a row.
    """
    drawn = number if "FUZZ_EXAMPLES" in os.environ else number // 5
    return drawn if source.backend in ("postgresql", "sqlite") else max(4, drawn // 6)


def lists_of(row: dict[str, Any]) -> list[str]:
    """The lists of its organization that a row is on."""
    return [each for at, each in enumerate(LISTS[row["organization_id"]]) if row["id"] % (at + 2) == 0]


_COLUMNS = {
    "postgresql": "id bigint primary key, organization_id text, name text, score float8, balance numeric(20, 6), "
    "is_client boolean, born_on date, created_at timestamptz, external_uuid uuid, extra jsonb, secret text, "
    "email text, alternate_emails jsonb, custom_fields jsonb, updated_at timestamptz",
    "sqlite": "id integer primary key, organization_id text, name text, score real, balance text, is_client integer, "
    "born_on text, created_at text, external_uuid text, extra text, secret text, email text, alternate_emails text, "
    "custom_fields text, updated_at text",
    "mariadb": "id bigint primary key, organization_id varchar(50), name varchar(50), score double, "
    "balance decimal(20, 6), is_client boolean, born_on date, created_at datetime(6), external_uuid uuid, extra json, "
    "secret text, email varchar(100) character set latin1, alternate_emails json, custom_fields json, "
    "updated_at timestamp(6) null",
}
_JSON = ("extra", "alternate_emails", "custom_fields")
ROWS = [person(number) for number in range(1, 61)]
ACME = [row for row in ROWS if row["organization_id"] == "acme"]
CONTACT_ROWS = [contact(row["id"]) for row in ROWS]
ACME_CONTACTS = [row for row in CONTACT_ROWS if row["organization_id"] == "acme"]


def create(url: str, rows: list[dict[str, Any]] = CONTACT_ROWS) -> Source:
    """Make the table and fill it; the source to read it from."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    postgresql = engine.dialect.name == "postgresql"
    sqlite, mariadb = engine.dialect.name == "sqlite", engine.dialect.name == "mariadb"
    with engine.begin() as connection:
        if mariadb:
            connection.exec_driver_sql("SET time_zone = '+00:00'")
        connection.exec_driver_sql(f"CREATE TABLE people ({_COLUMNS[engine.dialect.name]})")
        names = list(rows[0])
        values = ", ".join(f"CAST(:{name} AS jsonb)" if name in _JSON and postgresql else f":{name}" for name in names)
        statement = sa.text(f"INSERT INTO people ({', '.join(names)}) VALUES ({values})")
        connection.execute(statement, [_stored(row, sqlite=sqlite) for row in rows])
        _create_lists(connection, rows, "text" if sqlite else "uuid")
    engine.dispose()
    return Source(url)


def _create_lists(connection: sa.Connection, rows: list[dict[str, Any]], kind: str) -> None:
    connection.exec_driver_sql(f"CREATE TABLE people_on_lists (list_id {kind}, person_id bigint, organization_id text)")
    members = [(each, row["id"], row["organization_id"]) for row in rows for each in lists_of(row)]
    # As it must not be: the other organization's list has members of acme, by its own table.
    members += [(LISTS["other"][0], row["id"], "other") for row in rows if row["organization_id"] == "acme"]
    given = [dict(zip(("list_id", "person_id", "organization_id"), member, strict=True)) for member in members]
    statement = f"INSERT INTO people_on_lists VALUES (CAST(:list_id AS {kind}), :person_id, :organization_id)"
    connection.execute(sa.text(statement), given)


def _stored(row: dict[str, Any], *, sqlite: bool) -> dict[str, Any]:
    stored = {
        **row,
        **{name: None if row[name] is None else json.dumps(row[name], ensure_ascii=False) for name in _JSON},
    }
    if sqlite:
        stored["balance"] = None if row["balance"] is None else str(row["balance"])
        stored["born_on"] = None if row["born_on"] is None else row["born_on"].isoformat()
        stored["created_at"] = row["created_at"].strftime("%Y-%m-%d %H:%M:%S.%f")
        # Another application's way of writing the same instants.
        stored["updated_at"] = None if row["updated_at"] is None else row["updated_at"].isoformat()
    return stored
