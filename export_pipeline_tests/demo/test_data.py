"""The demo's data: the same rows however made and wherever loaded, with every adversarial value among them."""

from __future__ import annotations

import datetime as dt
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.catalog.model import CustomField
from export_pipeline.catalog.types import ColumnType
from export_pipeline.demo.data import ORGANIZATIONS, DemoDataError, schema
from export_pipeline.demo.data.generator import FIRST_ROWS
from export_pipeline.demo.data.rows import (
    EMAILS_AT_MOST,
    LIST_NAMES,
    SEGMENTS,
    TOKENS_AT_MOST,
    generate_emails,
    generate_tokens,
    list_id,
)
from export_pipeline.filters.segments import StoredSegment, segment_condition
from export_pipeline_tests import adversarial
from export_pipeline_tests.adversarial import (
    ADVERSARIAL_RATE,
    CLOCK_CHANGES,
    CUSTOM_FIELDS,
    generate_contacts,
    generate_entities,
    load_demo_data,
)

Generator = Callable[..., Iterator[pa.RecordBatch]]
SEED = 7
ROWS = 40_000


@pytest.fixture(scope="module")
def contacts() -> pa.Table:
    return pa.Table.from_batches(generate_contacts(ROWS, SEED))


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "demo.db"


@pytest.mark.parametrize("generate", [generate_contacts, generate_entities, generate_tokens, generate_emails])
def test_rows_do_not_depend_on_the_chunks(generate: Generator) -> None:
    whole = pa.Table.from_batches(generate(3000, SEED)).combine_chunks()
    for chunk_rows in (1, 977) if generate in (generate_tokens, generate_emails) else (61, 977):
        parts = pa.Table.from_batches(generate(3000, SEED, chunk_rows=chunk_rows)).combine_chunks()
        assert parts.equals(whole)


@pytest.mark.parametrize("generate", [generate_contacts, generate_entities])
def test_more_rows_begin_with_the_same_and_another_seed_makes_others(generate: Generator) -> None:
    few, many = (pa.Table.from_batches(generate(rows, SEED)).combine_chunks() for rows in (500, 700))
    assert many.slice(0, 500).combine_chunks().equals(few)
    other = pa.Table.from_batches(generate(500, SEED + 1)).combine_chunks()
    assert not other.equals(few)
    assert other["name"].slice(0, FIRST_ROWS).equals(few["name"].slice(0, FIRST_ROWS))


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows(rows: int) -> None:
    assert sum(batch.num_rows for batch in generate_contacts(rows, SEED)) == rows
    assert sum(batch.num_rows for batch in generate_entities(rows, SEED)) == rows


def test_organizations_have_their_shares(contacts: pa.Table) -> None:
    counts = Counter(contacts["organization_id"].to_pylist())
    assert sum(organization.share for organization in ORGANIZATIONS) == pytest.approx(1)
    for organization in ORGANIZATIONS:
        assert counts[organization.id] / ROWS == pytest.approx(organization.share, abs=0.01)
        assert ZoneInfo(organization.time_zone).key == organization.time_zone


@pytest.mark.parametrize("kind", adversarial.TEXTS)
def test_every_adversarial_text_is_in_the_first_rows(contacts: pa.Table, kind: str) -> None:
    first = contacts.slice(0, FIRST_ROWS)
    assert set(first["organization_id"].to_pylist()) == {ORGANIZATIONS[0].id}
    assert adversarial.TEXTS[kind] in first["first_name"].to_pylist()
    assert adversarial.TEXTS[kind] in first["external_id"].to_pylist()
    # And among all the others, where they came by chance.
    assert adversarial.TEXTS[kind] in contacts.slice(FIRST_ROWS)["first_name"].to_pylist()


