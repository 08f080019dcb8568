"""Filters and date ranges select exactly the rows that plain Python selects, and never another tenant's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests import adversarial
from export_pipeline_tests.acceptance.application import DATASETS, stored_rows
from export_pipeline_tests.acceptance.pipeline import Pipeline

ORGANIZATION, OTHER = ORGANIZATIONS[0].id, ORGANIZATIONS[1].id
Row = Mapping[str, Any]
Predicate = Callable[[Row], bool]
CONTACT_FILTERS: Mapping[str, tuple[Any, Predicate]] = {
    "nothing asked": ({}, lambda row: True),
    "equals": ({"country": "Brasil"}, lambda row: row["country"] == "Brasil"),
    "equals, in words": ({"country": {"eq": "Brasil"}}, lambda row: row["country"] == "Brasil"),
    "one of": ({"country": ["Brasil", "México", "'"]}, lambda row: row["country"] in ("Brasil", "México")),
    "one of none": ({"id": {"in": []}}, lambda row: False),
    "none of none": ({"country": {"nin": []}}, lambda row: True),
    "none of": ({"country": {"nin": ["Brasil", "México"]}}, lambda row: row["country"] not in ("Brasil", "México")),
    "not equal": ({"first_name": {"ne": "Ana"}}, lambda row: row["first_name"] != "Ana"),
    "null": ({"first_name": None}, lambda row: row["first_name"] is None),
    "not null": ({"first_name": {"is_null": False}}, lambda row: row["first_name"] is not None),
    "empty is not null": ({"first_name": ""}, lambda row: row["first_name"] == ""),
    "at least": ({"score": {"gte": 50}}, lambda row: row["score"] is not None and row["score"] >= 50),
    "range": (
        {"score": {"gt": 10, "lte": 20.5}},
        lambda row: row["score"] is not None and 10 < row["score"] <= 20.5,
    ),
    "between": ({"id": {"between": [100, 300]}}, lambda row: 100 <= row["id"] <= 300),
    "contains": ({"name": {"contains": "ilva"}}, lambda row: "ilva" in (row["name"] or "")),
    "contains is case-sensitive": ({"name": {"contains": "SILVA"}}, lambda row: "SILVA" in (row["name"] or "")),
    "contains a wildcard": ({"name": {"contains": "%"}}, lambda row: "%" in (row["name"] or "")),
    "contains another wildcard": ({"name": {"contains": "_"}}, lambda row: "_" in (row["name"] or "")),
    "contains a backslash": ({"name": {"contains": "\\"}}, lambda row: "\\" in (row["name"] or "")),
    "starts with": ({"name": {"starts_with": "Conce"}}, lambda row: (row["name"] or "").startswith("Conce")),
    "boolean": ({"is_subscribed": False}, lambda row: row["is_subscribed"] is False),
    "camel case": ({"isSubscribed": {"ne": True}}, lambda row: row["is_subscribed"] is not True),
    "alias": ({"full_name": "王小明"}, lambda row: row["name"] == "王小明"),
    "alias in camel case": ({"fullName": {"starts_with": "A"}}, lambda row: (row["name"] or "").startswith("A")),
    "by code point": (
        {"name": {"gt": "Z", "lt": "b"}},
        lambda row: row["name"] is not None and "Z" < row["name"] < "b",
    ),
    "decimal": (
        {"lifetime_value": {"gt": "1000.5"}},
        lambda row: row["lifetime_value"] is not None and Decimal(row["lifetime_value"]) > Decimal("1000.5"),
    ),
    "decimal, whatever its zeros": (
        {"lifetime_value": 0.3},
        lambda row: row["lifetime_value"] is not None and Decimal(row["lifetime_value"]) == Decimal("0.3"),
    ),
    "date": (
        {"birth_date": {"between": ["0001-01-01", "1970-01-01"]}},
        lambda row: row["birth_date"] is not None and row["birth_date"] <= date(1970, 1, 1),
    ),
    "instant with an offset": (
        {"created_at": {"gte": "2024-06-15T09:00:00.000001-03:00"}},
        lambda row: row["created_at"] >= datetime(2024, 6, 15, 12, 0, 0, 1, tzinfo=UTC),
    ),
    "instant in the organization's zone": (
        {"created_at": {"lt": "1969-12-31T21:00:00"}},
        lambda row: row["created_at"] < datetime(1970, 1, 1, tzinfo=UTC),
    ),
    "either": (
        {"or": [{"country": "Brasil"}, {"score": {"lt": 5}}]},
        lambda row: row["country"] == "Brasil" or (row["score"] is not None and row["score"] < 5),
    ),
    "not": ({"not": {"country": "Brasil"}}, lambda row: row["country"] != "Brasil"),
    "not greater, null among them": (
        {"not": {"score": {"gt": 50}}},
        lambda row: row["score"] is None or row["score"] <= 50,
    ),
    "nested": (
        {
            "and": [{"not": {"or": [{"country": "Brasil"}, {"city": None}]}}, {"is_subscribed": True}],
            "id": {"lt": 2000},
        },
        lambda row: (
            row["country"] != "Brasil" and row["city"] is not None and row["is_subscribed"] is True and row["id"] < 2000
        ),
    ),
}
ENTITY_FILTERS: Mapping[str, tuple[Any, Predicate]] = {
    "alias": ({"country": "BR"}, lambda row: row["country_code"] == "BR"),
    "camel case": ({"riskScore": {"gte": 70}}, lambda row: row["risk_score"] is not None and row["risk_score"] >= 70),
    "active": (
        {"deleted_at": None, "type": "person"},
        lambda row: row["deleted_at"] is None and row["type"] == "person",
    ),
    "deleted": ({"deletedAt": {"is_null": False}}, lambda row: row["deleted_at"] is not None),
    "json": ({"attributes": {"is_null": True}}, lambda row: row["attributes"] is None),
}
NO_ROW_EXPECTED = {"one of none", "contains is case-sensitive"}


def rows_of(pipeline: Pipeline, dataset: str, organization: str = ORGANIZATION) -> list[Row]:
    names = list(DATASETS[dataset])
    return [dict(zip(names, row, strict=True)) for row in stored_rows(pipeline.database, dataset, organization)]


def delivered_ids(files: list[bytes]) -> list[Any]:
    (data,) = files
    return [item["id"] for item in json.loads(data)]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["contacts", "entities"])
def test_a_filter_selects_what_it_says(pipeline: Pipeline, dataset: str) -> None:
    stored = rows_of(pipeline, dataset)
    cases = CONTACT_FILTERS if dataset == "contacts" else ENTITY_FILTERS
    asked = [
        {"dataset": dataset, "format": "json", "columns": ["id"], "filters": filters} for filters, _ in cases.values()
    ]
    for (name, (_, predicate)), result in zip(cases.items(), pipeline.export_all(asked), strict=True):
        assert (result.state.status, result.state.message) == ("completed", None), name
        expected = [row["id"] for row in stored if predicate(row)]
        assert delivered_ids(result.files) == expected, name
        assert bool(expected) != (name in NO_ROW_EXPECTED), name


INJECTIONS = [
    "' OR 1=1 --",
    "' OR '1'='1",
    "1; DROP TABLE contacts; --",
    "%s",
    "%(x)s",
    "%%",
    "%",
    ":x",
    ":param_1",
    "$1",
    "?",
    "?1",
    "\\",
    "\\' OR 1=1 --",
    "E'\\x27'",
    "\\N",
    "{0} {{x}} ${y}",
    "[organization_id]",
    '"organization_id"',
    f"{ORGANIZATION}' OR '1'='1",
    f"{ORGANIZATION} ",
]


@pytest.mark.slow
def test_no_value_of_organization_id_opens_a_tenant(pipeline: Pipeline) -> None:
    results = pipeline.export_all(
        [{"organization_id": value, "format": "json", "columns": ["id"]} for value in INJECTIONS]
    )
    for value, result in zip(INJECTIONS, results, strict=True):
        assert (result.state.status, result.state.error_code) == ("failed", "invalid_request"), value
        assert "organization_id" in str(result.state.message)
        assert value not in str(result.state.message)


@pytest.mark.slow
def test_no_value_of_a_filter_is_more_than_a_value(pipeline: Pipeline) -> None:
    stored = rows_of(pipeline, "contacts")
    texts = [*INJECTIONS, *(text for text in adversarial.TEXTS.values() if text)]
    cases = [anywhere(text) for text in INJECTIONS]
    cases += [({"name": texts}, lambda row: row["name"] in texts)]
    cases += [({"or": [{"name": {"starts_with": text}} for text in texts]}, lambda row: starts(row["name"], texts))]
    asked = [{"format": "json", "columns": ["id"], "filters": filters} for filters, _ in cases]
    for (filters, predicate), result in zip(cases, pipeline.export_all(asked), strict=True):
        assert result.state.status == "completed", (filters, result.state.message)
        assert delivered_ids(result.files) == [row["id"] for row in stored if predicate(row)], filters


def anywhere(text: str) -> tuple[Any, Predicate]:
    return (
        {"or": [{"name": text}, {"city": {"contains": text}}]},
        lambda row: row["name"] == text or text in (row["city"] or ""),
    )


def starts(value: str | None, texts: list[str]) -> bool:
    return value is not None and value.startswith(tuple(texts))


@pytest.mark.slow
def test_no_filter_reaches_another_tenant(pipeline: Pipeline) -> None:
    strangers = [row["id"] for row in rows_of(pipeline, "contacts", OTHER)]
    assert strangers
    filters = [
        {"id": strangers},
        {"or": [{"id": {"gte": 0}}, {"id": strangers}]},
        {"not": {"id": {"lt": 0}}},
    ]
    none, *everything = pipeline.export_all([{"format": "json", "columns": ["id"], "filters": one} for one in filters])
    assert delivered_ids(none.files) == []
    own = [row["id"] for row in rows_of(pipeline, "contacts")]
    for result in everything:
        assert delivered_ids(result.files) == own
    assert not set(own) & set(strangers)


MICROSECOND = timedelta(microseconds=1)
# São Paulo: on 2018-11-04 the clock jumped from 00:00 to 01:00 (03:00 UTC);
# on 2019-02-17 at 00:00 (02:00 UTC) it went back to 23:00 of the 16th.
SUMMER = datetime(2018, 11, 4, 3, 0, tzinfo=UTC)
WINTER = datetime(2019, 2, 17, 2, 0, tzinfo=UTC)
HALF_AN_HOUR = timedelta(minutes=30)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("start", "end", "first", "before"),
    [
        # From the first instant of the day that has no 00:00.
        ("2018-11-04 00:00:00", None, SUMMER, None),
        # 23:30 happens twice: as an end it is the second one, to the end of that second.
        (None, "2019-02-16 23:30:00", None, WINTER + HALF_AN_HOUR + SECOND),
        # As a start it is the first one.
        ("2019-02-16 23:30:00", None, WINTER - HALF_AN_HOUR, None),
        ("2018-11-04 01:30:00", "2019-02-16 22:59:59", SUMMER + HALF_AN_HOUR, WINTER - 2 * HALF_AN_HOUR),
        (
            "2024-01-01 00:00:00",
            "2024-12-31 20:59:59",
            datetime(2024, 1, 1, 3, tzinfo=UTC),
            datetime(2025, 1, 1, tzinfo=UTC),
        ),
        (
            "2030-01-01 00:00:00",
            "2030-01-02 00:00:00",
            datetime(2030, 1, 1, 3, tzinfo=UTC),
            datetime(2030, 1, 3, 3, tzinfo=UTC),
        ),
        # A date alone ends with its day.
        ("2024-01-01", "2024-12-31", datetime(2024, 1, 1, 3, tzinfo=UTC), datetime(2025, 1, 1, 3, tzinfo=UTC)),
        ("2018-11-04", "2018-11-04", SUMMER, datetime(2018, 11, 5, 2, tzinfo=UTC)),
        (
            "2019-02-16 12:00:00",
            "2019-02-16",
            datetime(2019, 2, 16, 14, tzinfo=UTC),
            datetime(2019, 2, 17, 3, tzinfo=UTC),
        ),
    ],
)
def test_dates_are_wall_clock_of_the_organization_both_ends_included(
    pipeline: Pipeline, start: str | None, end: str | None, first: datetime | None, before: datetime | None
) -> None:
    assert ORGANIZATIONS[0].time_zone == "America/Sao_Paulo"
    stored = [(row["id"], row["created_at"]) for row in rows_of(pipeline, "contacts")]
    result = pipeline.export(format="json", columns=["id"], start_date=start, end_date=end)
    assert (result.state.status, result.state.message) == ("completed", None)
    low, high = first or datetime.min.replace(tzinfo=UTC), before or datetime.max.replace(tzinfo=UTC)
    assert delivered_ids(result.files) == [key for key, moment in stored if low <= moment < high]


def test_the_demo_has_rows_on_both_sides_of_those_ends(pipeline: Pipeline) -> None:
    moments = {row["created_at"] for row in rows_of(pipeline, "contacts")}
    new_year = datetime(2025, 1, 1, tzinfo=UTC)
    ends = {SUMMER - MICROSECOND, SUMMER, WINTER + HALF_AN_HOUR, WINTER + 2 * HALF_AN_HOUR - MICROSECOND}
    ends |= {new_year - MICROSECOND, new_year, datetime(2024, 1, 1, 3, tzinfo=UTC)}
    assert not ends - moments
