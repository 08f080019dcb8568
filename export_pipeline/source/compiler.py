"""Conditions to SQL: the tree of filters and segments as SQLAlchemy expressions of one database.

Every value is bound; none is ever formatted into SQL by us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from export_pipeline.catalog.model import CustomField, Dataset
from export_pipeline.catalog.types import ColumnType, IdentityType
from export_pipeline.filters.tree import (
    AllOf,
    AnyOf,
    ArrayContains,
    Comparison,
    Condition,
    HasDomain,
    Like,
    Negation,
    OnList,
)
from export_pipeline.source import operands
from export_pipeline.source.comparisons import Comparisons, does_not_hold
from export_pipeline.source.dialects import base, mariadb, sqlite
from export_pipeline.source.operands import Operands

# Which rows belong to an organization, a list or a segment: comparing the columns that hold their ids.


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
    same = column.in_([base.untyped(one) for one in ids])
    if kind is not ColumnType.TEXT:
        return same  # numbers and UUIDs that a database takes for one are one
    spelled = _text(column, backend).in_([base.text(str(one)) for one in ids])
    return sa.and_(same, base.beside(spelled, backend))


def ordered(column: sa.ColumnElement[Any], kind: ColumnType, backend: str) -> sa.ColumnElement[Any]:
    """The column as what it is both ordered by and compared with in pages: a text by code point, not by a collation."""
    return _text(column, backend) if kind is ColumnType.TEXT else column


def _text(column: sa.ColumnElement[Any], backend: str) -> sa.ColumnElement[Any]:
    text = sa.cast(column, sa.Text)
    if backend in mariadb.BACKENDS:
        return mariadb.exact(text)
    by_code_point = {"sqlite": "BINARY", "postgresql": "C"}.get(backend)
    return sa.collate(text, by_code_point) if by_code_point else text


_GROUP = 30


class ConditionCompiler:
    """Compiles conditions on the rows of one tenant, for one database."""

    def __init__(self, table: sa.TableClause, dataset: Dataset, organization_id: str, backend: str) -> None:
        self._table = table
        self._dataset = dataset
        self._organization_id = organization_id
        self._backend = backend
        self._sqlite = backend == "sqlite"
        self._mariadb = backend in mariadb.BACKENDS
        self._operands = Operands(table, backend)
        self._comparisons = Comparisons(self._operands, backend)

    def of_tenant(self, table: sa.TableClause, tenant: str) -> sa.ColumnElement[bool]:
        """The tenant's rows alone."""
        return of_tenant(table, tenant, self._dataset, self._organization_id, self._backend)

    def condition(self, condition: Condition) -> sa.ColumnElement[bool]:
        """One condition, true, false or null for a row."""
        match condition:
            case AllOf(conditions):
                return _joined(sa.and_, sa.true(), [self.condition(one) for one in conditions])
            case AnyOf(conditions):
                return _joined(sa.or_, sa.false(), [self.condition(one) for one in conditions])
            case Negation(inner):
                return does_not_hold(self.condition(inner))
            case _:
                return self._leaf(condition)

    def _leaf(self, condition: Comparison | Like | ArrayContains | HasDomain | OnList) -> sa.ColumnElement[bool]:
        match condition:
            case Comparison():
                return self._comparisons.compared(condition)
            case Like():
                return self._like(condition)
            case ArrayContains(column, value):
                self._operands.require_own_sql()
                return operands.contains(self._table.c[column.source], value, self._backend)
            case HasDomain():
                return self._has_domain(condition)
            case OnList(list_ids):
                return self._on_list(list_ids)

    def custom_field(self, field: CustomField) -> sa.ColumnElement[Any]:
        """A custom field's value as text: numbers with their digits, true and false as words, null if there is none."""
        return self._operands.custom_text(field)

    def _like(self, condition: Like) -> sa.ColumnElement[bool]:
        self._operands.require_own_sql()
        if self._mariadb:
            return mariadb.like(self._operands.read(condition.operand), condition.pattern)
        source = self._operands.comparable(condition.operand, ordered=True)
        if self._sqlite:
            return sqlite.like(source, condition.pattern)
        # No escape character at all: a backslash is a backslash.
        return source.like(base.text(condition.pattern), escape="")

    def _has_domain(self, condition: HasDomain) -> sa.ColumnElement[bool]:
        self._operands.require_own_sql()
        address = self._table.c[condition.address.source]
        of_address: sa.ColumnElement[bool] = sa.func.coalesce(
            operands.ends_with_domain(address, condition.domain, self._backend), sa.false()
        )
        if condition.addresses is not None:
            addresses = self._table.c[condition.addresses.source]
            return sa.or_(of_address, operands.any_of_domain(addresses, condition.domain, self._backend))
        return of_address

    def _on_list(self, list_ids: Sequence[str | int]) -> sa.ColumnElement[bool]:
        membership = self._dataset.lists
        if membership is None:
            return sa.false()
        names = {membership.member, membership.list_id} | ({membership.tenant} if membership.tenant else set())
        members = table_clause(membership.table, names)
        where: list[sa.ColumnElement[bool]] = [
            is_one_of(members.c[membership.list_id], list_ids, membership.lists.id_type, self._backend)
        ]
        if membership.tenant:
            where.append(self.of_tenant(members, membership.tenant))
        key = self._table.c[self._dataset.key_column.source]
        return key.in_(sa.select(members.c[membership.member]).where(*where))


class _Group(sa.sql.functions.FunctionElement[bool]):
    """An expression in parentheses, which SQLAlchemy leaves out where it takes them for needless."""

    inherit_cache = True
    type = sa.Boolean()


@compiles(_Group)
def _written(element: _Group, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)})"


def _joined(
    operator: Callable[..., sa.ColumnElement[bool]],
    neutral: sa.ColumnElement[bool],
    conditions: Sequence[sa.ColumnElement[bool]],
) -> sa.ColumnElement[bool]:
    """AND or OR of any number: in groups of groups, for SQLite takes a chain of them for a tree of that depth."""
    while len(conditions) > _GROUP:
        groups = [conditions[at : at + _GROUP] for at in range(0, len(conditions), _GROUP)]
        conditions = [_Group(operator(neutral, *group)) for group in groups]
    return operator(neutral, *conditions)


def table_clause(name: str, columns: Iterable[str]) -> sa.TableClause:
    """A table or view by its name, ``schema.name`` or ``name``, with these columns."""
    schema, _, table = name.rpartition(".")
    return sa.table(table, *[sa.column(column) for column in sorted(set(columns))], schema=schema or None)