def test_every_other_adversarial_value_is_in_the_first_rows(contacts: pa.Table) -> None:
    first = contacts.slice(0, FIRST_ROWS)
    pools: dict[str, tuple[Any, ...]] = {
        "phone_number": adversarial.PHONES,
        "email": adversarial.EMAILS,
        "lifetime_value": adversarial.DECIMALS,
        "custom_fields": (*adversarial.OBJECTS, adversarial.LONG_OBJECT),
        "birth_date": tuple(text and dt.date.fromisoformat(text) for text in adversarial.DATES),
        "created_at": tuple(dt.datetime.fromisoformat(f"{text}+00:00") for text in adversarial.TIMESTAMPS),
    }
    for name, pool in pools.items():
        assert set(pool) <= set(first[name].to_pylist()), name
    assert {repr(value) for value in adversarial.FLOATS} <= {repr(value) for value in first["score"].to_pylist()}
    assert adversarial.LONG_TEXT in first["location"].to_pylist()
    assert len(adversarial.LONG_TEXT) == 40_000
    assert len(adversarial.LONG_OBJECT) > 32_767


def test_adversarial_values_come_at_their_rate(contacts: pa.Table) -> None:
    formulas = pc.sum(pc.equal(contacts["first_name"], adversarial.TEXTS["formula"])).as_py()
    expected = ROWS * ADVERSARIAL_RATE / len(adversarial.TEXTS)
    assert expected / 3 < formulas < expected * 3


def test_every_organization_has_instants_on_both_sides_of_its_clock_changes(contacts: pa.Table) -> None:
    made = {organization.id: set[dt.datetime]() for organization in ORGANIZATIONS}
    for organization_id, instant in zip(
        contacts["organization_id"].to_pylist(), contacts["created_at"].to_pylist(), strict=True
    ):
        made[organization_id].add(instant)
    for organization, changes in zip(ORGANIZATIONS[:4], CLOCK_CHANGES[:4], strict=True):
        zone = ZoneInfo(organization.time_zone)
        for text in changes:
            change = dt.datetime.fromisoformat(f"{text}+00:00")
            before = change - dt.timedelta(microseconds=1)
            assert change.astimezone(zone).utcoffset() != before.astimezone(zone).utcoffset()
            assert {change, before} & made[organization.id]


def test_what_is_generated_is_what_the_tables_and_the_catalog_have() -> None:
    catalog = load_catalog()
    for name, generate in (("contacts", generate_contacts), ("entities", generate_entities)):
        table = schema.metadata.tables[name]
        assert next(generate(1, SEED)).schema.names == [column.name for column in table.columns]
        dataset = catalog[name]
        assert {column.source for column in dataset.columns} | {dataset.tenant} == {c.name for c in table.columns}
    declared = catalog["contacts"]
    assert declared.lists is not None
    assert declared.segments is not None
    for child in declared.children:
        needed = {child.foreign_key, child.value, child.order_by, child.tenant}
        assert needed <= set(schema.metadata.tables[child.table].columns.keys())
    members, segments = declared.lists, declared.segments
    assert {members.member, members.list_id} <= set(schema.metadata.tables[members.table].columns.keys())
    assert {members.lists.id, members.lists.name} <= set(schema.metadata.tables[members.lists.table].columns.keys())
    assert {segments.filter, segments.query_dsl} <= set(schema.metadata.tables[segments.table].columns.keys())
    fields = declared.custom_fields
    assert fields is not None
    assert {fields.name, fields.field_type, fields.tenant} <= set(schema.metadata.tables[fields.table].columns.keys())


def test_sqlite_holds_what_was_generated(sqlite_path: Path) -> None:
    rows = load_demo_data(f"sqlite:///{sqlite_path}", contacts=2000, entities=500, seed=SEED)
    assert (rows["contacts"], rows["entities"]) == (2000, 500)
    with sqlite3.connect(sqlite_path) as connection:
        for table, generate, rows in (("contacts", generate_contacts, 2000), ("entities", generate_entities, 500)):
            expected = pa.Table.from_batches(generate(rows, SEED))
            _assert_same(expected, _sqlite_rows(connection, table))
        wrong = "SELECT count(*) FROM contacts WHERE length(created_at) != 26 OR typeof(lifetime_value) = 'real'"
        assert connection.execute(wrong).fetchone() == (0,)
    connection.close()


