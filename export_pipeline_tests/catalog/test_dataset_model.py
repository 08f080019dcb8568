"""The dataset model: columns by any of their names, layouts, operators, the version."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from typing import Any

import pytest
from pydantic import ValidationError

from export_pipeline.catalog.loader import CatalogError, parse_dataset
from export_pipeline.catalog.model import Dataset
from export_pipeline.catalog.types import OPERATORS_BY_TYPE, ColumnType, FilterOperator
from export_pipeline_tests.docs.generated import dataset_schema

MINIMAL: dict[str, Any] = {
    "name": "people",
    "title": "People",
    "table": "crm.people",
    "tenant": "org",
    "key": "id",
    "columns": [
        {"name": "id", "type": "integer"},
        {"name": "external_id", "type": "text", "source": "externalId"},
        {"name": "country_code", "type": "text", "aliases": ["country", "home_country"]},
        {"name": "secret", "type": "text", "exported": False, "filter": ["eq"]},
    ],
}


def dataset(**changes: Any) -> Dataset:
    return Dataset.model_validate(MINIMAL | changes)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("external_id", "external_id"),
        ("externalId", "external_id"),
        ("country", "country_code"),
        ("homeCountry", "country_code"),
        ("countryCode", "country_code"),
        ("secret", "secret"),
    ],
)
def test_a_column_answers_to_every_spelling(asked: str, expected: str) -> None:
    column = dataset().column(asked)
    assert column is not None
    assert column.name == expected


@pytest.mark.parametrize("asked", ["", "ExternalId", "external-id", "EXTERNAL_ID", "nope"])
def test_other_spellings_are_unknown(asked: str) -> None:
    assert dataset().column(asked) is None


def test_the_source_is_the_name_unless_declared() -> None:
    assert [column.source for column in dataset().columns] == ["id", "externalId", "country_code", "secret"]


def test_operators_follow_the_type_the_switch_or_the_list() -> None:
    columns = dataset(
        columns=[
            {"name": "id", "type": "uuid"},
            {"name": "a", "type": "json"},
            {"name": "b", "type": "text", "filter": False},
            {"name": "c", "type": "text", "filter": ["eq", "starts_with"]},
        ]
    ).columns
    assert [column.operators for column in columns] == [
        OPERATORS_BY_TYPE[ColumnType.UUID],
        (FilterOperator.CONTAINS, FilterOperator.IS_NULL),
        (),
        (FilterOperator.EQ, FilterOperator.STARTS_WITH),
    ]


def test_every_type_has_operators_and_text_has_all() -> None:
    assert set(OPERATORS_BY_TYPE) == set(ColumnType)
    assert set(OPERATORS_BY_TYPE[ColumnType.TEXT]) == set(FilterOperator)


def test_the_default_layout_is_what_is_exported_under_its_name() -> None:
    layout = dataset().layout()
    assert layout is not None
    assert [item.header for item in layout] == ["id", "external_id", "country_code"]


def test_a_layout_orders_and_names_columns() -> None:
    columns = [*MINIMAL["columns"][:2], MINIMAL["columns"][2] | {"headers": {"shout": "Land", "default": "nation"}}]
    layouts = {"shout": {"columns": ["country_code", "external_id"], "header_case": "upper"}}
    declared = dataset(columns=columns, layouts=layouts)
    assert [item.header for item in declared.layout("shout") or ()] == ["Land", "EXTERNAL_ID"]
    assert [item.header for item in declared.layout() or ()] == ["id", "external_id", "nation"]
    assert [item.header for item in declared.layout("shout", table=False) or ()] == ["Land", "external_id"]
    assert declared.layout("whisper") is None
    assert declared.layout("whisper", table=False) is None


def test_a_title_falls_back_to_english() -> None:
    titled = dataset(title={"en": "People", "es": "Personas"}).title
    assert [titled.localized(locale) for locale in ("en", "es", "pt")] == ["People", "Personas", "People"]


def test_a_child_answers_to_both_spellings_and_is_called_by_its_name() -> None:
    child = {"name": "all_emails", "table": "e", "foreign_key": "p", "value": "v", "order_by": "id"}
    declared = dataset(children=[child])
    assert declared.child("allEmails") is declared.child("all_emails") is declared.children[0]
    assert declared.children[0].header == "all_emails"
    assert declared.child("emails") is None


def test_equal_declarations_have_equal_versions_however_written() -> None:
    spelled_out = dataset(
        layouts={},
        columns=[MINIMAL["columns"][0] | {"source": "id", "filter": True, "headers": {}}, *MINIMAL["columns"][1:]],
        title={"es": "", "en": "People"},
    )
    assert spelled_out.version == dataset().version
    assert Dataset.model_validate(dataset().model_dump()).version == dataset().version
    assert Dataset.model_validate_json(dataset().model_dump_json()).version == dataset().version


def test_any_change_changes_the_version() -> None:
    changed = [dataset(tenant="o"), dataset(description="x"), dataset(columns=MINIMAL["columns"][::-1])]
    assert len({dataset().version, *(other.version for other in changed)}) == 4


def test_the_version_is_the_same_in_another_process() -> None:
    code = "from export_pipeline.catalog.loader import load_catalog; print(load_catalog().version)"
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    )
    assert first == second


def test_a_dataset_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        dataset().table = "other"  # type: ignore[misc]


def test_without_a_file_problems_name_their_place() -> None:
    with pytest.raises(CatalogError, match="key: 'nope' is not a declared column"):
        parse_dataset(json.dumps(MINIMAL | {"key": "nope"}))


def test_the_shipped_schema_is_the_models() -> None:
    shipped = (resources.files("export_pipeline.catalog") / "dataset.schema.json").read_text("utf-8")
    assert shipped == dataset_schema()
    assert set(json.loads(shipped)["required"]) == {"name", "title", "table", "tenant", "key", "columns"}
    assert json.loads(shipped)["additionalProperties"] is False
