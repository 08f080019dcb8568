"""One spelling is one id and one name, of an organization, a list, a custom field or a key, on every database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.segments import parse_segment_query
from export_pipeline.filters.tree import AllOf, AnyOf, OnList
from export_pipeline.gateway.row_pages import read_page
from export_pipeline.source import lookups, open_snapshot
from export_pipeline.source.lookups import check_lists
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer

DATASET = parse_dataset(
    """
name: contacts
title: Spelled
table: spelled
tenant: organization_id
key: id
columns:
  - {name: id, type: integer}
  - {name: custom_fields, type: json}
lists:
  table: members
  member: member
  tenant: organization_id
  lists: {table: lists, id_type: text, tenant: organization_id}
custom_fields: {column: custom_fields, table: fields, tenant: organization_id}
"""
)
KEYED = parse_dataset(
    """
name: keyed
title: Keyed
table: keyed
tenant: organization_id
key: code
columns:
  - {name: code, type: text}
  - {name: amount, type: decimal}
"""
)
ORGANIZATIONS = ["acme", "ACME", "Acme", "acme "]
LISTS = ["VIP", "vip", "Vip"]
CODES = ["a", "B", "c", "ä", "Z", "_"]
KEYS = ["Dirección", '12" screen', "a/b", "back\\slash", "Age", "age", "a.b", "[0]"]
AMOUNT = "12345678901234567.89"


def writers(document: dict[str, str]) -> list[str]:
    """The ways in which writers of JSON escape the same document."""
    plain = json.dumps(document, ensure_ascii=False)
    return [plain, json.dumps(document), json.dumps(document).replace("/", "\\/")]


@pytest.fixture(
    scope="module", params=["postgresql", "postgresql icu", "sqlite nocase", "sqlite shared rtrim", "mariadb"]
)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    if request.param.startswith("sqlite"):
        path: Path = tmp_path_factory.mktemp("spelled") / "spelled.db"
        made = Source(f"sqlite:///{path}", shares_file="shared" in request.param)
        yield _made(made, f"TEXT COLLATE {request.param.rpartition(' ')[2]}", "text")
    elif request.param == "mariadb":
        server: MariadbServer = request.getfixturevalue("mariadb_server")
        with server.fresh_database() as url:
            yield _made(Source(url), "varchar(40)", "json")
    else:
        icu = request.param.endswith("icu")
        postgres: PostgresServer = request.getfixturevalue("icu_server" if icu else "postgres_server")
        with postgres.fresh_database() as url:
            made = Source(url.replace("postgresql://", "postgresql+psycopg://"))
            collation = "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            yield _made(made, "text COLLATE nocase" if icu else "text", "json", [collation] if icu else [])


def _made(source: Source, text: str, document: str, prepare: Sequence[str] = ()) -> Source:
    amount = "text" if source.backend == "sqlite" else "decimal(30, 2)"
    tables = [
        f"CREATE TABLE spelled (id bigint, organization_id {text}, custom_fields {document})",
        f"CREATE TABLE lists (id {text}, name {text}, organization_id {text})",
        f"CREATE TABLE members (list_id {text}, member bigint, organization_id {text})",
        f"CREATE TABLE keyed (code {text}, organization_id {text}, amount {amount})",
    ]
    engine = sa.create_engine(source.url, poolclass=sa.NullPool)
    documents = writers({key: f"value of {key}" for key in KEYS})
    if source.backend != "mariadb":  # which does not take them for JSON
        documents.append('{"Age": "6", "note": "a\\u0000b \\ud83d \\\\u0000 \\ud83d\\ude00"}')
    with engine.begin() as connection:
        for statement in [*prepare, *tables]:
            connection.exec_driver_sql(statement)

        def insert(statement: str, **values: object) -> None:
            connection.execute(sa.text(f"INSERT INTO {statement}"), values)

        for at, organization in enumerate(ORGANIZATIONS):
            insert("spelled VALUES (:id, :org, NULL)", id=at, org=organization)
            for list_id in LISTS:
                insert(
                    "lists VALUES (:id, :name, :org)", id=list_id, name=f"{organization} {list_id}", org=organization
                )
                insert("members VALUES (:id, :member, :org)", id=list_id, member=at, org=organization)
        for at, written in enumerate(documents):
            insert("spelled VALUES (:id, 'docs', :doc)", id=100 + at, doc=written)
        insert("members VALUES ('VIP', 100, 'docs')")
        insert("members VALUES ('vip', 101, 'docs')")
        for code in CODES:
            insert("keyed VALUES (:code, 'acme', :amount)", code=code, amount=AMOUNT)
    engine.dispose()
    return source


def ids(source: Source, chosen: Selection) -> list[int]:
    with open_snapshot(source, build_query(chosen, source.backend)) as snapshot:
        found = [row for batch in snapshot.batches for row in batch["id"].to_pylist()]
        assert len(found) == snapshot.row_count
    return found


@pytest.mark.parametrize("organization", ORGANIZATIONS)
def test_an_organization_has_the_rows_of_its_own_spelling_alone(source: Source, organization: str) -> None:
    at = ORGANIZATIONS.index(organization)
    assert ids(source, Selection(DATASET, organization, (DATASET.key_column,), AllOf(()))) == [at]
    on_lists = AnyOf((OnList(tuple(LISTS)),))
    assert ids(source, Selection(DATASET, organization, (DATASET.key_column,), AllOf(()), on_lists)) == [at]
    names = lookups.names_of(source, DATASET, organization, list_ids=LISTS, segment_ids=[])
    assert names == {one: f"{organization} {one}" for one in LISTS}


@pytest.mark.parametrize("spelled", ["aCME", "acme  ", " acme", "ácme", "acme%"])
def test_any_other_spelling_is_no_organization(source: Source, spelled: str) -> None:
    assert ids(source, Selection(DATASET, spelled, (DATASET.key_column,), AllOf(()))) == []
    assert lookups.lists_page(source, DATASET, spelled, after=None, limit=10) == []


def test_a_list_is_the_one_of_its_own_spelling(source: Source) -> None:
    for list_id, expected in (("VIP", [100]), ("vip", [101]), ("Vip", []), ("VIP ", [])):
        chosen = Selection(DATASET, "docs", (DATASET.key_column,), AllOf(()), AnyOf((OnList((list_id,)),)))
        assert ids(source, chosen) == expected
    check_lists(source, DATASET, "acme", LISTS)
    with pytest.raises(ExportFailure, match="the organization has no list vIP"):
        check_lists(source, DATASET, "acme", ["VIP", "vIP"])


def test_pages_of_lists_lose_none_that_the_database_takes_for_another(source: Source) -> None:
    pages, after = [], None
    while page := lookups.lists_page(source, DATASET, "acme", after=after, limit=1):
        pages += page
        after = page[-1].id
    assert [(one.id, one.rows) for one in pages] == [(one, 1) for one in sorted(LISTS)]


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_of_rows_lose_none_whatever_the_keys_collation(source: Source, newest_first: bool) -> None:
    selection = Selection(KEYED, "acme", KEYED.columns, AllOf(()))
    found: list[str] = []
    while True:
        place = {} if not found else {"before" if newest_first else "after": found[-1]}
        page = read_page(source, selection, limit=2, newest_first=newest_first, **place)
        found += [row["code"] for row in page]
        assert {str(row["amount"]) for row in page} <= {AMOUNT}
        if not page:
            break
    assert found == sorted(CODES, reverse=newest_first)


@pytest.mark.parametrize("key", KEYS)
def test_a_custom_field_is_found_by_its_name_however_it_was_written(source: Source, key: str) -> None:
    field = DATASET.custom_field(key, ColumnType.TEXT)
    query = build_query(Selection(DATASET, "docs", (field,), parse_filters({}, DATASET, "UTC")), source.backend)
    with open_snapshot(source, query) as snapshot:
        values = [value for batch in snapshot.batches for value in batch[field.name].to_pylist()]
    written = 3
    assert values[:written] == [f"value of {key}"] * written
    assert values[written:] in ([], ["6" if key == "Age" else None])


def test_what_no_text_can_hold_ends_no_export_that_asks_for_something_else(source: Source) -> None:
    if source.backend == "mariadb":
        pytest.skip("MariaDB's json takes no such escape")
    fields = (DATASET.custom_field("Age", ColumnType.DECIMAL), DATASET.custom_field("note", ColumnType.TEXT))
    where = "Age > 5 OR note LIKE 'a%u0000 %'"
    segment = parse_segment_query(
        f"SELECT contact_id, updated_at FROM contact_data WHERE {where}", DATASET, fields, "UTC"
    )
    assert ids(source, Selection(DATASET, "docs", (DATASET.key_column, fields[0]), AllOf(()), AnyOf((segment,)))) == [
        103
    ]
