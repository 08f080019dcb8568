"""Checks across the parts of a declaration: names used twice, columns that are not declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from export_pipeline.catalog.model import Dataset, LayoutColumn
from export_pipeline.catalog.types import spellings

Location = tuple[str | int, ...]
Problem = tuple[Location, str]
"""Where in the declaration, and what is wrong there."""


def problems(dataset: Dataset) -> Iterator[Problem]:
    """All problems of a declaration whose single parts are valid."""
    yield from _names(dataset)
    yield from _values(dataset)
    yield from _column(dataset, ("key",), dataset.key, ("text", "integer", "uuid"), "a key is text, integer or uuid")
    if dataset.created_at is not None:
        yield from _column(dataset, ("created_at",), dataset.created_at, ("timestamp",), "it must be a timestamp")
    if dataset.custom_fields is not None:
        location = ("custom_fields", "column")
        yield from _column(dataset, location, dataset.custom_fields.column, ("json",), "it must be json")
    yield from _children(dataset)
    yield from _headers(dataset)
    yield from _layouts(dataset)
    yield from _default_layout(dataset)


def _names(dataset: Dataset) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for index, column in enumerate(dataset.columns):
        places: list[tuple[Location, str]] = [(("columns", index, "name"), column.name)]
        places += [(("columns", index, "aliases", at), alias) for at, alias in enumerate(column.aliases)]
        for location, name in places:
            clash = next((spelling for spelling in spellings(name) if spelling in taken), None)
            if clash is not None:
                yield location, f"{name!r} is taken by column {taken[clash]!r}; use every name and alias once"
            taken.update(dict.fromkeys(spellings(name), column.name))


def _values(dataset: Dataset) -> Iterator[Problem]:
    for index, column in enumerate(dataset.columns):
        if column.values and column.type != "text":
            message = f"{column.name!r} has type {column.type}; only a text column can list its values"
            yield ("columns", index, "values"), message
        for at in _repeated(column.values):
            yield ("columns", index, "values", at), f"{column.values[at]!r} is listed twice; list it once"


def _column(
    dataset: Dataset, location: Location, name: str, types: Sequence[str], requirement: str
) -> Iterator[Problem]:
    # By name, not by alias: the aliases may be wrong.
    column = next((column for column in dataset.columns if column.name == name), None)
    if column is None:
        yield location, _not_declared(dataset, name)
    elif column.type not in types:
        yield location, f"{name!r} has type {column.type}; {requirement}"


def _children(dataset: Dataset) -> Iterator[Problem]:
    taken = {spelling for column in dataset.columns for spelling in spellings(column.name)}
    for index, child in enumerate(dataset.children):
        if child.name in taken:
            yield ("children", index, "name"), f"{child.name!r} is taken by another child list or column"
        taken.update(spellings(child.name))
    for at in _repeated(child.header for child in dataset.children):
        header = dataset.children[at].header
        yield ("children", at, "header"), f"{header!r} is the header of another child list; use each once"


def _headers(dataset: Dataset) -> Iterator[Problem]:
    for index, column in enumerate(dataset.columns):
        for name in column.headers:
            layout = dataset.layouts.get(name)
            if name != "default" and (layout is None or column.name not in layout.columns):
                message = f"layout {name!r} does not list column {column.name!r}; add it there or remove this header"
                yield ("columns", index, "headers", name), message


def _layouts(dataset: Dataset) -> Iterator[Problem]:
    json_columns = {column.name for column in dataset.columns if column.type == "json"}
    for name, layout in dataset.layouts.items():
        location = ("layouts", name)
        if name == "default":
            yield location, "'default' is always there, with all exported columns; give this one another name"
            continue
        if layout.expand_custom_fields and dataset.custom_fields is None:
            message = "the dataset declares no custom_fields; declare them or remove this"
            yield (*location, "expand_custom_fields"), message
        for at, column in enumerate(layout.array_columns):
            if column not in json_columns.intersection(layout.columns):
                message = f"{column!r} is not a json column of this layout; use one, or remove it"
                yield (*location, "array_columns", at), message
        found = list(_layout_columns(dataset, name, layout.columns))
        yield from found or _layout_headers(dataset, name)


def _layout_columns(dataset: Dataset, name: str, columns: tuple[str, ...]) -> Iterator[Problem]:
    declared = {column.name: column for column in dataset.columns}
    repeated = _repeated(columns)
    for at, column in enumerate(columns):
        location = ("layouts", name, "columns", at)
        if column not in declared:
            yield location, _not_declared(dataset, column)
        elif not declared[column].exported:
            yield location, f"column {column!r} has exported: false; remove it here, or export it"
        elif at in repeated:
            yield location, f"column {column!r} is listed twice; list it once"


def _layout_headers(dataset: Dataset, name: str) -> Iterator[Problem]:
    # Two headers may be equal only in the upper case of tables, or only as json keys.
    for table in (True, False):
        shown = dataset.layout(name, table=table) or ()
        if found := _clashing_headers(dataset, shown):
            for at in found:
                message = f"header {shown[at].header!r} appears twice in this layout; change one"
                yield ("layouts", name, "columns", at), message
            return


def _default_layout(dataset: Dataset) -> Iterator[Problem]:
    shown = dataset.layout() or ()
    if not shown:
        yield ("columns",), "no column has exported: true; export at least one"
    if _repeated(item.column.name for item in shown):
        return  # _names reports them
    for at in _clashing_headers(dataset, shown):
        message = f"header {shown[at].header!r} appears twice in the default layout; change one"
        yield ("columns", dataset.columns.index(shown[at].column), "name"), message


def _clashing_headers(dataset: Dataset, shown: Sequence[LayoutColumn]) -> list[int]:
    children = {child.header for child in dataset.children}
    repeated = _repeated(item.header for item in shown)
    return [at for at, item in enumerate(shown) if at in repeated or item.header in children]


def _repeated(values: Iterable[str]) -> set[int]:
    first: dict[str, int] = {}
    return {at for at, value in enumerate(values) if first.setdefault(value, at) != at}


def _not_declared(dataset: Dataset, name: str) -> str:
    names = ", ".join(column.name for column in dataset.columns)
    return f"{name!r} is not a declared column; declare it under columns, or use one of {names}"
