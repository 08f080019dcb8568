"""Expressions that several databases share: bound values, JSON that is sound."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

NUMBER_LENGTH = 400
"""Characters of the longest text that is read as a number: longer ones end the statement on some databases."""


def beside(condition: sa.ColumnElement[bool], backend: str) -> sa.ColumnElement[bool]:
    """A condition beside one that holds for hardly more rows, so that PostgreSQL does not expect a fraction of them.

    It takes conditions for independent, and a comparison of which it knows nothing for one row in 200; half of the rows
    is what it expects of this. Where it expects one row it compares all with all to join them with others.
    """
    return sa.func.coalesce(condition, sa.false(), type_=sa.Boolean()) if backend == "postgresql" else condition


def text(value: str) -> sa.BindParameter[str]:
    """A bound text."""
    return sa.bindparam(None, value, type_=sa.Text(), unique=True)


def untyped(value: Any) -> sa.BindParameter[Any]:
    """A bound value that takes the type of the column which it is compared with, so that an index serves."""
    return sa.bindparam(None, value, type_=sa.types.NullType(), unique=True)


_UNREADABLE = (
    # \\u0000, then a high surrogate without its low one, then a low one without its high one. What stands before them
    # is an even number of backslashes, or the backslash is itself the character.
    r"(?<!\\)((\\\\)*)\\u0000",
    r"(?<!\\)((\\\\)*)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])",
    r"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)((\\\\)*)\\u[dD][c-fC-F][0-9a-fA-F]{2}",
)
_REPLACED = r"\1\\ufffd"
_SUSPECT = r"\\u(0000|[dD][89a-fA-F])"


class _Jsonb(sa.sql.functions.FunctionElement[Any]):
    inherit_cache = True
    type = postgresql.JSONB()


@compiles(_Jsonb, "postgresql")
def _written(element: _Jsonb, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.clauses.clauses[0], **kw)
    text = f"CAST({column} AS TEXT)"
    readable = text
    for pattern in _UNREADABLE:
        readable = f"regexp_replace({readable}, {_quoted(pattern)}, {_quoted(_REPLACED)}, 'g')"
    return (
        f"CASE WHEN pg_typeof({column}) = 'jsonb'::regtype THEN CAST({column} AS JSONB) "
        f"WHEN {text} ~ {_quoted(_SUSPECT)} THEN CAST({readable} AS JSONB) ELSE CAST({text} AS JSONB) END"
    )


def _quoted(pattern: str) -> str:
    """The same whatever standard_conforming_strings is."""
    return "E'{}'".format(pattern.replace("\\", r"\\"))


def jsonb(source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """On PostgreSQL: a JSON column that can be looked into.

    ``json`` and text may hold escapes of what no text of PostgreSQL can, and one of them would end the statement, also
    where something else of the document is asked for: they become U+FFFD.
    """
    return _Jsonb(source)


def sound_json(source: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """On SQLite and MariaDB: the text where it is JSON; their functions end the statement, or warn, at any other."""
    return sa.case((sa.func.json_valid(source) == 1, source))