def test_postgresql_holds_what_sqlite_holds(sqlite_path: Path, postgres_url: str) -> None:
    there_and_here = [
        load_demo_data(url, contacts=2000, entities=500, seed=SEED)
        for url in (f"sqlite:///{sqlite_path}", postgres_url)
    ]
    assert there_and_here[0] == there_and_here[1]
    with psycopg.connect(postgres_url) as there, sqlite3.connect(sqlite_path) as here:
        there.execute("SET TimeZone TO 'UTC'")
        for table in schema.metadata.sorted_tables:
            assert _postgresql_texts(there, table.name) == _sqlite_texts(here, table.name), table.name
    here.close()


@pytest.fixture
def loaded(sqlite_path: Path) -> Iterator[sqlite3.Connection]:
    load_demo_data(f"sqlite:///{sqlite_path}", contacts=5000, entities=0, seed=SEED)
    connection = sqlite3.connect(sqlite_path)
    yield connection
    connection.close()


def test_what_belongs_to_contacts(loaded: sqlite3.Connection) -> None:
    for table, at_most in (("contact_tokens", TOKENS_AT_MOST), ("contact_emails", EMAILS_AT_MOST)):
        counts = Counter(row[0] for row in loaded.execute(f"SELECT contact_id FROM {table}"))
        assert max(counts.values()) == at_most
        assert 0.2 < len(counts) / 5000 < 0.35
        strangers = (
            f"SELECT count(*) FROM {table} x LEFT JOIN contacts c "
            "ON c.id = x.contact_id AND c.organization_id = x.organization_id WHERE c.id IS NULL"
        )
        assert loaded.execute(strangers).fetchone() == (0,)
    newest_last = "SELECT count(*) FROM contact_tokens a JOIN contact_tokens b USING (contact_id) WHERE a.id < b.id"
    assert loaded.execute(f"{newest_last} AND a.created_at >= b.created_at").fetchone() == (0,)


def test_lists_overlap_and_keep_to_their_organization(loaded: sqlite3.Connection) -> None:
    ids = [row[0] for row in loaded.execute("SELECT id FROM contact_lists")]
    assert sorted(ids) == sorted(list_id(one, at) for one in ORGANIZATIONS for at in range(len(LIST_NAMES)))
    assert len(ids) == 15
    mixed = (
        "SELECT count(*) FROM contact_list_members m LEFT JOIN contact_lists l ON l.id = m.list_id AND "
        "l.organization_id = m.organization_id LEFT JOIN contacts c ON c.id = m.contact_id AND "
        "c.organization_id = m.organization_id WHERE l.id IS NULL OR c.id IS NULL"
    )
    assert loaded.execute(mixed).fetchone() == (0,)
    on_several = "SELECT count(*) FROM (SELECT 1 FROM contact_list_members GROUP BY contact_id HAVING count(*) > 1)"
    assert loaded.execute(on_several).fetchone()[0] > 100


def test_segments_filter_by_declared_columns_and_operators(loaded: sqlite3.Connection) -> None:
    dataset = load_catalog()["contacts"]
    stored = [json.loads(row[0]) for row in loaded.execute("SELECT filter FROM contact_segments")]
    assert len(stored) == 20
    for name, rule in (item for conditions in stored for item in conditions.items()):
        column = dataset.column(name)
        assert column is not None
        assert set(rule if isinstance(rule, dict) else ["eq"]) <= set(column.operators)


@pytest.mark.parametrize("number", range(len(SEGMENTS)))
def test_every_segment_can_be_read(number: int) -> None:
    dataset = load_catalog()["contacts"]
    column = dataset.column("custom_fields")
    assert column is not None
    types = {"Text": ColumnType.TEXT, "Number": ColumnType.DECIMAL, "Date": ColumnType.TIMESTAMP}
    fields = [CustomField(column, name, types[kind]) for name, kind in CUSTOM_FIELDS]
    _, stored, query = SEGMENTS[number]
    for dsl in {query, None}:
        segment_condition(StoredSegment(id="1", filter=json.dumps(stored), query_dsl=dsl), dataset, fields, "UTC")


def test_a_segment_asks_for_all_that_its_query_language_has(loaded: sqlite3.Connection) -> None:
    queries = [row[0] for row in loaded.execute("SELECT query_dsl FROM contact_segments WHERE query_dsl IS NOT NULL")]
    assert all(query.startswith("SELECT contact_id, updated_at FROM contact_data") for query in queries)
    rich = [query for query in queries if all(word in query for word in (" LIKE ", " IN (", " IS NOT NULL"))]
    assert len(rich) == len(ORGANIZATIONS)
    names = {name for name, _ in CUSTOM_FIELDS}
    assert all(names & set(re.findall(r"\b\w+\b", query)) == {"plan", "orders"} for query in rich)


