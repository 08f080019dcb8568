"""Every read of the source is held to the organization by one predicate, which knows one spelling of its id."""

from __future__ import annotations

import pytest

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.catalog.types import ColumnType
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline.failures import ExportFailure
from export_pipeline.filters.tree import AllOf
from export_pipeline.source import lookups, open_snapshot
from export_pipeline.source.lookups import check_lists, find_custom_fields, find_segments
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source

OURS, THEIRS = ORGANIZATIONS[0], ORGANIZATIONS[1]
# As an application that did not say of what type its tenant column is: on PostgreSQL it is a uuid.
CONTACTS = load_catalog("")["contacts"].model_copy(update={"tenant_type": ColumnType.TEXT})
LIST, SEGMENT = list_id(OURS, 0), segment_id(OURS, 0)
OTHER_SPELLINGS = [OURS.id.upper(), f"{{{OURS.id}}}", OURS.id.replace("-", "")]


@pytest.fixture(scope="module")
def source(demo_source: Source) -> Source:
    return demo_source


def found(source: Source, organization_id: str) -> dict[str, int]:
    """How much each way of reading the source finds of an organization."""
    named = lookups.names_of(source, CONTACTS, organization_id, list_ids=[LIST], segment_ids=[SEGMENT])
    selected = Selection(CONTACTS, organization_id, (CONTACTS.key_column,), AllOf(()))
    with open_snapshot(source, build_query(selected, source.backend, limit=1)) as snapshot:
        rows = snapshot.row_count
    return {
        "rows": rows,
        "custom fields": len(find_custom_fields(source, CONTACTS, organization_id)),
        "lists": len(lookups.lists_page(source, CONTACTS, organization_id, after=None, limit=100)),
        "members": sum(
            one.rows for one in lookups.lists_page(source, CONTACTS, organization_id, after=None, limit=100)
        ),
        "segments": len(lookups.segments_of(source, CONTACTS, organization_id, "UTC")),
        "names": len(named),
    }


def test_the_organization_is_found_by_its_own_spelling(source: Source) -> None:
    assert all(found(source, OURS.id).values())
    check_lists(source, CONTACTS, OURS.id, [LIST])
    assert find_segments(source, CONTACTS, OURS.id, [SEGMENT])


@pytest.mark.parametrize("spelled", OTHER_SPELLINGS)
def test_a_spelling_that_only_the_database_takes_for_it_finds_nothing_anywhere(source: Source, spelled: str) -> None:
    assert not any(found(source, spelled).values())
    with pytest.raises(ExportFailure, match="no list"):
        check_lists(source, CONTACTS, spelled, [LIST])
    with pytest.raises(ExportFailure, match="no segment"):
        find_segments(source, CONTACTS, spelled, [SEGMENT])


def test_the_ids_of_another_organization_name_nothing(source: Source) -> None:
    assert lookups.names_of(source, CONTACTS, THEIRS.id, list_ids=[LIST], segment_ids=[SEGMENT]) == {}
    theirs = lookups.lists_page(source, CONTACTS, THEIRS.id, after=None, limit=100)
    assert theirs
    assert not {one.id for one in theirs} & {
        one.id for one in lookups.lists_page(source, CONTACTS, OURS.id, after=None, limit=100)
    }
