"""Read dataset declarations from YAML, and report all their problems with file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from export_pipeline.catalog.checks import Location, problems
from export_pipeline.catalog.model import Dataset, canonical_hash
from export_pipeline.catalog.types import PATTERN_HINTS

_EXPLAINED = {
    "missing": "is required; add it",
    "tuple_type": "is not a list; write it as [a, b], or one item a line after -",
    "model_type": "is not a mapping; write it as key: value lines",
    "dict_type": "is not a mapping; write it as key: value lines",
    "string_type": "is not text; put quotes around it if it is meant to be",
    "string_too_short": "is empty; write some text",
    "too_short": "is empty; add at least one item",
    "bool_type": "is not a switch; write true or false",
    "bool_parsing": "is not a switch; write true or false",
    "int_type": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
}
_CONSEQUENCES = ("default_factory_not_called", "too_short")
"""Errors that may only follow from another error in the same place."""


class CatalogError(Exception):
    """Declarations that cannot be used: one line a problem, ``file:line: place: what to do``."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Catalog(dict[str, Dataset]):
    """The datasets of an installation by name, sorted by name."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        super().__init__(sorted(datasets.items()))

    @property
    def version(self) -> str:
        """SHA-256 (hex) over the versions of all datasets."""
        return canonical_hash({name: dataset.version for name, dataset in self.items()})


def load_catalog(directory: str | Path | None = None) -> Catalog:
    """Read every ``*.yaml`` of a directory, or the shipped datasets if ``directory`` is empty or None.

    Raises ``CatalogError`` with all problems of all files.
    """
    datasets: dict[str, Dataset] = {}
    origins: dict[str, str] = {}
    found: list[str] = []
    for file in _files(directory):
        try:
            source = _read(file)
            dataset = _dataset(source)
        except CatalogError as error:
            found.extend(error.problems)
            continue
        if dataset.name in datasets:
            where = f"{file.name}:{source.line(('name',))}"
            found.append(f"{where}: name: {dataset.name!r} is declared in {origins[dataset.name]} too; rename one")
        datasets[dataset.name] = dataset
        origins[dataset.name] = file.name
    if found:
        raise CatalogError(found)
    return Catalog(datasets)


def parse_dataset(text: str, *, file: str = "<dataset>") -> Dataset:
    """Read one dataset from YAML text; ``file`` is its name in messages. Raises ``CatalogError`` with all problems."""
    return _dataset(_YamlSource(text, file))


def _files(directory: str | Path | None) -> list[Traversable]:
    root: Traversable = Path(directory) if directory else resources.files("export_pipeline.catalog") / "datasets"
    if not root.is_dir():
        raise CatalogError([f"{directory}: is not a directory; expected one with *.yaml dataset declarations"])
    files = [item for item in root.iterdir() if item.name.endswith((".yaml", ".yml"))]
    if not files:
        raise CatalogError([f"{directory}: has no *.yaml file; declare at least one dataset there"])
    return sorted(files, key=lambda file: file.name)


def _read(file: Traversable) -> _YamlSource:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise CatalogError([f"{file.name}:1: is not UTF-8 text; save it as UTF-8"]) from None
    except OSError as error:
        raise CatalogError([f"{file.name}:1: cannot be read: {error.strerror}"]) from None
    return _YamlSource(text, file.name)


def _dataset(source: _YamlSource) -> Dataset:
    try:
        dataset = Dataset.model_validate(source.data)
        found = [(source.line(location), prefix(location) + message) for location, message in problems(dataset)]
    except ValidationError as error:
        found = [item for detail in error.errors() for item in _describe(source, detail)]
    if found:
        raise CatalogError([f"{source.file}:{line}: {message}" for line, message in sorted(found)])
    return dataset


def _describe(source: _YamlSource, detail: ErrorDetails) -> Iterator[tuple[int, str]]:
    """The lines and messages of one pydantic error."""
    if detail["type"] not in _CONSEQUENCES or not detail["input"]:
        location = source.written(detail["loc"])
        if detail["type"] == "missing":
            location = (*location, detail["loc"][-1])
        yield source.line(location), prefix(location) + _message(location, detail)


def prefix(location: Location) -> str:
    """The location at the beginning of a message: ``columns.3.type: ``, empty for the whole file."""
    return ".".join(map(str, location)) + ": " if location else ""


def _message(location: Location, detail: ErrorDetails) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _EXPLAINED:
        absent = kind == "missing" or kind.endswith("_short")
        return _EXPLAINED[kind] if absent else f"{value!r} {_EXPLAINED[kind]}"
    if kind == "extra_forbidden":
        known = _model_at(location[:-1]).model_fields
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
        return f"is not a known key; {hint}"
    if kind in ("enum", "literal_error"):
        # Pydantic shows the members of an enum in a Literal as <ColumnType.TEXT: 'text'>.
        named = re.sub(r"<\w+\.\w+: ([^>]*)>", r"\1", str(context["expected"]))
        choices = named.replace("'", "").replace(" or ", ", ")
        return f"{value!r} is not one of {choices}"
    if kind == "string_pattern_mismatch":
        return f"{value!r} is not {PATTERN_HINTS[context['pattern']]}"
    if kind == "greater_than_equal":
        return f"{value!r} is too small; it must be at least {context['ge']}"
    return detail["msg"].removeprefix("Value error, ")


def _model_at(location: Location) -> type[BaseModel]:
    """The model of a mapping in a declaration."""
    model: type[BaseModel] = Dataset
    for part in map(str, location):
        if part in model.model_fields:  # else a place in a list, or a name of the author's
            annotation = model.model_fields[part].annotation
            types = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
            model = next((one for one in types if issubclass(one, BaseModel)), model)
    return model


class _YamlSource:
    """One YAML mapping: ``data`` is its content, ``line`` the line of each part. ``CatalogError`` if it is not one."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self._lines: dict[tuple[str, ...], int] = {}
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise CatalogError([f"{file}:1: is not a mapping; begin the declaration with name:, title:, table:"])
            found = [f"{file}:{line}: {message}" for line, message in self._read(root, root.start_mark, (), ())]
            if found:
                raise CatalogError(found)
            self.data: Any = loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise CatalogError([f"{file}:{line}: is not valid YAML: {error.problem or error.context}"]) from None
        except (yaml.YAMLError, ValueError) as error:
            raise CatalogError([f"{file}:1: is not valid YAML: {' '.join(str(error).split())}"]) from None

    def line(self, location: Location) -> int:
        """The line of a place, or of the nearest thing around it that is in the file."""
        place = tuple(map(str, location))
        while place not in self._lines:
            place = place[:-1]
        return self._lines[place]

    def written(self, location: Location) -> Location:
        """A pydantic location without the parts that are not in the file (branches of a union)."""
        written: Location = ()
        for part in location:
            if tuple(map(str, (*written, part))) in self._lines:
                written = (*written, part)
        return written

    def _read(
        self, node: yaml.Node, mark: yaml.Mark, location: tuple[str, ...], above: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[int, str]]:
        """Note the lines of a node; yield what PyYAML accepts: a key twice (the last would win), a cyclic anchor."""
        self._lines[location] = mark.line + 1
        if node in above:
            yield node.start_mark.line + 1, f"{prefix(location)}an anchor refers to itself; write the value out"
            return
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            for at, item in enumerate(node.value):
                yield from self._read(item, item.start_mark, (*location, str(at)), above)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*location, str(key.value))
                if place in self._lines:
                    problem = f"is already on line {self._lines[place]}; keep one of them"
                    yield key.start_mark.line + 1, prefix(place) + problem
                    continue
                yield from self._read(value, key.start_mark, place, above)
