"""PostgreSQL's SQL: texts compare in collation C, JSON as ``jsonb``."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import aggregate_order_by

from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.filters.tree import Scalar
from export_pipeline.source.dialects.base import (
    INSTANT,
    NUMBER,
    NUMBER_LENGTH,
    Bool,
    Dialect,
    Expression,
    Template,
    exists,
    json_array,
    text,
)

ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_UNREADABLE = (
    # \\u0000, then a high surrogate without its low one, then a low one without its high one. What stands before them
    # is an even number of backslashes, or the backslash is itself the character.
    r"(?<!\\)((\\\\)*)\\u0000",
    r"(?<!\\)((\\\\)*)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])",
    r"(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)((\\\\)*)\\u[dD][c-fC-F][0-9a-fA-F]{2}",
)
_REPLACED = r"\1\\ufffd"
_SUSPECT = r"\\u(0000|[dD][89a-fA-F])"


def _quoted(pattern: str) -> str:
    """The same whatever standard_conforming_strings is."""
    return "E'{}'".format(pattern.replace("\\", r"\\"))


def _jsonb_template() -> str:
    readable = "CAST({text} AS TEXT)"
    for pattern in _UNREADABLE:
        readable = f"regexp_replace({readable}, {_quoted(pattern)}, {_quoted(_REPLACED)}, 'g')"
    return (
        "CASE WHEN pg_typeof({text}) = 'jsonb'::regtype THEN CAST({text} AS JSONB) "
        f"WHEN CAST({{text}} AS TEXT) ~ {_quoted(_SUSPECT)} THEN CAST({readable} AS JSONB) "
        "ELSE CAST(CAST({text} AS TEXT) AS JSONB) END"
    )


_JSONB = _jsonb_template()


def _jsonb(source: Expression) -> Expression:
    """A JSON column that can be searched.

    ``json`` and text may hold escapes that no text of PostgreSQL can hold. One of them would end the statement, even
    where another part of the document is read: they become U+FFFD.
    """
    return Template(_JSONB, source, postgresql.JSONB())


class _Postgresql(Dialect):
    supports_every_filter = True

    def read(self, source: Expression, kind: ColumnType) -> Expression:
        if kind is not ColumnType.JSON:
            return super().read(source, kind)
        # A text that is declared json is parsed, and refused if it is not JSON.
        is_json = sa.func.pg_typeof(source) == sa.any_(sa.literal_column("ARRAY['json', 'jsonb']::regtype[]"))
        as_text = sa.cast(source, sa.Text)
        return sa.case((is_json, as_text), else_=sa.cast(sa.cast(as_text, postgresql.JSON), sa.Text))

    def shown(self, source: Expression, kind: ColumnType) -> Expression:
        as_text = sa.cast(source, sa.Text)
        match kind:
            case ColumnType.TEXT:
                return sa.collate(as_text, "C")
            case ColumnType.FLOAT | ColumnType.DECIMAL:
                # A real shows the fewest digits, as its text does.
                return sa.cast(as_text, sa.Double if kind is ColumnType.FLOAT else sa.Numeric)
            case ColumnType.BOOLEAN:
                return as_text.not_in([text("false"), text("0")])
            case ColumnType.DATE:
                return sa.cast(source, sa.Date)
            case ColumnType.UUID:
                return sa.func.lower(sa.func.translate(as_text, text("-{}"), text("")))
            case _:
                return source

    def by_code_point(self, column: Expression) -> Expression:
        return self.shown(column, ColumnType.TEXT)

    def unselective(self, condition: Bool) -> Bool:
        """So that the planner does not expect a fraction of the rows.

        It takes conditions for independent, and expects one row in 200 of a comparison that it knows nothing about; of
        this form it expects half of the rows. Where it expects one row, it joins by comparing all rows with all.
        """
        return sa.func.coalesce(condition, sa.false(), type_=sa.Boolean())

    def with_index(self, source: Expression, kind: ColumnType, values: Sequence[Scalar], exact: Bool) -> Bool:
        if kind is not ColumnType.TEXT:
            return super().with_index(source, kind, values, exact)
        # As text: an enum or an interval would refuse a value that it does not know.
        own = sa.cast(source, sa.Text).in_([text(str(value)) for value in values])
        return sa.and_(own, self.unselective(exact))

    def compared_number(
        self, source: Expression, kind: ColumnType, operator: FilterOperator, value: Decimal, exact: Bool
    ) -> Bool:
        return self.near(source, operator, value, exact)

    def position(self, source: Expression, value: str) -> sa.ColumnElement[int]:
        return sa.func.strpos(source, text(value), type_=sa.Integer())

    def like(self, source: Expression, shown: Expression, pattern: str) -> Bool:
        return shown.like(text(pattern), escape="")

    def ends_with_domain(self, address: Expression, domain: str) -> Bool:
        end = "@" + domain.translate(ASCII_LOWER)
        # In collation C lower() changes ASCII letters only, as it does on SQLite.
        return sa.func.right(sa.func.lower(self.shown(address, ColumnType.TEXT)), len(end)) == text(end)

    def any_element(self, column: Expression, condition: Callable[[Expression], Bool]) -> Bool:
        array = _jsonb(column)
        sound = sa.case((sa.func.jsonb_typeof(array) == "array", array), else_=sa.func.jsonb_build_array())
        texts = sa.func.jsonb_array_elements_text(sound).table_valued(sa.column("value", sa.Text))
        return exists(texts, condition(texts.c.value))

    def array_contains(self, column: Expression, value: str) -> Bool:
        array = _jsonb(column)
        # As an array of one: a bare text would also be found in a column that is a bare text.
        found = array.op("@>", is_comparison=True)(sa.func.jsonb_build_array(sa.cast(text(value), sa.Text)))
        return sa.case((sa.func.jsonb_typeof(array) == "array", found), else_=sa.false())

    def custom_text(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found: Expression = _jsonb(source)[key].astext
        return found

    def custom_number(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        found = self.custom_text(table, source, key)
        is_valid = sa.and_(sa.func.length(found) <= NUMBER_LENGTH, _matches(found, f"{NUMBER}$"))
        return sa.case((is_valid, sa.cast(found, sa.Numeric)))

    def custom_instant(self, table: sa.TableClause, source: Expression, key: str) -> Expression:
        # It casts only what the regular expression has let through: one odd value must not end an export.
        found = self.custom_text(table, source, key)
        return sa.case((_matches(found, f"{INSTANT}$"), sa.cast(found, sa.DateTime(timezone=True))))

    def gathered(self, ranked: sa.Subquery, within: Bool) -> sa.FromClause:
        value = sa.cast(sa.func.to_json(ranked.c.value), sa.Text)
        joined = sa.func.string_agg(value, aggregate_order_by(sa.literal_column("','"), ranked.c.place))
        return sa.select(ranked.c.parent, json_array(joined)).where(within).group_by(ranked.c.parent).subquery()


def _matches(source: Expression, pattern: str) -> Bool:
    return source.op("~", is_comparison=True)(text(pattern))


DIALECT = _Postgresql("postgresql")
