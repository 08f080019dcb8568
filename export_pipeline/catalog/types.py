"""The words of a declaration: column types, filter operators, and what each allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, Protocol

from pydantic import Field, StringConstraints

Locale = Literal["en", "es", "pt"]
NameStyle = Literal["descriptive", "uuid"]
"""What delivered files are called: dataset, day and uid, or the uid alone."""


class ColumnType(StrEnum):
    """The types a dataset's column can have, independent of any database."""

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
    """What a filter may say about one column."""

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


_PARTS_OF_TEXT = (FilterOperator.CONTAINS, FilterOperator.STARTS_WITH)
_ORDERED = tuple(operator for operator in FilterOperator if operator not in _PARTS_OF_TEXT)
OPERATORS_BY_TYPE: Mapping[ColumnType, tuple[FilterOperator, ...]] = {
    ColumnType.TEXT: (*_ORDERED, *_PARTS_OF_TEXT),
    ColumnType.INTEGER: _ORDERED,
    ColumnType.FLOAT: _ORDERED,
    ColumnType.DECIMAL: _ORDERED,
    ColumnType.TIMESTAMP: _ORDERED,
    ColumnType.DATE: _ORDERED,
    ColumnType.BOOLEAN: (FilterOperator.EQ, FilterOperator.NE, FilterOperator.IS_NULL),
    ColumnType.UUID: (
        FilterOperator.EQ,
        FilterOperator.NE,
        FilterOperator.IN,
        FilterOperator.NIN,
        FilterOperator.IS_NULL,
    ),
    ColumnType.JSON: (FilterOperator.CONTAINS, FilterOperator.IS_NULL),
}
"""What ``filter: true`` allows."""
IdentityType = Literal[ColumnType.TEXT, ColumnType.INTEGER, ColumnType.UUID]


class Selected(Protocol):
    """What can be read for a row: a column, a custom field, or a child list."""

    @property
    def name(self) -> str:
        """Its name in staged rows."""
        ...

    @property
    def type(self) -> ColumnType:
        """What its values are."""
        ...

    @property
    def source(self) -> str:
        """What to call it when the data is wrong."""
        ...


OutputOrigin = Literal["column", "custom_field", "child"]


@dataclass(frozen=True)
class OutputColumn:
    """One column of the files: what it is read from, what its header says, its type."""

    name: str
    header: str
    type: ColumnType
    origin: OutputOrigin = "column"


# What names in a declaration look like, and how they may be spelled in a request.


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
    """A snake_case name as it may be written: itself, and in camelCase if that differs."""
    first, *rest = name.split("_")
    camel = first + "".join(part.capitalize() for part in rest)
    return (name,) if camel == name else (name, camel)


# The rules of a request's files: format, compression, options, size.


Format = Literal["csv", "xlsx", "json", "ndjson", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "xlsx", "json", "ndjson", "parquet")
TABLES: tuple[Format, ...] = ("csv", "xlsx")
"""The formats that people open as a table; a layout may write them differently."""
Compression = Literal["none", "gzip"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "gzip")
