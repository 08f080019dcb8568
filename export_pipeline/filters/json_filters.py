"""The filter language: JSON in, a typed tree out, checked against a dataset.

Shapes: ``{"type": "person"}`` equals; ``{"country": ["BR", "AR"]}`` one of; ``{"phone": null}`` is null;
``{"risk_score": {"gte": 70, "lt": 90}}`` operators, all of which must hold; ``{"and": [...]}``,
``{"or": [...]}``, ``{"not": {...}}``. Several keys of one object must all hold.
Text is compared by code point and case-sensitively. A date alone on a timestamp column is that whole day. A null
satisfies ``ne`` and ``nin`` and no other comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from export_pipeline.catalog.model import Column, Dataset
from export_pipeline.catalog.types import ColumnType, FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import AllOf, AnyOf, ArrayContains, Comparison, Condition, Negation, Scalar
from export_pipeline.scheduling.wall_clock import beginning

MAX_DEPTH = 10
MAX_CONDITIONS = 500
MAX_VALUES = 10_000
_OPERATORS = frozenset(operator.value for operator in FilterOperator)
_INT64 = range(-(2**63), 2**63)


def parse_filters(filters: Mapping[str, Any], dataset: Dataset, time_zone: str) -> AllOf:
    """Check filters against a dataset.

    Args:
        filters: the JSON object of the request.
        dataset: what is exported.
        time_zone: IANA zone of timestamps that carry no offset.

    Raises:
        ExportFailure: ``invalid_filter``, naming the path into the object.
    """
    return _Parser(dataset, ZoneInfo(time_zone)).object(filters, "filters", 0)


class _Parser:
    def __init__(self, dataset: Dataset, zone: ZoneInfo) -> None:
        self._dataset = dataset
        self._zone = zone
        self._conditions = 0

    def object(self, filters: Any, path: str, depth: int) -> AllOf:
        if not isinstance(filters, Mapping):
            raise _wrong(path, 'must be a JSON object such as {"country": "BR"}')
        if depth > MAX_DEPTH:
            raise _wrong(path, f"is nested deeper than {MAX_DEPTH} levels")
        return AllOf(tuple(self._member(key, value, f"{path}.{key}", depth) for key, value in filters.items()))

    def _member(self, key: str, value: Any, path: str, depth: int) -> Condition:
        if key == "not":
            return Negation(self.object(value, path, depth + 1))
        if key in ("and", "or"):
            if not isinstance(value, list) or not value:
                raise _wrong(path, "must be a non-empty JSON array of filter objects")
            items = tuple(self.object(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
            return AllOf(items) if key == "and" else AnyOf(items)
        column = self._dataset.column(key)
        if column is None or not column.operators:
            known = ", ".join(c.name for c in self._dataset.columns if c.operators)
            raise _wrong(path, f"is not a filterable column of {self._dataset.name}; those are: {known}")
        return self._column(column, value, path)

    def _column(self, column: Column, value: Any, path: str) -> Condition:
        if value is None:
            return self._comparison(column, FilterOperator.IS_NULL, True, path)
        if isinstance(value, list):
            return self._comparison(column, FilterOperator.IN, value, path)
        if not isinstance(value, Mapping):
            return self._comparison(column, FilterOperator.EQ, value, path)
        if not value:
            raise _wrong(path, 'has no operator; expected for example {"eq": …}')
        return AllOf(tuple(self._operator(column, name, given, f"{path}.{name}") for name, given in value.items()))

    def _operator(self, column: Column, name: str, value: Any, path: str) -> Condition:
        if name not in _OPERATORS:
            raise _wrong(path, f"is not an operator; those are: {', '.join(sorted(_OPERATORS))}")
        operator = FilterOperator(name)
        if value is None and operator in (FilterOperator.EQ, FilterOperator.NE):
            return self._comparison(column, FilterOperator.IS_NULL, operator is FilterOperator.EQ, path)
        return self._comparison(column, operator, value, path)

    def _comparison(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        self._count()
        if operator not in column.operators:
            allowed = ", ".join(sorted(column.operators))
            raise _wrong(path, f"operator {operator} is not allowed on {column.name}; allowed: {allowed}")
        if operator is FilterOperator.IS_NULL:
            if not isinstance(value, bool):
                raise _wrong(path, "must be true or false")
            return Comparison(column, operator, value)
        if operator in (FilterOperator.IN, FilterOperator.NIN, FilterOperator.BETWEEN):
            return self._several(column, operator, value, path)
        return self._one(column, operator, value, path)

    def _count(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise _wrong("filters", f"hold more than {MAX_CONDITIONS} conditions")

    def _one(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        scalar = self._scalar(column, value, path)
        if column.type is ColumnType.JSON:
            return ArrayContains(column, str(scalar))
        day = _day(value, self._zone) if column.type is ColumnType.TIMESTAMP else None
        return Comparison(column, operator, scalar) if day is None else _of_day(column, operator, *day)

    def _several(self, column: Column, operator: FilterOperator, value: Any, path: str) -> Condition:
        values = self._values(column, operator, value, path)
        days = [_day(item, self._zone) for item in value] if column.type is ColumnType.TIMESTAMP else []
        if not any(days):
            return Comparison(column, operator, values)
        if operator is FilterOperator.BETWEEN:
            ends = (FilterOperator.GTE, FilterOperator.LTE)
            return AllOf(tuple(self._one(column, end, item, path) for end, item in zip(ends, value, strict=True)))
        for _ in value:
            self._count()
        any_of = AnyOf(tuple(self._one(column, FilterOperator.EQ, item, path) for item in value))
        return Negation(any_of) if operator is FilterOperator.NIN else any_of

    def _values(self, column: Column, operator: FilterOperator, value: Any, path: str) -> tuple[Scalar, ...]:
        if not isinstance(value, list):
            raise _wrong(path, "must be a JSON array")
        if operator is FilterOperator.BETWEEN and len(value) != 2:
            raise _wrong(path, "must hold two values, the lower and the upper end (both included)")
        if len(value) > MAX_VALUES:
            raise _wrong(path, f"holds more than {MAX_VALUES} values")
        return tuple(self._scalar(column, item, f"{path}[{index}]") for index, item in enumerate(value))

    def _scalar(self, column: Column, value: Any, path: str) -> Scalar:
        try:
            scalar = parse_scalar(column.type, value, self._zone)
        except ValueError as error:
            problem = str(error)
        else:
            if not column.values or scalar in column.values:
                return scalar
            problem = f"must be one of {', '.join(column.values)}"
        raise _wrong(path, problem)


def _day(value: Any, zone: ZoneInfo) -> tuple[datetime, datetime] | None:
    """The first instants of a date without a time and of the day after it; None for anything else."""
    try:
        first = datetime.combine(date.fromisoformat(value), time())
    except (TypeError, ValueError):
        return None
    try:
        return beginning(first, zone), beginning(first + timedelta(days=1), zone)
    except OverflowError:
        return None


def _of_day(column: Column, operator: FilterOperator, begins: datetime, ends: datetime) -> Condition:
    """A comparison with a whole day: ``lte`` takes all of it, and ``gt`` begins after it."""
    match operator:
        case FilterOperator.EQ:
            first, last = (FilterOperator.GTE, begins), (FilterOperator.LT, ends)
            return AllOf(tuple(Comparison(column, each, end) for each, end in (first, last)))
        case FilterOperator.NE:
            return Negation(_of_day(column, FilterOperator.EQ, begins, ends))
        case FilterOperator.GT:
            return Comparison(column, FilterOperator.GTE, ends)
        case FilterOperator.LTE:
            return Comparison(column, FilterOperator.LT, ends)
        case _:
            return Comparison(column, operator, begins)


def parse_scalar(kind: ColumnType, value: Any, zone: ZoneInfo) -> Scalar:
    """A JSON value as a value of a column's type; ``zone`` is that of timestamps without an offset.

    Raises:
        ValueError: it is none; says what is expected, and never the value.
    """
    try:
        return _PARSERS[kind](value, zone)
    except (ValueError, TypeError, InvalidOperation, OverflowError):
        raise ValueError(f"must be {_EXPECTED[kind]}") from None


def _text(value: Any, _zone: ZoneInfo) -> str:
    if not isinstance(value, str) or "\x00" in value:
        raise TypeError
    value.encode()  # a lone surrogate is no text
    return value


def _integer(value: Any, _zone: ZoneInfo) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        raise TypeError
    return value


def _float(value: Any, _zone: ZoneInfo) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _decimal(value: Any, _zone: ZoneInfo) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = Decimal(str(value))
    if not number.is_finite() or abs(number.adjusted()) > 1000:
        raise ValueError
    return number


def _boolean(value: Any, _zone: ZoneInfo) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _timestamp(value: Any, zone: ZoneInfo) -> datetime:
    moment = datetime.fromisoformat(_text(value, zone))
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _date(value: Any, zone: ZoneInfo) -> date:
    return date.fromisoformat(_text(value, zone))


def _uuid(value: Any, zone: ZoneInfo) -> str:
    return str(UUID(_text(value, zone)))


_PARSERS: dict[ColumnType, Callable[[Any, ZoneInfo], Scalar]] = {
    ColumnType.TEXT: _text,
    ColumnType.JSON: _text,
    ColumnType.INTEGER: _integer,
    ColumnType.FLOAT: _float,
    ColumnType.DECIMAL: _decimal,
    ColumnType.BOOLEAN: _boolean,
    ColumnType.TIMESTAMP: _timestamp,
    ColumnType.DATE: _date,
    ColumnType.UUID: _uuid,
}
_EXPECTED: dict[ColumnType, str] = {
    ColumnType.TEXT: "a string",
    ColumnType.JSON: "a string",
    ColumnType.INTEGER: "a whole number of 64 bits",
    ColumnType.FLOAT: "a number",
    ColumnType.DECIMAL: "a number, or a string of one",
    ColumnType.BOOLEAN: "true or false",
    ColumnType.TIMESTAMP: "an ISO 8601 date and time, such as 2026-03-08T12:00:00Z",
    ColumnType.DATE: "an ISO 8601 date, such as 2026-03-08",
    ColumnType.UUID: "a UUID",
}


def _wrong(path: str, what: str) -> ExportFailure:
    # The path may hold what somebody typed as a key: keep it short.
    printable = "".join(character if character.isprintable() else "?" for character in path)
    shown = printable if len(printable) <= 120 else printable[:117] + "..."
    return ExportFailure(FailureCode.INVALID_FILTER, f"{shown}: {what}.", field=shown)
