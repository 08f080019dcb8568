"""A small dataset with every column type, on either database, for tests of queries and readers."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.engine.readers import Source

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


ROWS = [person(number) for number in range(1, 61)]
ACME = [row for row in ROWS if row["organization_id"] == "acme"]


def create(url: str, rows: list[dict[str, Any]] = ROWS) -> Source:
    """Make the table and fill it; the source to read it from."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    sqlite = engine.dialect.name == "sqlite"
    kinds = (
        "id integer primary key, organization_id text, name text, score real, balance text, is_client integer, "
        "born_on text, created_at text, external_uuid text, extra text, secret text"
        if sqlite
        else "id bigint primary key, organization_id text, name text, score float8, balance numeric, "
        "is_client boolean, born_on date, created_at timestamptz, external_uuid uuid, extra jsonb, secret text"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE people ({kinds})")
        names = list(rows[0])
        values = ", ".join(
            f"CAST(:{name} AS jsonb)" if name == "extra" and not sqlite else f":{name}" for name in names
        )
        statement = sa.text(f"INSERT INTO people ({', '.join(names)}) VALUES ({values})")
        connection.execute(statement, [_stored(row, sqlite=sqlite) for row in rows])
    engine.dispose()
    return Source(url)


def _stored(row: dict[str, Any], *, sqlite: bool) -> dict[str, Any]:
    stored = {**row, "extra": None if row["extra"] is None else json.dumps(row["extra"])}
    if sqlite:
        stored["balance"] = None if row["balance"] is None else str(row["balance"])
        stored["born_on"] = None if row["born_on"] is None else row["born_on"].isoformat()
        stored["created_at"] = row["created_at"].strftime("%Y-%m-%d %H:%M:%S.%f")
    return stored
