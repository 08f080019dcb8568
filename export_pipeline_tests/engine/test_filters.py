"""JSON filters: what they refuse, and that they select exactly what an evaluation in Python selects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipeline.catalog.types import FilterOperator
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.tree import AllOf, AnyOf, Comparison, Negation
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline_tests.engine.people import ACME, ACME_CONTACTS, CONTACTS, DATASET, NAMES, examples

REFUSED = [
    ({"nope": 1}, "filters.nope", "not a filterable column"),
    ({"secret": "s"}, "filters.secret", "not a filterable column"),
    ({"organization_id": "other"}, "filters.organization_id", "not a filterable column"),
    ({"name": {"like": "a%"}}, "filters.name.like", "not an operator"),
    ({"extra": {"eq": "{}"}}, "filters.extra.eq", "not allowed on extra"),
    ({"is_client": {"gt": True}}, "filters.is_client.gt", "not allowed on is_client"),
    ({"name": 5}, "filters.name", "must be a string"),
    ({"name": "nul\x00"}, "filters.name", "must be a string"),
    ({"id": "5"}, "filters.id", "must be a whole number"),
    ({"id": True}, "filters.id", "must be a whole number"),
    ({"id": 2**63}, "filters.id", "must be a whole number"),
    ({"score": "high"}, "filters.score", "must be a number"),
    ({"balance": "NaN"}, "filters.balance", "must be a number"),
    ({"score": float("inf")}, "filters.score", "must be a number"),
    ({"score": {"ne": float("nan")}}, "filters.score.ne", "must be a number"),
    ({"score": [1, float("-inf")]}, r"filters.score\[1\]", "must be a number"),
    ({"score": 10**400}, "filters.score", "must be a number"),
    ({"is_client": "yes"}, "filters.is_client", "must be true or false"),
    ({"born_on": "01/02/1990"}, "filters.born_on", "ISO 8601 date"),
    ({"created_at": {"gte": "yesterday"}}, "filters.created_at.gte", "ISO 8601 date and time"),
    ({"external_uuid": "123"}, "filters.external_uuid", "must be a UUID"),
    ({"id": {"between": [1]}}, "filters.id.between", "two values"),
    ({"id": {"in": 5}}, "filters.id.in", "must be a JSON array"),
    ({"id": [1, "2"]}, r"filters.id\[1\]", "must be a whole number"),
    ({"name": {"is_null": "yes"}}, "filters.name.is_null", "must be true or false"),
    ({"name": {}}, "filters.name", "has no operator"),
    ({"or": {"name": "ana"}}, "filters.or", "must be a non-empty JSON array"),
    ({"and": []}, "filters.and", "must be a non-empty JSON array"),
    ({"not": ["x"]}, "filters.not", "must be a JSON object"),
    ({"id": list(range(10_001))}, "filters.id", "more than 10000 values"),
    ({"or": [{"id": n} for n in range(501)]}, "filters", "more than 500 conditions"),
]


@pytest.mark.parametrize(("filters", "path", "problem"), REFUSED)
def test_a_wrong_filter_is_refused_with_its_path(filters: dict[str, Any], path: str, problem: str) -> None:
    with pytest.raises(ExportFailure, match=f"{path}: .*{problem}") as refused:
        parse_filters(filters, DATASET, "UTC")
    assert refused.value.code is FailureCode.INVALID_FILTER


def test_nesting_is_bounded() -> None:
    filters: dict[str, Any] = {"id": 1}
    for _ in range(12):
        filters = {"not": filters}
    with pytest.raises(ExportFailure, match="deeper"):
        parse_filters(filters, DATASET, "UTC")


def select(source: Source, filters: dict[str, Any], organization: str = "acme") -> list[int]:
    parsed = parse_filters(filters, DATASET, "America/Sao_Paulo")
    selection = Selection(DATASET, organization, DATASET.columns, parsed)
    query = build_query(selection, source.backend)
    with open_snapshot(source, query) as snapshot:
        ids = [row for batch in snapshot.batches for row in batch["id"].to_pylist()]
        assert len(ids) == snapshot.row_count
    return ids


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, lambda row: True),
        ({"name": "ana"}, lambda row: row["name"] == "ana"),
        ({"fullName": "ana"}, lambda row: row["name"] == "ana"),
        ({"isClient": True}, lambda row: row["is_client"] is True),
        ({"name": None}, lambda row: row["name"] is None),
        ({"name": {"ne": "ana"}}, lambda row: row["name"] != "ana"),
        ({"not": {"name": "ana"}}, lambda row: row["name"] != "ana"),
        ({"not": {"score": {"gt": 0}}}, lambda row: not (row["score"] is not None and row["score"] > 0)),
        # 09:30 in São Paulo is 12:30 UTC.
        (
            {"created_at": {"lt": "2026-03-13T09:30:00"}},
            lambda row: row["created_at"] < datetime(2026, 3, 13, 12, 30, tzinfo=UTC),
        ),
        ({"extra": None}, lambda row: row["extra"] is None),
    ],
)
def test_filters_select(source: Source, filters: dict[str, Any], expected: Any) -> None:
    assert select(source, filters) == [row["id"] for row in ACME if expected(row)]


@pytest.mark.parametrize("value", ["ana@Example.com", "ana@example.com", "o'b@example.com", "x@y.org", "5", "%", ""])
def test_an_array_contains_the_texts_that_are_its_elements(source: Source, value: str) -> None:
    expected = [
        row["id"]
        for row in ACME_CONTACTS
        if isinstance(row["alternate_emails"], list) and value in row["alternate_emails"]
    ]
    for filters, found in (
        ({"alternate_emails": {"contains": value}}, expected),
        (
            {"not": {"alternate_emails": {"contains": value}}},
            [row["id"] for row in ACME_CONTACTS if row["id"] not in expected],
        ),
    ):
        chosen = Selection(CONTACTS, "acme", (CONTACTS.key_column,), parse_filters(filters, CONTACTS, "UTC"))
        with open_snapshot(source, build_query(chosen, source.backend)) as snapshot:
            assert [row for batch in snapshot.batches for row in batch["id"].to_pylist()] == found


# The organization's zone is three hours behind UTC: its 14 March begins at 03:00 UTC.
DAY, NEXT = datetime(2026, 3, 14, 3, tzinfo=UTC), datetime(2026, 3, 15, 3, tzinfo=UTC)
FIRST = ACME[0]["created_at"].isoformat()
OF_DAYS: list[tuple[Any, Callable[[datetime], bool]]] = [
    ("2026-03-14", lambda at: DAY <= at < NEXT),
    ({"ne": "2026-03-14"}, lambda at: not DAY <= at < NEXT),
    ({"gt": "2026-03-14"}, lambda at: at >= NEXT),
    ({"gte": "2026-03-14"}, lambda at: at >= DAY),
    ({"lt": "2026-03-14"}, lambda at: at < DAY),
    ({"lte": "2026-03-14"}, lambda at: at < NEXT),
    ({"between": ["2026-03-14", "2026-03-14"]}, lambda at: DAY <= at < NEXT),
    ({"between": ["2026-03-10T00:00:00Z", "2026-03-14"]}, lambda at: datetime(2026, 3, 10, tzinfo=UTC) <= at < NEXT),
    (["2026-03-14", FIRST], lambda at: DAY <= at < NEXT or at.isoformat() == FIRST),
    ({"nin": ["2026-03-14"]}, lambda at: not DAY <= at < NEXT),
]


@pytest.mark.parametrize(("asked", "expected"), OF_DAYS)
def test_a_date_alone_is_the_whole_day_of_the_organization(
    source: Source, asked: Any, expected: Callable[[datetime], bool]
) -> None:
    found = select(source, {"created_at": asked})
    assert found == [row["id"] for row in ACME if expected(row["created_at"])]
    assert found
    assert len(found) < len(ACME)


TEXTS = st.sampled_from([name for name in NAMES if name is not None]) | st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(-5, 65),
    "name": TEXTS,
    "score": st.integers(-20, 40).map(lambda n: n / 4),
    "balance": st.integers(-80, 400).map(lambda n: str(Decimal(n) / 8)),
    "is_client": st.booleans(),
    "born_on": st.dates(date(1989, 1, 1), date(1996, 1, 1)).map(date.isoformat),
    "created_at": st.sampled_from([row["created_at"].isoformat() for row in ACME])
    | st.datetimes(datetime(2026, 2, 27), datetime(2026, 4, 2)).map(lambda d: d.replace(tzinfo=UTC).isoformat()),  # noqa: DTZ001
    "external_uuid": st.sampled_from([row["external_uuid"] for row in ACME if row["external_uuid"]]),
}


def comparison(name: str) -> st.SearchStrategy[dict[str, Any]]:
    value = VALUES[name]
    column = DATASET.column(name)
    assert column is not None
    options: list[st.SearchStrategy[dict[str, Any]]] = [value.map(lambda v: {name: v}), st.just({name: None})]
    for operator in column.operators:
        if operator in ("in", "nin"):
            given_value: st.SearchStrategy[Any] = st.lists(value, max_size=3)
        elif operator == "between":
            given_value = st.tuples(value, value).map(list)
        elif operator == "is_null":
            given_value = st.booleans()
        else:
            given_value = value
        options.append(given_value.map(lambda v, operator=operator: {name: {operator.value: v}}))
    return st.one_of(options)


CONDITIONS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from(sorted(VALUES)).flatmap(comparison),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"and": items}),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: {"or": items}),
        inner.map(lambda item: {"not": item}),
    ),
    max_leaves=6,
)


def evaluate(filters: dict[str, Any], row: dict[str, Any]) -> bool:
    """The same language, on a row in Python."""
    return all(_member(key, value, row) for key, value in filters.items())


def _member(key: str, value: Any, row: dict[str, Any]) -> bool:
    if key == "and":
        return all(evaluate(item, row) for item in value)
    if key == "or":
        return any(evaluate(item, row) for item in value)
    if key == "not":
        return not evaluate(value, row)
    if value is None:
        return row[key] is None
    if isinstance(value, list):
        value = {"in": value}
    if not isinstance(value, dict):
        value = {"eq": value}
    return all(_operator(operator, row[key], operand) for operator, operand in value.items())


def _typed(actual: Any, operand: Any) -> Any:
    if isinstance(operand, list):
        return [_typed(actual, item) for item in operand]
    if isinstance(actual, Decimal):
        return Decimal(operand)
    if isinstance(actual, datetime):
        return datetime.fromisoformat(operand)
    return date.fromisoformat(operand) if isinstance(actual, date) else operand


def _operator(operator: str, actual: Any, operand: Any) -> bool:
    if operator == "is_null":
        return (actual is None) == operand
    if actual is None:
        return operator in ("ne", "nin")
    value = _typed(actual, operand)
    checks: dict[str, Any] = {
        "eq": lambda: actual == value,
        "ne": lambda: actual != value,
        "in": lambda: actual in value,
        "nin": lambda: actual not in value,
        "gt": lambda: actual > value,
        "gte": lambda: actual >= value,
        "lt": lambda: actual < value,
        "lte": lambda: actual <= value,
        "between": lambda: value[0] <= actual <= value[1],
        "contains": lambda: value in actual,
        "starts_with": lambda: actual.startswith(value),
    }
    return bool(checks[operator]())


def test_sql_selects_what_python_selects(source: Source) -> None:
    @settings(max_examples=examples(source, 120), deadline=None)
    @given(filters=CONDITIONS)
    def check(filters: dict[str, Any]) -> None:
        assert select(source, filters) == [row["id"] for row in ACME if evaluate(filters, row)]

    check()


def test_no_input_reaches_another_tenant_or_the_statement(source: Source) -> None:
    @settings(max_examples=examples(source, 60), deadline=None)
    @given(value=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
    @example("ACME")
    @example("acme ")
    @example("ácme")
    def check(value: str) -> None:
        expected = [row["id"] for row in ACME if row["name"] == value]
        assert select(source, {"name": value}) == expected
        if value not in ("acme", "other"):
            assert select(source, {}, organization=value) == []

    check()


def test_more_conditions_than_a_database_nests(source: Source) -> None:
    ids = [Comparison(DATASET.key_column, FilterOperator.EQ, number) for number in range(1, 2001)]
    others = [Negation(AllOf((condition,))) for condition in ids[:500]]
    every = parse_filters({}, DATASET, "UTC")
    query = build_query(Selection(DATASET, "acme", DATASET.columns, every, AnyOf((*ids,))), source.backend)
    with open_snapshot(source, query) as snapshot:
        assert snapshot.row_count == len(ACME)
    query = build_query(Selection(DATASET, "acme", DATASET.columns, AllOf((*others,))), source.backend)
    with open_snapshot(source, query) as snapshot:
        assert snapshot.row_count == 0


@pytest.mark.parametrize(
    "value", ["' OR 1=1 --", "%s", "%(x)s", ":x", "$1", "\\' OR 1=1 --", '"; DROP TABLE people; --']
)
def test_injection_selects_nothing(source: Source, value: str) -> None:
    assert select(source, {}, organization=value) == []
    assert select(source, {"name": {"in": [value, "no such name"]}}) == [r["id"] for r in ACME if r["name"] == value]
