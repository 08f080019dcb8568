"""Reads dataset declarations and says what is wrong with them, file and line, all at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from export_pipeline.catalog.checks import PROBLEMS, Location
from export_pipeline.catalog.model import (
    ChildList,
    Column,
    CustomFieldTable,
    Dataset,
    Layout,
    ListTable,
    MembershipTable,
    SegmentTable,
    Title,
    canonical_hash,
)
from export_pipeline.catalog.source import CatalogError, YamlSource, place
from export_pipeline.catalog.types import PATTERN_HINTS

__all__ = ["Catalog", "CatalogError", "load_catalog", "parse_dataset"]
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
_ECHOES = ("default_factory_not_called", "too_short")
"""Errors that may only follow from another one in the same place."""


class Catalog(Mapping[str, Dataset]):
    """The datasets of an installation by name, in the order of their names."""

    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self._datasets = dict(sorted(datasets.items()))

    def __getitem__(self, name: str) -> Dataset:
        return self._datasets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    @property
    def version(self) -> str:
        """SHA-256 (hex) over the versions of all datasets."""
        return canonical_hash({name: dataset.version for name, dataset in self.items()})


def load_catalog(directory: str | Path | None = None) -> Catalog:
    """Read every ``*.yaml`` of a directory; the shipped datasets if ``directory`` is empty or None.

    Raises:
        CatalogError: with every problem of every file.
    """
    datasets: dict[str, Dataset] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for file in _files(directory):
        try:
            source = _read(file)
            dataset = _dataset(source)
        except CatalogError as error:
            problems.extend(error.problems)
            continue
        if dataset.name in datasets:
            where = f"{file.name}:{source.line(('name',))}"
            problems.append(f"{where}: name: {dataset.name!r} is declared in {origins[dataset.name]} too; rename one")
        datasets[dataset.name] = dataset
        origins[dataset.name] = file.name
    if problems:
        raise CatalogError(problems)
    return Catalog(datasets)


def parse_dataset(text: str, *, file: str = "<dataset>") -> Dataset:
    """Make a dataset of YAML text; ``file`` is what error messages call it.

    Raises:
        CatalogError: with every problem of the text.
    """
    return _dataset(YamlSource(text, file))


def _files(directory: str | Path | None) -> list[Traversable]:
    root: Traversable = Path(directory) if directory else resources.files("export_pipeline.catalog") / "datasets"
    if not root.is_dir():
        raise CatalogError([f"{directory}: is not a directory; expected one with *.yaml dataset declarations"])
    files = [item for item in root.iterdir() if item.name.endswith((".yaml", ".yml"))]
    if not files:
        raise CatalogError([f"{directory}: holds no *.yaml file; declare at least one dataset there"])
    return sorted(files, key=lambda file: file.name)


def _read(file: Traversable) -> YamlSource:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise CatalogError([f"{file.name}:1: is not UTF-8 text; save it as UTF-8"]) from None
    except OSError as error:
        raise CatalogError([f"{file.name}:1: cannot be read: {error.strerror}"]) from None
    return YamlSource(text, file.name)


def _dataset(source: YamlSource) -> Dataset:
    try:
        return Dataset.model_validate(source.data)
    except ValidationError as error:
        found = [item for detail in error.errors() for item in _describe(source, detail)]
    raise CatalogError([f"{source.file}:{line}: {message}" for line, message in sorted(found)])


def _describe(source: YamlSource, detail: ErrorDetails) -> Iterator[tuple[int, str]]:
    """The lines and messages of one pydantic error."""
    if detail["type"] == PROBLEMS:
        for problem in detail["ctx"]["problems"]:
            yield source.line(problem.location), place(problem.location) + problem.message
    elif detail["type"] not in _ECHOES or not detail["input"]:
        location = source.written(detail["loc"])
        if detail["type"] == "missing":
            location = (*location, detail["loc"][-1])
        yield source.line(location), place(location) + _message(location, detail)


def _message(location: Location, detail: ErrorDetails) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in _EXPLAINED:
        absent = kind == "missing" or kind.endswith("_short")
        return _EXPLAINED[kind] if absent else f"{given!r} {_EXPLAINED[kind]}"
    if kind == "extra_forbidden":
        return f"is not a known key; {_known(location)}"
    if kind in ("enum", "literal_error"):
        # Members of an enum in a Literal stand there as <ColumnType.TEXT: 'text'>.
        named = re.sub(r"<\w+\.\w+: ([^>]*)>", r"\1", str(context["expected"]))
        choices = named.replace("'", "").replace(" or ", ", ")
        return f"{given!r} is not one of {choices}"
    if kind == "string_pattern_mismatch":
        return f"{given!r} is not {PATTERN_HINTS[context['pattern']]}"
    if kind == "greater_than_equal":
        return f"{given!r} is too small; it must be at least {context['ge']}"
    return detail["msg"].removeprefix("Value error, ")


def _known(location: Location) -> str:
    """What the author of an unknown key may have meant."""
    known = list(_model_around(location).model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _model_around(location: Location) -> type[BaseModel]:
    around = tuple(part for part in location[:-1] if isinstance(part, str))
    models: dict[str, type[BaseModel]] = {
        "title": Title,
        "columns": Column,
        "children": ChildList,
        "lists": ListTable if around == ("lists", "lists") else MembershipTable,
        "segments": SegmentTable,
        "custom_fields": CustomFieldTable,
        "layouts": Layout,
    }
    return models[around[0]] if around else Dataset


# The JSON Schema of a dataset declaration, for editors that complete and check YAML.


SCHEMA_FILE = "dataset.schema.json"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one ``*.yaml`` dataset declaration."""
    schema = Dataset.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def json_schema_text() -> str:
    """The schema as the shipped file holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def shipped_schema_text() -> str:
    """The schema file that ships with the package."""
    return (resources.files("export_pipeline.catalog") / SCHEMA_FILE).read_text("utf-8")


if __name__ == "__main__":
    Path(__file__).with_name(SCHEMA_FILE).write_text(json_schema_text(), "utf-8")
