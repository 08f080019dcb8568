"""Segments: they select by SQL's three-valued logic, only rows of the tenant, and no value becomes SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.segments import parse_segment_query
from export_pipeline.filters.tree import AllOf, AnyOf, Condition, OnList
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline.source.readers.sqlite import bound_statement
from export_pipeline_tests.engine.people import ACME_CONTACTS, CONTACTS, CUSTOM_FIELDS, DATASET, LISTS, ROWS, examples
from export_pipeline_tests.engine.segment_sql import ANY_TEXT, PREDICATES, Predicate, age, domains, joined, quoted
from export_pipeline_tests.engine.test_filters import CONDITIONS

HOSTILE = [
    "' OR 1=1 --",
    "%s",
    "%(a)s",
    ":x",
    "$1",
    "\\' OR 1=1 --",
    '"; DROP TABLE people; --',
    "\\",
    "日本",
    "%",
    "_",
    "?",
]
SLOW = settings(deadline=None)


def segment(where: str) -> Condition:
    query = f"SELECT c.contact_id, c.updated_at FROM contact_data AS c WHERE {where}"
    return parse_segment_query(query, CONTACTS, CUSTOM_FIELDS, "UTC")


def selection(*conditions: Condition, organization: str = "acme") -> Selection:
    return Selection(CONTACTS, organization, (CONTACTS.key_column,), AllOf(()), AnyOf(conditions))


def select(source: Source, chosen: Selection) -> list[int]:
    with open_snapshot(source, build_query(chosen, source.backend)) as snapshot:
        return [row for batch in snapshot.batches for row in batch["id"].to_pylist()]


def test_a_segment_selects_what_three_valued_logic_selects(source: Source) -> None:
    @settings(SLOW, max_examples=examples(source, 60))
    @given(predicate=PREDICATES)
    def check(predicate: Predicate) -> None:
        expected = [row["id"] for row in ACME_CONTACTS if predicate.truth(row) is True]
        assert select(source, selection(segment(predicate.sql))) == expected

    check()


WHOLE: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
    ("1 = 1 AND first_name = 'ana'", lambda row: row["name"] == "ana"),
    ("NOT 'a' = 'a'", lambda row: False),
    ("phone_number_id * 8 >= 40", lambda row: row["balance"] is not None and row["balance"] >= 5),
    ("phone_number_id > postal_code - 10", lambda row: row["balance"] is not None and row["balance"] > row["id"] - 10),
    ("postal_code / 4 = 2.5", lambda row: row["id"] == 10),
    ("postal_code = 7 OR postal_code = 9 AND first_name IS NULL", lambda row: row["id"] == 7),
    ("NOT postal_code = 7 AND postal_code IN (7, 9)", lambda row: row["id"] == 9),
    ("postal_code % -4 = 3", lambda row: row["id"] % 4 == 3),
    ("(0 - postal_code) % 4 = -3", lambda row: row["id"] % 4 == 3),
    ("NOT CONTAINS(email_domains, 'y.org')", lambda row: "y.org" not in domains(row)),
]


@pytest.mark.parametrize(("where", "expected"), WHOLE)
def test_a_segment_selects(source: Source, where: str, expected: Callable[[dict[str, Any]], bool]) -> None:
    assert select(source, selection(segment(where))) == [row["id"] for row in ACME_CONTACTS if expected(row)]


@pytest.mark.slow
def test_a_segment_as_large_as_may_be_runs(source: Source) -> None:
    where = " OR ".join(["joined<>'2026-03-01'"] * 40 + ["NOT age=5"] * 40 + ["color='no'"] * 420)
    expected = [row["id"] for row in ACME_CONTACTS if _day_or_years(row)]
    assert select(source, selection(segment(where))) == expected


def _day_or_years(row: dict[str, Any]) -> bool:
    day, years = joined(row), age(row)
    return (day is not None and day.isoformat() != "2026-03-01T00:00:00+00:00") or (years is not None and years != 5)


SEGMENTS = ["first_name = {}", "first_name <= {}", "color NOT LIKE {}", "NOT color IN ({0}, 'x', {0})"]
SEGMENTS += ["ARRAY_CONTAINS({}, alternate_emails)", "first_name BETWEEN {0} AND {0}"]
FILTERS: list[Callable[[str], dict[str, Any]]] = [
    lambda value: {"name": value},
    lambda value: {"name": {"contains": value, "ne": value, "lt": value}},
    lambda value: {"or": [{"name": {"starts_with": value}}, {"name": {"nin": [value, "x"]}}]},
]


def statements(value: str) -> list[str]:
    conditions = [segment(form.format(quoted(value))) for form in SEGMENTS]
    if "@" not in value:
        conditions.append(segment(f"CONTAINS(email_domains, {quoted(value)})"))
    chosen = [selection(condition) for condition in conditions]
    chosen += [
        Selection(DATASET, value, DATASET.columns, parse_filters(form(value), DATASET, "UTC")) for form in FILTERS
    ]
    dialect = sa.make_url("postgresql+psycopg://").get_dialect()()
    return [
        statement
        for one in chosen
        for statement in (
            bound_statement(build_query(one, "sqlite").rows)[0],
            build_query(one, "postgresql").rows.compile(dialect=dialect).string,
        )
    ]


PLAIN = statements("plain")


@pytest.mark.slow
@settings(SLOW, max_examples=60)
@given(value=ANY_TEXT.filter(lambda text: "@" not in text))
@example("' OR 1=1 --")
@example("\\' OR 1=1 --")
@example("%(a)s %s :x $1 ?")
@example('"; DROP TABLE people; --')
def test_no_value_changes_the_statement(value: str) -> None:
    assert statements(value) == PLAIN


def test_every_value_reaches_the_database_as_it_is(source: Source) -> None:
    @settings(SLOW, max_examples=examples(source, 25))
    @given(value=st.sampled_from(HOSTILE) | ANY_TEXT)
    def check(value: str) -> None:
        literal = quoted(value)
        same = [row["id"] for row in ACME_CONTACTS if row["name"] == value]
        assert select(source, selection(segment(f"first_name = {literal} OR first_name IN ({literal})"))) == same
        beyond = [row["id"] for row in ACME_CONTACTS if row["name"] is not None and row["name"] > value]
        assert select(source, selection(segment(f"first_name > {literal}"))) == beyond

    check()


def test_like_has_no_escape_and_minds_case(source: Source) -> None:
    for pattern, names in [
        ("a%", {"ana", "a%b_c"}),
        ("back\\s%", {"back\\slash"}),
        ("A__", {"Ana"}),
        ("_na", {"ana", "Ana", "Ána"}),
    ]:
        expected = [row["id"] for row in ACME_CONTACTS if row["name"] in names]
        assert select(source, selection(segment(f"first_name LIKE {quoted(pattern)}"))) == expected


def test_no_condition_crosses_the_tenant(source: Source) -> None:
    every_list = OnList(tuple(each for lists in LISTS.values() for each in lists))

    @settings(SLOW, max_examples=examples(source, 20))
    @given(predicate=PREDICATES, filters=CONDITIONS, organization=st.sampled_from(["acme", "other", "nobody"]))
    def check(predicate: Predicate, filters: dict[str, Any], organization: str) -> None:
        own = {row["id"] for row in ROWS if row["organization_id"] == organization}
        either = (segment(predicate.sql), segment(f"NOT {predicate.sql}"), every_list)
        assert set(select(source, selection(*either, organization=organization))) <= own
        parsed = parse_filters({"or": [filters, {"not": filters}]}, DATASET, "UTC")
        assert set(select(source, Selection(DATASET, organization, DATASET.columns, parsed))) == own

    check()


def test_another_tenants_list_selects_nothing(source: Source) -> None:
    # Its membership names rows of acme, but says so as the other organization's.
    assert select(source, selection(OnList((LISTS["other"][0],)))) == []
    assert select(source, selection(OnList((LISTS["acme"][0],)), organization="other")) == []
    assert select(source, selection(segment(f"CONTAINS(list_ids, '{LISTS['other'][0]}')"))) == []


@pytest.mark.parametrize(
    "where", ["age > 1", "first_name > 'a'", "email LIKE 'a'", "CONTAINS(alternate_emails, 'a')", "-postal_code = 1"]
)
def test_another_database_is_told_what_it_cannot_be_asked(where: str) -> None:
    with pytest.raises(ExportFailure, match="not supported on mssql") as refused:
        build_query(selection(segment(where)), "mssql")
    assert refused.value.code is FailureCode.NOT_SUPPORTED
