"""JSON filters of a request, parsed into a condition tree and checked against the dataset.

Shapes: ``{"type": "person"}`` equals; ``{"country": ["BR", "AR"]}`` one of; ``{"phone": null}`` is null;
``{"risk_score": {"gte": 70, "lt": 90}}`` operators, all of which must hold; ``{"and": [...]}``,
``{"or": [...]}``, ``{"not": {...}}``. All keys of one object must hold.
Text is compared by code point and case-sensitively. A date without a time on a timestamp column is the whole day.
A null satisfies ``ne`` and ``nin`` and no other comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from export_pipeline.catalog.model import Column, Dataset
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode, abbreviate
from export_pipeline.filters.tree import AllOf, AnyOf, ArrayContains, Comparison, Condition, Negation, Scalar
from export_pipeline.scheduling.wall_clock import beginning

MAX_DEPTH = 10
MAX_CONDITIONS = 500
MAX_VALUES = 10_000
_OPERATORS = frozenset(FilterOperator)
_INT64 = range(-(2**63), 2**63)


def parse_filters(filters: Any, dataset: Dataset, time_zone: str) -> AllOf:
    """Parse the JSON object of a request, checked against the dataset.

    ``time_zone`` is the IANA zone of timestamps without an offset.

    Raises ``ExportFailure``: ``invalid_filter``, with the path into the object.
    """
    return _Parser(dataset, ZoneInfo(time_zone)).object(filters, "filters", 0)


class _Parser:
    def __init__(self, dataset: Dataset, zone: ZoneInfo) -> None:
        self._dataset = dataset
        self._zone = zone
        self._conditions = 0

    def object(self, filters: Any, path: str, depth: int) -> AllOf:
        if not isinstance(filters, Mapping):
            raise _invalid(path, 'must be a JSON object such as {"country": "BR"}')
        if depth > MAX_DEPTH:
            raise _invalid(path, f"is nested deeper than {MAX_DEPTH} levels")
        return AllOf(tuple(self._member(key, value, f"{path}.{key}", depth) for key, value in filters.items()))

    def _member(self, key: str, value: Any, path: str, depth: int) -> Condition:
        if key == "not":
            return Negation(self.object(value, path, depth + 1))
        if key in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise _invalid(path, "must be a non-empty JSON array of filter objects")
            items = tuple(self.object(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
            return AllOf(items) if key == "and" else AnyOf(items)
        column = self._dataset.column(key)
        if column is None or not column.operators:
            known = ", ".join(each.name for each in self._dataset.columns if each.operators)
            raise _invalid(path, f"is not a filterable column of {self._dataset.name}; use one of {known}")
        if isinstance(value, Mapping):
            if not value:
                raise _invalid(path, 'has no operator; add one, for example {"eq": …}')
            return AllOf(tuple(self._operator(column, name, item, f"{path}.{name}") for name, item in value.items()))
        operator = FilterOperator.IN if isinstance(value, list) else FilterOperator.EQ
        return self._comparison(column, operator, value, path)

    def _operator(self, column: Column, name: str, value: Any, path: str) -> Condition:
        if name not in _OPERATORS:
            raise _invalid(path, f"is not an operator; use one of {', '.join(sorted(_OPERATORS))}")
        return self._comparison(column, FilterOperator(name), value, path)

    def _comparison(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        self._count()
        if value is None and operator in (FilterOperator.EQ, FilterOperator.NE):
            operator, value = FilterOperator.IS_NULL, operator is FilterOperator.EQ
        if operator not in column.operators:
            allowed = ", ".join(sorted(column.operators))
            raise _invalid(path, f"operator {operator} is not allowed on {column.name}; use one of {allowed}")
        if operator is FilterOperator.IS_NULL:
            if not isinstance(value, bool):
                raise _invalid(path, "must be true or false")
            return Comparison(column, operator, value)
        if operator in (FilterOperator.IN, FilterOperator.NIN, FilterOperator.BETWEEN):
            return self._several(column, operator, value, path)
        return self._one(column, operator, value, path)

    def _count(self, conditions: int = 1) -> None:
        self._conditions += conditions
        if self._conditions > MAX_CONDITIONS:
            raise _invalid("filters", f"have more than {MAX_CONDITIONS} conditions")

    def _one(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        scalar = self._scalar(column, value, path)
        if column.type is ColumnType.JSON:
            return ArrayContains(column, str(scalar))
        day = self._day(column, value)
        return Comparison(column, operator, scalar) if day is None else _of_day(column, operator, *day)

    def _several(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        if not isinstance(value, list):
            raise _invalid(path, "must be a JSON array")
        if operator is FilterOperator.BETWEEN and len(value) != 2:
            raise _invalid(path, "must have two values: the lower and the upper end, both included")
        if len(value) > MAX_VALUES:
            raise _invalid(path, f"has more than {MAX_VALUES} values")
        values = tuple(self._scalar(column, item, f"{path}[{index}]") for index, item in enumerate(value))
        if not any(self._day(column, item) for item in value):
            return Comparison(column, operator, values)
        if operator is FilterOperator.BETWEEN:
            ends = (FilterOperator.GTE, FilterOperator.LTE)
            return AllOf(tuple(self._one(column, end, item, path) for end, item in zip(ends, value, strict=True)))
        self._count(len(value))
        any_of = AnyOf(tuple(self._one(column, FilterOperator.EQ, item, path) for item in value))
        return Negation(any_of) if operator is FilterOperator.NIN else any_of

    def _scalar(self, column: Column, value: Any, path: str) -> Scalar:
        try:
            scalar = parse_scalar(column.type, value, self._zone)
        except ValueError as error:
            problem = str(error)
        else:
            if not column.values or scalar in column.values:
                return scalar
            problem = f"must be one of {', '.join(column.values)}"
        raise _invalid(path, problem)

    def _day(self, column: Column, value: Any) -> tuple[datetime, datetime] | None:
        """The start (UTC) of a date without a time on a timestamp column and of the day after it; None otherwise."""
        if column.type is not ColumnType.TIMESTAMP:
            return None
        with suppress(TypeError, ValueError, OverflowError):
            first = datetime.combine(date.fromisoformat(value), time())
            return beginning(first, self._zone), beginning(first + timedelta(days=1), self._zone)
        return None


def _of_day(column: Column, operator: FilterOperator, begins: datetime, ends: datetime) -> Condition:
    """A comparison with a whole day: ``lte`` includes all of it, and ``gt`` begins after it."""
    match operator:
        case FilterOperator.EQ:
            since = Comparison(column, FilterOperator.GTE, begins)
            return AllOf((since, Comparison(column, FilterOperator.LT, ends)))
        case FilterOperator.NE:
            return Negation(_of_day(column, FilterOperator.EQ, begins, ends))
        case FilterOperator.GT:
            return Comparison(column, FilterOperator.GTE, ends)
        case FilterOperator.LTE:
            return Comparison(column, FilterOperator.LT, ends)
        case _:
            return Comparison(column, operator, begins)


def parse_scalar(kind: ColumnType, value: Any, zone: tzinfo = UTC) -> Scalar:
    """Convert a JSON value to a column's type; ``zone`` applies to timestamps without an offset.

    The message of the ``ValueError`` says what is expected, and never holds the value.
    """
    types, parse, expected = _SCALARS[kind]
    if isinstance(value, types) and isinstance(value, bool) == (kind is ColumnType.BOOLEAN):
        with suppress(ValueError, InvalidOperation, OverflowError):
            scalar = parse(value)
            if not isinstance(scalar, datetime):
                return scalar
            return (scalar if scalar.tzinfo else scalar.replace(tzinfo=zone)).astimezone(UTC)
    raise ValueError(f"must be {expected}")


def _text(value: str) -> str:
    value.encode()  # refuses a lone surrogate
    if "\x00" in value:
        raise ValueError
    return value


def _integer(value: int) -> int:
    if value not in _INT64:
        raise ValueError
    return value


def _float(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def _decimal(value: float | str) -> Decimal:
    number = Decimal(str(value))
    if not number.is_finite() or abs(number.adjusted()) > 1000:
        raise ValueError
    return number


_SCALARS: dict[ColumnType, tuple[tuple[type, ...], Callable[[Any], Scalar], str]] = {
    ColumnType.TEXT: ((str,), _text, "a string"),
    ColumnType.JSON: ((str,), _text, "a string"),
    ColumnType.INTEGER: ((int,), _integer, "a whole number of 64 bits"),
    ColumnType.FLOAT: ((int, float), _float, "a number"),
    ColumnType.DECIMAL: ((int, float, str), _decimal, "a number, or a string with a number"),
    ColumnType.BOOLEAN: ((bool,), bool, "true or false"),
    ColumnType.TIMESTAMP: ((str,), datetime.fromisoformat, "an ISO 8601 date and time, such as 2026-03-08T12:00:00Z"),
    ColumnType.DATE: ((str,), date.fromisoformat, "an ISO 8601 date, such as 2026-03-08"),
    ColumnType.UUID: ((str,), lambda value: str(UUID(value)), "a UUID"),
}
"""The Python types of a JSON value, its conversion, and what an error message expects."""


def _invalid(path: str, problem: str) -> ExportFailure:
    field = abbreviate(path, quoted=False, length=120)  # it contains keys of the request, of any length
    return ExportFailure(FailureCode.INVALID_FILTER, f"{field}: {problem}.", field=field)