def test_merged_profiles_left_their_addresses(loaded: sqlite3.Connection) -> None:
    merged = "FROM contact_emails WHERE merged_from IS NOT NULL"
    few, all_of_them = (
        loaded.execute(f"SELECT count(*) {what}").fetchone()[0] for what in (merged, "FROM contact_emails")
    )
    assert 0.1 < few / all_of_them < 0.4
    assert loaded.execute(f"SELECT count(*) {merged} AND merged_from IN (SELECT id FROM contacts)").fetchone() == (0,)
    with_their_own = "SELECT contact_id FROM contact_emails WHERE merged_from IS NULL"
    alone = f"SELECT count(*) {merged} AND contact_id NOT IN ({with_their_own})"
    assert loaded.execute(alone).fetchone() == (0,)


def test_custom_fields_are_what_contacts_hold(loaded: sqlite3.Connection) -> None:
    held: dict[str, list[Any]] = {}
    for (text,) in loaded.execute("SELECT custom_fields FROM contacts WHERE custom_fields IS NOT NULL"):
        for name, value in json.loads(text).items():
            held.setdefault(name, []).append(value)
    for organization in ORGANIZATIONS:
        query = "SELECT name, field_type FROM contact_field_definitions WHERE organization_id = ?"
        defined = dict(loaded.execute(query, [organization.id]))
        assert defined == dict(CUSTOM_FIELDS)
    assert len({name.lower() for name in defined}) == len(defined)
    assert all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) for name in defined)
    assert defined.keys() - held.keys() == {"last_visit"}
    ordinary = {"Text": "plan", "Number": "orders", "Date": "renewed_at"}
    assert set(defined.values()) == set(ordinary)
    assert all(defined[name] == kind and len(held[name]) > 1000 for kind, name in ordinary.items())
    assert all(isinstance(value, int) for value in held["orders"] + held["number"])
    assert all(dt.datetime.fromisoformat(value).tzinfo for value in held["renewed_at"])


def test_rows_that_are_there_are_not_touched(sqlite_path: Path) -> None:
    url = f"sqlite:///{sqlite_path}"
    rows = load_demo_data(url, contacts=10, entities=5)
    assert (rows["contacts"], rows["entities"]) == (10, 5)
    with pytest.raises(DemoDataError, match="already holds rows"):
        load_demo_data(url, contacts=20, entities=0)


def _assert_same(expected: pa.Table, rows: list[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True))
    for column, found in zip(expected.itercolumns(), columns, strict=True):
        assert [_as_sqlite(value) for value in column.to_pylist()] == list(found)


def _as_sqlite(value: object) -> object:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return value.isoformat() if isinstance(value, dt.date) else value


def _sqlite_rows(connection: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()


def _sqlite_texts(connection: sqlite3.Connection, table: str) -> list[tuple[str, ...]]:
    rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    return sorted(tuple(_spelled(value) for value in row) for row in rows)


def _postgresql_texts(connection: psycopg.Connection[Any], table: str) -> list[tuple[str, ...]]:
    """The rows with every value spelled as SQLite holds it, by PostgreSQL itself."""
    spelled = [
        f"to_char({column.name}, 'YYYY-MM-DD HH24:MI:SS.US')"
        if column.type is schema.INSTANT
        else f"{column.name}::int"
        if str(column.type) == "BOOLEAN"
        else f"{column.name}::text"
        if column.type in (schema.UUID, schema.JSON, schema.DECIMAL, schema.DAY)
        else column.name
        for column in schema.metadata.tables[table].columns
    ]
    rows = connection.execute(f"SELECT {', '.join(spelled)} FROM {table}".encode()).fetchall()
    return sorted(tuple(_spelled(value) for value in row) for row in rows)


def _spelled(value: object) -> str:
    # SQLite keeps -0.0 as 0.0.
    return repr(value + 0.0) if isinstance(value, float) else repr(value)
