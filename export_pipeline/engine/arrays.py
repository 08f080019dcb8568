"""Conditions on columns that are JSON arrays of texts, and on the domains of the addresses in them.

What belongs here: looking into an array on each database; what is no array holds nothing.
What does not: which column is an array (requests), the other conditions (``conditions``).
"""

from __future__ import annotations

import string
from typing import Any

import sqlalchemy as sa

from export_pipeline.engine import expressions, mariadb

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def contains(column: sa.ColumnElement[Any], value: str, backend: str) -> sa.ColumnElement[bool]:
    """One of the texts is ``value``; never null."""
    if backend in mariadb.BACKENDS:
        return mariadb.array_has(column, value)
    if backend == "sqlite":
        elements = _elements(column)
        return _exists(elements, elements.c.value == expressions.text(value))
    array = expressions.jsonb(column)
    # As an array of one: a bare text would also be found in a column that is a bare text.
    found = array.op("@>", is_comparison=True)(sa.func.jsonb_build_array(sa.cast(expressions.text(value), sa.Text)))
    return sa.case((sa.func.jsonb_typeof(array) == "array", found), else_=sa.false())


def any_of_domain(column: sa.ColumnElement[Any], domain: str, backend: str) -> sa.ColumnElement[bool]:
    """One of the texts is an address of ``domain``; never null."""
    if backend in mariadb.BACKENDS:
        return mariadb.array_has_domain(column, domain)
    if backend == "sqlite":
        elements = _elements(column)
        return _exists(elements, ends_with_domain(elements.c.value, domain, backend))
    array = expressions.jsonb(column)
    sound = sa.case((sa.func.jsonb_typeof(array) == "array", array), else_=sa.func.jsonb_build_array())
    texts = sa.func.jsonb_array_elements_text(sound).table_valued(sa.column("value", sa.Text))
    return _exists(texts, ends_with_domain(texts.c.value, domain, backend))


def ends_with_domain(address: sa.ColumnElement[Any], domain: str, backend: str) -> sa.ColumnElement[bool]:
    """The part after the last ``@`` is ``domain``, by ASCII letters of either case (RFC 4343); null if the address is.

    A domain has no ``@``, so the address ends with ``@`` and the domain exactly if it is of it.
    """
    if backend in mariadb.BACKENDS:
        return mariadb.ends_with_domain(address, domain)
    end = "@" + domain.translate(_LOWER)
    if backend == "sqlite":
        return sa.func.substr(sa.func.lower(address), -len(end)) == expressions.text(end)
    # In collation C lower() knows ASCII alone, as it does on SQLite.
    return sa.func.right(sa.func.lower(sa.collate(sa.cast(address, sa.Text), "C")), len(end)) == expressions.text(end)


def _elements(column: sa.ColumnElement[Any]) -> sa.TableValuedAlias:
    sound = expressions.sound_json(column)
    array = sa.case((sa.func.json_type(sound) == "array", sound))
    return sa.func.json_each(array).table_valued("type", "value")


def _exists(elements: sa.TableValuedAlias, where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    texts = [elements.c.type == "text"] if "type" in elements.c else []
    return sa.select(sa.literal_column("1")).select_from(elements).where(*texts, where).exists()
