"""The condition tree that filters and segments are parsed into.

Of a null, only the comparisons ``ne`` and ``nin`` are true. ``Negation`` is the exact complement.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from export_pipeline.catalog.model import Column, CustomField
from export_pipeline.catalog.types import ColumnType, FilterOperator

Scalar = str | int | float | Decimal | bool | date | datetime


@dataclass(frozen=True)
class Arithmetic:
    """A calculated number; null if an operand is null or the divisor is zero."""

    operator: Literal["+", "-", "*", "/", "%"]
    left: Operand | int | float | Decimal
    right: Operand | int | float | Decimal


Operand = Column | CustomField | Arithmetic


@dataclass(frozen=True)
class Comparison:
    """``operand operator value``: a scalar, two for ``between``, a tuple for ``in``, a bool for ``is_null``.

    The value of ``eq ne gt gte lt lte`` may be another operand of the same row.
    """

    operand: Operand
    operator: FilterOperator
    value: Scalar | tuple[Scalar, ...] | Operand


@dataclass(frozen=True)
class Like:
    """The text matches an SQL pattern, case-sensitively: ``%`` is any text, ``_`` any one character."""

    operand: Column | CustomField
    pattern: str


@dataclass(frozen=True)
class ArrayContains:
    """The column is a JSON array of texts that contains ``value``; false for null and for other JSON."""

    column: Column
    value: str


@dataclass(frozen=True)
class HasDomain:
    """One of the row's email addresses has this domain (the part after the last ``@``), in any case.

    ``address`` is a text column, ``addresses`` a JSON array of texts.
    """

    address: Column
    addresses: Column | None
    domain: str


@dataclass(frozen=True)
class OnList:
    """The row is on at least one of the lists."""

    list_ids: tuple[str | int, ...]


@dataclass(frozen=True)
class AllOf:
    """All conditions are true; without conditions, every row matches."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one condition is true; without conditions, no row matches."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Negation:
    """The condition is not true (a comparison with null is not true, so its negation is)."""

    condition: Condition


def kind_of(operand: Operand) -> ColumnType:
    """The type in which the operand's values are compared."""
    match operand:
        case Column():
            return operand.type
        case CustomField():
            return operand.value_type
        case Arithmetic():
            return ColumnType.DECIMAL


def size_of(condition: Condition) -> tuple[int, int]:
    """The number of conditions and the number of values in a tree."""
    match condition:
        case AllOf(inner) | AnyOf(inner):
            sizes = [size_of(each) for each in inner]
            return sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        case Negation(negated):
            return size_of(negated)
        case Comparison(value=tuple() as values) | OnList(values):
            return 1, len(values)
        case _:
            return 1, 1


Condition = Comparison | Like | ArrayContains | HasDomain | OnList | AllOf | AnyOf | Negation
