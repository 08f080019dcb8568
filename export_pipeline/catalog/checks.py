"""Checks that look at several parts of a declaration at once: names that clash, columns that are not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from export_pipeline.catalog.types import spellings

if TYPE_CHECKING:
    from export_pipeline.catalog.model import Column, Dataset

PROBLEMS = "declaration_problems"
"""Type of the pydantic error whose context holds ``problems``."""
Location = tuple[str | int, ...]


class Problem(NamedTuple):
    """What is wrong, and where in the declaration."""

    location: Location
    message: str


def problems(dataset: Dataset) -> Iterator[Problem]:
    """Everything that is wrong with a declaration whose parts are sound by themselves."""
    for check in (
        _names,
        _values,
        _key,
        _created_at,
        _children,
        _custom_fields,
        _header_layouts,
        _layouts,
        _array_columns,
        _default_headers,
    ):
        yield from check(dataset)


def _names(dataset: Dataset) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for index, column in enumerate(dataset.columns):
        places: list[tuple[Location, str]] = [(("columns", index, "name"), column.name)]
        places += [(("columns", index, "aliases", at), alias) for at, alias in enumerate(column.aliases)]
        for location, name in places:
            clash = next((spelling for spelling in spellings(name) if spelling in taken), None)
            if clash is not None:
                yield Problem(location, f"{name!r} is taken by column {taken[clash]!r}; every name and alias is unique")
            taken.update(dict.fromkeys(spellings(name), column.name))


def _values(dataset: Dataset) -> Iterator[Problem]:
    for index, column in enumerate(dataset.columns):
        if column.values and column.type != "text":
            message = f"{column.name!r} has type {column.type}; only a text column can list its values"
            yield Problem(("columns", index, "values"), message)
        for at in _repeated(column.values):
            yield Problem(("columns", index, "values", at), f"{column.values[at]!r} is listed twice; list it once")


def _named(dataset: Dataset, name: str) -> Column | None:
    """Of this very name: aliases are what is still to be checked."""
    return next((column for column in dataset.columns if column.name == name), None)


def _key(dataset: Dataset) -> Iterator[Problem]:
    column = _named(dataset, dataset.key)
    if column is None:
        yield Problem(("key",), _not_declared(dataset, dataset.key))
    elif column.type not in ("text", "integer", "uuid"):
        yield Problem(("key",), f"{dataset.key!r} has type {column.type}; a key is text, integer or uuid")


def _created_at(dataset: Dataset) -> Iterator[Problem]:
    if dataset.created_at is None:
        return
    column = _named(dataset, dataset.created_at)
    if column is None:
        yield Problem(("created_at",), _not_declared(dataset, dataset.created_at))
    elif column.type != "timestamp":
        yield Problem(("created_at",), f"{dataset.created_at!r} has type {column.type}; it must be a timestamp")


def _children(dataset: Dataset) -> Iterator[Problem]:
    columns = {spelling for column in dataset.columns for spelling in spellings(column.name)}
    seen: set[str] = set()
    for index, child in enumerate(dataset.children):
        if child.name in seen or child.name in columns:
            yield Problem(("children", index, "name"), f"{child.name!r} is taken by another child list or column")
        seen.update(spellings(child.name))
    for at in _repeated([child.header for child in dataset.children]):
        header = dataset.children[at].header
        yield Problem(("children", at, "header"), f"{header!r} is the header of another child list; use each once")


def _custom_fields(dataset: Dataset) -> Iterator[Problem]:
    if dataset.custom_fields is None:
        for name, layout in dataset.layouts.items():
            if layout.expand_custom_fields:
                location = ("layouts", name, "expand_custom_fields")
                yield Problem(location, "the dataset declares no custom_fields; declare them or remove this")
        return
    name = dataset.custom_fields.column
    column = _named(dataset, name)
    if column is None:
        yield Problem(("custom_fields", "column"), _not_declared(dataset, name))
    elif column.type != "json":
        yield Problem(("custom_fields", "column"), f"{name!r} has type {column.type}; it must be json")


def _array_columns(dataset: Dataset) -> Iterator[Problem]:
    types = {column.name: column.type for column in dataset.columns}
    for name, layout in dataset.layouts.items():
        for at, column in enumerate(layout.array_columns):
            if column not in layout.columns or types.get(column) != "json":
                location = ("layouts", name, "array_columns", at)
                yield Problem(location, f"{column!r} is not a json column of this layout; name one, or remove it")


def _header_layouts(dataset: Dataset) -> Iterator[Problem]:
    for index, column in enumerate(dataset.columns):
        for name in column.headers:
            layout = dataset.layouts.get(name)
            if name != "default" and (layout is None or column.name not in layout.columns):
                message = f"layout {name!r} does not list column {column.name!r}; add it there or remove this header"
                yield Problem(("columns", index, "headers", name), message)


def _layouts(dataset: Dataset) -> Iterator[Problem]:
    for name, layout in dataset.layouts.items():
        if name == "default":
            yield Problem(
                ("layouts", name), "'default' is always there: all exported columns; give this one another name"
            )
            continue
        found = list(_layout_columns(dataset, name, layout.columns))
        yield from found
        if not found:
            yield from _layout_headers(dataset, name)


def _layout_columns(dataset: Dataset, name: str, columns: tuple[str, ...]) -> Iterator[Problem]:
    declared = {column.name: column for column in dataset.columns}
    repeated = _repeated(columns)
    for at, column in enumerate(columns):
        location = ("layouts", name, "columns", at)
        if column not in declared:
            yield Problem(location, _not_declared(dataset, column))
        elif not declared[column].exported:
            yield Problem(location, f"column {column!r} has exported: false; remove it here, or let it be exported")
        elif at in repeated:
            yield Problem(location, f"column {column!r} is listed twice; list it once")


def _layout_headers(dataset: Dataset, name: str) -> Iterator[Problem]:
    children = {child.header for child in dataset.children}
    # In upper case alone, or as json keys alone, they may be the same.
    for is_table in (True, False):
        shown = dataset.layout(name, table=is_table) or ()
        repeated = _repeated([item.header for item in shown])
        found = [at for at, item in enumerate(shown) if at in repeated or item.header in children]
        for at in found:
            header = shown[at].header
            yield Problem(("layouts", name, "columns", at), f"header {header!r} appears twice in this layout")
        if found:
            return


def _default_headers(dataset: Dataset) -> Iterator[Problem]:
    shown = dataset.layout() or ()
    if not shown:
        yield Problem(("columns",), "no column has exported: true; at least one must be able to leave")
    children = {child.header for child in dataset.children}
    headers = [item.header for item in shown]
    # A name used twice is told by _names already.
    distinct = len({item.column.name for item in shown}) == len(shown)
    repeated = _repeated(headers) if distinct else set()
    for at, item in enumerate(shown):
        if at in repeated or item.header in children:
            index = dataset.columns.index(item.column)
            message = f"header {item.header!r} appears twice in the default layout"
            yield Problem(("columns", index, "name"), message)


def _repeated(values: Iterable[str]) -> set[int]:
    seen: set[str] = set()
    repeated = set()
    for at, value in enumerate(values):
        if value in seen:
            repeated.add(at)
        seen.add(value)
    return repeated


def _not_declared(dataset: Dataset, name: str) -> str:
    names = ", ".join(column.name for column in dataset.columns)
    return f"{name!r} is not a declared column; declare it under columns, or use one of {names}"
