"""What a request names in the source is found there, or refused by its id; another tenant's is never found."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.catalog.types import ColumnType
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.data.rows import LIST_NAMES, SEGMENTS, list_id, segment_id
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source import lookups
from export_pipeline.source.lookups import check_lists, find_custom_fields, find_segments
from export_pipeline.source.readers import Source

OURS, THEIRS = ORGANIZATIONS[0], ORGANIZATIONS[1]
CONTACTS = load_catalog("")["contacts"]
NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def source(demo_source: Source) -> Source:
    return demo_source


def test_the_organizations_own_lists_are_known(source: Source) -> None:
    check_lists(source, CONTACTS, OURS.id, [list_id(OURS, at) for at in range(len(LIST_NAMES))])


@pytest.mark.parametrize("unknown", [NOBODYS, list_id(THEIRS, 0)])
def test_a_list_of_nobody_or_of_another_organization_is_refused_alike(source: Source, unknown: str) -> None:
    with pytest.raises(ExportFailure, match=f"list_ids: the organization has no list {unknown}") as failure:
        check_lists(source, CONTACTS, OURS.id, [list_id(OURS, 0), unknown])
    assert failure.value.code is FailureCode.UNKNOWN_LIST


def test_segments_come_in_the_order_asked_with_what_they_store(source: Source) -> None:
    asked = [segment_id(OURS, at) for at in reversed(range(len(SEGMENTS)))]
    found = find_segments(source, CONTACTS, OURS.id, asked)
    assert [segment.id for segment in found] == asked
    assert [segment.query_dsl for segment in found] == [dsl for _, _, dsl in reversed(SEGMENTS)]
    assert all(segment.filter for segment in found)


@pytest.mark.parametrize("unknown", [NOBODYS, segment_id(THEIRS, 0)])
def test_a_segment_of_nobody_or_of_another_organization_is_refused_alike(source: Source, unknown: str) -> None:
    with pytest.raises(ExportFailure, match=f"segment_ids: the organization has no segment {unknown}") as failure:
        find_segments(source, CONTACTS, OURS.id, [unknown])
    assert failure.value.code is FailureCode.UNKNOWN_SEGMENT


def test_custom_fields_are_those_of_the_organization_by_name(source: Source) -> None:
    fields = find_custom_fields(source, CONTACTS, OURS.id)
    keys = [field.key for field in fields]
    assert keys == sorted(set(keys))
    assert {field.value_type for field in fields} == {ColumnType.TEXT, ColumnType.DECIMAL, ColumnType.TIMESTAMP}
    assert find_custom_fields(source, CONTACTS, NOBODYS) == ()


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("line\nbreak", "Text", "a field has a control character in its name"),
        ("", "Text", "a field has no name"),
        ("colour", "Shade", "a field has a type other than Text, Number and Date"),
    ],
)
def test_a_definition_that_cannot_be_used_is_told(source: Source, name: str, kind: str, problem: str) -> None:
    """Its table and what is wrong with it, not its name: that is a customer's text, and the message is logged."""
    engine = sa.create_engine(source.url, poolclass=sa.NullPool)
    insert = sa.text(
        "INSERT INTO contact_field_definitions (id, organization_id, name, field_type, created_at) "
        "VALUES (:id, :id, :name, :kind, '2024-01-01 00:00:00')"
    )
    with engine.begin() as connection:
        connection.execute(insert, {"id": NOBODYS, "name": name, "kind": kind})
    try:
        with pytest.raises(ExportFailure, match=problem) as failure:
            find_custom_fields(source, CONTACTS, NOBODYS)
        assert failure.value.code is FailureCode.SOURCE_DATA_INVALID
        assert name == "" or name not in failure.value.message
    finally:
        with engine.begin() as connection:
            connection.execute(
                sa.text("DELETE FROM contact_field_definitions WHERE organization_id = :id"), {"id": NOBODYS}
            )


def test_a_directory_reads_no_segment_once_its_time_is_over(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_COUNTING_SECONDS", 0.0)
    monkeypatch.setattr(lookups, "segment_condition", lambda *_: pytest.fail("a segment was read"))
    found = lookups.segments_of(source, CONTACTS, OURS.id, "UTC")
    assert [(one.rows, one.problem) for one in found] == [(None, None)] * len(SEGMENTS)
    assert all(one.name for one in found)
