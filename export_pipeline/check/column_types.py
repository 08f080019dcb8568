"""Which types of a database a declared type may be read from.

A value is converted on the way to a file. Some conversions change it: an integer that is declared a timestamp becomes
an instant of 1970, money loses its digits. The catalog cannot know; the database's own type says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from export_pipeline.catalog.types import ColumnType
from export_pipeline.check.findings import State
from export_pipeline.engine.mariadb import BACKENDS as MARIADB

_FAMILIES: tuple[tuple[str, tuple[type[TypeEngine[Any]], ...]], ...] = (
    ("boolean", (sa.Boolean,)),
    ("integer", (sa.Integer, mysql.YEAR)),
    ("float", (sa.Float,)),
    ("decimal", (sa.Numeric,)),
    ("timestamp", (sa.DateTime,)),
    ("date", (sa.Date,)),
    ("time", (sa.Time,)),
    ("interval", (sa.Interval, postgresql.INTERVAL)),
    ("uuid", (sa.Uuid,)),
    ("json", (sa.JSON,)),
    ("array", (sa.ARRAY,)),
    ("money", (postgresql.MONEY,)),
    ("oid", (postgresql.OID,)),
    ("bits", (postgresql.BIT, mysql.BIT)),
    ("bytes", (sa.LargeBinary, sa.BINARY, sa.VARBINARY)),
    ("text", (sa.String,)),
)
_FITTING: Mapping[ColumnType, frozenset[str]] = {
    ColumnType.INTEGER: frozenset({"integer"}),
    ColumnType.FLOAT: frozenset({"float", "integer", "decimal"}),
    ColumnType.DECIMAL: frozenset({"decimal", "integer"}),
    ColumnType.BOOLEAN: frozenset({"boolean"}),
    ColumnType.TIMESTAMP: frozenset({"timestamp"}),
    ColumnType.DATE: frozenset({"date"}),
    ColumnType.UUID: frozenset({"uuid", "text"}),
    ColumnType.JSON: frozenset({"json", "text"}),
}
_DOUBTFUL: Mapping[tuple[ColumnType, str], str] = {
    (ColumnType.INTEGER, "decimal"): "a value with a fraction fails the export; declare decimal",
    (ColumnType.INTEGER, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.FLOAT, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.DECIMAL, "text"): "text that is no number fails the export, and filters may; cast it in a view",
    (ColumnType.DECIMAL, "float"): "its digits are those of a binary number; declare float",
    (ColumnType.BOOLEAN, "integer"): "values other than 0 and 1 fail the export, and filters may",
    (ColumnType.TIMESTAMP, "date"): "it is exported as midnight in UTC; declare date",
    (ColumnType.TIMESTAMP, "text"): "text that is no time fails the export, and filters may; cast it in a view",
    (ColumnType.DATE, "text"): "text that is no date fails the export, and filters may; cast it in a view",
}
_ON_MARIADB: Mapping[tuple[ColumnType, str], str] = {
    (ColumnType.DATE, "timestamp"): "a value with a time fails the export; cast it in a view",
    (ColumnType.TEXT, "bytes"): "bytes that are not UTF-8 fail the export; use HEX(column) in a view",
}
_ADVICE = {
    "money": "Cast it to numeric in a view, and declare decimal",
    "oid": "Cast it to bigint in a view",
    "array": "Use to_jsonb(column) in a view",
    "bytes": "Write it as text in a view: encode(column, 'hex') on PostgreSQL, HEX(column) or BIN_TO_UUID(column)",
    "bits": "Cast it to an integer in a view",
}
_NEVER_ON_SQLITE: Mapping[str, frozenset[ColumnType]] = {
    "text": frozenset({ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.BOOLEAN}),
    "integer": frozenset({ColumnType.TIMESTAMP, ColumnType.DATE, ColumnType.UUID}),
    "float": frozenset({ColumnType.TIMESTAMP, ColumnType.DATE, ColumnType.UUID, ColumnType.BOOLEAN}),
    "bytes": frozenset(ColumnType),
}
"""A column of SQLite holds values of any type; these are what its affinity turns into something else."""


def family_of(found: TypeEngine[Any]) -> str:
    """What kind of type it is, whatever the database calls it; ``other`` for one that has no kind here."""
    if isinstance(found, postgresql.DOMAIN):
        return family_of(found.data_type)
    return next((family for family, types in _FAMILIES if isinstance(found, types)), "other")


def judge(declared: ColumnType, found: TypeEngine[Any], backend: str) -> tuple[State, str]:
    """Whether a declared type can be read from a column of the database's type, and what to do if not."""
    family, name = family_of(found), _name(found)
    told = f"is {name} in the database and {declared} in the catalog"
    if backend == "sqlite":
        if declared in _NEVER_ON_SQLITE.get(family, ()):
            return State.WRONG, f"{told}. {_ADVICE.get(family, 'Correct the type in the catalog')}."
        return State.OK, ""
    if _fits(declared, family, backend):
        return State.OK, ""
    doubt = _DOUBTFUL.get((declared, family)) or (_ON_MARIADB.get((declared, family)) if backend in MARIADB else None)
    if doubt is not None:
        return State.WARNING, f"{told}: {doubt}."
    advice = _ADVICE.get(family, "Correct the type in the catalog, or cast it in a view")
    # What other databases' drivers make of their types was not tried.
    known = backend == "postgresql" or backend in MARIADB
    return State.WRONG if known else State.WARNING, f"{told}. {advice}."


def _fits(declared: ColumnType, family: str, backend: str) -> bool:
    if declared is ColumnType.TEXT:
        # MariaDB hands bytes over as they are; PostgreSQL writes them as text.
        return family not in ("bytes", "bits") or backend not in MARIADB
    if declared is ColumnType.BOOLEAN and family == "integer" and backend in MARIADB:
        return True  # it has no other boolean
    return family in _FITTING[declared]


def _name(found: TypeEngine[Any]) -> str:
    return "of a type of its own" if isinstance(found, sa.types.NullType) else str(found).lower()
