"""The vocabulary of dataset declarations: column types, filter operators, formats, and valid names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints

Locale = Literal["en", "es", "pt"]
NameStyle = Literal["descriptive", "uuid"]
"""File names: dataset, day and uid, or only the uid."""
Format = Literal["csv", "xlsx", "json", "ndjson", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
TABLES: tuple[Format, ...] = ("csv", "xlsx")
"""The formats that people open as a table; a layout may write them differently."""
Compression = Literal["none", "gzip"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


class ColumnType(StrEnum):
    """The types of a dataset's columns, independent of any database."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    DATE = "date"
    UUID = "uuid"
    JSON = "json"


class FilterOperator(StrEnum):
    """The operators of filters."""

    EQ = "eq"
    NE = "ne"
    IN = "in"
    NIN = "nin"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    CONTAINS = "contains"
    STARTS_WITH = "starts_with"
    IS_NULL = "is_null"
    BETWEEN = "between"


IdentityType = Literal[ColumnType.TEXT, ColumnType.INTEGER, ColumnType.UUID]
_EQUALITY = (FilterOperator.EQ, FilterOperator.NE)
_TEXT_ONLY = (FilterOperator.CONTAINS, FilterOperator.STARTS_WITH)
_ORDERED = tuple(operator for operator in FilterOperator if operator not in _TEXT_ONLY)
OPERATORS_BY_TYPE: Mapping[ColumnType, tuple[FilterOperator, ...]] = {
    **dict.fromkeys(ColumnType, _ORDERED),
    ColumnType.TEXT: (*_ORDERED, *_TEXT_ONLY),
    ColumnType.BOOLEAN: (*_EQUALITY, FilterOperator.IS_NULL),
    ColumnType.UUID: (*_EQUALITY, FilterOperator.IN, FilterOperator.NIN, FilterOperator.IS_NULL),
    ColumnType.JSON: (FilterOperator.CONTAINS, FilterOperator.IS_NULL),
}
"""The operators that ``filter: true`` allows."""


@dataclass(frozen=True)
class OutputColumn:
    """One column of the files: its name in the staged rows, its header and its type."""

    name: str
    header: str
    type: ColumnType


_SNAKE_CASE = r"^[a-z][a-z0-9_]{0,62}$"
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_$]{0,62}$"
_TABLE = r"^([A-Za-z_][A-Za-z0-9_$]{0,62}\.)?[A-Za-z_][A-Za-z0-9_$]{0,62}$"
PATTERN_HINTS: Mapping[str, str] = {
    _SNAKE_CASE: "snake_case: a lower-case letter, then lower-case letters, digits and _ (at most 63)",
    _IDENTIFIER: "a database column: a letter or _, then letters, digits, _ and $ (at most 63)",
    _TABLE: "a database table or view: name or schema.name, of letters, digits, _ and $",
}
"""What each pattern means, for error messages."""
Name = Annotated[str, Field(pattern=_SNAKE_CASE)]
DatabaseColumn = Annotated[str, Field(pattern=_IDENTIFIER)]
DatabaseTable = Annotated[str, Field(pattern=_TABLE)]
Header = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


def spellings(name: str) -> tuple[str, ...]:
    """The spellings of a snake_case name that requests may use: the name, and its camelCase if that differs."""
    first, *rest = name.split("_")
    camel = first + "".join(part.capitalize() for part in rest)
    return (name,) if camel == name else (name, camel)
