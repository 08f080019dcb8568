"""The model of a dataset: its table, its columns, and what a request may do with them.

What belongs here: the shape of a declaration and the checks that need nothing but itself.
What does not: reading YAML (loader), SQL (engine).
"""

from __future__ import annotations

from enum import StrEnum


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
