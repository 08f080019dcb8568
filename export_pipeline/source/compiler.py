"""Conditions to SQL: the tree of filters and segments as SQLAlchemy expressions of one database.

Every value is bound; this package formats none into SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from export_pipeline.catalog.model import CustomField, Dataset
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
from export_pipeline.source.comparisons import Comparisons, does_not_hold
from export_pipeline.source.dialects.base import Bool, Dialect, Expression, Template

_GROUP = 30


def of_tenant(table: sa.TableClause, tenant: str, dataset: Dataset, organization_id: str, dialect: Dialect) -> Bool:
    """The organization's rows only, of the dataset's own table or of one that belongs to it."""
    return dialect.is_one_of(table.c[tenant], [organization_id], dataset.tenant_type)


def table_clause(name: str, columns: Iterable[str]) -> sa.TableClause:
    """A table or view by its name, ``schema.name`` or ``name``, with these columns."""
    schema, _, table = name.rpartition(".")
    return sa.table(table, *[sa.column(column) for column in sorted(set(columns))], schema=schema or None)


class ConditionCompiler:
    """Compiles conditions on the rows of one tenant, for one database."""

    def __init__(self, table: sa.TableClause, dataset: Dataset, organization_id: str, dialect: Dialect) -> None:
        self._table = table
        self._dataset = dataset
        self._organization_id = organization_id
        self._dialect = dialect
        self._comparisons = Comparisons(table, dialect)

    def of_tenant(self, table: sa.TableClause, tenant: str) -> Bool:
        """The tenant's rows only."""
        return of_tenant(table, tenant, self._dataset, self._organization_id, self._dialect)

    def condition(self, condition: Condition) -> Bool:
        """One condition, true, false or null for a row."""
        match condition:
            case AllOf(conditions):
                return _joined(sa.and_, sa.true(), [self.condition(one) for one in conditions])
            case AnyOf(conditions):
                return _joined(sa.or_, sa.false(), [self.condition(one) for one in conditions])
            case Negation(inner):
                return does_not_hold(self.condition(inner))
            case Comparison():
                return self._comparisons.compared(condition)
            case _:
                return self._leaf(condition)

    def _leaf(self, condition: Like | ArrayContains | HasDomain | OnList) -> Bool:
        match condition:
            case Like(operand, pattern):
                shown = self._comparisons.comparable(operand, ordered=True)
                return self._dialect.like(self._comparisons.read(operand), shown, pattern)
            case ArrayContains(column, value):
                return self._dialect.array_contains(self._table.c[column.source], value)
            case HasDomain():
                return self._has_domain(condition)
            case OnList(list_ids):
                return self._on_list(list_ids)

    def custom_field(self, field: CustomField) -> Expression:
        """A custom field's value as text (``Dialect.custom_text``)."""
        return self._comparisons.custom_text(field)

    def _has_domain(self, condition: HasDomain) -> Bool:
        address = self._table.c[condition.address.source]
        of_address: Bool = sa.func.coalesce(self._dialect.ends_with_domain(address, condition.domain), sa.false())
        if condition.addresses is None:
            return of_address
        addresses = self._table.c[condition.addresses.source]
        return sa.or_(of_address, self._dialect.any_of_domain(addresses, condition.domain))

    def _on_list(self, list_ids: Sequence[str | int]) -> Bool:
        membership = self._dataset.lists
        if membership is None:
            return sa.false()
        names = {membership.member, membership.list_id} | ({membership.tenant} if membership.tenant else set())
        members = table_clause(membership.table, names)
        where = [self._dialect.is_one_of(members.c[membership.list_id], list_ids, membership.lists.id_type)]
        if membership.tenant:
            where.append(self.of_tenant(members, membership.tenant))
        key = self._table.c[self._dataset.key_column.source]
        return key.in_(sa.select(members.c[membership.member]).where(*where))


def _joined(operator: Callable[..., Bool], neutral: Bool, conditions: Sequence[Bool]) -> Bool:
    """AND or OR of any number: in groups of groups, because SQLite parses a chain of them as a tree of that depth."""
    while len(conditions) > _GROUP:
        groups = [conditions[at : at + _GROUP] for at in range(0, len(conditions), _GROUP)]
        # SQLAlchemy leaves out parentheses that it takes for needless.
        conditions = [Template("({text})", operator(neutral, *group), sa.Boolean()) for group in groups]
    return operator(neutral, *conditions)
