"""The tree that filters and segments become: which rows, as data.

A comparison with null holds for ``ne`` and ``nin`` alone, and ``Negation`` is the exact complement.
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
    """A number made of numbers; null if one of them is, and where something is divided by zero."""

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
    """A text that matches an SQL pattern, case-sensitively: ``%`` is any text, ``_`` any one character."""

    operand: Column | CustomField
    pattern: str


@dataclass(frozen=True)
class ArrayContains:
    """A column that is a JSON array of texts, one of which is ``value``; null and no array hold nothing."""

    column: Column
    value: str


@dataclass(frozen=True)
class HasDomain:
    """One of the row's e-mail addresses is of this domain: the part after the last ``@``, whatever its case.

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
    """Every one of them holds; none at all holds for every row."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of them holds; none at all holds for no row."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Negation:
    """It does not hold (a comparison with null does not hold, so its negation does)."""

    condition: Condition


def kind_of(operand: Operand) -> ColumnType:
    """What the operand's values are compared as."""
    match operand:
        case Column():
            return operand.type
        case CustomField():
            return operand.value_type
        case Arithmetic():
            return ColumnType.DECIMAL


def size_of(condition: Condition) -> tuple[int, int]:
    """How many conditions and how many values there are in a tree."""
    match condition:
        case AllOf(inner) | AnyOf(inner):
            sizes = [size_of(one) for one in inner]
            return sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        case Negation(one):
            return size_of(one)
        case Comparison(value=tuple() as values):
            return 1, len(values)
        case OnList(list_ids):
            return 1, len(list_ids)
        case _:
            return 1, 1


Condition = Comparison | Like | ArrayContains | HasDomain | OnList | AllOf | AnyOf | Negation
