"""Which rows belong to an organization, a list or a segment: comparing the columns that hold their ids.

A database takes several texts for one id: in another case, with a blank at the end, without the hyphens of a UUID.
Only one of them is the organization that may export, or the list that was named. So an id that is a text is compared by
its characters as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.engine import expressions, mariadb


def of_tenant(
    table: sa.TableClause, tenant: str, dataset: Dataset, organization_id: str, backend: str
) -> sa.ColumnElement[bool]:
    """The organization's rows alone, of the dataset's own table or of one that belongs to it."""
    return is_one_of(table.c[tenant], [organization_id], dataset.tenant_type, backend)


def is_one_of(
    column: sa.ColumnElement[Any], ids: Sequence[str | int], kind: IdentityType, backend: str
) -> sa.ColumnElement[bool]:
    """The column holds one of these ids; a text, spelled as it is given.

    Args:
        column: as the database has it.
        ids: the ids.
        kind: what the catalog declares the column to hold.
        backend: of the database, as SQLAlchemy names it.
    """
    if backend in mariadb.BACKENDS:
        any_case = kind is ColumnType.UUID
        return sa.or_(sa.false(), *[mariadb.same_identity(column, one, any_case=any_case) for one in ids])
    # Without a type: it takes that of the column, so that an index on it serves.
    same = column.in_([expressions.untyped(one) for one in ids])
    if kind is not ColumnType.TEXT:
        return same  # numbers and UUIDs that a database takes for one are one
    spelled = _text(column, backend).in_([expressions.text(str(one)) for one in ids])
    return sa.and_(same, expressions.beside(spelled, backend))


def ordered(column: sa.ColumnElement[Any], kind: ColumnType, backend: str) -> sa.ColumnElement[Any]:
    """The column as what it is both ordered by and compared with in pages: a text by code point, not by a collation."""
    return _text(column, backend) if kind is ColumnType.TEXT else column


def _text(column: sa.ColumnElement[Any], backend: str) -> sa.ColumnElement[Any]:
    text = sa.cast(column, sa.Text)
    if backend in mariadb.BACKENDS:
        return mariadb.exact(text)
    by_code_point = {"sqlite": "BINARY", "postgresql": "C"}.get(backend)
    return sa.collate(text, by_code_point) if by_code_point else text
