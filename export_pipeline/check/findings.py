"""What a check finds: one line about one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import ColumnType


class State(StrEnum):
    """How a thing was found."""

    OK = "ok"
    WARNING = "warning"
    """Exports work, but something may be missing or surprise."""
    WRONG = "wrong"
    """Exports, or some of them, would fail."""


@dataclass(frozen=True)
class Finding:
    """One thing, how it is, and what to do about it."""

    state: State
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """It works."""
    return Finding(State.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """It works, but."""
    return Finding(State.WARNING, subject, text)


def wrong(subject: str, text: str) -> Finding:
    """It does not work."""
    return Finding(State.WRONG, subject, text)


# What a dataset wants of its database: tables, columns, and the types that decide what becomes of their values.


class Typed(NamedTuple):
    """A column whose values are read as a declared type."""

    column: str
    type: ColumnType
    place: str


@dataclass(frozen=True)
class Wanted:
    """A table of the catalog, and the columns that a dataset uses of it; both with the place that declares them."""

    table: str
    place: str
    columns: Mapping[str, str]
    types: tuple[Typed, ...] = ()


def wanted_by(dataset: Dataset) -> Iterator[Wanted]:
    """The tables of a dataset, its own first; their places begin with its name."""
    yield _own(dataset)
    for child in dataset.children:
        place = f"{dataset.name}.children.{child.name}"
        values = Typed(child.value, ColumnType.TEXT, f"{place}.value")
        yield _part(place, child, ("foreign_key", "value", "order_by", "tenant"), values)
    if dataset.lists is not None:
        yield _part(f"{dataset.name}.lists", dataset.lists, ("member", "list_id", "tenant"))
        yield _with_id(f"{dataset.name}.lists.lists", dataset.lists.lists, ("id", "name", "tenant"))
    if dataset.segments is not None:
        keys = ("id", "name", "tenant", "filter", "query_dsl")
        yield _with_id(f"{dataset.name}.segments", dataset.segments, keys)
    if dataset.custom_fields is not None:
        yield _part(f"{dataset.name}.custom_fields", dataset.custom_fields, ("name", "field_type", "tenant"))


def _own(dataset: Dataset) -> Wanted:
    name = dataset.name
    columns = {column.source: f"{name}.columns.{column.name}" for column in dataset.columns}
    types = [Typed(one.source, one.type, f"{name}.columns.{one.name}") for one in dataset.columns]
    tenant = Typed(dataset.tenant, ColumnType(dataset.tenant_type), f"{name}.tenant_type")
    return Wanted(dataset.table, f"{name}.table", {dataset.tenant: f"{name}.tenant"} | columns, (tenant, *types))


def _with_id(place: str, part: Any, keys: tuple[str, ...]) -> Wanted:
    return _part(place, part, keys, Typed(part.id, ColumnType(part.id_type), f"{place}.id_type"))


def _part(place: str, part: Any, keys: tuple[str, ...], *types: Typed) -> Wanted:
    columns = {getattr(part, key): f"{place}.{key}" for key in keys if getattr(part, key)}
    return Wanted(part.table, place, columns, types)
