"""SQLite keeps instants as text and has no way to read one or a number out of text without guessing: here is one.

What belongs here: expressions over a text that give null where it holds no instant or no number; LIKE.
What does not: where the text comes from (``operands``).

The expressions are templates: a segment may have hundreds of them, and SQLAlchemy takes seconds to write as many trees.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from export_pipeline.engine import expressions

_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_AS_STORED = f"{_DAY}[T ]??:??:??.?????[0-9]"
"""UTC with six decimals and no offset: nothing to work out."""

# Date and time to the second; what follows; of that, the offset, and the fraction with its point.
_WHOLE = "replace(substr({text}, 1, 19), 'T', ' ')"
_TAIL = "substr({text}, 20)"
_ZONE = f"ltrim({_TAIL}, '.0123456789')"
_FRACTION = f"substr({_TAIL}, 1, length({_TAIL}) - length({_ZONE}))"
_DECIMALS = f"substr({_FRACTION}, 2)"
# SQLite's own functions cannot judge: they take 31 February, 'now' and Julian days, and drop microseconds.
# Without '+0 days', a change to make, SQLite before 3.46 gives 31 February back as it came.
_INSTANT = f"""CASE WHEN {{text}} GLOB '{_DAY}*'
 AND date(substr({{text}}, 1, 10), '+0 days') = substr({{text}}, 1, 10)
 AND (length({{text}}) = 10
  OR {_WHOLE} GLOB '{_DAY} [0-2][0-9]:[0-5][0-9]:[0-5][0-9]' AND substr({{text}}, 12, 2) < '24')
 AND ({_FRACTION} = '' OR {_FRACTION} GLOB '.[0-9]*' AND ltrim({_DECIMALS}, '0123456789') = '')
 AND ({_ZONE} IN ('', 'Z') OR substr({_ZONE}, 2, 2) <= '14'
  AND ({_ZONE} GLOB '[+-][01][0-9]' OR {_ZONE} GLOB '[+-][01][0-9]:[0-5][0-9]'))
THEN strftime('%Y-%m-%d %H:%M:%S', {_WHOLE} || {_ZONE} || CASE length({_ZONE}) WHEN 3 THEN ':00' ELSE '' END)
 || '.' || substr({_DECIMALS} || '000000', 1, 6) END"""


class _Template(sa.sql.functions.FunctionElement[Any]):
    """A column in the places of a template. A bound value must not stand there: it would need to be bound as often."""

    template = ""

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        super().__init__(column)


@compiles(_Template, "sqlite")
def _written(element: _Template, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({element.template.format(text=compiler.process(element.clauses.clauses[0], **kw))})"


class StoredInstant(_Template):
    """A timestamp column's ISO 8601 text as ``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC, which sorts as the instants do.

    No offset means UTC, as it does when the column is read; null if the text is no date, with a time to the second
    or finer and an offset or without.
    """

    inherit_cache = True
    type = sa.Text()
    template = f"CASE WHEN {{text}} GLOB '{_AS_STORED}' THEN replace({{text}}, 'T', ' ') ELSE {_INSTANT} END"


class CustomInstant(_Template):
    """As ``StoredInstant``, but of the texts alone that ``operands`` takes on PostgreSQL too."""

    inherit_cache = True
    type = sa.Text()
    template = f"""CASE WHEN {{text}} GLOB '[1-9]*' AND {{text}} NOT GLOB '*.{"[0-9]" * 7}*' THEN {_INSTANT} END"""


class Number(_Template):
    """Text as a number; null unless it is digits, with a minus and a decimal point at most."""

    inherit_cache = True
    type = sa.Float()
    template = f"""CASE WHEN length({{text}}) <= {expressions.NUMBER_LENGTH}
 AND ({{text}} GLOB '[0-9]*' OR {{text}} GLOB '-[0-9]*') AND {{text}} GLOB '*[0-9]'
 AND substr({{text}}, 2) NOT GLOB '*[^0-9.]*' AND {{text}} NOT GLOB '*.*.*'
THEN CAST({{text}} AS REAL) END"""


def like(text: sa.ColumnElement[Any], pattern: str) -> sa.ColumnElement[bool]:
    """LIKE that minds case: SQLite's own does not, its GLOB does."""
    signs = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    given = "".join(signs.get(sign, sign) for sign in pattern)
    return text.op("GLOB", is_comparison=True)(expressions.text(given))
