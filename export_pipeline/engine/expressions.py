"""Expressions that several databases share: bound values, JSON that is sound.

What belongs here: what is said alike wherever it is said. What does not: one database's own SQL (``mariadb``,
``sqlite_text``), what is compared (``operands``, ``conditions``).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

NUMBER_LENGTH = 400
"""Characters of the longest text that is read as a number: longer ones end the statement on some databases."""


def text(value: str) -> sa.BindParameter[str]:
    """A bound text."""
    return sa.bindparam(None, value, type_=sa.Text(), unique=True)


def untyped(value: Any) -> sa.BindParameter[Any]:
    """A bound value that takes the type of the column which it is compared with, so that an index serves."""
    return sa.bindparam(None, value, type_=sa.types.NullType(), unique=True)


def sound_json(source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """On SQLite and MariaDB: the text where it is JSON; their functions end the statement, or warn, at any other."""
    return sa.case((sa.func.json_valid(source) == 1, source))
